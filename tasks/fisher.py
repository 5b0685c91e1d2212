"""After stage 6, for the baseline EWC alone: how much the learning tasks so far need each weight of the new model."""

from __future__ import annotations

from typing import Any

from recall.settings import FisherSettings
from tasks.refs import CheckpointRef, FisherRef, SplitRef
from tasks.stage import Job, stage


@stage(kind="fisher", ref=FisherRef)
def fisher(
    job: Job, model: CheckpointRef, train: SplitRef, earlier: FisherRef | None, settings: FisherSettings
) -> dict[str, Any]:
    """Write the Fisher of `train` at `model` plus `earlier`'s; in float32, as gradients are squared."""
    import torch

    from recall import ewc
    from recall.loaded_models import loaded

    with loaded(model.checkpoint(), torch.float32) as (network, tokenizer):
        before = ewc.read_fisher(earlier.path, network.device) if earlier else {}
        total = ewc.add_fisher(before, network, tokenizer, train.read(), settings, f"fisher {job.label}")
    ewc.write_fisher(total, job.out)
    return {}
