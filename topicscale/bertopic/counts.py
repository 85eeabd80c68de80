"""Term counts out of c-TF-IDF weights.

BERTopic keeps ``weight = share * idf`` and ``idf``, so a topic's shares (a term's count over the topic's count of all
terms, N) come back by a division. Two things more are known: counts are whole numbers, and ``idf = log(1 + A / f)``
tells each term's ``f / A``, where f, its count over all topics, is the sum of its shares times the topics' N. That is a
linear system for all N / A, with far more equations than unknowns; the rarest share then fixes A. What comes out is
checked: the counts must give the shares and the idf back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from topicscale.cluster import Int64
from topicscale.ctfidf import average_terms, idf

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_TOLERANCE = 1e-6
_RAREST = 12
"""The rarest term of the model that is least rare may be used this often (a vocabulary may have lost its rare terms)."""


@dataclass(frozen=True)
class Counts:
    """Term counts of topics."""

    matrix: csr_matrix
    """(topics, terms) int64, without zeros."""
    exact: bool
    """They give the weights back, and are the counts they came from; else an estimate."""


def recover(
    weights: csr_matrix, of_term: NDArray[np.float64], sizes: Int64, *, bm25_weighting: bool = False, reduce_frequent_words: bool = False
) -> Counts:
    """Return the counts that c-TF-IDF weights were made from.

    Parameters
    ----------
    weights : csr_matrix of shape (topics, terms)
    of_term : array of shape (terms,)
        Each term's idf.
    sizes : array of shape (topics,)
        Documents of each topic.

    Notes
    -----
    Where the idf is not that of the counts (seed words, online vocabularies), the number of terms of a topic is
    estimated: its documents times the terms a document, and these are the median over topics of one over the topic's
    smallest share, over its documents (as if a typical topic's rarest term were used once).
    """
    share = _shares(weights, of_term, reduce_frequent_words=reduce_frequent_words)
    smallest = np.array([row.min(initial=np.inf) for row in np.split(share.data, share.indptr[1:-1])])
    used = np.isfinite(smallest)
    unit = np.where(used, 1.0 / np.where(used, smallest, 1.0), 0.0)  # a topic's N over its rarest term's count
    found = _exact(share, of_term, unit, bm25_weighting=bm25_weighting) if used.any() else None
    if found is not None:
        return Counts(found, True)
    each = float(np.median(unit[used] / np.maximum(sizes[used], 1))) if used.any() else 1.0
    totals = np.maximum(sizes, 1) * max(each, 1.0)
    return Counts(_times(share, totals, least=1), not used.any())


def documents_with(counts: Int64, sizes: Int64) -> Int64:
    """Return in how many of ``sizes`` documents a term occurs that is used ``counts`` times, as if its uses fell on them at random."""
    size = np.maximum(sizes, 1).astype(np.float64)
    hit = size * -np.expm1(counts * np.log1p(-1.0 / np.maximum(size, 1.0 + 1e-12)))
    return np.asarray(np.clip(np.rint(hit), 1, np.minimum(counts, np.maximum(sizes, 1))), dtype=np.int64)


def _shares(weights: csr_matrix, of_term: NDArray[np.float64], *, reduce_frequent_words: bool) -> csr_matrix:
    from scipy.sparse import csr_matrix

    share = csr_matrix(weights, dtype=np.float64, copy=True)
    share.sum_duplicates()
    divisor = of_term[share.indices]
    share.data = np.divide(share.data, divisor, out=np.zeros_like(share.data), where=divisor != 0)
    share.data = np.where(np.isfinite(share.data) & (share.data > 0), share.data, 0.0)
    if reduce_frequent_words:
        share.data **= 2
    share.eliminate_zeros()
    totals = np.asarray(share.sum(axis=1)).ravel()
    share.data /= np.repeat(totals, np.diff(share.indptr))
    return share


def _exact(share: csr_matrix, of_term: NDArray[np.float64], unit: NDArray[np.float64], *, bm25_weighting: bool) -> csr_matrix | None:
    from scipy.sparse.linalg import lsqr

    known = np.flatnonzero(np.diff(share.tocsc().indptr))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        # bm25: (f + .5) / (A + 1), near enough, since only whole multiples of `unit` are asked for
        relative = np.exp(-of_term[known]) if bm25_weighting else 1.0 / np.expm1(of_term[known])
    if not np.isfinite(relative).all():
        return None
    ratio = lsqr(share[:, known].T, relative, atol=1e-12, btol=1e-12, iter_lim=2000)[0]
    used = unit > 0
    if (ratio[used] <= 0).any():
        return None
    average = float((unit[used] / ratio[used]).max())
    for rarest in range(1, _RAREST + 1):
        multiple = np.maximum(np.rint(np.divide(ratio * average * rarest, unit, out=np.zeros_like(unit), where=used)), 1.0)
        totals = np.where(used, np.rint(unit * multiple), 0.0)
        counts = _times(share, totals)
        if _agrees(counts, share, of_term, known, bm25_weighting=bm25_weighting):
            return counts
    return None


def _agrees(counts: csr_matrix, share: csr_matrix, of_term: NDArray[np.float64], known: Int64, *, bm25_weighting: bool) -> bool:
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    if len(counts.data) == 0 or counts.data.min() < 1:
        return False
    if not np.allclose(counts.data / np.repeat(totals, np.diff(counts.indptr)), share.data, rtol=_TOLERANCE, atol=0.0):
        return False
    frequencies = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()[known]
    again = idf(frequencies, average_terms(totals), bm25_weighting=bm25_weighting)
    return bool(np.allclose(again, of_term[known], rtol=_TOLERANCE, atol=_TOLERANCE))


def _times(share: csr_matrix, totals: NDArray[np.float64], *, least: int = 0) -> csr_matrix:
    counts = share.copy()
    counts.data = np.maximum(np.rint(share.data * np.repeat(totals, np.diff(share.indptr))), least).astype(np.int64)
    return counts
