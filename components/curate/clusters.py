"""Clusters of images, for semantic duplicates, similarity to a reference set and a limit per cluster.

One spherical k-means over the image embeddings serves all three rules. It runs in the order of the uids on one thread,
so the clusters depend neither on the order of the rows nor on the number of CPU cores.
"""

import math
from collections.abc import Iterator

import numpy as np

ITERATIONS = 20
_BLOCK = 1024  # members of a cluster that are compared at a time


def centroids(vectors: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    """Return unit centroids (K, D) of unit vectors (N, D), by spherical k-means.

    Args:
        count: K; None uses one cluster per 50 vectors.
    """
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


def nearest_centroids(vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the nearest centroid of each vector, (N,), and the cosine to it, (N,)."""
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(centres.shape[1])
    index.add(np.ascontiguousarray(centres, dtype=np.float32))
    cosines, indices = index.search(np.ascontiguousarray(vectors, dtype=np.float32), 1)
    return indices[:, 0], cosines[:, 0]


def semantic_duplicates(
    vectors: np.ndarray, assigned: np.ndarray, to_centroid: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find for each vector the most similar one before it in its cluster, ordered from far to near the centroid.

    Args:
        vectors: (N, D), in the order that breaks ties. assigned: (N,) cluster of each. to_centroid: (N,) cosines.

    Returns:
        partner: (N,) indices, -1 for the first of a cluster. cosine: (N,), -1 for the first.

    Source: Abbas et al. 2023, "SemDeDup", algorithm 1.
    """
    partner, cosine = np.full(len(vectors), -1), np.full(len(vectors), -1.0)
    for members in _members_by_cluster(assigned):
        ranked = members[np.argsort(np.round(to_centroid[members], 5), kind="stable")]
        for start in range(0, len(ranked), _BLOCK):
            block = ranked[start : start + _BLOCK]
            earlier = ranked[: start + len(block)]
            similar = vectors[block] @ vectors[earlier].T
            similar[np.arange(len(earlier)) >= start + np.arange(len(block))[:, None]] = -2  # itself and those after it
            best = similar.argmax(axis=1)
            highest = similar[np.arange(len(block)), best]
            has_earlier = highest > -2
            partner[block[has_earlier]] = earlier[best[has_earlier]]
            cosine[block[has_earlier]] = highest[has_earlier]
    return partner, cosine


def rank_in_cluster(assigned: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return the rank of each within its cluster, (N,), from 1, in the order of the draws."""
    rank = np.empty(len(assigned), dtype=np.int64)
    for members in _members_by_cluster(assigned):
        rank[members[np.argsort(draws[members], kind="stable")]] = np.arange(1, len(members) + 1)
    return rank


def _members_by_cluster(assigned: np.ndarray) -> Iterator[np.ndarray]:
    order = np.argsort(assigned, kind="stable")
    return iter(np.split(order, np.flatnonzero(np.diff(assigned[order])) + 1)) if len(order) else iter(())
