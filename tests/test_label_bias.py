"""What a classifier by likelihood tells apart, and which label it prefers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recall import label_bias as module

LABELS = ["bad", "good"]


def label_bias(sums, targets, labels):
    """Each row is given its likeliest label."""
    return module.label_bias(sums, [labels[place] for place in np.argmax(sums, axis=1)], targets, labels)


def test_a_preferred_label_hides_a_ranking_that_is_right():
    """Every good row has a higher margin than every bad one, and yet all are called bad."""
    found = label_bias([[-1, -5], [-1, -4], [-1, -3], [-1, -2]], ["bad", "bad", "good", "good"], LABELS)
    assert (found.label, found.given, found.true, found.auc) == ("bad", 1.0, 0.5, 1.0)


def test_the_area_is_the_share_of_pairs_ranked_right_and_ties_count_half():
    margins, targets = [0.0, 1.0, 1.0, 2.0, -1.0], ["bad", "good", "bad", "good", "bad"]
    pairs = [(good, bad) for good, t in zip(margins, targets, strict=True) if t == "good"
             for bad, u in zip(margins, targets, strict=True) if u == "bad"]  # fmt: skip
    share = np.mean([1.0 if good > bad else 0.5 if good == bad else 0.0 for good, bad in pairs])
    assert label_bias([[0, margin] for margin in margins], targets, LABELS).auc == pytest.approx(share)


@given(st.integers(0, 2**32 - 1), st.floats(-20, 20))
def test_the_area_does_not_change_where_a_label_of_two_is_likelier_everywhere(seed, shift):
    random = np.random.default_rng(seed)
    sums, targets = random.normal(size=(12, 2)), [*random.choice(LABELS, 10), *LABELS]
    plain, moved = (label_bias(sums + np.array([0, more]), targets, LABELS) for more in (0, shift))
    assert moved.auc == pytest.approx(plain.auc)
    assert abs(shift) < 15 or moved.given == 1.0


def test_of_three_labels_it_is_the_mean_over_those_that_some_rows_have():
    sums = [[0, -1, -9], [0, -2, -9], [-1, 0, -9], [-2, 0, -9]]
    found = label_bias(sums, ["a", "a", "b", "b"], ["a", "b", "c"])
    assert (found.auc, found.given, found.true) == (1.0, 0.5, 0.5)


def test_rows_of_one_target_have_no_area():
    found = label_bias([[0, -1], [0, -2]], ["good", "good"], LABELS)
    assert (found.label, found.true, found.auc) == ("bad", 0.0, None)


@pytest.mark.parametrize("broken", [float("nan"), float("-inf")])
def test_a_model_that_diverged_has_no_area_and_breaks_nothing(broken):
    found = label_bias([[broken, broken], [0, -1]], ["bad", "good"], LABELS)
    assert (found.label, found.given, found.auc) == ("bad", 1.0, None)
