"""Stage 7, evaluation: one model's score on a learning task's rows: the test split, or the validation split."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from recall.results import LabelBias
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


def label_biases(scores: Mapping[str, ScoreRef]) -> dict[str, LabelBias]:
    """By name: what `evaluation.json` says of the labels given, where answers are the learning task's labels."""
    texts = {name: (ref.path / "evaluation.json").read_text(encoding="utf-8") for name, ref in scores.items()}
    found = {name: json.loads(text)["label_bias"] for name, text in texts.items()}
    return {name: LabelBias.model_validate(bias) for name, bias in found.items() if bias}
