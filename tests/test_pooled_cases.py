"""One method against another over the cases of several results files."""

from pathlib import Path

import numpy as np
import pytest
from benchmark_scripts import script as script_of
from test_comparison import in_stream, together

from recall.comparison import compare_lines
from recall.comparison_line import append, read_lines
from recall.comparison_measures import FORGETTING, SEEN, UNSEEN


@pytest.fixture(scope="module")
def script():
    return script_of("pooled_cases")


def stream(seeds, generator=0, **fields):
    """Two methods' lines in a case for each seed."""
    random = np.random.default_rng(generator)
    return [in_stream(random, method, seed=seed, **fields) for seed in seeds for method in ("regmean", "average")]


def test_a_difference_is_that_of_the_comparison_itself_where_there_is_one_file(script):
    lines = stream(range(5))
    (found,) = compare_lines(lines, ours="regmean")
    (other,) = [method for method in found.methods if method.label == "average"]
    cases = script.case_differences(lines, "regmean", "average")
    for measure in (SEEN, UNSEEN, FORGETTING):
        value, low, high = script.pooled(cases, measure)
        expected = other.against[measure]
        assert value == pytest.approx(expected.value)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.02), "but for the draws of the rows"


def test_cases_that_one_method_lacks_and_other_settings_are_left_out(script):
    lines = [*stream(range(3)), *stream([7])[:1], together("regmean", 1, 2, 3, 4), together("average", 1, 2, 3, 4)]
    assert len(script.case_differences(lines, "regmean", "average")) == 3
    assert script.case_differences(lines, "regmean", "ties") == []


def test_all_cases_together_have_a_narrower_interval_than_those_of_any_file(script, tmp_path, capsys):
    files = [tmp_path / f"{name}.jsonl" for name in "abcd"]
    for number, file in enumerate(files):
        for made in stream(range(4), generator=number):
            append(file, made)
    cases = [case for file in files for case in script.case_differences(read_lines(file), "regmean", "average")]
    value, low, high = script.pooled(cases, SEEN)
    alone = [script.pooled(script.case_differences(read_lines(file), "regmean", "average"), SEEN) for file in files]
    assert value == pytest.approx(np.mean([one[0] for one in alone]))
    assert high - low < min(one[2] - one[1] for one in alone)
    assert script.main([*map(str, files), "--ours", "regmean", "--theirs", "average"]) == 0
    *_, last = capsys.readouterr().out.strip().splitlines()
    assert last.startswith(f"| **all cases** | 16 | {100 * value:+.1f}")


def test_groups_that_may_not_be_compared_give_the_same_cases_in_one_file_as_in_two(script):
    """The second one's settings are no newer ones of the first's methods."""
    one, two = stream(range(3)), stream(range(2), generator=1, shared="other", own="other")
    apart = [case for lines in (one, two) for case in script.case_differences(lines, "regmean", "average")]
    together = script.case_differences([*one, *two], "regmean", "average")
    assert len(together) == 5
    for found, expected in zip(together, apart, strict=True):
        for measure in (SEEN, UNSEEN, FORGETTING):
            np.testing.assert_array_equal(found[measure], expected[measure])


def test_a_mistyped_file_is_named_and_not_left_out(script, tmp_path, capsys):
    for made in stream(range(2)):
        append(tmp_path / "lines.jsonl", made)
    (tmp_path / "empty.jsonl").touch()
    for name in ("liness.jsonl", "empty.jsonl"):
        assert script.main([str(tmp_path / name), str(tmp_path / "lines.jsonl"), "--ours", "regmean"]) == 2
        assert f"{name} is missing or has no results; check its name" in capsys.readouterr().err


def test_a_file_without_such_a_case_is_named(script, tmp_path, capsys):
    append(tmp_path / "few.jsonl", stream([0])[0])
    assert script.main([str(tmp_path / "few.jsonl"), "--ours", "regmean", "--theirs", "average"]) == 2
    assert "few has no case that both regmean and average went through" in capsys.readouterr().err


def test_a_table_that_cannot_be_written_is_one_sentence(script, tmp_path, capsys):
    file = tmp_path / "lines.jsonl"
    for made in stream(range(2)):
        append(file, made)
    asked = [str(file), "--ours", "regmean", "--theirs", "average", "--out", str(file / "pooled.md")]
    assert script.main(asked) == 1
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "pooled.md" in said


def test_every_other_method_over_the_cases_that_it_has(script, tmp_path, capsys):
    """One that a file lacks counts by the other file's cases."""
    random = np.random.default_rng(1)
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for number, file in enumerate(files):
        for made in [*stream(range(3), number), *(in_stream(random, "ties", seed=seed) for seed in range(2 * number))]:
            append(file, made)
    assert script.main([*map(str, files), "--ours", "regmean"]) == 0
    _, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert [row.split(" | ")[:2] for row in rows] == [["| plain average", "6"], ["| TIES", "2"]]
    (one,) = [row for row in rows if "TIES" in row]
    alone = script.case_differences(read_lines(files[1]), "regmean", "ties")
    assert f"{100 * script.pooled(alone, SEEN)[0]:+.1f}" in one


def test_a_method_that_met_no_other_is_one_sentence(script, tmp_path, capsys):
    append(tmp_path / "few.jsonl", stream([0])[0])
    assert script.main([str(tmp_path / "few.jsonl"), "--ours", "regmean"]) == 2
    assert (
        "no file has a case that regmean and another method went through; they have no others"
        in capsys.readouterr().err
    )


def test_two_files_of_one_name_are_not_taken_for_one(script, tmp_path, capsys):
    asked = [str(tmp_path / folder / "lines.jsonl") for folder in "ab"]
    for file in asked:
        Path(file).parent.mkdir()
        append(Path(file), stream([0])[0])
    assert script.main([*asked, "--ours", "regmean"]) == 2
    assert "two of the files have one name" in capsys.readouterr().err
