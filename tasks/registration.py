"""Registration of an update: one nested MLflow run with all that it made, and one version. Safe to repeat."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from recall.lineage import Lineage, RegisteredUpdate, sha256
from recall.merge_settings import MOMENTS_FILE
from recall.progress import console
from tasks import registry
from tasks.records import UpdateRecord
from tasks.refs import ArtifactRef, digest, weights_sha256
from tasks.store import Store

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

BATCH = 1000  # metrics that MLflow takes at a time


def register_update(
    store: Store, stream: str, parent_run: str, record: UpdateRecord, lineage: Lineage, tags: dict[str, str]
) -> RegisteredUpdate:
    """Log one update as a nested run and register its merged model; returns the version and that run.

    A version with the same weights and the same model key is found, not made again; it then points to the new run,
    unless that is a draft and the version is none: what may be promoted never becomes a draft.
    The update's key is set last, so what a killed process left is completed by the next.
    """
    merged = record.models["recall"].current
    manifest = store.manifest(merged.kind, merged.fingerprint) or {"files": {}}
    files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    identity = {registry.MODEL_KEY: record.model_key, registry.SHA256: weights_sha256(files)}
    lineage_sha256 = sha256(lineage.to_json())
    with store.lock(f"register-{stream}"):
        run_id = _nested_run(stream, parent_run, record, identity[registry.SHA256])
        _log_files(run_id, record, lineage)
        _log_metrics(run_id, record)
        _log_data_sets(run_id, lineage)
        found = registry.version_with(stream, identity)
        if found and record.draft and registry.is_complete(found) and found.tags.get(registry.DRAFT) == "false":
            registry.client().set_terminated(run_id, "FINISHED")
            console.print(
                f"version {found.version} of {stream} has this model and stays as it is: this run is a draft, and what "
                f"it found is in MLflow's run {run_id} alone",
                highlight=False,
                soft_wrap=True,
            )
            return RegisteredUpdate(version=str(found.version), run_id=run_id, lineage_sha256=lineage_sha256)
        version = str(found.version) if found else _register_model(stream, run_id, merged, identity)
        for name, value in (tags | {registry.RUN: run_id, registry.LINEAGE: lineage_sha256}).items():
            registry.client().set_model_version_tag(stream, version, name, value)
        newest = max(int(other.version) for other in registry.versions(stream) if registry.RUN in other.tags)
        registry.client().set_registered_model_alias(stream, "challenger", str(newest))
        registry.client().set_terminated(run_id, "FINISHED")
        registry.client().set_model_version_tag(stream, version, registry.KEY, record.key)
    return RegisteredUpdate(version=version, run_id=run_id, lineage_sha256=lineage_sha256)


def _nested_run(stream: str, parent_run: str, record: UpdateRecord, weights: str) -> str:
    """The run of this update inside this stream run, whatever state a killed process left it in.

    Under the same key other code, another machine or number of threads may make other weights or scores, and a run
    keeps those that were logged first: each has a run of its own, and those that were left open are ended.
    """
    of_update = {"mlflow.parentRunId": parent_run, registry.KEY: record.key}
    made = {registry.SHA256: weights, registry.SCORES: digest(record.metrics)}
    started = registry.runs_with(stream, of_update | made)
    own = {run.info.run_id for run in started}
    for run in registry.runs_with(stream, of_update):
        if run.info.run_id not in own and run.info.status != "FINISHED":
            _forget_half_logged(stream, run.info.run_id)
            registry.client().set_terminated(run.info.run_id, "KILLED")
    if started:
        return str(started[0].info.run_id)
    name, tags = f"update {record.position}: {record.result.learning_task}", of_update | made
    return str(registry.client().create_run(registry.experiment(stream), tags=tags, run_name=name).info.run_id)


def _log_files(run_id: str, record: UpdateRecord, lineage: Lineage) -> None:
    models = record.models["recall"]
    registry.client().log_text(run_id, record.to_json(), "update.json")
    registry.client().log_text(run_id, lineage.to_json(), "lineage.json")
    if models.weights:
        registry.client().log_artifact(run_id, str(models.weights.path / "weights.json"))
    registry.client().log_artifacts(run_id, str(models.expert.path), "expert")
    if models.samples:
        registry.client().log_artifact(run_id, str(models.samples.path / "samples.jsonl"))
    if models.moments:
        # The next update needs those of every expert, perhaps on a machine whose store has none.
        registry.client().log_artifact(run_id, str(models.moments.path / MOMENTS_FILE), "moments")
    for number, representations in enumerate(models.representations):
        registry.client().log_artifact(
            run_id, str(representations.path / "representations.npy"), f"representations/{number}"
        )
    for name, found in record.evaluations.items():
        text = (found.path / "evaluation.json").read_text(encoding="utf-8")
        registry.client().log_text(run_id, text, f"scores/{name}.json")


def _log_metrics(run_id: str, record: UpdateRecord) -> None:
    """Scores and times once; the loss by step, and weight and similarity by layer, which MLflow draws as curves.

    The parameters come last and say that all is there. What a killed process left is written over: MLflow takes a
    metric of the same name, step and time as the same.
    """
    from mlflow.entities import Metric, Param

    run = registry.client().get_run(run_id)
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
        registry.client().log_batch(run_id, metrics=metrics[start : start + BATCH])
    registry.client().log_batch(run_id, params=params)


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
    registry.client().log_inputs(run_id, inputs)


def _register_model(stream: str, run_id: str, merged: ArtifactRef, tags: dict[str, str]) -> str:
    import mlflow
    import mlflow.transformers
    import torch
    import transformers

    _forget_half_logged(stream, run_id)
    logged = _logged_models(stream, run_id)
    if logged:
        uri = logged[0].model_uri
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


def _logged_models(stream: str, run_id: str) -> list[LoggedModel]:
    wanted = f"source_run_id = '{run_id}'"
    return list(registry.client().search_logged_models([registry.experiment(stream)], filter_string=wanted))


def _forget_half_logged(stream: str, run_id: str) -> None:
    """Remove what a killed process, or a full disk, left of a model: its files first, so that none lose their entry."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    for model in _logged_models(stream, run_id):
        if model.status != "READY":
            repository = get_artifact_repository(model.artifact_location)
            if repository.list_artifacts():
                repository.delete_artifacts()
            registry.client().delete_logged_model(model.model_id)
