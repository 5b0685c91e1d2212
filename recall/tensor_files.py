"""Safetensors, streamed: read one tensor at a time out of a folder, write files whose header is known beforehand."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from recall.errors import BadInput, Failed

SHARD_BYTES = 5_000_000_000
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """What a safetensors header says of one tensor; `dtype` is the header's own word, for instance BF16."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return DTYPES[self.dtype].itemsize * int(torch.Size(self.shape).numel())


class TensorFolder:
    """Every tensor of a checkpoint folder (`model*.safetensors`, or an adapter's), by name and memory-mapped.

    Raises:
        BadInput: no safetensors in the folder, or a file that cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise BadInput(f"{folder} holds no .safetensors file; convert the checkpoint with save_pretrained first")
        self.folder = folder
        self.specs: dict[str, TensorSpec] = {}
        self._handles: dict[str, Any] = {}
        for file in files:
            try:
                handle = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise BadInput(f"{file} is not a whole safetensors file ({error}); fetch it again") from error
            for name in handle.keys():  # noqa: SIM118 - safe_open is no mapping
                view = handle.get_slice(name)
                self.specs[name] = TensorSpec(view.get_dtype(), tuple(view.get_shape()))
                self._handles[name] = handle

    def read(self, name: str) -> Tensor:
        """One tensor, in its stored type."""
        tensor: Tensor = self._handles[name].get_tensor(name)
        return tensor


def write_checkpoint(folder: Path, specs: dict[str, TensorSpec], tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Write `tensors`, which must come in the order of `specs`, as model.safetensors, or as shards with an index.

    Raises:
        Failed: the disk is full or cannot be written.
    """
    shards = _plan_shards(specs)
    count = len(shards)
    names = (
        ["model.safetensors"] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    )
    try:
        for file, shard in zip(names, shards, strict=True):
            _write_file(folder / file, {name: specs[name] for name in shard}, tensors)
        if count > 1:
            total = sum(spec.nbytes for spec in specs.values())
            where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))
    except OSError as error:
        raise Failed(f"the merged model cannot be written to {folder}: {error.strerror}") from error


def _plan_shards(specs: dict[str, TensorSpec]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.nbytes
    return shards


def _write_file(path: Path, specs: dict[str, TensorSpec], tensors: Iterator[tuple[str, Tensor]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in specs.items():
        header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, offset + spec.nbytes]}
        offset += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for expected in specs:
            name, tensor = next(tensors)
            assert name == expected, f"{name} came where {expected} was due"
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
