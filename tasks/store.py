"""The artifact store: content-addressed folders, published whole or not at all, verified before they are used again."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from recall.errors import BadInput, Failed
from tasks.refs import digest, file_sha256

MANIFEST = "manifest.json"
ABANDONED_AFTER_S = 7 * 24 * 3600
NOT_WRITABLE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class FileEntry(BaseModel):
    """A file as the manifest has it; `size` in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: str


class Manifest(BaseModel):
    """The part of a manifest that says whether the artifact is whole.

    `sha256` covers the files, `manifest_sha256` all that the manifest says beside itself (None in old ones).
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str
    fingerprint: str
    files: dict[str, FileEntry]
    sha256: str
    manifest_sha256: str | None = None

    @property
    def is_whole(self) -> bool:
        """Is the manifest what `seal` wrote?"""
        said = digest(self.model_dump(mode="json", exclude={"manifest_sha256"}))
        return self.sha256 == _content_digest(self.files) and self.manifest_sha256 in {said, None}


class Store(BaseModel):
    """`<root>/<kind>/<fingerprint>/` with a manifest each. `remote`: see `tasks.remote`."""

    model_config = ConfigDict(frozen=True)

    root: Path
    remote: str | None = None

    def folder(self, kind: str, fingerprint: str) -> Path:
        """Where an artifact lies, or would."""
        return self.root / kind / fingerprint

    def work(self, fingerprint: str) -> Path:
        """Where an unfinished stage keeps what it can resume from; gone once the artifact is published."""
        return self.root / "work" / fingerprint

    def check_writable(self) -> None:
        """Raise BadInput unless files can be made in the store."""
        probe = self.root / f".probe-{os.getpid()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise BadInput(
                f"store {self.root} cannot be written ({error.strerror}); choose another with --set store=DIR"
            ) from error

    def make_work(self, fingerprint: str) -> Path:
        """The folder `work`, made where it is missing.

        Raises:
            Failed: as `publishing`.
        """
        work = self.work(fingerprint)
        with self._writing("work"):
            work.mkdir(parents=True, exist_ok=True)
        return work

    def clear_abandoned(self) -> None:
        """Remove what killed stages left that nobody came back for in a week: after a change of code or settings the
        same stage has another fingerprint, and works elsewhere. What is in use, or cannot be removed, stays."""
        works = {folder: folder.name.removeprefix("restore-") for folder in (self.root / "work").glob("*")}
        half = {folder: folder.name[1:].rpartition(".")[0] for folder in self.root.glob("*/.*.*") if folder.is_dir()}
        for folder, fingerprint in (works | half).items():
            with suppress(OSError, Failed), self.lock(fingerprint, wait=False):
                newest = max(path.lstat().st_mtime for path in [folder, *folder.rglob("*")])
                if time.time() - newest > ABANDONED_AFTER_S:
                    shutil.rmtree(folder)

    @contextmanager
    def lock(self, fingerprint: str, *, wait: bool = True) -> Iterator[None]:
        """One process at a time makes an artifact; the lock dies with the process that holds it.

        Raises:
            Failed: as `publishing`.
            filelock.Timeout: another holds it, and this one is not to `wait`.
        """
        file = self.root / "locks" / f"{fingerprint}.lock"
        with self._writing("locks"):
            file.parent.mkdir(parents=True, exist_ok=True)
            held = FileLock(file)
            held.acquire(blocking=wait)
        try:
            yield
        finally:
            held.release()

    def manifest(self, kind: str, fingerprint: str) -> dict[str, Any] | None:
        """The manifest of a published artifact, or None where there is none that can be read."""
        try:
            found: dict[str, Any] = json.loads((self.folder(kind, fingerprint) / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found

    def damage(self, kind: str, fingerprint: str) -> str | None:
        """What is wrong with a published artifact, in words; None if its files are all there, and those recorded."""
        folder = self.folder(kind, fingerprint)
        try:
            manifest = Manifest.model_validate(self.manifest(kind, fingerprint))
        except ValidationError:
            return f"{folder / MANIFEST} is missing or no manifest"
        if (manifest.kind, manifest.fingerprint) != (kind, fingerprint):
            return f"{folder / MANIFEST} is that of another artifact"
        if not manifest.is_whole:
            return f"{folder / MANIFEST} has changed: its own SHA-256 is not the recorded one"
        return files_damage(folder, manifest)

    @contextmanager
    def publishing(self, kind: str, fingerprint: str) -> Iterator[Path]:
        """Yield a temporary folder beside the target; `seal` it, and it becomes the artifact by one rename.

        What an earlier process left half-made is removed first; hold `lock` around this.

        Raises:
            Failed: the disk is full, or the store cannot be written.
        """
        target = self.folder(kind, fingerprint)
        with self._writing(kind):
            target.parent.mkdir(parents=True, exist_ok=True)
            for left_over in target.parent.glob(f".{fingerprint}.*"):
                shutil.rmtree(left_over)
            temporary = target.parent / f".{fingerprint}.making"
            temporary.mkdir()
            try:
                yield temporary
                if target.exists():
                    os.rename(target, target.parent / f".{fingerprint}.damaged")
                os.rename(temporary, target)
                _fsync_folder(target.parent)
            finally:
                for left_over in target.parent.glob(f".{fingerprint}.*"):
                    shutil.rmtree(left_over, ignore_errors=True)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
            raise Failed(f"{what} cannot be written to the store {self.root}: {error.strerror}") from error


def seal(folder: Path, manifest: dict[str, Any]) -> str:
    """Write the manifest with every file's size and SHA-256, flush all to disk, return the digest of that list."""
    files = {
        str(file.relative_to(folder)): {"size": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    content = _content_digest({name: FileEntry.model_validate(entry) for name, entry in files.items()})
    whole = manifest | {"files": files, "sha256": content}
    whole["manifest_sha256"] = digest(whole)
    (folder / MANIFEST).write_text(json.dumps(whole, indent=2, sort_keys=True), encoding="utf-8")
    flush(folder)
    return content


def flush(folder: Path) -> None:
    """Bring every file of a folder to the disk itself."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    _fsync_folder(folder)


def files_damage(folder: Path, manifest: Manifest) -> str | None:
    """What is wrong with the files that a manifest names, in words; None if they are all there as recorded."""
    broken = (_file_damage(folder, name, entry) for name, entry in manifest.files.items())
    return next(filter(None, broken), None)


def _file_damage(folder: Path, name: str, expected: FileEntry) -> str | None:
    file = folder / name
    if not _inside(folder, file) or not file.is_file():
        return f"{file} is missing"
    if file.stat().st_size != expected.size:
        return f"{file} has {file.stat().st_size} bytes, not {expected.size}"
    if _sha256_once(file) != expected.sha256:
        return f"{file} has changed: its SHA-256 is not the recorded one"
    return None


def _content_digest(files: dict[str, FileEntry]) -> str:
    return digest({name: entry.sha256 for name, entry in files.items()})


def _inside(folder: Path, file: Path) -> bool:
    """Does the file lie in the folder, links followed?"""
    return file.resolve().is_relative_to(folder.resolve())


def _sha256_once(file: Path) -> str:
    """A file's SHA-256; bytes that this process has hashed and nobody has written since are not read again."""
    state = file.stat()
    return _sha256_of(file, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@functools.lru_cache(maxsize=10_000)
def _sha256_of(file: Path, *_state: int) -> str:
    return file_sha256(file)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
