"""Checkpoints: Hugging Face folders, checked before they are read, and loaded the one way that every stage uses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from recall.errors import BadInput

# One bar a stage (recall.progress), and every load problem that matters is an error of ours.
transformers_logging.disable_progress_bar()

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


@dataclass(frozen=True)
class Checkpoint:
    """A full model in `folder`; with `base`, `folder` is a PEFT LoRA adapter over that full model."""

    folder: Path
    base: Checkpoint | None = None


def device() -> torch.device:
    """Where models run: the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def training_dtype(setting: str) -> torch.dtype:
    """The type of the base weights for a `dtype` setting; "auto" is bfloat16 where the hardware multiplies in it."""
    if setting != "auto":
        return {"bfloat16": torch.bfloat16, "float32": torch.float32}[setting]
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities()
        fast = any(has.get(feature, False) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if fast else torch.float32


def check_checkpoint(folder: Path) -> None:
    """Check a full checkpoint or a PEFT adapter from its headers alone; no weight is read.

    Raises:
        BadInput: the folder or its config is missing or unreadable, the architecture is unknown to transformers, the
            weights are a pickle, missing, truncated or incomplete, or a full checkpoint has no tokenizer.
    """
    if not folder.is_dir():
        raise BadInput(
            f"checkpoint {folder} is not a folder; give a Hugging Face model folder or a PEFT adapter folder"
        )
    is_adapter = (folder / "adapter_config.json").is_file()
    config = _read_json(folder / ("adapter_config.json" if is_adapter else "config.json"))
    _check_weights(folder, "adapter_model.safetensors" if is_adapter else "model.safetensors")
    if is_adapter:
        if config.get("peft_type") != "LORA":
            raise BadInput(f"adapter {folder} is of type {config.get('peft_type')}; only LORA adapters are supported")
        return
    _check_architecture(folder, config)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise BadInput(f"checkpoint {folder} has no tokenizer ({TOKENIZER_FILES[0]}); save one beside the weights")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer: pads on the left, with the end-of-text token where it has no padding token of its own.

    Raises:
        BadInput: the tokenizer cannot be read, or has no end-of-text token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(f"tokenizer of {folder} cannot be read ({_one_line(error)}); save it again") from error
    if tokenizer.eos_token_id is None:
        raise BadInput(f"tokenizer of {folder} has no end-of-text token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_model(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel | PeftModel:
    """Load a checkpoint for inference, its weights in `dtype` (an adapter's in float32), on the GPU if there is one.

    Raises:
        BadInput: the weights do not fit the architecture that config.json states, or cannot be read.
    """
    folder = checkpoint.folder if checkpoint.base is None else checkpoint.base.folder
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention(),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        model, loading = loaded
        # Transformers fills what the file lacks with random numbers and only warns.
        problems = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
        if problems:
            raise BadInput(f"checkpoint {folder} lacks {sorted(problems)[0]} in the shape that config.json states")
        if checkpoint.base is not None:
            model = PeftModel.from_pretrained(model, str(checkpoint.folder), autocast_adapter_dtype=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"checkpoint {checkpoint.folder} cannot be loaded ({_one_line(error)})") from error
    return cast(PreTrainedModel, model.to(device()).eval())


def attention() -> str:
    """The attention that models load with.

    On the CPU PyTorch's fused kernel is the slower one at the lengths used here (SmolLM2-135M in bfloat16, 32 to 512
    tokens: by 0 to 15% forward, by 8 to 20% in training; benchmarks/evaluation_speed.py).
    """
    return "sdpa" if torch.cuda.is_available() else "eager"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"checkpoint {path.parent} has no readable {path.name} ({error.strerror})") from error
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({_one_line(error)}); copy the checkpoint again") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path} holds no JSON object; copy the checkpoint again")
    return content


def _check_weights(folder: Path, single: str) -> None:
    index = folder / f"{single}.index.json"
    if index.is_file():
        shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing or not shards:
            raise BadInput(f"{index} names {missing[0] if missing else 'no shard'}, which is not there; copy it again")
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
            with safe_open(folder / name, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{folder / name} is damaged or cut short ({_one_line(error)}); copy it again") from error


def _check_architecture(folder: Path, config: dict[str, Any]) -> None:
    model_type = str(config.get("model_type"))
    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BadInput(f"checkpoint {folder} has model_type {model_type!r}, which transformers knows no causal LM for")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
