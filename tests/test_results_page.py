"""Tables and plots out of results files whose lines may not all be compared, or no longer count."""

import pytest
from benchmark_scripts import script
from test_comparison import together

from recall.comparison_line import append
from recall.errors import BadInput
from recall.results import LabelBias, MergeWeights


@pytest.fixture(scope="module")
def write_page():
    return script("results_page").write_page


def merged(similarity, weight=0.5, **fields):
    """RECALL's line with a merge of two models that are so alike in both layers, and a label bias of so much."""
    both = MergeWeights(
        layers=["embeddings", "block"],
        models=["base", "a"],
        weights=[[1 - weight, weight]] * 2,
        similarities=[[similarity, 1]] * 2,
        sigma=[1, 1],
    )
    bias = {"a": LabelBias(label="yes", given=similarity, true=0.5, auc=similarity)}
    return together("recall", 1, 2, 3, 4, merges=[both], label_bias=bias, **fields)


def page(write_page, folder, *lines):
    """Every file of the page by its name, `tables.md` among them."""
    file = folder / "results.jsonl"
    file.unlink(missing_ok=True)
    for line in lines:
        append(file, line)
    write_page([file], folder / "page")
    return {path.name: path.read_text() for path in (folder / "page").iterdir()}


def test_groups_that_may_not_be_compared_stand_apart_in_every_part_of_the_page(write_page, tmp_path):
    written = page(write_page, tmp_path, merged(0.9), merged(0.3, shared="other", own="other"), merged(0.7, seed=1))
    text = written["tables.md"]
    first, second = text.partition("## Labels told apart, independent\n")[2].split(
        "## Labels told apart, independent-2\n"
    )
    assert "| RECALL | 80\\.0 (80%) |" in first, "two cases"
    assert "| RECALL | 30\\.0 (30%) |" in second
    depth = text.partition("## By depth")[2]
    assert "independent, seed 0, order 0; layers" in depth
    assert "independent-2, seed 0, order 0; layers" in depth
    assert ">independent-2</text>" in written["results-depth.svg"]
    assert written.keys() >= {"results-independent.svg", "results-independent-2.svg"}


def test_lines_that_newer_settings_supersede_are_drawn_nowhere(write_page, tmp_path):
    newer = merged(0.8, 0.6, seed=1, own="newer")
    for name in ("one", "both"):
        (tmp_path / name).mkdir()
    alone = page(write_page, tmp_path / "one", newer)
    both = page(write_page, tmp_path / "both", merged(0.2), newer)
    assert both["tables.md"].replace("2 results", "1 results") == alone["tables.md"]
    assert both["results-depth.svg"] == alone["results-depth.svg"]


def test_a_missing_file_is_named_before_anything_is_written(write_page, tmp_path):
    append(tmp_path / "found.jsonl", merged(0.5))
    with pytest.raises(BadInput, match=r"typo\.jsonl is missing or has no results; check its name"):
        write_page([tmp_path / "found.jsonl", tmp_path / "typo.jsonl"], tmp_path / "page")
    assert not (tmp_path / "page").exists()
