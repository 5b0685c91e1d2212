"""Typical samples: the prompts nearest to the K-means centroids of their representations (RECALL, section 3.1).

Shape suffixes: P samples, E hidden size, M clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from recall.errors import BadInput


class Typical(NamedTuple):
    """Which candidates stand for all of them, ascending, and how many each cluster has (in K-means' order)."""

    indices: list[int]
    cluster_sizes: list[int]


def typical_samples(representations_PE: np.ndarray, clusters: int, seed: int) -> Typical:
    """The sample nearest to each centroid, no two the same (docs/method.md, step 2).

    Centroids choose in the order K-means lists them; one whose nearest sample is taken gets its nearest free one.

    Args:
        representations_PE: the newest model's last-layer representations of the candidates, `(P, E)`.

    Raises:
        BadInput: there are fewer samples than clusters.
    """
    samples = len(representations_PE)
    if samples < clusters:
        raise BadInput(f"{samples} samples cannot form {clusters} clusters; lower sampling.clusters or give more rows")
    features_PE = representations_PE.astype(np.float64)
    # One thread: sums in another order could choose other samples on another machine.
    with threadpool_limits(1):
        found = KMeans(clusters, random_state=seed, n_init=4).fit(features_PE)
    chosen: list[int] = []
    for centroid_E in found.cluster_centers_:
        distances_P = np.square(features_PE - centroid_E).sum(axis=1)
        distances_P[chosen] = np.inf
        chosen.append(int(distances_P.argmin()))
    return Typical(sorted(chosen), np.bincount(found.labels_, minlength=clusters).tolist())
