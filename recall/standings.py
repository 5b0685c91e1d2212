"""Where every method stands at the end of a stream: the lines that the table, the verdict and the report share."""

from __future__ import annotations

from dataclasses import dataclass

from recall.continual_metrics import forgetting, seen_average, unseen_average
from recall.errors import BadInput
from recall.results import ScoreMatrix, StreamResult

LABELS = {
    "sequential": "sequential fine-tuning",
    "average": "plain average",
    "ewc": "EWC",
    "replay": "experience replay",
    "slerp": "SLERP",
    "task_arithmetic": "task arithmetic",
    "ties": "TIES",
    "dare": "DARE",
    "pruned_average": "pruned average",
    "lm_cocktail": "LM-Cocktail",
    "regmean": "RegMean",
    "recall_moments": "RECALL with moments",
    "recall": "RECALL",
}


@dataclass(frozen=True)
class SummaryRow:
    """One line of the table: scores on the learning tasks in stream order, None where there is nothing to say."""

    label: str
    method: str | None
    scores: list[float | None]
    seen: float | None
    forgetting: float | None
    unseen: float | None

    @property
    def cells(self) -> list[float | None]:
        """Every number of the line, from left to right."""
        return [*self.scores, self.seen, self.forgetting, self.unseen]


def labels(result: StreamResult) -> dict[str, str]:
    """What people read for each method of a result; the update's own method goes by what it merges by."""
    names = {name: LABELS.get(name, name) for name in result.methods}
    return names | {"recall": LABELS.get(result.merged_by, result.merged_by)}


def method_names(result: StreamResult) -> list[str]:
    """The methods in the order in which they are shown: the known baselines, any other, RECALL last.

    Raises:
        BadInput: RECALL itself has no scores.
    """
    if "recall" not in result.methods:
        raise BadInput(f"the result of stream {result.stream} has no scores of RECALL; run `recall run` first")
    known = [name for name in LABELS if name in result.methods and name != "recall"]
    return [*known, *(name for name in result.methods if name not in LABELS), "recall"]


def summary_rows(result: StreamResult) -> list[SummaryRow]:
    """The base model, the experts each on its own learning task, then every method.

    Raises:
        BadInput: a score that the table needs is missing.
    """
    names, shown = method_names(result), labels(result)
    recall = result.methods["recall"]
    count = len(recall.learning_tasks)
    base_seen, base_unseen = base_averages(recall)
    own = {update.learning_task: update.expert_score for update in result.updates}
    experts = [own.get(name) for name in recall.learning_tasks]
    rows = [
        SummaryRow("base model", None, recall.scores[0][:count], base_seen, None, base_unseen),
        SummaryRow("experts, each on its own", None, experts, None, None, None),
    ]
    for name in names:
        matrix = result.methods[name]
        seen, unseen = seen_average(matrix, count), unseen_average(matrix)
        rows.append(SummaryRow(shown[name], name, matrix.scores[-1][:count], seen, forgetting(matrix), unseen))
    return rows


def base_averages(matrix: ScoreMatrix) -> tuple[float | None, float | None]:
    """The base model's mean over the learning tasks and over the unseen ones; None where not all were evaluated."""
    count = len(matrix.learning_tasks)
    return _mean_or_blank(matrix.scores[0][:count]), _mean_or_blank(matrix.scores[0][count:])


def headings(result: StreamResult) -> list[tuple[str, str]]:
    """What stands over each of `SummaryRow.cells`, as (name, metric or direction)."""
    tasks = [(name, result.metrics.get(name, "")) for name in result.methods["recall"].learning_tasks]
    return [*tasks, ("average", "over seen"), ("forgetting", "lower is better"), ("unseen", "average")]


def best_methods(rows: list[SummaryRow]) -> list[set[str]]:
    """For each of `SummaryRow.cells`, the methods with the best value as shown; none where all are the same."""
    methods = [row for row in rows if row.method is not None]
    forgetting_column = len(rows[0].scores) + 1
    best: list[set[str]] = []
    for column in range(len(rows[0].cells)):
        shown = {
            row.method: points(value) for row in methods if row.method and (value := row.cells[column]) is not None
        }
        top = (min if column == forgetting_column else max)(shown.values(), default=None)
        best.append({name for name, value in shown.items() if value == top} if len(set(shown.values())) > 1 else set())
    return best


def points(score: float) -> float:
    """A score in points with the one decimal that is shown, and never a negative zero."""
    return round(100 * score, 1) + 0.0


def _mean_or_blank(scores: list[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known and len(known) == len(scores) else None
