"""Merge weights: a softmax over the models at every layer (RECALL, equation 4; docs/method.md, step 5).

Shape suffixes: L layers, K models (the newest last), P samples, E hidden size.
"""

from __future__ import annotations

import numpy as np

from recall.settings import WeightingSettings
from recall.similarity import similarities


def weigh(representations_KLPE: np.ndarray, settings: WeightingSettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps 4 and 5 of the method: from representations of the same samples to weights.

    Args:
        representations_KLPE: `(K, L, P, E)`, the newest model last; two rows a block with granularity `module`.

    Returns:
        weights_LK, similarities_LK (before any mean over layers) and sigma_L, see `recall.similarity.similarities`.
    """
    similarities_LK, sigma_L = similarities(representations_KLPE, settings.sigma, settings.similarity)
    shared_LK = share_over_layers(similarities_LK, settings)
    return weights(shared_LK, settings.temperature, settings.alignment_threshold), similarities_LK, sigma_L


def share_over_layers(similarities_LK: np.ndarray, settings: WeightingSettings) -> np.ndarray:
    """The mean similarity over the model, or over each `group_size` blocks (the embeddings go with the first)."""
    blocks = len(similarities_LK) - 1
    if settings.granularity not in ("model", "group"):
        return similarities_LK
    size = settings.group_size if settings.granularity == "group" else max(blocks, 1)
    group_L = np.array([0, *(block // size for block in range(blocks))])
    return np.stack([similarities_LK[group_L == group].mean(axis=0) for group in group_L])


def weights(similarities_LK: np.ndarray, temperature: float = 1.0, alignment_threshold: float = 0.0) -> np.ndarray:
    """Softmax over models of similarity / temperature; a model under the threshold (0: none) gets nothing there.

    Args:
        similarities_LK: `(L, K)`, the newest model last; its own similarity is 1, and it always stays.

    Returns:
        float64 `(L, K)`; every row sums to 1. Equal similarities give exactly equal weights.
    """
    # A cosine may be negative: without a threshold such a model stays too.
    stays_LK = (similarities_LK >= alignment_threshold) | (alignment_threshold == 0)
    stays_LK[:, -1] = True
    logits_LK = np.where(stays_LK, similarities_LK / temperature, -np.inf)
    exponentials_LK = np.exp(logits_LK - logits_LK.max(axis=1, keepdims=True))
    return np.asarray(exponentials_LK / exponentials_LK.sum(axis=1, keepdims=True))


def uniform(layers: int, models: int) -> np.ndarray:
    """A plain average: `(L, K)` of 1/K."""
    return np.full((layers, models), 1 / models)


def newest_only(layers: int, models: int) -> np.ndarray:
    """Plain sequential fine-tuning, as a merge: `(L, K)` with 1 for the newest model."""
    return np.tile(np.eye(models)[-1], (layers, 1))


def task_arithmetic(layers: int, models: int, scale: float) -> np.ndarray:
    """theta_0 + scale x sum_k (theta_k - theta_0) as a weighted sum (Ilharco et al. 2023, section 2)."""
    row_K = np.full(models, scale)
    row_K[0] = 1 - scale * (models - 1)
    return np.tile(row_K, (layers, 1))


def by_loss(losses_K: np.ndarray, temperature: float, layers: int) -> np.ndarray:
    """LM-Cocktail (Xiao et al. 2023, equation 2): softmax over models of -loss / temperature, alike at every layer."""
    logits_K = -(losses_K - losses_K.min()) / temperature
    exponentials_K = np.exp(logits_K)
    return np.tile(exponentials_K / exponentials_K.sum(), (layers, 1))
