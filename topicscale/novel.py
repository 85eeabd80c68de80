"""Find new topics among leaves that arrived after a model was fitted: those that no existing topic would take.

Existing topics and candidate leaves go into the one hierarchy that merging uses, cut at the height it uses. A group without
an existing topic is what a fit of everything would have kept apart at that height. Since heights weigh mass, leaves of
three documents each find one another over many batches before any of them is near enough to a topic that is not theirs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from topicscale.cluster import Int64
from topicscale.merge import Leaves, collect, tree

__all__ = ["newcomers"]


def newcomers(
    sizes: npt.ArrayLike,
    vector_sums: npt.ArrayLike,
    *,
    candidate_sizes: npt.ArrayLike,
    candidate_sums: npt.ArrayLike,
    height: float,
    min_size: int = 10,
) -> list[Int64]:
    """Return the groups of candidates that are new topics: rows int64, ascending, of each; the largest group first.

    Parameters
    ----------
    sizes, vector_sums : int (k,), float (k, d)
        The existing topics: documents, and sums of their unit vectors.
    candidate_sizes, candidate_sums : int (m,), float (m, d)
        Leaves of the present batch and of earlier ones that are in no topic yet.
    height : float
        Where the model's leaves were merged (see ``calibrate.pilot``).
    min_size : int
        Documents that a new topic must have. Smaller groups stay candidates: give them again with the next batch.

    Raises
    ------
    ValueError
        Sums have other dimensions than one another, or another number of rows than sizes.

    Notes
    -----
    The outcome is a function of the two sets, not of their order. A candidate given twice counts once, and one that equals
    an existing topic is that topic.
    """
    existing, _ = Leaves.of(sizes, vector_sums)
    candidates, row = Leaves.of(candidate_sizes, candidate_sums)
    if len(candidates) == 0:
        return []
    if len(existing) == 0:
        leaves, taken = candidates, np.zeros(len(candidates), bool)
    elif existing.vector_sums.shape[1] != candidates.vector_sums.shape[1]:
        found = f"{existing.vector_sums.shape[1]} and {candidates.vector_sums.shape[1]}"
        raise ValueError(f"Topics and candidates must have the same dimensions. Got {found} instead.")
    else:
        leaves, _ = Leaves.of(
            np.concatenate([existing.sizes, candidates.sizes]), np.concatenate([existing.vector_sums, candidates.vector_sums])
        )
        known = set(existing.keys)
        taken = np.array([key in known for key in leaves.keys])
    merged = collect(leaves, tree(leaves).cut(height=height))
    old = np.zeros(merged.number, bool)
    old[merged.labels[taken]] = True
    place = {key: position for position, key in enumerate(leaves.keys)}
    group = merged.labels[[place[key] for key in candidates.keys]][row]
    return [np.flatnonzero(group == topic) for topic in np.flatnonzero(~old & (merged.sizes >= min_size))]
