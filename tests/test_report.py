"""The report: one page that says everything, needs nothing, and is whole or not there."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest
from sample_result import merge, sample_result

from recall.charts import bar_chart, heat_map, line_chart, tens_around
from recall.continual_metrics import average_accuracy
from recall.errors import BadInput, Failed
from recall.merge_settings import Baseline
from recall.report import METHOD_COLOURS, _depth, render, write_report
from recall.results import ScoreMatrix, StreamResult, UpdateResult
from recall.verdict import verdict

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every tag must close in order. Keeps the elements, their attributes and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str, css_class: str) -> int:
        return sum(name == tag and css_class in (found.get("class") or "").split() for name, found in self.elements)


def test_a_baseline_that_was_held_in_fine_tuning_is_said_to_be() -> None:
    plain = sample_result()
    methods = {**plain.methods, "recall_moments": plain.methods["recall"]}
    held = plain.model_copy(update={"methods": methods, "settings": {"merging": {"hold": 10.0}}})
    assert "Fine-tuning of RECALL with moments was held (strength 10.0)" in Page(render(held)).text
    for other in (held.model_copy(update={"settings": {}}), held.model_copy(update={"methods": plain.methods})):
        assert "was held" not in Page(render(other)).text


def named(name: str) -> StreamResult:
    """The sample with every learning task, model and the stream called `name` and a number."""
    result = sample_result()
    tasks = [f"{name} {number}" for number in range(3)]
    return result.model_copy(
        update={
            "stream": name,
            "methods": {key: m.model_copy(update={"learning_tasks": tasks}) for key, m in result.methods.items()},
            "updates": [
                update.model_copy(
                    update={"learning_task": task, "merge": update.merge.model_copy(update={"models": [name, name]})}
                )
                for update, task in zip(result.updates, tasks, strict=True)
            ],
            "settings": {name: name},
        }
    )


def test_the_page_is_well_formed_small_and_needs_nothing_from_outside() -> None:
    html = render(sample_result())
    page = Page(html)
    assert len(html.encode()) < 300_000
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "embed"}
    assert not re.search(r"https?:|url\(|@import", html)
    assert not any(key in {"src", "href"} or key.startswith("on") for _, found in page.elements for key in found)


def test_the_page_shows_every_number_that_it_is_about() -> None:
    page = Page(render(sample_result(), {"reviews": 200}))
    assert verdict(sample_result(), {"reviews": 200}) in page.text
    assert page.count("svg", "heat") == 3
    assert sum(text.count(", newest expert: 0.") for text in page.words) == 3 * 31
    assert page.count("td", "learnt") == 3 * 3
    # the sample leaves out R[1][3] of each method, and the baselines' unseen scores after updates 1 and 2
    assert page.count("td", "blank") == 3 * 1 + 2 * 4
    for said in (
        "Update 3: commonsense",
        "finetuning.lora.r",
        "59.8",
        "draft",
        "taken up",
        "finetune",
        "71.4",
        "version 3",
    ):
        assert said in page.text


def test_every_method_of_any_list_has_its_name_and_a_colour_of_its_own() -> None:
    result = sample_result()
    every = dict.fromkeys(get_args(Baseline), result.methods["sequential"]) | result.methods
    html = render(result.model_copy(update={"methods": every}))
    page = Page(html)
    for label in ("sequential fine-tuning", "plain average", "EWC", "experience replay", "RECALL", "RegMean", "TIES"):
        assert label in page.text
    assert [page.count("figure", f"slot-{METHOD_COLOURS[name]}") for name in every] == [1] * len(every)
    shades = [re.search(rf"--{METHOD_COLOURS[name]}: (#\w+)", html)[1] for name in every]
    assert len(set(shades)) == len(every)
    assert all(f".slot-{METHOD_COLOURS[name]} {{" in html for name in every)


def test_names_are_text_never_markup() -> None:
    evil = "<script>alert(1)</script> & \"quoted\" 'name'"
    page = Page(render(named(evil)))
    assert not any(tag == "script" for tag, _ in page.elements)
    assert evil in "".join(page.words)


def test_a_stream_of_one_update_without_baselines_or_unseen_has_a_report() -> None:
    matrix = ScoreMatrix(learning_tasks=["a"], unseen=[], scores=[[0.2], [0.6]])
    update = UpdateResult(learning_task="a", expert_score=0.7, merge=merge(0, layers=3))
    result = StreamResult(stream="one", metrics={}, methods={"recall": matrix}, updates=[update], settings={})
    assert "Nothing can be forgotten after a single update" in Page(render(result)).text


def test_a_missing_score_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    result = sample_result()
    scores = [list(row) for row in result.methods["recall"].scores]
    scores[3][0] = None
    broken = result.methods | {"recall": result.methods["recall"].model_copy(update={"scores": scores})}
    with pytest.raises(BadInput, match="after update 3 on reviews is missing"):
        write_report(result.model_copy(update={"methods": broken}), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_writing_replaces_the_old_report_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "report.html"
    path.parent.mkdir()
    path.write_text("old")
    write_report(sample_result(), path)
    assert path.read_text(encoding="utf-8") == render(sample_result())
    assert list(path.parent.iterdir()) == [path]


def test_a_report_that_cannot_be_written_says_so_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(Failed, match=r"report\.html cannot be written"):
        write_report(sample_result(), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_charts_average_bar_is_as_long_as_the_number_it_stands_for() -> None:
    recall = 100 * average_accuracy(sample_result().methods["recall"])
    chart = bar_chart("seen", [("half", "base", 50.0), ("RECALL", "recall", recall)], 0.0, 100.0)
    assert chart.bars[1].length / chart.bars[0].length == pytest.approx(recall / 50, rel=1e-3)
    assert [bar.x for bar in chart.bars] == [chart.zero, chart.zero]


def test_a_negative_bar_ends_at_zero_and_stays_inside() -> None:
    chart = bar_chart("forgetting", [("gain", "c1", -5.0), ("loss", "c2", 10.0)], -5.0, 10.0)
    gain, loss = chart.bars
    assert gain.x + gain.length == pytest.approx(chart.zero)
    assert loss.x == chart.zero
    assert loss.length == pytest.approx(2 * gain.length, abs=0.02)
    assert gain.label.x < gain.x and loss.x + loss.length < chart.width


def test_a_weight_is_coloured_by_its_distance_from_an_equal_share() -> None:
    cells = heat_map("t", ["l0", "l1", "l2"], ["old", "new"], [[0.5, 0.5], [0.4, 0.6], [0.3, 0.7]], reach=0.2).cells
    assert [cell.colour for cell in cells] == ["even", "even", "less", "more", "less", "more"]
    assert [cell.strength for cell in cells] == pytest.approx([0, 0, 0.5, 0.5, 1, 1])
    assert cells[0].y < cells[2].y < cells[4].y and cells[0].x < cells[1].x


def test_layers_with_long_names_stay_apart_in_a_heat_map() -> None:
    names = ["embeddings", *(f"model.decoder.layers.{index}" for index in range(12))]
    rows = heat_map("t", names, ["old", "new"], [[0.5, 0.5]] * 13, reach=0.2).rows
    assert [row.text for row in rows] == ["embeddings", *(f"layers.{index}" for index in range(12))]
    assert [row.full for row in rows] == names


def test_all_models_alike_is_a_heat_map_without_colour_and_no_division_by_zero() -> None:
    cells = heat_map("t", ["l0"], ["a", "b", "c"], [[1 / 3, 1 / 3, 1 / 3]], reach=0.0).cells
    assert [(cell.colour, cell.strength) for cell in cells] == [("even", 0.0)] * 3


def test_a_line_is_solid_where_measured_and_bridged_where_not() -> None:
    chart = line_chart("t", ["s0", "s1", "s2", "s3"], [("m", "c1", [0.0, None, 1.0, 0.5])], 0.0, 1.0)
    (line,) = chart.lines
    first, second, third = ((dot.x, dot.y) for dot in line.dots)
    assert line.bridges == "M{} {}L{} {}".format(*first, *second)
    assert line.path == "M{} {}L{} {}".format(*second, *third)
    assert first == (chart.left, chart.bottom)
    assert second[1] == chart.top
    assert third == (chart.right, (chart.top + chart.bottom) / 2)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([12.0, 88.0], (10.0, 90.0)), ([50.0], (50.0, 70.0)), ([100.0], (80.0, 100.0)), ([0.0], (0.0, 20.0))],
)
def test_an_axis_has_whole_tens_around_its_values(values: list[float], expected: tuple[float, float]) -> None:
    assert tens_around(values) == expected


def test_a_negative_cosine_is_drawn_within_its_chart() -> None:
    result = sample_result()
    update = result.updates[0]
    below = [[-0.9, *row[1:]] for row in update.merge.similarities]
    changed = update.model_copy(update={"merge": update.merge.model_copy(update={"similarities": below})})
    chart = _depth(result.model_copy(update={"updates": [changed]}), 0)
    assert all(chart.top <= dot.y <= chart.bottom for line in chart.lines for dot in line.dots)
    assert all(tick.text.startswith(("0", "1")) for tick in _depth(result, 0).y_ticks), "without one it starts at 0"
