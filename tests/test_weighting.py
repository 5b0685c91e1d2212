"""Merge weights: a softmax over models at every layer (docs/method.md, step 5)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recall.settings import WeightingSettings
from recall.weighting import by_loss, newest_only, share_over_layers, task_arithmetic, uniform, weigh, weights


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


def test_without_a_threshold_a_model_of_negative_cosine_stays():
    assert weights(np.array([[-0.5, 1.0]]))[0, 0] > 0
    assert weights(np.array([[-0.5, 1.0]]), alignment_threshold=0.1)[0, 0] == 0


def test_the_newest_model_stays_whatever_the_threshold():
    np.testing.assert_array_equal(weights(np.array([[0.3, 0.2]]), alignment_threshold=0.9), [[0.0, 1.0]])


def test_the_given_similarities_are_left_as_they_are():
    similarities_LK = np.array([[0.3, 1.0]])
    weights(similarities_LK, alignment_threshold=0.5)
    np.testing.assert_array_equal(similarities_LK, [[0.3, 1.0]])


def test_the_baselines_are_weights_too():
    np.testing.assert_array_equal(uniform(2, 4), np.full((2, 4), 0.25))
    np.testing.assert_array_equal(newest_only(2, 3), [[0, 0, 1], [0, 0, 1]])


def layerwise(similarities_LK, **settings):
    return share_over_layers(np.array(similarities_LK), WeightingSettings(**settings))[:, 0].tolist()


SIMILARITIES = [[1.0, 1], [0.8, 1], [0.6, 1], [0.4, 1], [0.2, 1], [0.1, 1]]  # the embeddings and five blocks


def test_layers_and_modules_keep_similarities_of_their_own():
    for granularity in ("layer", "module"):
        assert layerwise(SIMILARITIES, granularity=granularity) == [1.0, 0.8, 0.6, 0.4, 0.2, 0.1]


def test_a_group_shares_the_mean_and_the_embeddings_go_with_the_first():
    first, second, third = (1.0 + 0.8 + 0.6) / 3, (0.4 + 0.2) / 2, 0.1
    assert layerwise(SIMILARITIES, granularity="group", group_size=2) == pytest.approx(
        [first, first, first, second, second, third]
    )


def test_the_whole_model_shares_the_mean_over_all_layers():
    assert layerwise(SIMILARITIES, granularity="model") == pytest.approx([3.1 / 6] * 6)


@pytest.mark.parametrize("granularity", ["model", "group", "layer", "module"])
@pytest.mark.parametrize("similarity", ["rbf", "cka", "cosine"])
def test_equal_models_get_exactly_equal_weights_with_every_option(granularity, similarity):
    same_KLPE = np.tile(np.random.default_rng(0).normal(size=(7, 5, 4)), (3, 1, 1, 1))
    settings = WeightingSettings(granularity=granularity, similarity=similarity, group_size=2)
    assert (weigh(same_KLPE, settings)[0] == 1 / 3).all()


def test_the_whole_way_from_representations_to_weights_against_torch_in_float64():
    hidden_KLPE = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found_LK, _, sigma_L = weigh(hidden_KLPE.numpy(), WeightingSettings(temperature=0.5))
    for layer in range(4):
        newest_PE = hidden_KLPE[-1, layer]
        variance = torch.quantile(torch.pdist(newest_PE).square(), 0.5)
        distances_KP = (hidden_KLPE[:, layer] - newest_PE).square().sum(dim=-1)
        expected_K = torch.softmax(torch.exp(-distances_KP / (2 * variance)).mean(dim=1) / 0.5, dim=0)
        np.testing.assert_allclose(found_LK[layer], expected_K.numpy(), rtol=1e-12)
        assert sigma_L[layer] == pytest.approx(variance.sqrt().item())


def test_task_arithmetic_as_weights_adds_every_difference_to_the_first_model():
    weights_K = task_arithmetic(1, 3, 0.4)[0]
    first, others = 2.0, (3.0, 7.0)
    expected = first + 0.4 * (1.0 + 5.0)
    assert weights_K @ [first, *others] == pytest.approx(expected)


def test_lm_cocktail_is_a_softmax_of_losses_alike_at_every_layer():
    found_LK = by_loss(np.array([2.0, 1.0]), temperature=0.5, layers=2)
    np.testing.assert_allclose(found_LK, [[1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))]] * 2)
