"""A second tier behind the store, in any file system that fsspec reaches: another machine need not make it all again.

`<remote>/<kind>/<fingerprint>/<content>/<file>`, and `manifest.json` beside `<content>`, the digest of all files. Two
machines that push at once write different files or the same bytes, and the manifest comes last, in one piece: what it
names is there. What comes back is believed only after its SHA-256, the manifest's own included.

On another machine sums differ, and so may the bytes of what was made from the same inputs. Who pushed first is taken
over by who comes second, and what was made from other bytes than those at hand is not used.
"""

from __future__ import annotations

import errno
import functools
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pydantic import ValidationError

from recall.errors import BadInput, Failed, one_line
from recall.progress import console
from tasks.store import MANIFEST, Manifest, Store, files_damage, flush

Fits = Callable[[dict[str, Any]], bool]  # is the artifact with this manifest the one that is wanted?
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # of a download: this machine's fault, any other the remote's


def anything(_: dict[str, Any]) -> bool:
    """Every artifact of the kind and fingerprint will do."""
    return True


def unfit(store: Store, kind: str, fingerprint: str, fits: Fits) -> str | None:
    """What is wrong with an artifact of the store, in words; None if it is whole and the one that is wanted."""
    damage = store.damage(kind, fingerprint)
    if damage is None and not fits(store.manifest(kind, fingerprint) or {}):
        return f"{store.folder(kind, fingerprint)} was made from other files, or has other files, than are wanted"
    return damage


def bring(store: Store, kind: str, fingerprint: str, fits: Fits = anything) -> str | None:
    """Fetch an artifact that the store lacks; returns what is wrong with it in the store afterwards, or None.

    Raises:
        Failed: the remote cannot be read.
    """
    damage = unfit(store, kind, fingerprint, fits)
    if damage is None or store.remote is None:
        return damage
    with store.lock(fingerprint):
        damage = unfit(store, kind, fingerprint, fits)
        if damage is not None and _fetch(store, kind, fingerprint, fits):
            _say(f"{kind} {fingerprint[:12]}: fetched from {store.remote}")
            return None
    return damage


def share(store: Store, kind: str, fingerprint: str) -> None:
    """Push an artifact of the store if the remote has none that is whole, whichever bytes that one has.

    Raises:
        Failed: the remote cannot be written.
    """
    if store.remote is not None:
        with _said(store.remote) as fs:
            if _manifest(fs, store.remote, kind, fingerprint) is None:
                _push(fs, store, kind, fingerprint)


def settle(store: Store, kind: str, fingerprint: str, fits: Fits) -> None:
    """Push what was just made, or take over what another machine made of the same inputs meanwhile.

    Call it under the artifact's lock, before anything reads the artifact.

    Raises:
        Failed: the remote cannot be read or written.
    """
    if store.remote is None:
        return
    own = store.manifest(kind, fingerprint)
    assert own is not None
    with _said(store.remote) as fs:
        there = _manifest(fs, store.remote, kind, fingerprint)
        if there is not None and there.values["sha256"] == own["sha256"]:
            return
        if there is not None and _fetch(store, kind, fingerprint, fits):
            _say(f"{kind} {fingerprint[:12]}: another machine was first, its own is taken from {store.remote}")
            return
        _push(fs, store, kind, fingerprint)


def check_remote(remote: str) -> None:
    """Raise BadInput unless files can be written to the remote, read and removed."""
    try:
        with _said(remote) as fs:
            probe = f"{_at(fs, remote)}/.probe-{uuid.uuid4().hex}"
            fs.makedirs(probe.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(probe, b"probe")
            fs.cat_file(probe)
            fs.rm_file(probe)
    except Failed as error:
        raise BadInput(f"{error}; set store_remote to another, or to null") from error


def _push(fs: Any, store: Store, kind: str, fingerprint: str) -> None:
    manifest = store.manifest(kind, fingerprint)
    assert store.remote is not None and manifest is not None
    folder, target = store.folder(kind, fingerprint), _at(fs, store.remote, kind, fingerprint)
    for name in manifest["files"]:
        path = f"{target}/{manifest['sha256']}/{name}"
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.put_file(str(folder / name), path)
    _write_whole(fs, f"{target}/{MANIFEST}", (folder / MANIFEST).read_bytes())


def _fetch(store: Store, kind: str, fingerprint: str, fits: Fits) -> bool:
    """Download, verify and publish; what does not hold is not seen there again. Call it under the artifact's lock."""
    assert store.remote is not None
    with _said(store.remote) as fs:
        there = _manifest(fs, store.remote, kind, fingerprint)
        if there is None or not fits(there.values):
            return False
        target = _at(fs, store.remote, kind, fingerprint)
        try:
            with store.publishing(kind, fingerprint) as out:
                for name in there.manifest.files:
                    (out / name).parent.mkdir(parents=True, exist_ok=True)
                    _download(fs, store.remote, f"{target}/{there.manifest.sha256}/{name}", out / name)
                (out / MANIFEST).write_bytes(there.text)
                if files_damage(out, there.manifest) is not None:
                    raise _Damaged
                flush(out)
        except (_Damaged, FileNotFoundError):
            _warn(store.remote, kind, fingerprint)
            fs.rm_file(f"{target}/{MANIFEST}")
            return False
    return True


def _download(fs: Any, remote: str, source: str, target: Path) -> None:
    try:
        fs.get_file(source, str(target))
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno in DISK:
            raise
        raise _unusable(remote, error) from error


class _Damaged(Exception):
    """Files came back whose SHA-256 is another than the manifest's."""


class _There(NamedTuple):
    """A manifest at the remote: as it lies there, and read."""

    text: bytes
    values: dict[str, Any]
    manifest: Manifest


def _manifest(fs: Any, remote: str, kind: str, fingerprint: str) -> _There | None:
    """The manifest at the remote; None where there is none, or, with a warning, one that is not what `seal` wrote, is
    of something else or reaches elsewhere."""
    try:
        text = fs.cat_file(f"{_at(fs, remote, kind, fingerprint)}/{MANIFEST}")
    except FileNotFoundError:
        return None
    try:
        values = json.loads(text)
        manifest = Manifest.model_validate(values)
    except (ValueError, ValidationError):
        _warn(remote, kind, fingerprint)
        return None
    sealed = manifest.is_whole and manifest.manifest_sha256 is not None
    inside = all(_is_inside(name) for name in [*manifest.files, manifest.sha256])
    if not (sealed and inside and (manifest.kind, manifest.fingerprint) == (kind, fingerprint)):
        _warn(remote, kind, fingerprint)
        return None
    return _There(text, values, manifest)


def _warn(remote: str, kind: str, fingerprint: str) -> None:
    _say(f"[yellow]warning[/]: {kind} {fingerprint[:12]} at {remote} is not what was pushed; not used")


def _say(line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _write_whole(fs: Any, path: str, content: bytes) -> None:
    """An object store shows an object whole or not at all; a file system does so after a rename."""
    protocols = fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)
    if "file" not in protocols:
        fs.pipe_file(path, content)
        return
    temporary = Path(f"{path}.{uuid.uuid4().hex}")
    temporary.write_bytes(content)
    temporary.rename(path)


@contextmanager
def _said(remote: str) -> Iterator[Any]:
    """The remote's file system; its errors, which every kind has of its own, become one sentence of ours."""
    try:
        yield _file_system(remote)
    except Failed:
        raise
    except ImportError as error:
        raise BadInput(f"store_remote {remote} needs another package ({one_line(error)})") from error
    except Exception as error:
        raise _unusable(remote, error) from error


def _unusable(remote: str, error: Exception) -> Failed:
    return Failed(f"store_remote {remote} cannot be used ({type(error).__name__}: {one_line(error)})")


@functools.cache
def _file_system(remote: str) -> Any:
    import fsspec

    # Listings are never asked for from a cache: another machine may have pushed meanwhile.
    return fsspec.url_to_fs(remote, use_listings_cache=False)[0]


def _at(fs: Any, remote: str, *parts: str) -> str:
    return "/".join([fs._strip_protocol(remote).rstrip("/"), *parts])
