"""The one model in memory: several stages in a row read the same checkpoint once."""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recall.checkpoints import Checkpoint
from recall.loading import lay_over, load_model, load_tokenizer

_models: dict[tuple[Checkpoint, torch.dtype], PreTrainedModel] = {}
_tokenizers: dict[Checkpoint, PreTrainedTokenizerBase] = {}


@contextmanager
def loaded_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Iterator[PreTrainedModel | PeftModel]:
    """A model in evaluation mode; an adapter is laid over its base while the context lasts.

    Two checkpoints in one folder at different times must not be asked for: the folder stands for its content.
    """
    base = checkpoint.base or checkpoint
    if (base, dtype) not in _models:
        _leave_imports_alone()
        forget()
        _models[base, dtype] = load_model(base.folder, dtype)
    model = _models[base, dtype]
    if checkpoint.base is None:
        yield model
        return
    adapted = lay_over(model, checkpoint.folder)
    try:
        yield adapted
    finally:
        adapted.unload()


@contextmanager
def loaded(
    checkpoint: Checkpoint, dtype: torch.dtype
) -> Iterator[tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]]:
    """A model that reads text, see `loaded_model`, with its tokenizer."""
    with loaded_model(checkpoint, dtype) as model:
        base = checkpoint.base or checkpoint
        if base not in _tokenizers:
            _tokenizers.clear()
            _tokenizers[base] = load_tokenizer(base.folder, writes=bool(model.can_generate()))
        yield model, _tokenizers[base]


@functools.cache
def _leave_imports_alone() -> None:
    """What was imported stays: the search for garbage before every model would take half a second to go through it."""
    gc.collect()
    gc.freeze()


def forget() -> None:
    """Let the model in memory go, so that what follows has the memory for itself."""
    _models.clear()
    _tokenizers.clear()
    gc.collect()
    # glibc keeps what was freed, and a merge's memory budget would count it; other C libraries have no such call.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
