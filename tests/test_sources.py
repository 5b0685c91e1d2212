"""Where rows come from (the hub, files) and what a data stage leaves behind."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest

from recall import prepare
from recall.errors import BadInput
from recall.learning_tasks import SPLITS, Split, TaskSpec, read_rows
from recall.load_settings import load_settings
from recall.sources import load_rows, parse_source
from recall.splits import split_of

PROJECT = Path(__file__).parents[1]
SHARED = PROJECT.parent / "shared" / "data"
ALL: dict[Split, int] = {"train": 10_000, "validation": 10_000, "test": 10_000}
TEMPLATES = {"prompt": "Review: {text}\nSentiment:", "target": "{stars}", "target_names": {"1": "bad", "5": "good"}}


def spec(source: dict[str, Any], **more: Any) -> TaskSpec:
    values = {"kind": "classification", "metric": "accuracy", "labels": ["bad", "good"], "rows": ALL}
    return TaskSpec.model_validate(values | {"source": source} | more)


def reviews(folder: Path, suffix: str, count: int = 60) -> Path:
    """A file of records with columns text and stars, in one of the three formats."""
    records = [{"text": f"thing {number} is {{fine}}", "stars": "15"[number % 2]} for number in range(count)]
    file = folder / f"reviews{suffix}"
    if suffix == ".csv":
        with file.open("w", newline="") as lines:
            table = csv.DictWriter(lines, ["text", "stars"])
            table.writeheader()
            table.writerows(records)
    elif suffix == ".parquet":
        datasets.Dataset.from_list(records).to_parquet(file)
    else:
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_is_mapped_and_parted_the_same_in_every_format(tmp_path: Path, suffix: str) -> None:
    rows = load_rows("reviews", spec({"path": str(reviews(tmp_path, suffix)), **TEMPLATES}), tmp_path)
    found = [row for split in SPLITS for row in rows[split]]
    assert len(found) == len({row.prompt for row in found}) == 60
    for row in found:
        number = int(row.id) - 1
        assert row.prompt == f"Review: thing {number} is {{fine}}\nSentiment:"
        assert row.target == ("bad", "good")[number % 2]
    assert all(split_of(row.prompt) == split for split in SPLITS for row in rows[split])


def test_a_file_with_another_sha256_is_refused(tmp_path: Path) -> None:
    file = reviews(tmp_path, ".csv")
    source = {"path": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), **TEMPLATES}
    assert load_rows("reviews", spec(source), tmp_path)["train"]
    file.write_text(file.read_text() + "new,1\n")
    with pytest.raises(BadInput, match="to take it in, put the new one there"):
        load_rows("reviews", spec(source), tmp_path)


def test_references_paths_and_unanswerable_questions(tmp_path: Path) -> None:
    file = tmp_path / "squad.jsonl"
    records = [{"q": "who", "a": {"text": ["Ada", "Ada", "A. L."]}}, {"q": "when", "a": {"text": []}}]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = {"path": str(file), "prompt": "{q}?\nAnswer:", "references": "a.text", "no_answer": "unanswerable"}
    rows = load_rows("squad", spec(source, kind="extractive_qa", metric="squad_f1_em", labels=None), tmp_path)
    found = {row.prompt: row for split in SPLITS for row in rows[split]}
    assert found["who?\nAnswer:"].references == ["Ada", "A. L."]
    assert found["who?\nAnswer:"].target == "Ada"
    assert found["when?\nAnswer:"].target == "unanswerable"


def test_choices_come_from_templates(tmp_path: Path) -> None:
    file = tmp_path / "exam.jsonl"
    file.write_text('{"q": "2 + 2", "options": ["3", "4"], "right": "1"}\n')
    source = {
        "path": str(file),
        "prompt": "{q}\nAnswer:",
        "target": "{options[1]}",
        "choices": ["{options[0]}", "{options[1]}"],
    }
    rows = load_rows("exam", spec(source, kind="multiple_choice", labels=None), tmp_path)
    assert [row.choices for split in SPLITS for row in rows[split]] == [["3", "4"]]


def test_the_hub_loader_reads_splits_slices_and_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    folder.mkdir()
    shutil.move(reviews(folder, ".jsonl"), folder / "train.jsonl")
    (folder / "test.jsonl").write_text('{"text": "thing 3 is {fine}", "stars": "5"}\n')
    splits = {"train": "train[:40]", "validation": "train[40:]", "test": "test"}
    rows = load_rows("reviews", spec({"hub": str(folder), "splits": splits, **TEMPLATES}), tmp_path)
    assert [len(rows[split]) for split in SPLITS] == [39, 20, 1]  # what the test split has leaves the training split
    with pytest.raises(BadInput, match="split nowhere"):
        load_rows("reviews", spec({"hub": str(folder), "splits": splits | {"test": "nowhere"}, **TEMPLATES}), tmp_path)


HUB_RECORDS: dict[str, dict[str, Any]] = {
    "sst2": {"sentence": "a {fine} film", "label": 1},
    "squad_v2": {"context": "Ada wrote it.", "question": "Who?", "answers": {"text": ["Ada"], "answer_start": [0]}},
    "iwslt2017_en_fr": {"translation": {"en": "Hello", "fr": "Bonjour"}},
    "race": {"article": "Text.", "question": "Why?", "options": ["no", "yes", "so", "if"], "answer": "B"},
    "medmcqa": {"question": "What?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 3},
}


@pytest.mark.parametrize("profile", sorted((PROJECT / "profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_papers_profiles_map_records_of_the_hubs_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: Path
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    learning_tasks = load_settings(PROJECT / "params.yaml", profile.stem).learning_tasks
    targets = {}
    for name, record in HUB_RECORDS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.jsonl").write_text(json.dumps(record) + "\n")
        given = learning_tasks[name]
        local = {"hub": str(tmp_path / name), "splits": dict.fromkeys(SPLITS, "test"), "subset": None}
        rows = load_rows(name, given.model_copy(update={"source": given.source | local}), tmp_path)
        targets[name] = rows["test"][0].target
    assert targets == {"sst2": "positive", "squad_v2": "Ada", "iwslt2017_en_fr": "Bonjour", "race": "B", "medmcqa": "D"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "needs exactly one of pypi, hub and path, and has none"),
        ({"path": "a.csv", "hub": "b"}, "needs exactly one of pypi, hub and path"),
        ({"pypi": "Babel", "builder": "names_en_fr"}, "source.pypi: String should match pattern"),
        ({"pypi": "Babel==2.17.0", "builder": "names"}, "builder names does not exist; take one of"),
        ({"hub": "owner/set", "prompt": "{a}", "target": "{b}"}, "needs a commit as its revision"),
        ({"hub": "owner/set", "revision": "main", "prompt": "{a}", "target": "{b}"}, "needs a commit as its revision"),
        ({"path": "a.csv", "promt": "{a}"}, "source.promt: Extra inputs are not permitted"),
        ({"path": "a.csv", "prompt": "{a}"}, "needs a target template or a references column"),
        ({"path": "a.csv", "prompt": "{a", "target": "{b}"}, "expected '}' before end of string"),
        ({"path": "a.csv", "prompt": "{}", "target": "{b}"}, "has a field without a column's name; write {column}"),
        ({"path": "a.csv", "prompt": "{a}", "target": "{0}"}, "has a field without a column's name; write {column}"),
        ({"path": "a.csv", "shares": {"train": 0.5, "validation": 0.1, "test": 0.1}}, "must sum to 1"),
    ],
)
def test_a_wrong_source_is_one_sentence_that_names_the_setting(source: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as error:
        parse_source("reviews", spec(source))
    assert message in str(error.value)
    assert "learning_tasks.reviews.source" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a", "stars": "1"}\n{"text": "b"}\n', "a.jsonl, row 2: the templates ask for 'stars'"),
        ("a.jsonl", b'{"text": "a", "stars": "1"}\nnot json\n', "a.jsonl, row 2: not JSON"),
        ("a.jsonl", b"[1]\n", "row 1: list found where an object with columns is needed"),
        ("a.csv", b"text,stars\na,3\n", "row 1: target '3' is not one of bad, good; map it with target_names"),
        ("a.csv", b"text,stars\n\xff,1\n", "cannot be read"),
        ("a.csv", b"text,stars\na,1\nb, and c,5\n", "a.csv, row 2: more values than the header has columns"),
        ("a.csv", b"text,stars\na,1\nb\n", "a.csv, row 2: a template does not fit the record (stars has no value)"),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "a", "stars": "1"}\n', "a.jsonl, row 1: not JSON (Unexpected UTF-8 BOM"),
        ("a.parquet", b"no parquet", "is not a Parquet file"),
        ("a.xls", b"", "no .jsonl, .csv or .parquet file"),
    ],
)
def test_a_malformed_record_is_named_by_file_and_row(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as error:
        load_rows("reviews", spec({"path": str(tmp_path / name), **TEMPLATES}), tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_null_is_refused_where_a_template_uses_its_column_and_nowhere_else(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / "reviews.jsonl"
    file.write_text('{"text": "fine", "stars": "5", "by": null}\n{"text": "good", "stars": null, "by": "Ada"}\n')
    if suffix == ".parquet":
        records = [json.loads(line) for line in file.read_text().splitlines()]
        file = file.with_suffix(suffix)
        datasets.Dataset.from_list(records).to_parquet(file)
    with pytest.raises(BadInput, match=rf"reviews{suffix}, row 2: .*\(stars has no value\)"):
        load_rows("reviews", spec({"path": str(file), **TEMPLATES}), tmp_path)
    rows = load_rows("reviews", spec({"path": str(file), **TEMPLATES, "target": "5"}), tmp_path)
    assert sum(len(rows[split]) for split in SPLITS) == 2


@pytest.mark.parametrize(
    ("record", "templates", "message"),
    [
        (
            {"a": {"text": ["A", None]}},
            {"references": "a.text"},
            "a.text needs a list without nulls and is ['A', None]",
        ),
        ({"a": {"text": None}}, {"references": "a.text"}, "references a.text needs a list without nulls and is None"),
        ({"a": None}, {"references": "a.text"}, "references a.text needs a list without nulls and is None"),
        ({"a": "Ada"}, {"references": "a"}, "references a needs a list without nulls and is 'Ada'"),
        ({"a": None}, {"target": "{a[text]}"}, "a[text] has no value"),
        ({"a": "Ada"}, {"target": "{a[text]}"}, "string indices must be integers"),
        ({"a": []}, {"references": "a"}, "references a is empty, for which no_answer has to say the target"),
        ({"a": ["Ada", None]}, {"target": "{a[0]}", "choices": ["{a[0]}", "{a[1]}"]}, "a[1] has no value"),
        ({"a": "3"}, {"target": "{a:.1f}"}, "Unknown format code 'f' for object of type 'str'"),
    ],
)
def test_a_value_that_no_template_can_use_is_named(
    tmp_path: Path, record: dict[str, Any], templates: dict[str, Any], message: str
) -> None:
    file = tmp_path / "qa.jsonl"
    file.write_text(json.dumps({"q": "who"} | record) + "\n")
    task = spec({"path": str(file), "prompt": "{q}?", **templates}, kind="generation", metric="chrf", labels=None)
    with pytest.raises(BadInput) as error:
        load_rows("qa", task, tmp_path)
    assert "qa.jsonl, row 1: a template does not fit the record (" in str(error.value)
    assert message in str(error.value)


def test_a_null_is_a_target_where_its_name_is_given(tmp_path: Path) -> None:
    file = tmp_path / "reviews.jsonl"
    file.write_text('{"text": "fine", "stars": "5"}\n{"text": "so so", "stars": null}\n')
    named = TEMPLATES | {"target_names": {"5": "good", "None": "bad"}}
    rows = load_rows("reviews", spec({"path": str(file), **named}), tmp_path)
    assert sorted(row.target for split in SPLITS for row in rows[split]) == ["bad", "good"]


def test_empty_columns_at_the_end_of_a_csv_files_rows_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,stars\na,1,\nb,5,\n")
    rows = load_rows("reviews", spec({"path": str(tmp_path / "a.csv"), **TEMPLATES}), tmp_path)
    assert sorted(row.target for split in SPLITS for row in rows[split]) == ["bad", "good"]


def test_a_csv_file_that_excel_saved_has_its_first_column(tmp_path: Path) -> None:
    file = reviews(tmp_path, ".csv")
    plain = load_rows("reviews", spec({"path": str(file), **TEMPLATES}), tmp_path)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_rows("reviews", spec({"path": str(file), **TEMPLATES}), tmp_path) == plain


def test_a_prepared_folder_can_be_a_source_again(tmp_path: Path) -> None:
    first = spec({"path": str(reviews(tmp_path, ".csv")), **TEMPLATES})
    prepare.prepare_task("reviews", first, tmp_path, tmp_path / "once")
    prepare.prepare_task("reviews", spec({"path": str(tmp_path / "once")}), tmp_path, tmp_path / "twice")
    for split in SPLITS:
        assert (tmp_path / "once" / f"{split}.jsonl").read_bytes() == (
            tmp_path / "twice" / f"{split}.jsonl"
        ).read_bytes()
    card = json.loads((tmp_path / "once" / "card.json").read_text())
    assert card["rows"] == {split: len(read_rows(tmp_path / "once" / f"{split}.jsonl", first)) for split in SPLITS}


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data sets are not on this machine")
@pytest.mark.parametrize("name", ["sst2", "squad_v2", "iwslt_enfr", "dream", "medmcqa"])
def test_the_papers_learning_tasks_load_from_their_shared_samples(tmp_path: Path, name: str) -> None:
    card = json.loads((SHARED / name / "card.json").read_text())
    labels = {key: card[key] for key in ("kind", "metric", "labels")}
    rows = {"train": 40, "validation": 10, "test": 20}
    prepare.prepare_task(name, spec({"path": str(SHARED / name)}, rows=rows, **labels), tmp_path, tmp_path / name)
    assert json.loads((tmp_path / name / "card.json").read_text())["rows"] == rows


def test_a_stage_that_fails_leaves_what_was_there_and_nothing_half_made(tmp_path: Path) -> None:
    out = tmp_path / "reviews"
    prepare.prepare_task("reviews", spec({"path": str(reviews(tmp_path, ".csv")), **TEMPLATES}), tmp_path, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(RuntimeError, match="stopped"), prepare.new_folder(out) as folder:
        (folder / "half.jsonl").write_text("half")
        raise RuntimeError("stopped")
    one_class = {"path": str(reviews(tmp_path, ".csv")), **TEMPLATES, "target_names": {"1": "bad", "5": "bad"}}
    with pytest.raises(BadInput, match="at least two classes"):
        prepare.prepare_task("reviews", spec(one_class), tmp_path, out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reviews", "reviews.csv"]


def test_the_command_prepares_a_learning_task_and_reports_bad_input_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "stream": {"name": "s", "learning_tasks": ["reviews"]},
        "base_model": {"folder": str(tmp_path / "none")},
        "learning_tasks": {"reviews": spec({"path": str(reviews(tmp_path, ".csv")), **TEMPLATES}).model_dump()},
        "data": str(tmp_path / "data"),
    }
    config = tmp_path / "params.yaml"
    config.write_text(json.dumps(settings))
    assert prepare.main(["task", "reviews", "--config", str(config)]) == 0
    assert read_rows(tmp_path / "data" / "reviews" / "test.jsonl", spec({}))
    for arguments, message in [(["task", "views"], "views is not defined"), (["base_model"], "none does not exist")]:
        assert prepare.main([*arguments, "--config", str(config)]) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["reviews"]


def test_a_line_separator_inside_a_record_is_text(tmp_path: Path) -> None:
    file = tmp_path / "reviews.jsonl"
    records = [{"text": f"thing\u2028{number}", "stars": "15"[number % 2]} for number in range(60)]
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    rows = load_rows("reviews", spec({"path": str(file), **TEMPLATES}), tmp_path)
    assert {row.prompt for split in SPLITS for row in rows[split]} == {
        f"Review: {record['text']}\nSentiment:" for record in records
    }


@pytest.mark.parametrize("arguments", [["task", "reviews"], ["base_model"]])
def test_what_was_taken_in_by_hand_is_not_made_again(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source, data = tmp_path / "model", tmp_path / "data"
    source.mkdir()
    (source / "config.json").write_text("{}")
    settings = {
        "stream": {"name": "s", "learning_tasks": ["reviews"]},
        "base_model": {"folder": str(source)},
        "learning_tasks": {"reviews": spec({"path": str(reviews(tmp_path, ".csv")), **TEMPLATES}).model_dump()},
        "data": str(data),
    }
    config = tmp_path / "params.yaml"
    config.write_text(json.dumps(settings))
    made = data / arguments[-1]
    made.mkdir(parents=True)
    (made / "mine.txt").write_text("by hand")
    (data / "taken_in.txt").write_text(f"{made.name}\n")
    assert prepare.main([*arguments, "--config", str(config)]) == 0
    assert [file.name for file in made.iterdir()] == ["mine.txt"]
    shutil.rmtree(made)
    assert prepare.main([*arguments, "--config", str(config)]) == 2
    assert "bring it with `dvc pull" in capsys.readouterr().err
    assert not made.exists()
