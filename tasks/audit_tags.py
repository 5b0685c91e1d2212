"""Do the registered version's tags say the same as its lineage?"""

from __future__ import annotations

from collections.abc import Iterator

from recall.audit_verdicts import Link
from tasks import registry
from tasks.audit_source import Registered
from tasks.refs import digest


def check_tags(update: Registered) -> Iterator[Link]:
    """One verdict a version: every tag that repeats the lineage."""
    if update.version is None:
        yield _link(update, "unknown", f"version {update.number}", "it was deleted; its run is still there")
        return
    if update.tags.get(registry.RUN) != update.run_id:
        # A later run made the same version again; that run's lineage is another, as its tags are.
        yield _link(update, "ok", "tags of this run or a later one", f"those of run {update.tags.get(registry.RUN)}")
        return
    lineage, tags = update.lineage, update.tags
    expected = {
        registry.KEY: lineage.update_key,
        registry.MODEL_KEY: lineage.model_key,
        "recall.git_commit": lineage.git_commit or "none",
        "recall.draft": str(bool(lineage.draft_because)).lower(),
        "recall.learning_task": lineage.learning_task,
        "recall.position": str(update.position),
        "recall.settings_sha256": digest(lineage.settings),
        "recall.base_dvc_hash": lineage.base_model.dvc_hash,
        "recall.expert_fingerprint": lineage.expert.fingerprint,
        "recall.merged_fingerprint": lineage.merged.fingerprint,
        "recall.environment_lock_sha256": lineage.environment_lock_sha256,
        registry.SHA256: _weights_sha256(update),
        **{f"recall.data.{entry.name}": entry.dvc_hash for entry in lineage.data_sets},
    }
    wrong = [
        f"{name} {tags.get(name, 'missing')} (lineage: {value})"
        for name, value in expected.items()
        if value is not None and tags.get(name) != value
    ]
    yield _link(update, "failed" if wrong else "ok", "what the lineage says", "; ".join(wrong) or "the same")


def _weights_sha256(update: Registered) -> str | None:
    files = update.lineage.merged.files
    if files is None:
        return None
    shards = {name: entry.sha256 for name, entry in files.items() if name.endswith(".safetensors")}
    return next(iter(shards.values())) if len(shards) == 1 else digest(shards)


def _link(update: Registered, status: str, expected: str, found: str) -> Link:
    fields = {"update": update.position, "node": "lineage", "name": f"tags of version {update.number}"}
    return Link.model_validate(fields | {"status": status, "expected": expected, "found": found})
