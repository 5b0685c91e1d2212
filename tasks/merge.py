"""Stage 6, merging: the pool becomes one model, layer by layer."""

from __future__ import annotations

from typing import Any, Literal

from recall.merge_settings import MergingSettings
from recall.results import MergeWeights
from tasks.refs import CheckpointRef, MomentsRef, WeightsRef
from tasks.stage import Job, stage


@stage(kind="merged", ref=CheckpointRef)
def merge(job: Job, pool: list[CheckpointRef], weights: WeightsRef) -> dict[str, Any]:
    """Write the merged model as a Hugging Face folder with `recall.json`, which says how it was made."""
    import numpy as np

    from recall.merging import merge as merge_models
    from recall.structure import checkpoint_layers

    record = MergeWeights.model_validate_json((weights.path / "weights.json").read_text(encoding="utf-8"))
    members = [member.checkpoint() for member in pool]
    layers = checkpoint_layers(members[0], modules=record.by_module)
    merge_models(members, np.array(record.weights), layers.of, job.out)
    (job.out / "recall.json").write_text(record.model_dump_json(indent=1), encoding="utf-8")
    return {}


@stage(kind="merged", ref=CheckpointRef)
def combine(
    job: Job,
    pool: list[CheckpointRef],
    method: Literal["slerp", "ties", "dare", "pruned_average", "regmean", "recall_moments"],
    options: dict[str, Any],
    moments: list[list[MomentsRef]] | None = None,
    weights: WeightsRef | None = None,
) -> dict[str, Any]:
    """Merge by a method that is no weighted sum; `options` are the settings that it reads, and no others."""
    import numpy as np

    from recall.merge_settings import MOMENTS_FILE
    from recall.methods import merge_with
    from recall.structure import checkpoint_layers

    members = [member.checkpoint() for member in pool]
    kept = [[ref.path / MOMENTS_FILE for ref in group] for group in moments or []]
    settings = MergingSettings(**options)
    if weights is None:
        merge_with(method, members, job.out, settings, moments=kept)
        return {}
    record = MergeWeights.model_validate_json((weights.path / "weights.json").read_text(encoding="utf-8"))
    layers = checkpoint_layers(members[0], modules=record.by_module)
    rows = np.array(record.weights)
    merge_with(method, members, job.out, settings, moments=kept, weights_RK=rows, row_of=layers.of)
    (job.out / "recall.json").write_text(record.model_dump_json(indent=1), encoding="utf-8")
    return {}
