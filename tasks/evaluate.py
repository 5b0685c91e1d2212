"""Stage 7, evaluation: one model's score on one learning task's test split."""

from __future__ import annotations

from typing import Any

from recall.settings import EvaluationSettings
from tasks.refs import CheckpointRef, ScoreRef, SplitRef
from tasks.stage import Job, stage


@stage(kind="scores", ref=ScoreRef)
def evaluate(job: Job, model: CheckpointRef, test: SplitRef, settings: EvaluationSettings) -> dict[str, Any]:
    """Write `evaluation.json`: the score, and every row's own score for paired comparisons later."""
    from recall import evaluation
    from recall.loaded_models import loaded
    from recall.loading import training_dtype

    with loaded(model.checkpoint(), training_dtype("auto")) as (network, tokenizer):
        found = evaluation.evaluate(network, tokenizer, test.read(), test.spec, settings, f"evaluate {job.label}")
    (job.out / "evaluation.json").write_text(found.model_dump_json(indent=1), encoding="utf-8")
    return {"score": found.score, "metric": found.metric}
