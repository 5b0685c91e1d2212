"""Merge weights: a softmax over the models at every layer (RECALL, equation 4; DESIGN 2, step 5).

Shape suffixes: L layers, K models (the newest last).
"""

from __future__ import annotations

import numpy as np


def weights(similarities_LK: np.ndarray, temperature: float = 1.0, alignment_threshold: float = 0.0) -> np.ndarray:
    """Softmax over models of similarity / temperature; a model under the threshold gets nothing at that layer.

    Args:
        similarities_LK: `(L, K)`, the newest model last; its own similarity is 1, and it always stays.

    Returns:
        float64 `(L, K)`; every row sums to 1. Equal similarities give exactly equal weights.
    """
    stays_LK = similarities_LK >= alignment_threshold
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
