"""Do the registered version's tags say the same as its lineage?"""

from __future__ import annotations

from collections.abc import Iterator

from recall.audit_verdicts import Link, Status
from recall.lineage import Lineage
from tasks import registry
from tasks.audit_source import Registered, run_lineage
from tasks.refs import digest, weights_sha256


def check_tags(update: Registered) -> Iterator[Link]:
    """One verdict a version: every tag that repeats the lineage.

    Another run may have made the same version again: then its tags are that run's, and compared with that lineage.
    """
    name = f"tags of version {update.number}"
    if update.version is None:
        found = "it was deleted; its run is still there"
        yield update.link("lineage", name, "unknown", f"version {update.number}", found)
        return
    lineage, lineage_sha256, whose, wrong = update.lineage, update.lineage_sha256, "the lineage", []
    named = update.tags.get(registry.RUN, "")
    if named != update.run_id:
        whose = f"the lineage of run {named}"
        lineage, lineage_sha256 = run_lineage(named, f"lineage.json of run {named}")
        wrong = _other_model(update.lineage, lineage)
    expected = _expected(lineage) | {"recall.position": str(update.position)}
    if lineage.format > 1:
        expected[registry.LINEAGE] = lineage_sha256
    wrong += _contradictions(lineage)
    wrong += [
        f"{tag} {update.tags.get(tag, 'missing')} (lineage: {value})"
        for tag, value in expected.items()
        if value is not None and update.tags.get(tag) != value
    ]
    status: Status = "failed" if wrong else "ok"
    yield update.link("lineage", name, status, f"what {whose} says", "; ".join(wrong) or "the same")


def _contradictions(lineage: Lineage) -> list[str]:
    """What a lineage says of its merge must be what its settings say, and by moments every model must name its own."""
    if lineage.merge is None:
        return []
    set_to = (lineage.settings.get("update") or {}).get("merge", "recall")
    wrong = [] if set_to == lineage.merge else [f"merge {lineage.merge} (settings: {set_to})"]
    if lineage.merge == "recall_moments" and lineage.previous:
        wrong += [f"no moments of {entry.name} in the pool" for entry in lineage.pool or [] if not entry.moments]
    return wrong


def _expected(lineage: Lineage) -> dict[str, str | None]:
    """Every tag that repeats a lineage; None where an old one does not say."""
    files = lineage.merged.files
    sha256s = {name: entry.sha256 for name, entry in (files or {}).items()}
    return {
        registry.KEY: lineage.update_key,
        registry.MODEL_KEY: lineage.model_key,
        "recall.git_commit": lineage.git_commit or "none",
        "recall.draft": str(bool(lineage.draft_because)).lower(),
        "recall.learning_task": lineage.learning_task,
        "recall.merge": lineage.merge,
        "recall.settings_sha256": digest(lineage.settings),
        "recall.base_dvc_hash": lineage.base_model.dvc_hash,
        "recall.expert_fingerprint": lineage.expert.fingerprint,
        "recall.merged_fingerprint": lineage.merged.fingerprint,
        "recall.environment_lock_sha256": lineage.environment_lock_sha256,
        registry.SHA256: None if files is None else weights_sha256(sha256s),
        **{f"recall.data.{entry.name}": entry.dvc_hash for entry in lineage.data_sets},
    }


def _other_model(own: Lineage, later: Lineage) -> list[str]:
    """In what another lineage is not that of the same model."""
    pairs = {"model key": (own.model_key, later.model_key), "position": (own.position, later.position)}
    return [
        f"run of another model: {what} {found}, not {wanted}"
        for what, (wanted, found) in pairs.items()
        if wanted is not None and wanted != found
    ]
