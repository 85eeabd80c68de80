"""Maximal marginal relevance: near to a query, and unlike what was chosen before (Carbonell and Goldstein 1998, doi:10.1145/290941.291025).

With ``s`` the cosine similarity, ``q`` the query and ``C`` what was chosen so far, the next choice is the greatest::

    (1 - diversity) * s(q, i) - diversity * max(s(i, c) for c in C)

The first choice is the nearest to the query.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from topicscale.cluster import unit
from topicscale.represent.view import Encode, View, Words

_TOPICS = 2048
"""Topics whose words' vectors are held at a time."""


def mmr(query: NDArray[np.floating], vectors: NDArray[np.floating], number: int, diversity: float) -> list[int]:
    """Return the rows of ``vectors`` that are chosen, in the order of choice: min(number, n) of them, equals in the order of rows.

    The choice is that of BERTopic's ``mmr``, which compares all rows with each other; here it takes O(number * n * d).

    Parameters
    ----------
    query : array of shape (d,)
    vectors : array of shape (n, d)
        Of any length. A row of zeros is like nothing: its similarities are 0.
    number : int
        How many to choose; 0 or less for none.
    diversity : float
        From 0 (the nearest to the query) to 1 (after the first, the most unlike each other).
    """
    if number <= 0 or len(vectors) == 0:
        return []
    rows = unit(vectors)
    relevance = _similarity(rows, unit(query.reshape(1, -1))[0])
    chosen = [int(np.argmax(relevance))]
    nearest = np.full(len(rows), -np.inf)
    taken = np.zeros(len(rows), dtype=bool)
    while len(chosen) < min(number, len(rows)):
        taken[chosen[-1]] = True
        np.maximum(nearest, _similarity(rows, rows[chosen[-1]]), out=nearest)
        scores = (1.0 - diversity) * relevance - diversity * nearest
        scores[taken] = -np.inf
        chosen.append(int(np.argmax(scores)))
    return chosen


def diverse(
    views: Sequence[View], encode: Encode, *, diversity: float = 0.1, top_n_words: int = 10, nr_candidate_words: int | None = 30
) -> list[Words]:
    """Return each topic's diverse words, with their weights and in their order, which is what BERTopic's MaximalMarginalRelevance does.

    The query is the vector of all candidates in one text.

    Parameters
    ----------
    views : sequence of View
    encode : Encode
        Called once for every 2,048 topics, with their distinct texts. A topic that has no words to choose from is not encoded.
    diversity : float
        From 0 to 1: see :func:`mmr`.
    top_n_words : int
        Words to choose.
    nr_candidate_words : int or None
        Words to choose from: the best, at least ``top_n_words`` of them; None for all.
    """
    number = None if nr_candidate_words is None else max(nr_candidate_words, top_n_words)
    return [
        words
        for start in range(0, len(views), _TOPICS)
        for words in _chunk(views[start : start + _TOPICS], encode, diversity, top_n_words, number)
    ]


def _chunk(views: Sequence[View], encode: Encode, diversity: float, top_n_words: int, number: int | None) -> list[Words]:
    candidates = [view.candidates(number) for view in views]
    position: dict[str, int] = {}
    for words in candidates:
        if len(words) > top_n_words:
            for text in (*(word for word, _ in words), _joined(words)):
                position.setdefault(text, len(position))
    vectors = encode(list(position)) if position else None
    found: list[Words] = []
    for words in candidates:
        if vectors is not None and len(words) > top_n_words:
            rows = vectors[[position[word] for word, _ in words]]
            words = [words[i] for i in sorted(mmr(vectors[position[_joined(words)]], rows, top_n_words, diversity))]
        found.append(words)
    return found


def _joined(words: Words) -> str:
    return " ".join(word for word, _ in words)


def _similarity(rows: NDArray[np.float64], row: NDArray[np.float64]) -> NDArray[np.float64]:
    # not `rows @ row`: BLAS may give equal rows results that differ in their last bits, and then the first of equals is not chosen
    result: NDArray[np.float64] = np.einsum("ij,j->i", rows, row)
    return result
