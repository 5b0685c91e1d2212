"""RECALL as a flow: version, fine-tune, cluster, represent, weigh, merge, evaluate and register a learning task."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.baselines import learn_baseline
from flows.lineage import lineage_of, version_tags
from flows.moments import by_moments
from flows.orphans import untagged_tasks
from flows.outputs import outcome, publish_outputs
from flows.pools import merge_pool, represent_pool, typical
from flows.preflight import check_baselines, check_inputs
from flows.stream_state import (
    Stream,
    bring_back,
    collect_result,
    open_stream,
    registered_update,
    update_result,
)
from flows.training import train_ahead, training
from recall.load_settings import load_settings
from recall.progress import console
from tasks import registry
from tasks.evaluate import evaluate
from tasks.finetune import finetune
from tasks.merge import merge
from tasks.records import Models, UpdateRecord
from tasks.refs import CheckpointRef, DatasetRef, ScoreRef, TrackedFolder
from tasks.register import register
from tasks.stage import Pending
from tasks.versioning import version_dataset
from tasks.weigh import weigh
from tasks.workers import workers


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
) -> State[dict[str, Any]]:
    """Take in every learning task of the stream that the registry does not hold yet; returns the result as JSON.

    What is registered is known by the data sets' DVC hashes and the settings, and read from the registry alone. The
    state's message says what was made, or that nothing was new.
    """
    settings = load_settings(Path(config), profile, overrides)
    check_baselines(settings)
    stream = open_stream(settings, check_inputs(settings, take_in or []))
    last = len(settings.stream.learning_tasks)
    parent_run = registry.unfinished_stream_run(settings.stream.name, stream.key(last))
    data_sets: dict[str, DatasetRef] = {}
    records: list[UpdateRecord] = []
    with untagged_tasks(), workers(settings.runner, settings.threads, stream.store.root):
        for position in range(1, last + 1):
            record = None if recompute else registered_update(stream, position)
            if record is None:
                data_sets = data_sets or begin(stream)
                parent_run = parent_run or registry.start_stream_run(settings.stream.name, stream.key(last))
                record = update(stream, position, records, data_sets, parent_run)
            records.append(record)
        records[-1] = with_unseen(stream, records, data_sets)
    result = collect_result(stream, records)
    return Completed(message=outcome(stream, result), data=publish_outputs(stream, result, parent_run))


def begin(stream: Stream) -> dict[str, DatasetRef]:
    """What comes before any work, and not at all where nothing is new; returns the data sets' versions."""
    import torch

    torch.set_num_threads(stream.settings.threads or len(os.sched_getaffinity(0)))
    stream.store.clear_abandoned()
    return version_data_sets(stream)


def update(
    stream: Stream, position: int, earlier: list[UpdateRecord], data_sets: dict[str, DatasetRef], parent_run: str
) -> UpdateRecord:
    """Take in one learning task by RECALL, and by the baselines beside it; score and register."""
    name, seen, unseen = stream.settings.stream.learning_tasks[position - 1], stream.seen(position), stream.unseen
    console.rule(f"update {position} of {len(stream.settings.stream.learning_tasks)}: {name}")
    last = position == len(stream.settings.stream.learning_tasks)
    bring_back(stream, earlier)
    train_ahead(stream, earlier, data_sets)
    base = score(stream, stream.base, "base", data_sets, [name, *(unseen if position == 1 else [])])
    before: dict[str, Pending[ScoreRef]] = {}
    models: dict[str, Models] = {}
    scores: dict[str, dict[str, Pending[ScoreRef]]] = {}
    for method in stream.methods:
        past = models_so_far(stream, method, earlier, data_sets)
        current = past[-1].current if past else stream.base
        before |= {method: score(stream, current, f"{method} {position - 1}", data_sets, [name])[name]}
        models[method] = next_models(stream, method, past, data_sets)
        columns = [*seen, *unseen] if method == "recall" or last else seen
        scores[method] = score(stream, models[method].current, f"{method} {position}", data_sets, columns)
    former = earlier[-1].models["recall"].current if earlier else stream.base
    held_out = score_on_validation(stream, former, models["recall"], data_sets[name])
    expert = score(stream, models["recall"].expert, f"expert {name}", data_sets, [name])[name].result()
    own = results(scores["recall"])
    own_base = {f"base/{name}": ref for name, ref in results(base).items()}
    record = UpdateRecord(
        key=stream.key(position),
        model_key=stream.model_key(position),
        position=position,
        result=update_result(stream, models, name, expert, own, results(held_out)),
        models=models,
        scores={method: values(found) for method, found in scores.items()},
        base_scores=values(base),
        before=values(before),
        draft=bool(stream.inputs.draft_reasons),
        evaluations=own | own_base,
        earlier=[before.run_id for before in earlier],
    )
    lineage, tags = lineage_of(stream, record, earlier, data_sets), version_tags(stream, record)
    registered = register(stream.store, stream.settings.stream.name, position, parent_run, record, lineage, tags)
    return record.at(registered)


def version_data_sets(stream: Stream) -> dict[str, DatasetRef]:
    """Stage 1, for every learning task and the unseen ones, before anything slow: later edits reach no update."""
    settings = stream.settings
    return {
        name: version_dataset(
            stream.store,
            name,
            name=name,
            tracked=TrackedFolder(fingerprint=stream.inputs.data_hashes[name], path=settings.task_folder(name)),
            spec=settings.learning_tasks[name],
            trained_on=name not in stream.unseen,
        )
        for name in [*settings.stream.learning_tasks, *stream.unseen]
    }


def learn(stream: Stream, past: list[Models], data_sets: dict[str, DatasetRef]) -> Models:
    """Stages 2 to 6: RECALL's next model, from its past ones and the new learning task's data alone."""
    settings, store, name = stream.settings, stream.store, stream.seen(len(past) + 1)[-1]
    train, label = data_sets[name].train, f"{name} (recall)"
    assert train is not None
    expert = finetune(store, label, **training(stream, "recall", past, data_sets))
    if settings.update.merge == "recall_moments":
        return by_moments(stream, "recall_moments", label, past, expert, train)
    pool, names = merge_pool(stream, past, expert)
    samples = typical(stream, label, expert, train)
    representations = represent_pool(stream, label, pool, names, samples)
    weights = weigh(store, label, pool=pool, names=names, representations=representations, settings=settings.weighting)
    merged = merge(store, label, pool=pool, weights=weights)
    return Models(current=merged, expert=expert, samples=samples, representations=representations, weights=weights)


def score(
    stream: Stream, model: CheckpointRef, who: str, data_sets: dict[str, DatasetRef], columns: list[str]
) -> dict[str, Pending[ScoreRef]]:
    """Stage 7: one model's scores on the test splits of `columns`."""
    store, settings = stream.store, stream.settings.evaluation
    return {
        name: evaluate.submit(store, f"{who} on {name}", model=model, test=data_sets[name].test, settings=settings)
        for name in columns
    }


def score_on_validation(
    stream: Stream, before: CheckpointRef, own: Models, data_set: DatasetRef
) -> dict[str, Pending[ScoreRef]]:
    """The new learning task's validation rows by RECALL's model before, its expert and the merged one.

    Warnings go by these (`recall.cautions`), so that a setting which is changed until one goes was not chosen on test
    rows.
    """
    asked, rows = {"before": before, "expert": own.expert, "merged": own.current}, data_set.validation
    assert rows is not None
    return {
        who: evaluate.submit(
            stream.store,
            f"{who} on {data_set.learning_task}'s validation rows",
            model=model,
            test=rows,
            settings=stream.settings.evaluation,
        )
        for who, model in asked.items()
    }


def results(scores: dict[str, Pending[ScoreRef]]) -> dict[str, ScoreRef]:
    """The evaluations, once they are there."""
    return {name: pending.result() for name, pending in scores.items()}


def values(scores: dict[str, Pending[ScoreRef]]) -> dict[str, float]:
    """The bare scores, once they are there."""
    return {name: ref.score for name, ref in results(scores).items()}


def next_models(stream: Stream, method: str, past: list[Models], data_sets: dict[str, DatasetRef]) -> Models:
    """A method's models after the update that follows `past`."""
    return learn(stream, past, data_sets) if method == "recall" else learn_baseline(stream, method, past, data_sets)


def models_so_far(
    stream: Stream, method: str, earlier: list[UpdateRecord], data_sets: dict[str, DatasetRef]
) -> list[Models]:
    """What a method made in the earlier updates; a baseline's, which no registry keeps, is made again if lost."""
    past = [record.models[method] for record in earlier]
    needed = [ref for models in past[-1:] for ref in models.needed_next]
    needed += [models.expert for models in past if stream.settings.update.pool_has_experts]
    needed += [models.moments for models in past if models.moments]
    if method == "recall" or all(map(stream.has, needed)):
        return past
    past = []
    for _ in earlier:
        past.append(next_models(stream, method, past, data_sets))
    return past


def with_unseen(stream: Stream, records: list[UpdateRecord], data_sets: dict[str, DatasetRef]) -> UpdateRecord:
    """The last record with the baselines' unseen scores, which it lacks where the stream once went on after it."""
    record = records[-1]
    missing = [method for method in stream.methods if not record.scores[method].keys() >= set(stream.unseen)]
    added = {}
    for method in missing:
        data_sets = data_sets or begin(stream)
        model = models_so_far(stream, method, records, data_sets)[-1].current
        scores = score(stream, model, f"{method} {record.position}", data_sets, stream.unseen)
        added[method] = record.scores[method] | values(scores)
    return record.model_copy(update={"scores": record.scores | added})
