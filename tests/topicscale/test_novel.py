"""New topics are those that no existing one would take."""

from __future__ import annotations

import numpy as np
import pytest

from topicscale.cluster import exact, unit
from topicscale.novel import newcomers


def planted(*, old: int = 6, new: int = 2, days: int = 8, each: int = 3) -> tuple[np.ndarray, ...]:
    """Old topics of 100 documents; each day brings a leaf of ``each`` documents of every topic, old and new."""
    random = np.random.default_rng(0)
    centres = unit(random.normal(size=(old + new, 32)))
    sizes = np.full(old, 100)
    sums = np.stack([exact(unit(c + 0.1 * random.normal(size=(100, 32)))).sum(axis=0) for c in centres[:old]])
    source = np.tile(np.arange(old + new), days)
    leaves = np.stack([exact(unit(centres[t] + 0.1 * random.normal(size=(each, 32)))).sum(axis=0) for t in source])
    return sizes, sums, np.full(len(source), each), leaves, source


def test_leaves_of_new_topics_find_one_another_over_batches_and_old_topics_keep_theirs() -> None:
    sizes, sums, candidate_sizes, candidates, source = planted()
    found = newcomers(sizes, sums, candidate_sizes=candidate_sizes, candidate_sums=candidates, height=0.15)
    assert len(found) == 2
    assert sorted(sorted(set(source[rows])) for rows in found) == [[6], [7]]
    assert all(len(rows) == 8 for rows in found)


def test_too_few_documents_wait_for_the_next_batch() -> None:
    sizes, sums, candidate_sizes, candidates, _ = planted(days=3)
    arguments = {"candidate_sizes": candidate_sizes, "candidate_sums": candidates, "height": 0.05}
    assert newcomers(sizes, sums, **arguments, min_size=10) == []
    assert len(newcomers(sizes, sums, **arguments, min_size=9)) == 2


def test_order_and_repetition_change_nothing() -> None:
    sizes, sums, candidate_sizes, candidates, _ = planted()
    found = newcomers(sizes, sums, candidate_sizes=candidate_sizes, candidate_sums=candidates, height=0.15)
    order = np.random.default_rng(1).permutation(len(candidates))
    shuffled = newcomers(sizes[::-1], sums[::-1], candidate_sizes=candidate_sizes[order], candidate_sums=candidates[order], height=0.15)
    assert [set(rows) for rows in found] == [set(order[rows]) for rows in shuffled]
    twice = newcomers(sizes, sums, candidate_sizes=np.tile(candidate_sizes, 2), candidate_sums=np.tile(candidates, (2, 1)), height=0.15)
    assert [set(rows) for rows in found] == [set(rows[rows < len(candidates)]) for rows in twice]


def test_no_candidates_no_topics_and_what_is_known() -> None:
    sizes, sums, candidate_sizes, candidates, _ = planted()
    nothing = {"candidate_sizes": np.zeros(0, int), "candidate_sums": np.zeros((0, 32)), "height": 0.15}
    assert newcomers(sizes, sums, **nothing) == []
    assert newcomers(sizes, sums, candidate_sizes=sizes, candidate_sums=sums, height=0.0) == []
    alone = newcomers(np.zeros(0, int), np.zeros((0, 32)), candidate_sizes=candidate_sizes, candidate_sums=candidates, height=0.15)
    assert len(alone) == 8
    with pytest.raises(ValueError, match="dimensions"):
        newcomers(sizes, sums, candidate_sizes=[1], candidate_sums=np.ones((1, 8)), height=0.15)
