"""After stage 3, for the methods that merge by them: the second moments that an expert leaves behind."""

from __future__ import annotations

from typing import Any

from recall.merge_settings import MomentsWeighting
from tasks.refs import CheckpointRef, MomentsRef, SamplesRef
from tasks.stage import Job, stage


@stage(kind="moments", ref=MomentsRef)
def moments(
    job: Job,
    expert: CheckpointRef,
    samples: SamplesRef,
    batch_size: int,
    max_tokens: int,
    rank: int | None = None,
    weighting: MomentsWeighting = "uniform",
) -> dict[str, Any]:
    """Write `moments.safetensors`, from the expert's own typical samples."""
    import torch

    from recall.loaded_models import loaded
    from recall.merge_settings import MOMENTS_FILE
    from recall.moments import second_moments

    prompts = samples.read()
    with loaded(expert.checkpoint(), torch.float32) as (model, tokenizer):
        found = second_moments(
            model,
            tokenizer,
            prompts,
            batch_size=batch_size,
            max_tokens=max_tokens,
            weighting=weighting,
            what=f"moments {job.label}",
        )
    found.save(job.out / MOMENTS_FILE, rank)
    return {}
