"""`recall merge`: any checkpoints in, a folder that transformers opens out."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from merge_fixture import LAYERS, merged, read_record, refused, tensors
from safetensors.torch import load_file
from tiny import load
from transformers import AutoModelForCausalLM, AutoTokenizer

import recall.tensor_files
from recall.checkpoints import Checkpoint


def test_weights_come_from_samples_and_the_folder_opens_and_generates(pool, samples, tmp_path):
    models = [pool / "base", pool / "expert1", pool / "expert2"]
    merged(models, tmp_path / "out", "--samples", samples, "--clusters", 4)
    record = read_record(tmp_path / "out")
    assert record.layers == LAYERS
    assert record.models == [str(model) for model in models]
    assert np.array(record.weights).shape == np.array(record.similarities).shape == (4, 3)
    np.testing.assert_allclose(np.sum(record.weights, axis=1), 1)
    assert all(row[2] == max(row) for row in record.weights)
    assert [row[2] for row in record.similarities] == [1.0] * 4
    assert len(record.sigma) == 4
    assert record.samples == 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("one two", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, ids.shape[1] + 3)
    assert (tmp_path / "out" / "generation_config.json").is_file()


def test_every_tensor_is_the_sum_by_the_record_s_weights(pool, samples, tmp_path):
    models = [pool / "base", pool / "expert1", pool / "expert2"]
    merged(models, tmp_path / "out", "--samples", samples, "--all-samples")
    record = read_record(tmp_path / "out")
    inputs = [tensors(model) for model in models]
    for name, found in tensors(tmp_path / "out").items():
        shares = record.weights[record.tensor_layers[name]]
        expected = sum(share * model[name].double() for share, model in zip(shares, inputs, strict=True))
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("newest", ["expert1", "lora1"])
def test_no_export_silently_equals_the_base(newest, pool, samples, tmp_path):
    merged([pool / "base", pool / newest], tmp_path / "out", "--samples", samples, "--clusters", 4)
    base, found = tensors(pool / "base"), tensors(tmp_path / "out")
    adapted = (
        [name for name in base if name.endswith("proj.weight")] if newest == "expert1" else _targets(pool / newest)
    )
    assert adapted
    assert not any(torch.equal(found[name], base[name]) for name in adapted)


def _targets(adapter):
    """The tensors of the base that an adapter changes."""
    names = load_file(adapter / "adapter_model.safetensors")
    return {
        name.removeprefix("base_model.model.").replace(".lora_A", "")
        for name in names
        if name.endswith("lora_A.weight")
    }


def test_a_record_makes_the_same_model_again_without_samples(pool, samples, tmp_path):
    models = [pool / "base", pool / "expert1"]
    merged(models, tmp_path / "first", "--samples", samples, "--clusters", 3)
    merged(models, tmp_path / "again", "--weights", tmp_path / "first" / "recall.json")
    first, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again"))
    assert first == again


def test_the_card_says_how_it_was_made(pool, weights, tmp_path):
    merged([pool / "base", pool / "expert1"], tmp_path / "out", "--weights", weights)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\nbase_model:\n- ")
    assert "| model.layers.1 | 0.300 | 0.700 |" in card
    assert "arxiv.org/abs/2510.20479" in card
    assert "the weights were given" in card


def test_json_is_the_record(pool, weights, tmp_path):
    done = merged([pool / "base", pool / "expert1"], tmp_path / "out", "--weights", weights, "--json")
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "recall.json").read_text())


def test_a_dry_run_shows_layers_sizes_and_memory_and_writes_nothing(pool, weights, tmp_path):
    models = [pool / "base", pool / "expert1"]
    done = merged(models, tmp_path / "out", "--weights", weights, "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert [layer["name"] for layer in plan["layers"]] == LAYERS
    sizes = {name: tensor.numel() for name, tensor in tensors(pool / "base").items()}
    assert plan["parameters"] == sum(sizes.values())
    assert plan["bytes"] == 4 * plan["parameters"]
    assert plan["memory"] > 0
    assert not (tmp_path / "out").exists()
    assert "model.layers.2" in merged(models, tmp_path / "out", "--weights", weights, "--dry-run").stdout


def test_a_hub_id_is_found_in_the_hub_s_cache(pool, weights, tmp_path, monkeypatch):
    commit = "0123456789" * 4
    snapshot = tmp_path / "hub" / "models--team--expert" / "snapshots" / commit
    shutil.copytree(pool / "expert1", snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(commit)
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    merged([pool / "base", "team/expert"], tmp_path / "by_id", "--weights", weights)
    merged([pool / "base", f"team/expert@{commit}"], tmp_path / "by_revision", "--weights", weights)
    merged([pool / "base", pool / "expert1"], tmp_path / "by_folder", "--weights", weights)
    expected = (tmp_path / "by_folder" / "model.safetensors").read_bytes()
    for name in ("by_id", "by_revision"):
        assert (tmp_path / name / "model.safetensors").read_bytes() == expected
    sentence = refused([pool / "base", "team/unknown"], tmp_path / "out", "--weights", weights)
    assert "model team/unknown is no folder here and cannot be had from the hub" in sentence


def test_sharded_models_go_in_and_come_out(pool, weights, tmp_path, monkeypatch):
    for name in ("base", "expert1"):
        load(Checkpoint(pool / name)).save_pretrained(tmp_path / name, max_shard_size="8KB")
        assert (tmp_path / name / "model.safetensors.index.json").is_file()
    merged([pool / "base", pool / "expert1"], tmp_path / "whole", "--weights", weights)
    monkeypatch.setattr(recall.tensor_files, "SHARD_BYTES", 8000)
    merged([tmp_path / "base", tmp_path / "expert1"], tmp_path / "sharded", "--weights", weights)
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    found = {}
    for shard in set(index["weight_map"].values()):
        found |= load_file(tmp_path / "sharded" / shard)
    expected = tensors(tmp_path / "whole")
    assert found.keys() == expected.keys() == index["weight_map"].keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_record_has_a_digest_of_everything_that_counts(pool, samples, tmp_path):
    lora = shutil.copytree(pool / "lora1", tmp_path / "lora")
    # PEFT saves them beside an adapter; what is read, and copied, is the base's.
    for name in ("tokenizer.json", "config.json"):
        (lora / name).write_text("{}")
    merged([pool / "base", lora], tmp_path / "out", "--samples", samples, "--clusters", 3)
    record = read_record(tmp_path / "out")
    beside = {"generation_config.json", "tokenizer_config.json"}
    assert set(record.inputs[0]) == {"model.safetensors", "config.json", "tokenizer.json", *beside}
    assert set(record.inputs[1]) == {*record.inputs[0], "adapter_model.safetensors", "adapter_config.json"}
    assert record.samples_sha256 == hashlib.sha256(samples.read_bytes()).hexdigest()
    for name in record.inputs[0]:
        assert record.inputs[1][name] == record.inputs[0][name]
        assert record.inputs[0][name] == hashlib.sha256((pool / "base" / name).read_bytes()).hexdigest()
