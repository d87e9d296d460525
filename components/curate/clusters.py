"""Clusters of pictures: pictures that say the same again, pictures like a reference set's, an even share of each.

One spherical k-means over the encoder's vectors serves three rules. Everything is done in the order of uids
with one thread, so that it depends neither on the rows' order nor on the machine's cores.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

ITERATIONS = 20
_BLOCK = 1024  # members of a cluster compared at a time


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What is asked of the clusters; with everything null they are not made.

    `count` of the clusters, null for about one per 50 pictures. `epsilon`: of two pictures with a cosine above
    1 − epsilon one is enough (SemDeDup). `reference`: a dataset's folder; only clusters with a picture of it
    stay. `per_cluster`: no more pairs than this of each.
    """

    count: int | None = None
    epsilon: float | None = None
    reference: str | None = None
    per_cluster: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"count must be at least 1 cluster or null, got {self.count}")
        if self.epsilon is not None and not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon is 1 minus a cosine, from 0 to below 1 or null, got {self.epsilon}")
        if self.per_cluster is not None and self.per_cluster < 1:
            raise ValueError(f"per_cluster must be at least 1 pair or null, got {self.per_cluster}")
        if self.count is not None and not self.wanted:
            raise ValueError("count is set and no rule uses the clusters; set epsilon, reference or per_cluster")

    @property
    def wanted(self) -> bool:
        """A rule needs the clusters."""
        return (self.epsilon, self.reference, self.per_cluster) != (None, None, None)


def centroids(vectors: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    """(K, D) unit centroids of (N, D) unit vectors, by spherical k-means."""
    import faiss

    count = min(len(vectors), count or math.ceil(len(vectors) / 50))
    if count == len(vectors):
        return vectors
    faiss.omp_set_num_threads(1)
    means = faiss.Kmeans(
        vectors.shape[1], count, niter=ITERATIONS, seed=seed, spherical=True,
        min_points_per_centroid=1, max_points_per_centroid=len(vectors),
    )  # fmt: skip
    means.train(np.ascontiguousarray(vectors, dtype=np.float32))
    return np.asarray(means.centroids).reshape(count, -1)


def nearest(vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the centroid nearest to each vector, and (N,) the cosine to it."""
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(centres.shape[1])
    index.add(np.ascontiguousarray(centres, dtype=np.float32))
    cosines, places = index.search(np.ascontiguousarray(vectors, dtype=np.float32), 1)
    return places[:, 0], cosines[:, 0]


def repeats(vectors: np.ndarray, assigned: np.ndarray, to_centroid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each vector the most similar one before it in its cluster, far from the centroid first.

    Args:
        vectors: (N, D), in the order that breaks ties. assigned: (N,) clusters. to_centroid: (N,) cosines.

    Returns:
        partner: (N,) places, or -1 for the first of a cluster. cosine: (N,), -1 for the first.

    Source: Abbas et al. 2023, "SemDeDup", algorithm 1.
    """
    partner, cosine = np.full(len(vectors), -1), np.full(len(vectors), -1.0)
    for members in _groups(assigned):
        ranked = members[np.argsort(np.round(to_centroid[members], 5), kind="stable")]
        for start in range(0, len(ranked), _BLOCK):
            block = ranked[start : start + _BLOCK]
            earlier = ranked[: start + len(block)]
            similar = vectors[block] @ vectors[earlier].T
            similar[
                np.arange(len(earlier)) >= start + np.arange(len(block))[:, None]
            ] = -2  # itself, and what comes after
            best = similar.argmax(axis=1)
            found = similar[np.arange(len(block)), best]
            some = found > -2
            partner[block[some]], cosine[block[some]] = earlier[best[some]], found[some]
    return partner, cosine


def ranks(assigned: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """(N,) the place of each within its cluster, from 1, in the order of its draw."""
    place = np.empty(len(assigned), dtype=np.int64)
    for members in _groups(assigned):
        place[members[np.argsort(draws[members], kind="stable")]] = np.arange(1, len(members) + 1)
    return place


def _groups(assigned: np.ndarray) -> Iterator[np.ndarray]:
    order = np.argsort(assigned, kind="stable")
    return iter(np.split(order, np.flatnonzero(np.diff(assigned[order])) + 1)) if len(order) else iter(())
