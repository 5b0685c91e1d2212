"""Where a stream stands: the keys of its updates, what the registry already holds, and the result of them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from flows.preflight import Inputs
from recall.progress import console
from recall.results import MergeWeights, ScoreMatrix, StreamResult, UpdateResult
from recall.settings import Settings
from tasks import registry
from tasks.evaluate import label_biases
from tasks.records import Models, UpdateRecord
from tasks.refs import ArtifactRef, CheckpointRef, Ref, ScoreRef, digest, file_sha256
from tasks.remote import bring
from tasks.restore import restore
from tasks.store import Store
from tasks.versioning import version_base


@dataclass(frozen=True)
class Stream:
    """One stream run's fixed parts."""

    settings: Settings
    inputs: Inputs
    store: Store
    base: CheckpointRef

    @property
    def unseen(self) -> list[str]:
        """The learning tasks that are only ever evaluated."""
        return self.settings.stream.unseen

    def has(self, ref: ArtifactRef) -> bool:
        """Is the artifact in the store, or now fetched from its remote, whole, and with the very bytes of `ref`?"""
        if ref.kind == "base_model":
            return True
        return bring(self.store, ref.kind, ref.fingerprint, lambda found: found["sha256"] == ref.sha256) is None

    def seconds(self, ref: ArtifactRef) -> float:
        """How long it took to make an artifact, whenever that was."""
        manifest = self.store.manifest(ref.kind, ref.fingerprint) or {}
        return float(manifest.get("seconds", 0.0))

    @property
    def methods(self) -> list[str]:
        """RECALL first, then the baselines beside it."""
        return ["recall", *self.settings.baselines]

    def seen(self, position: int) -> list[str]:
        """The learning tasks up to update `position` (1-based)."""
        return self.settings.stream.learning_tasks[:position]

    def model_key(self, position: int) -> str:
        """What identifies the merged model of update `position`: base, data so far, and settings that reach it."""
        settings = self.settings
        reads = {name: getattr(settings, name) for name in ("update", "sampling", "representations", "weighting")}
        reads["finetuning"] = settings.finetuning.plain
        read = {name: one.model_dump(mode="json") for name, one in reads.items()}
        if settings.update.merge != "recall":
            read["merging"] = settings.merging.read_by(settings.update.merge)
        heldout = {"heldout": file_sha256(settings.sampling.file)} if settings.sampling.file else {}
        return digest(
            {
                "base_model": self.inputs.base_hash,
                "learning_tasks": [self._data_set(name) for name in self.seen(position)],
                "settings": read,
                **heldout,
            }
        )

    def key(self, position: int) -> str:
        """What identifies the update with all its scores: the model, and what it is compared with and tested on."""
        baselines: dict[str, BaseModel] = {
            "ewc": self.settings.finetuning.ewc,
            "replay": self.settings.finetuning.replay,
        }
        used = {name: own.model_dump(mode="json") for name, own in baselines.items() if name in self.methods}
        used |= {name: options for name in self.methods if (options := self.settings.merging.read_by(name))}
        return digest(
            {
                "model": self.model_key(position),
                "unseen": [self._data_set(name) for name in self.settings.stream.unseen],
                "evaluation": self.settings.evaluation.model_dump(mode="json"),
                "baselines": self.settings.baselines,
                **used,
            }
        )

    def _data_set(self, name: str) -> dict[str, Any]:
        answers = self.settings.learning_tasks[name].model_dump(mode="json", include={"kind", "metric", "labels"})
        return {"name": name, "dvc_hash": self.inputs.data_hashes[name], **answers}


def open_stream(settings: Settings, inputs: Inputs) -> Stream:
    """The stream at the data versions that `inputs` found."""
    base = version_base(settings.base_folder, inputs.base_hash)
    return Stream(settings, inputs, Store(root=settings.store.resolve(), remote=settings.store_remote), base)


def registered_update(stream: Stream, position: int) -> UpdateRecord | None:
    """The update as the registry holds it, which is said; None where it has to be made.

    A draft counts only as long as this run is one too: from a clean tree and with pushed data it is registered again,
    out of the cache, as the same version.
    """
    record = registry.find_update(stream.settings.stream.name, stream.key(position))
    if record is None or (record.draft and not stream.inputs.draft_reasons):
        return None
    console.print(f"update {position}, {record.result.learning_task}: already version {record.result.version}")
    models = {method: _rebound(found, stream) for method, found in record.models.items()}
    return record.model_copy(update={"models": models})


def bring_back(stream: Stream, earlier: list[UpdateRecord]) -> None:
    """Bring what the next update needs of RECALL's earlier ones from the registry, where the store lost it."""
    for record in earlier:
        models = record.models["recall"]
        needed: list[ArtifactRef] = [models.current] if record is earlier[-1] else []
        needed += [models.expert] if stream.settings.update.pool_has_experts else []
        needed += [models.moments] if models.moments else []
        for ref in needed:
            if not stream.has(ref):
                console.print(f"update {record.position}: {ref.kind} comes back from the registry")
                restore(stream.store, stream.settings.stream.name, record, ref)


def collect_result(stream: Stream, records: list[UpdateRecord]) -> StreamResult:
    """R of every method, and what each update did, out of the updates' records."""
    settings = stream.settings
    tasks, unseen = settings.stream.learning_tasks, settings.stream.unseen
    return StreamResult(
        stream=settings.stream.name,
        metrics={name: settings.learning_tasks[name].metric for name in [*tasks, *unseen]},
        methods=score_matrices(records, tasks, unseen, stream.methods),
        updates=[record.result for record in records],
        settings=settings.model_dump(mode="json", exclude={"learning_tasks"}),
        draft=records[-1].draft,
    )


def score_matrices(
    records: list[UpdateRecord], tasks: list[str], unseen: list[str], methods: list[str]
) -> dict[str, ScoreMatrix]:
    """R of each method, out of the updates' records."""
    base: dict[str, float] = {}
    for record in records:
        base |= record.base_scores
    matrices = {}
    for method in methods:
        rows: list[dict[str, float]] = [dict(base), *(dict(record.scores[method]) for record in records)]
        for row, record in zip(rows, records, strict=False):
            row[record.result.learning_task] = record.before[method]
        scores = [[row.get(column) for column in [*tasks, *unseen]] for row in rows]
        matrices[method] = ScoreMatrix(learning_tasks=tasks, unseen=unseen, scores=scores)
    return matrices


def update_result(
    stream: Stream,
    models: dict[str, Models],
    learning_task: str,
    expert: ScoreRef,
    scores: dict[str, ScoreRef],
    on_validation: dict[str, ScoreRef],
) -> UpdateResult:
    """What people want to know of one update: RECALL's merge, and the seconds of each of its stages.

    Args:
        expert: the expert's score on its own learning task.
        scores: the merged model's, by learning task.
        on_validation: see `UpdateResult`.
    """
    own = models["recall"]
    assert own.weights is not None
    merge = MergeWeights.model_validate_json((own.weights.path / "weights.json").read_text(encoding="utf-8"))
    made: dict[str, list[Any]] = {
        "finetune": [own.expert],
        "cluster": [own.samples],
        "moments": [own.moments] if own.moments else [],
        "represent": own.representations,
        "weigh": [own.weights],
        "merge": [own.current],
        "evaluate": [expert, *scores.values(), *on_validation.values()],
        "baselines": [
            ref for name, other in models.items() if name != "recall" for ref in (other.expert, *other.needed_next)
        ],
    }
    seconds = {stage: round(sum(map(stream.seconds, refs)), 2) for stage, refs in made.items() if refs}
    return UpdateResult(
        learning_task=learning_task,
        expert_score=expert.score,
        merge=merge,
        seconds=seconds,
        cluster_sizes=own.samples.cluster_sizes if own.samples else [],
        label_bias=label_biases(scores),
        on_validation={who: ref.score for who, ref in on_validation.items()},
    )


def _rebound(models: Models, stream: Stream) -> Models:
    """The same references in this run's store and over this run's base model, wherever they were recorded."""

    def here(ref: Any) -> Any:
        if isinstance(ref, list):
            return [here(item) for item in ref]
        if not isinstance(ref, Ref):
            return ref
        if isinstance(ref, CheckpointRef):
            ref = stream.base if ref.kind == "base_model" else ref.model_copy(update={"base": here(ref.base)})
        return ref.at(stream.store.root)

    return models.model_copy(update={name: here(value) for name, value in models})
