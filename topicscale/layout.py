"""Place documents on a two-dimensional map.

Neighbours in the embedding space attract each other, random documents repel: the objective of UMAP and LargeVis (McInnes,
Healy & Melville 2018; Tang et al. 2016) with the kernel 1 / (1 + d^2), descended for all points at once. That needs numpy
alone, gives the same map for the same input and seed, and starts in no time, where UMAP compiles for twenty seconds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from topicscale.cluster import Float32, Float64, Int64

NEIGHBOURS = 15
EPOCHS = 200
NEGATIVES = 5
"""Random documents that repel each document, each epoch."""
STEP = 0.5
DECIMALS = 9
"""What comes of a matrix product is rounded to so many: its last bits depend on the number of threads, and the descent makes another map
of them. A limit is no help: machines differ, and in Ray's workers numpy's OpenBLAS was seen to keep its own number under one."""
_BLOCK = 1024


def layout(vectors: Float32, topics: npt.ArrayLike, *, seed: int = 42, threads: int | None = None) -> Float32:
    """Return coordinates, float32 (n, 2), of a sample of documents; about ten thousand take a few seconds.

    Parameters
    ----------
    vectors : float32 (n, d)
        Unit rows.
    topics : int (n,)
        Each document's topic, -1 for outliers: documents start at their topic's place, so that topics stay together
        where the neighbours leave a choice.
    seed : int
    threads : int, optional
        Threads that linear algebra may use.

    Notes
    -----
    The centre of the map is the origin, and half of the documents are within a distance of 1 of it.
    """
    n = len(vectors)
    if n <= 2:
        return np.array([[0.0, 0.0], [1.0, 0.0]], np.float32)[:n]
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads):
        random = np.random.default_rng(seed)
        head, tail, weight = _graph(np.ascontiguousarray(vectors, dtype=np.float32), min(NEIGHBOURS, n - 1))
        place = _start(vectors, np.asarray(topics, dtype=np.int64), random)
        place = _descend(place, head, tail, weight, random)
    place -= np.median(place, axis=0)
    place /= max(float(np.median(np.hypot(place[:, 0], place[:, 1]))), 1e-9)
    return place.astype(np.float32)


def _graph(vectors: Float32, k: int) -> tuple[Int64, Int64, Float64]:
    """Return the edges (head, tail, weight) of the symmetric neighbour graph, each in both directions."""
    from scipy.sparse import csr_matrix

    n, exactly = len(vectors), vectors.astype(np.float64)
    index, distance = np.empty((n, k), np.int64), np.empty((n, k))
    for start in range(0, n, _BLOCK):
        similarity = np.round(exactly[start : start + _BLOCK] @ exactly.T, DECIMALS)
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -2.0
        best = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(similarity, best, axis=1)
        order = np.lexsort((best, -values), axis=1)
        index[start : start + len(rows)] = np.take_along_axis(best, order, axis=1)
        distance[start : start + len(rows)] = 1.0 - np.take_along_axis(values, order, axis=1)
    # a Gaussian of each document's own neighbourhood: the nearest weighs one
    gap = distance - distance[:, :1]
    weights = np.exp(-gap / np.maximum(gap.mean(axis=1, keepdims=True), 1e-6))
    graph = csr_matrix((weights.ravel(), (np.repeat(np.arange(n), k), index.ravel())), shape=(n, n))
    both = graph + graph.T - graph.multiply(graph.T)  # fuzzy union
    coo = both.tocsr().tocoo()
    return coo.row.astype(np.int64), coo.col.astype(np.int64), coo.data.astype(np.float64)


def _start(vectors: Float32, topics: Int64, random: np.random.Generator) -> Float64:
    """Return where documents begin: principal components, documents drawn towards their topic's mean."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    k = int(topics.max(initial=-1)) + 1
    inside = topics >= 0
    means = np.zeros((max(k, 1), vectors.shape[1]))
    np.add.at(means, topics[inside], centred[inside])
    drawn = centred.copy()
    drawn[inside] = (
        0.3 * centred[inside] + 0.7 * (means / np.maximum(np.bincount(topics[inside], minlength=max(k, 1)), 1)[:, None])[topics[inside]]
    )
    _, axes = np.linalg.eigh(drawn.T @ drawn)
    top = axes[:, ::-1][:, :2]
    if top.shape[1] < 2:
        top = np.hstack([top, np.zeros((len(top), 1))])
    top *= np.where(top[np.abs(top).argmax(axis=0), np.arange(2)] < 0, -1.0, 1.0)  # an eigenvector's sign is arbitrary
    place: Float64 = np.round(drawn @ top, DECIMALS)
    place *= 10.0 / max(float(np.abs(place).max()), 1e-9)
    return place + random.normal(0.0, 0.05, place.shape)


def _descend(place: Float64, head: Int64, tail: Int64, weight: Float64, random: np.random.Generator) -> Float64:
    n = len(place)
    degree = np.bincount(head, weights=weight, minlength=n)
    for epoch in range(EPOCHS):
        step = STEP * (1.0 - epoch / EPOCHS)
        gap = place[tail] - place[head]
        pull = weight / (1.0 + np.einsum("ij,ij->i", gap, gap))
        force = np.stack([np.bincount(head, weights=pull * gap[:, axis], minlength=n) for axis in (0, 1)], axis=1)
        other = random.integers(0, n, (NEGATIVES, n))
        for row in other:
            gap = place - place[row]
            square = np.einsum("ij,ij->i", gap, gap)
            push = degree / ((0.01 + square) * (1.0 + square))
            force += np.clip(push[:, None] * gap, -4.0, 4.0)
        length = np.hypot(force[:, 0], force[:, 1])[:, None]
        place = place + step * force * np.minimum(1.0, 4.0 / np.maximum(length, 1e-12))
    return place
