"""Merge weights: a softmax over models at every layer (DESIGN 2, step 5)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recall.weighting import newest_only, uniform, weights


@st.composite
def similarities(draw):
    layers, models = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    found_LK = draw(arrays(np.float64, (layers, models), elements=st.floats(0, 1)))
    found_LK[:, -1] = 1.0
    return found_LK


def test_it_is_a_softmax():
    expected = np.exp([0.2, 0.7, 1.0]) / np.exp([0.2, 0.7, 1.0]).sum()
    np.testing.assert_allclose(weights(np.array([[0.2, 0.7, 1.0]])), [expected])


def test_a_lower_temperature_sharpens():
    sharp = weights(np.array([[0.5, 1.0]]), temperature=0.1)
    np.testing.assert_allclose(sharp[0, 1], 1 / (1 + math.exp(-5)))


@given(similarities(), st.floats(0.05, 10))
def test_weights_sum_to_1_and_the_newest_has_the_largest(similarities_LK, temperature):
    found_LK = weights(similarities_LK, temperature)
    np.testing.assert_allclose(found_LK.sum(axis=1), 1)
    assert (found_LK[:, -1] == found_LK.max(axis=1)).all()


@given(similarities())
def test_at_temperature_1_the_newest_lies_between_1_in_k_and_e_in_e_plus_k_less_1(similarities_LK):
    models = similarities_LK.shape[1]
    newest_L = weights(similarities_LK)[:, -1]
    assert (newest_L >= 1 / models - 1e-12).all()
    assert (newest_L <= math.e / (math.e + models - 1) + 1e-12).all()


@pytest.mark.parametrize("models", range(1, 8))
def test_models_that_agree_get_exactly_equal_weights(models):
    assert (weights(np.ones((3, models))) == 1 / models).all()


@given(similarities(), st.randoms(use_true_random=False))
def test_permuting_older_models_permutes_their_weights(similarities_LK, random):
    order = list(range(similarities_LK.shape[1] - 1))
    random.shuffle(order)
    order.append(similarities_LK.shape[1] - 1)
    np.testing.assert_allclose(weights(similarities_LK[:, order]), weights(similarities_LK)[:, order], rtol=1e-12)


def test_a_model_under_the_alignment_threshold_gets_nothing_at_that_layer_only():
    found_LK = weights(np.array([[0.4, 0.9, 1.0], [0.6, 0.9, 1.0]]), alignment_threshold=0.5)
    assert found_LK[0, 0] == 0
    assert found_LK[1, 0] > 0
    np.testing.assert_allclose(found_LK.sum(axis=1), 1)


def test_the_newest_model_stays_whatever_the_threshold():
    np.testing.assert_array_equal(weights(np.array([[0.3, 0.2]]), alignment_threshold=0.9), [[0.0, 1.0]])


def test_the_given_similarities_are_left_as_they_are():
    similarities_LK = np.array([[0.3, 1.0]])
    weights(similarities_LK, alignment_threshold=0.5)
    np.testing.assert_array_equal(similarities_LK, [[0.3, 1.0]])


def test_the_baselines_are_weights_too():
    np.testing.assert_array_equal(uniform(2, 4), np.full((2, 4), 0.25))
    np.testing.assert_array_equal(newest_only(2, 3), [[0, 0, 1], [0, 0, 1]])
