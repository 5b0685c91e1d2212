"""Typical samples: the prompts nearest to the K-means centroids of their representations (RECALL, section 3.1).

Random and farthest-point samples are what that is compared with.

Shape suffixes: P samples, E hidden size, M clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from recall.errors import BadInput


class Typical(NamedTuple):
    """Which candidates stand for all of them, ascending, and how many each cluster has (in no set order).

    Random samples stand for no cluster: no sizes.
    """

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
    _check_enough(len(representations_PE), clusters)
    features_PE = representations_PE.astype(np.float64)
    # One thread: sums in another order could choose other samples on another machine.
    with threadpool_limits(1):
        found = KMeans(clusters, random_state=seed, n_init=4).fit(features_PE)
    chosen: list[int] = []
    for centroid_E in found.cluster_centers_:
        distances_P = _squared_distances(features_PE, centroid_E)
        distances_P[chosen] = np.inf
        chosen.append(int(distances_P.argmin()))
    return Typical(sorted(chosen), np.bincount(found.labels_, minlength=clusters).tolist())


def farthest_samples(representations_PE: np.ndarray, count: int) -> Typical:
    """The sample nearest to the mean, then again and again the one farthest from all chosen (Gonzalez 1985).

    A sample belongs to the cluster of the chosen one that is nearest to it.

    Raises:
        BadInput: there are fewer samples than `count`.
    """
    _check_enough(len(representations_PE), count)
    features_PE = representations_PE.astype(np.float64)
    chosen = [int(_squared_distances(features_PE, features_PE.mean(axis=0)).argmin())]
    distances_PM = _squared_distances(features_PE, features_PE[chosen[0]])[:, None]
    while len(chosen) < count:
        nearest_P = distances_PM.min(axis=1)
        nearest_P[chosen] = -1
        chosen.append(int(nearest_P.argmax()))
        added_P = _squared_distances(features_PE, features_PE[chosen[-1]])
        distances_PM = np.column_stack([distances_PM, added_P])
    return Typical(sorted(chosen), np.bincount(distances_PM.argmin(axis=1), minlength=count).tolist())


def random_samples(candidates: int, count: int, seed: int) -> Typical:
    """`count` of the candidates, each as likely as any other.

    Raises:
        BadInput: there are fewer candidates than `count`.
    """
    _check_enough(candidates, count)
    return Typical(sorted(np.random.default_rng(seed).choice(candidates, count, replace=False).tolist()), [])


def _check_enough(samples: int, count: int) -> None:
    if samples < count:
        raise BadInput(f"{samples} samples cannot form {count} clusters; lower sampling.clusters or give more rows")


def _squared_distances(features_PE: np.ndarray, point_E: np.ndarray) -> np.ndarray:
    return np.asarray(np.square(features_PE - point_E).sum(axis=1))
