"""The one model in memory: several stages in a row read the same checkpoint once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recall.checkpoints import Checkpoint, load_model, load_tokenizer
from tasks.refs import CheckpointRef

_slot: dict[tuple[str, torch.dtype], tuple[PreTrainedModel, PreTrainedTokenizerBase]] = {}


@contextmanager
def loaded(ref: CheckpointRef, dtype: torch.dtype) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    """A model in evaluation mode with its tokenizer; an adapter is laid over its base while the context lasts."""
    full = ref.base or ref
    model, tokenizer = _full_model(full, dtype)
    if ref.base is None:
        yield model, tokenizer
        return
    adapted = PeftModel.from_pretrained(model, str(ref.path), autocast_adapter_dtype=True).eval()
    try:
        yield adapted, tokenizer
    finally:
        adapted.unload()


def _full_model(ref: CheckpointRef, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    key = (ref.fingerprint, dtype)
    if key not in _slot:
        _slot.clear()
        _slot[key] = load_model(Checkpoint(ref.path), dtype), load_tokenizer(ref.path)
    return _slot[key]
