"""Loading: models and tokenizers out of checkpoint folders, the one way that every stage uses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from recall.errors import BadInput, one_line
from recall.model_classes import model_class, read_config

# Has a GPU give the same bits twice; read when cuBLAS is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# One bar a stage (recall.progress), and every load problem that matters is an error of ours.
transformers_logging.disable_progress_bar()


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


def load_tokenizer(folder: Path, writes: bool = True) -> PreTrainedTokenizerBase:
    """The folder's tokenizer: pads on the left, with the end-of-text token where it has no padding token of its own.

    Raises:
        BadInput: the tokenizer cannot be read, or has no end-of-text token though its model `writes` text.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(f"tokenizer of {folder} cannot be read ({one_line(error)}); save it again") from error
    if writes and tokenizer.eos_token_id is None:
        raise BadInput(f"tokenizer of {folder} has no end-of-text token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a full checkpoint for inference, as the class that its config names and on the GPU if there is one.

    Raises:
        BadInput: the weights do not fit the architecture that config.json states, or cannot be read.
    """
    try:
        loaded: Any = model_class(read_config(folder)).from_pretrained(
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
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"checkpoint {folder} cannot be loaded ({one_line(error)})") from error
    return cast(PreTrainedModel, model.to(device()).eval())


def lay_over(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """The model with a PEFT adapter, whose weights are in float32; `unload` takes it off again.

    Raises:
        BadInput: the adapter does not fit the model, or cannot be read.
    """
    try:
        return PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=True).eval()
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise BadInput(f"adapter {adapter} cannot be laid over its base ({one_line(error)[:300]})") from error


def attention() -> str | None:
    """The attention that models load with; None is PyTorch's fused kernel where the architecture has it, else eager.

    On the CPU that kernel is the slower one at the lengths used here (SmolLM2-135M in bfloat16, 32 to 512
    tokens: by 0 to 15% forward, by 8 to 20% in training; benchmarks/evaluation_speed.py).
    """
    return None if torch.cuda.is_available() else "eager"
