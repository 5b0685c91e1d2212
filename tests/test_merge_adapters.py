"""`recall merge` on LoRA adapters: over the base that they name, and one adapter out of several."""

import json
import shutil

import numpy as np
import pytest
import torch
from merge_fixture import merged, read_record, refused, spoilt, tensors, write_weights
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import adapter, llama, load

from recall.checkpoints import Checkpoint


def test_adapters_are_merged_over_the_base_that_they_name(pool, tmp_path):
    rows = write_weights(tmp_path / "w.json", [[0.2, 0.3, 0.5]] * 4)
    merged([pool / "base", pool / "lora1", pool / "lora2"], tmp_path / "out", "--weights", rows)
    whole = [
        PeftModel.from_pretrained(load(Checkpoint(pool / "base")), pool / name).merge_and_unload().state_dict()
        for name in ("lora1", "lora2")
    ]
    base = tensors(pool / "base")
    for name, found in tensors(tmp_path / "out").items():
        expected = 0.2 * base[name] + 0.3 * whole[0][name] + 0.5 * whole[1][name]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_adapters_and_their_full_models_get_the_same_weights_and_give_the_same_model(pool, samples, tmp_path):
    for name in ("lora1", "lora2"):
        whole = PeftModel.from_pretrained(load(Checkpoint(pool / "base")), pool / name).merge_and_unload()
        whole.save_pretrained(tmp_path / name)
        for side in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(pool / "base" / side, tmp_path / name / side)
    options = ("--samples", samples, "--clusters", 4)
    merged([pool / "base", pool / "lora1", pool / "lora2"], tmp_path / "adapters", *options)
    merged([pool / "base", tmp_path / "lora1", tmp_path / "lora2"], tmp_path / "full", *options)
    adapters, full = read_record(tmp_path / "adapters"), read_record(tmp_path / "full")
    np.testing.assert_allclose(adapters.weights, full.weights, rtol=1e-5)
    for name, found in tensors(tmp_path / "adapters").items():
        torch.testing.assert_close(found, tensors(tmp_path / "full")[name], rtol=1e-4, atol=1e-6)


def test_the_merged_adapter_is_the_merged_model(pool, tmp_path):
    models = [pool / "base", pool / "lora1", pool / "lora2"]
    rows = write_weights(tmp_path / "w.json", [[0.2, 0.3, 0.5], [0.1, 0.5, 0.4], [0.0, 0.6, 0.4], [0.3, 0.3, 0.4]])
    merged(models, tmp_path / "full", "--weights", rows)
    merged(models, tmp_path / "adapter", "--weights", rows, "--as-adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4 + 3
    laid_over = PeftModel.from_pretrained(load(Checkpoint(pool / "base")), tmp_path / "adapter").merge_and_unload()
    for name, expected in tensors(tmp_path / "full").items():
        torch.testing.assert_close(laid_over.state_dict()[name], expected, rtol=1e-4, atol=1e-6)


def test_an_adapter_of_a_lower_rank_states_its_error(pool, tmp_path):
    models = [pool / "base", pool / "lora1", pool / "lora2"]
    rows = write_weights(tmp_path / "w.json", [[0.2, 0.3, 0.5]] * 4)
    done = merged(models, tmp_path / "cut", "--weights", rows, "--as-adapter", "--rank", 2)
    merged(models, tmp_path / "full", "--weights", rows)
    stated = read_record(tmp_path / "cut").adapter_error
    laid_over = PeftModel.from_pretrained(load(Checkpoint(pool / "base")), tmp_path / "cut").merge_and_unload()
    base, full, cut = tensors(pool / "base"), tensors(tmp_path / "full"), laid_over.state_dict()
    lost = sum((cut[name] - full[name]).double().square().sum() for name in full)
    whole = sum((full[name] - base[name]).double().square().sum() for name in full)
    assert stated == pytest.approx(float((lost / whole).sqrt()), rel=1e-3)
    assert 0 < stated < 1
    assert f"relative error of the adapter {stated:.2g}" in done.stdout


def test_full_models_cannot_become_an_adapter(pool, weights, tmp_path):
    sentence = refused([pool / "base", pool / "expert1"], tmp_path / "out", "--weights", weights, "--as-adapter")
    assert "only adapters of one base can be merged into an adapter" in sentence


def test_an_adapter_for_another_base(pool, weights, tmp_path):
    other = adapter(tmp_path / "lora", llama(tmp_path / "wide", hidden_size=32)).folder
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": ""}))
    assert "it fits another base" in refused([pool / "base", other], tmp_path / "out", "--weights", weights)


def test_a_nan_in_an_adapter_is_named_when_adapters_become_one(pool, tmp_path):
    other = spoilt(pool, tmp_path, "lora1")
    file = other / "adapter_model.safetensors"
    factors = load_file(file)
    factors["base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"][0, 0] = float("nan")
    save_file(factors, file, metadata={"format": "pt"})
    rows = write_weights(tmp_path / "w.json", [[0.4, 0.3, 0.3]] * 4)
    models = [pool / "base", pool / "lora2", other]
    sentence = refused(models, tmp_path / "out", "--weights", rows, "--as-adapter")
    assert "tensor model.layers.0.mlp.down_proj.weight holds NaN or Inf in adapter" in sentence
    assert "spoilt" in sentence


def test_two_names_of_one_base_are_one_base(pool, tmp_path, monkeypatch):
    monkeypatch.chdir(pool)
    rows = write_weights(tmp_path / "w.json", [[0.2, 0.3, 0.5]] * 4)
    merged(["base", "lora1", "./lora2"], tmp_path / "out", "--weights", rows, "--as-adapter")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((pool / "base").resolve())


def test_an_adapter_that_names_another_base_is_warned_of(pool, weights, tmp_path):
    other = spoilt(pool, tmp_path, "lora1")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "team/elsewhere"}))
    merged([pool / "base", other], tmp_path / "out", "--weights", weights)
    (warning,) = read_record(tmp_path / "out").warnings
    assert "says that its base is team/elsewhere; it was laid over" in warning


def test_what_one_adapter_leaves_out_another_may_change(pool, tmp_path):
    other = spoilt(pool, tmp_path, "lora1")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"exclude_modules": ["up_proj"]}))
    models = [pool / "base", other, pool / "lora2"]
    rows = write_weights(tmp_path / "w.json", [[0.2, 0.3, 0.5]] * 4)
    merged(models, tmp_path / "full", "--weights", rows)
    merged(models, tmp_path / "adapter", "--weights", rows, "--as-adapter")
    laid_over = PeftModel.from_pretrained(load(Checkpoint(pool / "base")), tmp_path / "adapter").merge_and_unload()
    for name, expected in tensors(tmp_path / "full").items():
        torch.testing.assert_close(laid_over.state_dict()[name], expected, rtol=1e-4, atol=1e-6)


def test_an_expert_of_a_store_without_the_model_that_it_was_trained_from(pool, weights, tmp_path):
    expert = shutil.copytree(pool / "lora1", tmp_path / "store" / "experts" / "abc")
    config = json.loads((expert / "adapter_config.json").read_text())
    (expert / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": ""}))
    base = {"kind": "merged", "fingerprint": "def"}
    (expert / "manifest.json").write_text(json.dumps({"fields": {"base": base}}))
    sentence = refused([pool / "base", expert], tmp_path / "out", "--weights", weights)
    assert f"was trained from {tmp_path}/store/merged/def, which is not there" in sentence
    shutil.copytree(pool / "expert1", tmp_path / "store" / "merged" / "def")
    merged([pool / "base", expert], tmp_path / "out", "--weights", weights)
    assert read_record(tmp_path / "out").warnings == []
