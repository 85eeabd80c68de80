"""How well a label finds its topic: embedded, it is compared with all topics' centres. Cheap, and needs no one's judgement."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


def ranks(labels: Float32, own: npt.NDArray[np.int64], centres: Float32) -> npt.NDArray[np.int64]:
    """Return at which place each label's own topic is found, 1 the best, int64 (n,); ties count against the label.

    Parameters
    ----------
    labels : ndarray of float32, shape (n, d)
        Unit rows.
    own : ndarray of int64, shape (n,)
        Row of ``centres`` that each label belongs to.
    centres : ndarray of float32, shape (k, d)
        Unit rows.
    """
    found = np.empty(len(labels), np.int64)
    for start in range(0, len(labels), 1024):  # a block of similarities at a time
        similar = labels[start : start + 1024] @ centres.T
        mine = similar[np.arange(len(similar)), own[start : start + 1024]]
        found[start : start + 1024] = (similar >= mine[:, None]).sum(axis=1)
    return found


def mean_reciprocal_rank(found: npt.NDArray[np.int64]) -> float:
    """Return the mean of 1 / rank: 1 where every label finds its own topic first."""
    return float((1.0 / found).mean()) if len(found) else 0.0
