"""What bad input gets: one sentence before anything long starts, exit code 2, no traceback, nothing left behind."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from project import Project, make_project
from typer.testing import CliRunner

from flows.cli import app
from flows.preflight import check_baselines, check_context, check_inputs
from recall.errors import BadInput
from recall.load_settings import load_settings
from tasks import data_versions, registry


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
        (["learning_tasks", "base_model"], {"kind": "translation"}, "learning_tasks.base_model"),
        (["sampling", "seed"], -1, "sampling.seed"),
        (["finetuning", "seed"], 2**32, "finetuning.seed"),
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


def test_an_override_that_is_no_yaml(folder):
    assert "--set a=[: the value is not YAML" in refused(folder, "--set", "a=[")


def test_a_settings_file_that_is_not_utf8(folder):
    (folder / "params.yaml").write_bytes(b"stream: Gr\xf6\xdfe")
    assert "params.yaml is not UTF-8" in refused(folder)


@pytest.mark.parametrize(
    ("modules", "found"),
    [("[no_such_module]", "no_such_module"), ("q_proj", "q_proj"), ("'(q_proj'", "(q_proj"), ("[mlp]", "mlp")],
)
def test_target_modules_that_the_base_model_lacks_or_that_cannot_have_an_adapter(folder, modules, found):
    sentence = refused(folder, "--set", f"finetuning.lora.target_modules={modules}")
    assert "finetuning.lora.target_modules" in sentence
    assert found in sentence
    assert "it has down_proj, embed_tokens" in sentence


@pytest.mark.parametrize("section", ["finetuning", "sampling", "representations", "evaluation"])
def test_longer_texts_than_the_base_model_has_positions_for(folder, tiny_model_folder, tiny_gpt2_folder, section):
    asked = dict.fromkeys(("finetuning", "sampling", "representations", "evaluation"), 256) | {section: 257}
    settings = load_settings(folder / "params.yaml", overrides=[f"{name}.max_tokens={n}" for name, n in asked.items()])
    base = folder / "data" / "base_model"
    check_context(settings)
    for source in (tiny_gpt2_folder, tiny_model_folder):  # the second computes its positions, as many as it takes
        shutil.rmtree(base)
        shutil.copytree(source, base)
        if source == tiny_gpt2_folder:
            with pytest.raises(BadInput, match=rf"{section}\.max_tokens is 257, but .* has 256 positions; set"):
                check_context(settings)
    check_context(settings)


@pytest.mark.parametrize("modules", ["[q_proj, v_proj]", "'.*self_attn.*_proj'"])
def test_target_modules_as_peft_reads_them(folder, modules):
    settings = load_settings(folder / "params.yaml", overrides=[f"finetuning.lora.target_modules={modules}"])
    assert check_inputs(settings, []).draft_reasons == ()


@pytest.mark.parametrize("modules", ["[embed_tokens, q_proj]", "[lm_head]"])
def test_an_embedding_or_a_head_that_is_the_other_too(folder, modules):
    """PEFT would train one of them apart, and the merge has one tensor for both."""
    with warnings.catch_warnings(action="error"):
        sentence = refused(folder, "--set", f"finetuning.lora.target_modules={modules}")
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    one, other = (head, embedding) if "lm_head" in modules else (embedding, head)
    assert f"adapts {one}, which is {other} too" in sentence


@pytest.mark.parametrize("modules", ["[embed_tokens, q_proj]", "[lm_head]"])
def test_target_modules_that_no_moments_can_hold(folder, modules):
    """Also where the same adapter passed before, with nothing held. The base's are apart, else it would not pass."""
    config = folder / "data" / "base_model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    targets = f"finetuning.lora.target_modules={modules}"
    check_inputs(load_settings(folder / "params.yaml", overrides=[targets]), ["base_model"])
    sentence = refused(folder, "--set", targets, "--set", "merging.hold=1", "--take-in", "base_model")
    assert "which leaves no moments, so merging.hold cannot hold it" in sentence


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
        (lambda rows: rows[:4], "4 samples (different prompts) to choose from, fewer than sampling.clusters (5)"),
        (
            lambda rows: [row | {"prompt": f"Review {i % 4}"} for i, row in enumerate(rows)],
            "4 samples (different prompts) to choose from, fewer than sampling.clusters (5)",
        ),
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


def edited_and_spoilt(folder, monkeypatch, spoilt):
    """A good edit of reviews to take in, and one thing that is wrong; returns what else to say to `recall`."""
    rewrite(folder, "reviews", "test", lambda rows: rows[:-1])
    if spoilt == "row of the same set":
        rewrite(folder, "reviews", "train", lambda rows: [{"id": "x"}, *rows])
    elif spoilt == "other set":
        rewrite(folder, "spanish", "test", lambda rows: rows[:-1])
    elif spoilt == "store":
        (folder / "blocked").write_text("")
        return ["--set", "store=blocked/store"]
    elif spoilt == "mlflow":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/params.yaml/mlflow.db")
    return []


@pytest.mark.parametrize("spoilt", ["row of the same set", "other set", "store", "mlflow"])
def test_nothing_is_taken_in_where_anything_else_is_wrong(folder, monkeypatch, spoilt):
    more = edited_and_spoilt(folder, monkeypatch, spoilt)
    before = (folder / "data" / "reviews.dvc").read_text()
    done = CliRunner().invoke(app, ["run", "--take-in", "reviews", *more])
    assert done.exit_code == 2, done.output
    assert (folder / "data" / "reviews.dvc").read_text() == before


def test_an_edited_base_model_is_refused_until_taken_in(folder):
    config = folder / "data" / "base_model" / "generation_config.json"
    config.write_text(config.read_text() + "\n")
    assert "--take-in base_model" in refused(folder)
    settings = load_settings(folder / "params.yaml")
    found = check_inputs(settings, ["base_model"])
    assert found.base_hash == data_versions.working_hash(folder / "data" / "base_model")
    assert found.draft_reasons == ("the Git tree has uncommitted changes",)
    (folder / ".dvc" / "config.local").write_text("['remote \"local\"']\n    url = ../empty\n")
    assert "not pushed to the DVC remote: base_model, names" in check_inputs(settings, []).draft_reasons[1]


STAGES = {
    "films": {"cmd": "true", "params": ["learning_tasks.films"], "outs": ["data/films"]},
    "base": {"cmd": "true", "params": ["base_model"], "outs": ["data/base_model"]},
}


@pytest.fixture
def staged(folder):
    """The project with a data set and its base model made by DVC stages, as `dvc repro` leaves them."""
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    for name in ("films", "base_model"):
        (folder / "data" / f"{name}.dvc").unlink()
    project = Project(folder)
    project.dvc("commit", "--force")
    return folder


def test_data_prepared_with_other_settings(staged):
    settings = load_settings(staged / "params.yaml")
    check_inputs(settings, [])
    change(staged, "learning_tasks", "films", "rows", to=settings.learning_tasks["films"].rows)
    check_inputs(load_settings(staged / "params.yaml"), [])
    sentence = refused(staged, "--set", "learning_tasks.films.rows.train=7")
    assert "data/films was prepared with another learning_tasks.films.rows than the settings have now" in sentence
    assert "run `dvc repro`" in sentence
    change(staged, "learning_tasks", "films", "source", to={"path": "elsewhere"})
    assert "another learning_tasks.films.source than" in refused(staged)


def test_a_base_model_brought_with_other_settings(staged):
    assert "another base_model.folder than" in refused(staged, "--set", "base_model.folder=elsewhere")


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
    assert done.exit_code == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert "BadInput: " in done.stderr
    assert "nowhere.yaml cannot be read" in done.stderr


@pytest.mark.parametrize("command", [[], ["run"]])
def test_help(command):
    done = CliRunner().invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.output


def test_slerp_among_many_models_is_refused_before_anything_is_trained():
    def with_slerp(*update):
        return load_settings(Path(__file__).parent.parent / "params.yaml", overrides=["baselines=[slerp]", *update])

    check_baselines(with_slerp())
    check_baselines(with_slerp("update.pool=all", "stream.learning_tasks=[name_language]"))
    one = "stream.learning_tasks=[name_language]"
    for update in (
        ["update.start_from=base"],
        ["update.pool=all"],
        ["update.pool=experts"],
        ["update.pool=experts", one],
    ):
        with pytest.raises(BadInput, match="slerp, which goes between two models, but the pool has every expert"):
            check_baselines(with_slerp(*update))
