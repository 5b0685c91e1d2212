"""The only module that talks to MLflow: runs, metrics, registered versions, aliases. Everything here is idempotent."""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from filelock import FileLock
from pydantic import ValidationError

from recall.errors import BadInput, Failed, without_secrets
from recall.lineage import Lineage, sha256
from recall.progress import console
from tasks.records import UpdateRecord
from tasks.refs import ArtifactRef, file_sha256, weights_sha256
from tasks.remote import unfit
from tasks.store import Store, seal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

KEY = "recall.update_key"
MODEL_KEY = "recall.model_key"
SHA256 = "recall.weights_sha256"
RUN = "recall.run_id"  # the run with the newest scores of a version
STREAM_KEY = "recall.stream_key"
LINEAGE = "recall.lineage_sha256"
DRAFT = "recall.draft"
BATCH = 1000  # metrics that MLflow takes at a time


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
    version = _version_with(stream, {KEY: key})
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
    result = record.result.model_copy(update={"version": str(version.version), "reused": True})
    return record.model_copy(update={"result": result})


def unfinished_stream_run(stream: str, key: str) -> str | None:
    """The parent run that a killed process left open, or None."""
    runs = runs_with(stream, {STREAM_KEY: key}, "RUNNING")
    return str(runs[0].info.run_id) if runs else None


def start_stream_run(stream: str, key: str) -> str:
    """The id of a new parent run."""
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


def register_update(
    store: Store, stream: str, parent_run: str, record: UpdateRecord, lineage: Lineage, tags: dict[str, str]
) -> str:
    """Log one update as a nested run and register its merged model; returns the version.

    A version with the same weights and the same model key is found, not made again; it then points to the new run,
    unless that is a draft and the version is none: what may be promoted never becomes a draft.
    The update's key is set last, so what a killed process left is completed by the next.
    """
    merged = record.models["recall"].current
    manifest = store.manifest(merged.kind, merged.fingerprint) or {"files": {}}
    files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    identity = {MODEL_KEY: record.model_key, SHA256: weights_sha256(files)}
    with store.lock(f"register-{stream}"):
        run_id = _nested_run(stream, parent_run, record)
        _log_files(run_id, record, lineage)
        _log_metrics(run_id, record)
        _log_data_sets(run_id, lineage)
        found = _version_with(stream, identity)
        if found and record.draft and _is_complete(found) and found.tags.get(DRAFT) == "false":
            client().set_terminated(run_id, "FINISHED")
            console.print(
                f"version {found.version} of {stream} has this model and stays as it is: this run is a draft, and what "
                f"it found is in MLflow's run {run_id} alone",
                highlight=False,
                soft_wrap=True,
            )
            return str(found.version)
        version = str(found.version) if found else _register_model(stream, run_id, merged, identity)
        for name, value in (tags | {RUN: run_id, LINEAGE: sha256(lineage.to_json())}).items():
            client().set_model_version_tag(stream, version, name, value)
        newest = max(int(other.version) for other in versions(stream) if RUN in other.tags)
        client().set_registered_model_alias(stream, "challenger", str(newest))
        client().set_terminated(run_id, "FINISHED")
        client().set_model_version_tag(stream, version, KEY, record.key)
    return version


def finish_stream_run(run_id: str, metrics: dict[str, float], files: list[Path]) -> None:
    """Log what the whole stream came to, and close the parent run."""
    from mlflow.entities import Metric

    client().log_batch(run_id, metrics=[Metric(name, value, now_ms(), 0) for name, value in metrics.items()])
    for file in files:
        client().log_artifact(run_id, str(file))
    client().set_terminated(run_id, "FINISHED")


def restore(store: Store, stream: str, record: UpdateRecord, ref: ArtifactRef) -> None:
    """Bring an update's merged model or expert back from MLflow into a store that does not have it.

    Raises:
        Failed: what MLflow holds is not what was registered.
    """
    import mlflow

    version = client().get_model_version(stream, str(record.result.version))
    is_expert = ref.kind == "experts"
    origin = f"runs:/{run_of(version)}/expert" if is_expert else version.source
    work = store.work(f"restore-{ref.fingerprint}")
    with store.lock(ref.fingerprint):
        try:
            shutil.rmtree(work, ignore_errors=True)
            if unfit(store, ref.kind, ref.fingerprint, lambda found: found["sha256"] == ref.sha256) is None:
                return
            local = Path(mlflow.artifacts.download_artifacts(origin, dst_path=str(store.make_work(work.name))))
            with store.publishing(ref.kind, ref.fingerprint) as out:
                for file in (local if is_expert else local / "model").iterdir():
                    if file.is_symlink() or not file.is_file():
                        raise Failed(f"version {version.version} of {stream}: {file.name} in {origin} is no plain file")
                    if file.name != "manifest.json":
                        os.replace(file, out / file.name)
                fields = ref.model_dump(mode="json", exclude={"kind", "fingerprint", "path", "sha256"})
                manifest = {"kind": ref.kind, "fingerprint": ref.fingerprint, "restored_from": origin, "fields": fields}
                weights = weights_sha256({file.name: file_sha256(file) for file in out.glob("*.safetensors")})
                if seal(out, manifest) != ref.sha256 or (not is_expert and weights != version.tags[SHA256]):
                    raise Failed(
                        f"version {version.version} of {stream}: MLflow holds other files than were registered"
                    )
        finally:
            shutil.rmtree(work, ignore_errors=True)


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


def run_ids(stream: str, numbers: list[str | None]) -> list[str]:
    """The runs with the newest scores of versions."""
    return [run_of(version(stream, str(number))) for number in numbers]


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


def lineage_place(stream: str, number: str) -> tuple[str, str | None]:
    """A version's run, and the SHA-256 of the `lineage.json` in it; None where it was registered without."""
    found = version(stream, number)
    return run_of(found), found.tags.get(LINEAGE)


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


def _is_complete(version: ModelVersion) -> bool:
    return KEY in version.tags and RUN in version.tags


def _version_with(stream: str, tags: dict[str, str]) -> ModelVersion | None:
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


def _nested_run(stream: str, parent_run: str, record: UpdateRecord) -> str:
    """The run of this update inside this stream run, whatever state a killed process left it in."""
    tags = {"mlflow.parentRunId": parent_run, KEY: record.key}
    started = runs_with(stream, tags)
    if started:
        return str(started[0].info.run_id)
    name = f"update {record.position}: {record.result.learning_task}"
    return str(client().create_run(experiment(stream), tags=tags, run_name=name).info.run_id)


def _log_files(run_id: str, record: UpdateRecord, lineage: Lineage) -> None:
    models = record.models["recall"]
    client().log_text(run_id, record.to_json(), "update.json")
    client().log_text(run_id, lineage.to_json(), "lineage.json")
    if models.weights:
        client().log_artifact(run_id, str(models.weights.path / "weights.json"))
    client().log_artifacts(run_id, str(models.expert.path), "expert")
    if models.samples:
        client().log_artifact(run_id, str(models.samples.path / "samples.jsonl"))
    for number, representations in enumerate(models.representations):
        client().log_artifact(run_id, str(representations.path / "representations.npy"), f"representations/{number}")
    for name, found in record.evaluations.items():
        text = (found.path / "evaluation.json").read_text(encoding="utf-8")
        client().log_text(run_id, text, f"scores/{name}.json")


def _log_metrics(run_id: str, record: UpdateRecord) -> None:
    """Scores and times once; the loss by step, and weight and similarity by layer, which MLflow draws as curves.

    The parameters come last and say that all is there. What a killed process left is written over: MLflow takes a
    metric of the same name, step and time as the same.
    """
    from mlflow.entities import Metric, Param

    run = client().get_run(run_id)
    if run.data.params:
        return
    now, result = run.info.start_time, record.result
    values = record.metrics | {f"seconds/{stage}": seconds for stage, seconds in result.seconds.items()}
    training = json.loads((record.models["recall"].expert.path / "training.json").read_text(encoding="utf-8"))
    metrics = [Metric(name, value, now, record.position) for name, value in values.items()]
    metrics += [Metric("training/loss", loss, now, step) for step, loss in enumerate(training["losses"])]
    for curve, matrix in (("weight", result.merge.weights), ("similarity", result.merge.similarities)):
        for layer, row in enumerate(matrix):
            pairs = zip(result.merge.models, row, strict=True)
            metrics += [Metric(f"{curve}/{model}", value, now, layer) for model, value in pairs]
    params = [Param("learning_task", result.learning_task), Param("position", str(record.position))]
    for start in range(0, len(metrics), BATCH):
        client().log_batch(run_id, metrics=metrics[start : start + BATCH])
    client().log_batch(run_id, params=params)


def _log_data_sets(run_id: str, lineage: Lineage) -> None:
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    from tasks.dvc_source import DvcSource

    inputs = []
    for entry in lineage.data_sets:
        source = DvcSource(entry.path, entry.dvc_hash, lineage.git_commit)
        data_set = MetaDataset(source, name=entry.name, digest=entry.dvc_hash[:36])  # type: ignore[abstract]
        context = "training" if entry.trained_on else "evaluation"
        inputs.append(DatasetInput(data_set._to_mlflow_entity(), [InputTag("mlflow.data.context", context)]))
    client().log_inputs(run_id, inputs)


def _register_model(stream: str, run_id: str, merged: ArtifactRef, tags: dict[str, str]) -> str:
    import mlflow
    import mlflow.transformers
    import torch
    import transformers

    logged = client().search_logged_models([experiment(stream)], filter_string=f"source_run_id = '{run_id}'")
    ready = [model for model in logged if model.status == "READY"]
    for model in logged:
        if model.status != "READY":
            _forget_logged_model(model)
    if ready:
        uri = ready[0].model_uri
    else:
        versions = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0]}
        with mlflow.start_run(run_id=run_id):
            uri = mlflow.transformers.log_model(
                str(merged.path),
                name="model",
                task="text-generation",
                pip_requirements=[f"{name}=={version}" for name, version in versions.items()],
            ).model_uri
    return str(mlflow.register_model(uri, stream, tags=tags).version)


def _forget_logged_model(model: LoggedModel) -> None:
    """Remove what a killed process, or a full disk, left of a model: its files first, so that none lose their entry."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(model.artifact_location)
    if repository.list_artifacts():
        repository.delete_artifacts()
    client().delete_logged_model(model.model_id)


def now_ms() -> int:
    """The time as MLflow has it."""
    return int(time.time() * 1000)
