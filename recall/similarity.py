"""How alike two models represent the same samples, layer by layer (RECALL, equation 3; DESIGN 2, step 4).

Shape suffixes: K models (the newest last), L layers, P samples, E hidden size.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.spatial.distance import pdist


def similarities(
    representations_KLPE: np.ndarray, sigma: Literal["median"] | float = "median"
) -> tuple[np.ndarray, np.ndarray]:
    """RBF similarity of every model to the newest at every layer.

    S_l^k = mean over p of exp(-||r_l^k(p) - r_l^N(p)||^2 / (2 sigma_l^2)).

    Args:
        representations_KLPE: `(K, L, P, E)`, the newest model last.
        sigma: "median" for the median heuristic of the newest model at each layer, or one fixed value for all.

    Returns:
        similarities_LK `(L, K)` in [0, 1], float64, and sigma_L `(L,)`.
    """
    newest_LPE = representations_KLPE[-1].astype(np.float64)
    layers = newest_LPE.shape[0]
    sigma_L = (
        np.array([median_sigma(newest_PE) for newest_PE in newest_LPE]) if sigma == "median" else np.full(layers, sigma)
    )
    columns = []
    for representations_LPE in representations_KLPE:
        distances_LP = np.square(representations_LPE.astype(np.float64) - newest_LPE).sum(axis=-1)
        columns.append(_kernel(distances_LP, sigma_L[:, None]).mean(axis=-1))
    return np.stack(columns, axis=1), sigma_L


def median_sigma(representations_PE: np.ndarray) -> float:
    """sqrt of the median over pairs p != q of ||r(p) - r(q)||^2; the mean of the two middle values of an even count."""
    return float(np.sqrt(np.median(pdist(representations_PE, "sqeuclidean"))))


def _kernel(distances: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """exp(-d / 2 sigma^2), and its limit where sigma is 0: 1 for the same point, 0 for any other."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.exp(-distances / (2 * np.square(sigma)))
    return np.where(distances == 0, 1.0, values)
