"""The models that a person names for a merge: local folders, hub ids, adapters over a base; found and compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recall.checkpoints import Checkpoint, check_checkpoint, read_json
from recall.errors import BadInput, one_line

HUB_ID = re.compile(r"^(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?$")
VOCABULARY_FILES = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt")
# What a model computes with the same tensors depends on these.
COMPUTES = (
    "model_type", "tie_word_embeddings", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "n_head",
    "num_heads", "head_dim", "hidden_act", "hidden_activation", "activation_function", "feed_forward_proj",
    "rope_theta", "rope_scaling", "rope_parameters", "rotary_pct", "partial_rotary_factor", "position_embedding_type",
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "sliding_window", "attn_logit_softcapping",
    "final_logit_softcapping", "query_pre_attn_scalar", "num_experts_per_tok", "do_stable_layer_norm",
    "is_encoder_decoder", "patch_size", "image_size",
)  # fmt: skip
HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


def find_models(names: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints under `names`, in their order, each a folder or a hub id (`owner/name` or `owner/name@revision`).

    An adapter lies over the base folder that it, or the manifest of the store beside it, names, if that is there; else
    over the first full model of the list, or over what it names on the hub.

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


def warnings_of(names: Sequence[str], members: Sequence[Checkpoint]) -> list[str]:
    """What is likely, and not certain, to be a mistake: an adapter that names another base than it was laid over."""
    found = []
    for name, member in zip(names, members, strict=True):
        if member.base is None:
            continue
        named = _named_base(member.folder)
        config = read_json(member.base.folder / "config.json")
        known = {config.get("_name_or_path"), *(n for n, m in zip(names, members, strict=True) if m == member.base)}
        if named and not Path(named).is_dir() and named not in known:
            found.append(f"adapter {name} says that its base is {named}; it was laid over {member.base.folder}")
    return found


def check_alike(members: Sequence[Checkpoint]) -> None:
    """Check that the models compute and read text alike; their tensors are compared by `recall.pool`.

    Raises:
        BadInput: the first thing in which they differ, with both values.
    """
    folders = list(dict.fromkeys((member.base or member).folder for member in members))
    first, *others = folders
    config = read_json(first / "config.json")
    for other in others:
        theirs = read_json(other / "config.json")
        # A key that one of them does not state says nothing: versions of transformers write different ones.
        for key in (key for key in COMPUTES if key in config and key in theirs):
            if config[key] != theirs[key]:
                raise BadInput(
                    f"{key} is {config[key]!r} in {first} and {theirs[key]!r} in {other}; only models of one "
                    "architecture can be merged"
                )
        _check_same_tokenizer(first, other)


def _find(name: str) -> Path:
    if Path(name).is_dir():
        # Two names of one folder are one model.
        return Path(name).resolve()
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
    named = _named_base(adapter)
    if named and Path(named).is_dir():
        base = Path(named).resolve()
    elif full:
        base = full[0]
    elif named:
        base = _find(named)
    else:
        raise BadInput(f"adapter {adapter} names no base model; give its base as the first --model")
    check_checkpoint(base, needs_tokenizer=False)
    return Checkpoint(base)


def _named_base(adapter: Path) -> str:
    """What an adapter was trained over, in its own words or, as an expert of a store names none, in its manifest's."""
    named = str(read_json(adapter / "adapter_config.json").get("base_model_name_or_path") or "")
    if named or not (adapter / "manifest.json").is_file():
        return named
    try:
        base = read_json(adapter / "manifest.json")["fields"]["base"]
        if base["kind"] == "base_model":
            return str(base["path"])
        trained_from = adapter.parent.parent / base["kind"] / base["fingerprint"]
    except (KeyError, TypeError):
        return ""
    if not trained_from.is_dir() and adapter.parent.name == "experts":
        raise BadInput(
            f"adapter {adapter} was trained from {trained_from}, which is not there; it fits no other model, so bring "
            "that folder back"
        )
    return str(trained_from)


def _check_same_tokenizer(first: Path, other: Path) -> None:
    """Not every folder of a fine-tuned model carries a tokenizer; those that do must agree."""
    ours, theirs = _vocabulary(first), _vocabulary(other)
    if ours is not None and theirs is not None:
        if ours != theirs:
            token = next(token for token in [*ours, *theirs] if ours.get(token) != theirs.get(token))
            raise BadInput(
                f"the tokenizers differ: token {token!r} is {ours.get(token, 'missing')} in {first} ({len(ours)} "
                f"tokens) and {theirs.get(token, 'missing')} in {other} ({len(theirs)} tokens); merge models that read "
                "text alike"
            )
        return
    for name in VOCABULARY_FILES:
        both = [folder / name for folder in (first, other) if (folder / name).is_file()]
        if len(both) == 2 and both[0].read_bytes() != both[1].read_bytes():
            raise BadInput(
                f"the tokenizers differ: {name} is not the same in {first} and {other}; merge models that read alike"
            )


def _vocabulary(folder: Path) -> dict[str, Any] | None:
    """Token by token and merge by merge what decides how text is read, but not padding or truncation."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        words, merges = content["model"].get("vocab", {}), content["model"].get("merges") or []
        tokens = dict(words) if isinstance(words, dict) else {str(word): number for number, word in enumerate(words)}
        # Versions of tokenizers write a merge as "a b" or as ["a", "b"].
        joined = (merge if isinstance(merge, str) else " ".join(merge) for merge in merges)
        numbered = {f"merge of {merge}": number for number, merge in enumerate(joined)}
        return tokens | numbered | {entry["content"]: entry["id"] for entry in content.get("added_tokens", [])}
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path} holds no tokenizer ({type(error).__name__}: {one_line(error)}); copy it again"
        ) from error
