"""The report of a stream, or of one version, out of MLflow's artifacts alone: no store, no data."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import ValidationError

from flows.stream_state import score_matrices
from recall.errors import BadInput, Failed
from recall.results import StreamResult
from tasks import registry
from tasks.records import UpdateRecord
from tasks.run_files import read_record, read_run_lineage, read_text


class Reported(NamedTuple):
    """What the report shows: the result, the test rows of each learning task, and the methods that are left out."""

    result: StreamResult
    test_rows: dict[str, int]
    left_out: list[str]


def stream_reported(stream: str) -> Reported:
    """The stream as its newest finished run in MLflow left it.

    Raises:
        BadInput: no run of the stream has finished.
        Failed: its result cannot be read.
    """
    run = registry.newest_stream_run(stream)
    if run is None:
        raise BadInput(f"MLflow has no finished run of the stream {stream}; make one with `recall run`")
    try:
        result = StreamResult.model_validate_json(read_text(stream, run, "result.json"))
    except ValidationError as error:
        raise Failed(f"result.json of MLflow's run {run} of {stream} is no result; bring it back") from error
    number = str(result.updates[-1].version)
    there = number in {str(version.version) for version in registry.versions(stream)}
    return Reported(result, _test_rows(stream, registry.run_of(registry.version(stream, number))) if there else {}, [])


def version_reported(stream: str, number: str) -> Reported:
    """The stream as it stood at a version, out of the records of its update and of those before.

    Baselines are scored on the unseen learning tasks after a stream's last update alone; earlier they are left out.

    Raises:
        BadInput: there is no such version.
        Failed: a record cannot be read.
    """
    there = {str(version.version): version for version in registry.versions(stream)}
    if number not in there:
        raise BadInput(f"the registered model {stream} has no version {number}; it has {', '.join(there) or 'none'}")
    run = registry.run_of(there[number])
    own = read_record(stream, run)
    runs = [*own.earlier, run]
    lineages = [read_run_lineage(stream, one) for one in runs]
    settings = lineages[-1].settings
    numbers = [*(after.previous.version if after.previous else None for after in lineages[1:]), number]
    records = [_at(read_record(stream, one), its) for one, its in zip(runs, numbers, strict=True)]
    tasks = [record.result.learning_task for record in records]
    unseen = [name for name in own.scores["recall"] if name not in tasks]
    # An earlier update may have been made without a baseline that this one has.
    in_all = set.intersection(*({*record.scores} & {*record.before} for record in records))
    methods = [name for name, scores in own.scores.items() if name in in_all and scores.keys() >= {*tasks, *unseen}]
    result = StreamResult(
        stream=stream,
        metrics={name: settings["learning_tasks"][name]["metric"] for name in [*tasks, *unseen]},
        methods=score_matrices(records, tasks, unseen, methods),
        updates=[record.result for record in records],
        settings={name: value for name, value in settings.items() if name != "learning_tasks"},
        draft=own.draft,
    )
    return Reported(result, _test_rows(stream, run), [name for name in own.scores if name not in methods])


def _at(record: UpdateRecord, version: str | None) -> UpdateRecord:
    return record.model_copy(update={"result": record.result.model_copy(update={"version": version})})


def _test_rows(stream: str, run: str) -> dict[str, int]:
    return {entry.name: entry.rows.get("test", 0) for entry in read_run_lineage(stream, run).data_sets}
