"""Checkpoints: Hugging Face folders, checked from their headers alone before anything reads their weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from recall.errors import BadInput, one_line

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SIDE_FILES = (
    "config.json", "generation_config.json", "chat_template", "special_tokens_map.json", "tokenizer", "vocab", "merges",
    "added_tokens", "spiece", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


@dataclass(frozen=True)
class Checkpoint:
    """A full model in `folder`; with `base`, `folder` is a PEFT LoRA adapter over that full model."""

    folder: Path
    base: Checkpoint | None = None


def check_checkpoint(folder: Path, needs_tokenizer: bool = True) -> None:
    """Check a full checkpoint or a PEFT adapter from its headers alone; no weight is read.

    Raises:
        BadInput: the folder or its config is missing or unreadable, the weights are a pickle, missing, truncated or
            incomplete, or a full checkpoint has no tokenizer though it needs one.
    """
    if not folder.is_dir():
        raise BadInput(
            f"checkpoint {folder} is not a folder; give a Hugging Face model folder or a PEFT adapter folder"
        )
    is_adapter = (folder / "adapter_config.json").is_file()
    config = read_json(folder / ("adapter_config.json" if is_adapter else "config.json"))
    _check_weights(folder, "adapter_model.safetensors" if is_adapter else "model.safetensors")
    if is_adapter:
        if config.get("peft_type") != "LORA":
            raise BadInput(f"adapter {folder} is of type {config.get('peft_type')}; only LORA adapters are supported")
        return
    if needs_tokenizer and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise BadInput(f"checkpoint {folder} has no tokenizer ({TOKENIZER_FILES[0]}); save one beside the weights")


def check_architecture(folder: Path) -> None:
    """Check that transformers knows a causal language model of the checkpoint's type.

    Raises:
        BadInput: it does not.
    """
    # Imported here: nothing else in this module needs the seconds that transformers and torch take.
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    model_type = str(read_json(folder / "config.json").get("model_type"))
    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BadInput(f"checkpoint {folder} has model_type {model_type!r}, which transformers knows no causal LM for")


def is_causal_lm(checkpoint: Checkpoint) -> bool:
    """Does the checkpoint say that it continues text, so that its loss on a text means something?"""
    config = read_json((checkpoint.base or checkpoint).folder / "config.json")
    names = config.get("architectures") or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) and not name.startswith("Bert") for name in names)


def read_json(path: Path) -> dict[str, Any]:
    """A checkpoint's JSON file.

    Raises:
        BadInput: it cannot be read, or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"checkpoint {path.parent} has no readable {path.name} ({error.strerror})") from error
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({one_line(error)}); copy the checkpoint again") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds no JSON object; copy the checkpoint again")
    return content


def _check_weights(folder: Path, single: str) -> None:
    index = folder / f"{single}.index.json"
    if index.is_file():
        shards = shards_named(index)
    elif (folder / single).is_file():
        shards = [single]
    else:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise BadInput(
                f"checkpoint {folder} is a pickle ({pickles[0]}), which can run code; convert it to safetensors"
            )
        raise BadInput(f"checkpoint {folder} has no {single}; save its weights as safetensors")
    for name in shards:
        try:
            with safe_open(folder / name, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{folder / name} is damaged or cut short ({one_line(error)}); copy it again") from error


def shards_named(index: Path) -> list[str]:
    """The weight files that an index names, each a file of its own folder and no other.

    Raises:
        BadInput: it cannot be read, names no file or one that is missing, or a name has a folder in it.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput(f"{index} names no file of weights; copy the checkpoint again")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise BadInput(f"{index} names {name!r}, which is no file of its folder; it was altered, copy it again")
    shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise BadInput(f"{index} names {missing[0]}, which is not there; copy the checkpoint again")
    return shards


def copy_side_files(folder: Path, out: Path) -> None:
    """Copy config, generation config, tokenizer and the like, all from one model, so that they fit each other."""
    for file in side_files(folder):
        shutil.copyfile(file, out / file.name)


def side_files(folder: Path) -> list[Path]:
    """Config, generation config, tokenizer and the like, by name."""
    return [file for file in sorted(folder.iterdir()) if file.name.startswith(SIDE_FILES) and file.is_file()]
