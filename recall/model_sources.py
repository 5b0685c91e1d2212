"""The models that a person names for a merge: local folders, hub ids, adapters over a base; found and compared."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recall.checkpoints import Checkpoint, check_checkpoint, read_json
from recall.errors import BadInput, one_line

HUB_ID = re.compile(r"^(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?$")
HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


def find_models(names: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints under `names`, in their order, each a folder or a hub id (`owner/name` or `owner/name@revision`).

    An adapter lies over the base folder that it names, if that is there; else over the first full model of the list,
    or over what it names on the hub.

    Raises:
        BadInput: a name is neither a folder nor on the hub, a checkpoint is damaged, or an adapter's base is unknown.
    """
    folders = [_find(name) for name in names]
    for folder in folders:
        check_checkpoint(folder, needs_tokenizer=False)
    full = [folder for folder in folders if not is_adapter(folder)]
    return [Checkpoint(folder, _base_of(folder, full) if is_adapter(folder) else None) for folder in folders]


def is_adapter(folder: Path) -> bool:
    """Is the folder a PEFT adapter?"""
    return (folder / "adapter_config.json").is_file()


def check_alike(members: Sequence[Checkpoint]) -> None:
    """Check that the models are of one architecture and read text alike; their tensors are compared by the merge.

    Raises:
        BadInput: the first thing in which they differ, with both values.
    """
    folders = list(dict.fromkeys((member.base or member).folder for member in members))
    first, *others = folders
    config, vocabulary = read_json(first / "config.json"), _vocabulary(first)
    for other in others:
        theirs = read_json(other / "config.json")
        for key in ("model_type", "tie_word_embeddings"):
            if config.get(key) != theirs.get(key):
                raise BadInput(
                    f"{key} is {config.get(key)!r} in {first} and {theirs.get(key)!r} in {other}; only models of one "
                    "architecture can be merged"
                )
        _check_same_vocabulary(first, vocabulary, other, _vocabulary(other))


def _find(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    on_hub = HUB_ID.match(name)
    if on_hub is None or Path(name).exists():
        raise BadInput(f"model {name} is neither a folder nor a hub id (owner/name or owner/name@revision)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(on_hub["id"], revision=on_hub["revision"], allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BadInput(f"model {name} is no folder here and cannot be had from the hub ({one_line(error)})") from error


def _base_of(adapter: Path, full: list[Path]) -> Checkpoint:
    named = read_json(adapter / "adapter_config.json").get("base_model_name_or_path") or ""
    if named and Path(named).is_dir():
        base = Path(named)
    elif full:
        base = full[0]
    elif named:
        base = _find(named)
    else:
        raise BadInput(f"adapter {adapter} names no base model; give its base as the first --model")
    check_checkpoint(base, needs_tokenizer=False)
    return Checkpoint(base)


def _vocabulary(folder: Path) -> dict[str, Any] | None:
    """Token by token what decides how text is read, leaving out what does not (padding, truncation)."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    words = content["model"].get("vocab", {})
    tokens = dict(words) if isinstance(words, dict) else {str(word): number for number, word in enumerate(words)}
    return tokens | {entry["content"]: entry["id"] for entry in content.get("added_tokens", [])}


def _check_same_vocabulary(
    first: Path, ours: dict[str, Any] | None, other: Path, theirs: dict[str, Any] | None
) -> None:
    # Not every folder of a fine-tuned model carries a tokenizer; those that do must agree.
    if ours is None or theirs is None or ours == theirs:
        return
    token = next(token for token in [*ours, *theirs] if ours.get(token) != theirs.get(token))
    raise BadInput(
        f"the tokenizers differ: token {token!r} is {ours.get(token, 'missing')} in {first} ({len(ours)} tokens) and "
        f"{theirs.get(token, 'missing')} in {other} ({len(theirs)} tokens); merge models that read text alike"
    )
