"""How a merge is cut into chunks, and what it holds in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recall.errors import BadInput
from recall.pool import Pool
from recall.tensor_files import TensorSpec

# Elements: a float32 accumulator and an input of this size fit into a core's cache (benchmarks/merge_speed.py).
CHUNK = 1 << 18
SMALLEST_CHUNK = 1 << 12
# An element as read, as a float, in the sum, as kept to compare, and rounded; at most 8 bytes each.
BYTES_AN_ELEMENT = 40
CACHED_TENSORS = 2


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


def memory_needed(pool: Pool, threads: int, chunk: int, chunk_tensors: int = 0) -> int:
    """Bytes that a merge holds at most: the process as it is now, a few chunks a thread, the factors of one tensor.

    `chunk_tensors` float32 tensors of a chunk's size are held by the method itself.
    """
    largest = max((_slice_size(spec, chunk) for spec in pool.specs.values()), default=0)
    ranks: dict[str, int] = {}
    for adapter in filter(None, pool.adapters):
        for target in adapter.targets:
            ranks[target] = ranks.get(target, 0) + adapter.rank(target)
    factors = max((rank * sum(pool.specs[target].shape) * 4 for target, rank in ranks.items()), default=0)
    each_thread = largest * (BYTES_AN_ELEMENT + 4 * chunk_tensors)
    return process_memory() + threads * each_thread + factors * 2 * CACHED_TENSORS


def fit_memory(pool: Pool, threads: int, limit: int, chunk_tensors: int = 0) -> tuple[int, int]:
    """The chunk and the number of threads with which a merge keeps to `limit` bytes.

    Raises:
        BadInput: even one thread with the smallest chunks needs more.
    """
    chunk = CHUNK
    while memory_needed(pool, threads, chunk, chunk_tensors) > limit and (chunk > SMALLEST_CHUNK or threads > 1):
        chunk, threads = (chunk // 2, threads) if chunk > SMALLEST_CHUNK else (chunk, threads - 1)
    needed = memory_needed(pool, threads, chunk, chunk_tensors)
    if needed > limit:
        raise BadInput(
            f"this merge needs {needed / 1e6:.0f} MB, but --max-memory allows {limit / 1e6:.0f} MB; raise it"
        )
    return chunk, threads


def process_memory() -> int:
    """Resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
