"""Every file that a lineage names, compared with its SHA-256: in MLflow, and in the store where it lies there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from recall.audit_verdicts import Link, Status
from recall.lineage import ArtifactEntry, FileDigest
from tasks.audit_fetch import Fetched
from tasks.refs import file_sha256
from tasks.store import Store


def artifacts(update: Fetched) -> Iterator[tuple[str, ArtifactEntry, dict[str, Path]]]:
    """(node, artifact, where MLflow has each of its files) of all that one update made."""
    lineage, folder = update.lineage, update.folder
    yield "expert", lineage.expert, _inside(lineage.expert, folder / "expert")
    if lineage.samples:
        yield "samples", lineage.samples, _inside(lineage.samples, folder)
    if lineage.moments:
        yield "moments", lineage.moments, _inside(lineage.moments, folder / "moments")
    for number, entry in enumerate(lineage.representations or []):
        yield "representations", entry, _inside(entry, folder / "representations" / str(number))
    if lineage.weights:
        yield "weights", lineage.weights, _inside(lineage.weights, folder)
    yield "merged", lineage.merged, _inside(lineage.merged, update.model)
    for name, entry in (lineage.evaluations or {}).items():
        yield "scores", entry, {"evaluation.json": folder / "scores" / f"{name}.json"}


def check_files(update: Fetched, store: Store) -> Iterator[Link]:
    """A verdict for each file of each artifact, and for `update.json`."""
    for node, entry, places in artifacts(update):
        if entry.files is None:
            yield update.unrecorded(node, node, "the files' SHA-256")
            continue
        for name, expected in entry.files.items():
            if name not in places:
                yield update.link(node, name, "failed", f"a file of {node}", "the registry keeps no such file")
                continue
            there = {"MLflow": places[name], "the store": store.folder(entry.kind, entry.fingerprint) / name}
            yield _file_link(update, node, _shown(update, places[name]), expected, there)
    if update.lineage.merge == "recall_moments" and update.lineage.moments is None:
        yield update.unrecorded("moments", "moments", "the files' SHA-256")
    yield _record_link(update)


def digest_of(path: Path) -> FileDigest:
    """Size and SHA-256 of a file as it is now."""
    return FileDigest(size=path.stat().st_size, sha256=file_sha256(path))


def _shown(update: Fetched, path: Path) -> str:
    """A file's path as people find it in MLflow."""
    root = update.registered if path.is_relative_to(update.registered) else update.folder
    return path.relative_to(root).as_posix()


def _inside(entry: ArtifactEntry, folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in entry.files or {}}


def _file_link(update: Fetched, node: str, shown: str, expected: FileDigest, places: dict[str, Path]) -> Link:
    """MLflow must have the file, the store may; what is there must be what was recorded."""
    wanted, faults = f"SHA-256 {expected.sha256}", []
    if not places["MLflow"].is_file():
        faults.append("MLflow does not have it")
    good = []
    for where, path in places.items():
        if path.is_file():
            found = digest_of(path)
            if found == expected:
                good.append(where)
            else:
                size = f" ({found.size} bytes, not {expected.size})" if found.size != expected.size else ""
                faults.append(f"in {where} SHA-256 {found.sha256}{size}")
    if faults:
        return update.link(node, shown, "failed", wanted, "; ".join(faults))
    return update.link(node, shown, "ok", wanted, f"the same in {' and '.join(good)}")


def _record_link(update: Fetched) -> Link:
    expected = update.lineage.record_sha256
    if expected is None:
        return update.unrecorded("lineage", "update.json", "its SHA-256")
    file = update.folder / "update.json"
    found = file_sha256(file) if file.is_file() else "no such file in MLflow"
    status: Status = "ok" if found == expected else "failed"
    return update.link("lineage", "update.json", status, f"SHA-256 {expected}", f"SHA-256 {found}")
