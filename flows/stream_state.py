"""Where a stream stands: the keys of its updates, what the registry already holds, and the result of them all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.preflight import Inputs
from recall.progress import console
from recall.results import MergeWeights, ScoreMatrix, StreamResult, UpdateResult
from recall.settings import Settings
from tasks import registry
from tasks.records import Models, UpdateRecord
from tasks.refs import CheckpointRef, DatasetRef, digest
from tasks.store import Store
from tasks.versioning import version_base

LOCK_FILE = Path(__file__).parent.parent / "constraints.txt"


@dataclass(frozen=True)
class Stream:
    """One stream run's fixed parts."""

    settings: Settings
    inputs: Inputs
    store: Store
    base: CheckpointRef

    @property
    def methods(self) -> list[str]:
        """RECALL first, then the baselines beside it."""
        return ["recall", *self.settings.baselines]

    def seen(self, position: int) -> list[str]:
        """The learning tasks up to update `position` (1-based)."""
        return self.settings.stream.learning_tasks[:position]

    def key(self, position: int) -> str:
        """What identifies update `position`: its data so far and every setting that can change its result."""
        settings = self.settings
        names = [*self.seen(position), *settings.stream.unseen]
        reads = ("update", "finetuning", "sampling", "representations", "weighting", "evaluation")
        return digest(
            {
                "base_model": self.inputs.base_hash,
                "learning_tasks": self.seen(position),
                "unseen": settings.stream.unseen,
                "data": {name: self.inputs.data_hashes[name] for name in names},
                "answers": {name: self._answers(name) for name in names},
                "settings": {name: getattr(settings, name).model_dump(mode="json") for name in reads},
                "baselines": settings.baselines,
            }
        )

    def _answers(self, name: str) -> dict[str, Any]:
        return self.settings.learning_tasks[name].model_dump(mode="json", include={"kind", "metric", "labels"})


def open_stream(settings: Settings, inputs: Inputs) -> Stream:
    """The stream at the data versions that `inputs` found."""
    base = version_base(settings.base_folder, inputs.base_hash)
    return Stream(settings, inputs, Store(root=settings.store.resolve()), base)


def registered_update(stream: Stream, position: int) -> UpdateRecord | None:
    """The update as the registry holds it, with its artifacts at hand; None where it has to be made."""
    record = registry.find_update(stream.settings.stream.name, stream.key(position))
    if record is None:
        return None
    models = {}
    for method, recorded in record.models.items():
        found = Models.model_validate({name: _in_store(value, stream.store) for name, value in recorded})
        if _lost(stream.store, found.current):
            if method != "recall":
                console.print(
                    f"update {position}: the {method} baseline's model is not in the store; the update is made again"
                )
                return None
            registry.restore_merged(stream.store, stream.settings.stream.name, record)
        models[method] = found
    return record.model_copy(update={"models": models})


def collect_result(stream: Stream, records: list[UpdateRecord]) -> StreamResult:
    """R of every method, and what each update did, out of the updates' records."""
    settings = stream.settings
    tasks, unseen = settings.stream.learning_tasks, settings.stream.unseen
    columns = [*tasks, *unseen]
    base: dict[str, float] = {}
    for record in records:
        base |= record.base_scores
    methods = {}
    for method in stream.methods:
        rows: list[dict[str, float]] = [dict(base), *(dict(record.scores[method]) for record in records)]
        for row, record in zip(rows, records, strict=False):
            row[record.result.learning_task] = record.before[method]
        scores = [[row.get(column) for column in columns] for row in rows]
        methods[method] = ScoreMatrix(learning_tasks=tasks, unseen=unseen, scores=scores)
    return StreamResult(
        stream=settings.stream.name,
        metrics={name: settings.learning_tasks[name].metric for name in columns},
        methods=methods,
        updates=[record.result for record in records],
        settings=settings.model_dump(mode="json", exclude={"learning_tasks"}),
        draft=any(record.draft for record in records),
    )


def update_result(stream: Stream, models: Models, learning_task: str, expert_score: float) -> UpdateResult:
    """What people want to know of one update of RECALL."""
    merge = MergeWeights.model_validate_json((models.weights.path / "weights.json").read_text(encoding="utf-8"))
    made = {"finetune": models.expert, "cluster": models.samples, "weigh": models.weights, "merge": models.current}
    manifests = {stage: stream.store.manifest(ref.kind, ref.fingerprint) for stage, ref in made.items() if ref}
    seconds = {stage: round(manifest["seconds"], 2) for stage, manifest in manifests.items() if manifest}
    return UpdateResult(learning_task=learning_task, expert_score=expert_score, merge=merge, seconds=seconds)


def lineage_of(stream: Stream, record: UpdateRecord, data_sets: dict[str, DatasetRef]) -> dict[str, Any]:
    """Everything that the merged model was made from, for an audit."""
    models = record.models["recall"]
    manifest = stream.store.manifest("experts", models.expert.fingerprint) or {}
    return {
        "update_key": record.key,
        "git_commit": stream.inputs.git_commit,
        "draft_because": list(stream.inputs.draft_reasons),
        "base_model": {"dvc_hash": stream.inputs.base_hash, "fingerprint": stream.base.fingerprint},
        "data_sets": [
            {
                "name": name,
                "dvc_hash": data_set.dvc_hash,
                "fingerprint": data_set.fingerprint,
                "rows": {split.path.stem: split.rows for split in (data_set.train, data_set.test) if split},
                "trained_on": name == record.result.learning_task,
            }
            for name, data_set in data_sets.items()
        ],
        "expert": models.expert.fingerprint,
        "samples": models.samples.fingerprint if models.samples else None,
        "weights": models.weights.fingerprint,
        "merged": models.current.fingerprint,
        "settings": stream.settings.model_dump(mode="json"),
        "environment": manifest.get("environment"),
        "environment_lock_sha256": _lock_sha256(),
    }


def version_tags(stream: Stream, record: UpdateRecord) -> dict[str, str]:
    """The tags of a registered version (DESIGN 7); the registry adds the update's key and the weights' SHA-256."""
    models = record.models["recall"]
    tags = {
        "recall.git_commit": stream.inputs.git_commit or "none",
        "recall.draft": str(bool(stream.inputs.draft_reasons)).lower(),
        "recall.draft_because": "; ".join(stream.inputs.draft_reasons),
        "recall.learning_task": record.result.learning_task,
        "recall.position": str(record.position),
        "recall.settings_sha256": digest(stream.settings.model_dump(mode="json")),
        "recall.base_dvc_hash": stream.inputs.base_hash,
        "recall.base_fingerprint": stream.base.fingerprint,
        "recall.expert_fingerprint": models.expert.fingerprint,
        "recall.merged_fingerprint": models.current.fingerprint,
        "recall.environment_lock_sha256": _lock_sha256(),
    }
    names = [*stream.seen(record.position), *stream.settings.stream.unseen]
    return tags | {f"recall.data.{name}": stream.inputs.data_hashes[name] for name in names}


def _in_store(value: Any, store: Store) -> Any:
    return value.at(store.root) if value is not None else None


def _lost(store: Store, ref: CheckpointRef) -> bool:
    return store.damage(ref.kind, ref.fingerprint) is not None


def _lock_sha256() -> str:
    return hashlib.sha256(LOCK_FILE.read_bytes()).hexdigest() if LOCK_FILE.exists() else "none"
