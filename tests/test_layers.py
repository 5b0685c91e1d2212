"""Layers are found from the model itself, not from a list of names."""

import pytest
import torch
from architectures import ARCHITECTURES
from safetensors.torch import load_file, save_file
from tiny import llama
from torch import nn
from transformers import (
    BertConfig,
    BertForPreTraining,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MambaConfig,
    XLMConfig,
    XLMModel,
)
from transformers import MambaForCausalLM as Mamba

from recall import structure
from recall.checkpoints import Checkpoint
from recall.errors import BadInput
from recall.layers import find_layers
from recall.structure import checkpoint_layers

each = pytest.mark.parametrize("name", ARCHITECTURES)


def tensors(checkpoint):
    return load_file(checkpoint.folder / "model.safetensors")


def rename(checkpoint, change):
    renamed = {change(name): tensor for name, tensor in tensors(checkpoint).items()}
    save_file(renamed, checkpoint.folder / "model.safetensors", metadata={"format": "pt"})


@each
def test_every_saved_tensor_belongs_to_its_layer(tmp_path, name):
    architecture = ARCHITECTURES[name]
    checkpoint = architecture.save(tmp_path / "model")
    layers = checkpoint_layers(checkpoint)
    assert layers.names == ["embeddings", *architecture.paths]
    assert layers.count == len(architecture.paths)
    assert {tensor: layers.of(tensor) for tensor in tensors(checkpoint)} == {
        tensor: architecture.row(tensor) for tensor in tensors(checkpoint)
    }


@each
def test_with_modules_attention_and_the_rest_of_a_block_are_apart(tmp_path, name):
    architecture = ARCHITECTURES[name]
    checkpoint = architecture.save(tmp_path / "model")
    layers = checkpoint_layers(checkpoint, modules=True)
    rows = [f"{path}.{part}" for path in architecture.paths for part in ("attention", "mlp")]
    assert layers.names == ["embeddings", *rows]
    blocks = tuple(f"{prefix}." for prefix in architecture.stacks)
    for tensor in tensors(checkpoint):
        last = 2 * architecture.row(tensor)
        is_attention = tensor.startswith(blocks) and in_attention(architecture, tensor)
        assert layers.of(tensor) == last - is_attention, tensor


def in_attention(architecture, tensor):
    prefix = next(prefix for prefix in architecture.stacks if tensor.startswith(f"{prefix}."))
    inside = tensor.removeprefix(f"{prefix}.").split(".", 1)[1]
    parts = [part.partition("@") for part in architecture.attention]
    return any(inside.startswith(part) and stack in prefix for part, _, stack in parts)


@each
def test_a_model_in_memory_has_the_same_layers(name):
    architecture = ARCHITECTURES[name]
    layers = find_layers(architecture.make())
    assert layers.names == ["embeddings", *architecture.paths]


def test_a_tied_head_follows_the_embedding():
    for name, head in {
        "gemma": "lm_head.weight", "gpt2": "lm_head.weight", "bert": "cls.predictions.decoder.weight",
        "roberta": "lm_head.decoder.weight", "t5": "lm_head.weight", "whisper": "proj_out.weight",
    }.items():  # fmt: skip
        assert find_layers(ARCHITECTURES[name].make()).of(head) == 0, name
    for name in ("llama", "t5_free_head"):
        layers = find_layers(ARCHITECTURES[name].make())
        assert layers.of("lm_head.weight") == layers.count


@each
def test_a_tensor_of_no_layer_is_named(tmp_path, name):
    checkpoint = ARCHITECTURES[name].save(tmp_path / "model")
    extra = tensors(checkpoint) | {"mystery.weight": torch.zeros(3)}
    save_file(extra, checkpoint.folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"tensor mystery\.weight belongs to no layer"):
        checkpoint_layers(checkpoint)


@pytest.mark.parametrize("name", ["model.mystery.weight", "model.layers.3.mlp.up_proj.weight"])
def test_so_is_one_that_only_sounds_like_a_layer(tmp_path, name):
    checkpoint = llama(tmp_path / "model")
    save_file(tensors(checkpoint) | {name: torch.zeros(3)}, checkpoint.folder / "model.safetensors")
    with pytest.raises(BadInput, match=f"tensor {name} belongs to no layer of LlamaForCausalLM"):
        checkpoint_layers(checkpoint)


def test_a_tensor_that_the_model_does_not_know_goes_with_the_module_that_it_lies_in():
    layers = find_layers(ARCHITECTURES["gpt2"].make())
    assert layers.of("transformer.h.1.attn.masked_bias") == 2
    layers = find_layers(ARCHITECTURES["bert"].make())
    assert layers.of("bert.embeddings.position_ids") == 0


def test_the_weight_norm_of_older_files_is_known(tmp_path):
    checkpoint = ARCHITECTURES["wav2vec2"].save(tmp_path / "model")
    older = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    rename(checkpoint, lambda name: next((name.replace(new, old) for new, old in older.items() if new in name), name))
    assert "wav2vec2.encoder.pos_conv_embed.conv.weight_g" in tensors(checkpoint)
    layers = checkpoint_layers(checkpoint)
    assert layers.of("wav2vec2.encoder.pos_conv_embed.conv.weight_g") == 0


def test_a_file_without_the_prefix_of_its_headed_class_is_known(tmp_path):
    checkpoint = ARCHITECTURES["gpt2"].save(tmp_path / "model")
    rename(checkpoint, lambda name: name.removeprefix("transformer."))
    layers = checkpoint_layers(checkpoint)
    assert [layers.of(name) for name in ("wte.weight", "h.2.attn.c_attn.bias", "h.0.attn.bias", "ln_f.bias")] == [
        0,
        3,
        1,
        3,
    ]


def test_a_base_model_by_itself_has_layers(tmp_path):
    LlamaModel(LlamaForCausalLM(ARCHITECTURES["llama"].config).config).save_pretrained(tmp_path)
    layers = checkpoint_layers(Checkpoint(tmp_path))
    assert layers.names == ["embeddings", "layers.0", "layers.1", "layers.2"]
    assert layers.of("norm.weight") == 3


def test_heads_of_pretraining_that_the_named_class_has_not_are_known(tmp_path):
    """As in bert-base-uncased: a masked language model by its config, with a pooler and a second head in its file."""
    BertForPreTraining(BertConfig(vocab_size=96, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                  num_attention_heads=4)).save_pretrained(tmp_path)  # fmt: skip
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("BertForPreTraining", "BertForMaskedLM"))
    layers = checkpoint_layers(Checkpoint(tmp_path))
    assert layers.of("cls.seq_relationship.weight") == layers.of("bert.pooler.dense.bias") == 2


def test_without_attention_the_blocks_are_found_but_not_their_parts():
    model = Mamba(MambaConfig(vocab_size=96, hidden_size=16, num_hidden_layers=2, state_size=4))
    assert find_layers(model).names == ["embeddings", "backbone.layers.0", "backbone.layers.1"]
    with pytest.raises(BadInput, match=r"backbone\.layers\.0 has no part that is named for attention"):
        find_layers(model, modules=True)


def test_a_large_structure_takes_no_memory():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=80, hidden_size=8192, intermediate_size=28672))
    assert find_layers(model).count == 80


def test_a_model_whose_blocks_lie_in_several_lists_is_refused():
    model = XLMModel(XLMConfig(vocab_size=96, emb_dim=16, n_layers=2, n_heads=4))
    with pytest.raises(BadInput, match="XLMModel spreads its blocks over"):
        find_layers(model)


def test_a_model_without_repeated_blocks_is_refused():
    with pytest.raises(BadInput, match="no list of repeated blocks"):
        find_layers(nn.Sequential(nn.Linear(2, 2)))


def test_models_of_one_architecture_are_taken_apart_once(tmp_path, monkeypatch):
    searched = []
    monkeypatch.setattr(structure, "find_layers", lambda *given: searched.append(given) or find_layers(*given))
    first, second = (llama(tmp_path / name, hidden_size=24) for name in ("one", "two"))
    other = llama(tmp_path / "three", hidden_size=24, num_hidden_layers=5)
    assert checkpoint_layers(first) == checkpoint_layers(second)
    assert len(searched) == 1
    assert checkpoint_layers(other) != checkpoint_layers(first)
    assert checkpoint_layers(first, modules=True) != checkpoint_layers(first)
    assert len(searched) == 3
