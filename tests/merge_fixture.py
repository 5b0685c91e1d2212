"""The pool that the tests of `recall merge` share, and the command called as a person would."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import adapter, llama, load
from typer.testing import CliRunner

from recall.merge_request import MergeRecord

LAYERS = ["embeddings", "model.layers.0", "model.layers.1", "model.layers.2"]
TEXTS = ["one two", "a longer text than that", "three", "four and five", "six", "seven eight nine", "ten", "more words"]


@pytest.fixture(scope="session")
def pool(tmp_path_factory, tiny_tokenizer):
    """A base model, two full fine-tunes of it and an adapter over it, all with a tokenizer and generation config."""
    folder = tmp_path_factory.mktemp("pool")
    shape = {"vocab_size": len(tiny_tokenizer), "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0}
    base = llama(folder / "base", **shape)
    for number in (1, 2):
        moved = load(base)
        torch.manual_seed(number)
        for parameter in moved.parameters():
            parameter.data += 0.02 * number * torch.randn_like(parameter)
        moved.save_pretrained(folder / f"expert{number}")
    for name in ("base", "expert1", "expert2"):
        tiny_tokenizer.save_pretrained(folder / name)
    adapter(folder / "lora1", base, seed=1)
    adapter(folder / "lora2", base, seed=2, rank=3)
    return folder


@pytest.fixture
def samples(tmp_path):
    return write_samples(tmp_path / "samples.jsonl", [{"prompt": text} for text in TEXTS])


@pytest.fixture
def weights(tmp_path):
    return write_weights(tmp_path / "weights.json", [[0.5, 0.5], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])


def write_samples(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def write_weights(path, rows):
    path.write_text(json.dumps({"weights": rows}))
    return path


def invoke(*arguments):
    # Imported here: only these tests need the command.
    from flows.cli import app

    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


def merged(models, out, *arguments):
    done = invoke(*(part for model in models for part in ("--model", model)), "--out", out, *arguments)
    assert done.exit_code == 0, done.output
    return done


def refused(models, out, *arguments, code=2):
    """The one sentence that the command ends with."""
    before = set(out.parent.iterdir())
    done = invoke(*(part for model in models for part in ("--model", model)), "--out", out, *arguments)
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    assert set(out.parent.iterdir()) == before, "something was left behind"
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("recall: ")]
    return sentence


def read_record(folder):
    """The `recall.json` of a merged model."""
    return MergeRecord.model_validate_json((folder / "recall.json").read_text())


def tensors(folder):
    return load_file(folder / "model.safetensors")


def spoilt(pool, tmp_path, name="expert1"):
    """A copy of a model of the pool, to be damaged."""
    return shutil.copytree(pool / name, tmp_path / "spoilt")
