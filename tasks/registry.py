"""MLflow as every stage and command meets it: its client, the registered versions, aliases and runs."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from filelock import FileLock
from pydantic import ValidationError

from recall.errors import BadInput, Failed, without_secrets
from recall.lineage import RegisteredUpdate
from tasks.records import UpdateRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

KEY = "recall.update_key"
MODEL_KEY = "recall.model_key"
SHA256 = "recall.weights_sha256"
SCORES = "recall.scores_sha256"
RUN = "recall.run_id"  # the run with the newest scores of a version
STREAM_KEY = "recall.stream_key"
LINEAGE = "recall.lineage_sha256"
DRAFT = "recall.draft"


@functools.cache
def client() -> MlflowClient:
    """The tracking store and registry of `MLFLOW_TRACKING_URI`, by default SQLite in the working directory.

    Raises:
        BadInput: the store cannot be reached.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{Path('mlflow.db').resolve()}")
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    uri = _without_credentials(os.environ["MLFLOW_TRACKING_URI"])
    os.environ["MLFLOW_TRACKING_URI"] = uri
    mlflow.set_tracking_uri(uri)
    try:
        _make_database(uri)
        found = mlflow.MlflowClient()
        found.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = without_secrets((str(error).splitlines() or [type(error).__name__])[0])
        raise BadInput(
            f"MLflow's store {without_secrets(uri)} cannot be used ({reason}); set MLFLOW_TRACKING_URI"
        ) from error
    return found


def _without_credentials(uri: str) -> str:
    """A server's user and password go from its address to MLflow's own variables: addresses get into messages."""
    parts = urlsplit(uri)
    if not parts.scheme.startswith("http") or parts.username is None:
        return uri
    os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(parts.username))
    os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(parts.password or ""))
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _make_database(uri: str) -> None:
    """Make SQLite's file whole or not at all: a process killed in MLflow's first migrations leaves one that no later
    process can open."""
    from mlflow import MlflowClient

    file = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if file.exists():
            return
        making = file.with_name(file.name + ".making")
        for left_over in file.parent.glob(f"{making.name}*"):
            left_over.unlink()
        MlflowClient(f"sqlite:///{making}", f"sqlite:///{making}").search_experiments(max_results=1)
        os.replace(making, file)
    # Whoever still waits for it finds the file made.
    Path(f"{file}.lock").unlink(missing_ok=True)


def find_update(stream: str, key: str) -> UpdateRecord | None:
    """The record of the update that is registered under `key`, or None.

    Raises:
        Failed: it is registered, and its record cannot be read.
    """
    version = version_with(stream, {KEY: key})
    if version is None:
        return None
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        text = mlflow.artifacts.load_text(f"runs:/{run_of(version)}/update.json")
        record = UpdateRecord.model_validate_json(text)
    except (MlflowException, OSError, ValidationError) as error:
        raise Failed(
            f"version {version.version} of {stream} is registered, but update.json of its run {run_of(version)} "
            "cannot be read; bring MLflow's artifacts back to where they were, or make it again with --recompute"
        ) from error
    registered = RegisteredUpdate(
        version=str(version.version), run_id=run_of(version), lineage_sha256=version.tags.get(LINEAGE)
    )
    return record.at(registered, reused=True)


def unfinished_stream_run(stream: str, key: str) -> str | None:
    """The parent run that a process left unfinished, or None."""
    runs = [run for run in runs_with(stream, {STREAM_KEY: key}) if run.info.status in ("RUNNING", "KILLED")]
    return str(runs[0].info.run_id) if runs else None


def start_stream_run(stream: str, key: str) -> str:
    """The id of a new parent run.

    Those that were left open under other keys say KILLED from now on. A run with that key again goes on in its own
    (`unfinished_stream_run`), and one that another process is still in says FINISHED at its end all the same.
    """
    running = runs_with(stream, {}, "RUNNING")
    left = {run.info.run_id for run in running if run.data.tags.get(STREAM_KEY, key) != key}
    for other in running:
        if other.info.run_id in left or other.data.tags.get("mlflow.parentRunId") in left:
            client().set_terminated(other.info.run_id, "KILLED")
    run = client().create_run(experiment(stream), tags={STREAM_KEY: key}, run_name=f"stream {stream}")
    return str(run.info.run_id)


def newest_stream_run(stream: str) -> str | None:
    """The newest parent run that has finished, or None."""
    experiment = client().get_experiment_by_name(stream)
    if experiment is None:
        return None
    wanted = f"tags.`{STREAM_KEY}` LIKE '%' and attributes.status = 'FINISHED'"
    found = client().search_runs([experiment.experiment_id], wanted, order_by=["attributes.end_time DESC"])
    return str(found[0].info.run_id) if found else None


def finish_stream_run(run_id: str, metrics: dict[str, float], texts: dict[str, str]) -> None:
    """Log what the whole stream came to, `texts` by their files' names, and close the parent run."""
    from mlflow.entities import Metric

    client().log_batch(run_id, metrics=[Metric(name, value, now_ms(), 0) for name, value in metrics.items()])
    for name, text in texts.items():
        client().log_text(run_id, text, name)
    client().set_terminated(run_id, "FINISHED")


def versions(stream: str, tags: dict[str, str] | None = None) -> list[ModelVersion]:
    """Every version of a registered model that has these tags, oldest first; none where there is no such model."""
    wanted = [f"name = '{stream}'", *(f"tags.`{name}` = '{value}'" for name, value in (tags or {}).items())]
    found: list[ModelVersion] = []
    page, token = True, None
    while page:
        part = client().search_model_versions(" and ".join(wanted), page_token=token)
        found += part
        token = part.token
        page = bool(token)
    return sorted(found, key=lambda version: int(version.version))


def version(stream: str, number: str) -> ModelVersion:
    """One version.

    Raises:
        Failed: it was deleted, or never made.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client().get_model_version(stream, number)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise Failed(f"version {number} of {stream} is not in the registry; `recall status` shows what is") from error


def run_of(version: ModelVersion) -> str:
    """The run with a version's newest scores.

    Raises:
        Failed: `recall run` did not register it, or was killed as it did.
    """
    if RUN not in version.tags:
        raise Failed(
            f"version {version.version} of {version.name} is none that `recall run` has registered: nothing says which "
            "run it is of; choose another, see `recall status`"
        )
    return str(version.tags[RUN])


def aliases(stream: str) -> dict[str, str]:
    """Alias to version of a registered model; none where there is no such model."""
    found = client().search_registered_models(f"name = '{stream}'")
    return {name: str(number) for name, number in found[0].aliases.items()} if found else {}


def experiment(stream: str) -> str:
    """The id of the experiment of a stream, which is made where it is missing."""
    from mlflow.exceptions import MlflowException

    # A server keeps artifacts where it was told to; the embedded store keeps them beside its database.
    local = os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite")
    place = Path("mlartifacts").resolve().as_uri() if local else None
    found = client().get_experiment_by_name(stream)
    if found is None:
        try:
            return str(client().create_experiment(stream, place))
        except MlflowException:
            # Another process was faster.
            found = client().get_experiment_by_name(stream)
            if found is None:
                raise
    return str(found.experiment_id)


def is_complete(version: ModelVersion) -> bool:
    """Was the version registered to the end?"""
    return KEY in version.tags and RUN in version.tags


def version_with(stream: str, tags: dict[str, str]) -> ModelVersion | None:
    """The newest version that has these tags."""
    found = versions(stream, tags)
    return found[-1] if found else None


def runs_with(stream: str, tags: dict[str, str], status: str | None = None) -> list[Run]:
    """Every run in the experiment of a stream that has these tags."""
    found = client().get_experiment_by_name(stream)
    if found is None:
        return []
    wanted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
    wanted += [f"attributes.status = '{status}'"] if status else []
    return list(client().search_runs([found.experiment_id], " and ".join(wanted)))


def now_ms() -> int:
    """The time as MLflow has it."""
    return int(time.time() * 1000)
