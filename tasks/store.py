"""The artifact store: content-addressed folders, published whole or not at all, verified before they are used again."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict

from recall.errors import BadInput, Failed
from tasks.refs import digest, file_sha256

MANIFEST = "manifest.json"
NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class Store(BaseModel):
    """`<root>/<kind>/<fingerprint>/` with a manifest each; see DESIGN 4. `remote`: see `tasks.remote`."""

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

    @contextmanager
    def lock(self, fingerprint: str) -> Iterator[None]:
        """One process at a time makes an artifact; the lock dies with the process that holds it."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{fingerprint}.lock"):
            yield

    def manifest(self, kind: str, fingerprint: str) -> dict[str, Any] | None:
        """The manifest of a published artifact, or None where there is none that can be read."""
        try:
            found: dict[str, Any] = json.loads((self.folder(kind, fingerprint) / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found

    def damage(self, kind: str, fingerprint: str, *, hashes: bool = False) -> str | None:
        """What is wrong with a published artifact, in words; None if all its files are there and of the right size.

        Args:
            hashes: read every byte and compare SHA-256 too.
        """
        folder = self.folder(kind, fingerprint)
        manifest = self.manifest(kind, fingerprint)
        if manifest is None:
            return f"{folder / MANIFEST} is missing or no JSON"
        for name, expected in manifest["files"].items():
            file = folder / name
            if not file.is_file():
                return f"{file} is missing"
            if file.stat().st_size != expected["size"]:
                return f"{file} has {file.stat().st_size} bytes, not {expected['size']}"
            if hashes and file_sha256(file) != expected["sha256"]:
                return f"{file} has changed: its SHA-256 is not the recorded one"
        return None

    @contextmanager
    def publishing(self, kind: str, fingerprint: str) -> Iterator[Path]:
        """Yield a temporary folder beside the target; `seal` it, and it becomes the artifact by one rename.

        What an earlier process left half-made is removed first; hold `lock` around this.

        Raises:
            Failed: the disk is full, or the store cannot be written.
        """
        target = self.folder(kind, fingerprint)
        try:
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
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
            raise Failed(f"{kind} cannot be written to the store {self.root}: {error.strerror}") from error


def seal(folder: Path, manifest: dict[str, Any]) -> str:
    """Write the manifest with every file's size and SHA-256, flush all to disk, return the digest of that list."""
    files = {
        str(file.relative_to(folder)): {"size": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    content = digest({name: entry["sha256"] for name, entry in files.items()})
    (folder / MANIFEST).write_text(json.dumps(manifest | {"files": files, "sha256": content}, indent=2, sort_keys=True))
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    _fsync_folder(folder)
    return content


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
