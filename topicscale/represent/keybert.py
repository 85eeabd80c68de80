"""Words that are near to a topic's documents in the space of embeddings, as BERTopic's KeyBERTInspired finds them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from topicscale.cluster import unit
from topicscale.errors import ModelError
from topicscale.represent.view import Encode, Float32, View, Words

_WORDS = 8192
"""Words whose vectors are held at a time."""
_PAIRS = 16_384
"""Pairs of topic and word compared at a time."""


def keybert(
    views: Sequence[View], encode: Encode, *, top_n_words: int = 10, nr_repr_docs: int = 5, nr_candidate_words: int | None = 100
) -> list[Words]:
    """Return each topic's candidates of the highest cosine similarity with the topic, and that similarity; equals in the order of terms.

    A topic's vector is the mean of its first documents' vectors. This equals BERTopic's KeyBERTInspired, given the same topics,
    documents and vectors, but for two mistakes of BERTopic's:

    * Where BERTopic has the vectors of all documents at hand (a model fitted with this class alone), it looks up the representative
      documents' vectors by their position among the representative documents, and so averages the vectors of other documents, the
      first ones of the corpus. Here the mean is over the topic's own documents, as it is in BERTopic without those vectors.
    * Where a topic has fewer terms than asked for, BERTopic fills up with empty words, which it ranks like any other. Here there
      are fewer candidates.

    A topic with fewer documents than ``nr_repr_docs`` is the mean of those it has. One without documents, as in a merged store, is
    its ``centre``; without that too, its best terms are returned with the weights they came with.

    Every distinct word is encoded once, however many topics have it, and only some thousand words' vectors are held at a time.

    Parameters
    ----------
    views : sequence of View
        With at least ``nr_candidate_words`` terms each, if the topic has them.
    encode : Encode
        Of the same model as the documents' vectors.
    top_n_words : int
        Words to return.
    nr_repr_docs : int
        Documents that make a topic's vector.
    nr_candidate_words : int or None
        Words to choose from: the best of the terms; None for all.

    Raises
    ------
    ModelError
        The words' vectors are not of the same length as the documents'.
    """
    candidates = [view.candidates(nr_candidate_words) for view in views]
    towards = [_direction(view, nr_repr_docs) for view in views]
    ranked = [i for i, direction in enumerate(towards) if direction is not None and candidates[i]]
    found = [words[:top_n_words] for words in candidates]
    if not ranked:
        return found
    directions = np.stack([direction for i in ranked if (direction := towards[i]) is not None])
    numbers = np.array([len(candidates[i]) for i in ranked])
    similarities = _similarities(directions, numbers, [word for i in ranked for word, _ in candidates[i]], encode)
    ends = np.cumsum(numbers)
    for i, values in zip(ranked, np.split(similarities, ends[:-1]), strict=True):
        best = np.argsort(-values, kind="stable")[:top_n_words]
        found[i] = [(candidates[i][j][0], float(values[j])) for j in best]
    return found


def _direction(view: View, nr_repr_docs: int) -> Float32 | None:
    choices = [view.vectors[:nr_repr_docs].mean(axis=0, dtype=np.float64)] if len(view.vectors) else []
    choices += [] if view.centre is None else [view.centre.astype(np.float64)]
    for choice in choices:
        if choice.any():
            return np.asarray(unit(choice.reshape(1, -1))[0], dtype=np.float32)
    return None


def _similarities(directions: Float32, numbers: NDArray[np.int64], words: list[str], encode: Encode) -> Float32:
    """Return the cosine of each word and its topic; the first ``numbers[0]`` words are those of the first row of ``directions``."""
    position: dict[str, int] = {}
    word_of = np.array([position.setdefault(word, len(position)) for word in words])
    topic_of = np.repeat(np.arange(len(numbers)), numbers)
    vocabulary = list(position)
    order = np.argsort(word_of, kind="stable")
    bounds = np.searchsorted(word_of[order], np.arange(0, len(vocabulary) + _WORDS, _WORDS))
    result = np.empty(len(words), dtype=np.float32)
    for block, start in enumerate(range(0, len(vocabulary), _WORDS)):
        vectors = unit(encode(vocabulary[start : start + _WORDS]))
        if vectors.shape[1] != directions.shape[1]:
            raise ModelError(
                f"The words' vectors have {vectors.shape[1]} numbers and the documents' {directions.shape[1]}. "
                "Set embedding.model to the model that made the documents' vectors."
            )
        of_block = order[bounds[block] : bounds[block + 1]]
        for first in range(0, len(of_block), _PAIRS):
            pairs = of_block[first : first + _PAIRS]
            result[pairs] = np.einsum("ij,ij->i", directions[topic_of[pairs]], vectors[word_of[pairs] - start])
    return result
