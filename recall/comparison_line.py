"""A line of `recall compare`'s results file: what one method reached in one case, and how; and the file of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from filelock import BaseFileLock, FileLock
from pydantic import Field, ValidationError

from recall.errors import BadInput, Failed
from recall.results import Frozen, LabelBias, MergeWeights, ScoreMatrix

Setting = Literal["single", "independent", "stream"]
SETTINGS: tuple[Setting, ...] = ("single", "independent", "stream")


class Line(Frozen):
    """One method in one case: a setting, seed and order, in `single` also a learning task.

    `key` identifies the line by data, settings and seed. `shared` covers what every method of a comparison has in
    common, `own` the settings that this method reads, the seeds left out: lines that differ in either do not belong
    into one mean.

    `scores` are those of the last model, by column. `rows[i][column]` are the test rows' own scores after update i + 1
    (in `single` and `independent` there is one), in the order of the split. `matrix` is R, in `stream` alone. `experts`
    are each expert's scores on its own learning task, `merges` the weights of every merge, where they depend on the
    models. `label_bias` is the last model's, on each classification. Seconds are those that each artifact took when it
    was made.
    """

    key: str
    shared: str
    own: str
    stream: str
    base_model: str
    setting: Setting
    method: str
    vary_key: str | None = None
    vary_value: str | None = None
    seed: int
    order: int
    learning_tasks: list[str]
    unseen: list[str]
    others: list[str]
    split: Literal["validation", "test"]
    metrics: dict[str, str]
    scores: dict[str, float]
    rows: list[dict[str, list[float]]]
    matrix: ScoreMatrix | None = None
    experts: dict[str, float] = Field({})
    merges: list[MergeWeights] = Field([])
    label_bias: dict[str, LabelBias] = Field({})
    seconds: dict[str, float] = Field({})
    settings: dict[str, object]
    data_hashes: dict[str, str]
    code_commit: str | None
    code_clean: bool
    machine: dict[str, object]

    @property
    def label(self) -> str:
        """The method, with the setting that was changed."""
        return self.method if self.vary_key is None else f"{self.method} {self.vary_key}={self.vary_value}"


def read_lines(path: Path) -> list[Line]:
    """Every line of a results file, but for half a line at its end; none where there is no such file.

    Raises:
        BadInput: it cannot be read, or a line of it is none of ours (its number is in the message).
    """
    try:
        texts = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error}); name another file with --results") from error
    lines = []
    for number, text in enumerate(texts if _is_json(texts[-1]) else texts[:-1], start=1):
        try:
            lines.append(Line.model_validate_json(text))
        except ValidationError as error:
            raise BadInput(
                f"{path}, line {number} is no result of `recall compare` ({error.errors()[0]['msg']}); remove that "
                "line, or name another file with --results"
            ) from error
    return lines


def check_writable(path: Path) -> None:
    """Raise BadInput unless lines can be put into the file."""
    place = path if path.exists() else next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not os.access(place, os.W_OK):
        raise BadInput(f"{path} cannot be written; name another file with --results")


def mend(path: Path) -> bool:
    """Cut off the half line that a killed process left at the end; True where there was one.

    Raises:
        BadInput: the file cannot be written.
    """
    if not path.exists():
        return False
    try:
        with _alone(path):
            return _mend(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}); name another file with --results") from error


def _mend(path: Path) -> bool:
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole == len(content):
        return False
    with path.open("r+b") as file:
        if _is_json(content[whole:]):  # only its line feed is missing
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            return False
        file.truncate(whole)
        os.fsync(file.fileno())
    return True


def append(path: Path, line: Line) -> None:
    """Write one line and bring it to the disk; a kill costs this line at most, whatever processes write beside it.

    Raises:
        Failed: the file cannot be written.
    """
    text = (line.model_dump_json() + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            _mend(path)
            with path.open("ab") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise Failed(f"{path} cannot be written ({error.strerror}); free its disk and run the same again") from error


def _alone(path: Path) -> BaseFileLock:
    """Several processes write into one file."""
    return FileLock(path.with_name(f".{path.name}.lock"))


def _is_json(text: bytes | str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
