"""`recall merge` on models that are no causal language models: encoders, encoder-decoders, images and sound."""

import json

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES
from merge_fixture import TEXTS, merged, read_record, refused, write_samples
from safetensors.torch import load_file, save_file

READ_TEXT = ["bert", "roberta", "t5"]
READ_INPUTS = ["vit", "wav2vec2", "whisper", "whisper_classifier"]


def two_models(folder, kind, tokenizer=None):
    """Two random instances; a text model with a tokenizer as long as its vocabulary allows."""
    models = []
    for seed in (0, 1):
        model = ARCHITECTURES[kind].save(folder / str(seed), seed=seed).folder
        if tokenizer is not None:
            tokenizer.save_pretrained(model)
        models.append(model)
    return models


def check(models, out, kind, count):
    record = read_record(out)
    assert record.samples == count
    assert np.array(record.similarities).shape == (len(record.layers), 2)
    np.testing.assert_allclose(np.sum(record.weights, axis=1), 1)
    assert record.losses == []
    assert record.warnings == []
    first, second = (load_file(model / "model.safetensors") for model in models)
    for name, found in load_file(out / "model.safetensors").items():
        if found.is_floating_point():
            weight = record.weights[record.tensor_layers[name]]
            torch.testing.assert_close(found, weight[0] * first[name] + weight[1] * second[name])
    ARCHITECTURES[kind].kind.from_pretrained(out)


@pytest.mark.parametrize("kind", READ_TEXT)
def test_models_that_read_text_and_do_not_write_it_as_it_comes(tmp_path, tiny_tokenizer, kind):
    models = two_models(tmp_path, kind, tiny_tokenizer)
    samples = write_samples(tmp_path / "s.jsonl", [{"text": text} for text in TEXTS])
    merged(models, tmp_path / "out", "--samples", samples, "--clusters", 4, "--max-tokens", 16)
    check(models, tmp_path / "out", kind, count=4)


@pytest.mark.parametrize("kind", READ_INPUTS)
def test_models_that_read_images_and_sound_take_samples_as_tensors(tmp_path, kind):
    models = two_models(tmp_path, kind)
    torch.manual_seed(0)
    shapes = ARCHITECTURES[kind].inputs
    save_file({name: torch.randn(9, *shape) for name, shape in shapes.items()}, tmp_path / "s.safetensors")
    merged(models, tmp_path / "out", "--samples", tmp_path / "s.safetensors", "--clusters", 4)
    check(models, tmp_path / "out", kind, count=4)


def test_inputs_that_the_model_does_not_take(tmp_path):
    models = two_models(tmp_path, "vit")
    save_file({"input_features": torch.zeros(3, 4)}, tmp_path / "s.safetensors")
    sentence = refused(models, tmp_path / "out", "--samples", tmp_path / "s.safetensors", "--all-samples")
    assert "reads pixel_values, and the samples have input_features (3, 4)" in sentence
    save_file({"pixel_values": torch.zeros(3, 1, 5, 5)}, tmp_path / "s.safetensors")
    sentence = refused(models, tmp_path / "out", "--samples", tmp_path / "s.safetensors", "--all-samples")
    assert "cannot read pixel_values (3, 1, 5, 5)" in sentence


@pytest.mark.parametrize("tensors", [{}, {"pixel_values": torch.zeros(0, 3, 16, 16)}])
def test_a_file_without_samples(tmp_path, tensors):
    models = two_models(tmp_path, "vit")
    save_file(tensors, tmp_path / "s.safetensors")
    assert "give every tensor as many, and some" in refused(
        models, tmp_path / "out", "--samples", tmp_path / "s.safetensors"
    )


def test_loss_on_text_is_not_to_be_had_of_images(tmp_path):
    models = two_models(tmp_path, "vit")
    save_file({"pixel_values": torch.zeros(2, 3, 16, 16)}, tmp_path / "s.safetensors")
    options = ("--samples", tmp_path / "s.safetensors", "--method", "lm_cocktail")
    assert "weighs by the loss on text" in refused(models, tmp_path / "out", *options)


def test_loss_on_text_is_not_to_be_had_of_models_that_write_none(tmp_path, tiny_tokenizer):
    models = two_models(tmp_path, "t5", tiny_tokenizer)
    samples = write_samples(tmp_path / "s.jsonl", [{"text": text} for text in TEXTS])
    options = ("--samples", samples, "--all-samples", "--method", "lm_cocktail")
    assert "lm_cocktail needs causal language models" in refused(models, tmp_path / "out", *options)


def test_roberta_counts_its_positions_from_behind_the_padding(tmp_path, tiny_tokenizer):
    models = two_models(tmp_path, "roberta", tiny_tokenizer)
    config = json.loads((models[0] / "config.json").read_text())
    room = config["max_position_embeddings"] - config["pad_token_id"] - 1
    samples = write_samples(tmp_path / "s.jsonl", [{"text": "a" * length} for length in (room, 5, 6)])
    merged(models, tmp_path / "out", "--samples", samples, "--all-samples")
    samples = write_samples(tmp_path / "s.jsonl", [{"text": "a" * length} for length in (room + 1, 5, 6)])
    sentence = refused(models, tmp_path / "again", "--samples", samples, "--all-samples")
    assert f"sample 1 has {room + 1} tokens, but the models read {room}" in sentence


def test_a_checkpoint_whose_tensors_have_no_layer_is_refused_by_name(tmp_path):
    models = two_models(tmp_path, "bert")
    for model in models:
        extra = load_file(model / "model.safetensors") | {"mystery.weight": torch.zeros(2, 2)}
        save_file(extra, model / "model.safetensors", metadata={"format": "pt"})
    rows = tmp_path / "w.json"
    rows.write_text(json.dumps({"weights": [[0.5, 0.5]] * 4}))
    sentence = refused(models, tmp_path / "out", "--weights", rows)
    assert "tensor mystery.weight belongs to no layer of" in sentence
