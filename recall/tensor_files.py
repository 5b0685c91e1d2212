"""Safetensors folders by byte range: headers first, then any slice of any tensor, never a whole file in memory.

Slices are read into buffers of the caller's, not through a memory map: the process never holds a checkpoint's pages, so
its peak memory is what its buffers are.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from recall.checkpoints import shards_named
from recall.errors import BadInput, Failed, one_line

SHARD_BYTES = 5_000_000_000
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorSpec:
    """What a safetensors header says of one tensor; `dtype` is the header's own word, for instance BF16."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return ITEM_BYTES[self.dtype] * self.size


class TensorFolder:
    """Every tensor of a checkpoint folder (`model*.safetensors`, or an adapter's) by name, any slice of it readable.

    Safe to read from several threads at once.

    Raises:
        BadInput: no safetensors in the folder, an index that names a missing shard, a file that is damaged or cut
            short, a tensor in two files, or one of a type that cannot be merged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.specs: dict[str, TensorSpec] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._open = ExitStack()
        for path in weight_files(folder):
            file = self._open.enter_context(path.open("rb"))
            for name, entry in _read_header(path).items():
                if name in self.specs:
                    raise BadInput(f"{folder} holds tensor {name} in two files; copy the checkpoint again")
                if entry["dtype"] not in ITEM_BYTES:
                    raise BadInput(
                        f"{path}: tensor {name} has type {entry['dtype']}, which cannot be merged; save the model in "
                        f"one of {', '.join(FLOATS)}"
                    )
                self.specs[name] = TensorSpec(entry["dtype"], tuple(entry["shape"]))
                self._places[name] = (file.fileno(), entry["start"])

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` (bytes) with the elements from the `start`-th on, in the tensor's own type."""
        descriptor, place = self._places[name]
        offset = place + start * ITEM_BYTES[self.specs[name].dtype]
        done = 0
        while done < len(buffer):
            got = os.preadv(descriptor, [buffer[done:]], offset + done)
            if not got:
                raise BadInput(f"{self.folder}: tensor {name} ends before its header says; copy the checkpoint again")
            done += got

    def read(self, name: str) -> bytearray:
        """The bytes of one whole tensor, for the small ones."""
        content = bytearray(self.specs[name].nbytes)
        self.read_into(name, 0, memoryview(content))
        return content

    def close(self) -> None:
        """Close the files; nothing can be read any more."""
        self._open.close()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint or an adapter: those that its index names, or all that are there.

    Raises:
        BadInput: there are none, the index is damaged, or one that it names is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in shards_named(index)]
    for single in ("model.safetensors", "adapter_model.safetensors"):
        if (folder / single).is_file():
            return [folder / single]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadInput(f"{folder} holds no .safetensors file; convert the checkpoint with save_pretrained first")
    return files


def _read_header(path: Path) -> dict[str, dict[str, Any]]:
    try:
        # The library checks that header and file fit together; what it does not tell is where a tensor starts.
        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(length))
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} is damaged or cut short ({one_line(error)}); copy it again") from error
    header.pop("__metadata__", None)
    return {name: entry | {"start": 8 + length + entry["data_offsets"][0]} for name, entry in header.items()}


class CheckpointWriter:
    """Writes model.safetensors, or shards with an index, slice by slice in any order and from any thread.

    Headers are written first, so every slice has its place from the start. Use as a context; leaving it flushes to
    disk.

    Raises:
        Failed: the disk is full or cannot be written.
    """

    def __init__(self, folder: Path, specs: dict[str, TensorSpec], shard_bytes: int | None = None) -> None:
        self.folder = folder
        self._places: dict[str, tuple[int, int]] = {}
        self._item_bytes = {name: ITEM_BYTES[spec.dtype] for name, spec in specs.items()}
        self._open = ExitStack()
        shards = _plan_shards(specs, shard_bytes or SHARD_BYTES)
        self._names = shard_names(len(shards))
        self._index = {name: file for file, shard in zip(self._names, shards, strict=True) for name in shard}
        self._total = sum(spec.nbytes for spec in specs.values())
        for file, shard in zip(self._names, shards, strict=True):
            self._attempt(self._start_file, folder / file, {name: specs[name] for name in shard})

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._attempt(self._finish)
        finally:
            self._open.close()

    def write(self, name: str, start: int, content: memoryview) -> None:
        """Write elements (as bytes of the tensor's type) from the `start`-th on."""
        self._attempt(self._write_at, name, start, content)

    def _write_at(self, name: str, start: int, content: memoryview) -> None:
        descriptor, place = self._places[name]
        offset = place + start * self._item_bytes[name]
        done = 0
        while done < len(content):
            done += os.pwrite(descriptor, content[done:], offset + done)

    def _start_file(self, path: Path, specs: dict[str, TensorSpec]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, spec in specs.items():
            header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [end, end + spec.nbytes]}
            end += spec.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file = self._open.enter_context(path.open("wb"))
        file.write(struct.pack("<Q", len(text)) + text)
        file.flush()
        file.truncate(8 + len(text) + end)
        for name in specs:
            self._places[name] = (file.fileno(), 8 + len(text) + header[name]["data_offsets"][0])

    def _finish(self) -> None:
        for descriptor in {descriptor for descriptor, _ in self._places.values()}:
            os.fsync(descriptor)
        if len(self._names) > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": self._index}
            (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))

    def _attempt(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except OSError as error:
            raise Failed(f"the model cannot be written to {self.folder}: {error.strerror}") from error


def shard_names(count: int) -> list[str]:
    """The file names that transformers gives to `count` shards."""
    return (
        ["model.safetensors"] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    )


def _plan_shards(specs: dict[str, TensorSpec], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.nbytes
    return shards
