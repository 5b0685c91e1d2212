"""Prepared rows: what is read, and what is refused with the row's number before anything long starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from recall.errors import BadInput
from recall.learning_tasks import (
    METRICS_OF_KIND,
    SPLITS,
    Row,
    TaskSpec,
    answers,
    check_learning_task,
    count_rows,
    json_lines,
    read_rows,
)
from recall.load_settings import load_settings

PROJECT = Path(__file__).parents[1]
SHIPPED = load_settings(PROJECT / "params.yaml")
SENTIMENT = TaskSpec(kind="classification", metric="accuracy", labels=["negative", "positive"], source={})
CHOICE = TaskSpec(kind="multiple_choice", metric="accuracy", source={})
NAMES = TaskSpec(kind="translation", metric="chrf", source={})


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def row(number: int, target: str = "positive", **more: object) -> dict[str, object]:
    return {"id": str(number), "prompt": f"Review {number}\nSentiment:", "target": target, **more}


def test_rows_come_back_in_the_files_order(tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", row(2, "negative"), row(1, references=["positive", "good"]))
    assert read_rows(file, SENTIMENT) == [
        Row(id="2", prompt="Review 2\nSentiment:", target="negative"),
        Row(id="1", prompt="Review 1\nSentiment:", target="positive", references=["positive", "good"]),
    ]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"id": "2",', "row 2: not JSON"),
        ({"id": "2", "prompt": "p"}, "row 2: target: Field required"),
        ({"id": "2", "prompt": "", "target": "positive"}, "row 2: prompt: String should have at least 1 character"),
        (row(2) | {"label": 1}, "row 2: label: Extra inputs are not permitted"),
        (row(1), "row 2: id '1' was used before"),
        (row(2, "neutral"), "row 2: target 'neutral' is not one of negative, positive"),
        ([1], "row 2: row: Input should be a valid dictionary"),
        (row(2, choices=["positive", ""]), "row 2: choices: an answer to choose is empty"),
        (row(2, choices=["positive", " \n"]), "row 2: choices: an answer to choose is empty"),
        (row(2, choices=["a", "positive", "a"]), "row 2: choices: 'a' is there twice"),
    ],
)
def test_a_malformed_row_is_named_by_its_number(tmp_path: Path, second: object, message: str) -> None:
    with pytest.raises(BadInput) as error:
        read_rows(write(tmp_path / "train.jsonl", row(1), second), SENTIMENT)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), (b"", "is empty"), (b"\xff\xfe", "cannot be read")]
)
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "train.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_rows(file, SENTIMENT)


def test_a_rows_own_choices_go_before_the_labels() -> None:
    own = Row(id="1", prompt="p", target="a", choices=["a", "b"])
    assert answers(own, SENTIMENT) == ["a", "b"]
    assert answers(own.model_copy(update={"choices": []}), SENTIMENT) == ["negative", "positive"]
    assert answers(Row(id="1", prompt="p", target="any text"), NAMES) == []


def test_multiple_choice_needs_two_choices(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="row 1: a multiple-choice row needs at least two choices"):
        read_rows(write(tmp_path / "test.jsonl", row(1)), CHOICE)


def test_one_class_in_training_is_refused_and_in_a_test_split_allowed(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}.jsonl", row(1), row(2))
    check_learning_task("reviews", tmp_path, SENTIMENT, trained_on=False)
    with pytest.raises(BadInput, match=r"reviews: every training row has the label 'positive'.*at least two classes"):
        check_learning_task("reviews", tmp_path, SENTIMENT, trained_on=True)


def test_an_unseen_learning_task_needs_its_test_split_alone(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", row(1), row(2, "negative"))
    check_learning_task("reviews", tmp_path, SENTIMENT, trained_on=False)
    with pytest.raises(BadInput, match=r"train\.jsonl cannot be read"):
        check_learning_task("reviews", tmp_path, SENTIMENT, trained_on=True)


@pytest.mark.parametrize("kind", METRICS_OF_KIND)
def test_a_metric_must_fit_the_kind(kind: str) -> None:
    labels = ["a", "b"] if kind == "classification" else None
    for metric in ("accuracy", "chrf", "sacrebleu", "squad_f1_em", "json_f1"):
        values = {"kind": kind, "metric": metric, "labels": labels, "source": {}}
        if metric in METRICS_OF_KIND[kind]:  # type: ignore[index]
            TaskSpec.model_validate(values)
        else:
            with pytest.raises(ValidationError, match=f"metric {metric} does not fit {kind}"):
                TaskSpec.model_validate(values)


def test_without_a_learning_task_any_target_is_allowed_but_a_rows_own_choices_count(tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", row(1, "anything"), row(2, choices=["negative"]))
    with pytest.raises(BadInput, match="row 2: target 'positive' is not one of negative"):
        read_rows(file)


def test_a_metric_that_compares_json_needs_objects_to_compare_with(tmp_path: Path) -> None:
    spec = TaskSpec(kind="generation", metric="json_f1", source={})
    read_rows(write(tmp_path / "test.jsonl", row(1, '{"day": 3}')), spec)
    for target in ("positive", "[3]"):
        file = write(tmp_path / "test.jsonl", row(1, '{"day": 3}'), row(2, target))
        with pytest.raises(BadInput, match=r"row 2: .* is no JSON object, which metric json_f1 compares with"):
            read_rows(file, spec)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "at least two different labels"),
        (["one"], "at least two different labels"),
        (["same", "same"], "'same' is there twice"),
        (["a", "b", "a"], "'a' is there twice"),
        (["a", ""], "an answer to choose is empty"),
    ],
)
def test_a_classification_needs_two_different_labels(labels: list[str] | None, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TaskSpec(kind="classification", metric="accuracy", labels=labels, source={})


@pytest.mark.parametrize("name", SHIPPED.learning_tasks)
def test_the_prepared_learning_tasks_are_whole_and_their_splits_disjoint(name: str) -> None:
    folder, spec = PROJECT / SHIPPED.task_folder(name), SHIPPED.learning_tasks[name]
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not prepared; `dvc repro` makes it")
    check_learning_task(name, folder, spec, trained_on=True)
    prompts = {split: {row.prompt for row in read_rows(folder / f"{split}.jsonl", spec)} for split in SPLITS}
    assert {split: len(prompts[split]) for split in SPLITS} == spec.rows
    assert len(set.union(*prompts.values())) == sum(spec.rows.values())


def test_no_learning_task_trains_on_a_name_that_another_one_tests() -> None:
    named = [name for name, spec in SHIPPED.learning_tasks.items() if spec.source["pypi"].startswith("Babel")]
    ids: dict[str, set[str]] = {"train": set(), "test": set()}
    for name in named:
        folder = PROJECT / SHIPPED.task_folder(name)
        if not folder.is_dir():
            pytest.skip(f"{name} is not prepared; `dvc repro` makes it")
        for split, found in ids.items():
            found |= {row.id for row in read_rows(folder / f"{split}.jsonl", SHIPPED.learning_tasks[name])}
    assert not ids["train"] & ids["test"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b"])
def test_a_row_ends_at_a_line_feed_and_nowhere_else(tmp_path: Path, separator: str) -> None:
    first = Row(id="1", prompt=f"Review{separator}1", target="positive")
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps(first.model_dump(), ensure_ascii=False) + "\r\n" + json.dumps(row(2)), encoding="utf-8")
    assert read_rows(file, SENTIMENT)[0] == first
    assert count_rows(file) == len(json_lines(file)) == 2
    file.write_text("")
    assert json_lines(file) == []
