"""How alike two models represent the same samples, layer by layer (RECALL, equation 3; docs/method.md, step 4).

RECALL takes the RBF kernel; linear CKA and the cosine are alternatives that need no sigma. `depth` is a control: what
the paper says of similarity, that shallow layers are alike and deep ones are not, without looking at any.

Shape suffixes: K models (the newest last), L layers, P samples, E hidden size.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.spatial.distance import pdist

from recall.errors import BadInput

Similarity = Literal["rbf", "cka", "cosine", "depth"]


def similarities(
    representations_KLPE: np.ndarray, sigma: Literal["median"] | float = "median", kind: Similarity = "rbf"
) -> tuple[np.ndarray, np.ndarray]:
    """Similarity of every model to the newest at every layer.

    rbf: S_l^k = mean over p of exp(-||r_l^k(p) - r_l^N(p)||^2 / (2 sigma_l^2)).
    cosine: the mean over p of the cosine of r_l^k(p) and r_l^N(p).
    cka: linear CKA (Kornblith et al. 2019, equations 3 and 4), which turning and scaling do not change.
    depth: 1 - l / (L - 1) for every older model, whatever the representations are.

    Args:
        representations_KLPE: `(K, L, P, E)`, the newest model last.
        sigma: "median" for the median heuristic of the newest model at each layer, or one fixed value for all; read by
            the RBF kernel alone.

    Returns:
        similarities_LK `(L, K)`, float64, in [0, 1] (the cosine in [-1, 1]), exactly 1 for an equal model; and sigma_L
        `(L,)`, empty where there is none.
    """
    newest_LPE = representations_KLPE[-1].astype(np.float64)
    layers = len(newest_LPE)
    if kind == "depth":
        older_L = np.linspace(1.0, 0.0, layers)
        return np.column_stack([*[older_L] * (len(representations_KLPE) - 1), np.ones(layers)]), np.empty(0)
    sigma_L = np.empty(0)
    if kind == "rbf":
        median = sigma == "median"
        sigma_L = np.array([median_sigma(newest_PE) for newest_PE in newest_LPE]) if median else np.full(layers, sigma)
    columns = []
    for representations_LPE in representations_KLPE.astype(np.float64):
        if kind == "rbf":
            distances_LP = np.square(representations_LPE - newest_LPE).sum(axis=-1)
            column_L = _kernel(distances_LP, sigma_L[:, None]).mean(axis=-1)
        else:
            measure = {"cosine": _cosine, "cka": _linear_cka}[kind]
            pairs = zip(representations_LPE, newest_LPE, strict=True)
            column_L = np.array([1.0 if np.array_equal(*pair) else measure(*pair) for pair in pairs])
        columns.append(column_L)
    return np.stack(columns, axis=1), sigma_L


def median_sigma(representations_PE: np.ndarray) -> float:
    """sqrt of the median over pairs p != q of ||r(p) - r(q)||^2; the mean of the two middle values of an even count.

    Raises:
        BadInput: one sample alone has no pairs.
    """
    if len(representations_PE) < 2:
        raise BadInput("one sample has no pairs to take a median distance of; give at least two, or a fixed sigma")
    return float(np.sqrt(np.median(pdist(representations_PE, "sqeuclidean"))))


def _kernel(distances: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """exp(-d / 2 sigma^2), and its limit where sigma is 0: 1 for the same point, 0 for any other."""
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.exp(-distances / (2 * np.square(sigma)))
    return np.where(distances == 0, 1.0, values)


def _cosine(first_PE: np.ndarray, second_PE: np.ndarray) -> float:
    """A vector of zeros is like nothing but itself."""
    norms_P = np.linalg.norm(first_PE, axis=1) * np.linalg.norm(second_PE, axis=1)
    products_P = (first_PE * second_PE).sum(axis=1)
    cosines_P = np.divide(products_P, norms_P, out=np.zeros_like(products_P), where=norms_P > 0)
    return float(cosines_P.clip(-1, 1).mean())


def _linear_cka(first_PE: np.ndarray, second_PE: np.ndarray) -> float:
    """By the P x P Gram matrices, as P is smaller than E; 0 where a model tells no two samples apart."""
    grams = [centred_PE @ centred_PE.T for centred_PE in (r - r.mean(axis=0) for r in (first_PE, second_PE))]
    norms = np.linalg.norm(grams[0]) * np.linalg.norm(grams[1])
    return float(min((grams[0] * grams[1]).sum() / norms, 1.0)) if norms else 0.0
