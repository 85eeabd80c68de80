"""Refine merged topics against every document: a map over partitions and a sum.

Each round assigns documents to the nearest centroid and moves the centroids to the mean direction of what they got
(spherical k-means, Dhillon & Modha 2001). Then topics below the minimum size dissolve, cut-offs are set so that a given
share of the documents is left as outliers, and the centroids are frozen: ``assign`` with them is the assignment,
now and for every later document.

What is guaranteed: sums and counts are exact (see ``cluster.exact``), so partitions' order and grouping change no bit of
them. Similarities are computed in float64 over blocks of a fixed shape and rounded to float32 before anything is compared,
so a row's assignment depends on the row and the references alone, not on its neighbours in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from topicscale.cluster import Float32, Float64, Int32, Int64, exact, unit

BLOCK = 1024
BINS = 2000
"""Bins of the similarity histogram, over [-1, 1]."""

OUTLIERS = 0.01
"""Share of documents left as outliers where none is asked for."""
CORE_DOCUMENTS = 30
"""A topic's core holds so many documents, where it has them: the words of fewer say more of the documents than of the topic."""
ALL = -2.0
"""A cosine that every document reaches."""

Map = Callable[..., Iterable[Any]]
"""``over(function, *arguments)`` gives ``function(vectors, *arguments)`` for every partition, in any order."""


@dataclass(frozen=True)
class Sums:
    """What one partition adds to each of k topics."""

    counts: Int64
    """(k,)"""
    vector_sums: Float64
    """(k, d)"""

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.counts + other.counts, self.vector_sums + other.vector_sums)


@dataclass(frozen=True)
class Reference:
    """Frozen topics: all that assignment needs."""

    vectors: Float32
    """(k, d) unit rows."""
    cutoffs: Float32
    """(k,): documents less similar than this to their nearest topic are outliers."""
    cores: Float32
    """(k,): documents at least this similar are the topic's core, which its keywords are taken from."""
    kept: Int64
    """(k,): the merged topic each comes from; the others dissolved."""


def refine(
    over: Map,
    centroids: npt.NDArray[Any],
    *,
    min_size: int = 10,
    rounds: int = 3,
    outliers: float | None = None,
    core: float = 1.0,
) -> Reference:
    """Return the topics' frozen reference vectors and cut-offs after ``rounds`` rounds over all partitions.

    Parameters
    ----------
    over : callable
        ``over(function, *arguments)`` applies a function of this module to every partition's vectors.
    centroids : float (k, d)
        The merged topics' centroids.
    min_size : int
        Topics with fewer documents dissolve: their documents go to the next nearest. The largest always stays.
    rounds : int
        Rounds of assignment and update; 0 freezes the centroids as they are.
    outliers : float, optional
        Share of documents to leave as outliers; ``OUTLIERS`` by default. What a density-based algorithm calls noise is
        mostly documents between topics rather than outside all: giving them to their nearest topic agrees better with
        known labels (see ``benchmarks/quality.py``).
    core : float
        Share of each topic's documents that are its core.
    """
    outliers = OUTLIERS if outliers is None else outliers
    vectors = unit(centroids).astype(np.float32)
    kept = np.arange(len(vectors), dtype=np.int64)
    if len(vectors) == 0:
        return Reference(vectors, np.zeros(0, np.float32), np.zeros(0, np.float32), kept)
    for _ in range(rounds):
        vectors = update(total(over(accumulate, vectors)), vectors)
    bins = sum_histograms(over(histogram, vectors), len(vectors))
    small = bins.sum(axis=1) < min_size
    if small.any():
        # removing centroids only adds to the others, so one pass is enough
        small[int(np.argmax(bins.sum(axis=1)))] = False
        vectors, kept = vectors[~small], kept[~small]
        bins = sum_histograms(over(histogram, vectors), len(vectors)) if outliers > 0 or core < 1 else bins[~small]
    return Reference(vectors, cutoffs(bins, outliers, min_size=min_size), cores(bins, core), kept)


def nearest(vectors: Float32, references: Float32) -> tuple[Int32, Float32]:
    """Return each row's most similar reference (the first of equals) int32 (n,) and the cosine float32 (n,)."""
    topics, similarity = np.full(len(vectors), -1, np.int32), np.zeros(len(vectors), np.float32)
    for rows, values in _similarities(vectors, references):
        found = values.argmax(axis=1)
        topics[rows] = found
        similarity[rows] = values[np.arange(len(values)), found]
    return topics, similarity


def assign(vectors: Float32, references: Float32, cutoffs: Float32, *, named: npt.NDArray[np.bool_] | None = None) -> tuple[Int32, Float32]:
    """Return each row's topic int32 (n,), -1 for outliers, and its probability float32 (n,).

    The probability is the cosine to the topic's reference vector, 0 where negative and for outliers.

    Parameters
    ----------
    named : bool (k,), optional
        References that are names given in advance (zero-shot topics). They come first: a row goes to its most similar name
        where it reaches that name's cut-off, however similar other topics are; the others' topics take what is left.
    """
    cutoffs = np.asarray(cutoffs, dtype=np.float32)
    if named is not None and named.any():
        names, others = np.flatnonzero(named), np.flatnonzero(~named)
        taken, similarity = assign(vectors, references[names], cutoffs[names])
        left = np.flatnonzero(taken < 0)
        topics = np.where(taken < 0, -1, names[taken]).astype(np.int32)
        found, similarity[left] = assign(vectors[left], references[others], cutoffs[others])
        topics[left[found >= 0]] = others[found[found >= 0]]
        return topics, similarity
    if len(references) == 0:
        return np.full(len(vectors), -1, np.int32), np.zeros(len(vectors), np.float32)
    topics, similarity = nearest(vectors, references)
    inside = similarity >= cutoffs[topics]
    return (
        np.where(inside, topics, -1).astype(np.int32),
        np.where(inside, np.clip(similarity, 0.0, 1.0), 0.0).astype(np.float32),
    )


def rest(vectors: Float32, names: Float32, min_similarity: float) -> npt.NDArray[np.intp]:
    """Return the rows that no name takes, ascending: what is clustered and refined beside zero-shot topics."""
    return np.flatnonzero(assign(vectors, names, np.full(len(names), min_similarity, np.float32))[0] < 0)


def accumulate(vectors: Float32, centroids: Float32) -> Sums:
    """Return the counts and vector sums of the rows by their nearest centroid."""
    return collect(vectors, nearest(vectors, centroids)[0], len(centroids))


def collect(vectors: Float32, topics: npt.NDArray[np.integer[Any]], number: int) -> Sums:
    """Return the counts and exact vector sums of the rows by given topics; -1 is left out."""
    from scipy.sparse import csr_matrix

    sums = np.zeros((number, vectors.shape[1]), np.float64)
    inside = np.flatnonzero(topics >= 0)
    for start in range(0, len(inside), BLOCK * 8):
        rows = inside[start : start + BLOCK * 8]
        member = csr_matrix((np.ones(len(rows)), (topics[rows], np.arange(len(rows)))), shape=(number, len(rows)))
        sums += member @ exact(vectors[rows])
    return Sums(np.bincount(topics[inside], minlength=number).astype(np.int64), sums)


def total(parts: Iterable[Sums]) -> Sums:
    """Return the sum over partitions."""
    result: Sums | None = None
    for part in parts:
        result = part if result is None else result + part
    if result is None:
        raise ValueError("total must be given at least one partition.")
    return result


def update(sums: Sums, centroids: Float32) -> Float32:
    """Return the new centroids, float32 (k, d) unit rows; one that got no documents stays where it was."""
    moved = unit(sums.vector_sums).astype(np.float32)
    empty = ~np.any(moved != 0, axis=1)
    moved[empty] = centroids[empty]
    return moved


def histogram(vectors: Float32, references: Float32) -> Int64:
    """Return how many rows of each nearest reference have which cosine, int64 (k, BINS) over [-1, 1]."""
    topics, similarity = nearest(vectors, references)
    bins = _bin(similarity)
    flat = np.bincount(topics.astype(np.int64) * BINS + bins, minlength=len(references) * BINS)
    return flat.reshape(len(references), BINS).astype(np.int64)


def sum_histograms(parts: Iterable[Int64], number: int) -> Int64:
    """Return the sum of histograms over partitions."""
    result = np.zeros((number, BINS), np.int64)
    for part in parts:
        result += part
    return result


def cutoffs(bins: Int64, share: float, *, min_size: int = 1) -> Float32:
    """Return each topic's cut-off, float32 (k,), at which at most ``share`` of all documents are outliers.

    A document is far from its topic by that topic's own spread: the cut-off is the topic's mean cosine less z standard
    deviations, with one z for all, because a diffuse topic is no worse than a narrow one. No topic is cut below
    ``min_size`` documents.
    """
    k = len(bins)
    counts = bins.sum(axis=1)
    if k == 0 or share <= 0 or counts.sum() == 0:
        return np.full(k, ALL, np.float32)
    centre = (np.arange(BINS) + 0.5) * 2.0 / BINS - 1.0
    safe = np.maximum(counts, 1)
    mean = bins @ centre / safe
    spread = np.sqrt(np.maximum(bins @ centre**2 / safe - mean**2, 0.0))
    below = np.concatenate([np.zeros((k, 1), np.int64), np.cumsum(bins, axis=1)], axis=1)  # documents under edge e
    spare = np.maximum(counts - min_size, 0)
    deepest = np.array([int(np.searchsorted(below[i], spare[i], side="right")) - 1 for i in range(k)])

    def edges(z: float) -> Int64:
        wanted = np.ceil((mean - z * spread + 1.0) * BINS / 2.0 - 1e-9)
        found: Int64 = np.minimum(np.clip(wanted, 0, BINS), deepest).astype(np.int64)
        return found

    allowed = int(share * counts.sum())

    def cut(z: float) -> int:
        return int(below[np.arange(k), edges(z)].sum())

    low, high = -4.0, 12.0  # z: a smaller one cuts more
    while cut(high) > allowed:  # a few documents very far from a narrow topic
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if cut(middle) > allowed:
            low = middle
        else:
            high = middle
    chosen = edges(high)
    return _edge(chosen)


def cores(bins: Int64, share: float) -> Float32:
    """Return the cosine, float32 (k,), that the nearest ``share`` of each topic's documents reach, :data:`CORE_DOCUMENTS` at least.

    A topic that takes every document, as here all but a percent do, has words at its rim that belong to its neighbours
    as much. What is counted in the core alone tells more of it: words are more coherent and differ more between topics
    (see ``benchmarks/results/quality.md``).
    """
    counts = bins.sum(axis=1)
    wanted = np.minimum(counts, np.maximum(np.ceil(share * counts), CORE_DOCUMENTS))
    from_edge = np.cumsum(bins[:, ::-1], axis=1)[:, ::-1]  # documents at or above edge e, falling with e
    reached = (from_edge >= wanted[:, None]).sum(axis=1) - 1
    return _edge(np.where(wanted < counts, reached, 0))


def _edge(bins: Int64) -> Float32:
    """Return the cosine that a bin begins at, and what everything reaches for the first."""
    return np.where(bins <= 0, ALL, bins * 2.0 / BINS - 1.0).astype(np.float32)


def local(parts: Sequence[Float32]) -> Map:
    """Return an ``over`` for partitions in memory."""

    def over(function: Callable[..., Any], *arguments: Any) -> Iterable[Any]:
        return [function(part, *arguments) for part in parts]

    return over


def _bin(similarity: Float32) -> Int64:
    edges = (np.arange(1, BINS) * 2.0 / BINS - 1.0).astype(np.float32)
    # compared with the very float32 numbers that cut-offs are made of, so that counts below a cut-off are exact
    bins: Int64 = np.searchsorted(edges, similarity, side="right").astype(np.int64)
    return bins


def _similarities(vectors: Float32, references: Float32) -> Iterator[tuple[slice, Float32]]:
    """Yield the cosines of blocks of rows to all references, float32."""
    right = np.ascontiguousarray(np.asarray(references, dtype=np.float64).T)
    block = np.zeros((BLOCK, vectors.shape[1]), np.float64)
    for start in range(0, len(vectors), BLOCK):
        rows = slice(start, min(start + BLOCK, len(vectors)))
        size = rows.stop - rows.start
        block[:size] = vectors[rows]
        block[size:] = 0.0  # the shape stays the same, hence the order of the sums
        yield rows, (block @ right)[:size].astype(np.float32)
