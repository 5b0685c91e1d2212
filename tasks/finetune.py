"""Stage 2, sequential fine-tuning: an expert on the newest learning task."""

from __future__ import annotations

from typing import Any

from recall.settings import FinetuningSettings
from tasks.refs import CheckpointRef, FinetunedRef, SplitRef
from tasks.stage import Job, stage


@stage(kind="experts", ref=FinetunedRef)
def finetune(job: Job, start: CheckpointRef, train: SplitRef, settings: FinetuningSettings) -> dict[str, Any]:
    """Fine-tune `start` on `train` as a LoRA adapter; a killed run goes on from its last checkpoint."""
    from recall import finetuning

    report = finetuning.finetune(
        start.checkpoint(), train.read(), settings, job.out, job.work, f"fine-tune {job.label}"
    )
    (job.out / "training.json").write_text(report.model_dump_json(indent=2, exclude={"seconds"}), encoding="utf-8")
    return {"base": start, "steps": report.steps, "final_loss": report.losses[-1]}
