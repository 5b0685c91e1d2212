"""A merge of any transformer: opens with its class, every tensor the weighted sum of its layer, ties kept."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from safetensors.torch import load_file

from recall.layers import find_layers
from recall.loading import load_model
from recall.merging import merge
from recall.structure import checkpoint_layers

each = pytest.mark.parametrize("name", ARCHITECTURES)
TIED = {
    "gemma": ("lm_head", "model.embed_tokens"),
    "gpt2": ("lm_head", "transformer.wte"),
    "bert": ("cls.predictions.decoder", "bert.embeddings.word_embeddings"),
    "roberta": ("lm_head.decoder", "roberta.embeddings.word_embeddings"),
    "t5": ("lm_head", "encoder.embed_tokens"),
    "bart": ("lm_head", "model.decoder.embed_tokens"),
    "whisper": ("proj_out", "model.decoder.embed_tokens"),
}


def merged(architecture, folder, modules=False):
    """Two random models, weights of which no two rows are alike, and their merge as its class opens it."""
    pool = [architecture.save(folder / str(seed), seed) for seed in range(2)]
    layers = checkpoint_layers(pool[0], modules)
    share_R = np.linspace(0.1, 0.9, len(layers.names))
    merge(pool, np.stack([share_R, 1 - share_R], axis=1), layers.of, folder / "out", threads=1)
    found, loading = architecture.kind.from_pretrained(folder / "out", output_loading_info=True)
    assert not any(loading[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return found, share_R


@each
@pytest.mark.parametrize("modules", [False, True])
def test_every_tensor_is_the_weighted_sum_of_its_row(tmp_path, name, modules):
    architecture = ARCHITECTURES[name]
    found, share_R = merged(architecture, tmp_path, modules)
    first, second = (architecture.make(seed).state_dict() for seed in range(2))
    layers = find_layers(architecture.make(), modules)
    for tensor, value in found.state_dict().items():
        share = share_R[layers.of(tensor)]
        expected = share * first[tensor].double() + (1 - share) * second[tensor].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7, msg=tensor)


@each
def test_equal_models_come_back_bit_for_bit(tmp_path, name):
    one = ARCHITECTURES[name].save(tmp_path / "one")
    layers = checkpoint_layers(one)
    same = ARCHITECTURES[name].save(tmp_path / "same")
    merge([one, same], np.tile([0.3, 0.7], (len(layers.names), 1)), layers.of, tmp_path / "out", threads=1)
    expected = load_file(tmp_path / "one" / "model.safetensors")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    for tensor, value in expected.items():
        assert torch.equal(found[tensor], value), tensor


@pytest.mark.parametrize("name", TIED)
def test_tied_heads_stay_tied(tmp_path, name):
    merged(ARCHITECTURES[name], tmp_path)
    head, embedding = TIED[name]
    for found in (
        ARCHITECTURES[name].kind.from_pretrained(tmp_path / "out"),
        load_model(tmp_path / "out", torch.float32),
    ):
        assert found.get_submodule(head).weight is found.get_submodule(embedding).weight


def test_a_head_that_its_file_holds_apart_stays_apart(tmp_path):
    found, _ = merged(ARCHITECTURES["t5_free_head"], tmp_path)
    assert not torch.equal(found.lm_head.weight, found.shared.weight)
