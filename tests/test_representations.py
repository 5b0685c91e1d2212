"""Layer-wise representations (docs/method.md, step 3) against the definition, with every hidden state kept."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from tiny import adapter, llama, load

from recall.loading import load_tokenizer
from recall.representations import represent

PROMPTS = ["a b", "a longer prompt than that", "c", "one two three four five six seven"]


@pytest.fixture
def model(tmp_path):
    return load(llama(tmp_path / "model")).eval()


@pytest.fixture
def tokenizer(tiny_model_folder):
    return load_tokenizer(tiny_model_folder)


def by_definition(model, tokenizer, prompts):
    """One prompt at a time, no padding; the last layer's state before the final norm by a hook."""
    rows = []
    for prompt in prompts:
        before_norm = []
        handle = model.model.norm.register_forward_pre_hook(lambda _, args, kept=before_norm: kept.append(args[0]))
        with torch.no_grad():
            hidden = model(torch.tensor([tokenizer(prompt).input_ids]), output_hidden_states=True).hidden_states
        handle.remove()
        rows.append(torch.stack([state[0].double().mean(dim=0) for state in (*hidden[:-1], before_norm[0])]))
    return torch.stack(rows, dim=1).numpy()


def test_it_is_the_mean_over_tokens_of_what_leaves_each_layer(model, tokenizer):
    found_LPE = represent(model, tokenizer, PROMPTS, batch_size=3, max_tokens=64)
    assert found_LPE.dtype == np.float32
    np.testing.assert_allclose(found_LPE, by_definition(model, tokenizer, PROMPTS), rtol=1e-4, atol=1e-6)


def test_batches_do_not_change_the_result(model, tokenizer):
    one_by_one = represent(model, tokenizer, PROMPTS, batch_size=1, max_tokens=64)
    together = represent(model, tokenizer, PROMPTS, batch_size=4, max_tokens=64)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-4, atol=1e-6)


def test_the_last_layer_alone_is_the_last_of_all(model, tokenizer):
    every = represent(model, tokenizer, PROMPTS, batch_size=4, max_tokens=64)
    last = represent(model, tokenizer, PROMPTS, batch_size=4, max_tokens=64, last_layer_only=True)
    np.testing.assert_array_equal(last[0], every[-1])


def test_a_prompt_longer_than_allowed_loses_its_beginning(model, tokenizer):
    words = PROMPTS[3].split()
    cut = represent(model, tokenizer, [PROMPTS[3]], batch_size=4, max_tokens=2)
    kept = tokenizer(PROMPTS[3]).input_ids[-2:]
    assert len(words) > 2
    expected = represent(model, tokenizer, [tokenizer.decode(kept)], batch_size=4, max_tokens=2)
    np.testing.assert_allclose(cut, expected)


def test_an_adapter_changes_what_comes_after_it_and_not_the_embeddings(tmp_path, tokenizer):
    base = llama(tmp_path / "base")
    expert = PeftModel.from_pretrained(load(base), adapter(tmp_path / "adapter", base).folder).eval()
    plain_LPE = represent(load(base).eval(), tokenizer, PROMPTS, batch_size=4, max_tokens=64)
    adapted_LPE = represent(expert, tokenizer, PROMPTS, batch_size=4, max_tokens=64)
    np.testing.assert_array_equal(adapted_LPE[0], plain_LPE[0])
    assert (np.abs(adapted_LPE[1:] - plain_LPE[1:]).max(axis=(1, 2)) > 1e-4).all()


def test_the_model_is_left_without_hooks(model, tokenizer):
    represent(model, tokenizer, PROMPTS, batch_size=4, max_tokens=64)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
