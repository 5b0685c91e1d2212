"""Every merge method by its name, behind one interface: RECALL, and the baselines that it is compared with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from recall.checkpoints import Checkpoint
from recall.chunks import Held
from recall.merge_settings import BY_MOMENTS, MOMENTS_FILE, WEIGHTED, MergingSettings, MethodName
from recall.merging import Method, merge, merge_by


def merge_with(
    name: MethodName,
    members: Sequence[Checkpoint],
    out: Path,
    settings: MergingSettings,
    *,
    weights_RK: np.ndarray | None = None,
    row_of: Callable[[str], int] | None = None,
    moments: Sequence[Sequence[Path]] = (),
    threads: int | None = None,
    max_memory: int | None = None,
    device: torch.device | None = None,
) -> None:
    """Merge `members` (the first is what task vectors start from, the last the newest) by a method into `out`.

    Args:
        weights_RK: for the methods in `TAKES_WEIGHTS`, with `row_of`; see `recall.merging.merge`.
        moments: for the methods in `BY_MOMENTS`, the files of each member: one for an expert, all of theirs for a
            merged model; by default the one that lies in the member's folder.
        device: for the methods in `WEIGHTED`; the others run on the CPU alone.

    Raises:
        BadInput: as `recall.merging.merge_by`, and where the method cannot take these models.
    """
    if name in WEIGHTED:
        assert weights_RK is not None and row_of is not None
        merge(members, weights_RK, row_of, out, threads=threads, max_memory=max_memory, device=device)
        return
    assert device is None, f"{name} runs on the CPU alone"
    files = moments or [[path] for path in moment_files(members)]
    method = _chunked(name, files, settings, weights_RK, row_of)
    held = held_memory(name, len(members), files[0][0], threads)
    merge_by(members, method, out, threads=threads, max_memory=max_memory, held=held)


def held_memory(name: MethodName, models: int, moments: Path, threads: int | None = None) -> Held:
    """What a method holds while it merges so many models."""
    if name in WEIGHTED:
        return Held()
    if name in BY_MOMENTS:
        from recall.regmean import held_bytes

        return Held(models + 4, held_bytes(models, moments))
    from recall.task_vectors import COUNTS_BYTES

    trims = name in ("ties", "pruned_average")
    counts = COUNTS_BYTES * models * (threads or len(os.sched_getaffinity(0)))
    return Held(4 * models, counts if trims else 0)


def moment_files(members: Sequence[Checkpoint]) -> list[Path]:
    """Where each model keeps its second moments."""
    return [member.folder / MOMENTS_FILE for member in members]


def _chunked(
    name: MethodName,
    moments: Sequence[Sequence[Path]],
    settings: MergingSettings,
    weights_RK: np.ndarray | None,
    row_of: Callable[[str], int] | None,
) -> Method:
    if name in BY_MOMENTS:
        from recall.regmean import regmean

        return regmean(moments, settings.shrink, weights_RK, row_of)
    if name == "slerp":
        from recall.slerp import slerp

        return slerp(settings.fraction)
    from recall.task_vectors import dare, pruned_average, ties

    density, scale = settings.density, settings.scale
    return {
        "ties": ties(density, scale),
        "pruned_average": pruned_average(density, scale),
        "dare": dare(density, scale, settings.seed),
    }[name]
