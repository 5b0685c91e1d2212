"""The one model in memory: several stages in a row read the same checkpoint once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recall.checkpoints import Checkpoint
from recall.loading import load_model, load_tokenizer

_slot: dict[tuple[Checkpoint, torch.dtype], tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]] = {}


@contextmanager
def loaded(
    checkpoint: Checkpoint, dtype: torch.dtype
) -> Iterator[tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]]:
    """A model in evaluation mode with its tokenizer; an adapter is laid over its base while the context lasts.

    Two checkpoints in one folder at different times must not be asked for: the folder stands for its content.
    """
    model, tokenizer = _full_model(checkpoint.base or checkpoint, dtype)
    if checkpoint.base is None:
        yield model, tokenizer
        return
    adapted = PeftModel.from_pretrained(model, str(checkpoint.folder), autocast_adapter_dtype=True).eval()
    try:
        yield adapted, tokenizer
    finally:
        adapted.unload()


def forget() -> None:
    """Let the model in memory go, so that a merge has the memory for itself."""
    _slot.clear()
    gc.collect()


def _full_model(
    checkpoint: Checkpoint, dtype: torch.dtype
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    key = (checkpoint, dtype)
    if key not in _slot:
        _slot.clear()
        _slot[key] = load_model(checkpoint, dtype), load_tokenizer(checkpoint.folder)
    return _slot[key]
