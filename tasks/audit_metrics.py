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
from tasks.audit_fetch import Fetched
from tasks.data_objects import locate
from tasks.records import UpdateRecord


def check_metrics(update: Fetched, work: Path) -> Iterator[Link]:
    """A verdict on MLflow's database, and one for each score whose rows are stored."""
    file = update.folder / "update.json"
    try:
        record = UpdateRecord.model_validate_json(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError) as error:
        found = f"it cannot be read: {_first(error)}"
        yield update.link("scores", "metrics", "failed", "the scores in update.json", found)
        return
    yield _database_link(update, record)
    if not record.evaluations:
        yield update.link("scores", "scores by row", "unknown", "every row's score", BEFORE)
    for name in record.evaluations:
        base = name.removeprefix("base/")
        recorded = record.base_scores.get(base) if name != base else record.scores["recall"].get(name)
        yield _rows_link(update, name, base, recorded, work)


def _database_link(update: Fetched, record: UpdateRecord) -> Link:
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
    return update.link("scores", "metrics in MLflow's database", status, what, "; ".join(wrong) or "the same")


def _rows_link(update: Fetched, name: str, learning_task: str, recorded: float | None, work: Path) -> Link:
    file = update.folder / "scores" / f"{name}.json"
    title = f"score of {'the base model on ' if name != learning_task else ''}{learning_task} from its rows"
    expected = f"{recorded}"
    try:
        evaluation = StoredScores.model_validate_json(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError) as error:
        return update.link("scores", title, "failed", expected, f"scores/{name}.json cannot be read: {_first(error)}")
    rows = _test_rows(update, learning_task, work)
    found = rescore(evaluation, rows)
    if found is None and rows is None:
        found_words = "the test rows are not here, and a corpus score needs them"
        return update.link("scores", title, "unknown", expected, found_words, out_of_reach=True)
    close = found is not None and recorded is not None and math.isclose(found, recorded, abs_tol=1e-12)
    source = "predictions and test rows" if rows else "row scores"
    found_words = f"{found} from the {source}, {evaluation.score} in scores/{name}.json"
    held = close and evaluation.score == recorded
    return update.link("scores", title, "ok" if held else "failed", expected, found_words)


def _test_rows(update: Fetched, learning_task: str, work: Path) -> list[Row] | None:
    """The test split at the recorded DVC hash, where it is at hand; `check_data` says what is wrong where it is not."""
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
