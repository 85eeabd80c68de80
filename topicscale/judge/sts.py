"""Semantic textual similarity: do cosines rank pairs of sentences as people do?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from topicscale.represent.view import Encode


def sts(encode: Encode, first: Sequence[str], second: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """Return how well cosines agree with people's scores.

    Parameters
    ----------
    encode : callable
        Return the texts' unit vectors, float32 (n, d).
    first, second : sequences of str, of length n
        The pairs.
    scores : sequence of float, of length n
        On any scale: both measures are the same after a change of unit.

    Returns
    -------
    dict
        ``spearman`` (rank correlation, what the benchmark is reported by), ``pearson``, ``pairs``. A model that gives every pair
        the same cosine agrees with nobody: both are 0.

    Raises
    ------
    ValueError
        The lengths differ, or all scores are equal.

    Notes
    -----
    Source: Cer, Diab, Agirre, Lopez-Gazpio and Specia, "SemEval-2017 Task 1", SemEval 2017; Reimers, Beyer and Gurevych, COLING
    2016, for Spearman's coefficient as the measure. The same numbers as sentence-transformers' ``EmbeddingSimilarityEvaluator``.
    """
    from scipy.stats import pearsonr, spearmanr

    n = len(first)
    if not n == len(second) == len(scores):
        raise ValueError(f"first, second and scores must have the same length. Got {n}, {len(second)} and {len(scores)} instead.")
    wanted = np.asarray(scores, dtype=np.float64)
    if n < 2 or np.ptp(wanted) == 0:
        raise ValueError(f"scores must differ. Got {n} equal ones instead.")
    vectors = encode([*first, *second]).astype(np.float64)
    # equal sentences have a cosine of 1, and of nothing else in the last bits
    cosines = np.round(np.einsum("ij,ij->i", vectors[:n], vectors[n:]), 7)
    flat = np.ptp(cosines) == 0
    return {
        "spearman": 0.0 if flat else float(spearmanr(wanted, cosines).statistic),
        "pearson": 0.0 if flat else float(pearsonr(wanted, cosines).statistic),
        "pairs": float(n),
    }
