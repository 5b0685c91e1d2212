"""The base model and every data set at the recorded DVC hash: does it still exist, unchanged, and does Git agree?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from recall.audit_verdicts import Link, Status
from recall.errors import BadInput, Failed, OutOfReach
from recall.lineage import Files
from tasks.audit_files import digest_of
from tasks.audit_net import tried
from tasks.audit_source import Registered
from tasks.data_objects import file_at, find, locate
from tasks.data_versions import repository, tracked_by
from tasks.store import Store


def check_data(chain: Sequence[Registered], store: Store, work: Path) -> Iterator[Link]:
    """A verdict for the base model and for every version of every data set, each once, at the update that read it."""
    seen: set[tuple[str, str]] = set()
    for update in chain:
        base = update.lineage.base_model
        wanted = [Wanted("base model", "base", base.path or "", base.dvc_hash)]
        wanted += [
            Wanted(f"data set {entry.name}", "data", entry.path, entry.dvc_hash, entry.files,
                   store.folder("datasets", entry.fingerprint))
            for entry in update.lineage.data_sets
        ]  # fmt: skip
        for one in wanted:
            if (one.path, one.dvc_hash) not in seen:
                seen.add((one.path, one.dvc_hash))
                yield from tried(update.position, one.node, one.name, _links, update, one, work)


class Wanted(NamedTuple):
    """A version of the base model or of a data set; `copy` is the store's, which has `files`."""

    name: str
    node: str
    path: str
    dvc_hash: str
    files: Files | None = None
    copy: Path | None = None


def _links(update: Registered, wanted: Wanted, work: Path) -> Iterator[Link]:
    if not wanted.path:
        yield update.unrecorded(wanted.node, wanted.name, "its path")
        return
    expected = f"DVC hash {wanted.dvc_hash}"
    faults, found, away = _copy_faults(wanted), "", False
    try:
        found = _where(Path(wanted.path), wanted.dvc_hash, update.lineage.git_commit, work)
    except OutOfReach as error:
        found, away = str(error), True
    except Failed as error:
        faults.insert(0, str(error))
    status: Status = "failed" if faults else "unknown" if away else "ok"
    yield update.link(wanted.node, wanted.name, status, expected, "; ".join(faults) or found,
                      out_of_reach=away and not faults)  # fmt: skip
    yield _tracked_link(update, wanted)


def _where(path: Path, dvc_hash: str, commit: str | None, work: Path) -> str:
    """Where the version lies whole, in words.

    Raises:
        Failed: it was changed, here or where DVC brings it from.
        OutOfReach: it cannot be looked at.
    """
    try:
        whole, faults = find(path, dvc_hash)
    except BadInput as error:
        raise OutOfReach(str(error)) from error
    if faults:
        raise Failed("; ".join(faults))
    if whole:
        return f"the same in {' and '.join(whole)}"
    locate(path, dvc_hash, commit, work)
    return "the same as DVC brings it from its remote"


def _copy_faults(wanted: Wanted) -> list[str]:
    """What is wrong with the store's copy, where it has one."""
    if wanted.copy is None:
        return []
    return [
        f"in the store {wanted.copy / name} has changed"
        for name, expected in (wanted.files or {}).items()
        if (wanted.copy / name).is_file() and digest_of(wanted.copy / name) != expected
    ]


def _tracked_link(update: Registered, wanted: Wanted) -> Link:
    """Does DVC track that hash at the recorded commit?"""
    commit = update.lineage.git_commit
    status: Status = "unknown"
    if commit is None:
        found = "no Git commit was recorded"
    elif update.lineage.draft_because:
        found = f"a draft, whose commit need not have it ({'; '.join(update.lineage.draft_because)})"
    else:
        tracked = _tracked_at(commit, Path(wanted.path))
        found = f"Git commit {commit[:12]} has {tracked or 'no such data set, or is not here'}"
        status = "ok" if tracked == wanted.dvc_hash else "failed" if tracked else "unknown"
    return update.link(wanted.node, f"{wanted.name} in Git", status, f"DVC hash {wanted.dvc_hash}", found)


def _tracked_at(commit: str, path: Path) -> str | None:
    """The hash by which `<path>.dvc`, or `dvc.lock`, tracked a folder at a commit."""
    try:
        root = repository(path)
    except BadInput:
        return None
    relative = path.absolute().relative_to(root).as_posix()
    single, lock = (
        yaml.safe_load(file_at(commit, root / name) or b"") or {} for name in (f"{relative}.dvc", "dvc.lock")
    )
    output = tracked_by(relative, single, lock.get("stages", {}).values())
    return str(output["md5"]) if output else None
