"""The report: one self-contained HTML page, no script, nothing to fetch, for someone who has never seen RECALL."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from platform import python_version

from recall.cautions import cautions
from recall.charts import BarChart, HeatMap, LineChart, Series, bar_chart, heat_map, line_chart, tens_around
from recall.continual_metrics import forgetting_by_task
from recall.html_pages import page_template
from recall.results import StreamResult
from recall.standings import best_methods, headings, labels, method_names, points, summary_rows
from recall.text_files import write_text
from recall.verdict import verdict

METHOD_COLOURS = {
    "recall": "recall",
    "sequential": "sequential",
    "average": "average",
    "ewc": "c4",
    "replay": "c6",
    "regmean": "c5",
    "recall_moments": "c7",
    "task_arithmetic": "c8",
    "ties": "c9",
    "dare": "c10",
    "lm_cocktail": "c11",
    "slerp": "c12",
    "pruned_average": "c13",
}
MODEL_COLOURS = ["c1", "c2", "c3", "c4", "c5", "c6"]
LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "scikit-learn",
    "datasets",
    "sacrebleu",
    "prefect",
    "mlflow",
    "dvc",
)


def write_report(result: StreamResult, path: Path, test_rows: dict[str, int] | None = None) -> None:
    """Write the report on `result` to `path`, whole or not at all; `test_rows` goes to the verdict.

    Raises:
        BadInput: a score that the report needs is missing.
        Failed: the file cannot be written.
    """
    write_text(path, render(result, test_rows))


def render(result: StreamResult, test_rows: dict[str, int] | None = None) -> str:
    """The report's HTML.

    Raises:
        BadInput: a score that the report needs is missing.
    """
    rows = summary_rows(result)
    names, shown = method_names(result), labels(result)
    recall = result.methods["recall"]
    page = page_template("report.html.j2").render(
        result=result,
        verdict=verdict(result, test_rows),
        cautions=cautions(result),
        test_rows=test_rows or {},
        columns=[*recall.learning_tasks, *recall.unseen],
        seen=len(recall.learning_tasks),
        headings=headings(result),
        rows=list(rows),
        best=best_methods(rows),
        methods=[(name, shown[name], result.methods[name].scores) for name in names],
        by_moments=result.merged_by == "recall_moments",
        begins_alone=not result.updates[0].merge.compares_models,
        hold=result.hold if len(result.updates) > 1 else 0,
        key_figures=_key_figures(result),
        trends=_trends(result),
        forgotten=_forgotten(result),
        heat_maps=_heat_maps(result),
        reach=_reach(result),
        depths=[
            (_depth(result, number), _model_legend(result, number))
            for number, update in enumerate(result.updates)
            if update.merge.compares_models
        ],
        stages=list(dict.fromkeys(stage for update in result.updates for stage in update.seconds)),
        settings=_flat(result.settings),
        libraries=_libraries(),
        colour_of=_colour_of,
        points=points,
    )
    return page + "\n"


def _colour_of(method: str | None) -> str:
    return "base" if method is None else METHOD_COLOURS[method]


def _key_figures(result: StreamResult) -> list[BarChart]:
    """Base and methods side by side: average over seen, forgetting, unseen average; those that are defined."""
    charts = []
    rows = summary_rows(result)
    for title, column in (("Average over seen", -3), ("Forgetting", -2), ("Average over unseen", -1)):
        bars = [
            (row.label, _colour_of(row.method), points(value))
            for row in rows
            if (value := row.cells[column]) is not None
        ]
        if bars and any(row.method and row.cells[column] is not None for row in rows):
            low, high = (min(0.0, *(b[2] for b in bars), 0.0), max(10.0, *(b[2] for b in bars), 0.0))
            charts.append(bar_chart(title, bars, low, high if column == -2 else 100.0))
    return charts


def _trends(result: StreamResult) -> list[LineChart]:
    """For every learning task its score after each update, a line a method, all on one scale."""
    recall, shown = result.methods["recall"], labels(result)
    steps = ["base", *(f"after {name}" for name in recall.learning_tasks)]
    short = ["base", *(str(number) for number in range(1, len(steps)))]
    known = [score for matrix in result.methods.values() for row in matrix.scores for score in row if score is not None]
    low, high = tens_around([points(score) for score in known])
    charts = []
    for column, task in enumerate([*recall.learning_tasks, *recall.unseen]):
        series: list[Series] = []
        for name in method_names(result):
            scores = [row[column] for row in result.methods[name].scores]
            values = [None if score is None else points(score) for score in scores]
            series.append((shown[name], _colour_of(name), values))
        mark = column + 1 if column < len(recall.learning_tasks) else None
        charts.append(line_chart(task, steps, series, low, high, "points", mark, short))
    return charts


def _forgotten(result: StreamResult) -> list[BarChart]:
    """For every learning task but the last what each method forgot of it, all on one scale."""
    names, shown = method_names(result), labels(result)
    lost = {name: forgetting_by_task(result.methods[name]) for name in names}
    values = [points(value) for of_task in lost.values() for value in of_task.values()]
    low, high = min([0.0, *values]), max([10.0, *values])
    tasks = result.methods["recall"].learning_tasks[:-1]
    return [
        bar_chart(task, [(shown[n], _colour_of(n), points(lost[n][task])) for n in names], low, high) for task in tasks
    ]


def _reach(result: StreamResult) -> float:
    """The largest distance of any weight from its equal share: the end of the heat maps' colour scale."""
    merges = [update.merge for update in result.updates]
    return max((abs(w - 1 / len(row)) for merge in merges for row in merge.weights for w in row), default=0.0)


def _heat_maps(result: StreamResult) -> list[HeatMap]:
    reach = _reach(result)
    return [
        heat_map(_update_title(result, number), update.merge.layers, update.merge.models, update.merge.weights, reach)
        for number, update in enumerate(result.updates)
    ]


def _depth(result: StreamResult, number: int) -> LineChart:
    """Similarity to the newest model at every layer, a line for each of the other models."""
    merge = result.updates[number].merge
    series: list[Series] = [
        (model, MODEL_COLOURS[column % len(MODEL_COLOURS)], [row[column] for row in merge.similarities])
        for column, model in enumerate(merge.models[:-1])
    ]
    short = [str(layer) for layer in range(len(merge.layers))]
    low = -1.0 if any(value is not None and value < 0 for _, _, values in series for value in values) else 0.0
    return line_chart(_update_title(result, number), merge.layers, series, low, 1.0, short=short)


def _model_legend(result: StreamResult, number: int) -> list[tuple[str, str]]:
    older = result.updates[number].merge.models[:-1]
    return [(model, MODEL_COLOURS[column % len(MODEL_COLOURS)]) for column, model in enumerate(older)]


def _update_title(result: StreamResult, number: int) -> str:
    return f"Update {number + 1}: {result.updates[number].learning_task}"


def _flat(settings: dict[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, value), in their order."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            rows.append((prefix + key, ", ".join(str(item) for item in value)))
        else:
            rows.append((prefix + key, "none" if value is None else str(value)))
    return rows


def _libraries() -> list[tuple[str, str]]:
    found = [("python", python_version())]
    for name in LIBRARIES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found
