"""Merging by task vectors: what each fine-tuning changed, trimmed or dropped, added to the first model.

Shapes: K models but the first, n elements of a chunk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from recall.buffers import Buffers
from recall.chunks import Lanes, Slice, slices
from recall.merging import Combine, Method, in_threads
from recall.pool import Pool
from recall.tensor_files import FLOATS

HALF = 16  # bits of half a float32
# What a thread holds to count the halves of one task vector, twice.
COUNTS_BYTES = 2 * 8 << HALF


def ties(density: float, scale: float) -> Method:
    """TIES-merging (Yadav et al. 2023): trim, elect signs, average what agrees.

    Of each task vector the `density` largest magnitudes of every tensor stay; at each element the sign with the larger
    sum wins (plus at a draw), and the mean over the task vectors that have it is added, times `scale`.
    """

    def method(pool: Pool, lanes: Lanes) -> Combine:
        trimmed = _Trimmed(pool, density, lanes)

        def combine(part: Slice, buffers: Buffers) -> Tensor:
            first_n, deltas_Kn = trimmed(part, buffers)
            elected_n = torch.where(deltas_Kn.sum(dim=0) >= 0, 1.0, -1.0)
            agrees_Kn = deltas_Kn * elected_n > 0
            count_n = agrees_Kn.sum(dim=0).clamp(min=1)
            return first_n.add_((deltas_Kn * agrees_Kn).sum(dim=0) / count_n, alpha=scale)

        return combine

    return method


def pruned_average(density: float, scale: float) -> Method:
    """The average of task vectors pruned by magnitude (Han et al. 2015), times `scale`: TIES without the election."""

    def method(pool: Pool, lanes: Lanes) -> Combine:
        trimmed = _Trimmed(pool, density, lanes)

        def combine(part: Slice, buffers: Buffers) -> Tensor:
            first_n, deltas_Kn = trimmed(part, buffers)
            return first_n.add_(deltas_Kn.mean(dim=0), alpha=scale)

        return combine

    return method


def dare(density: float, scale: float, seed: int) -> Method:
    """DARE (Yu et al. 2024) with task arithmetic: drop at random, rescale by 1 / `density`, add all times `scale`.

    Which elements stay depends on `seed`, the model's number, the tensor's name and the element's place alone, not on
    how the merge is cut into chunks.
    """

    def method(pool: Pool, _: Lanes) -> Combine:
        def combine(part: Slice, buffers: Buffers) -> Tensor:
            first_n, deltas_Kn = task_vectors(pool, part, buffers)
            for number in range(len(deltas_Kn)):
                deltas_Kn[number] *= torch.from_numpy(_kept(f"{seed} {number} {part.name}", part, density))
            return first_n.add_(deltas_Kn.sum(dim=0), alpha=scale / density)

        return combine

    return method


def task_vectors(pool: Pool, part: Slice, buffers: Buffers) -> tuple[Tensor, Tensor]:
    """A chunk of the first model and of every other model's difference from it, float32 (float64 if stored so)."""
    first_n = member_chunk(pool, 0, part, buffers)
    deltas = [member_chunk(pool, number, part, buffers).sub_(first_n) for number in range(1, len(pool.members))]
    return first_n, torch.stack(deltas)


def member_chunk(pool: Pool, number: int, part: Slice, buffers: Buffers) -> Tensor:
    """A chunk of one model of the pool, an adapter laid over its base."""
    model_n = buffers.read(pool.base_of[number], part).clone()
    adapter = pool.adapters[number]
    if adapter and adapter.changes(part.name):
        left_Or, right_rI = adapter.factors(part.name)
        columns = right_rI.shape[1]
        rows = slice(part.start // columns, part.stop // columns)
        model_n.view(-1, columns).addmm_(left_Or[rows].to(model_n.dtype), right_rI.to(model_n.dtype))
    return model_n


class _Trimmed:
    """Task vectors of which only the largest magnitudes of each tensor are left."""

    def __init__(self, pool: Pool, density: float, lanes: Lanes) -> None:
        self.pool = pool
        self.thresholds_K: dict[str, Tensor] = {}
        floats = [name for name, spec in pool.specs.items() if spec.dtype in FLOATS and spec.size]

        def start() -> Callable[[str], None]:
            buffers = Buffers(max(part.stop for name in floats for part in _chunks(pool, name, lanes)[:1]))

            def work(name: str) -> None:
                self.thresholds_K[name] = _thresholds(pool, name, density, buffers, lanes)

            return work

        in_threads(floats, start, lanes.threads, "trim")

    def __call__(self, part: Slice, buffers: Buffers) -> tuple[Tensor, Tensor]:
        first_n, deltas_Kn = task_vectors(self.pool, part, buffers)
        return first_n, deltas_Kn * (deltas_Kn.float().abs() >= self.thresholds_K[part.name][:, None])


def _thresholds(pool: Pool, name: str, density: float, buffers: Buffers, lanes: Lanes) -> Tensor:
    """The magnitude of the `density` x size-th largest element of each task vector of one tensor, exactly.

    A radix selection: magnitudes order as their bits do, so one pass counts the upper halves of the bits, and a second
    the lower halves of those that share the upper half of the one that is sought. Nothing but counts is kept.
    """
    wanted = max(1, int(density * pool.specs[name].size))
    models = len(pool.members) - 1
    upper_K = [_nth_largest(counts, wanted) for counts in _count(pool, name, buffers, lanes, [None] * models)]
    lower = _count(pool, name, buffers, lanes, [bits for bits, _ in upper_K])
    bits_K = [
        (bits << HALF) | _nth_largest(counts, wanted - above)[0]
        for counts, (bits, above) in zip(lower, upper_K, strict=True)
    ]
    return torch.tensor(bits_K, dtype=torch.int32).view(torch.float32)


def _count(pool: Pool, name: str, buffers: Buffers, lanes: Lanes, upper_K: list[int | None]) -> np.ndarray:
    """How often each upper half of the bits occurs in each task vector, or each lower half under a given upper one."""
    counts_KB = np.zeros((len(upper_K), 1 << HALF), np.int64)
    for part in _chunks(pool, name, lanes):
        _, deltas_Kn = task_vectors(pool, part, buffers)
        for number, (delta_n, upper) in enumerate(zip(deltas_Kn, upper_K, strict=True)):
            bits_n = delta_n.float().abs_().view(torch.int32).numpy()
            halves = bits_n >> HALF if upper is None else bits_n[bits_n >> HALF == upper] & ((1 << HALF) - 1)
            counts_KB[number] += np.bincount(halves, minlength=1 << HALF)
    return counts_KB


def _nth_largest(counts_B: np.ndarray, wanted: int) -> tuple[int, int]:
    """The value of the `wanted`-th largest, and how many are larger than all with that value."""
    at_least_B = counts_B[::-1].cumsum()[::-1]
    value = int(np.flatnonzero(at_least_B >= wanted)[-1])
    return value, int(at_least_B[value] - counts_B[value])


def _chunks(pool: Pool, name: str, lanes: Lanes) -> list[Slice]:
    return list(slices(name, pool.specs[name], lanes.chunk))


def _kept(key: str, part: Slice, density: float) -> np.ndarray:
    """True with probability `density` for each element, by its place: SplitMix64 (Steele et al. 2014) as a hash."""
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        mixed_n = np.arange(part.start, part.stop, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
        mixed_n = (mixed_n ^ (mixed_n >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed_n = (mixed_n ^ (mixed_n >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed_n ^= mixed_n >> np.uint64(31)
    return mixed_n < np.uint64(min(density, 1 - 2**-53) * 2**64)
