"""What is written down of an update beside its model: the lineage for an audit, and the version's tags."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from flows.moments import moments_groups, moments_pool
from flows.pools import merge_pool
from flows.stream_state import Stream
from recall.lineage import (
    FORMAT,
    ArtifactEntry,
    BaseModelEntry,
    CodeEntry,
    DataSetEntry,
    FileDigest,
    Files,
    Lineage,
    PoolEntry,
    sha256,
)
from tasks.data_versions import code_commit
from tasks.records import Models, UpdateRecord
from tasks.refs import ArtifactRef, CheckpointRef, DatasetRef, digest, file_sha256

LOCK_FILE = Path(__file__).parent.parent / "constraints.txt"


def lineage_of(
    stream: Stream, record: UpdateRecord, earlier: list[UpdateRecord], data_sets: dict[str, DatasetRef]
) -> Lineage:
    """Everything that the merged model was made from, for an audit."""
    models, settings = record.models["recall"], stream.settings
    manifest = stream.store.manifest("experts", models.expert.fingerprint) or {}
    commit, clean = code_commit()
    return Lineage(
        format=FORMAT,
        stream=settings.stream.name,
        position=record.position,
        learning_task=record.result.learning_task,
        update_key=record.key,
        model_key=record.model_key,
        record_sha256=sha256(record.to_json()),
        previous=earlier[-1].registered if earlier else None,
        git_commit=stream.inputs.git_commit,
        code=CodeEntry(git_commit=commit, clean=clean),
        draft_because=list(stream.inputs.draft_reasons),
        base_model=BaseModelEntry(
            dvc_hash=stream.inputs.base_hash,
            fingerprint=stream.base.fingerprint,
            path=str(settings.base_folder),
            files=_folder_files(settings.base_folder, stream.inputs.base_hash),
        ),
        data_sets=[_data_set(stream, record, name, data_sets[name]) for name in _scored_on(stream, record)],
        pool=_pool(stream, models, [before.models["recall"] for before in earlier]),
        expert=_entry(stream, models.expert),
        samples=_entry(stream, models.samples) if models.samples else None,
        moments=_entry(stream, models.moments) if models.moments else None,
        representations=[_entry(stream, ref) for ref in models.representations],
        merge=settings.update.merge,
        weights=_entry(stream, models.weights) if models.weights else None,
        merged=_entry(stream, models.current),
        evaluations={name: _entry(stream, ref) for name, ref in record.evaluations.items()},
        metrics=record.metrics,
        settings=settings.model_dump(mode="json"),
        seeds={"finetuning": settings.finetuning.seed, "sampling": settings.sampling.seed},
        environment=manifest.get("environment"),
        environment_lock_sha256=_lock_sha256(),
    )


def version_tags(stream: Stream, record: UpdateRecord) -> dict[str, str]:
    """The tags of a registered version; the registry adds the update's key, the lineage's SHA-256 and the
    weights'."""
    models = record.models["recall"]
    tags = {
        "recall.git_commit": stream.inputs.git_commit or "none",
        "recall.draft": str(bool(stream.inputs.draft_reasons)).lower(),
        "recall.draft_because": "; ".join(stream.inputs.draft_reasons),
        "recall.learning_task": record.result.learning_task,
        "recall.position": str(record.position),
        "recall.merge": stream.settings.update.merge,
        "recall.settings_sha256": digest(stream.settings.model_dump(mode="json")),
        "recall.base_dvc_hash": stream.inputs.base_hash,
        "recall.base_fingerprint": stream.base.fingerprint,
        "recall.expert_fingerprint": models.expert.fingerprint,
        "recall.merged_fingerprint": models.current.fingerprint,
        "recall.environment_lock_sha256": _lock_sha256(),
    }
    return tags | {f"recall.data.{name}": stream.inputs.data_hashes[name] for name in _scored_on(stream, record)}


def _pool(stream: Stream, models: Models, past: list[Models]) -> list[PoolEntry]:
    if models.moments is None:
        pool, names = merge_pool(stream, past, models.expert)
        return [PoolEntry(name=name, fingerprint=ref.fingerprint) for name, ref in zip(names, pool, strict=True)]
    pool, names = moments_pool(stream, past, models.expert)
    groups = moments_groups(stream, past, models.moments)
    return [
        PoolEntry(name=name, fingerprint=ref.fingerprint, moments=tuple(one.fingerprint for one in group))
        for name, ref, group in zip(names, pool, groups, strict=True)
    ]


def _scored_on(stream: Stream, record: UpdateRecord) -> list[str]:
    return [*stream.seen(record.position), *stream.unseen]


def _data_set(stream: Stream, record: UpdateRecord, name: str, data_set: DatasetRef) -> DataSetEntry:
    return DataSetEntry(
        name=name,
        path=str(stream.settings.task_folder(name)),
        dvc_hash=data_set.dvc_hash,
        fingerprint=data_set.fingerprint,
        rows={split.path.stem: split.rows for split in (data_set.train, data_set.test) if split},
        trained_on=name == record.result.learning_task,
        git_commit=stream.inputs.git_commit,
        files=_entry(stream, data_set).files,
    )


def _entry(stream: Stream, ref: ArtifactRef) -> ArtifactEntry:
    manifest = stream.store.manifest(ref.kind, ref.fingerprint) or {}
    return ArtifactEntry(
        kind=ref.kind,
        fingerprint=ref.fingerprint,
        files=manifest.get("files"),
        base=ref.base.fingerprint if isinstance(ref, CheckpointRef) and ref.base else None,
        machine=manifest.get("environment"),
    )


@functools.cache
def _folder_files(folder: Path, dvc_hash: str) -> Files:
    """Read once a process for each version."""
    return {
        file.relative_to(folder).as_posix(): FileDigest(size=file.stat().st_size, sha256=file_sha256(file))
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _lock_sha256() -> str:
    return hashlib.sha256(LOCK_FILE.read_bytes()).hexdigest() if LOCK_FILE.exists() else "none"
