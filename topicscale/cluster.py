"""Reduce and cluster one partition's vectors.

Every algorithm is reached through one small function, ``cluster``; which one, and with which parameters, is
configuration (see ``topicscale/algorithms.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from topicscale.algorithms import check, limited, predict, reduce
from topicscale.config import ClusterConfig

__all__ = ["Clustering", "check", "cluster", "exact", "local_min_cluster_size", "local_statistics", "micro", "unit", "warm"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

FLOOR = 16
"""Fewer distinct vectors than this are not clustered: neighbour graphs of so few points say nothing, and EVoC raises."""
MICRO = 1000
"""Partitions of fewer distinct vectors are cut into micro-clusters when their topics are to be merged with others'."""
GRID = 2.0**-30
"""Vector components are rounded to multiples of this before they are summed (see ``exact``)."""


@dataclass(frozen=True)
class Clustering:
    """The local topics of one partition."""

    labels: Int32
    """(n,): the local topic of each row, numbered from 0 by size (largest first), -1 for noise."""
    probabilities: Float32
    """(n,): the algorithm's membership strength, 0 for noise."""

    @property
    def number(self) -> int:
        """Number of local topics."""
        return int(self.labels.max(initial=-1)) + 1


def local_min_cluster_size(config: ClusterConfig, min_size: int, *, documents: int, partitions: int) -> int:
    """Return the smallest local topic for partitions of an average size, given the smallest merged topic.

    One partition is an ordinary fit, with ``min_size`` itself. Several cluster finely, since a topic of ``min_size``
    documents has ``min_size / partitions`` in each: the merge makes topics whole again, but cannot make what no
    partition saw. Partitions too small for a density are cut into micro-clusters of two (see ``cluster``): what three or
    five documents are joined into cannot be taken apart by the merge, which costs agreement with known labels (see
    ``benchmarks/results/federation.md``). Both grow with the corpus, to bound the number of local topics that are merged.
    """
    if config.min_cluster_size is not None:
        return config.min_cluster_size
    if partitions <= 1:
        return min_size
    if documents / partitions < MICRO:
        return int(np.clip(documents // 30_000, 2, 20))
    return int(np.clip(documents // 50_000, min(5, max(min_size, 2)), 25))


def cluster(
    vectors: Float32,
    config: ClusterConfig,
    *,
    min_cluster_size: int,
    fine: bool = False,
    threads: int | None = None,
) -> Clustering:
    """Return the clustering of unit rows; the same rows, configuration and versions give the same labels.

    Parameters
    ----------
    vectors : float32 (n, d)
        Unit rows, sorted by the caller (by document id), because some algorithms depend on the order of rows.
    config : ClusterConfig
        Reduction, algorithm, their parameters and the seed.
    min_cluster_size : int
        Smallest local topic, in documents; translated into each algorithm's own parameter.
    fine : bool
        The labels are to be merged with other partitions': take the finest clusters the algorithm offers. With fewer
        than ``MICRO`` distinct rows, a topic may have two or three documents here, where no algorithm can tell a cluster
        from chance: then rows are joined into ``n / min_cluster_size`` micro-clusters by Ward's criterion instead, none is
        noise, and the merge decides what belongs together.
    threads : int, optional
        Threads that linear algebra may use. EVoC always gets one: its labels depend on the number, and more gain nothing.

    Notes
    -----
    Identical vectors are clustered once and share a label: left in, they form clusters of their own and split from
    their neighbours. A text that alone occurs ``min_cluster_size`` times is a topic if nothing else takes it.
    """
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2:
        raise ValueError(f"vectors must be of shape (n, d). Got {vectors.shape} instead.")
    n = len(vectors)
    if n == 0:
        return Clustering(np.empty(0, np.int32), np.empty(0, np.float32))
    first, inverse, counts = _distinct(vectors)
    rows = vectors[first]
    labels, strengths = np.full(len(rows), -1, np.int64), np.zeros(len(rows), np.float32)
    if fine and len(rows) < MICRO:
        labels, strengths = micro(rows, counts, size=min_cluster_size), np.ones(len(rows), np.float32)
    elif len(rows) >= FLOOR:
        with limited(1 if config.algorithm == "evoc" else threads):
            labels, strengths = predict(reduce(rows, config), config, min_cluster_size, fine)
    frequent = np.flatnonzero((labels < 0) & (counts >= min_cluster_size))
    if len(frequent):
        labels[frequent] = labels.max(initial=-1) + 1 + np.arange(len(frequent))
        strengths[frequent] = 1.0
    full = _renumber(labels[inverse])
    probabilities = np.where(full >= 0, np.clip(strengths[inverse], 0.0, 1.0), 0.0).astype(np.float32)
    return Clustering(full, probabilities)


def warm(config: ClusterConfig | None = None) -> None:
    """Compile the algorithm's kernels into numba's cache on disk: EVoC takes a minute and a half the first time, then seconds."""
    random = np.random.default_rng(0)
    rows = unit(random.normal(size=(2 * MICRO, 384))).astype(np.float32)
    cluster(rows, config or ClusterConfig(), min_cluster_size=10)


def micro(rows: Float32, counts: Int64, *, size: int) -> Int64:
    """Return micro-clusters int64 (n,) of about ``size`` rows, by Ward's criterion; each row weighs its count."""
    from topicscale.merge import Leaves, tree  # the one hierarchy there is; merge imports this module

    leaves, index = Leaves.of(counts, exact(rows) * counts[:, None])
    return tree(leaves).cut(number=-(-len(leaves) // max(size, 1)))[index]


def exact(vectors: npt.NDArray[Any]) -> Float64:
    """Return the rows rounded to a grid on which float64 sums are exact, whatever their order or grouping.

    Components of unit rows are below 1 and a multiple of 2^-30 (an error under 5e-10), so a sum needs no more than
    53 bits until its magnitude reaches 2^23: eight million documents that all point the same way.
    """
    result: Float64 = np.rint(np.asarray(vectors, dtype=np.float64) / GRID) * GRID
    return result + 0.0  # -0.0 and 0.0 are the same number but not the same bytes


def local_statistics(
    labels: npt.NDArray[np.integer[Any]], vectors: Float32, *, representatives: int = 3
) -> tuple[Int64, Float64, list[Int64]]:
    """Return sizes int64 (k,), vector sums float64 (k, d), and each topic's rows nearest to its centroid, nearest first.

    Equal similarity goes by row. Identical vectors are listed once while others remain.
    """
    from scipy.sparse import csr_matrix

    k = int(labels.max(initial=-1)) + 1
    d = vectors.shape[1]
    inside = np.flatnonzero(labels >= 0)
    sizes = np.bincount(labels[inside], minlength=k).astype(np.int64)
    sums = np.zeros((k, d), np.float64)
    block = 8192
    for start in range(0, len(inside), block):
        rows = inside[start : start + block]
        member = csr_matrix((np.ones(len(rows)), (labels[rows], np.arange(len(rows)))), shape=(k, len(rows)))
        sums += member @ exact(vectors[rows])
    centres = unit(sums)
    nearest: list[Int64] = []
    order = inside[np.argsort(labels[inside], kind="stable")]
    for topic, rows in enumerate(np.split(order, np.cumsum(sizes)[:-1]) if k else []):
        # rounding before sorting: the last bits of a matrix product depend on the machine
        similarity = np.round(vectors[rows].astype(np.float64) @ centres[topic], 9)
        ranked = rows[np.argsort(-similarity, kind="stable")]
        chosen = _distinct_first(ranked, vectors, representatives)
        nearest.append(chosen.astype(np.int64))
    return sizes, sums, nearest


def unit(rows: npt.NDArray[Any]) -> Float64:
    """Return the rows divided by their length, float64; a zero row stays zero."""
    rows = np.asarray(rows, dtype=np.float64)
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    result: Float64 = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return result


def _distinct_first(ranked: Int64, vectors: Float32, number: int) -> Int64:
    seen: set[bytes] = set()
    fresh: list[int] = []
    again: list[int] = []
    for row in ranked:
        key = vectors[row].tobytes()
        (again if key in seen else fresh).append(int(row))
        seen.add(key)
        if len(fresh) >= number or len(fresh) + len(again) >= 50 * max(number, 1):
            break
    return np.array((fresh + again)[:number], dtype=np.int64)


def _distinct(vectors: Float32) -> tuple[Int64, Int64, Int64]:
    """Return, for the distinct rows in order of first appearance: first row, row -> distinct, and counts."""
    keys = np.ascontiguousarray(vectors + np.float32(0)).view(np.dtype((np.void, vectors.dtype.itemsize * vectors.shape[1]))).ravel()
    _, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order].astype(np.int64), rank[inverse].astype(np.int64), counts[order].astype(np.int64)


def _renumber(labels: npt.NDArray[np.integer[Any]]) -> Int32:
    """Number clusters from 0 by size (largest first), then by their first row."""
    inside = labels >= 0
    found, first, inverse, counts = np.unique(labels[inside], return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -counts))
    rank = np.empty(len(found), np.int32)
    rank[order] = np.arange(len(found), dtype=np.int32)
    result = np.full(len(labels), -1, np.int32)
    result[inside] = rank[inverse]
    return result
