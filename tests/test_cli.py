"""What bad input gets: one sentence before anything long starts, exit code 2, no traceback, nothing left behind."""

import json
import shutil

import pytest
import torch
import yaml
from project import make_project
from typer.testing import CliRunner

from flows.cli import app
from tasks import registry


@pytest.fixture(scope="module")
def good_project(tmp_path_factory, tiny_tokenizer):
    return make_project(tmp_path_factory.mktemp("good") / "project", tiny_tokenizer)


@pytest.fixture
def folder(good_project, tmp_path, monkeypatch):
    """A copy of a good project, to be spoilt."""
    copy = tmp_path / "project"
    shutil.copytree(good_project.folder, copy, symlinks=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy / 'mlflow.db'}")
    registry.client.cache_clear()
    return copy


def refused(folder, *arguments):
    """The sentence that `recall run` ends with."""
    before = {path for path in folder.rglob("*") if ".git" not in path.parts}
    done = CliRunner().invoke(app, ["run", *arguments])
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    assert {path for path in folder.rglob("*") if ".git" not in path.parts} == before
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("recall: ")]
    return sentence


def change(folder, *path, to):
    values = yaml.safe_load((folder / "params.yaml").read_text())
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    if to is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    (folder / "params.yaml").write_text(yaml.safe_dump(values))


def rewrite(folder, name, split, edit):
    file = folder / "data" / name / f"{split}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("\n".join(json.dumps(row) for row in edit(rows)) + "\n")


@pytest.mark.parametrize(
    ("path", "to", "words"),
    [
        (["stream"], None, "stream is missing"),
        (["finetuning", "learnin_rate"], 0.1, "finetuning.learnin_rate is no setting; check its spelling"),
        (["finetuning", "epochs"], "many", "finetuning.epochs"),
        (["weighting"], {"temperature": 0}, "weighting.temperature"),
        (["stream", "learning_tasks"], ["names", "names"], "names names twice"),
        (["stream", "learning_tasks"], ["names", "nothing"], "names nothing, which learning_tasks does not define"),
        (["stream", "unseen"], ["names"], "names is both in stream.learning_tasks and in stream.unseen"),
        (["learning_tasks", "reviews", "labels"], ["good"], "needs at least two different labels"),
        (["learning_tasks", "names", "metric"], "accuracy", "metric accuracy does not fit translation"),
        (["base_model", "hub"], "some/model", "give exactly one of pypi, hub and folder"),
    ],
)
def test_a_bad_setting(folder, path, to, words):
    change(folder, *path, to=to)
    sentence = refused(folder)
    assert words in sentence
    assert "params.yaml" in sentence


def test_a_missing_settings_file(folder):
    assert "nowhere.yaml cannot be read" in refused(folder, "--config", "nowhere.yaml")


def test_a_bad_override(folder):
    assert "expected key=value" in refused(folder, "--set", "finetuning.epochs")


def test_a_row_that_is_no_json(folder):
    file = folder / "data" / "reviews" / "train.jsonl"
    file.write_text(file.read_text() + "{half a row\n")
    assert "train.jsonl, row 25: not JSON" in refused(folder)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda rows: [*rows[:3], {"id": "x", "prompt": "no target"}, *rows[3:]], "row 4: target: Field required"),
        (lambda rows: [*rows, rows[0]], "row 25: id '0' was used before"),
        (
            lambda rows: [rows[0] | {"target": "mediocre"}, *rows[1:]],
            "row 1: target 'mediocre' is not one of bad, good",
        ),
        (lambda rows: [row for row in rows if row["target"] == "good"], "every training row has the label 'good'"),
        (lambda rows: rows[:4], "4 samples to choose from, fewer than sampling.clusters (5)"),
    ],
)
def test_a_bad_training_split(folder, edit, words):
    rewrite(folder, "reviews", "train", edit)
    assert words in refused(folder)


def test_an_empty_data_set(folder):
    (folder / "data" / "films" / "test.jsonl").write_text("")
    assert "films/test.jsonl is empty" in refused(folder)


def test_a_data_set_that_dvc_does_not_track(folder):
    (folder / "data" / "films.dvc").unlink()
    assert "data/films is not tracked by DVC" in refused(folder)


def test_a_data_set_that_differs_from_what_is_tracked(folder):
    rewrite(folder, "films", "test", lambda rows: rows[:-1])
    assert "data/films differs from what DVC tracks: test.jsonl (changed)" in refused(folder)


def test_an_unknown_data_set_to_take_in(folder):
    assert "--take-in other: the stream has no such data set" in refused(folder, "--take-in", "other")


def test_a_checkpoint_that_is_a_pickle(folder):
    base = folder / "data" / "base_model"
    (base / "model.safetensors").unlink()
    torch.save({}, base / "pytorch_model.bin")
    assert "is a pickle (pytorch_model.bin)" in refused(folder)


def test_a_model_that_transformers_does_not_know(folder):
    config = folder / "data" / "base_model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "abacus"}))
    assert "model_type 'abacus'" in refused(folder)


def test_weights_that_are_cut_short(folder):
    weights = folder / "data" / "base_model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.safetensors is damaged or cut short" in refused(folder)


def test_a_store_that_cannot_be_written(folder):
    (folder / "blocked").write_text("")
    assert "store blocked/store cannot be written" in refused(folder, "--set", "store=blocked/store")


def test_an_mlflow_store_that_cannot_be_used(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/params.yaml/mlflow.db")
    done = CliRunner().invoke(app, ["run"])
    assert done.exit_code == 2
    assert "params.yaml/mlflow.db cannot be used" in done.stderr


def test_debug_shows_the_traceback(folder):
    done = CliRunner().invoke(app, ["run", "--debug", "--config", "nowhere.yaml"])
    assert done.exception is not None
    assert "nowhere.yaml cannot be read" in str(done.exception)


@pytest.mark.parametrize("command", [[], ["run"]])
def test_help(command):
    done = CliRunner().invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.output
