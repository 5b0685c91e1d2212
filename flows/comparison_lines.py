"""One line of a comparison: a method's models in one case, made by the functions that an update uses, and their scores.

Every artifact goes through the same cached stages as in `recall run`, so what either has made the other finds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from flows.comparison_cases import Case, Contender
from flows.continual_update import next_models, score
from flows.moments import own_moments
from flows.stream_state import Stream
from flows.training import training
from recall.comparison_line import Line
from recall.merge_settings import BY_MOMENTS, BY_SIMILARITY, FROM_SAMPLES
from recall.results import MergeWeights, ScoreMatrix
from recall.settings import Settings
from tasks.data_versions import code_commit
from tasks.evaluate import label_biases
from tasks.finetune import finetune
from tasks.records import Models
from tasks.refs import DatasetRef, ScoreRef, digest, file_sha256
from tasks.stage import Pending

Row = dict[str, Pending[ScoreRef]]


@dataclass(frozen=True)
class Made:
    """A method's models in the order of its updates, and each model's scores by column; `base` is R's row 0."""

    models: list[Models]
    rows: list[Row]
    base: Row | None = None


def make_line(
    stream: Stream,
    case: Case,
    contender: Contender,
    settings: Settings,
    split: Literal["validation", "test"],
    data_sets: dict[str, DatasetRef],
) -> Line:
    """Make one method's models in one case, and score them.

    Args:
        stream: at the settings that all methods share.
        settings: the contender's own, before the case's seeds and order.
        data_sets: their `test` is what is scored on, whichever split that is.
    """
    own = replace(stream, settings=case.settings(settings, contender.method))
    if case.setting == "stream":
        made = in_sequence(own, contender.method, data_sets)
    else:
        made = at_once(own, case, contender.method, data_sets)
    found = [{column: pending.result() for column, pending in row.items()} for row in made.rows]
    evaluations = [ref for row in found for ref in row.values()]
    names = [*stream.settings.stream.learning_tasks, *stream.unseen]
    commit, clean = code_commit()
    return Line(
        **identity(stream, case, contender, settings, split),
        stream=stream.settings.stream.name,
        base_model=_base_name(stream.settings),
        setting=case.setting,
        method=contender.method,
        vary_key=contender.key,
        vary_value=contender.value,
        seed=case.seed,
        order=case.order,
        learning_tasks=list(case.learning_tasks),
        unseen=stream.unseen,
        others=list(case.others),
        split=split,
        metrics={name: stream.settings.learning_tasks[name].metric for name in names},
        scores={column: ref.score for column, ref in found[-1].items()},
        rows=[{column: _row_scores(ref) for column, ref in row.items()} for row in found],
        matrix=_matrix(own, made, found),
        experts=_own_scores(own, made.models, data_sets) if contender.method == "recall" else {},
        merges=[_merge(models) for models in made.models if models.weights] if contender.method in FROM_SAMPLES else [],
        label_bias=label_biases(found[-1]),
        seconds=_seconds(own, made.models, evaluations),
        settings=settings_read(own.settings, case, contender.method),
        data_hashes=stream.inputs.data_hashes,
        code_commit=commit,
        code_clean=clean,
        machine=_machine(),
    )


def at_once(stream: Stream, case: Case, method: str, data_sets: dict[str, DatasetRef]) -> Made:
    """The base, an expert, or one merge of every model of the pool; all of it scored on every column."""
    columns = [*case.learning_tasks, *case.others, *stream.unseen]
    if method == "base":
        return Made([], [score(stream, stream.base, "base", data_sets, columns)])
    if method.startswith("expert"):
        name = method.removeprefix("expert ") if case.setting == "independent" else case.learning_tasks[0]
        alone = stream.settings.stream.model_copy(update={"learning_tasks": [name]})
        models = _expert(replace(stream, settings=stream.settings.model_copy(update={"stream": alone})), [], data_sets)
        return Made([models], [score(stream, models.expert, f"expert {name}", data_sets, columns)])
    experts: list[Models] = []
    for _ in stream.settings.stream.learning_tasks[:-1]:
        experts.append(_expert(stream, experts, data_sets, moments=method in BY_MOMENTS))
    merged = next_models(stream, method, experts, data_sets)
    return Made([*experts, merged], [score(stream, merged.current, method, data_sets, columns)])


def in_sequence(stream: Stream, method: str, data_sets: dict[str, DatasetRef]) -> Made:
    """R, as `recall run` has it: after each update what was seen and what comes next, after the last unseen too."""
    tasks = stream.settings.stream.learning_tasks
    base = score(stream, stream.base, "base", data_sets, [*tasks, *stream.unseen])
    if method == "base":
        return Made([], [base])
    models: list[Models] = []
    rows: list[Row] = []
    for position in range(1, len(tasks) + 1):
        models.append(next_models(stream, method, models, data_sets))
        columns = [*stream.seen(position + 1), *(stream.unseen if position == len(tasks) else [])]
        rows.append(score(stream, models[-1].current, f"{method} {position}", data_sets, columns))
    return Made(models, rows, base)


def identity(
    stream: Stream, case: Case, contender: Contender, settings: Settings, split: Literal["validation", "test"]
) -> dict[str, str]:
    """`Line.key`, `Line.shared` and `Line.own`: known before anything is made."""
    own, common = case.settings(settings, contender.method), case.settings(stream.settings, "recall")
    names = sorted([*stream.settings.stream.learning_tasks, *stream.unseen])
    shared = {
        "setting": case.setting,
        "split": split,
        "base_model": stream.inputs.base_hash,
        "data": {name: [stream.inputs.data_hashes[name], _answers(stream.settings, name)] for name in names},
        "unseen": sorted(stream.unseen),
        "settings": _seedless(settings_read(common, case, "expert")),
    }
    read = settings_read(own, case, contender.method)
    key = {
        "shared": shared | {"settings": read},
        "label": contender.label,
        "seed": case.seed,
        "order": case.order,
        "learning_tasks": case.learning_tasks,
    }
    return {"key": digest(key), "shared": digest(shared), "own": digest(_seedless(read))}


def settings_read(settings: Settings, case: Case, method: str) -> dict[str, Any]:
    """The settings that a method's models and scores depend on in a case, as JSON; `expert`: what all share."""
    read: dict[str, Any] = {"evaluation": settings.evaluation.model_dump(mode="json")}
    if method == "base":
        return read
    read["finetuning"] = settings.finetuning.plain.model_dump(mode="json")
    # Merged at once, only where it is not the default: lines from before there was a choice keep their keys.
    if case.setting == "stream" or settings.update.pool == "experts":
        read["update"] = settings.update.model_dump(mode="json")
    if method in (*FROM_SAMPLES, "regmean"):
        read["sampling"] = settings.sampling.model_dump(mode="json")
        file = settings.sampling.file
        read |= {"heldout": file_sha256(file)} if file else {}
        read["representations"] = settings.representations.model_dump(mode="json")
    if method in BY_SIMILARITY:
        read["weighting"] = settings.weighting.model_dump(mode="json")
    if method in ("ewc", "replay"):
        read[method] = getattr(settings.finetuning, method).model_dump(mode="json")
    options = settings.merging.read_by(method)
    return read | ({"merging": options} if options else {})


def _seedless(read: dict[str, Any]) -> dict[str, Any]:
    return {
        section: {name: value for name, value in values.items() if name != "seed"}
        if isinstance(values, dict)
        else values
        for section, values in read.items()
    }


def _expert(stream: Stream, past: list[Models], data_sets: dict[str, DatasetRef], moments: bool = False) -> Models:
    """An expert from the base, merged with nothing yet."""
    name = stream.seen(len(past) + 1)[-1]
    expert = finetune(stream.store, f"{name} (recall)", **training(stream, "recall", past, data_sets))
    models = Models(current=stream.base, expert=expert)
    if not moments:
        return models
    train = data_sets[name].train
    assert train is not None
    samples, own = own_moments(stream, f"{name} (its moments)", expert, train)
    return models.model_copy(update={"samples": samples, "moments": own})


def _own_scores(stream: Stream, models: list[Models], data_sets: dict[str, DatasetRef]) -> dict[str, float]:
    names = stream.settings.stream.learning_tasks
    asked = {
        name: score(stream, made.expert, f"expert {name}", data_sets, [name])[name]
        for name, made in zip(names, models, strict=True)
    }
    return {name: pending.result().score for name, pending in asked.items()}


def _matrix(stream: Stream, made: Made, rows: list[dict[str, ScoreRef]]) -> ScoreMatrix | None:
    if made.base is None:
        return None
    tasks, unseen = stream.settings.stream.learning_tasks, stream.unseen
    found = [{column: pending.result() for column, pending in made.base.items()}, *rows]
    scores = [[row[column].score if column in row else None for column in [*tasks, *unseen]] for row in found]
    return ScoreMatrix(learning_tasks=tasks, unseen=unseen, scores=scores)


def _row_scores(ref: ScoreRef) -> list[float]:
    found = json.loads((ref.path / "evaluation.json").read_text(encoding="utf-8"))
    return [round(float(value), 6) for value in found["row_scores"]]


def _merge(models: Models) -> MergeWeights:
    assert models.weights is not None
    return MergeWeights.model_validate_json((models.weights.path / "weights.json").read_text(encoding="utf-8"))


def _seconds(stream: Stream, models: list[Models], evaluations: list[ScoreRef]) -> dict[str, float]:
    """What each stage's artifacts took when they were made, whoever asked for them first."""
    fields: dict[str, Callable[[Models], list[Any]]] = {
        "finetune": lambda made: [made.expert],
        "cluster": lambda made: [made.samples],
        "represent": lambda made: list(made.representations),
        "weigh": lambda made: [made.weights],
        "merge": lambda made: [made.current] if made.current.kind == "merged" else [],
        "fisher": lambda made: [made.fisher],
        "moments": lambda made: [made.moments],
    }
    refs = {stage: [ref for made in models for ref in field(made) if ref] for stage, field in fields.items()}
    refs["evaluate"] = list(evaluations)
    return {stage: round(sum(map(stream.seconds, found)), 2) for stage, found in refs.items() if found}


def _answers(settings: Settings, name: str) -> dict[str, Any]:
    return settings.learning_tasks[name].model_dump(mode="json", include={"kind", "metric", "labels"})


def _base_name(settings: Settings) -> str:
    source = settings.base_model
    return source.pypi or (
        f"{source.hub}@{source.revision}" if source.hub else source.folder.name if source.folder else ""
    )


def _machine() -> dict[str, Any]:
    import torch

    from tasks.machine import environment

    found = environment()
    return {
        "cpu_model": found["cpu_model"],
        "cores": found["cores"],
        "threads": torch.get_num_threads(),
        "torch": found["torch"],
        "device": found["cuda"] or "cpu",
        "dtype": found["dtype"],
    }
