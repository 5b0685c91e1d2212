"""A version of a data set by its DVC hash alone: found, checked byte by byte and brought from wherever it lies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from recall.errors import BadInput, Failed, OutOfReach, one_line
from recall.lineage import inside
from tasks.data_versions import (
    cache_folder,
    difference,
    dvc,
    file_md5,
    git,
    object_file,
    remote_url,
    repository,
    tracked_hash,
    working_hash,
)


def find(path: Path, dvc_hash: str) -> tuple[list[str], list[str]]:
    """(where the version lies whole, what is wrong elsewhere), of the working copy, DVC's cache and a local remote.

    A working copy at a version that DVC tracks now instead, and a place that has nothing of it, are neither.
    """
    whole, faults = [], []
    places = {"the working copy": _working_copy(path, dvc_hash)}
    places |= {where: _damage(store, dvc_hash) for where, store in _stores(path).items()}
    for where, damage in places.items():
        if damage == "":
            whole.append(where)
        elif damage is not None:
            faults.append(f"in {where} {damage}")
    return whole, faults


def locate(path: Path, dvc_hash: str, commit: str | None, work: Path) -> Path:
    """A folder that holds the version, checked, to be read only: the working copy, or a copy made in `work`.

    Args:
        commit: where DVC tracks it, for the case that only a remote which DVC alone can reach has it.

    Raises:
        Failed: what DVC brings is another version.
        OutOfReach: it lies nowhere whole, and DVC cannot bring it.
    """
    out = work / dvc_hash
    if _working_copy(path, dvc_hash) == "":
        return path
    if out.exists():
        return out
    unreached = work / f"{dvc_hash}.unreached"
    if unreached.exists():  # each question to a remote that is down takes seconds
        raise OutOfReach(unreached.read_text(encoding="utf-8"))
    partial = work / f"{dvc_hash}.partial"
    _remove(partial)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        _bring(path, dvc_hash, commit, partial)
        # Whatever brought it: only what was checked gets the name by which it is found again.
        if (found := working_hash(partial)) != dvc_hash:
            raise Failed(f"{path} as DVC brings it has hash {found}, not the recorded {dvc_hash}")
        os.replace(partial, out)
    except OutOfReach as error:
        unreached.write_text(str(error), encoding="utf-8")
        raise
    finally:
        _remove(partial)
    return out


def _bring(path: Path, dvc_hash: str, commit: str | None, out: Path) -> None:
    try:
        for store in _stores(path).values():
            if _damage(store, dvc_hash) == "":
                _assemble(store, dvc_hash, out)
                return
        root, revision = repository(path), ["--rev", commit] if commit else []
        relative = path.absolute().relative_to(root).as_posix()
        dvc(root, "get", str(root), relative, *revision, "--out", str(out.absolute()))
    except (BadInput, Failed, OSError) as error:
        raise OutOfReach(f"{path} cannot be brought: {one_line(error)}") from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_at(commit: str, path: Path) -> bytes | None:
    """A file's content at a Git commit; None where the commit, or the file in it, is missing."""
    # The file's own folder may be gone from today's checkout, so Git is asked in the repository's root.
    root = git(path, "rev-parse", "--show-toplevel")
    if root is None:
        return None
    name = path.absolute().resolve().relative_to(Path(root).resolve()).as_posix()
    shown = subprocess.run(["git", "show", f"{commit}:{name}"], cwd=root, capture_output=True)
    return shown.stdout if shown.returncode == 0 else None


def _stores(path: Path) -> dict[str, Path]:
    url = remote_url(path)
    local = {} if url is None or "://" in url else {"the DVC remote": Path(url)}
    return {"DVC's cache": cache_folder(path)} | local


def _working_copy(path: Path, dvc_hash: str) -> str | None:
    """ "" where it is that version, None where it is not meant to be, else what is wrong."""
    if not path.exists():
        return None
    if working_hash(path) == dvc_hash:
        return ""
    try:
        tracked = tracked_hash(path)
    except BadInput:
        return None
    return f"{path} was changed{difference(path, dvc_hash)}" if tracked == dvc_hash else None


def _damage(store: Path, dvc_hash: str) -> str | None:
    """ "" where the store has every byte of that version, None where it has nothing of it, else what is wrong."""
    listing = object_file(store, dvc_hash)
    if not listing.is_file():
        return None
    if file_md5(listing) != dvc_hash.removesuffix(".dir"):
        return f"{listing} has changed: its MD5 is not its name"
    if not dvc_hash.endswith(".dir"):
        return ""
    for entry in json.loads(listing.read_bytes()):
        file = object_file(store, entry["md5"])
        if not file.is_file():
            return f"{entry['relpath']} ({file}) is missing"
        if file_md5(file) != entry["md5"]:
            return f"{entry['relpath']} ({file}) has changed: its MD5 is not its name"
    return ""


def _assemble(store: Path, dvc_hash: str, out: Path) -> None:
    listing = object_file(store, dvc_hash)
    if not dvc_hash.endswith(".dir"):
        shutil.copyfile(listing, out)
        return
    for entry in json.loads(listing.read_bytes()):
        target = out / inside(entry["relpath"])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(object_file(store, entry["md5"]), target)
