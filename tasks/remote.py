"""A second tier behind the store, in any file system that fsspec reaches: another machine need not make it all again.

`<remote>/<kind>/<fingerprint>/<content>/<file>`, and `manifest.json` beside `<content>`, the digest of all files. Two
machines that push at once write different files or the same bytes, and the manifest comes last, in one piece: what it
names is there. What comes back is believed only after its SHA-256.
"""

from __future__ import annotations

import functools
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from recall.errors import BadInput, Failed, one_line
from recall.progress import console
from tasks.store import MANIFEST, Store, seal

SEALED = ("files", "sha256", "manifest_sha256")  # what `seal` adds to a manifest


def bring(store: Store, kind: str, fingerprint: str) -> str | None:
    """Fetch an artifact that the store lacks; returns what is wrong with it in the store afterwards, or None.

    Raises:
        Failed: the remote cannot be read.
    """
    damage = store.damage(kind, fingerprint)
    if damage is None or store.remote is None:
        return damage
    with store.lock(fingerprint):
        damage = store.damage(kind, fingerprint)
        if damage is not None and _fetch(store, kind, fingerprint):
            console.print(f"{kind} {fingerprint[:12]}: fetched from {store.remote}", highlight=False, soft_wrap=True)
            return None
    return damage


def share(store: Store, kind: str, fingerprint: str) -> None:
    """Push an artifact of the store that the remote lacks.

    Raises:
        Failed: the remote cannot be written.
    """
    if store.remote is None:
        return
    manifest = store.manifest(kind, fingerprint)
    assert manifest is not None
    with _said(store.remote) as fs:
        there = _manifest(fs, store.remote, kind, fingerprint)
        if there is not None and there["sha256"] == manifest["sha256"]:
            return
        folder, target = store.folder(kind, fingerprint), _at(fs, store.remote, kind, fingerprint)
        for name in manifest["files"]:
            path = f"{target}/{manifest['sha256']}/{name}"
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.put_file(str(folder / name), path)
        _write_whole(fs, f"{target}/{MANIFEST}", (folder / MANIFEST).read_bytes())


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


def _fetch(store: Store, kind: str, fingerprint: str) -> bool:
    """Download, verify and publish; what does not hold is not seen there again. Call it under the artifact's lock."""
    assert store.remote is not None
    with _said(store.remote) as fs:
        manifest = _manifest(fs, store.remote, kind, fingerprint)
        if manifest is None:
            return False
        target = _at(fs, store.remote, kind, fingerprint)
        try:
            with store.publishing(kind, fingerprint) as out:
                for name in manifest["files"]:
                    (out / name).parent.mkdir(parents=True, exist_ok=True)
                    fs.get_file(f"{target}/{manifest['sha256']}/{name}", str(out / name))
                own = {
                    name: value
                    for name, value in manifest.items()
                    if name not in ("files", "sha256", "manifest_sha256")
                }
                if seal(out, own) != manifest["sha256"]:
                    raise _Damaged
        except (_Damaged, FileNotFoundError):
            console.print(
                f"[yellow]warning[/]: {kind} {fingerprint[:12]} at {store.remote} is not what was pushed; not used",
                highlight=False,
                soft_wrap=True,
            )
            fs.rm_file(f"{target}/{MANIFEST}")
            return False
    return True


class _Damaged(Exception):
    """Files came back whose SHA-256 is another than the manifest's."""


def _manifest(fs: Any, remote: str, kind: str, fingerprint: str) -> dict[str, Any] | None:
    """The manifest at the remote; None where there is none, or one that is of something else or reaches elsewhere."""
    try:
        found: dict[str, Any] = json.loads(fs.cat_file(f"{_at(fs, remote, kind, fingerprint)}/{MANIFEST}"))
        inside = all(_is_inside(name) for name in [*found["files"], found["sha256"]])
        return found if inside and (found["kind"], found["fingerprint"]) == (kind, fingerprint) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


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
        raise Failed(f"store_remote {remote} cannot be used ({type(error).__name__}: {one_line(error)})") from error


@functools.cache
def _file_system(remote: str) -> Any:
    import fsspec

    # Listings are never asked for from a cache: another machine may have pushed meanwhile.
    return fsspec.url_to_fs(remote, use_listings_cache=False)[0]


def _at(fs: Any, remote: str, *parts: str) -> str:
    return "/".join([fs._strip_protocol(remote).rstrip("/"), *parts])
