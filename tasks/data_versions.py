"""What DVC and Git know of the data: the one module that talks to either.

Hashes are computed and compared here without importing DVC, which takes seconds: an MD5 a file, and for a folder the
MD5 of its JSON list of files (DVC 3). What changes DVC's state goes through its command line, its stable interface.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from recall.errors import BadInput, Failed
from recall.prepare import TAKEN_IN, taken_in

# What this code is, in its repository's root.
CODE = ("flows", "tasks", "recall", "pyproject.toml", "constraints.txt")


def main() -> int:
    """To be run before `dvc repro`, which makes edited outputs again without a word; exit code 2 where there is one."""
    try:
        check_stages()
    except (BadInput, Failed) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    return 0


def check_stages(root: Path = Path()) -> None:
    """Check that no final output of a DVC stage was edited by hand, and pull those taken in that are missing.

    What other stages read (downloads, pinned by hash) is not checked: it is never taken in. Nor is what is missing.

    Raises:
        BadInput: an output differs from what `dvc.lock` tracks.
        Failed: an output that was taken in is missing, and cannot be pulled.
    """
    root = repository(root)
    stages = _stages(root)
    read = {dependency["path"] for stage in stages for dependency in stage.get("deps", [])}
    for stage in stages:
        for path in (Path(os.path.relpath(root / out["path"])) for out in stage["outs"] if out["path"] not in read):
            if path.name in taken_in(path.parent):
                ensure_present(path)
            if path.exists():
                check_clean(path)


def tracked_hash(path: Path) -> str:
    """The hash by which `<path>.dvc`, or `dvc.lock`, tracks a file or folder (a folder's ends in `.dir`).

    Raises:
        BadInput: there is no DVC repository here, or it does not track `path`.
    """
    output = _tracked(path)
    if output is None:
        raise BadInput(
            f"{path} is not tracked by DVC; prepare it with `dvc repro`, or take it in with --take-in {path.name}"
        )
    return str(output["md5"])


def recorded_params(path: Path) -> dict[str, Any]:
    """The parameters that the DVC stage which made `path` read, as `dvc.lock` holds them; empty for a `.dvc` file."""
    root = repository(path)
    for stage in _stages(root):
        if any(out["path"] == _relative(root, path) for out in stage["outs"]):
            return dict(stage.get("params", {}).get("params.yaml", {}))
    return {}


def working_hash(path: Path) -> str:
    """The hash that DVC would give to the working copy of a file or folder.

    Raises:
        BadInput: there is no such file or folder.
    """
    if path.is_file():
        return file_md5(path)
    if not path.is_dir():
        raise BadInput(f"{path} does not exist; bring it with `dvc pull` or make it with `dvc repro`")
    return _listing_hash(_files(path))


def check_clean(path: Path) -> str:
    """Check that the working copy is what DVC tracks, and return its hash.

    Raises:
        BadInput: it differs (the changed files are named), is missing or is not tracked.
    """
    check_links(path)
    tracked, found = tracked_hash(path), working_hash(path)
    if tracked != found:
        raise BadInput(
            f"{path} differs from what DVC tracks{difference(path, tracked)}; run again with --take-in {path.name} "
            f"to take it in as a new version, or undo the change with `dvc checkout --force {path}`"
        )
    return tracked


def check_links(path: Path) -> None:
    """Check that a data set is made of files that lie in it; links into DVC's cache (`cache.type symlink`) may stand.

    Raises:
        BadInput: a link leads elsewhere; its target could be any file of this machine, and would be copied.
    """
    own, cache = path.resolve(), cache_folder(path)
    for file in path.rglob("*"):
        if file.is_symlink() and not any(file.resolve().is_relative_to(folder) for folder in (own, cache)):
            raise BadInput(f"{file} is a link that leads out of {path}; put the file itself there")


def take_in(path: Path) -> str:
    """Record the working copy as the new tracked version, push it to the default remote, and return its hash.

    A stage's output is put down in `taken_in.txt` beside it, so that its stage leaves it as it is from now on (DVC
    cannot freeze the stages that a foreach makes).

    Raises:
        BadInput: there is no such file or folder, or no DVC repository.
        Failed: DVC refuses, or the remote cannot be reached.
    """
    check_links(path)
    root, found = repository(path), working_hash(path)
    target = _relative(root, path)
    stages = [stage for stage in _stages(root) if target in [out["path"] for out in stage["outs"]]]
    if stages:
        for dependency in stages[0].get("deps", []):
            ensure_present(root / dependency["path"])  # `dvc commit` hashes them too
        dvc(root, "commit", "--force", target)
        _hold(path)
    else:
        dvc(root, "add", target)
    if remote_url(root) is not None:
        dvc(root, "push", target)
    return found


def ensure_present(path: Path) -> None:
    """Pull what is tracked and missing.

    Raises:
        BadInput: it is not tracked, and so cannot be pulled.
        Failed: the remote does not have it or cannot be reached.
    """
    if not path.exists():
        tracked_hash(path)
        root = repository(path)
        dvc(root, "pull", _relative(root, path))


def unpushed(paths: list[Path]) -> list[Path]:
    """Those of `paths` whose tracked version the default remote lacks, wholly or in part; all if there is no remote."""
    url = remote_url(paths[0]) if paths else None
    if url is None:
        return list(paths)
    if "://" not in url:
        return [path for path in paths if not _holds(url, tracked_hash(path))]
    # Seconds a call: one for all, and one each only where something is missing.
    missing = _cloud_status(paths)
    return [path for path in paths if _cloud_status([path])] if missing else []


def _cloud_status(paths: list[Path]) -> dict[str, str]:
    root = repository(paths[0])
    found: dict[str, str] = json.loads(dvc(root, "status", "--cloud", "--json", *(_relative(root, p) for p in paths)))
    return found


def _holds(url: str, tracked: str) -> bool:
    listing = object_file(Path(url), tracked)
    if not tracked.endswith(".dir") or not listing.is_file():
        return listing.is_file()
    return all(object_file(Path(url), entry["md5"]).is_file() for entry in json.loads(listing.read_bytes()))


def remote_url(path: Path = Path()) -> str | None:
    """The default remote's URL (an absolute path for a local one), or None where the repository names none."""
    root = repository(path)
    url = None
    config = _config(root)
    name = config.get("core", "remote", fallback=None)
    if name is not None:
        url = config.get(f"'remote \"{name}\"'", "url", fallback=None)
    return url if url is None or "://" in url else str((root / ".dvc" / url).resolve())


def cache_folder(path: Path = Path()) -> Path:
    """Where DVC keeps its objects on this machine."""
    root = repository(path)
    return (root / ".dvc" / _config(root).get("cache", "dir", fallback="cache")).resolve()


def _config(root: Path) -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)  # DVC takes a % as it stands
    config.read([root / ".dvc" / name for name in ("config", "config.local")], encoding="utf-8")
    return config


def git_commit(path: Path = Path(), within: Sequence[str] = ()) -> tuple[str | None, bool]:
    """(commit of the Git repository around `path` or None, is its tree clean?); files that Git ignores do not count.

    `within`: files and folders in `path`; what else changed is then of no matter.
    """
    commit = git(path, "rev-parse", "--verify", "--quiet", "HEAD")
    changes = git(path, "status", "--porcelain", "--", *within)
    return (commit or None), changes == ""


def code_commit() -> tuple[str | None, bool]:
    """As `git_commit`, of this code; (None, False) where Git does not track it."""
    here = Path(__file__)
    if git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None, False
    return git_commit(here.parent.parent, within=CODE)


def repository(path: Path) -> Path:
    """The root of the DVC repository around `path`.

    Raises:
        BadInput: there is none.
    """
    start = path.absolute()
    for folder in (start, *start.parents):
        if (folder / ".dvc").is_dir():
            return folder
    raise BadInput(
        f"{path} is in no DVC repository; run `git init && dvc init` where params.yaml is, or clone the project"
    )


def _tracked(path: Path) -> dict[str, Any] | None:
    root = repository(path)
    file = root / f"{_relative(root, path)}.dvc"
    return tracked_by(_relative(root, path), _yaml(file) if file.is_file() else {}, _stages(root))


def tracked_by(relative: str, single: dict[str, Any], stages: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The entry that tracks a path, in what its `.dvc` file holds, or else in the stages of `dvc.lock`."""
    outs = [out for stage in stages for out in stage.get("outs", []) if out["path"] == relative]
    return next((dict(out) for out in single.get("outs") or outs if "md5" in out), None)


def _hold(path: Path) -> None:
    file = path.parent / TAKEN_IN
    partial = file.with_name(f".{TAKEN_IN}.partial")
    names = sorted({*taken_in(path.parent), path.name})
    partial.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    os.replace(partial, file)


def _stages(root: Path) -> list[dict[str, Any]]:
    """The stages in `dvc.lock`, without the outputs that a `.dvc` file tracks now: DVC keeps there what `dvc.yaml` no
    longer has."""
    file = root / "dvc.lock"
    stages: dict[str, Any] = _yaml(file).get("stages", {}) if file.is_file() else {}
    return [
        stage | {"outs": [out for out in stage.get("outs", []) if not (root / f"{out['path']}.dvc").is_file()]}
        for stage in stages.values()
    ]


def _yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise BadInput(
            f"{file} is not YAML (an unresolved merge?); restore it with `git checkout {file.name}`"
        ) from error
    return values if isinstance(values, dict) else {}


def _relative(root: Path, path: Path) -> str:
    return PurePosixPath(path.absolute().relative_to(root)).as_posix()


def _files(folder: Path) -> dict[str, str]:
    """Relative path to MD5 of every file below a folder."""
    return {file.relative_to(folder).as_posix(): file_md5(file) for file in folder.rglob("*") if file.is_file()}


def file_md5(file: Path) -> str:
    """As DVC has it."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _listing_hash(files: dict[str, str]) -> str:
    entries = [{"md5": md5, "relpath": relative} for relative, md5 in sorted(files.items())]
    listing = json.dumps(entries, sort_keys=True).encode()
    return hashlib.md5(listing, usedforsecurity=False).hexdigest() + ".dir"


def difference(path: Path, tracked: str) -> str:
    """The changed files, where DVC's local cache still has the tracked list of files."""
    listing = object_file(cache_folder(path), tracked)
    if not tracked.endswith(".dir") or not path.is_dir() or not listing.is_file():
        return ""
    before = {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_bytes())}
    now = _files(path)
    changes = [f"{name} (new)" for name in sorted(now.keys() - before.keys())]
    changes += [f"{name} (gone)" for name in sorted(before.keys() - now.keys())]
    changes += [f"{name} (changed)" for name in sorted(now.keys() & before.keys()) if now[name] != before[name]]
    return ": " + ", ".join(changes)


def object_file(store: Path, md5: str) -> Path:
    """Where DVC 3 keeps an object, in its cache as in a remote."""
    return store / "files" / "md5" / md5[:2] / md5[2:]


def dvc(root: Path, *arguments: str) -> str:
    """What a DVC command prints.

    Raises:
        Failed: it fails; the message has DVC's reason.
    """
    command = [sys.executable, "-m", "dvc", "--cd", str(root), "--wait-for-lock", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = " ".join(line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR"))
        raise Failed(f"`dvc {' '.join(arguments)}` failed: {reason or done.stderr.strip()[-300:]}")
    return done.stdout


def git(path: Path, *arguments: str) -> str | None:
    """What a Git command prints, or None where it fails (no Git, no repository, no commit)."""
    folder = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
