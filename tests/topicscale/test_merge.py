"""Merging is a function of the set of leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import topicscale.tree as hierarchy
from topicscale.cluster import exact, unit
from topicscale.merge import Leaves, Merged, collect, leaf_key, merge, topic_key, tree

FORMS = ("exact", "in cells")


@contextmanager
def form(name: str) -> Iterator[None]:
    """Small numbers, so that a few leaves are divided into cells, more than once."""
    with pytest.MonkeyPatch.context() as patch:
        if name == "in cells":
            patch.setattr(hierarchy, "SWITCH", 6)
            patch.setattr(hierarchy, "CELL", 4)
            patch.setattr(hierarchy, "SHRINK", 2)
        yield


def same(one: Merged, two: Merged) -> bool:
    return (
        one.keys == two.keys
        and one.labels.tobytes() == two.labels.tobytes()
        and one.sizes.tobytes() == two.sizes.tobytes()
        and one.vector_sums.tobytes() == two.vector_sums.tobytes()
        and one.similarities.tobytes() == two.similarities.tobytes()
    )


def made(m: int, *, groups: int = 4, d: int = 16, spread: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centres = unit(random.normal(size=(groups, d)))
    true = np.arange(m) % groups
    sizes = random.integers(3, 60, m)
    sums = exact(unit(centres[true] + spread * random.normal(size=(m, d)))) * sizes[:, None]
    return sizes, sums, true


def plain_ward(leaves: Leaves) -> np.ndarray:
    """Heights by the definition: join the closest pair, one at a time."""
    mass = list(leaves.sizes / leaves.sizes.sum())
    mean = list(unit(leaves.vector_sums))
    heights = []
    while len(mass) > 1:
        best = min(
            (2 * mass[i] * mass[j] / (mass[i] + mass[j]) * float(((mean[i] - mean[j]) ** 2).sum()), i, j)
            for i in range(len(mass))
            for j in range(i)
        )
        height, i, j = best
        heights.append(height**0.5)
        total = mass[i] + mass[j]
        mean[j] = (mass[i] * mean[i] + mass[j] * mean[j]) / total
        mass[j] = total
        del mass[i], mean[i]
    return np.array(heights)


def test_rounds_give_the_tree_of_one_join_at_a_time() -> None:
    leaves, _ = Leaves.of(*made(60, spread=0.6)[:2])
    assert np.allclose(tree(leaves).heights, plain_ward(leaves), rtol=1e-7)


def test_planted_topics_are_found_by_number_and_similarity() -> None:
    sizes, sums, true = made(80)
    leaves, index = Leaves.of(sizes, sums)
    for merged in (merge(leaves, number=4), merge(leaves, similarity=0.6)):
        assert merged.number == 4
        for topic in range(4):
            assert len(set(true[merged.labels[index] == topic])) == 1
        assert (merged.similarities > 0.8).all()
        assert (np.diff(merged.sizes) <= 0).all()
        assert merged.sizes.sum() == sizes.sum()
        assert (merged.vector_sums.sum(axis=0) == sums.sum(axis=0)).all()


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    m=st.integers(1, 40),
    repeat=st.integers(1, 3),
    by=st.sampled_from(({"height": 0.05}, {"height": 0.3}, {"number": 5}, {"similarity": 0.7})),
)
def test_order_and_repetition_of_leaves_change_nothing(name: str, seed: int, m: int, repeat: int, by: dict[str, float]) -> None:
    sizes, sums, _ = made(m, spread=0.5, seed=seed)
    order = np.random.default_rng(seed).permutation(np.tile(np.arange(m), repeat))
    first, second = Leaves.of(sizes, sums)[0], Leaves.of(sizes[order], sums[order])[0]
    assert first.keys == second.keys
    with form(name):
        assert same(merge(first, **by), merge(second, **by))


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), m=st.integers(1, 40), parts=st.integers(1, 5), height=st.floats(0.01, 0.6))
def test_a_merge_of_merges_is_the_merge_of_all(name: str, seed: int, m: int, parts: int, height: float) -> None:
    sizes, sums, _ = made(m, spread=0.5, seed=seed)
    random = np.random.default_rng(seed)
    # sites that overlap; then sites of sites, each a union of some, and the rest
    sites = [Leaves.of(sizes[rows], sums[rows])[0] for rows in (random.permutation(m)[: random.integers(0, m + 1)] for _ in range(parts))]
    rest = np.flatnonzero(random.random(m) < 0.5)
    nested = union([union(sites), Leaves.of(sizes[rest], sums[rest])[0], union(sites[::-1]), Leaves.of(sizes, sums)[0]])
    whole = Leaves.of(sizes, sums)[0]
    assert nested.keys == whole.keys
    with form(name):
        assert same(merge(nested, height=height), merge(whole, height=height))


def union(leaves: list[Leaves]) -> Leaves:
    return Leaves.of(np.concatenate([part.sizes for part in leaves]), np.concatenate([part.vector_sums for part in leaves]))[0]


def test_the_switch_counts_distinct_leaves() -> None:
    sizes, sums, _ = made(40, spread=0.5)
    once, thrice = Leaves.of(sizes, sums)[0], Leaves.of(np.tile(sizes, 3), np.tile(sums, (3, 1)))[0]
    whole = tree(once)
    with form("in cells"):
        assert tree(once).heights.tobytes() != whole.heights.tobytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hierarchy, "SWITCH", 40)
        assert tree(thrice).heights.tobytes() == whole.heights.tobytes()


@pytest.mark.parametrize("criterion", ["ward", "average"])
def test_cells_find_the_clusters_that_the_exact_tree_finds(criterion: str) -> None:
    sizes, sums, true = made(600, groups=12, d=32)
    leaves, index = Leaves.of(sizes, sums)
    plain = tree(leaves, criterion=criterion)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hierarchy, "SWITCH", 60)
        patch.setattr(hierarchy, "CELL", 32)
        in_cells = tree(leaves, criterion=criterion)
    height = plain.heights[-12:-10].mean()  # between the last join inside a cluster and the first of two clusters
    for cut in ({"number": 12}, {"height": height}):
        assert (plain.cut(**cut) == in_cells.cut(**cut)).all()
        assert len(set(zip(in_cells.cut(**cut)[index], true, strict=True))) == 12


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("criterion", ["ward", "average"])
def test_cuts_are_nested_and_of_the_number_asked_for(name: str, criterion: str) -> None:
    leaves, _ = Leaves.of(*made(90, spread=0.7)[:2])
    with form(name):
        whole = tree(leaves, criterion=criterion)
    assert (np.diff(whole.heights) >= 0).all()
    assert (whole.first < whole.second).all()
    finer = whole.cut(number=90)
    for number in range(89, 0, -1):
        cut = whole.cut(number=number)
        assert cut.max() == number - 1
        assert len(set(zip(finer, cut, strict=True))) == number + 1
        starts = np.unique(cut, return_index=True)[1]
        assert (np.diff(starts) > 0).all()  # numbered by first leaf
        finer = cut


@pytest.mark.parametrize("name", FORMS)
def test_ties(name: str) -> None:
    equal = Leaves.of(np.full(24, 5), np.eye(24) * 5)[0]  # every two are as far apart
    order = np.random.default_rng(0).permutation(24)
    again = Leaves.of(np.full(24, 5), (np.eye(24) * 5)[order])[0]
    with form(name):
        assert same(merge(equal, number=7), merge(again, number=7))
        assert merge(equal, number=7).number == 7


@pytest.mark.parametrize("name", FORMS)
def test_many_leaves_of_one_direction_are_one_topic(name: str) -> None:
    row = exact(unit(np.random.default_rng(0).normal(size=(2, 384))))
    sizes = np.arange(3, 2003)
    leaves, index = Leaves.of(sizes, row[np.arange(2000) % 2] * sizes[:, None])
    with form(name):
        merged = merge(leaves, height=0.0)
    assert merged.number == 2
    assert (merged.labels[index][::2] == merged.labels[index][0]).all()


def test_the_number_of_threads_changes_nothing() -> None:
    from threadpoolctl import threadpool_limits

    leaves, _ = Leaves.of(*made(3000, groups=40, d=64, spread=0.3)[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hierarchy, "SWITCH", 1000)
        patch.setattr(hierarchy, "CELL", 200)
        found = []
        for threads in (1, 2):
            with threadpool_limits(threads):
                found.append(merge(leaves, number=60))
    assert same(*found)


def test_index_leads_each_row_to_its_leaf() -> None:
    sizes, sums, _ = made(10)
    leaves, index = Leaves.of(np.concatenate([sizes, sizes]), np.concatenate([sums, sums]))
    assert len(leaves) == 10
    assert (leaves.sizes[index] == np.concatenate([sizes, sizes])).all()


def test_heights_do_not_depend_on_how_much_the_whole_weighs() -> None:
    sizes, sums, _ = made(30, spread=0.5)
    one, two = tree(Leaves.of(sizes, sums)[0]).heights, tree(Leaves.of(sizes * 16, sums * 16)[0]).heights
    assert np.allclose(np.sort(one), np.sort(two), rtol=1e-7)


def test_a_higher_cut_only_joins() -> None:
    leaves, _ = Leaves.of(*made(50, spread=0.7)[:2])
    hierarchy = tree(leaves)
    assert (np.diff(hierarchy.heights) >= 0).all()
    fine, coarse = hierarchy.cut(number=20), hierarchy.cut(number=5)
    assert fine.max() == 19
    assert coarse.max() == 4
    assert all(len(set(coarse[fine == cluster])) == 1 for cluster in range(20))
    assert hierarchy.cut(height=0.0).max() == 49
    assert hierarchy.cut(height=9.0).max() == 0


def test_none_and_one() -> None:
    empty, index = Leaves.of([], np.zeros((0, 4)))
    assert len(index) == 0
    assert merge(empty, height=0.1).number == 0
    assert merge(empty, similarity=0.5).centroids.shape[0] == 0
    one, _ = Leaves.of([3], np.ones((1, 4)))
    assert merge(one, height=0.1).sizes.tolist() == [3]
    assert merge(one, number=5).number == 1


def test_equal_centroids_join_at_any_height_and_zero_vectors_do_no_harm() -> None:
    leaves, _ = Leaves.of([2, 4, 3], np.array([[2.0, 0.0], [4.0, 0.0], [0.0, 0.0]]))
    merged = merge(leaves, height=0.0)
    assert merged.sizes.tolist() == [6, 3]


def test_exactly_one_granularity() -> None:
    leaves, _ = Leaves.of([3], np.ones((1, 4)))
    with pytest.raises(ValueError, match="exactly one"):
        merge(leaves)
    with pytest.raises(ValueError, match="exactly one"):
        merge(leaves, number=1, height=0.2)


def test_keys_are_of_content() -> None:
    row = np.array([1.0, -0.0])
    assert leaf_key(2, row) == leaf_key(2, np.array([1.0, 0.0]))
    assert leaf_key(2, row) != leaf_key(3, row)
    assert topic_key(["b", "a"]) == topic_key(("a", "b", "a"))


def test_identity_grouping_is_an_ordinary_fit() -> None:
    sizes, sums, _ = made(12)
    leaves, _ = Leaves.of(sizes, sums)
    merged = collect(leaves, np.arange(12))
    assert sorted(merged.sizes.tolist(), reverse=True) == merged.sizes.tolist()
    assert np.allclose(merged.similarities, 1.0)


def test_thousands_of_leaves() -> None:
    sizes, sums, true = made(3000, groups=40, d=64)
    leaves, index = Leaves.of(sizes, sums)
    labels = merge(leaves, number=40).labels[index]
    assert len({(int(a), int(b)) for a, b in zip(labels, true, strict=True)}) == 40
