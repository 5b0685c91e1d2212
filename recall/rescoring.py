"""A score worked out again from its rows, for an audit: no model runs."""

from __future__ import annotations

from statistics import fmean

from pydantic import BaseModel, ConfigDict

from recall.learning_tasks import Row
from recall.text_metrics import BY_ROW, bleu, chrf


class StoredScores(BaseModel):
    """What is needed here of a `recall.evaluation.Evaluation`, whose module takes seconds to import."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metric: str
    score: float
    row_scores: list[float]
    predictions: list[str]


def rescore(evaluation: StoredScores, rows: list[Row] | None = None) -> float | None:
    """The score that the row scores give, or, with the test rows, the predictions.

    Without rows a corpus score (chrF, BLEU) cannot be known: None. A number of rows other than that of the predictions
    gives None too.
    """
    if rows is None:
        is_mean = evaluation.metric == "accuracy" or evaluation.metric in BY_ROW
        return fmean(evaluation.row_scores) if is_mean and evaluation.row_scores else None
    if len(rows) != len(evaluation.predictions):
        return None
    if evaluation.metric == "accuracy":
        return fmean(float(text == row.target) for text, row in zip(evaluation.predictions, rows, strict=True))
    references = [row.references or [row.target] for row in rows]
    if evaluation.metric in BY_ROW:
        by_row, _ = BY_ROW[evaluation.metric]
        return fmean(map(by_row, evaluation.predictions, references))
    return (chrf if evaluation.metric == "chrf" else bleu)(evaluation.predictions, references)[0]
