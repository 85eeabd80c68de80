"""Which local topics of new documents are topics that a model does not have yet."""

from __future__ import annotations

import numpy as np

from topicscale.cluster import Float64, Int64
from topicscale.merge import Leaves, tree


def newcomers(
    sizes: Int64, vector_sums: Float64, candidate_sizes: Int64, candidate_sums: Float64, *, height: float, min_size: int
) -> Int64:
    """Return the new topic (numbered from 0) that each candidate belongs to, -1 for none: int64 (m,)."""
    found = np.full(len(candidate_sizes), -1, np.int64)
    if len(candidate_sizes) == 0:
        return found
    have = sizes > 0
    all_sizes = np.concatenate([sizes[have], candidate_sizes])
    leaves, index = Leaves.of(all_sizes, np.concatenate([vector_sums[have].reshape(-1, candidate_sums.shape[1]), candidate_sums]))
    groups = tree(leaves).cut(height=height)[index]
    known, mine = set(groups[: have.sum()].tolist()), groups[have.sum() :]
    number = 0
    for group in dict.fromkeys(mine.tolist()):
        members = mine == group
        if group not in known and candidate_sizes[members].sum() >= min_size:
            found[members] = number
            number += 1
    return found
