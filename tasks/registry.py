"""The only module that talks to MLflow: runs, metrics, registered versions, aliases. Everything here is idempotent."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recall.errors import BadInput, Failed
from tasks.records import UpdateRecord
from tasks.refs import CheckpointRef, file_sha256
from tasks.store import Store, seal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

KEY = "recall.update_key"
COMPLETE = "recall.complete"


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

    uri = os.environ["MLFLOW_TRACKING_URI"]
    mlflow.set_tracking_uri(uri)
    try:
        found = mlflow.MlflowClient()
        found.search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        raise BadInput(
            f"MLflow's store {uri} cannot be used ({_first_line(error)}); set MLFLOW_TRACKING_URI"
        ) from error
    return found


def find_update(stream: str, key: str) -> UpdateRecord | None:
    """The record of the update that is registered under `key`, or None."""
    version = _version_with(stream, {KEY: key, COMPLETE: "true"})
    if version is None:
        return None
    record = UpdateRecord.model_validate_json(_text_artifact(version.run_id, "update.json"))
    return record.model_copy(
        update={"result": record.result.model_copy(update={"version": str(version.version), "reused": True})}
    )


def stream_run(stream: str, key: str, tags: dict[str, str]) -> str:
    """The id of the parent run of this stream run; one that a kill left unfinished is taken up again."""
    experiment = _experiment(stream)
    open_runs = client().search_runs(
        [experiment], f"tags.`recall.stream_key` = '{key}' and attributes.status = 'RUNNING'", max_results=1
    )
    if open_runs:
        return str(open_runs[0].info.run_id)
    run = client().create_run(experiment, tags=tags | {"recall.stream_key": key}, run_name=f"stream {stream}")
    return str(run.info.run_id)


def register_update(
    stream: str, parent_run: str, record: UpdateRecord, lineage: dict[str, Any], tags: dict[str, str]
) -> str:
    """Log one update as a nested run and register its merged model; returns the version.

    A version with the same weights and the same lineage is found, not made again.
    """
    merged = record.models["recall"].current
    tags = tags | {KEY: record.key, "recall.weights_sha256": weights_sha256(merged.path)}
    found = _version_with(stream, {name: tags[name] for name in (KEY, "recall.weights_sha256")})
    if found is not None:
        run_id, version = found.run_id, str(found.version)
    else:
        run_id = _nested_run(stream, parent_run, record)
        _log_files(run_id, record, lineage)
        _log_metrics(run_id, record)
        _log_data_sets(run_id, lineage)
        version = _register_model(stream, run_id, merged, tags)
    newest = max(int(other.version) for other in client().search_model_versions(f"name = '{stream}'"))
    client().set_registered_model_alias(stream, "challenger", str(newest))
    client().set_terminated(run_id, "FINISHED")
    # A process that was killed before this line leaves a version that the next run finds and completes.
    client().set_model_version_tag(stream, version, COMPLETE, "true")
    return version


def finish_stream_run(run_id: str, metrics: dict[str, float], files: list[Path]) -> None:
    """Log what the whole stream came to, and close the parent run."""
    from mlflow.entities import Metric

    client().log_batch(run_id, metrics=[Metric(name, value, _now_ms(), 0) for name, value in metrics.items()])
    for file in files:
        client().log_artifact(run_id, str(file))
    client().set_terminated(run_id, "FINISHED")


def restore_merged(store: Store, stream: str, record: UpdateRecord) -> CheckpointRef:
    """Bring a registered merged model back into the store, for a machine that does not have it.

    Raises:
        Failed: what the registry holds is not what was registered.
    """
    import mlflow

    ref = record.models["recall"].current
    version = client().get_model_version(stream, record.result.version)
    with store.lock(ref.fingerprint), store.publishing("merged", ref.fingerprint) as out:
        with tempfile.TemporaryDirectory(dir=store.root) as temporary:
            local = Path(mlflow.artifacts.download_artifacts(version.source, dst_path=temporary)) / "model"
            for file in local.iterdir():
                os.replace(file, out / file.name)
        if weights_sha256(out) != version.tags["recall.weights_sha256"]:
            raise Failed(f"version {version.version} of {stream}: the weights in the registry are not those registered")
        origin = f"models:/{stream}/{version.version}"
        manifest = {
            "kind": "merged",
            "fingerprint": ref.fingerprint,
            "restored_from": origin,
            "fields": {},
            "seconds": 0.0,
        }
        seal(out, manifest)
    return ref


def weights_sha256(folder: Path) -> str:
    """SHA-256 of the model's weights: of the one file, or of the list of the shards' digests."""
    files = sorted(folder.glob("model*.safetensors"))
    if len(files) == 1:
        return file_sha256(files[0])
    from tasks.refs import digest

    return digest({file.name: file_sha256(file) for file in files})


def _experiment(stream: str) -> str:
    found = client().get_experiment_by_name(stream)
    if found is not None:
        return str(found.experiment_id)
    # A server keeps artifacts where it was told to; the embedded store keeps them beside its database.
    local = os.environ["MLFLOW_TRACKING_URI"].startswith("sqlite")
    return str(client().create_experiment(stream, Path("mlartifacts").resolve().as_uri() if local else None))


def _version_with(stream: str, tags: dict[str, str]) -> ModelVersion | None:
    wanted = " and ".join([f"name = '{stream}'", *(f"tags.`{name}` = '{value}'" for name, value in tags.items())])
    versions = client().search_model_versions(wanted)
    return max(versions, key=lambda version: int(version.version)) if versions else None


def _nested_run(stream: str, parent_run: str, record: UpdateRecord) -> str:
    experiment = _experiment(stream)
    started = client().search_runs(
        [experiment], f"tags.`{KEY}` = '{record.key}' and attributes.status = 'RUNNING'", max_results=1
    )
    if started:
        return str(started[0].info.run_id)
    name = f"update {record.position}: {record.result.learning_task}"
    tags = {"mlflow.parentRunId": parent_run, KEY: record.key}
    return str(client().create_run(experiment, tags=tags, run_name=name).info.run_id)


def _log_files(run_id: str, record: UpdateRecord, lineage: dict[str, Any]) -> None:
    models = record.models["recall"]
    client().log_text(run_id, record.model_dump_json(indent=1), "update.json")
    client().log_text(run_id, json.dumps(lineage, indent=1, sort_keys=True), "lineage.json")
    client().log_artifact(run_id, str(models.weights.path / "weights.json"))
    client().log_artifacts(run_id, str(models.expert.path), "expert")
    if models.samples:
        client().log_artifact(run_id, str(models.samples.path / "samples.jsonl"))


def _log_metrics(run_id: str, record: UpdateRecord) -> None:
    from mlflow.entities import Metric, Param

    now = _now_ms()
    scores = {
        f"{method}/{column}": score for method, columns in record.scores.items() for column, score in columns.items()
    }
    scores["expert/own"] = record.result.expert_score
    scores |= {f"seconds/{stage}": seconds for stage, seconds in record.result.seconds.items()}
    training = json.loads((record.models["recall"].expert.path / "training.json").read_text(encoding="utf-8"))
    metrics = [Metric(name, value, now, record.position) for name, value in scores.items()]
    metrics += [Metric("training/loss", loss, now, step) for step, loss in enumerate(training["losses"])]
    params = [Param("learning_task", record.result.learning_task), Param("position", str(record.position))]
    client().log_batch(run_id, metrics=metrics, params=params)


def _log_data_sets(run_id: str, lineage: dict[str, Any]) -> None:
    import mlflow
    from mlflow.data.meta_dataset import MetaDataset

    from tasks.dvc_source import DvcSource

    with mlflow.start_run(run_id=run_id):
        for entry in lineage["data_sets"]:
            source = DvcSource(entry["name"], entry["dvc_hash"], lineage["git_commit"])
            data_set = MetaDataset(source, name=entry["name"], digest=entry["dvc_hash"][:36])
            mlflow.log_input(data_set, context="training" if entry["trained_on"] else "evaluation")
    client().update_run(run_id, status="RUNNING")


def _register_model(stream: str, run_id: str, merged: CheckpointRef, tags: dict[str, str]) -> str:
    import mlflow
    import mlflow.transformers
    import torch
    import transformers

    logged = client().search_logged_models([_experiment(stream)], filter_string=f"source_run_id = '{run_id}'")
    ready = [model for model in logged if model.status == "READY"]
    if ready:
        uri = ready[0].model_uri
    else:
        with mlflow.start_run(run_id=run_id):
            info = mlflow.transformers.log_model(
                str(merged.path),
                name="model",
                task="text-generation",
                pip_requirements=[
                    f"transformers=={transformers.__version__}",
                    f"torch=={torch.__version__.split('+')[0]}",
                ],
            )
        client().update_run(run_id, status="RUNNING")
        uri = info.model_uri
    return str(mlflow.register_model(uri, stream, tags=tags).version)


def _text_artifact(run_id: str, name: str) -> str:
    import mlflow

    return str(mlflow.artifacts.load_text(f"runs:/{run_id}/{name}"))


def _now_ms() -> int:
    import time

    return int(time.time() * 1000)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
