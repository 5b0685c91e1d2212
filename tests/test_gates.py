"""The gates: what passes, what fails, and what these rows cannot tell."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from recall.errors import Failed
from recall.gates import RowScores, bounds, judge
from recall.gates_table import markdown
from recall.promotion_settings import PromotionSettings

RNG = np.random.default_rng(0)


def accuracy(rows):
    return RowScores(score=float(np.mean(rows)), rows=list(rows))


def answers(share, rows=200):
    """So many right answers of `rows`, the first ones."""
    return accuracy([1.0] * round(share * rows) + [0.0] * (rows - round(share * rows)))


def verdict(seen, best=None, unseen=None, reference=None, refusals=(), **options):
    gates = PromotionSettings(**{"resamples": 2000, **options})
    return judge("2", "1", list(refusals), seen, best or {}, unseen or {}, reference or {}, "version 1", gates)


def gate(verdict, name):
    (found,) = [gate for gate in verdict.gates if gate.name == name]
    return found


@pytest.mark.parametrize(
    ("share", "outcome"), [(0.7, "pass"), (0.42, "borderline"), (0.38, "borderline"), (0.2, "fail")]
)
def test_the_average_passes_fails_or_cannot_be_told(share, outcome):
    found = verdict({"one": answers(share), "two": answers(share)}, minimum_average=0.4)
    assert found.outcome == gate(found, "average").outcome == outcome
    assert gate(found, "average").estimate == share
    assert gate(found, "average").low < share < gate(found, "average").high


@pytest.mark.parametrize(("now", "outcome"), [(0.7, "pass"), (0.52, "borderline"), (0.3, "fail")])
def test_forgetting_is_the_loss_since_the_best_earlier_update(now, outcome):
    found = verdict({"one": answers(now), "two": answers(0.9)}, {"one": answers(0.7)}, maximum_forgetting=0.2)
    assert gate(found, "forgetting").estimate == pytest.approx(0.7 - now)
    assert found.outcome == gate(found, "forgetting").outcome == outcome
    assert "forgetting of one" in found.why or outcome == "pass"


def test_every_learning_task_seen_has_a_forgetting_gate_of_its_own():
    seen = {"one": answers(0.9), "two": answers(0.1), "three": answers(0.9)}
    found = verdict(seen, {"one": answers(0.8), "two": answers(0.9)})
    assert [(gate.name, gate.learning_tasks, gate.outcome) for gate in found.gates] == [
        ("average", ["one", "two", "three"], "pass"),
        ("forgetting", ["one"], "pass"),
        ("forgetting", ["two"], "fail"),
    ]


def test_unseen_may_lie_below_the_champion_by_the_margin_only():
    champion = {"films": answers(0.6, 1000)}
    outcomes = [
        verdict({"one": answers(0.9)}, {}, {"films": answers(share, 1000)}, champion, unseen_margin=0.05).outcome
        for share in (0.6, 0.55, 0.5)
    ]
    assert outcomes == ["pass", "borderline", "fail"]


def test_pairing_sees_what_two_separate_intervals_do_not():
    """Both models answer nearly the same rows rightly: the difference is certain where each score alone is not."""
    found = verdict({"one": answers(0.49)}, {"one": answers(0.5)}, minimum_average=0, maximum_forgetting=0.03)
    average, forgetting = gate(found, "average"), gate(found, "forgetting")
    assert average.high - average.low > 0.1
    assert forgetting.high - forgetting.low < 0.03
    assert forgetting.outcome == "pass"


def test_where_nothing_can_be_compared_the_gate_is_borderline_and_says_why():
    found = verdict({"one": answers(0.9)}, {}, {"films": answers(0.9)}, {})
    assert found.outcome == "borderline"
    assert (gate(found, "unseen").estimate, gate(found, "unseen").rows) == (None, 0)
    assert "version 1 was not scored on the same rows, by the same metric and settings, of films" in found.why


def test_a_refusal_fails_whatever_the_scores_are():
    found = verdict({"one": answers(0.9)}, refusals=["it is a draft"])
    assert (found.outcome, found.why) == ("fail", "it is a draft")


def test_noise_does_not_promote():
    """Versions whose true average lies exactly on the threshold: half have a higher score, and one in twenty passes."""
    rng, passed, higher, trials = np.random.default_rng(1), 0, 0, 400
    for _ in range(trials):
        rows = (rng.random(300) < 0.5).astype(float)
        found = verdict({"one": accuracy(rows)}, minimum_average=0.5, resamples=400)
        passed += found.outcome == "pass"
        higher += accuracy(rows).score > 0.5
    assert higher > 0.4 * trials
    assert passed < 0.09 * trials  # 0.05, and three standard errors


def test_bounds_are_those_of_scipy():
    rows = {"one": RNG.random(80), "two": RNG.integers(0, 2, 50).astype(float)}
    estimate = float(np.mean([values.mean() for values in rows.values()]))
    ours = bounds(rows, estimate, 0.95, 20_000, 0)
    theirs = bootstrap(
        list(rows.values()),
        lambda one, two, axis: (one.mean(axis=axis) + two.mean(axis=axis)) / 2,
        n_resamples=20_000,
        confidence_level=0.9,
        method="percentile",
        vectorized=True,
        batch=1000,
        rng=1,
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_a_corpus_score_is_the_estimate_and_its_spread_that_of_the_sentence_scores():
    rows = list(RNG.random(100))
    low, high = bounds({"one": np.asarray(rows)}, float(np.mean(rows)), 0.95, 2000, 0)
    found = gate(verdict({"one": RowScores(score=0.8, rows=rows)}), "average")
    assert found.estimate == 0.8
    assert (found.low - 0.8, found.high - 0.8) == pytest.approx((low - np.mean(rows), high - np.mean(rows)))


def test_bounds_stay_where_a_score_can_lie():
    found = verdict({"one": RowScores(score=0.01, rows=[0.0, 0.1, 0.2, 0.9])}, minimum_average=0)
    assert gate(found, "average").low == 0
    assert found.outcome == "pass"


def test_the_same_seed_gives_the_same_bounds_however_the_draws_are_batched(monkeypatch):
    rows = {"one": RNG.random(50)}
    whole = bounds(rows, 0.5, 0.95, 500, 3)
    assert whole == bounds(rows, 0.5, 0.95, 500, 3) != bounds(rows, 0.5, 0.95, 500, 4)
    monkeypatch.setattr("recall.gates.BATCH_ELEMENTS", 100)
    assert bounds(rows, 0.5, 0.95, 500, 3) == whole


scores = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=12).map(accuracy)


@settings(max_examples=50, deadline=None)
@given(scores, st.floats(0, 1), st.floats(0, 1))
def test_a_stricter_threshold_never_gives_a_better_verdict(found, one, other):
    order = ["fail", "borderline", "pass"]
    lenient, strict = (
        gate(verdict({"one": found}, minimum_average=level, resamples=100), "average") for level in sorted([one, other])
    )
    assert order.index(lenient.outcome) >= order.index(strict.outcome)
    assert lenient.low <= lenient.high


def test_a_difference_on_the_threshold_meets_it():
    same = [0.0] * 36 + [1.0] * 64
    found = verdict({"one": RowScores(score=0.59, rows=same)}, {"one": RowScores(score=0.64, rows=same)},
                    maximum_forgetting=0.05, minimum_average=0)  # fmt: skip
    assert 0.64 - 0.59 > 0.05
    assert gate(found, "forgetting").outcome == "pass"


def test_models_scored_on_different_rows_are_not_compared():
    with pytest.raises(Failed, match="one was scored on 100 rows here and on 200 there"):
        verdict({"one": answers(0.5, 200)}, {"one": answers(0.5, 100)})
    with pytest.raises(Failed, match="one has 1 test row"):
        verdict({"one": accuracy([1.0])})


def test_what_comes_from_outside_is_escaped_on_prefects_pages():
    assert "it is &lt;script&gt;" in markdown("tiny", verdict({"one": answers(0.9)}, refusals=["it is <script>"]))
