"""What a version reached, row by row, as its update's MLflow run has it: enough to judge it without the store."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from mlflow.entities.model_registry import ModelVersion

from recall.errors import Failed
from recall.gates import RowScores
from tasks import registry
from tasks.records import UpdateRecord
from tasks.run_files import read_record, read_run_lineage, read_text


class Judged(NamedTuple):
    """The four sets of scores that `recall.gates.judge` compares, and who the reference is."""

    seen: dict[str, RowScores]
    best: dict[str, RowScores]
    unseen: dict[str, RowScores]
    reference: dict[str, RowScores]
    reference_name: str


def scores_to_judge(stream: str, number: str, champion: str | None) -> Judged:
    """Read what a version and those that it is compared with reached.

    Without a champion the unseen learning tasks are compared with the base model. Of a champion those count that it was
    scored on by the same metric and settings over the same version of the data set.

    Raises:
        Failed: a run lacks the scores; versions made before scores were logged row by row do, and any that
            `recall run` has not registered.
    """
    version = registry.version(stream, number)
    run = registry.run_of(version)
    record = _record(stream, run)
    earlier = record.earlier
    earlier_records = [_record(stream, other) for other in earlier]
    seen = [*(other.result.learning_task for other in earlier_records), record.result.learning_task]
    unseen = [name for name in record.scores["recall"] if name not in seen]
    best = {}
    for name in seen[:-1]:
        scored = [place for place, other in enumerate(earlier_records) if name in other.scores["recall"]]
        top = max(scored, key=lambda place: earlier_records[place].scores["recall"][name])
        best[name] = _scores(stream, earlier[top], name)
    if champion is None:
        first_run, first = (earlier[0], earlier_records[0]) if earlier else (run, record)
        reference_name = "the base model"
        names = {name: f"base/{name}" for name in unseen if f"base/{name}" in first.evaluations}
        reference = {name: _scores(stream, first_run, file) for name, file in names.items()}
    else:
        reference_name = f"the champion, version {champion}"
        reference = _champion_scores(stream, version, registry.version(stream, champion), unseen)
    return Judged(
        {name: _scores(stream, run, name) for name in seen},
        best,
        {name: _scores(stream, run, name) for name in unseen},
        reference,
        reference_name,
    )


def _champion_scores(
    stream: str, version: ModelVersion, champion: ModelVersion, unseen: list[str]
) -> dict[str, RowScores]:
    own_run, run = registry.run_of(version), registry.run_of(champion)
    own, theirs = _record(stream, own_run), _record(stream, run)
    read_by = [read_run_lineage(stream, one).settings for one in (own_run, run)]
    comparable = [
        name
        for name in unseen
        if name in theirs.evaluations
        and theirs.evaluations[name].metric == own.evaluations[name].metric
        and champion.tags.get(f"recall.data.{name}") == version.tags.get(f"recall.data.{name}")
        and _scored_by(read_by[0], name) == _scored_by(read_by[1], name)
    ]
    return {name: _scores(stream, run, name) for name in comparable}


def _scored_by(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings that a score depends on, beside the metric: with others the same model scores otherwise."""
    spec = settings.get("learning_tasks", {}).get(name, {})
    evaluation = {key: value for key, value in settings.get("evaluation", {}).items() if key != "batch_size"}
    return {**evaluation, "kind": spec.get("kind"), "labels": spec.get("labels")}


def _record(stream: str, run: str) -> UpdateRecord:
    record = read_record(stream, run)
    if not record.evaluations:
        raise Failed(
            f"MLflow's run {run} of {stream} was made before scores were logged row by row, so its version cannot be "
            "judged; make it again with `recall run --recompute`"
        )
    return record


def _scores(stream: str, run: str, name: str) -> RowScores:
    text = read_text(stream, run, f"scores/{name}.json")
    try:
        values = json.loads(text)
        return RowScores(score=values["score"], rows=values["row_scores"])
    except (ValueError, KeyError, TypeError) as error:
        raise Failed(f"scores/{name}.json of MLflow's run {run} of {stream} is no evaluation; bring it back") from error
