"""Layers are found from the model itself, not from a list of names."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
)

from recall.errors import BadInput
from recall.layers import find_layers

small = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
grouped = small | {"num_key_value_heads": 2}
CONFIGS = {
    "model.layers": [
        LlamaConfig(**grouped),
        Qwen2Config(**grouped),
        Qwen3Config(**grouped, head_dim=8),
        MixtralConfig(**grouped, num_local_experts=8),
    ],
    "transformer.h": [GPT2Config(vocab_size=32, n_embd=16, n_layer=3, n_head=2)],
    "gpt_neox.layers": [GPTNeoXConfig(**small)],
}


@pytest.mark.parametrize(
    ("prefix", "config"),
    [(prefix, config) for prefix, configs in CONFIGS.items() for config in configs],
    ids=lambda value: value if isinstance(value, str) else value.model_type,
)
def test_every_parameter_belongs_to_its_layer(prefix, config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = find_layers(model)
    assert (layers.prefix, layers.count) == (prefix, 3)
    for name, _ in model.named_parameters():
        if name.startswith(prefix):
            assert layers.of(name) == int(name.removeprefix(prefix + ".").split(".")[0]) + 1
        else:
            is_embedding = any(part in name for part in ("embed", "wte", "wpe")) and "embed_out" not in name
            assert layers.of(name) == (0 if is_embedding else 3), name


def test_a_model_without_repeated_blocks_is_refused():
    with pytest.raises(BadInput, match="no list of repeated blocks"):
        find_layers(nn.Sequential(nn.Linear(2, 2)))
