"""The metrics four times over: the lineage's, `update.json`'s, MLflow's database's, and those that the rows give."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from recall.audit_verdicts import BEFORE, Link, Status
from recall.errors import BadInput, Failed
from recall.learning_tasks import Row, json_lines
from recall.rescoring import StoredScores, rescore
from tasks import audit_source
from tasks.audit_source import Registered
from tasks.data_objects import locate
from tasks.records import UpdateRecord


def check_metrics(update: Registered, work: Path) -> Iterator[Link]:
    """A verdict on MLflow's database, and one for each score whose rows are stored."""
    file = update.folder / "update.json"
    try:
        record = UpdateRecord.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        yield _link(update, "metrics", "failed", "the scores in update.json", f"it cannot be read: {_first(error)}")
        return
    yield _database_link(update, record)
    if not record.evaluations:
        yield _link(update, "scores by row", "unknown", "every row's score", BEFORE)
    for name in record.evaluations:
        base = name.removeprefix("base/")
        recorded = record.base_scores.get(base) if name != base else record.scores["recall"].get(name)
        yield _rows_link(update, name, base, recorded, work)


def _database_link(update: Registered, record: UpdateRecord) -> Link:
    found, wanted = audit_source.metrics(update.run_id), record.metrics
    wrong = [
        f"{name} {found.get(name, 'missing')} (update.json: {value})"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    in_lineage = update.lineage.metrics
    if in_lineage is not None and in_lineage != wanted:
        wrong += [
            f"{name} {wanted.get(name, 'missing')} in update.json (lineage: {value})"
            for name, value in in_lineage.items()
            if wanted.get(name) != value
        ]
    status: Status = "failed" if wrong else "ok"
    what = f"{len(wanted)} scores as in update.json"
    return _link(update, "metrics in MLflow's database", status, what, "; ".join(wrong) or "the same")


def _rows_link(update: Registered, name: str, learning_task: str, recorded: float | None, work: Path) -> Link:
    file = update.folder / "scores" / f"{name}.json"
    title = f"score of {'the base model on ' if name != learning_task else ''}{learning_task} from its rows"
    expected = f"{recorded}"
    try:
        evaluation = StoredScores.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        return _link(update, title, "failed", expected, f"scores/{name}.json cannot be read: {_first(error)}")
    rows = _test_rows(update, learning_task, work)
    found = rescore(evaluation, rows)
    if found is None and rows is None:
        found_words = "the test rows are not here, and a corpus score needs them"
        return _link(update, title, "unknown", expected, found_words)
    close = found is not None and recorded is not None and math.isclose(found, recorded, abs_tol=1e-12)
    source = "predictions and test rows" if rows else "row scores"
    found_words = f"{found} from the {source}, {evaluation.score} in scores/{name}.json"
    held = close and evaluation.score == recorded
    return _link(update, title, "ok" if held else "failed", expected, found_words)


def _test_rows(update: Registered, learning_task: str, work: Path) -> list[Row] | None:
    """The test split at the recorded DVC hash, where it is at hand."""
    entry = next((entry for entry in update.lineage.data_sets if entry.name == learning_task), None)
    if entry is None:
        return None
    try:
        folder = locate(Path(entry.path), entry.dvc_hash, update.lineage.git_commit, work)
        return [Row.model_validate_json(line) for line in json_lines(folder / "test.jsonl")]
    except (BadInput, Failed, OSError, ValidationError):
        return None


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _link(update: Registered, name: str, status: Status, expected: str, found: str) -> Link:
    return Link(update=update.position, node="scores", name=name, status=status, expected=expected, found=found)
