"""Similarity to the newest model, layer by layer (docs/method.md, step 4). Suffixes as in recall.similarity."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recall.similarity import median_sigma, similarities

representations = arrays(np.float32, (3, 4, 5, 6), elements=st.floats(-50, 50, width=32))


def reference(hidden_KLPE: torch.Tensor) -> torch.Tensor:
    """docs/method.md, step 4, in float64 and with loops."""
    models, layers, samples, _ = hidden_KLPE.shape
    hidden_KLPE = hidden_KLPE.double()
    found_LK = torch.zeros(layers, models, dtype=torch.float64)
    for layer in range(layers):
        newest_PE = hidden_KLPE[-1, layer]
        pairs = [((newest_PE[p] - newest_PE[q]) ** 2).sum() for p in range(samples) for q in range(p)]
        variance = torch.quantile(torch.stack(pairs), 0.5)
        for model in range(models):
            distances_P = ((hidden_KLPE[model, layer] - newest_PE) ** 2).sum(dim=1)
            found_LK[layer, model] = torch.exp(-distances_P / (2 * variance)).mean()
    return found_LK


def test_it_is_the_formula_of_the_paper():
    hidden_KLPE = torch.randn(3, 5, 8, 16, generator=torch.Generator().manual_seed(0))
    found_LK, _ = similarities(hidden_KLPE.numpy())
    np.testing.assert_allclose(found_LK, reference(hidden_KLPE).numpy(), rtol=1e-12)


def test_a_small_case_by_hand():
    # Newest at 0 and 2: one pair, distance 4, so sigma = 2. The older model is off by 2 and by 0.
    newest_PE, older_PE = np.array([[0.0], [2.0]]), np.array([[2.0], [2.0]])
    found_LK, sigma_L = similarities(np.stack([older_PE, newest_PE])[:, None])
    assert sigma_L == [2.0]
    np.testing.assert_allclose(found_LK, [[(np.exp(-4 / 8) + 1) / 2, 1.0]])


def test_the_median_of_an_even_count_is_the_mean_of_the_two_middle_values():
    # Points 0, 1, 3, 7: squared distances 1, 4, 9, 16, 36, 49.
    assert median_sigma(np.array([[0.0], [1.0], [3.0], [7.0]])) == pytest.approx(np.sqrt((9 + 16) / 2))


@given(representations)
def test_similarities_lie_in_0_to_1_and_the_newest_is_like_itself(hidden_KLPE):
    found_LK, _ = similarities(hidden_KLPE)
    assert ((found_LK >= 0) & (found_LK <= 1)).all()
    assert (found_LK[:, -1] == 1).all()


@given(representations)
def test_the_order_of_older_models_does_not_matter(hidden_KLPE):
    found_LK, _ = similarities(hidden_KLPE)
    permuted_LK, _ = similarities(hidden_KLPE[[1, 0, 2]])
    np.testing.assert_array_equal(permuted_LK, found_LK[:, [1, 0, 2]])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_median_heuristic_does_not_depend_on_the_scale_of_a_layer(scale):
    hidden_KLPE = np.random.default_rng(0).normal(size=(2, 1, 8, 16))
    np.testing.assert_allclose(similarities(hidden_KLPE * scale)[0], similarities(hidden_KLPE)[0])


def test_a_fixed_sigma_is_a_trap():
    """Layers differ in scale by orders of magnitude, so one sigma makes similarities 0 or 1; the median does not."""
    rng = np.random.default_rng(0)
    newest_LPE = rng.normal(size=(2, 8, 16)) * np.array([0.01, 1000.0])[:, None, None]
    older_LPE = newest_LPE * 1.3
    fixed_LK, _ = similarities(np.stack([older_LPE, newest_LPE]), sigma=1.0)
    median_LK, _ = similarities(np.stack([older_LPE, newest_LPE]))
    assert fixed_LK[0, 0] > 0.999
    assert fixed_LK[1, 0] < 1e-6
    assert ((median_LK[:, 0] > 0.8) & (median_LK[:, 0] < 0.99)).all()
    assert median_LK[0, 0] == pytest.approx(median_LK[1, 0], abs=0.05)


def test_samples_that_are_all_the_same_give_1_to_an_equal_model_and_0_to_any_other():
    same_PE = np.ones((3, 2))
    found_LK, _ = similarities(np.stack([same_PE + 1, same_PE, same_PE])[:, None])
    np.testing.assert_array_equal(found_LK, [[0.0, 1.0, 1.0]])


def test_the_cosine_is_the_mean_over_samples_of_the_angle_s_cosine():
    newest_PE, older_PE = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 1.0], [0.0, -3.0]])
    found_LK, sigma_L = similarities(np.stack([older_PE, newest_PE])[:, None], kind="cosine")
    np.testing.assert_allclose(found_LK, [[(np.sqrt(0.5) - 1) / 2, 1.0]])
    assert sigma_L.size == 0


def test_linear_cka_is_that_of_kornblith_et_al():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 9, 5))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    expected = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    found_LK, _ = similarities(np.stack([x + 3, y - 1])[:, None], kind="cka")
    np.testing.assert_allclose(found_LK, [[expected, 1.0]])


def test_linear_cka_sees_neither_turns_nor_scale_and_the_rbf_kernel_does():
    rng = np.random.default_rng(0)
    newest_PE = rng.normal(size=(9, 5))
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    pair = np.stack([3 * newest_PE @ turn, newest_PE])[:, None]
    np.testing.assert_allclose(similarities(pair, kind="cka")[0], [[1.0, 1.0]])
    assert similarities(pair)[0][0, 0] < 0.5


@given(representations, st.sampled_from(["rbf", "cka", "cosine"]))
def test_an_equal_model_is_exactly_as_like_as_the_newest_itself(hidden_KLPE, kind):
    hidden_KLPE[0] = hidden_KLPE[-1]
    found_LK, _ = similarities(hidden_KLPE, kind=kind)
    assert (found_LK[:, [0, -1]] == 1).all()
    assert (found_LK <= 1).all()


def test_samples_that_a_model_cannot_tell_apart_give_no_cka():
    flat_PE, newest_PE = np.ones((4, 3)), np.arange(12.0).reshape(4, 3)
    assert similarities(np.stack([flat_PE, newest_PE])[:, None], kind="cka")[0][0, 0] == 0


def test_by_depth_the_older_models_fall_evenly_from_one_to_zero_whatever_they_are():
    found_LK, sigma_L = similarities(np.random.default_rng(0).normal(size=(3, 5, 4, 2)), kind="depth")
    np.testing.assert_allclose(found_LK[:, :2], [[1.0] * 2, [0.75] * 2, [0.5] * 2, [0.25] * 2, [0.0] * 2])
    assert (found_LK[:, 2] == 1).all()
    assert not len(sigma_L)
