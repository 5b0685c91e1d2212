"""Stage 6, merging: the pool becomes one model, layer by layer."""

from __future__ import annotations

from typing import Any

from recall.results import MergeWeights
from tasks.refs import CheckpointRef, WeightsRef
from tasks.stage import Job, stage


@stage(kind="merged", ref=CheckpointRef)
def merge(job: Job, pool: list[CheckpointRef], weights: WeightsRef) -> dict[str, Any]:
    """Write the merged model as a Hugging Face folder with `recall.json`, which says how it was made."""
    import numpy as np

    from recall import merging

    record = MergeWeights.model_validate_json((weights.path / "weights.json").read_text(encoding="utf-8"))
    merging.merge([member.checkpoint() for member in pool], np.array(record.weights), job.out)
    (job.out / "recall.json").write_text(record.model_dump_json(indent=1), encoding="utf-8")
    return {}
