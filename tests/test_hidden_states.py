"""Representations of any transformer against the definition: one sample at a time, no padding, every state kept."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, OTHER, TEXT
from tiny import adapter, llama
from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

from recall.errors import BadInput
from recall.layers import find_layers
from recall.loaded_models import loaded
from recall.loading import lay_over, load_model, load_tokenizer
from recall.representations import represent, represent_inputs

PROMPTS = ["a b", "a longer prompt than that", "c", "one two three four five six seven"]
# Of states whose size is about 1, in float32.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
POOLINGS = {
    "mean": lambda states_TE: states_TE.mean(axis=0),
    "last": lambda states_TE: states_TE[-1],
    "skip_first": lambda states_TE: states_TE[1:].mean(axis=0) if len(states_TE) > 1 else states_TE[0],
}


@pytest.fixture
def tokenizer(tiny_model_folder):
    return load_tokenizer(tiny_model_folder)


def run(architecture, model, tokenizer, **options):
    if architecture.inputs:
        return represent_inputs(model, some_inputs(architecture), batch_size=3, **options)
    return represent(model, tokenizer, PROMPTS, batch_size=3, max_tokens=64, **options)


def some_inputs(architecture):
    generator = torch.Generator().manual_seed(7)
    return {name: torch.randn(4, *shape, generator=generator) for name, shape in architecture.inputs.items()}


def one_by_one(architecture, model, tokenizer):
    """Every sample as the model's own forward takes it."""
    two_stacks = model.config.is_encoder_decoder and any("decoder" in path for path in architecture.paths)
    start = [[model.config.decoder_start_token_id]] if two_stacks else None
    if architecture.inputs:
        ((name, samples),) = some_inputs(architecture).items()
        for sample in samples:
            yield {name: sample[None]} | ({"decoder_input_ids": torch.tensor(start)} if start else {})
    else:
        for prompt in PROMPTS:
            ids = torch.tensor([tokenizer(prompt).input_ids])
            shifted = torch.cat([torch.tensor(start), ids[:, :-1]], dim=1) if start else None
            yield {"input_ids": ids} | ({"decoder_input_ids": shifted} if start else {})


def outputs(model, path, inputs):
    """What leaves the modules under `path`, and what the model itself calls its hidden states."""
    kept = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda _, __, output: kept.append(output if isinstance(output, torch.Tensor) else output[0])
    )
    with torch.no_grad():
        whole = model(**inputs, output_hidden_states=True)
    handle.remove()
    states = whole.hidden_states if "hidden_states" in whole else whole.encoder_hidden_states
    return kept[0][0].double().numpy(), states[0][0].double().numpy()


def by_definition(architecture, model, tokenizer, pooling="mean", within=("",)):
    samples = []
    for inputs in one_by_one(architecture, model, tokenizer):
        paths = [f"{path}.{part}".rstrip(".") for path in architecture.paths for part in parts_of(model, path, within)]
        found = [outputs(model, path, inputs) for path in paths]
        samples.append([POOLINGS[pooling](states) for states in (found[0][1], *(after for after, _ in found))])
    return np.array(samples).transpose(1, 0, 2)


def parts_of(model, path, within):
    """The named parts that this block has: an encoder's has no cross attention, which in a decoder comes last."""
    names = dict(model.get_submodule(path).named_modules())
    return [next(name for name in part.split("|") if name in names) for part in within]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_they_are_the_means_of_what_leaves_each_layer(tokenizer, name):
    architecture = ARCHITECTURES[name]
    model = architecture.make()
    found_RPE = run(architecture, model, tokenizer)
    assert found_RPE.dtype == np.float32
    assert found_RPE.shape == (1 + len(architecture.paths), 4, 16)
    np.testing.assert_allclose(found_RPE, by_definition(architecture, model, tokenizer), **CLOSE)


@pytest.mark.parametrize("pooling", ["last", "skip_first"])
@pytest.mark.parametrize("name", ["llama", "roberta", "t5", "vit", "whisper"])
def test_other_poolings(tokenizer, name, pooling):
    architecture = ARCHITECTURES[name]
    model = architecture.make()
    found_RPE = run(architecture, model, tokenizer, pooling=pooling)
    expected = by_definition(architecture, model, tokenizer, pooling)
    np.testing.assert_allclose(found_RPE, expected, **CLOSE)


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("llama", "self_attn"),
        ("mixtral", "self_attn"),
        ("gpt2", "attn"),
        ("bert", "attention"),
        ("vit", "attention"),
        ("t5", "layer.1.EncDecAttention|layer.0.SelfAttention"),
        ("whisper", "encoder_attn|self_attn"),
    ],
)
def test_with_modules_attention_has_a_row_before_its_block(tokenizer, name, attention):
    architecture = ARCHITECTURES[name]
    model = architecture.make()
    found_RPE = run(architecture, model, tokenizer, modules=True)
    assert len(found_RPE) == len(find_layers(model, modules=True).names)
    expected = by_definition(architecture, model, tokenizer, within=(attention, ""))
    np.testing.assert_allclose(found_RPE, expected, **CLOSE)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_last_layer_alone_is_the_last_of_all(tokenizer, name):
    architecture = ARCHITECTURES[name]
    model = architecture.make()
    every, last = (run(architecture, model, tokenizer, last_layer_only=only) for only in (False, True))
    np.testing.assert_array_equal(last, every[-1:])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", TEXT)
def test_a_model_loaded_from_its_folder_gives_the_same(tmp_path, tokenizer, name):
    architecture = ARCHITECTURES[name]
    model = load_model(architecture.save(tmp_path / "model").folder, torch.float32)
    assert type(model) is architecture.kind
    expected = run(architecture, architecture.make(), tokenizer)
    np.testing.assert_allclose(run(architecture, model, tokenizer), expected, **CLOSE)


@pytest.mark.parametrize("name", OTHER)
def test_so_does_one_that_reads_no_text(tmp_path, name):
    architecture = ARCHITECTURES[name]
    model = load_model(architecture.save(tmp_path / "model").folder, torch.float32)
    expected = run(architecture, architecture.make(), None)
    np.testing.assert_allclose(run(architecture, model, None), expected, **CLOSE)


def test_a_vocabulary_padded_past_the_tokenizer_works(tmp_path, tokenizer):
    wide = load_model(llama(tmp_path / "wide", vocab_size=len(tokenizer) + 31).folder, torch.float32)
    assert represent(wide, tokenizer, PROMPTS, batch_size=2, max_tokens=64).shape == (4, 4, 16)


def test_adapters_are_switched_over_one_base(tmp_path, tiny_tokenizer):
    base = llama(tmp_path / "base")
    tiny_tokenizer.save_pretrained(base.folder)
    found = {}
    for seed in (1, 2):
        expert = adapter(tmp_path / str(seed), base, seed=seed)
        tiny_tokenizer.save_pretrained(expert.folder)
        with loaded(expert, torch.float32) as (model, tokenizer):
            found[seed] = represent(model, tokenizer, PROMPTS, batch_size=4, max_tokens=64, modules=True)
            alone = lay_over(load_model(base.folder, torch.float32), expert.folder)
            np.testing.assert_allclose(
                found[seed], represent(alone, tokenizer, PROMPTS, batch_size=4, max_tokens=64, modules=True), rtol=1e-5
            )
    assert np.abs(found[1][1:] - found[2][1:]).max() > 1e-3


def two_berts(width):
    """A pair that no class of its own stands for: any encoder and any decoder."""
    shape = {"vocab_size": 96, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    reads = BertConfig(**shape, hidden_size=16)
    writes = BertConfig(**shape, hidden_size=width, is_decoder=True, add_cross_attention=True)
    pair = EncoderDecoderConfig.from_encoder_decoder_configs(reads, writes)
    pair.decoder_start_token_id, pair.pad_token_id = 2, 1
    return EncoderDecoderModel(pair).eval()


def test_any_pair_of_encoder_and_decoder_has_layers_and_representations(tokenizer):
    model = two_berts(16)
    blocks = [f"{stack}.layer.{i}" for stack in ("encoder.encoder", "decoder.bert.encoder") for i in range(2)]
    assert find_layers(model).names == ["embeddings", *blocks]
    assert find_layers(model).of("decoder.bert.embeddings.LayerNorm.weight") == 0
    assert represent(model, tokenizer, PROMPTS, batch_size=4, max_tokens=64).shape == (5, 4, 16)


def test_encoder_and_decoder_of_different_widths_are_refused(tokenizer):
    with pytest.raises(BadInput, match=r"of hidden sizes \[16, 32\]"):
        represent(two_berts(32), tokenizer, PROMPTS, batch_size=4, max_tokens=64)


def test_a_prompt_without_tokens_is_named(tokenizer):
    with pytest.raises(BadInput, match=r"prompt 1 .* has no tokens"):
        represent(ARCHITECTURES["llama"].make(), tokenizer, ["a", ""], batch_size=4, max_tokens=64)
