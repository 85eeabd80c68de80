"""Retrieval: does an anchor find its own positive among all positives that were held out?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from topicscale.errors import PoisonedInput
from topicscale.represent.view import Encode

DEPTH = 10
"""Places looked at: a positive found further down counts as not found."""
_BLOCK = 1024


def retrieval(encode: Encode, anchors: Sequence[str], positives: Sequence[str]) -> dict[str, float]:
    """Return how high anchors rank their positives.

    What is searched is the distinct positives. An anchor that occurs several times has several positives: its best one counts.
    A wrong positive that is exactly as similar as the right one ranks before it, so that a model which gives all texts one vector
    gains nothing.

    Parameters
    ----------
    encode : callable
        Return the texts' unit vectors, float32 (n, d).
    anchors, positives : sequences of str, of length n
        The held-out pairs.

    Returns
    -------
    dict
        ``mrr``: mean reciprocal rank within the first ``DEPTH`` places (MRR@10, as MS MARCO is judged: Nguyen et al., 2016);
        ``recall_at_1``: share of anchors whose first place is right; ``anchors``, ``positives``: how many distinct ones.

    Raises
    ------
    ValueError
        The lengths differ, or there are fewer than two distinct positives.
    """
    if len(anchors) != len(positives):
        raise ValueError(f"anchors and positives must have the same length. Got {len(anchors)} and {len(positives)} instead.")
    asked = {text: i for i, text in enumerate(dict.fromkeys(anchors))}
    searched = {text: i for i, text in enumerate(dict.fromkeys(positives))}
    if len(searched) < 2:
        raise ValueError(f"positives must be at least two distinct texts. Got {len(searched)} instead.")
    pairs = np.unique([(asked[a], searched[p]) for a, p in zip(anchors, positives, strict=True)], axis=0)
    starts = np.searchsorted(pairs[:, 0], np.arange(len(asked) + 1))
    vectors = encode([*asked, *searched])
    if not np.isfinite(vectors).all():  # no comparison with it is true, which would rank everything first
        raise PoisonedInput("The model gives vectors that are not finite: its training diverged. Use a lower learning rate.")
    queries, corpus = vectors[: len(asked)], vectors[len(asked) :]
    ranks = np.empty(len(asked), np.int64)
    for start in range(0, len(asked), _BLOCK):
        # beyond six digits similarities differ by rounding alone
        similarities = np.round(queries[start : start + _BLOCK] @ corpus.T, 6)
        for row, similarity in enumerate(similarities, start):
            right = pairs[starts[row] : starts[row + 1], 1]
            best = similarity[right].max()
            ranks[row] = 1 + np.count_nonzero(similarity >= best) - np.count_nonzero(similarity[right] >= best)
    return {
        "mrr": float(np.where(ranks <= DEPTH, 1.0 / ranks, 0.0).mean()),
        "recall_at_1": float((ranks == 1).mean()),
        "anchors": float(len(asked)),
        "positives": float(len(searched)),
    }
