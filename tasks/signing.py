"""Signing of a registered version with a key of one's own (OpenSSF model signing): model folder, lineage and name.

Who can write to MLflow's database and artifacts can make both agree on a lie; without the private key they cannot sign
it. The key's path is never written down, and its content never read by us.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from recall.audit_verdicts import Link
from recall.errors import BadInput, Failed, one_line
from tasks import registry
from tasks.audit_fetch import Fetched, fetched
from tasks.audit_source import read_chain
from tasks.refs import file_sha256

KEY_PATH = "RECALL_SIGNING_KEY"
KEY_PASSWORD = "RECALL_SIGNING_KEY_PASSWORD"
SIGNATURE = "signature/model.sig"


def key_path(given: Path | None) -> Path:
    """The private key's path: as given, or from the environment.

    Raises:
        BadInput: there is none, or no file there.
    """
    named = str(given) if given else os.environ.get(KEY_PATH, "")
    if not named:
        raise BadInput(f"no key to sign with; give --key FILE, or set {KEY_PATH} to its path")
    if not Path(named).is_file():
        raise BadInput("the key to sign with is no file that can be read; make one as docs/audit.md shows")
    return Path(named)


def sign(stream: str, number: str, key: Path) -> str:
    """Sign a version and store the signature in its MLflow run, beside the lineage; returns the run.

    Raises:
        BadInput: the key cannot be used.
        Failed: what the registry holds is not what was registered; that is not signed.
    """
    from model_signing.signing import Config

    chain, links = read_chain(stream, number, depth=1)
    _refuse(stream, number, [link.sentence for link in links if link.status == "failed" or link.out_of_reach])
    with TemporaryDirectory() as work, fetched(chain[0], Path(work)) as update:
        _refuse(stream, number, _changed(update))
        with _signed_folder(update, stream, Path(work)) as folder:
            signature = Path(work) / "model.sig"
            try:
                password = os.environ.get(KEY_PASSWORD)
                Config().use_elliptic_key_signer(private_key=key, password=password).sign(folder, signature)
            except (ValueError, TypeError, OSError) as error:
                # The library's own words could quote the file.
                raise BadInput(
                    f"the key cannot be used ({type(error).__name__}); it must be an elliptic-curve private key in "
                    f"PEM, and {KEY_PASSWORD} its password where it has one"
                ) from error
            registry.client().log_artifact(update.run_id, str(signature), "signature")
        return update.run_id


def check_signature(update: Fetched, stream: str, public_key: Path | None, work: Path) -> Link:
    """Is the version signed, and by the owner of the key?"""
    signature = update.folder / SIGNATURE
    if public_key is None:
        found = "signed, and no --public-key was given to check it with" if signature.is_file() else "not signed"
        return update.link("merged", "signature", "unknown", "a signature", found)
    from model_signing.verifying import Config

    expected = f"a signature by the owner of {public_key.name}"
    if not signature.is_file():
        return update.link("merged", "signature", "failed", expected, "not signed")
    if not update.registered.is_dir():
        return update.link("merged", "signature", "failed", expected, "MLflow does not have the registered folder")
    with _signed_folder(update, stream, work) as folder:
        try:
            Config().use_elliptic_key_verifier(public_key=public_key).verify(folder, signature)
        except Exception as error:  # the library raises many kinds, cryptography's InvalidSignature without a word
            reason = one_line(error) or "signed by another key, or the signature was changed"
            return update.link("merged", "signature", "failed", expected, reason)
    found = "it holds for the model folder, lineage.json and the version's name"
    return update.link("merged", "signature", "ok", expected, found)


@contextmanager
def _signed_folder(update: Fetched, stream: str, work: Path) -> Iterator[Path]:
    """What a signature covers: the registered folder as MLflow has it, the lineage, and which version it is.

    The name is part of it, so that one signed version cannot pass for another.
    """
    folder = work / "signed"
    shutil.copytree(update.registered, folder / "registered", copy_function=_link_or_copy)
    shutil.copyfile(update.folder / "lineage.json", folder / "lineage.json")
    name = {"registered_model": stream, "version": update.number}
    (folder / "version.json").write_text(json.dumps(name, sort_keys=True), encoding="utf-8")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _refuse(stream: str, number: str, faults: list[str]) -> None:
    if faults:
        raise Failed(f"version {number} of {stream} is not signed: {faults[0]}")


def _changed(update: Fetched) -> list[str]:
    return [
        f"{name} of the model is not what lineage.json names"
        for name, expected in (update.lineage.merged.files or {}).items()
        if not (update.model / name).is_file() or file_sha256(update.model / name) != expected.sha256
    ]
