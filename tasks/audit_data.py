"""The base model and every data set at the recorded DVC hash: does it still exist, unchanged, and does Git agree?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from recall.audit_verdicts import BEFORE, Link, Status
from recall.errors import BadInput, Failed
from recall.lineage import Files
from tasks.audit_files import digest_of
from tasks.audit_source import Registered
from tasks.data_objects import file_at, find, locate
from tasks.data_versions import repository
from tasks.store import Store


def check_data(chain: Sequence[Registered], store: Store, work: Path) -> Iterator[Link]:
    """A verdict for the base model and for every version of every data set, each once, at the update that read it."""
    seen: set[tuple[str, str]] = set()
    for update in chain:
        lineage = update.lineage
        base = lineage.base_model
        wanted = [("base model", "base", base.path or "", base.dvc_hash, base.files, None)]
        wanted += [
            (f"data set {entry.name}", "data", entry.path, entry.dvc_hash, entry.files,
             store.folder("datasets", entry.fingerprint))
            for entry in lineage.data_sets
        ]  # fmt: skip
        for name, node, path, dvc_hash, files, copy in wanted:
            if (path, dvc_hash) in seen:
                continue
            seen.add((path, dvc_hash))
            if not path:
                yield Link(update=update.position, node=node, name=name, status="unknown", expected="its path",
                           found=BEFORE)  # fmt: skip
                continue
            status, found = _whole(Path(path), dvc_hash, lineage.git_commit, work)
            faults = _copy_faults(copy, files) if copy else []
            if faults:
                status, found = "failed", "; ".join([*([found] if status == "failed" else []), *faults])
            yield Link(update=update.position, node=node, name=name, status=status,
                       expected=f"DVC hash {dvc_hash}", found=found)  # fmt: skip
            yield _tracked_link(update, node, name, Path(path), dvc_hash)


def _whole(path: Path, dvc_hash: str, commit: str | None, work: Path) -> tuple[Status, str]:
    try:
        whole, faults = find(path, dvc_hash)
    except BadInput as error:
        return "unknown", str(error)
    if faults:
        return "failed", "; ".join(faults)
    if whole:
        return "ok", f"the same in {' and '.join(whole)}"
    try:
        locate(path, dvc_hash, commit, work)
    except Failed as error:
        return "unknown", f"it lies nowhere here, and DVC cannot bring it: {error}"
    return "ok", "the same as DVC brings it from its remote"


def _copy_faults(folder: Path, files: Files | None) -> list[str]:
    """What is wrong with the store's copy, where it has one."""
    return [
        f"in the store {folder / name} has changed"
        for name, expected in (files or {}).items()
        if (folder / name).is_file() and digest_of(folder / name) != expected
    ]


def _tracked_link(update: Registered, node: str, name: str, path: Path, dvc_hash: str) -> Link:
    """Does DVC track that hash at the recorded commit?"""
    commit = update.lineage.git_commit
    status: Status = "unknown"
    if commit is None:
        found = "no Git commit was recorded"
    elif update.lineage.draft_because:
        found = f"a draft, whose commit need not have it ({'; '.join(update.lineage.draft_because)})"
    else:
        tracked = _tracked_at(commit, path)
        found = f"Git commit {commit[:12]} has {tracked or 'no such data set, or is not here'}"
        status = "ok" if tracked == dvc_hash else "failed" if tracked else "unknown"
    return Link(update=update.position, node=node, name=f"{name} in Git", status=status,
                expected=f"DVC hash {dvc_hash}", found=found)  # fmt: skip


def _tracked_at(commit: str, path: Path) -> str | None:
    """The hash by which `dvc.lock`, or `<path>.dvc`, tracked a folder at a commit."""
    try:
        root = repository(path)
    except BadInput:
        return None
    relative = path.absolute().relative_to(root).as_posix()
    lock = yaml.safe_load(file_at(commit, root / "dvc.lock") or b"") or {}
    outs = [out for stage in lock.get("stages", {}).values() for out in stage.get("outs", [])]
    found = [out["md5"] for out in outs if out["path"] == relative and "md5" in out]
    if not found:
        single = yaml.safe_load(file_at(commit, root / f"{relative}.dvc") or b"") or {}
        found = [out["md5"] for out in single.get("outs", [])]
    return str(found[0]) if found else None
