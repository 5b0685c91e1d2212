"""Stage 2, sequential fine-tuning: an expert on the newest learning task."""

from __future__ import annotations

from typing import Any

from recall.settings import FinetuningSettings
from tasks.refs import CheckpointRef, FinetunedRef, FisherRef, MomentsRef, SplitRef
from tasks.stage import Job, stage


@stage(kind="experts", ref=FinetunedRef)
def finetune(
    job: Job,
    start: CheckpointRef,
    train: SplitRef,
    settings: FinetuningSettings,
    fisher: FisherRef | None = None,
    moments: list[MomentsRef] | None = None,
    strength: float = 0.0,
    earlier: list[SplitRef] | None = None,
    share: float = 0.0,
) -> dict[str, Any]:
    """Fine-tune `start` on `train` as a LoRA adapter; a killed run goes on from its last checkpoint.

    Give what only some methods have (EWC: `fisher` and `strength`, training held by `moments`: these and `strength`,
    replay: `earlier` and `share`) only where it is used: an input that is not given is not part of the fingerprint, so
    a method that has nothing to remember yet shares its expert with the others.
    """
    from recall import ewc, finetuning, holding, replay
    from recall.merge_settings import MOMENTS_FILE

    keep: ewc.Consolidation | holding.Hold | None = ewc.Consolidation(fisher.path, strength) if fisher else None
    if moments:
        keep = holding.Hold(tuple(ref.path / MOMENTS_FILE for ref in moments), strength)
    report = finetuning.finetune(
        start.checkpoint(),
        replay.with_earlier_rows(train.read(), [split.read() for split in earlier or []], share, settings.seed),
        settings,
        job.out,
        job.work,
        f"fine-tune {job.label}",
        keep,
    )
    (job.out / "training.json").write_text(report.model_dump_json(indent=2, exclude={"seconds"}), encoding="utf-8")
    return {"base": start, "steps": report.steps, "final_loss": report.losses[-1]}
