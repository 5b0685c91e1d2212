"""Typical samples: the prompts nearest to the K-means centroids of their representations (RECALL, section 3.1).

Shape suffixes: P samples, E hidden size, M clusters.
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from recall.errors import BadInput


def typical_samples(representations_PE: np.ndarray, clusters: int, seed: int) -> list[int]:
    """Indices of the sample nearest to each centroid, no two the same (DESIGN 2, step 2).

    Centroids choose in the order K-means lists them; one whose nearest sample is taken gets its nearest free one.

    Args:
        representations_PE: the newest model's last-layer representations of the candidates, `(P, E)`.

    Returns:
        `clusters` indices into the candidates, ascending.

    Raises:
        BadInput: there are fewer samples than clusters.
    """
    samples = len(representations_PE)
    if samples < clusters:
        raise BadInput(f"{samples} samples cannot form {clusters} clusters; lower sampling.clusters or give more rows")
    features_PE = representations_PE.astype(np.float64)
    # One thread: sums in another order could choose other samples on another machine.
    with threadpool_limits(1):
        centroids_ME = KMeans(clusters, random_state=seed, n_init=4).fit(features_PE).cluster_centers_
    chosen: list[int] = []
    for centroid_E in centroids_ME:
        distances_P = np.square(features_PE - centroid_E).sum(axis=1)
        distances_P[chosen] = np.inf
        chosen.append(int(distances_P.argmin()))
    return sorted(chosen)
