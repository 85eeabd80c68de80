"""Measure how well a topic's words belong together: NPMI and C_v.

Both ask how often words meet within a window of text. Only windows' shares of the topics' own words are counted, and
only pairs inside a topic are kept, so memory is bounded by the topics, whatever the corpus.

Sources: Bouma, "Normalized (pointwise) mutual information in collocation extraction", GSCL 2009, for NPMI; Röder, Both
and Hinneburg, "Exploring the space of topic coherence measures", WSDM 2015, for C_v.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

C_V_WINDOW = 110
"""Tokens of a window of C_v, as its authors chose."""
EPSILON = 1e-12
"""Added to a joint probability before its logarithm, as the authors' and gensim's implementations do."""
_BLOCK = 4096
"""Windows of a long document looked at together."""
_BATCH = 4_000_000
"""Upper bound of the word pairs that one batch of windows can hold."""


@dataclass(frozen=True)
class Counts:
    """In how many windows the topics' words occur, alone and in pairs."""

    words: dict[str, int]
    """Word -> index."""
    windows: int
    single: Int64
    """(w,): windows that hold a word."""
    pairs: Int64
    """(p,): the counted pairs i < j as ``i * w + j``, sorted."""
    joint: Int64
    """(p,): windows that hold both words of a pair."""

    def matrix(self, topic: Sequence[str]) -> Int64:
        """Return the windows that hold each pair of a topic's words, (k, k); the diagonal holds single counts."""
        ids = np.array([self.words[word] for word in topic], dtype=np.int64)
        low, high = np.minimum.outer(ids, ids), np.maximum.outer(ids, ids)
        result: Int64 = np.zeros(low.shape, dtype=np.int64)
        off = low != high
        result[off] = self.joint[np.searchsorted(self.pairs, (low * len(self.words) + high)[off])]
        result[~off] = self.single[low[~off]]
        return result


def count(documents: Iterable[Sequence[str]], topics: Sequence[Sequence[str]], *, window: int | None = C_V_WINDOW) -> Counts:
    """Return window counts of the topics' words; ``documents`` is read once.

    Parameters
    ----------
    documents : iterable of sequences of str
        Tokens of each document, in order. An empty document is a window without words.
    topics : sequence of sequences of str
        Words of each topic.
    window : int or None, default=110
        Tokens of a sliding window, moved by one token; a document not longer than it is one window. None takes each
        document as one window.
    """
    return count_many(documents, topics, windows=(window,))[0]


def count_many(documents: Iterable[Sequence[str]], topics: Sequence[Sequence[str]], *, windows: Sequence[int | None]) -> list[Counts]:
    """Return :func:`count` for several windows at once, from one pass over the documents."""
    for window in windows:
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1 or None. Got {window!r} instead.")
    counters = [_Counter(topics, window) for window in windows]
    index = counters[0].index if counters else {}
    for document in documents:
        found = [(position, word) for position, token in enumerate(document) if (word := index.get(token)) is not None]
        for counter in counters:
            counter.add(found, len(document))
    return [counter.finish() for counter in counters]


def count_matrix(matrix: sparse.csr_matrix, vocabulary: Sequence[str], topics: Sequence[Sequence[str]]) -> Counts:
    """Return counts with each document as one window, from document-term counts.

    Parameters
    ----------
    matrix : sparse (documents, terms)
        How often each term occurs in each document; anything above zero counts once.
    vocabulary : sequence of str
        The term of each column.
    """
    counter = _Counter(topics, None)
    column = {term: i for i, term in enumerate(vocabulary)}
    known = [(word, column[term]) for term, word in counter.index.items() if term in column]
    if known:
        words, columns = (np.array(part) for part in zip(*known, strict=True))
        ours = sparse.csc_matrix(matrix)[:, columns]
        place = sparse.csr_matrix((np.ones(len(words)), (np.arange(len(words)), words)), shape=(len(words), len(counter.index)))
        rows = sparse.csr_matrix(ours @ place)
        for start in range(0, rows.shape[0], _BLOCK):
            part = rows[start : start + _BLOCK]
            part.eliminate_zeros()
            counter.flush(part.indices, part.indptr, np.ones(part.shape[0], dtype=np.int64))
    counter.windows = matrix.shape[0]
    return counter.finish()


def npmi(topics: Sequence[Sequence[str]], counts: Counts) -> Float64:
    """Return each topic's mean NPMI over the pairs of its words, -1 to 1, float64 (topics,).

    A word that no window holds says nothing about its pairs: they count as 0. A topic of fewer than two words is 0.
    """
    result = np.zeros(len(topics))
    for i, topic in enumerate(topics):
        pairs = _pairwise(list(dict.fromkeys(topic)), counts)
        k = len(pairs)
        if k > 1:
            result[i] = (pairs.sum() - np.trace(pairs)) / (k * (k - 1))
    return result


def c_v(topics: Sequence[Sequence[str]], counts: Counts) -> Float64:
    """Return each topic's C_v, 0 to 1 for any sensible topic, float64 (topics,).

    Each word is compared with the whole topic (one-set segmentation): a word's vector holds its NPMI with every word of
    the topic, itself included, the topic's vector is their sum, and C_v is the mean of the cosines between them.
    """
    result = np.zeros(len(topics))
    for i, topic in enumerate(topics):
        vectors = _pairwise(list(dict.fromkeys(topic)), counts)
        if not len(vectors):
            continue
        whole = vectors.sum(axis=0)
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(whole)
        cosines = np.divide(vectors @ whole, lengths, out=np.zeros(len(vectors)), where=lengths > 0)
        result[i] = cosines.mean()
    return result


def _pairwise(topic: Sequence[str], counts: Counts) -> Float64:
    """Return NPMI of each pair of words, (k, k), symmetric."""
    total = max(counts.windows, 1)
    joint = counts.matrix(topic) / total
    alone = np.diag(joint)
    product = np.outer(alone, alone)
    # a pair in every window carries no information, and 0 / 0 is what the formula makes of it
    defined = (product > 0) & (joint < 1)
    log_joint = np.log(joint + EPSILON)
    ratio = np.divide(joint + EPSILON, product, out=np.ones_like(joint), where=defined)
    result: Float64 = np.divide(np.log(ratio), -log_joint, out=np.zeros_like(joint), where=defined)
    return result


class _Counter:
    """Collects windows as sparse rows and multiplies them out in batches."""

    def __init__(self, topics: Sequence[Sequence[str]], window: int | None) -> None:
        self.window = window
        self.index = {word: i for i, word in enumerate(dict.fromkeys(word for topic in topics for word in topic))}
        w = len(self.index)
        ids = [sorted({self.index[word] for word in topic}) for topic in topics]
        self.pairs = np.unique(np.array([i * w + j for topic in ids for i, j in combinations(topic, 2)], dtype=np.int64))
        self.single = np.zeros(w, np.int64)
        self.joint = np.zeros(len(self.pairs), np.int64)
        self.windows = 0
        self._clear()

    def _clear(self) -> None:
        self._words: list[Any] = []
        self._ends = [0]
        self._weights: list[int] = []
        self._load = 0

    def add(self, found: list[tuple[int, int]], length: int) -> None:
        """Add a document: (position, word) of its known words, and its number of tokens."""
        if self.window is None or length <= self.window:
            self.windows += 1
            if found:
                self._row(list({word for _, word in found}), 1)
            return
        starts = length - self.window + 1
        self.windows += starts
        if not found:
            return
        positions, words = np.array(found, dtype=np.int64).T
        for first in range(0, starts, _BLOCK):
            self._block(positions, words, first, min(first + _BLOCK, starts))

    def _block(self, positions: Int64, words: Int64, first: int, last: int) -> None:
        """Add the windows that start at first .. last - 1; neighbours that hold the same words become one weighted row."""
        assert self.window is not None
        near = slice(int(np.searchsorted(positions, first)), int(np.searchsorted(positions, last + self.window - 1)))
        if near.start == near.stop:
            return
        # a word at position p is in the windows that start at p - window + 1 .. p
        begin = np.maximum(positions[near] - self.window + 1, first)
        end = np.minimum(positions[near] + 1, last)
        cuts = np.unique(np.concatenate([begin, end]))
        found, column = np.unique(words[near], return_inverse=True)
        change = np.zeros((len(cuts), len(found)), np.int32)
        np.add.at(change, (np.searchsorted(cuts, begin), column), 1)
        np.add.at(change, (np.searchsorted(cuts, end), column), -1)
        inside = np.cumsum(change, axis=0) > 0
        for i, width in enumerate(np.diff(cuts)):
            present = found[inside[i]]
            if len(present):
                self._row(present, int(width))

    def _row(self, words: Any, weight: int) -> None:
        self._words.extend(words)
        self._ends.append(len(self._words))
        self._weights.append(weight)
        self._load += len(words) ** 2
        if self._load >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._weights:
            self.flush(np.array(self._words, np.int64), np.array(self._ends, np.int64), np.array(self._weights, np.int64))
        self._clear()

    def flush(self, words: npt.NDArray[Any], ends: npt.NDArray[Any], weights: Int64) -> None:
        """Add a batch of windows in CSR form, each as often as its weight."""
        w = len(self.index)
        shape = (len(weights), w)
        here = sparse.csr_matrix((np.ones(len(words), np.int64), words, ends), shape=shape)
        weighted = sparse.csr_matrix((np.repeat(weights, np.diff(ends)), words, ends), shape=shape)
        self.single += np.asarray(weighted.sum(axis=0), dtype=np.int64).ravel()
        if len(self.pairs):
            together = sparse.coo_matrix(here.T @ weighted)
            keys = together.row.astype(np.int64) * w + together.col
            at = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
            wanted = self.pairs[at] == keys
            np.add.at(self.joint, at[wanted], together.data[wanted])

    def finish(self) -> Counts:
        self._flush()
        return Counts(self.index, self.windows, self.single, self.pairs, self.joint)
