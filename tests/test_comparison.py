"""Statistics of a comparison: against cases worked out by hand, the metrics of a stream, and the gates' bootstrap."""

from io import StringIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from flows.compare import of_two_types
from recall.comparison import compare_lines
from recall.comparison_line import Line, append, mend, read_lines
from recall.comparison_measures import BACKWARD, FORGETTING, OTHERS, SEEN, UNSEEN, measures, score_of
from recall.comparison_table import sentence, table
from recall.continual_metrics import all_metrics
from recall.errors import BadInput
from recall.gates import bounds
from recall.results import ScoreMatrix

TASKS, NEW = ["a", "b", "c"], ["u"]


def line(method="recall", scores=None, rows=None, setting="independent", tasks=TASKS, **fields):
    """A line whose columns have these row scores; the score is their mean unless it is given."""
    rows = rows or [{}]
    scores = scores or {column: float(np.mean(found)) for column, found in rows[-1].items()}
    names = (method, setting, fields.get("seed", 0), fields.get("order", 0), tasks, fields.get("vary_value"))
    known = {"key": str(names), "shared": "same", "own": "same", "stream": "tiny", "base_model": "base"}
    return Line(
        **known | {"seed": 0, "order": 0, "unseen": NEW, "others": [], "split": "test"} | fields,
        setting=setting,
        method=method,
        learning_tasks=tasks,
        metrics=dict.fromkeys([*TASKS, *NEW], "accuracy"),
        scores=scores,
        rows=rows,
        settings={},
        data_hashes={},
        code_commit=None,
        code_clean=False,
        machine={},
    )


def answers(right, of=10):
    """So many right answers, the first ones."""
    return [1.0] * right + [0.0] * (of - right)


def together(method, a, b, c, u, of=10, **fields):
    found = {name: answers(right, of) for name, right in zip("abcu", (a, b, c, u), strict=True)}
    return line(method, rows=[found], **fields)


def in_stream(generator, method="recall", rows=20, **fields):
    """A stream of three updates with random answers."""
    found = []
    for update in range(3):
        columns = [*TASKS[: update + 2], *(NEW if update == 2 else [])]
        found.append({name: generator.integers(0, 2, rows).astype(float).tolist() for name in columns})
    base = dict.fromkeys([*TASKS, *NEW], 0.25)
    means = [base, *({name: float(np.mean(values)) for name, values in row.items()} for row in found)]
    scores = [[row.get(name) for name in [*TASKS, *NEW]] for row in means]
    matrix = ScoreMatrix(learning_tasks=TASKS, unseen=NEW, scores=scores)
    return line(method, rows=found, matrix=matrix, setting="stream", **fields)


def summary(lines, **options):
    (found,) = compare_lines(lines, **options)
    return found


def method(found, label):
    (one,) = [method for method in found.methods if method.label == label]
    return one


def test_means_over_two_cases_worked_out_by_hand():
    lines = [
        together("recall", 8, 6, 4, 5),
        together("recall", 6, 6, 6, 7, seed=1),
        together("average", 4, 6, 8, 9),
        together("average", 8, 8, 8, 1, seed=1),
    ]
    found = summary(lines)
    assert (found.cases, found.rows) == (2, {"a": 10, "b": 10, "c": 10, "u": 10})
    recall = {name: estimate.value for name, estimate in method(found, "recall").measures.items()}
    assert recall == pytest.approx({"a": 0.7, "b": 0.6, "c": 0.5, SEEN: 0.6, UNSEEN: 0.6})
    against = method(found, "average").against
    assert against[SEEN].value == pytest.approx(0.6 - 0.7)
    assert (against[SEEN].wins, against[SEEN].losses) == (0, 1), "level in the first case, behind in the second"
    assert against[UNSEEN].value == pytest.approx(0.6 - 0.5)
    assert (against[UNSEEN].wins, against[UNSEEN].losses) == (1, 1)


def test_of_one_expert_each_its_own_task_is_what_was_seen_and_the_others_are_neither():
    lines = []
    for position, task in enumerate(TASKS):
        rows = [{name: answers(position + 1 if name == task else 5) for name in [*TASKS, *NEW]}]
        others = [name for name in TASKS if name != task]
        lines.append(line(rows=rows, setting="single", tasks=[task], others=others))
    found = {name: estimate.value for name, estimate in method(summary(lines), "recall").measures.items()}
    assert found == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.3, SEEN: 0.2, OTHERS: 0.5, UNSEEN: 0.5})
    assert summary(lines[:2]).learning_tasks == ["a", "b"]
    more = [*lines, line("average", rows=lines[0].rows, setting="single", tasks=["a"], others=["b", "c"])]
    assert [one.label for one in summary(more).methods] == ["recall"], "average has no whole case yet"


def test_a_stream_s_measures_are_those_of_its_score_matrix():
    for seed in range(20):
        made = in_stream(np.random.default_rng(seed))
        expected, found = all_metrics(made.matrix), measures("stream", [made], score_of)
        assert found[SEEN] == pytest.approx(expected["average_accuracy"])
        assert found[UNSEEN] == pytest.approx(expected["unseen_average"])
        assert found[FORGETTING] == pytest.approx(expected["forgetting"])
        assert found[BACKWARD] == pytest.approx(expected["backward_transfer"])


def test_with_one_case_an_average_s_interval_is_that_of_the_gates():
    made = together("recall", 120, 80, 40, 100, of=200)
    rows = {name: np.array(made.rows[0][name]) for name in TASKS}
    low, high = bounds(rows, 0.4, confidence=0.975, resamples=20_000, seed=1)
    found = method(summary([made], resamples=20_000), "recall").measures[SEEN]
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.003)


def test_a_corpus_score_keeps_its_value_and_takes_its_spread_from_the_sentences():
    rows = np.random.default_rng(0).random(50).tolist()
    scores = {"a": 0.2, "b": 0.9, "c": 0.9, "u": 0.9}
    found = summary([line(scores=scores, rows=[dict.fromkeys([*TASKS, *NEW], rows)])])
    estimate = method(found, "recall").measures["a"]
    assert estimate.value == 0.2
    spread = 1.96 * np.std(rows) / np.sqrt(50)
    assert (estimate.high - estimate.low) / 2 == pytest.approx(spread, rel=0.1)


@given(seed=st.integers(0, 1000), cases=st.integers(1, 4), rows=st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_a_method_compared_with_its_like_is_exactly_level_and_every_interval_holds_its_estimate(seed, cases, rows):
    generator = np.random.default_rng(seed)
    lines = []
    for case in range(cases):
        ours = in_stream(generator, rows=rows, seed=case)
        lines += [ours, ours.model_copy(update={"method": "average", "key": ours.key + "twin"})]
        lines.append(in_stream(generator, "ties", rows=rows, seed=case))
    found = summary(lines, resamples=200)
    for difference in method(found, "average").against.values():
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)
        assert difference.wins == difference.losses == 0
    for one in found.methods:
        for estimate in [*one.measures.values(), *one.against.values()]:
            assert estimate.low <= estimate.value <= estimate.high
    assert all(d.value == pytest.approx(method(found, "recall").measures[name].value
                                        - method(found, "ties").measures[name].value)
               for name, d in method(found, "ties").against.items())  # fmt: skip


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_more_rows_of_the_same_kind_make_intervals_narrower(seed):
    few = in_stream(np.random.default_rng(seed), rows=20)
    many = few.model_copy(update={"rows": [{name: found * 4 for name, found in row.items()} for row in few.rows]})
    widths = []
    for made in (few, many):
        estimate = method(summary([made]), "recall").measures[SEEN]
        widths.append(estimate.high - estimate.low)
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.2)


def test_cases_that_differ_widen_the_interval_and_more_seeds_do_not_stand_for_more_rows():
    alike = [together("recall", 50, 50, 50, 50, of=100, seed=seed) for seed in range(8)]
    apart = [together("recall", *[30 + 40 * (seed % 2)] * 4, of=100, seed=seed) for seed in range(8)]
    widths = []
    for lines in (alike[:1], alike, apart):
        estimate = method(summary(lines), "recall").measures["a"]
        assert estimate.value == pytest.approx(0.5)
        widths.append(estimate.high - estimate.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.05), "all cases answered the same rows"
    assert widths[2] > 1.3 * widths[1]


def test_orders_that_share_their_experts_are_one_training():
    one = [together("recall", 8, 6, 4, 2), together("average", 5, 5, 5, 5)]
    again = [together("recall", 8, 6, 4, 2, order=order) for order in (1, 2)]
    again += [together("average", 5, 5, 5, 5, order=order) for order in (1, 2)]
    (few,), (many,) = compare_lines(one), compare_lines([*one, *again])
    assert (few.trainings, many.cases, many.trainings) == (1, 3, 1)
    assert few.methods[0].measures == many.methods[0].measures, "more orders of one training make no interval narrower"


def test_only_lines_with_the_newest_settings_count_and_of_one_case_the_last():
    old = together("average", 1, 1, 1, 1, own="old", seed=1)
    lines = [together("recall", 5, 5, 5, 5), old, together("average", 2, 2, 2, 2), together("average", 3, 3, 3, 3)]
    average = method(summary(lines), "average")
    assert average.cases == 1
    assert average.measures[SEEN].value == pytest.approx(0.3)
    other = together("average", 9, 9, 9, 9, shared="other")
    assert len(compare_lines([*lines, other])) == 2, "what was trained or scored otherwise is not compared"


def test_methods_scored_on_different_rows_are_refused():
    lines = [together("recall", 5, 5, 5, 5), together("average", 5, 5, 5, 5, of=20)]
    with pytest.raises(BadInput, match="a was scored on 10 and 20 rows"):
        compare_lines(lines)


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (90, "RECALL reaches 90.0 and is best, 40.0 above plain average, the next (more than chance: +"),
        (51, "RECALL reaches 51.0 and is best, 1.0 above plain average, the next (which chance may explain: "),
        (50, "RECALL reaches 50.0, level with plain average"),
        (10, "RECALL reaches 10.0 and loses to 1 of 1: plain average is best, 40.0 above RECALL (more than chance: −"),  # noqa: RUF001
    ],
)
def test_the_sentence_says_who_won_and_whether_chance_may_explain_it(ours, words):
    rows = {"recall": answers(ours, 100), "average": answers(50, 100)[::-1]}
    base = line("base", rows=[dict.fromkeys([*TASKS, *NEW], answers(99, 100))])
    lines = [line(name, rows=[dict.fromkeys([*TASKS, *NEW], found)]) for name, found in rows.items()]
    found = summary([base, *lines])
    assert words in sentence(found)
    assert "trained once" in sentence(found)
    assert "; the base model is above RECALL there, at 99.0" in sentence(found)
    assert "base model" not in sentence(summary(lines))
    assert table(found).row_count == 3


def test_values_of_one_setting_are_told_apart_however_narrow_the_table():
    changed = [
        line("recall", rows=[dict.fromkeys([*TASKS, *NEW], answers(50, 100))], vary_key="update.pool", vary_value=value)
        for value in ("experts", "all")
    ]
    console = Console(width=60, record=True, file=StringIO())
    console.print(table(summary([line("recall", rows=[dict.fromkeys([*TASKS, *NEW], answers(50, 100))]), *changed])))
    first = "".join(row.split("│")[1].strip() for row in console.export_text().splitlines() if row.count("│") > 1)
    assert first == "RECALLRECALLupdate.pool=expertsRECALLupdate.pool=all"


def test_another_method_than_recall_may_be_set_against_the_others():
    lines = [together("recall", 5, 5, 5, 5), together("recall_moments", 7, 7, 7, 6), together("average", 1, 1, 1, 1)]
    ours, theirs = summary(lines, ours="recall_moments"), summary(lines)
    assert method(ours, "recall").against[SEEN].value == pytest.approx(0.2)
    assert not method(ours, "recall_moments").against
    assert method(theirs, "recall_moments").against[SEEN].value == pytest.approx(-0.2)
    assert "RECALL with moments reaches 70.0 and is best, 20.0 above RECALL, the next" in sentence(ours)
    assert "RECALL reaches 50.0 and loses to 1 of 2: RECALL with moments is best, 20.0 above RECALL" in sentence(theirs)


def test_half_a_line_at_the_end_is_cut_off_and_any_other_is_refused(tmp_path):
    file, made = tmp_path / "deep" / "lines.jsonl", together("recall", 5, 5, 5, 5)
    assert read_lines(file) == []
    append(file, made)
    append(file, made)
    assert read_lines(file) == [made, made]
    whole = file.read_text()
    file.write_text(whole + whole[:100])
    assert read_lines(file) == [made, made]
    assert mend(file)
    assert file.read_text() == whole
    assert not mend(file)
    file.write_text(whole.rstrip("\n"))
    assert not mend(file), "only the line feed was missing"
    assert file.read_text() == whole
    file.write_text(whole + whole[:100])
    append(file, made)
    assert file.read_text() == whole + whole.splitlines(keepends=True)[0], "and so does what another process adds"
    file.write_text('{"key": 1}\n' + whole)
    with pytest.raises(BadInput, match=r"lines.jsonl, line 1 is no result of `recall compare`"):
        read_lines(file)


@pytest.mark.parametrize(
    ("types", "said"),
    [
        (["bfloat16", "bfloat16"], ""),
        ([None, None], ""),
        (["bfloat16", "float32"], "; made in bfloat16 and float32, so part of a difference may be the machines'"),
        (["float32", None], "; made in a type not recorded and float32, so part of a difference may be the machines'"),
    ],
)
def test_lines_that_machines_of_two_types_made_are_said_to_be(types, said):
    machines = [{"dtype": dtype} if dtype else {} for dtype in types]
    assert (
        of_two_types([together("recall", 5, 5, 5, 5).model_copy(update={"machine": one}) for one in machines]) == said
    )
