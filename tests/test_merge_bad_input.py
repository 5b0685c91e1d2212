"""What `recall merge` refuses: one sentence, an exit code, and nothing left behind."""

import json
import multiprocessing
import os
import shutil
import signal

import pytest
import torch
from architectures import ARCHITECTURES
from merge_fixture import merged, read_record, refused, spoilt, tensors, write_samples, write_weights
from safetensors.torch import save_file
from tiny import llama
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from flows.cli import app
from recall.merge_job import _publishing


def test_another_architecture(pool, weights, tmp_path, tiny_gpt2_folder):
    sentence = refused([pool / "base", tiny_gpt2_folder], tmp_path / "out", "--weights", weights)
    assert "model_type is 'llama' in" in sentence
    assert "and 'gpt2' in" in sentence


def test_another_shape(pool, weights, tmp_path, tiny_tokenizer):
    other = llama(tmp_path / "other", vocab_size=len(tiny_tokenizer), intermediate_size=32).folder
    sentence = refused([pool / "base", other], tmp_path / "out", "--weights", weights)
    assert "tensor model.layers.0.mlp.down_proj.weight is 16 x 24 in" in sentence
    assert "and 16 x 32 in" in sentence


def test_another_vocabulary_size(pool, weights, tmp_path):
    sentence = refused([pool / "base", llama(tmp_path / "other").folder], tmp_path / "out", "--weights", weights)
    assert "tensor model.embed_tokens.weight is" in sentence
    assert "and 96 x 16 in" in sentence


def test_another_tokenizer(pool, weights, tmp_path):
    other = spoilt(pool, tmp_path)
    text = (other / "tokenizer.json").read_text()
    assert '"a": 2' in text
    (other / "tokenizer.json").write_text(text.replace('"a": 2', '"a": 3', 1).replace('"b": 3', '"b": 2', 1))
    sentence = refused([pool / "base", other], tmp_path / "out", "--weights", weights)
    assert "the tokenizers differ: token 'a' is 2 in" in sentence
    assert "and 3 in" in sentence


def test_a_value_that_is_not_finite(pool, weights, tmp_path):
    other = spoilt(pool, tmp_path)
    broken = tensors(other)
    broken["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(broken, other / "model.safetensors", metadata={"format": "pt"})
    sentence = refused([pool / "base", other], tmp_path / "out", "--weights", weights)
    assert "tensor model.layers.1.mlp.up_proj.weight holds NaN or Inf in" in sentence


def test_a_file_that_is_cut_short(pool, weights, tmp_path):
    other = spoilt(pool, tmp_path)
    file = other / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    assert "cut short" in refused([pool / "base", other], tmp_path / "out", "--weights", weights)


def test_a_file_that_is_garbage(pool, weights, tmp_path):
    other = spoilt(pool, tmp_path)
    (other / "model.safetensors").write_bytes(b"\xff" * 400)
    assert "is damaged" in refused([pool / "base", other], tmp_path / "out", "--weights", weights)


def test_an_index_that_names_a_missing_shard(pool, weights, tmp_path):
    other = spoilt(pool, tmp_path)
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    sentence = refused([pool / "base", other], tmp_path / "out", "--weights", weights)
    assert "names model-00002-of-00002.safetensors, which is not there" in sentence


@pytest.mark.parametrize("content", [{}, {"weight_map": ["model.safetensors"]}, {"weight_map": {}}])
def test_an_index_that_names_nothing(pool, weights, tmp_path, content):
    other = spoilt(pool, tmp_path)
    (other / "model.safetensors.index.json").write_text(json.dumps(content))
    sentence = refused([pool / "base", other], tmp_path / "out", "--weights", weights)
    assert "model.safetensors.index.json names no file of weights" in sentence


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"model": {"vocab": {"a"', "is not JSON"),
        ("{}", "holds no tokenizer (KeyError"),
        ('{"model": []}', "holds no tokenizer (AttributeError"),
        ('{"model": {"merges": [3]}}', "holds no tokenizer (TypeError"),
    ],
)
def test_a_tokenizer_that_is_cut_short_or_garbage(pool, weights, tmp_path, content, words):
    other = spoilt(pool, tmp_path)
    (other / "tokenizer.json").write_text(content)
    sentence = refused([pool / "base", other], tmp_path / "out", "--weights", weights)
    assert f"{other / 'tokenizer.json'} {words}" in sentence


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty; give at least one row"),
        ('{"prompt": "a"}\n{"target": "b"}\n', "row 2: a row needs a prompt or a text"),
        ('{"prompt": "a"}\n{half\n', "row 2: not JSON"),
        ('{"prompt": "a"}\n{"prompt": 3}\n', "row 2: Input should be a valid string"),
        ('{"text": "one"}\n{"text": "two"}\n', "has 2 samples, fewer than --clusters 20"),
    ],
)
def test_samples_that_cannot_be_used(pool, tmp_path, content, words):
    (tmp_path / "s.jsonl").write_text(content)
    sentence = refused([pool / "base", pool / "expert1"], tmp_path / "out", "--samples", tmp_path / "s.jsonl")
    assert words in sentence


def test_a_sample_longer_than_the_context_is_refused_or_cut_on_demand(tmp_path, pool, tiny_tokenizer):
    shape = {"vocab_size": len(tiny_tokenizer), "max_position_embeddings": 8}
    models = [llama(tmp_path / str(seed), seed=seed, **shape).folder for seed in (0, 1)]
    for model in models:
        tiny_tokenizer.save_pretrained(model)
    samples = write_samples(tmp_path / "s.jsonl", [{"text": "short"}, {"text": "abcdefghijkl"}, {"text": "also"}])
    options = ("--samples", samples, "--all-samples")
    sentence = refused(models, tmp_path / "out", *options)
    assert "sample 2 has 12 tokens, but the models read 8" in sentence
    merged(models, tmp_path / "out", *options, "--max-tokens", 8)
    merged(models, tmp_path / "more", *options, "--max-tokens", 800)
    assert read_record(tmp_path / "more").weights != read_record(tmp_path / "out").weights


def test_learned_positions_bound_what_max_tokens_lets_through(tmp_path, tiny_tokenizer):
    config = {"vocab_size": len(tiny_tokenizer), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 8}
    models = [tmp_path / name for name in ("one", "two")]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        GPT2LMHeadModel(GPT2Config(**config, bos_token_id=0, eos_token_id=0)).save_pretrained(model)
        tiny_tokenizer.save_pretrained(model)
    samples = write_samples(tmp_path / "s.jsonl", [{"text": "short"}, {"text": "abcdefghijkl"}])
    for name, tokens in (("out", 8), ("more", 800)):
        merged(models, tmp_path / name, "--samples", samples, "--all-samples", "--max-tokens", tokens)
    assert read_record(tmp_path / "more").weights == read_record(tmp_path / "out").weights
    done = CliRunner().invoke(app, ["moments", "--model", str(models[0]), "--samples", str(samples)])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[0.5, 0.5]] * 3, "the weights have 3 rows, the models 4 layers (with the embeddings)"),
        ([[0.5, 0.6]] * 4, "the weights of embeddings are [0.5, 0.6]; give 2 numbers, a model each, that sum to 1"),
        ([[1.0]] * 4, "give 2 numbers"),
    ],
)
def test_weights_that_do_not_fit(pool, tmp_path, rows, words):
    given = write_weights(tmp_path / "w.json", rows)
    assert words in refused([pool / "base", pool / "expert1"], tmp_path / "out", "--weights", given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "needs --samples, --generate or --weights"),
        (("--method", "magic"), "--method magic: input should be"),
        (("--method", "ties", "--density", "0"), "--density 0.0: input should be greater than 0"),
        (("--method", "ties", "--as-adapter"), "yields no low-rank difference"),
        (("--generate", "5", "--weights", "w.json"), "--generate and --weights exclude each other"),
        (("--generate", "5", "--clusters", "6"), "--generate 5 gives fewer texts than --clusters 6"),
        (
            ("--method", "average", "--as-adapter", "--max-memory", "1GB"),
            "--max-memory bounds the merge of full weights",
        ),
        (("--method", "average", "--rank", "2"), "give --as-adapter too"),
        (("--method", "average", "--max-memory", "1MB"), "but --max-memory allows 1 MB; raise it"),
        (("--method", "average", "--max-memory", "much"), "--max-memory much:"),
        (("--method", "average", "--max-memory", "0"), "--max-memory 0: input should be greater than 0"),
        (("--generate", "20", "--temperature", "inf"), "--temperature inf: input should be a finite number"),
        (("--generate", "20", "--sigma", "inf"), "--sigma inf:"),
    ],
)
def test_options_that_do_not_fit(pool, tmp_path, options, words):
    assert words in refused([pool / "base", pool / "expert1"], tmp_path / "out", *options)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_what_can_be_told_from_headers_is_refused_before_a_model_is_loaded(pool, samples, tmp_path, monkeypatch, dry):
    monkeypatch.setattr("recall.loading.model_class", lambda _: pytest.fail("a model was loaded"))
    both, out = [pool / "base", pool / "expert1"], tmp_path / "out"
    given = ("--samples", samples, *dry)
    assert "goes between two models, but 3" in refused([*both, pool / "expert2"], out, "--method", "slerp", *given)
    no_adapter = "--dry-run says what a merge into full" if dry else "only adapters of one base"
    assert no_adapter in refused(both, out, "--as-adapter", *given)


@pytest.mark.parametrize("row", [4, -1])
def test_weights_that_put_a_tensor_into_no_layer(pool, samples, tmp_path, row):
    models = [pool / "base", pool / "expert1"]
    merged(models, tmp_path / "out", "--samples", samples, "--clusters", 3)
    record = json.loads((tmp_path / "out" / "recall.json").read_text())
    record["tensor_layers"]["model.norm.weight"] = row
    (tmp_path / "w.json").write_text(json.dumps(record))
    sentence = refused(models, tmp_path / "again", "--weights", tmp_path / "w.json")
    assert f"put model.norm.weight into layer {row}, and have layers 0 to 3" in sentence


def test_a_model_that_writes_no_text_is_asked_for_none(tmp_path):
    models = [ARCHITECTURES["bert"].save(tmp_path / name).folder for name in ("one", "two")]
    assert "writes no text; give samples instead" in refused(models, tmp_path / "out", "--generate", "20")


def test_a_single_model(pool, tmp_path):
    assert "--model: list should have at least 2 items" in refused([pool / "base"], tmp_path / "out")


def test_a_folder_that_is_there_already_is_left_alone(pool, weights, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "is there already" in refused([pool / "base", pool / "expert1"], tmp_path / "out", "--weights", weights)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("options", [(), ("--as-adapter",)])
def test_a_disk_that_fills_up_while_writing(pool, tmp_path, files_of_at_most, options):
    models = [pool / "base", pool / "lora1"]
    rows = write_weights(tmp_path / "w.json", [[0.5, 0.5]] * 4)
    with files_of_at_most(1000):
        sentence = refused(models, tmp_path / "out", "--weights", rows, *options, code=1)
    assert "File too large" in sentence


def test_a_disk_that_has_no_room_is_seen_before_anything_is_read(pool, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("recall.merge_job.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    sentence = refused([pool / "base", pool / "expert1"], tmp_path / "out", "--weights", weights, code=1)
    assert "choose another disk" in sentence


@pytest.mark.parametrize("change", [{"num_attention_heads": 2}, {"hidden_act": "gelu"}, {"rms_norm_eps": 0.1}])
def test_tensors_of_the_same_shapes_that_compute_something_else(pool, weights, tmp_path, change):
    other = spoilt(pool, tmp_path)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | change))
    ((key, value),) = change.items()
    sentence = refused([pool / "base", other], tmp_path / "out", "--weights", weights)
    assert f"{key} is {config[key]!r} in" in sentence
    assert f"and {value!r} in" in sentence


def test_a_key_that_only_one_config_states_says_nothing(pool, weights, tmp_path):
    other = spoilt(pool, tmp_path)
    config = json.loads((other / "config.json").read_text())
    del config["tie_word_embeddings"]
    (other / "config.json").write_text(json.dumps(config))
    merged([pool / "base", other], tmp_path / "out", "--weights", weights)


def test_a_tokenizer_with_other_merges(pool, weights, tmp_path):
    other = spoilt(pool, tmp_path)
    content = json.loads((other / "tokenizer.json").read_text())
    merges = content["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    (other / "tokenizer.json").write_text(json.dumps(content))
    sentence = refused([pool / "base", other], tmp_path / "out", "--weights", weights)
    assert "the tokenizers differ: token 'merge of" in sentence


def test_tokenizers_without_a_tokenizer_json_are_compared_by_their_files(pool, weights, tmp_path):
    models = [shutil.copytree(pool / name, tmp_path / name) for name in ("base", "expert1")]
    for number, model in enumerate(models):
        (model / "tokenizer.json").unlink()
        (model / "vocab.json").write_text(json.dumps({"a": number}))
    assert "the tokenizers differ: vocab.json" in refused(models, tmp_path / "out", "--weights", weights)


def killed_while_writing(out):
    """A merge that gets the signal no process survives once it has written some of its output."""
    with _publishing(out) as partial:
        (partial / "model.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_merge_left_goes_with_the_next_one(pool, weights, tmp_path):
    process = multiprocessing.get_context("fork").Process(target=killed_while_writing, args=(tmp_path / "out",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / ".out.partial" / "model.safetensors").read_bytes() == b"half"
    merged([pool / "base", pool / "expert1"], tmp_path / "out", "--weights", weights)
    assert {path.name for path in tmp_path.iterdir()} == {"out", weights.name}


def test_a_merge_that_another_process_is_at_is_left_alone(pool, weights, tmp_path):
    with _publishing(tmp_path / "out") as partial:
        (partial / "model.safetensors").write_bytes(b"theirs")
        sentence = refused([pool / "base", pool / "expert1"], tmp_path / "out", "--weights", weights)
        assert (partial / "model.safetensors").read_bytes() == b"theirs"
    assert "out is being made by another process" in sentence


def test_moments_of_an_encoder_decoder_are_refused(tmp_path):
    model = ARCHITECTURES["t5"].save(tmp_path / "t5").folder
    samples = write_samples(tmp_path / "s.jsonl", [{"text": "one two"}])
    done = CliRunner().invoke(app, ["moments", "--model", str(model), "--samples", str(samples)])
    assert done.exit_code == 2
    assert "t5 is an encoder-decoder, whose moments are not taken" in " ".join(done.stderr.split())
