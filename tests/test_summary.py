"""The table, the sentence and the files at the end of a run."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from sample_result import RECALL, SEQUENTIAL, TASKS, sample_result

from recall.errors import BadInput, Failed
from recall.results import ScoreMatrix, StreamResult
from recall.summary import table, to_json, write_metric_files
from recall.verdict import noise, verdict


def shown(result: StreamResult) -> dict[str, list[str]]:
    """The cells of the printed table by their line's name."""
    console = Console(width=160, no_color=True)
    with console.capture() as capture:
        console.print(table(result))
    lines = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in capture.get().splitlines() if "│" in line
    ]
    return {cells[0]: cells[1:] for cells in lines}


def final(seen: dict[str, float], unseen: dict[str, float] | None = None, base: float = 0.0) -> StreamResult:
    """A stream of two learning tasks and one unseen in which a method ends at one and the same score on both."""
    unseen = unseen or {}
    methods = {
        name: ScoreMatrix(
            learning_tasks=["a", "b"],
            unseen=["u"] if unseen else [],
            scores=[
                [base, base] + [base] * bool(unseen),
                [score, base] + [None] * bool(unseen),
                [score, score] + ([unseen[name]] if unseen else []),
            ],
        )
        for name, score in seen.items()
    }
    return StreamResult(stream="s", metrics={}, methods=methods, updates=[], settings={})


def test_the_table_has_every_method_and_blanks_where_there_is_nothing_to_say() -> None:
    assert shown(sample_result()) == {
        "base model": ["54.0", "18.2", "31.0", "34.4", "", "45.0"],
        "experts, each on its own": ["89.0", "44.0", "70.0", "", "", ""],
        "sequential fine-tuning": ["74.0", "25.5", "69.0", "56.2", "15.8", "45.0"],
        "plain average": ["81.0", "28.0", "52.0", "53.7", "3.5", "47.5"],
        "RECALL": ["84.6", "33.8", "61.0", "59.8", "1.9", "48.0"],
    }


def test_the_table_survives_brackets_in_names() -> None:
    result = sample_result()
    renamed = {n: m.model_copy(update={"learning_tasks": ["[red]x[/]", "b", "c"]}) for n, m in result.methods.items()}
    heading = table(result.model_copy(update={"methods": renamed})).columns[1].header
    assert Console().render_str(str(heading)).plain.startswith("[red]x[/]")


def test_the_verdict_names_the_winner_the_differences_and_what_was_forgotten() -> None:
    assert verdict(sample_result()) == (
        "Over the learning tasks seen RECALL is best with 59.8 points, 3.6 above sequential fine-tuning and 6.1 above "
        "the plain average; over the unseen ones RECALL is best with 48.0 points, 3.0 above sequential fine-tuning and "
        "0.5 above the plain average; of what came before, RECALL forgot 1.9 points, sequential fine-tuning forgot "
        "15.8 and the plain average forgot 3.5; differences under 2 points are small and may be chance."
    )


def test_the_training_baselines_are_named_in_the_table_and_in_the_verdict() -> None:
    result = final({"replay": 0.8, "ewc": 0.7, "recall": 0.75})
    assert list(shown(result))[-3:] == ["EWC", "experience replay", "RECALL"]
    assert verdict(result).startswith(
        "Over the learning tasks seen RECALL loses: experience replay is best with 80.0 points and RECALL has 75.0, "
        "5.0 above EWC and 5.0 below experience replay; of what came before, RECALL forgot nothing, EWC forgot nothing "
        "and experience replay forgot nothing"
    )


def test_the_verdict_says_plainly_that_recall_lost() -> None:
    lost = final(
        {"sequential": 0.75, "average": 0.5, "recall": 0.6}, {"sequential": 0.3, "average": 0.4, "recall": 0.2}
    )
    assert verdict(lost) == (
        "Over the learning tasks seen RECALL loses: sequential fine-tuning is best with 75.0 points and RECALL has "
        "60.0, 15.0 below sequential fine-tuning and 10.0 above the plain average; over the unseen ones RECALL loses: "
        "the plain average is best with 40.0 points and RECALL has 20.0, 10.0 below sequential fine-tuning and 20.0 "
        "below the plain average; of what came before, RECALL forgot nothing, sequential fine-tuning forgot nothing "
        "and the plain average forgot nothing."
    )


def test_what_looks_equal_in_the_table_is_called_level() -> None:
    said = verdict(final({"sequential": 0.6004, "average": 0.5, "recall": 0.6}))
    assert "RECALL is level with sequential fine-tuning at 60.0 points, 10.0 above the plain average" in said
    assert "under 2 points are small" in said


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (0.7, "(the base model's 70.0 is more than all of them reached)"),
        (0.55, "(the base model's 55.0 is more than RECALL reached)"),
    ],
)
def test_a_base_model_that_was_better_is_not_hushed_up(base: float, said: str) -> None:
    assert said in verdict(final({"sequential": 0.6, "recall": 0.5}, base=base))
    assert "base model" not in verdict(final({"sequential": 0.6, "recall": 0.5}, base=0.5))


def test_a_gain_on_earlier_learning_tasks_is_told_as_one() -> None:
    scores: list[list[float | None]] = [[0.1, 0.1], [0.5, 0.1], [0.6, 0.5]]
    matrix = ScoreMatrix(learning_tasks=["a", "b"], unseen=[], scores=scores)
    result = StreamResult(stream="s", metrics={}, methods={"recall": matrix}, updates=[], settings={})
    assert verdict(result).endswith("of what came before, RECALL gained 10.0 points.")


def test_one_update_without_baselines_makes_no_comparison() -> None:
    matrix = ScoreMatrix(learning_tasks=["a"], unseen=[], scores=[[0.2], [0.6]])
    result = StreamResult(stream="s", metrics={}, methods={"recall": matrix}, updates=[], settings={})
    assert verdict(result) == (
        "Over the learning tasks seen RECALL reaches 60.0 points, with no baseline to compare it with; "
        "after one update there is nothing yet to forget."
    )
    assert shown(result)["RECALL"] == ["60.0", "60.0", "", ""]


def test_with_test_rows_the_verdict_says_which_differences_chance_may_explain() -> None:
    close = final({"sequential": 0.52, "recall": 0.5}, {"sequential": 0.1, "recall": 0.5})
    rows = {"a": 100, "b": 100, "u": 100}
    # by hand: sqrt(2 * 2 * 0.25 / 100) / 2 * 1.96 = 0.098 over a and b
    assert verdict(close, rows).endswith("; differences under 9.8 points over seen (200 test rows) may be chance.")
    assert "chance" not in verdict(final({"sequential": 0.9, "recall": 0.5}), rows)


def test_noise_is_two_standard_errors_and_unknown_where_rows_are() -> None:
    matrix = final({"recall": 0.5}).methods["recall"]
    assert noise(matrix, ["a"], {"a": 400}) == pytest.approx(100 * 1.96 * (2 * 0.25 / 400) ** 0.5)
    assert noise(matrix, ["a", "b"], {"a": 400}) is None


def test_a_result_without_recall_is_refused() -> None:
    with pytest.raises(BadInput, match="no scores of RECALL"):
        verdict(final({"sequential": 0.5}))


def test_json_holds_scores_between_0_and_1_and_null_for_what_is_undefined() -> None:
    read = json.loads(json.dumps(to_json(sample_result(), Path("reports/report.html")), allow_nan=False))
    assert read["report"] == "reports/report.html"
    assert (read["stream"], read["version"], read["draft"]) == ("default", "3", True)
    assert read["verdict"] == verdict(sample_result())
    assert read["base"]["tweets"] == 0.515
    assert read["experts"] == {"reviews": 0.89, "names_fr": 0.44, "commonsense": 0.70}
    assert list(read["methods"]) == ["sequential", "average", "recall"]
    assert read["methods"]["recall"]["scores"] == dict(zip([*TASKS, "tweets", "trivia"], RECALL[3], strict=True))
    assert read["methods"]["recall"]["average_accuracy"] == pytest.approx((0.846 + 0.338 + 0.610) / 3)
    assert read["updates"][0]["reused"] is True
    assert "merge" not in read["updates"][0]

    matrix = ScoreMatrix(learning_tasks=["a"], unseen=[], scores=[[None], [0.6]])
    one = StreamResult(stream="s", metrics={}, methods={"recall": matrix}, updates=[], settings={})
    read = json.loads(json.dumps(to_json(one, Path("r.html")), allow_nan=False))
    assert read["methods"]["recall"]["forgetting"] is None
    assert read["base"] == {"a": None}
    assert read["version"] is None


def test_metric_files_read_back(tmp_path: Path) -> None:
    write_metric_files(sample_result(), tmp_path)

    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["sequential"]["forgetting"] == pytest.approx(((0.89 - 0.74) + (0.42 - 0.255)) / 2)
    assert metrics["recall"]["scores"]["names_fr"] == 0.338
    assert metrics["base"]["scores"]["reviews"] == 0.54

    accuracy = list(csv.DictReader((tmp_path / "plots" / "accuracy.csv").open()))
    assert [(row["update"], row["learning_task"], row["method"]) for row in accuracy] == [
        (str(n + 1), task, method) for n, task in enumerate(TASKS) for method in ("sequential", "average", "recall")
    ]
    assert float(accuracy[3]["average_accuracy"]) == pytest.approx((SEQUENTIAL[2][0] + SEQUENTIAL[2][1]) / 2)

    weights = list(csv.DictReader((tmp_path / "plots" / "weights.csv").open()))
    assert len(weights) == 3 * 31 * 2
    assert weights[0] | {"weight": 0, "similarity": 0} == {
        "update": "1",
        "learning_task": "reviews",
        "layer": "0",
        "name": "embeddings",
        "model": "merged so far",
        "weight": 0,
        "similarity": 0,
    }
    assert [float(row["weight"]) for row in weights[:2]] == [0.5, 0.5]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "accuracy.csv",
        "metrics.json",
        "weights.csv",
    ]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Failed, match=r"metrics\.json cannot be written"):
        write_metric_files(sample_result(), tmp_path / "file" / "reports")


def test_the_summary_loads_nothing_heavy() -> None:
    code = (
        "import sys, recall.summary; print({'torch', 'matplotlib', 'transformers', 'jinja2', 'numpy'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.slow
@pytest.mark.parametrize("baselines", [[], ["sequential", "ewc"]])
def test_dvc_draws_a_line_for_each_method_whichever_baselines_there_are(tmp_path: Path, baselines: list[str]) -> None:
    project = Path(__file__).parents[1]
    for command in ("git init --quiet", f"{sys.executable} -m dvc init --quiet"):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    shutil.copytree(project / ".dvc" / "plots", tmp_path / ".dvc" / "plots", dirs_exist_ok=True)
    plots = yaml.safe_load((project / "dvc.yaml").read_text())["plots"]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots}))
    result = sample_result()
    methods = {"recall": result.methods["recall"]} | dict.fromkeys(baselines, result.methods["sequential"])
    write_metric_files(result.model_copy(update={"methods": methods}), tmp_path / "reports")
    plots_show = [sys.executable, "-m", "dvc", "plots", "show", "--json"]
    shown = subprocess.run(plots_show, cwd=tmp_path, check=True, capture_output=True, text=True)
    (found,) = json.loads(shown.stdout)["data"]["accuracy"]
    assert found["content"]["encoding"]["color"]["field"] == "method"
    drawn = {(point["method"], point["update"]) for point in found["content"]["data"]["values"]}
    assert drawn == {(name, str(update)) for name in methods for update in (1, 2, 3)}
