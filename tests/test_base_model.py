"""M_0 as a folder of safetensors."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recall.base_model import bring
from recall.errors import BadInput
from recall.settings import BaseModelSettings


def test_a_local_base_model_is_copied_without_pickles(tmp_path: Path) -> None:
    source, out = tmp_path / "model", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / "config.json").write_text("{}")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    settings = BaseModelSettings(folder=source)
    with pytest.raises(BadInput, match="pickles are refused"):
        bring(settings, tmp_path, out)
    save_file({"w": torch.zeros(2)}, source / "model.safetensors")
    bring(settings, tmp_path, out)
    assert sorted(file.name for file in out.iterdir()) == ["config.json", "model.safetensors"]


def test_a_wheel_without_the_gguf_says_which_it_has(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "llm_thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_thing/small.gguf", b"")
    settings = BaseModelSettings(pypi="llm-thing==1.0", gguf="llm_thing/large.gguf")
    with pytest.raises(BadInput, match=r"holds no llm_thing/large\.gguf; its GGUF files: llm_thing/small\.gguf"):
        bring(settings, tmp_path, tmp_path)
