"""Options and methods of `recall merge`, and what it says of a merge that turned out bad."""

import shutil

import numpy as np
import pytest
import torch
from merge_fixture import TEXTS, merged, read_record, refused, tensors, write_samples, write_weights
from tiny import load
from transformers import AutoTokenizer
from typer.testing import CliRunner

from flows.cli import app
from recall.checkpoints import Checkpoint


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
    merged(models, tmp_path / "weighed", "--method", "recall_moments", "--samples", samples, "--clusters", 4)
    merged(models, tmp_path / "recall", "--samples", samples, "--clusters", 4)
    weighed, recall = read_record(tmp_path / "weighed"), read_record(tmp_path / "recall")
    assert weighed.weights == recall.weights, "the same weights, put to another use"
    name = "model.layers.1.mlp.down_proj.weight"
    solved, summed = (load(Checkpoint(tmp_path / out)).state_dict()[name] for out in ("weighed", "recall"))
    assert not torch.equal(solved, summed)


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
