"""How a merge is cut into chunks, and what it holds in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from recall.devices import free_memory
from recall.errors import BadInput
from recall.pool import Pool
from recall.tensor_files import FLOATS, ITEM_BYTES, TensorSpec

# Elements: a float32 accumulator and an input of this size fit into a core's cache (benchmarks/merge_speed.py).
CHUNK = 1 << 18
# For a GPU, where starting a copy takes as long as half a megabyte of it: several megabytes.
DEVICE_CHUNK = 1 << 22
SMALLEST_CHUNK = 1 << 12
# An element as read, as a float, in the sum, as kept to compare, and rounded; at most 8 bytes each.
BYTES_AN_ELEMENT = 40
# On a device also where models agree, and the sum with what they agree on.
DEVICE_BYTES_AN_ELEMENT = 50
CACHED_TENSORS = 2


@dataclass(frozen=True)
class Lanes:
    """How a merge runs: so many threads at once, each on chunks of at most so many elements.

    With a `device` chunks are computed there, and pass through pinned buffers of each thread.
    """

    threads: int
    chunk: int
    device: torch.device | None = None


@dataclass(frozen=True)
class Held:
    """What a method holds besides its `Buffers`: a thread so many float32 tensors of a chunk's size, and so many bytes
    whatever the size of a chunk.
    """

    chunk_tensors: int = 0
    fixed: int = 0


NOTHING = Held()


@dataclass(frozen=True)
class Slice:
    """The elements `start` to `stop` of a tensor; of a matrix, whole rows."""

    name: str
    start: int
    stop: int


def slices(name: str, spec: TensorSpec, chunk: int) -> Iterator[Slice]:
    """Cut one tensor into slices of at most `chunk` elements, or of one row where a row is longer."""
    step = _slice_size(spec, chunk)
    for start in range(0, spec.size, step):
        yield Slice(name, start, min(start + step, spec.size))


def _slice_size(spec: TensorSpec, chunk: int) -> int:
    columns = spec.shape[1] if len(spec.shape) == 2 else 1
    return max(1, chunk // max(1, columns)) * max(1, columns)


def memory_needed(pool: Pool, lanes: Lanes, held: Held = NOTHING) -> int:
    """Bytes that a merge holds at most: the process as it is now, a few chunks a thread, the factors of one tensor."""
    largest = _largest_slice(pool, lanes.chunk)
    each_thread = largest * (BYTES_AN_ELEMENT + 4 * held.chunk_tensors)
    if lanes.device:
        # Pinned memory comes in powers of two: two chunks that are read in turns, and one that is written.
        each_thread = 3 << (largest * widest_item(pool) - 1).bit_length()
    return process_memory() + lanes.threads * each_thread + _factors(pool) + held.fixed


def device_memory_needed(pool: Pool, lanes: Lanes) -> int:
    """Bytes that a merge holds on its device at most, however large the models: chunks, and one tensor's factors."""
    if not lanes.device:
        return 0
    return lanes.threads * _largest_slice(pool, lanes.chunk) * DEVICE_BYTES_AN_ELEMENT + _factors(pool)


def widest_item(pool: Pool) -> int:
    """Bytes of an element of the widest type among the floating-point tensors of any model."""
    specs = [spec for folder in pool.bases.values() for spec in folder.specs.values()]
    return max((ITEM_BYTES[spec.dtype] for spec in specs if spec.dtype in FLOATS), default=1)


def _largest_slice(pool: Pool, chunk: int) -> int:
    return max((min(spec.size, _slice_size(spec, chunk)) for spec in pool.specs.values()), default=0)


def _factors(pool: Pool) -> int:
    """The factors of the differences of one tensor, all adapters', as often as they are kept."""
    ranks: dict[str, int] = {}
    for adapter in filter(None, pool.adapters):
        for target in adapter.targets:
            ranks[target] = ranks.get(target, 0) + adapter.rank(target)
    one = max((rank * sum(pool.specs[target].shape) * 4 for target, rank in ranks.items()), default=0)
    return one * 2 * CACHED_TENSORS


def fit_lanes(
    pool: Pool,
    threads: int | None = None,
    max_memory: int | None = None,
    held: Held = NOTHING,
    device: torch.device | None = None,
) -> Lanes:
    """The number of threads, by default of free cores, and the chunk with which a merge keeps to its memory.

    Args:
        max_memory: bytes that the process may hold at most.
        device: its free memory is kept to as well.

    Raises:
        BadInput: even one thread with the smallest chunks needs more.
    """
    lanes = Lanes(threads or len(os.sched_getaffinity(0)), DEVICE_CHUNK if device else CHUNK, device)
    free = free_memory(device)

    def excess() -> str | None:
        needed = memory_needed(pool, lanes, held)
        if max_memory and needed > max_memory:
            return f"{needed / 1e6:.0f} MB, but --max-memory allows {max_memory / 1e6:.0f} MB; raise it"
        on_device = device_memory_needed(pool, lanes)
        if free is not None and on_device > free:
            return f"{on_device / 1e6:.0f} MB on {device}, which has {free / 1e6:.0f} MB left; choose another --device"
        return None

    while excess() and (lanes.chunk > SMALLEST_CHUNK or lanes.threads > 1):
        if lanes.chunk > SMALLEST_CHUNK:
            lanes = replace(lanes, chunk=lanes.chunk // 2)
        else:
            lanes = replace(lanes, threads=lanes.threads - 1)
    if problem := excess():
        raise BadInput(f"this merge needs {problem}")
    return lanes


def process_memory() -> int:
    """Resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
