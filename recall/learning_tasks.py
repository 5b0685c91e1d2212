"""Learning tasks: what a data set asks, its prepared rows, and the checks that come before any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from recall.errors import BadInput

Kind = Literal["classification", "multiple_choice", "translation", "extractive_qa", "generation"]
Metric = Literal["accuracy", "chrf", "sacrebleu", "squad_f1_em", "json_f1"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
METRICS_OF_KIND: dict[Kind, tuple[Metric, ...]] = {
    "classification": ("accuracy",),
    "multiple_choice": ("accuracy",),
    "translation": ("chrf", "sacrebleu"),
    "extractive_qa": ("squad_f1_em",),
    "generation": ("chrf", "sacrebleu", "squad_f1_em", "json_f1"),
}


def _choosable(answers: list[str]) -> list[str]:
    """Answers to choose among by likelihood a character: blank ones have none, and of two equal ones one never wins."""
    if not all(answer.strip() for answer in answers):
        raise ValueError("an answer to choose is empty; give every one a text")
    twice = next((answer for place, answer in enumerate(answers) if answer in answers[:place]), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is there twice; every answer may stand there once")
    return answers


Choosable = Annotated[list[str], AfterValidator(_choosable)]


class TaskSpec(BaseModel):
    """A learning task: its kind, metric, answers allowed and where its rows come from.

    `source` goes to the prepare stage as it is (see `recall.sources`); `rows` caps each split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    metric: Metric
    labels: Choosable | None = Field(None, description="the allowed targets of a classification, None otherwise")
    source: dict[str, Any]
    rows: dict[Split, int] = {"train": 400, "validation": 50, "test": 100}

    @model_validator(mode="after")
    def _fits(self) -> TaskSpec:
        if self.metric not in METRICS_OF_KIND[self.kind]:
            raise ValueError(
                f"metric {self.metric} does not fit {self.kind}; take {' or '.join(METRICS_OF_KIND[self.kind])}"
            )
        if self.kind == "classification" and len(set(self.labels or [])) < 2:
            raise ValueError("a classification needs at least two different labels")
        return self


class Row(BaseModel):
    """One example: the model continues `prompt` with a space and `target`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    prompt: str = Field(min_length=1)
    target: str = Field(min_length=1)
    references: list[str] = []
    choices: Choosable = []


def json_lines(path: Path) -> list[str]:
    """The lines of a JSON-lines file, parted at line feeds alone: JSON text may hold U+2028 and its like as they are.

    Raises:
        OSError: it cannot be opened.
        UnicodeDecodeError: it is not UTF-8.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    return lines if lines[-1] else lines[:-1]


def read_rows(path: Path, spec: TaskSpec | None = None) -> list[Row]:
    """Read and check one split of prepared rows; without its `spec` any target is allowed.

    Raises:
        BadInput: no file, no row, or a row that is malformed (its number is in the message), repeats an id, or has a
            target that is not among the answers allowed.
    """
    rows: list[Row] = []
    seen: set[str] = set()
    try:
        lines = json_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"data set {path} cannot be read ({error}); prepare it with `dvc repro`") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = Row.model_validate(json.loads(line))
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}, row {number}: not JSON ({error.msg})") from error
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "row"
            raise BadInput(f"{path}, row {number}: {where}: {problem['msg'].removeprefix('Value error, ')}") from error
        if row.id in seen:
            raise BadInput(f"{path}, row {number}: id {row.id!r} was used before; ids must be unique")
        allowed = answers(row, spec) if spec else row.choices
        if allowed and row.target not in allowed:
            raise BadInput(f"{path}, row {number}: target {row.target!r} is not one of {', '.join(allowed)}")
        if spec and spec.kind == "multiple_choice" and len(allowed) < 2:
            raise BadInput(f"{path}, row {number}: a multiple-choice row needs at least two choices or labels")
        if spec and spec.metric == "json_f1":
            _check_json(row, f"{path}, row {number}")
        seen.add(row.id)
        rows.append(row)
    if not rows:
        raise BadInput(f"data set {path} is empty; it needs at least one row")
    return rows


def _no_json(constant: str) -> None:
    """NaN and Infinity, which Python reads and no prediction can equal."""
    raise ValueError(constant)


def _check_json(row: Row, where: str) -> None:
    for text in row.references or [row.target]:
        try:
            found = json.loads(text, parse_constant=_no_json)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise BadInput(f"{where}: {text!r} is no JSON object, which metric json_f1 compares with")


def answers(row: Row, spec: TaskSpec) -> list[str]:
    """The answers that may be chosen for a row: its own choices, else the labels; empty where any text may be."""
    return row.choices or list(spec.labels or [])


def check_learning_task(name: str, folder: Path, spec: TaskSpec, trained_on: bool) -> None:
    """Check every split of a learning task before anything slow starts.

    Raises:
        BadInput: a split is unreadable or malformed, or a training split shows one class only.
    """
    for split in SPLITS if trained_on else ("test",):
        rows = read_rows(folder / f"{split}.jsonl", spec)
        if split == "train" and spec.kind == "classification" and len({row.target for row in rows}) < 2:
            raise BadInput(
                f"learning task {name}: every training row has the label {rows[0].target!r}; "
                "a classification needs at least two classes"
            )


def count_rows(path: Path) -> int:
    """Rows of a split that has been checked."""
    return len(json_lines(path))
