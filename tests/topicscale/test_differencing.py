"""What two releases tell together, against every combination of their leaves written out."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topicscale.differencing import Members, alone, changed, narrow_cuts, settle


def members(leaves: dict[int, list[int]], texts: dict[int, int] | None = None) -> Members:
    rows = [(document, leaf) for leaf, documents in leaves.items() for document in documents]
    documents = np.array([document for document, _ in rows], np.uint64)
    told = np.array([(texts or {}).get(document, 0) for document, _ in rows], np.uint64)
    return Members(documents, told, np.array([leaf for _, leaf in rows], np.int64))


def smallest(new: dict[int, set[int]], old: dict[int, set[int]]) -> int:
    """Return the size of the smallest group but none that sums of leaves, with factors -2 to 2, leave over."""
    best = 10**9
    documents = sorted(set().union(*new.values(), *old.values()))
    for factors in itertools.product(range(-2, 3), repeat=len(new) + len(old)):
        if not any(factors[: len(new)]):
            continue
        told = dict.fromkeys(documents, 0)
        for factor, leaf in zip(factors, [*new.values(), *old.values()], strict=True):
            for document in leaf:
                told[document] += factor
        left = sum(value != 0 for value in told.values())
        if left:
            best = min(best, left)
    return best


@pytest.mark.parametrize("seed", range(25))
def test_what_leaves_beside_an_earlier_release_sets_no_small_group_apart(seed) -> None:
    generator = np.random.default_rng(seed)
    k = 5
    place = generator.integers(0, 3, 40)
    old = {leaf: {int(d) for d in np.flatnonzero(place[:36] == leaf)} for leaf in range(3)}
    moved = np.where(generator.random(40) < generator.choice([0.02, 0.1, 0.3]), generator.integers(0, 3, 40), place)
    moved[generator.random(40) < 0.05] = -1
    new = {leaf: {int(d) for d in np.flatnonzero(moved == leaf)} for leaf in range(3)}
    if min(len(leaf) for leaf in [*old.values(), *new.values()]) < k:
        pytest.skip("a leaf under K is not released in the first place")
    stale = settle(members({i: sorted(d) for i, d in new.items()}), [members({i: sorted(d) for i, d in old.items()})], k, leaves=3)
    fresh = {leaf: documents for leaf, documents in new.items() if leaf not in stale.withheld}
    if fresh:
        assert smallest(fresh, old) >= k
    # and nothing is withheld for nothing: where every combination is harmless, all leaves leave
    if smallest(new, old) >= k:
        assert not stale.withheld


@pytest.mark.parametrize("seed", range(25))
def test_nor_beside_one_whose_leaves_overlap(seed) -> None:
    # as after an export that gave some topics as they had been before
    generator = np.random.default_rng(seed)
    k = 5
    place = generator.integers(0, 3, 40)
    moved = np.where(generator.random(40) < 0.1, generator.integers(0, 3, 40), place)
    old = {leaf: {int(d) for d in np.flatnonzero((moved if leaf else place) == leaf)} for leaf in range(3)}
    later = np.where(generator.random(40) < generator.choice([0.05, 0.3]), generator.integers(-1, 3, 40), moved)
    new = {leaf: {int(d) for d in np.flatnonzero(later == leaf)} for leaf in range(3)}
    stale = settle(members({i: sorted(d) for i, d in new.items()}), [members({i: sorted(d) for i, d in old.items()})], k, leaves=3)
    fresh = {leaf: documents for leaf, documents in new.items() if leaf not in stale.withheld}
    if fresh:
        assert smallest(fresh, old) >= k


@pytest.mark.parametrize("seed", range(60))
def test_beside_a_release_of_a_smaller_k_only_what_that_told_itself_is_left_over(seed) -> None:
    generator = np.random.default_rng(seed)
    k = 8
    place = generator.choice(4, 60, p=[0.4, 0.3, 0.2, 0.1])
    old = {leaf: {int(d) for d in np.flatnonzero(place == leaf)} for leaf in range(4)}
    moved = np.where(generator.random(60) < generator.choice([0.0, 0.02, 0.1, 0.3]), generator.integers(-1, 4, 60), place)
    moved[place == 3] = generator.choice(moved[place != 3], (place == 3).sum()) if seed % 3 == 0 else seed % 4
    found = {leaf: {int(d) for d in np.flatnonzero(moved == leaf)} for leaf in range(4)}
    new = dict(enumerate(documents for documents in found.values() if len(documents) >= k))
    stale = settle(members({i: sorted(d) for i, d in new.items()}), [members({i: sorted(d) for i, d in old.items()})], k, leaves=len(new))
    fresh = [documents for leaf, documents in new.items() if leaf not in stale.withheld]

    def boundaries(sets: list[set[int]]) -> set[frozenset[int]]:
        chosen = itertools.chain.from_iterable(itertools.combinations(sets, n) for n in range(len(sets) + 1))
        return {frozenset(functools.reduce(set.symmetric_difference, some, set())) for some in chosen}

    told = boundaries(list(old.values()))
    assert all(len(group) >= k or group in told for group in boundaries([*fresh, *old.values()]))


def test_a_small_topic_of_a_smaller_k_that_grew_enough_leaves() -> None:
    small = members({0: list(range(12)), 1: list(range(100, 140))})
    for size, leaves in ((25, False), (35, True)):
        stale = settle(members({0: list(range(size)), 1: list(range(100, 140))}), [small], 20, leaves=2)
        assert stale.withheld == (set() if leaves else {0})


def test_a_large_topic_that_tells_little_beside_another_stops_nothing_under_a_larger_k() -> None:
    shared = list(range(23))
    old = members({0: [*shared, *range(23, 30)], 1: [*shared, *range(100, 140)], 2: list(range(200, 240))})
    new = members({0: [*range(23, 30), *range(300, 330)], 1: list(range(100, 140)), 2: list(range(200, 240))})
    # seven of the first are in no other: 5 let them be told, and they are told now whatever comes of 10
    assert settle(new, [old], 10, leaves=3).withheld != {0, 1, 2}


@given(st.integers(0, 10**6), st.integers(3, 9), st.floats(0.2, 1.0), st.integers(2, 14))
@settings(max_examples=300, deadline=None)
def test_a_narrow_cut_is_found_if_and_only_if_there_is_one(seed, nodes, density, limit) -> None:
    generator = np.random.default_rng(seed)
    pairs = np.array([p for p in itertools.combinations(range(nodes), 2) if generator.random() < density]).reshape(-1, 2)
    weight = generator.integers(1, 6, len(pairs)).astype(float)

    def boundary(side: set[int]) -> float:
        return sum(w for (a, b), w in zip(pairs.tolist(), weight, strict=True) if (a in side) != (b in side))

    sides = [set(side) for size in range(1, nodes) for side in itertools.combinations(range(1, nodes), size)]
    narrow = any(0 < boundary(side) < limit for side in sides)
    found = narrow_cuts(nodes, pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64), weight, limit=limit)
    assert bool(found) == narrow
    assert all(0 not in side and 0 < boundary(side) < limit for side in found)


def test_a_leaf_that_grew_by_a_few_documents_is_answered_with_the_old_one() -> None:
    old = members({0: list(range(20)), 1: list(range(100, 130))})
    new = members({0: list(range(23)), 1: list(range(100, 160))})
    stale = settle(new, [old], 10, leaves=2)
    assert stale.withheld == {0}
    assert stale.instead == ((0, 0),)


def test_a_leaf_that_did_not_change_leaves() -> None:
    same = members({0: list(range(20)), 1: list(range(100, 130))})
    assert not settle(same, [same], 10, leaves=2).withheld


def test_unions_of_leaves_are_looked_at_too() -> None:
    # each leaf changes by ten or more, both together by one document
    old = members({0: list(range(40)), 1: list(range(40, 80))})
    new = members({0: list(range(25)), 1: [*range(25, 80), 99]})
    stale = settle(new, [old], 10, leaves=2)
    assert stale.withheld == {0, 1}
    assert set(stale.instead) == {(0, 0), (0, 1)}


def test_an_edited_document_counts_as_one() -> None:
    documents = {0: list(range(20))}
    for edited, withheld in ((1, True), (9, True), (10, False)):
        new = members(documents, dict.fromkeys(range(edited), 7))
        assert changed(members(documents), new) == edited
        assert bool(settle(new, [members(documents)], 10, leaves=1).withheld) == withheld


def test_small_leaves_may_all_be_edited() -> None:
    documents = {0: list(range(12)), 1: list(range(20, 34))}
    assert not settle(members(documents, dict.fromkeys(range(40), 7)), [members(documents)], 10, leaves=2).withheld


def test_every_earlier_release_is_compared() -> None:
    history = [members({0: list(range(20))}), members({0: list(range(50))})]
    stale = settle(members({0: list(range(25))}), history, 10, leaves=1)
    assert stale.instead == ((0, 0),)


def test_an_old_release_whose_leaves_overlap_is_not_trusted() -> None:
    old = members({0: list(range(20)), 1: list(range(15, 40))})
    assert alone(old, leaves=2).tolist() == [15, 20]
    assert settle(members({0: list(range(22))}), [old], 10, leaves=1).withheld == {0}
    # and no reason to fall silent for ever
    assert not settle(members({0: list(range(100, 120)), 1: list(range(60))}), [old], 10, leaves=2).withheld


def test_thousands_of_leaves() -> None:
    leaves = {i: list(range(i * 20, i * 20 + 20)) for i in range(2000)}
    grown = {i: [*documents, *range(10**6 + i * 20, 10**6 + i * 20 + 3 + 10 * (i % 2))] for i, documents in leaves.items()}
    stale = settle(members(grown), [members(leaves)], 10, leaves=2000)
    assert stale.withheld == {i for i in range(2000) if i % 2 == 0}
