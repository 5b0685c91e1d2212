"""A stream's result in a glance: one table, its numbers for machines and the metric files that DVC shows.

Scores are shown in points, 100 times the score in [0, 1] that the results and the files hold.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from recall.cautions import cautions
from recall.continual_metrics import all_metrics, seen_average
from recall.results import ScoreMatrix, StreamResult
from recall.standings import best_methods, headings, method_names, points, summary_rows
from recall.text_files import write_text
from recall.verdict import verdict


def table(result: StreamResult) -> Table:
    """What each method reached at the end of the stream; the best method of each column is bold.

    Raises:
        BadInput: a score that the table needs is missing.
    """
    rows = summary_rows(result)
    best = best_methods(rows)
    shown = Table(
        title=escape(title(result)),
        caption="points: 100 x the score, higher is better; forgetting: points lost since the best, lower is better",
        caption_justify="left",
    )
    shown.add_column("")
    for name, metric in headings(result):
        shown.add_column(escape(f"{name}\n{metric}".strip()), justify="right")
    for row in rows:
        cells = [
            "" if value is None else f"[bold]{points(value):.1f}[/]" if row.method in top else f"{points(value):.1f}"
            for value, top in zip(row.cells, best, strict=True)
        ]
        shown.add_row(escape(row.label), *cells, end_section=row.method is None and row.label != rows[0].label)
    return shown


def title(result: StreamResult) -> str:
    """The stream, how many learning tasks it took in, and the version registered for it."""
    version = result.updates[-1].version if result.updates else None
    count = len(result.methods["recall"].learning_tasks)
    words = [f"stream {result.stream}", f"{count} learning task{'s' if count > 1 else ''}"]
    words += [f"version {version}"] if version else []
    return ", ".join(words) + (" (draft)" if result.draft else "")


def to_json(
    result: StreamResult, report: Path | None = None, test_rows: dict[str, int] | None = None
) -> dict[str, object]:
    """The table and the verdict for machines: plain JSON types, scores in [0, 1], null where nothing was evaluated.

    Raises:
        BadInput: a score that the table needs is missing.
    """
    matrix = result.methods[method_names(result)[-1]]
    columns = [*matrix.learning_tasks, *matrix.unseen]
    return {
        "stream": result.stream,
        "version": result.updates[-1].version if result.updates else None,
        "draft": result.draft,
        "verdict": verdict(result, test_rows),
        "warnings": cautions(result),
        "report": str(report) if report else None,
        "learning_tasks": matrix.learning_tasks,
        "unseen": matrix.unseen,
        "metrics": result.metrics,
        "base": _final(matrix, 0, columns),
        "experts": {update.learning_task: update.expert_score for update in result.updates},
        "methods": {
            name: all_metrics(result.methods[name]) | {"scores": _final(result.methods[name], -1, columns)}
            for name in method_names(result)
        },
        "updates": [update.model_dump(mode="json", exclude={"merge"}) for update in result.updates],
    }


def write_metric_files(result: StreamResult, folder: Path) -> None:
    """Write what `dvc metrics show` and `dvc plots show` read: metrics.json, plots/accuracy.csv and plots/weights.csv.

    accuracy.csv has a line for every update and method: the average over the learning tasks seen so far.
    weights.csv has a line for every update, layer and model: its weight and its similarity to the newest model, blank
    where nothing was compared.

    Raises:
        BadInput: a score that they need is missing.
        Failed: a file cannot be written.
    """
    names = method_names(result)
    matrix = result.methods["recall"]
    columns = [*matrix.learning_tasks, *matrix.unseen]
    numbers: dict[str, object] = {
        name: _known(all_metrics(result.methods[name])) | {"scores": _known(_final(result.methods[name], -1, columns))}
        for name in names
    }
    numbers["base"] = {"scores": _known(_final(matrix, 0, columns))}
    numbers["experts"] = {update.learning_task: update.expert_score for update in result.updates}
    accuracy: list[list[object]] = [["update", "learning_task", "method", "average_accuracy"]]
    for update, task in enumerate(matrix.learning_tasks, start=1):
        accuracy += [[update, task, name, seen_average(result.methods[name], update)] for name in names]
    weights: list[list[object]] = [["update", "learning_task", "layer", "name", "model", "weight", "similarity"]]
    for number, step in enumerate(result.updates, start=1):
        for layer, name in enumerate(step.merge.layers):
            shares = step.merge.weights[layer]
            alike: Sequence[object] = (
                step.merge.similarities[layer] if step.merge.similarities else [None] * len(shares)
            )
            for model, share, similarity in zip(step.merge.models, shares, alike, strict=True):
                weights.append([number, step.learning_task, layer, name, model, share, similarity])
    write_text(folder / "metrics.json", json.dumps(numbers, indent=2) + "\n")
    write_text(folder / "plots" / "accuracy.csv", _csv(accuracy))
    write_text(folder / "plots" / "weights.csv", _csv(weights))


def _final(matrix: ScoreMatrix, row: int, columns: list[str]) -> dict[str, float | None]:
    return dict(zip(columns, matrix.scores[row], strict=True))


def _known(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def _csv(rows: list[list[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
