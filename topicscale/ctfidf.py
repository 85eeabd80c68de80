"""c-TF-IDF: how much a term says about a class of documents (Grootendorst 2022, arXiv:2203.05794, section 3.3).

All documents of a class count as one. With ``tf`` a term's share of its class's terms, ``f`` its count over all classes
and ``A`` the average number of terms a class, rounded down::

    weight = tf * log(1 + A / f)                          (default)
    weight = tf * log(1 + (A - f + 0.5) / (f + 0.5))      (bm25_weighting)

``reduce_frequent_words`` takes the square root of ``tf``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def idf(frequencies: NDArray[np.float64], average: int, *, bm25_weighting: bool = False) -> NDArray[np.float64]:
    """Return the weight of each term over all classes.

    Parameters
    ----------
    frequencies : array of shape (terms,)
        Count of each term over all classes, above 0.
    average
        Average number of terms a class, rounded down: ``A`` above.
    """
    if bm25_weighting:
        return np.asarray(np.log(1.0 + (average - frequencies + 0.5) / (frequencies + 0.5)))
    return np.asarray(np.log(average / frequencies + 1.0))


def average_terms(totals: NDArray[np.float64]) -> int:
    """Return ``A``: the mean of the classes' numbers of terms, classes without any included, rounded down."""
    return int(totals.mean()) if len(totals) else 0


def c_tf_idf(counts: csr_matrix, *, bm25_weighting: bool = False, reduce_frequent_words: bool = False) -> csr_matrix:
    """Return the weights of all terms of all classes.

    Parameters
    ----------
    counts : sparse matrix of shape (classes, terms)
        How often each class uses each term. A term that no class uses gets no weight.

    Returns
    -------
    csr_matrix of shape (classes, terms), float64
    """
    from scipy.sparse import csr_matrix

    weights = csr_matrix(counts, dtype=np.float64, copy=True)
    totals = np.asarray(weights.sum(axis=1)).ravel()
    frequencies = np.asarray(weights.sum(axis=0)).ravel()
    of_term = idf(np.maximum(frequencies, 1.0), average_terms(totals), bm25_weighting=bm25_weighting)
    rows = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
    shares = weights.data / totals[rows]
    weights.data = (np.sqrt(shares) if reduce_frequent_words else shares) * of_term[weights.indices]
    return weights
