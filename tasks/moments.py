"""After stage 3, for the baseline RegMean alone: the second moments that an expert leaves behind."""

from __future__ import annotations

import json
from typing import Any

from recall.learning_tasks import json_lines
from recall.settings import RepresentationSettings
from tasks.refs import CheckpointRef, MomentsRef, SamplesRef
from tasks.stage import Job, stage


@stage(kind="moments", ref=MomentsRef)
def moments(job: Job, expert: CheckpointRef, samples: SamplesRef, settings: RepresentationSettings) -> dict[str, Any]:
    """Write `moments.safetensors`, from the expert's own typical samples."""
    import torch

    from recall.loaded_models import loaded
    from recall.moments import FILE, second_moments

    prompts = [json.loads(line)["prompt"] for line in json_lines(samples.path / "samples.jsonl")]
    with loaded(expert.checkpoint(), torch.float32) as (model, tokenizer):
        found = second_moments(
            model,
            tokenizer,
            prompts,
            batch_size=settings.batch_size,
            max_tokens=settings.max_tokens,
            what=f"moments {job.label}",
        )
    found.save(job.out / FILE)
    return {}
