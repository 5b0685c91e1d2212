"""The hierarchical merge: every parameter of a layer becomes a weighted sum (RECALL, 3.3; docs/method.md, step 6).

Models are walked chunk by chunk: the same byte range of every input goes into a float32 accumulator that stays in a
core's cache, is rounded once, and is written where the output's header says it belongs. What is in memory is a few
chunks a thread, whatever the models' size and number.

Shape suffixes: R rows of the weight matrix (a layer each, or finer), K models (the newest last), n elements of a chunk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from recall.buffers import Buffers
from recall.checkpoints import Checkpoint, copy_side_files
from recall.chunks import CACHED_TENSORS, NOTHING, Held, Lanes, Slice, fit_lanes, slices, widest_item
from recall.errors import BadInput, Failed
from recall.lora import LoraAdapter
from recall.pool import Pool
from recall.progress import track
from recall.recent import Recent
from recall.tensor_files import FLOATS, CheckpointWriter, TensorFolder
from recall.torch_types import TORCH_TYPES

T = TypeVar("T")


def merge(
    members: Sequence[Checkpoint],
    weights_RK: np.ndarray,
    row_of: Callable[[str], int],
    out: Path,
    *,
    threads: int | None = None,
    max_memory: int | None = None,
    device: torch.device | None = None,
) -> None:
    """Write the weighted sum of `members` to `out` as a Hugging Face folder (docs/method.md, step 6).

    The sum over models runs in float32 (float64 for float64 tensors) in the order of `members` and is rounded once;
    where all models hold the same value, it comes out bit for bit. LoRA adapters over one base cost one read of it.

    Args:
        members: K full checkpoints or LoRA adapters, the newest last.
        weights_RK: `(R, K)`, every row sums to 1.
        row_of: the row that a tensor takes, by the tensor's name.
        threads: see `merge_by`, as for `max_memory`, `device` and the errors.
    """

    def method(pool: Pool, lanes: Lanes) -> Combine:
        return WeightedSum(pool, weights_RK, row_of, lanes.device)

    merge_by(members, method, out, threads=threads, max_memory=max_memory, device=device)


def merge_by(
    members: Sequence[Checkpoint],
    method: Method,
    out: Path,
    *,
    threads: int | None = None,
    max_memory: int | None = None,
    held: Held = NOTHING,
    device: torch.device | None = None,
) -> None:
    """Write what `method` makes of `members` to `out` as a Hugging Face folder, in the first one's types and shards.

    Config, generation config and tokenizer come from the first model.

    Args:
        method: makes the function that computes a chunk of the output, once the models are open.
        threads: by default the free cores.
        max_memory: bytes that the process may hold at most; chunks get smaller and threads fewer to keep to it.
        held: what the method holds besides its `Buffers`.
        device: where chunks are computed, by a method that can; None is the CPU, straight from where they are read.

    Raises:
        BadInput: the models differ in structure, a tensor holds NaN or Inf, an adapter changes a tied embedding, or
            `max_memory` is not enough.
        Failed: `out` cannot be written, or `device` ran out of memory.
    """
    pool = Pool(members)
    try:
        pool.refuse_tied()
        lanes = fit_lanes(pool, threads, max_memory, held, device)
        out.mkdir(parents=True, exist_ok=True)
        combine = method(pool, lanes)
        with CheckpointWriter(out, pool.specs) as writer:
            walk(pool, combine, writer, lanes)
        copy_side_files(pool.first.folder, out)
    except torch.OutOfMemoryError as error:
        raise Failed(f"{device} has no memory left for the merge; free some, or give fewer --threads") from error
    finally:
        pool.close()


class WeightedSum:
    """One chunk of sum_k w_k theta_k; see `merge`. Called from several threads, each with its `Buffers`."""

    def __init__(
        self,
        pool: Pool,
        weights_RK: np.ndarray,
        row_of: Callable[[str], int],
        device: torch.device | None = None,
    ) -> None:
        self.pool = pool
        self.device = device
        self.shares_R = [_shares(pool, weights_K) for weights_K in weights_RK.tolist()]
        self.row_of = row_of
        # sum_k w_k (alpha/r) B_k A_k as one product of two factors, the ranks side by side.
        self.low_rank = Recent(CACHED_TENSORS, self._low_rank)

    def __call__(self, part: Slice, buffers: Buffers) -> Tensor:
        """The merged elements, float32 (float64 for a float64 tensor)."""
        shares = self.shares_R[self.row_of(part.name)]
        total_n = _sum_of_bases(part, shares.bases, buffers)
        low_rank = self.low_rank(part.name)
        if low_rank is not None:
            left_OR, right_RI = low_rank
            columns = right_RI.shape[1]
            rows = slice(part.start // columns, part.stop // columns)
            total_n.view(-1, columns).addmm_(left_OR[rows].to(total_n.dtype), right_RI.to(total_n.dtype))
            # A device may still be at it when the factors, of another thread's making, are let go.
            buffers.wait()
        return total_n

    def _low_rank(self, name: str) -> tuple[Tensor, Tensor] | None:
        adapters = self.shares_R[self.row_of(name)].adapters
        factors = [(weight, adapter.factors(name)) for weight, adapter in adapters if adapter.changes(name)]
        if not factors:
            return None
        left_OR = torch.cat([left_Or * weight for weight, (left_Or, _) in factors], dim=1)
        right_RI = torch.cat([right_rI for _, (_, right_rI) in factors])
        # These copies are over when they return, so that every thread may use them.
        return (left_OR.to(self.device), right_RI.to(self.device)) if self.device else (left_OR, right_RI)


@dataclass(frozen=True)
class _Shares:
    bases: list[tuple[float, TensorFolder]]
    adapters: list[tuple[float, LoraAdapter]]


def _shares(pool: Pool, weights_K: list[float]) -> _Shares:
    """What every distinct full checkpoint and every adapter gets; a model without weight is not even read."""
    by_base: dict[Path, float] = {}
    for base, weight in zip(pool.base_of, weights_K, strict=True):
        by_base[base.folder] = by_base.get(base.folder, 0.0) + weight
    bases = [(weight, pool.bases[folder]) for folder, weight in by_base.items() if weight]
    if len(bases) == 1:
        # The weights of a row sum to 1 but for rounding, which would move every parameter of a pool of adapters.
        bases = [(1.0, bases[0][1])]
    pairs = zip(weights_K, pool.adapters, strict=True)
    return _Shares(bases, [(weight, adapter) for weight, adapter in pairs if adapter and weight])


def _sum_of_bases(part: Slice, bases: list[tuple[float, TensorFolder]], buffers: Buffers) -> Tensor:
    first_n = buffers.read(bases[0][1], part)
    if len(bases) == 1:
        return first_n
    total_n = torch.mul(first_n, bases[0][0], out=buffers.total(first_n))
    # In 16 bits the rounding at the end gives equal values back by itself.
    exact = bases[0][1].specs[part.name].dtype in ("F64", "F32")
    kept_n = first_n.clone() if exact else first_n
    agree_n = torch.ones_like(kept_n, dtype=torch.bool) if exact else None
    for weight, folder in bases[1:]:
        model_n = buffers.read(folder, part)
        # Rounded once a model (fused), on a CPU with FMA as on a GPU.
        total_n.addcmul_(model_n, torch.tensor(weight, dtype=total_n.dtype))
        if agree_n is not None:
            agree_n &= model_n == kept_n
    return total_n if agree_n is None else torch.where(agree_n, kept_n, total_n)


Combine = Callable[[Slice, Buffers], Tensor]
Method = Callable[[Pool, Lanes], Combine]


def walk(pool: Pool, combine: Combine, writer: CheckpointWriter, lanes: Lanes) -> None:
    """Compute every chunk of the output and write it; each thread reads, computes and writes by itself."""
    floats = {name: spec for name, spec in pool.specs.items() if spec.dtype in FLOATS}
    for name in pool.specs.keys() - floats.keys():
        writer.write(name, 0, memoryview(pool.same_in_all(name)))
    parts = [part for name, spec in floats.items() for part in slices(name, spec, lanes.chunk)]
    largest = max((part.stop - part.start for part in parts), default=0)

    def start() -> Callable[[Slice], None]:
        # Pinned room is taken whole. Elsewhere room for less was slower: 0.2 of 2.4 CPU seconds, in the system.
        buffers = Buffers(largest, widest_item(pool) if lanes.device else 8, lanes.device)

        def work(part: Slice) -> None:
            total_n = combine(part, buffers)
            dtype = pool.specs[part.name].dtype
            _check_finite(total_n, dtype, part, pool)
            writer.write(part.name, part.start, buffers.rounded(total_n, dtype))

        return work

    in_threads(parts, start, lanes.threads, "merge")


def in_threads(items: Sequence[T], start: Callable[[], Callable[[T], None]], threads: int, what: str) -> None:
    """Do the work that `start` returns, once a thread, on every item; the first error stops all.

    While one thread waits for the disk another computes. Torch's own threads stay off meanwhile: on chunks of this
    size they would spin more than they work.
    """
    waiting = iter(track(items, what, total=len(items)))
    taking, stopped = threading.Lock(), threading.Event()

    def run() -> None:
        torch.set_num_threads(1)
        try:
            work = start()
            while not stopped.is_set():
                with taking:
                    item = next(waiting, None)
                if item is None:
                    return
                work(item)
        except BaseException:
            stopped.set()
            raise

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads) as executor:
            try:
                for done in [executor.submit(run) for _ in range(threads)]:
                    done.result()
            except BaseException:
                # Ctrl-C reaches the thread that waits.
                stopped.set()
                raise
    finally:
        torch.set_num_threads(before)


def _check_finite(total_n: Tensor, dtype: str, part: Slice, pool: Pool) -> None:
    if not len(total_n):
        return
    # As rounded: a sum may lie a little over the largest number and still become it.
    if torch.stack(torch.aminmax(total_n)).to(TORCH_TYPES[dtype]).isfinite().all():
        return
    for folder in pool.bases.values():
        buffers = Buffers(part.stop - part.start)
        if not buffers.read(folder, part).isfinite().all():
            raise BadInput(f"tensor {part.name} holds NaN or Inf in {folder.folder}; mend or leave out that model")
    for adapter in pool.adapters:
        if adapter and adapter.changes(part.name) and not adapter.is_finite(part.name):
            raise BadInput(f"tensor {part.name} holds NaN or Inf in adapter {adapter.folder}; leave out that model")
    raise BadInput(f"the merge of tensor {part.name} is too large for {dtype}; lower the scale, or use a wider type")
