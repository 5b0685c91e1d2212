"""`recall merge`: any checkpoints in, a folder that transformers opens out, and everything that is refused."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import adapter, llama, load
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import recall.tensor_files
from flows.cli import app
from recall.checkpoints import Checkpoint
from recall.merge_request import read_record

LAYERS = ["embeddings", "model.layers.0", "model.layers.1", "model.layers.2"]
TEXTS = ["one two", "a longer text than that", "three", "four and five", "six", "seven eight nine", "ten", "more words"]


@pytest.fixture(scope="module")
def pool(tmp_path_factory, tiny_tokenizer):
    """A base model, two full fine-tunes of it and an adapter over it, all with a tokenizer and generation config."""
    folder = tmp_path_factory.mktemp("pool")
    shape = {"vocab_size": len(tiny_tokenizer), "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0}
    base = llama(folder / "base", **shape)
    for number in (1, 2):
        moved = load(base)
        torch.manual_seed(number)
        for parameter in moved.parameters():
            parameter.data += 0.02 * number * torch.randn_like(parameter)
        moved.save_pretrained(folder / f"expert{number}")
    for name in ("base", "expert1", "expert2"):
        tiny_tokenizer.save_pretrained(folder / name)
    adapter(folder / "lora1", base, seed=1)
    adapter(folder / "lora2", base, seed=2, rank=3)
    return folder


@pytest.fixture
def samples(tmp_path):
    return write_samples(tmp_path / "samples.jsonl", [{"prompt": text} for text in TEXTS])


@pytest.fixture
def weights(tmp_path):
    return write_weights(tmp_path / "weights.json", [[0.5, 0.5], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])


def write_samples(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def write_weights(path, rows):
    path.write_text(json.dumps({"weights": rows}))
    return path


def invoke(*arguments):
    return CliRunner().invoke(app, ["merge", *map(str, arguments)])


def merged(models, out, *arguments):
    done = invoke(*(part for model in models for part in ("--model", model)), "--out", out, *arguments)
    assert done.exit_code == 0, done.output
    return done


def refused(models, out, *arguments, code=2):
    """The one sentence that the command ends with."""
    before = set(out.parent.iterdir())
    done = invoke(*(part for model in models for part in ("--model", model)), "--out", out, *arguments)
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    assert set(out.parent.iterdir()) == before, "something was left behind"
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("recall: ")]
    return sentence


def tensors(folder):
    return load_file(folder / "model.safetensors")


# What it writes


def test_weights_come_from_samples_and_the_folder_opens_and_generates(pool, samples, tmp_path):
    models = [pool / "base", pool / "expert1", pool / "expert2"]
    merged(models, tmp_path / "out", "--samples", samples, "--clusters", 4)
    record = read_record(tmp_path / "out")
    assert record.layers == LAYERS
    assert record.models == [str(model) for model in models]
    assert np.array(record.weights).shape == np.array(record.similarities).shape == (4, 3)
    np.testing.assert_allclose(np.sum(record.weights, axis=1), 1)
    assert all(row[2] == max(row) for row in record.weights)
    assert [row[2] for row in record.similarities] == [1.0] * 4
    assert len(record.sigma) == 4
    assert record.samples == 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("one two", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, ids.shape[1] + 3)
    assert (tmp_path / "out" / "generation_config.json").is_file()


def test_every_tensor_is_the_sum_by_the_record_s_weights(pool, samples, tmp_path):
    models = [pool / "base", pool / "expert1", pool / "expert2"]
    merged(models, tmp_path / "out", "--samples", samples, "--all-samples")
    record = read_record(tmp_path / "out")
    inputs = [tensors(model) for model in models]
    for name, found in tensors(tmp_path / "out").items():
        shares = record.weights[record.tensor_layers[name]]
        expected = sum(share * model[name].double() for share, model in zip(shares, inputs, strict=True))
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)


def test_a_record_makes_the_same_model_again_without_samples(pool, samples, tmp_path):
    models = [pool / "base", pool / "expert1"]
    merged(models, tmp_path / "first", "--samples", samples, "--clusters", 3)
    merged(models, tmp_path / "again", "--weights", tmp_path / "first" / "recall.json")
    first, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again"))
    assert first == again


def test_the_card_says_how_it_was_made(pool, weights, tmp_path):
    merged([pool / "base", pool / "expert1"], tmp_path / "out", "--weights", weights)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\nbase_model:\n- ")
    assert "| model.layers.1 | 0.300 | 0.700 |" in card
    assert "arxiv.org/abs/2510.20479" in card
    assert "the weights were given" in card


def test_json_is_the_record(pool, weights, tmp_path):
    done = merged([pool / "base", pool / "expert1"], tmp_path / "out", "--weights", weights, "--json")
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "recall.json").read_text())


def test_a_dry_run_shows_layers_sizes_and_memory_and_writes_nothing(pool, weights, tmp_path):
    models = [pool / "base", pool / "expert1"]
    done = merged(models, tmp_path / "out", "--weights", weights, "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert [layer["name"] for layer in plan["layers"]] == LAYERS
    sizes = {name: tensor.numel() for name, tensor in tensors(pool / "base").items()}
    assert plan["parameters"] == sum(sizes.values())
    assert plan["bytes"] == 4 * plan["parameters"]
    assert plan["memory"] > 0
    assert not (tmp_path / "out").exists()
    assert "model.layers.2" in merged(models, tmp_path / "out", "--weights", weights, "--dry-run").stdout


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


def test_a_hub_id_is_found_in_the_hub_s_cache(pool, weights, tmp_path, monkeypatch):
    commit = "0123456789" * 4
    snapshot = tmp_path / "hub" / "models--team--expert" / "snapshots" / commit
    shutil.copytree(pool / "expert1", snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(commit)
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    merged([pool / "base", "team/expert"], tmp_path / "by_id", "--weights", weights)
    merged([pool / "base", f"team/expert@{commit}"], tmp_path / "by_revision", "--weights", weights)
    merged([pool / "base", pool / "expert1"], tmp_path / "by_folder", "--weights", weights)
    expected = (tmp_path / "by_folder" / "model.safetensors").read_bytes()
    for name in ("by_id", "by_revision"):
        assert (tmp_path / name / "model.safetensors").read_bytes() == expected
    sentence = refused([pool / "base", "team/unknown"], tmp_path / "out", "--weights", weights)
    assert "model team/unknown is no folder here and cannot be had from the hub" in sentence


def test_sharded_models_go_in_and_come_out(pool, weights, tmp_path, monkeypatch):
    for name in ("base", "expert1"):
        load(Checkpoint(pool / name)).save_pretrained(tmp_path / name, max_shard_size="8KB")
        assert (tmp_path / name / "model.safetensors.index.json").is_file()
    merged([pool / "base", pool / "expert1"], tmp_path / "whole", "--weights", weights)
    monkeypatch.setattr(recall.tensor_files, "SHARD_BYTES", 8000)
    merged([tmp_path / "base", tmp_path / "expert1"], tmp_path / "sharded", "--weights", weights)
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    found = {}
    for shard in set(index["weight_map"].values()):
        found |= load_file(tmp_path / "sharded" / shard)
    expected = tensors(tmp_path / "whole")
    assert found.keys() == expected.keys() == index["weight_map"].keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# One adapter out of several


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


# Options of the method


@pytest.mark.parametrize(
    "options",
    [
        ("--similarity", "cka"),
        ("--similarity", "cosine"),
        ("--pooling", "last"),
        ("--pooling", "skip_first"),
        ("--granularity", "model"),
        ("--granularity", "group", "--group-size", "2"),
        ("--temperature", "0.1"),
        ("--sigma", "3.5"),
    ],
)
def test_every_option_changes_the_weights_and_keeps_their_sum(pool, samples, tmp_path, options):
    models = [pool / "base", pool / "expert1"]
    merged(models, tmp_path / "plain", "--samples", samples, "--all-samples", "--no-check")
    merged(models, tmp_path / "out", "--samples", samples, "--all-samples", "--no-check", *options)
    plain, other = read_record(tmp_path / "plain"), read_record(tmp_path / "out")
    np.testing.assert_allclose(np.sum(other.weights, axis=1), 1)
    assert not np.allclose(plain.weights, other.weights, atol=1e-6)


def test_modules_have_weights_of_their_own(pool, samples, tmp_path):
    models = [pool / "base", pool / "expert1"]
    merged(models, tmp_path / "out", "--samples", samples, "--all-samples", "--granularity", "module")
    record = read_record(tmp_path / "out")
    assert record.layers[:3] == ["embeddings", "model.layers.0.attention", "model.layers.0.mlp"]
    inputs = [tensors(model) for model in models]
    rows = dict(zip(record.layers, record.weights, strict=True))
    for module, name in (("attention", "self_attn.q_proj"), ("mlp", "mlp.up_proj")):
        tensor = f"model.layers.1.{name}.weight"
        shares = rows[f"model.layers.1.{module}"]
        expected = sum(share * model[tensor].double() for share, model in zip(shares, inputs, strict=True))
        torch.testing.assert_close(tensors(tmp_path / "out")[tensor].double(), expected, rtol=1e-6, atol=1e-7)


def test_a_model_that_is_too_unlike_gets_no_weight_at_that_layer(pool, samples, tmp_path):
    models = [pool / "base", pool / "expert1"]
    merged(models, tmp_path / "out", "--samples", samples, "--all-samples", "--alignment-threshold", "1")
    assert read_record(tmp_path / "out").weights == [[0.0, 1.0]] * 4
    expected = tensors(pool / "expert1")
    assert all(torch.equal(found, expected[name]) for name, found in tensors(tmp_path / "out").items())


def test_no_data_is_needed_where_the_newest_model_makes_it_up(pool, tmp_path):
    models = [pool / "base", pool / "expert1"]
    for name in ("out", "again"):
        merged(models, tmp_path / name, "--generate", 12, "--clusters", 5, "--seed", 3)
    record = read_record(tmp_path / "out")
    assert record.samples == 5
    assert record.weights == read_record(tmp_path / "again").weights


# Methods


@pytest.mark.parametrize("method", ["average", "task_arithmetic", "slerp", "ties", "dare", "pruned_average"])
def test_a_baseline_needs_neither_samples_nor_weights(pool, tmp_path, method):
    merged([pool / "base", pool / "expert1"], tmp_path / "out", "--method", method, "--scale", "0.5")
    assert read_record(tmp_path / "out").settings["method"] == method
    found, base, expert = (tensors(folder) for folder in (tmp_path / "out", pool / "base", pool / "expert1"))
    for name in found:
        middle = (base[name] + expert[name]) / 2
        assert not torch.equal(found[name], base[name]), "an export that silently equals the base"
        if method in ("average", "task_arithmetic"):
            torch.testing.assert_close(found[name], middle, rtol=1e-6, atol=1e-7)
        elif method == "slerp":
            # The arc between models as near as these is almost a line, and not quite.
            torch.testing.assert_close(found[name], middle, rtol=1e-2, atol=1e-2)
        else:
            assert not torch.equal(found[name], middle)


def test_lm_cocktail_weighs_by_loss_on_the_samples_answers(pool, tmp_path):
    rows = [{"prompt": text, "target": "yes"} for text in TEXTS]
    samples = write_samples(tmp_path / "s.jsonl", rows)
    merged([pool / "base", pool / "expert2"], tmp_path / "out", "--method", "lm_cocktail", "--samples", samples,
           "--all-samples")  # fmt: skip
    record = read_record(tmp_path / "out")
    losses = []
    for name in ("base", "expert2"):
        model, tokenizer = load(Checkpoint(pool / name)).eval(), AutoTokenizer.from_pretrained(pool / name)
        total, count = 0.0, 0
        for row in rows[:8]:
            prompt, whole = (tokenizer(text).input_ids for text in (row["prompt"], f"{row['prompt']} yes"))
            with torch.no_grad():
                log_probs = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
            for place in range(len(prompt), len(whole)):
                total -= log_probs[place - 1, whole[place]].item()
                count += 1
        losses.append(total / count)
    np.testing.assert_allclose(record.losses, losses, rtol=1e-4)
    expected = np.exp(-np.array(losses)) / np.exp(-np.array(losses)).sum()
    np.testing.assert_allclose(record.weights, [expected] * 4, rtol=1e-4)


def test_regmean_takes_what_recall_moments_kept(pool, samples, tmp_path):
    models = [shutil.copytree(pool / name, tmp_path / name) for name in ("expert1", "expert2")]
    sentence = refused(models, tmp_path / "out", "--method", "regmean")
    assert "expert1/moments.safetensors is missing" in sentence
    for model in models:
        done = CliRunner().invoke(app, ["moments", "--model", str(model), "--samples", str(samples)])
        assert done.exit_code == 0, done.output
        assert "moments.safetensors: 0.0 MB" in done.stdout
    merged(models, tmp_path / "out", "--method", "regmean")
    load(Checkpoint(tmp_path / "out"))


# Garbage is said


def test_a_merge_that_is_worse_than_its_worst_model_is_warned_of(pool, samples, tmp_path):
    done = merged(
        [pool / "base", pool / "expert2"], tmp_path / "out", "--samples", samples, "--clusters", 4,
        "--method", "task_arithmetic", "--scale", "40",
    )  # fmt: skip
    record = read_record(tmp_path / "out")
    assert record.merged_loss > max(record.losses)
    assert "warning: the merged model's perplexity on the samples is" in " ".join(done.stderr.split())


def test_a_merge_of_near_models_gives_no_warning(pool, samples, tmp_path):
    done = merged([pool / "base", pool / "base"], tmp_path / "out", "--samples", samples, "--clusters", 4)
    record = read_record(tmp_path / "out")
    assert record.warnings == []
    assert record.merged_loss == pytest.approx(record.losses[0], rel=1e-6)
    assert "warning" not in done.stderr


# What users of its peers complain about


def test_config_and_tokenizer_come_from_the_first_model_every_time(pool, weights, tmp_path):
    newest = shutil.copytree(pool / "expert1", tmp_path / "newest")
    config = json.loads((newest / "config.json").read_text())
    (newest / "config.json").write_text(json.dumps(config | {"name_of_the_donor": "newest"}))
    for attempt in range(3):
        merged([pool / "base", newest], tmp_path / f"out{attempt}", "--weights", weights)
        out = tmp_path / f"out{attempt}"
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            assert (out / name).read_bytes() == (pool / "base" / name).read_bytes()


def test_a_tied_head_stays_tied_and_a_free_one_stays_free(pool, weights, tmp_path, tiny_tokenizer):
    merged([pool / "base", pool / "expert1"], tmp_path / "tied", "--weights", weights)
    model = load(Checkpoint(tmp_path / "tied"))
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    shape = {"vocab_size": len(tiny_tokenizer), "tie_word_embeddings": False}
    free = [llama(tmp_path / f"free{seed}", seed=seed, **shape).folder for seed in (0, 1)]
    merged(free, tmp_path / "out", "--weights", weights)
    model = load(Checkpoint(tmp_path / "out"))
    assert not model.config.tie_word_embeddings
    head = 0.2 * tensors(free[0])["lm_head.weight"] + 0.8 * tensors(free[1])["lm_head.weight"]
    torch.testing.assert_close(model.lm_head.weight.data, head)


def test_sixteen_bit_models_are_summed_in_float32_and_rounded_once(tmp_path):
    models = [llama(tmp_path / str(seed), seed=seed, dtype=torch.bfloat16).folder for seed in range(4)]
    shares = [0.1, 0.2, 0.3, 0.4]
    rows = write_weights(tmp_path / "w.json", [shares] * 4)
    merged(models, tmp_path / "out", "--weights", rows)
    inputs = [tensors(model) for model in models]
    for name, found in tensors(tmp_path / "out").items():
        total = inputs[0][name].float() * shares[0]
        for share, model in zip(shares[1:], inputs[1:], strict=True):
            total.addcmul_(model[name].float(), torch.tensor(share))
        assert torch.equal(found, total.to(torch.bfloat16))


def test_a_padded_vocabulary_is_kept_whole(weights, tmp_path, tiny_tokenizer):
    padded = len(tiny_tokenizer) + 37
    models = [llama(tmp_path / str(seed), seed=seed, vocab_size=padded).folder for seed in (0, 1)]
    for model in models:
        tiny_tokenizer.save_pretrained(model)
    merged(models, tmp_path / "out", "--weights", weights)
    assert tensors(tmp_path / "out")["model.embed_tokens.weight"].shape[0] == padded


# Bad input


def spoilt(pool, tmp_path, name="expert1"):
    return shutil.copytree(pool / name, tmp_path / "spoilt")


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


def test_an_adapter_for_another_base(pool, weights, tmp_path):
    other = adapter(tmp_path / "lora", llama(tmp_path / "wide", hidden_size=32)).folder
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": ""}))
    assert "it fits another base" in refused([pool / "base", other], tmp_path / "out", "--weights", weights)


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
    ],
)
def test_options_that_do_not_fit(pool, tmp_path, options, words):
    assert words in refused([pool / "base", pool / "expert1"], tmp_path / "out", *options)


def test_a_single_model(pool, tmp_path):
    assert "--model: list should have at least 2 items" in refused([pool / "base"], tmp_path / "out")


def test_a_folder_that_is_there_already_is_left_alone(pool, weights, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "is there already" in refused([pool / "base", pool / "expert1"], tmp_path / "out", "--weights", weights)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("options", [(), ("--as-adapter",)])
def test_a_disk_that_fills_up_while_writing(pool, tmp_path, monkeypatch, options):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    models = [pool / "base", pool / "lora1"]
    rows = write_weights(tmp_path / "w.json", [[0.5, 0.5]] * 4)
    monkeypatch.setattr(recall.tensor_files.os, "pwrite", full)
    monkeypatch.setattr("recall.as_adapter.save_file", full)
    assert "No space left on device" in refused(models, tmp_path / "out", "--weights", rows, *options, code=1)


def test_a_disk_that_has_no_room_is_seen_before_anything_is_read(pool, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("recall.merge_job.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    sentence = refused([pool / "base", pool / "expert1"], tmp_path / "out", "--weights", weights, code=1)
    assert "choose another disk" in sentence


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


def test_one_sample_has_no_median_distance(pool, tmp_path):
    samples = write_samples(tmp_path / "s.jsonl", [{"text": "alone"}])
    models = [pool / "base", pool / "expert1"]
    sentence = refused(models, tmp_path / "out", "--samples", samples, "--all-samples")
    assert "one sample has no pairs" in sentence
    merged(models, tmp_path / "out", "--samples", samples, "--all-samples", "--sigma", 2)


def test_given_weights_are_checked_on_samples_too(pool, samples, tmp_path):
    rows = write_weights(tmp_path / "w.json", [[-39.0, 40.0]] * 4)
    models = [pool / "base", pool / "expert2"]
    merged(models, tmp_path / "out", "--samples", samples, "--clusters", 4, "--weights", rows)
    record = read_record(tmp_path / "out")
    assert record.weights == [[-39.0, 40.0]] * 4
    assert "perplexity on the samples is" in record.warnings[0]


def test_the_record_has_a_digest_of_everything_that_counts(pool, samples, tmp_path):
    merged([pool / "base", pool / "lora1"], tmp_path / "out", "--samples", samples, "--clusters", 3)
    record = read_record(tmp_path / "out")
    assert set(record.inputs[0]) == {"model.safetensors", "config.json", "tokenizer.json"}
    assert set(record.inputs[1]) == {*record.inputs[0], "adapter_model.safetensors", "adapter_config.json"}
    assert record.samples_sha256 == hashlib.sha256(samples.read_bytes()).hexdigest()
    for name in record.inputs[0]:
        assert record.inputs[0][name] == hashlib.sha256((pool / "base" / name).read_bytes()).hexdigest()
