"""Adapters of every make: merged as PEFT itself would, or refused; never wrong in silence."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import llama, load
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from recall.as_adapter import write_adapter
from recall.checkpoints import Checkpoint
from recall.errors import BadInput
from recall.merge_job import check_members
from recall.merge_request import MergeRequest
from recall.merging import merge
from recall.pool import Pool
from recall.structure import checkpoint_layers, tied_with
from recall.tensor_files import TensorFolder

LINEAR = ["q_proj", "down_proj"]


def made_with(folder, base, **config):
    """A LoRA adapter by PEFT, with random factors."""
    torch.manual_seed(5)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": LINEAR} | config
    model = get_peft_model(load(base), LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder, save_embedding_layers=False)
    return Checkpoint(folder, base)


def newest_alone(members, out):
    layers = checkpoint_layers(members[0])
    merge(members, np.tile([0.0, 1.0], (len(layers.names), 1)), layers.of, out)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"down_proj": 2}},
        {"alpha_pattern": {"down_proj": 32}},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 1}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 9}},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": "all-linear"},
        {"layers_to_transform": [1]},
    ],
)
def test_an_adapter_is_what_peft_makes_of_it(tmp_path, config):
    base = llama(tmp_path / "base", tie_word_embeddings=False)
    expert = made_with(tmp_path / "adapter", base, **config)
    expected = PeftModel.from_pretrained(load(base), expert.folder).merge_and_unload().state_dict()
    found = newest_alone([base, expert], tmp_path / "out")
    changed = 0
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
        changed += not torch.equal(tensor, load_file(base.folder / "model.safetensors")[name])
    assert changed > 0


def test_weights_kept_as_inputs_by_outputs(tmp_path, tiny_gpt2_folder):
    model = load(Checkpoint(tiny_gpt2_folder))
    model.lm_head.weight = torch.nn.Parameter(2 * model.lm_head.weight)
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path / "base")
    base = Checkpoint(tmp_path / "base")
    for number, modules in enumerate((["c_attn", "c_fc"], ["attn.c_proj"], ["attn.c_proj", "wte"])):
        expert = made_with(tmp_path / f"adapter{number}", base, target_modules=modules, fan_in_fan_out=True)
        # PEFT writes what it set for the last module that it met, and does not read it again.
        path = expert.folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": number == 1}))
        expected = PeftModel.from_pretrained(load(base), expert.folder).merge_and_unload().state_dict()
        for name, tensor in newest_alone([base, expert], tmp_path / f"out{number}").items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = ['lm_head']"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
    ],
)
def test_what_is_more_than_a_low_rank_difference_is_refused_with_a_way_out(tmp_path, config, words):
    base = llama(tmp_path / "base", tie_word_embeddings=False)
    expert = made_with(tmp_path / "adapter", base, target_modules=["down_proj"])
    path = expert.folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(BadInput, match=re.escape(words)) as refusal:
        newest_alone([base, expert], tmp_path / "out")
    assert "merge_and_unload" in str(refusal.value)


@pytest.mark.parametrize("config", [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}])
def test_such_adapters_as_peft_saves_them_are_refused_too(tmp_path, config):
    base = llama(tmp_path / "base", tie_word_embeddings=False)
    expert = made_with(tmp_path / "adapter", base, target_modules=["down_proj"], **config)
    with pytest.raises(BadInput, match="is more than a low-rank difference"):
        newest_alone([base, expert], tmp_path / "out")


def tied_gpt2(folder):
    shape = {"vocab_size": 96, "n_embd": 16, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
    GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(folder)
    return Checkpoint(folder)


def llama_saved_without_its_head(folder):
    load(llama(folder.with_name("whole"))).model.save_pretrained(folder)
    return Checkpoint(folder)


@pytest.mark.parametrize(
    ("make", "module"),
    [(llama, "embed_tokens"), (tied_gpt2, "wte"), (llama_saved_without_its_head, "embed_tokens")],
)
def test_an_adapter_of_an_embedding_that_is_the_head_too_is_refused(tmp_path, make, module):
    """What PEFT makes of it is no model with one tensor for both, as its own warning says."""
    base = make(tmp_path / "base")
    expert = made_with(tmp_path / "adapter", base, target_modules=[module])
    alone, tokens = PeftModel.from_pretrained(load(base), expert.folder), torch.arange(8)[None]
    before = alone(tokens).logits
    assert not torch.allclose(alone.merge_and_unload()(tokens).logits, before, atol=0.1)
    said = r"uses as lm_head\.weight too: merged it would change both"
    with pytest.raises(BadInput, match=said):
        newest_alone([base, expert], tmp_path / "out")
    request = MergeRequest(models=[str(base.folder), str(expert.folder)], out=tmp_path / "out")
    with pytest.raises(BadInput, match=said):
        check_members(request, [base, expert])
    check_members(request.model_copy(update={"as_adapter": True}), [base, expert])


def test_as_one_adapter_it_is_what_it_was(tmp_path):
    """No tensor of the base's changes."""
    base = llama(tmp_path / "base")
    expert = made_with(tmp_path / "adapter", base, target_modules=["embed_tokens", "q_proj"])
    layers, pool = checkpoint_layers(base), Pool([base, expert])
    write_adapter(pool, np.tile([0.0, 1.0], (len(layers.names), 1)), layers.of, tmp_path / "out")
    pool.close()
    tokens = torch.arange(8)[None]
    found, expected = (
        PeftModel.from_pretrained(load(base), folder)(tokens).logits for folder in (tmp_path / "out", expert.folder)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied_by_peft", [False, True])
def test_an_adapter_of_a_head_that_is_the_embedding_too_is_refused(tmp_path, tied_by_peft):
    base = llama(tmp_path / "base")
    changes = {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}
    expert = made_with(tmp_path / "adapter", base, **(changes if tied_by_peft else {"target_modules": ["lm_head"]}))
    with pytest.raises(BadInput, match=r"changes lm_head, which .* ties it to another part"):
        newest_alone([base, expert], tmp_path / "out")


def test_an_embedding_that_is_nothing_else_is_not_refused(tmp_path):
    """The head of a classifier is its own, though BERT's config says tied; so are positions."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=96, tie_word_embeddings=True, **shape)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    tied_gpt2(tmp_path / "gpt2")
    for folder, name in (("bert", "bert.embeddings.word_embeddings"), ("gpt2", "transformer.wpe")):
        files = TensorFolder(tmp_path / folder)
        assert tied_with(files, f"{name}.weight") is None
        files.close()


def test_a_merge_without_such_an_adapter_takes_no_transformers():
    """It takes longer to import than most merges."""
    code = "import sys, recall.pool, recall.methods; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


def test_a_stray_tensor_in_an_adapter_is_refused(tmp_path):
    base = llama(tmp_path / "base")
    expert = made_with(tmp_path / "adapter", base)
    file = expert.folder / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.lm_head.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"holds base_model\.model\.lm_head\.weight, which is no factor"):
        newest_alone([base, expert], tmp_path / "out")


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_a_factor_without_its_other_half_is_refused(tmp_path, half):
    base = llama(tmp_path / "base")
    expert = made_with(tmp_path / "adapter", base)
    file = expert.folder / "adapter_model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if f"layers.0.mlp.down_proj.{half}" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=rf"lacks .*layers\.0\.mlp\.down_proj\.{half}\.weight"):
        newest_alone([base, expert], tmp_path / "out")


def test_a_value_in_an_adapter_that_is_not_finite_is_named(tmp_path):
    base = llama(tmp_path / "base")
    expert = made_with(tmp_path / "adapter", base)
    file = expert.folder / "adapter_model.safetensors"
    factors = load_file(file)
    factors["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"][0, 0] = float("inf")
    save_file(factors, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"model\.layers\.0\.mlp\.down_proj\.weight holds NaN or Inf in adapter"):
        newest_alone([base, expert], tmp_path / "out")
