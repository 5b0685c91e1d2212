"""RECALL as a flow: version, fine-tune, cluster, represent, weigh, merge, evaluate and register a learning task."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from prefect import flow
from prefect.runtime import flow_run

from flows.outputs import publish_outputs
from flows.preflight import check_inputs
from flows.stream_state import (
    Stream,
    collect_result,
    lineage_of,
    open_stream,
    registered_update,
    update_result,
    version_tags,
)
from recall.learning_tasks import count_rows
from recall.progress import console
from recall.settings import load_settings
from tasks import registry
from tasks.cluster import cluster
from tasks.evaluate import evaluate
from tasks.finetune import finetune
from tasks.merge import merge
from tasks.records import Models, UpdateRecord
from tasks.refs import CheckpointRef, DatasetRef, ScoreRef
from tasks.register import register
from tasks.represent import represent
from tasks.versioning import version_dataset
from tasks.weigh import fixed_weights, weigh


def _run_name() -> str:
    parameters: dict[str, Any] = flow_run.parameters or {}
    return f"continual-update {parameters.get('profile') or Path(parameters.get('config', '')).name}"


@flow(name="continual-update", flow_run_name=_run_name)
def continual_update(
    config: str = "params.yaml",
    profile: str | None = None,
    overrides: list[str] | None = None,
    take_in: list[str] | None = None,
    recompute: bool = False,
) -> dict[str, Any]:
    """Take in every learning task of the stream that the registry does not hold yet; returns the result as JSON."""
    settings = load_settings(Path(config), profile, overrides)
    torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    stream = open_stream(settings, check_inputs(settings, take_in or []))
    columns = [*settings.stream.learning_tasks, *settings.stream.unseen]
    last = len(settings.stream.learning_tasks)
    parent_run = None
    records: list[UpdateRecord] = []
    for position in range(1, last + 1):
        record = None if recompute else registered_update(stream, position)
        if record is None:
            tags = {"recall.draft": str(bool(stream.inputs.draft_reasons)).lower()}
            parent_run = parent_run or registry.stream_run(settings.stream.name, stream.key(last), tags)
            record = update(stream, position, records, parent_run)
        else:
            console.print(f"update {position}, {record.result.learning_task}: already version {record.result.version}")
        records.append(record)
    return publish_outputs(
        stream,
        collect_result(stream, records),
        {name: count_rows(settings.task_folder(name) / "test.jsonl") for name in columns},
        parent_run,
    )


def update(stream: Stream, position: int, earlier: list[UpdateRecord], parent_run: str) -> UpdateRecord:
    """Take in one learning task by RECALL, and by the baselines beside it; score and register."""
    name = stream.settings.stream.learning_tasks[position - 1]
    last = position == len(stream.settings.stream.learning_tasks)
    unseen = stream.settings.stream.unseen
    console.rule(f"update {position} of {len(stream.settings.stream.learning_tasks)}: {name}")
    data_sets = version_data_sets(stream, position)
    base_scores = score(stream, stream.base, "base", data_sets, [name, *(unseen if position == 1 else [])])
    current = {method: earlier[-1].models[method].current if earlier else stream.base for method in stream.methods}
    before = {
        method: score(stream, model, f"{method} {position - 1}", data_sets, [name])[name].score
        for method, model in current.items()
    }
    models: dict[str, Models] = {}
    scores: dict[str, dict[str, ScoreRef]] = {}
    for method in stream.methods:
        models[method] = learn(stream, method, current[method], data_sets[name], earlier)
        columns = list(data_sets) if method == "recall" or last else stream.seen(position)
        scores[method] = score(stream, models[method].current, f"{method} {position}", data_sets, columns)
    expert = score(stream, models["recall"].expert, f"expert {name}", data_sets, [name])
    record = UpdateRecord(
        key=stream.key(position),
        position=position,
        result=update_result(stream, models["recall"], name, expert[name].score),
        dataset=data_sets[name],
        models=models,
        scores={method: values(found) for method, found in scores.items()},
        base_scores=values(base_scores),
        before=before,
        draft=bool(stream.inputs.draft_reasons),
    )
    lineage, tags = lineage_of(stream, record, data_sets), version_tags(stream, record)
    version = register(stream.settings.stream.name, position, parent_run, record, lineage, tags)
    return record.model_copy(update={"result": record.result.model_copy(update={"version": version})})


def version_data_sets(stream: Stream, position: int) -> dict[str, DatasetRef]:
    """Stage 1, for every learning task seen up to this update, and for the unseen ones."""
    settings = stream.settings
    return {
        name: version_dataset(
            stream.store,
            name,
            name=name,
            dvc_hash=stream.inputs.data_hashes[name],
            spec=settings.learning_tasks[name],
            folder=str(settings.task_folder(name)),
            trained_on=name not in settings.stream.unseen,
        )
        for name in [*stream.seen(position), *settings.stream.unseen]
    }


def learn(
    stream: Stream, method: str, current: CheckpointRef, data_set: DatasetRef, earlier: list[UpdateRecord]
) -> Models:
    """Stages 2 to 6: the method's next model, from its current one and the new learning task's data alone."""
    settings, store = stream.settings, stream.store
    label = f"{data_set.learning_task} ({method})"
    from_base = settings.update.start_from == "base" and method != "sequential"
    start = stream.base if from_base else current
    expert = finetune(store, label, start=start, train=data_set.train, settings=settings.finetuning)
    if method == "sequential" or (settings.update.start_from == "merged" and settings.update.pool == "current"):
        pool, names = [current, expert], ["current", data_set.learning_task]
    else:
        experts = [record.models[method].expert for record in earlier]
        pool = [stream.base, *experts, expert]
        names = ["base", *(record.result.learning_task for record in earlier), data_set.learning_task]
    samples = None
    if method == "recall":
        samples = cluster(store, label, expert=expert, train=data_set.train, settings=settings.sampling)
        representations = [
            represent(store, f"{name}, {label}", model=model, samples=samples, settings=settings.representations)
            for name, model in zip(names, pool, strict=True)
        ]
        weights = weigh(
            store, label, pool=pool, names=names, representations=representations, settings=settings.weighting
        )
    else:
        weights = fixed_weights(store, label, pool=pool, names=names, rule=method)
    merged = merge(store, label, pool=pool, weights=weights)
    return Models(current=merged, expert=expert, samples=samples, weights=weights)


def score(
    stream: Stream, model: CheckpointRef, who: str, data_sets: dict[str, DatasetRef], columns: list[str]
) -> dict[str, ScoreRef]:
    """Stage 7: one model's scores on the test splits of `columns`."""
    return {
        name: evaluate(
            stream.store,
            f"{who} on {name}",
            model=model,
            test=data_sets[name].test,
            settings=stream.settings.evaluation,
        )
        for name in columns
    }


def values(scores: dict[str, ScoreRef]) -> dict[str, float]:
    """The bare scores."""
    return {name: found.score for name, found in scores.items()}
