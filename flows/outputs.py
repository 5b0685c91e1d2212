"""What people and machines get at the end of a run: report, metric files, Prefect artifacts, MLflow's parent run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.stream_state import Stream
from recall.cautions import cautions
from recall.continual_metrics import all_metrics
from recall.learning_tasks import count_rows
from recall.markdown import escaped
from recall.report import render
from recall.results import StreamResult
from recall.standings import headings, points, summary_rows
from recall.summary import to_json, write_metric_files
from recall.text_files import write_text
from tasks import registry

REPORTS = Path("reports")


def publish_outputs(stream: Stream, result: StreamResult, parent_run: str | None) -> dict[str, Any]:
    """Write `reports/`, Prefect's artifacts, and for new updates MLflow's parent run too; returns the JSON."""
    report = REPORTS / "report.html"
    test_rows = {name: count_rows(stream.settings.task_folder(name) / "test.jsonl") for name in result.metrics}
    # Logged as they are made: another stream of this folder may write its own over the files meanwhile.
    texts = {"report.html": render(result, test_rows), "result.json": result.model_dump_json(indent=1)}
    for name, text in texts.items():
        write_text(REPORTS / name, text)
    write_metric_files(result, REPORTS)
    shown = to_json(result, report, test_rows)
    _prefect_artifacts(result, [outcome(stream, result), str(shown["verdict"]), *cautions(result)])
    if parent_run is not None:
        registry.finish_stream_run(parent_run, _final_metrics(result), texts)
    return {
        "summary": shown,
        "result": result.model_dump(mode="json"),
        "draft_because": list(stream.inputs.draft_reasons),
    }


def outcome(stream: Stream, result: StreamResult) -> str:
    """One sentence: which updates were made, or that nothing was new, and why it is a draft where it is one."""
    name = f"models:/{result.stream}/{result.updates[-1].version}"
    made = [update.learning_task for update in result.updates if not update.reused]
    said = (
        f"{len(made)} of {len(result.updates)} updates made ({', '.join(made)}), registered as {name}"
        if made
        else f"nothing new: {name} holds every learning task of the stream at its present data and settings"
    )
    if result.draft and stream.inputs.draft_reasons:
        said += f"; a draft run, and no version that it made can be promoted: {'; '.join(stream.inputs.draft_reasons)}"
    return said


def _prefect_artifacts(result: StreamResult, sentences: list[str]) -> None:
    names = ["method", *(name for name, _ in headings(result))]
    rows = [
        [row.label, *("" if cell is None else f"{points(cell):.1f}" for cell in row.cells)]
        for row in summary_rows(result)
    ]
    version = result.updates[-1].version
    lines = [
        f"# {escaped(result.stream)}, version {version}",
        *(line for sentence in sentences for line in ("", escaped(sentence))),
        "",
        f"| {' | '.join(map(escaped, names))} |",
        "|---" * len(names) + "|",
    ]
    lines += [f"| {' | '.join(map(escaped, row))} |" for row in rows]
    create_markdown_artifact("\n".join(lines), key="continual-update", description="What RECALL kept and lost")
    create_table_artifact([dict(zip(names, row, strict=True)) for row in rows], key="continual-update-scores")


def _final_metrics(result: StreamResult) -> dict[str, float]:
    return {
        f"{method}/{name}": value
        for method, matrix in result.methods.items()
        for name, value in all_metrics(matrix).items()
        if value is not None
    }
