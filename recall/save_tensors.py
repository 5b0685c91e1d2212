"""Tensors of a Hugging Face file written whole or not at all, with the system's error where that fails."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write `path` as safetensors.

    Raises:
        OSError: the disk is full, or the folder cannot be written; with its number, as any other file's would have.
    """
    with system_errors(path):
        save_file(dict(tensors), path, metadata=metadata)


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Have what safetensors says of a write that failed as the system's error; the library passes on its text alone."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
