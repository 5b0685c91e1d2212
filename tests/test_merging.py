"""The hierarchical merge (docs/method.md, step 6): layer by layer, streamed, LoRA-native, no misfit let in."""

import json
import math

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import adapter, apart_from_each_other, llama, load

import recall.tensor_files
from recall.checkpoints import Checkpoint
from recall.errors import BadInput, Failed
from recall.merging import merge as merge_by_rows
from recall.structure import checkpoint_layers

LAYERS = 4  # the embeddings and three blocks


def some_weights(models, seed=0):
    raw_LK = np.random.default_rng(seed).random((LAYERS, models)) + 0.1
    return raw_LK / raw_LK.sum(axis=1, keepdims=True)


def merge(pool, weights_LK, out, **options):
    merge_by_rows(pool, weights_LK, checkpoint_layers(pool[0]).of, out, **options)


def layer_of(name):
    """docs/method.md, step 6, spelled out for Llama."""
    if name.startswith("model.embed_tokens"):
        return 0
    return int(name.split(".")[2]) + 1 if name.startswith("model.layers.") else LAYERS - 1


def tensors(checkpoint):
    return load_file(checkpoint.folder / "model.safetensors")


def test_every_parameter_is_the_weighted_sum_of_its_layer(tmp_path):
    pool = apart_from_each_other(llama, tmp_path, 3, tie_word_embeddings=False)
    weights_LK = some_weights(3)
    merge(pool, weights_LK, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    models = [tensors(member) for member in pool]
    assert merged.keys() == models[0].keys()
    for name, found in merged.items():
        shares = weights_LK[layer_of(name)]
        expected = sum(share * model[name].double() for share, model in zip(shares, models, strict=True))
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)


def test_embeddings_take_the_first_weights_and_norm_and_head_the_last(tmp_path):
    pool = apart_from_each_other(llama, tmp_path, 2, tie_word_embeddings=False)
    only_newest_first = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    merge(pool, only_newest_first, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    newest, older = tensors(pool[1]), tensors(pool[0])
    torch.testing.assert_close(merged["model.embed_tokens.weight"], newest["model.embed_tokens.weight"])
    for name in ("model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"):
        torch.testing.assert_close(merged[name], older[name])


def test_a_tied_head_follows_the_embedding(tmp_path):
    layers = checkpoint_layers(llama(tmp_path / "tied"))
    assert layers.of("lm_head.weight") == layers.of("model.embed_tokens.weight") == 0
    assert checkpoint_layers(llama(tmp_path / "free", tie_word_embeddings=False)).of("lm_head.weight") == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_equal_models_give_the_model_back_bit_for_bit(tmp_path, dtype, count):
    pool = [llama(tmp_path / str(index), dtype=dtype) for index in range(count)]
    merge(pool, some_weights(count), tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, expected in tensors(pool[0]).items():
        assert merged[name].dtype == dtype
        assert torch.equal(merged[name], expected), name


def test_adapters_and_full_checkpoints_agree(tmp_path):
    base = llama(tmp_path / "base")
    adapters = [adapter(tmp_path / f"adapter{seed}", base, seed=seed, rank=3 + seed) for seed in (1, 2)]
    full = []
    for member in adapters:
        whole = PeftModel.from_pretrained(load(base), member.folder).merge_and_unload()
        full.append(Checkpoint(member.folder / "whole"))
        whole.save_pretrained(full[-1].folder)
    weights_LK = some_weights(3)
    merge([base, *adapters], weights_LK, tmp_path / "from_adapters")
    merge([base, *full], weights_LK, tmp_path / "from_full")
    from_full = load_file(tmp_path / "from_full" / "model.safetensors")
    for name, found in load_file(tmp_path / "from_adapters" / "model.safetensors").items():
        torch.testing.assert_close(found, from_full[name], rtol=1e-5, atol=1e-6)


def test_an_adapter_alone_becomes_the_full_model_that_peft_makes(tmp_path):
    base = llama(tmp_path / "base")
    expert = adapter(tmp_path / "adapter", base)
    merge([base, expert], np.tile([0.0, 1.0], (LAYERS, 1)), tmp_path / "out")
    expected = PeftModel.from_pretrained(load(base), expert.folder).merge_and_unload()
    ids = torch.arange(12)[None]
    torch.testing.assert_close(
        load(Checkpoint(tmp_path / "out"))(ids).logits, expected(ids).logits, rtol=1e-5, atol=1e-5
    )


def test_a_model_without_weight_at_a_layer_leaves_no_trace_there(tmp_path):
    base = llama(tmp_path / "base")
    weights_LK = np.tile([1.0, 0.0], (LAYERS, 1))
    merge([base, adapter(tmp_path / "adapter", base)], weights_LK, tmp_path / "out")
    for name, expected in tensors(base).items():
        assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[name], expected)


def test_a_large_model_is_written_in_shards_that_transformers_opens(tmp_path, monkeypatch):
    monkeypatch.setattr(recall.tensor_files, "SHARD_BYTES", 4000)
    pool = apart_from_each_other(llama, tmp_path, 2)
    merge(pool, some_weights(2), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert math.isfinite(load(Checkpoint(tmp_path / "out"))(torch.arange(5)[None]).logits.sum().item())
    merge([Checkpoint(tmp_path / "out")] * 2, some_weights(2), tmp_path / "again")
    for shard in set(index["weight_map"].values()):
        assert (tmp_path / "again" / shard).read_bytes() == (tmp_path / "out" / shard).read_bytes()


def test_models_of_different_shapes_are_refused_with_the_tensor_and_both_shapes(tmp_path):
    pool = [llama(tmp_path / "a"), llama(tmp_path / "b", intermediate_size=32)]
    with pytest.raises(BadInput, match=r"mlp\.down_proj\.weight is 16 x 24 in .*/a and 16 x 32 in .*/b"):
        merge(pool, some_weights(2), tmp_path / "out")


def test_a_model_with_another_set_of_tensors_is_refused(tmp_path):
    pool = [llama(tmp_path / "a"), llama(tmp_path / "b", tie_word_embeddings=False)]
    with pytest.raises(BadInput, match=r"lm_head\.weight is missing in .*/a"):
        merge(pool, some_weights(2), tmp_path / "out")


def test_an_adapter_for_another_base_is_refused(tmp_path):
    expert = adapter(tmp_path / "adapter", llama(tmp_path / "a", hidden_size=32))
    base = llama(tmp_path / "b")
    with pytest.raises(BadInput, match="it fits another base"):
        merge([base, Checkpoint(expert.folder, base)], some_weights(2), tmp_path / "out")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_named(tmp_path, value):
    pool = apart_from_each_other(llama, tmp_path, 2)
    broken = tensors(pool[1])
    broken["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(broken, pool[1].folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"model\.layers\.1\.mlp\.up_proj\.weight .*NaN or Inf"):
        merge(pool, some_weights(2), tmp_path / "out")


def test_a_tensor_that_belongs_to_no_layer_stops_the_merge(tmp_path):
    checkpoint = llama(tmp_path / "a")
    extra = tensors(checkpoint) | {"model.mystery.weight": torch.zeros(3)}
    save_file(extra, checkpoint.folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"model\.mystery\.weight belongs to no layer"):
        merge([checkpoint, checkpoint], some_weights(2), tmp_path / "out")


def test_a_disk_that_cannot_be_written_is_said_in_one_sentence(tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recall.tensor_files.os, "fsync", full_disk)
    with pytest.raises(Failed, match="No space left on device"):
        merge(apart_from_each_other(llama, tmp_path, 2), some_weights(2), tmp_path / "out")
