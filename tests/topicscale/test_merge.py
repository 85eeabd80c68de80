"""Merging is a function of the set of leaves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topicscale.cluster import exact, unit
from topicscale.merge import Leaves, collect, leaf_key, merge, topic_key, tree


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


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), m=st.integers(1, 30), repeat=st.integers(1, 3), height=st.floats(0.01, 1.0))
def test_order_and_repetition_of_leaves_change_nothing(seed: int, m: int, repeat: int, height: float) -> None:
    sizes, sums, _ = made(m, spread=0.5, seed=seed)
    order = np.random.default_rng(seed).permutation(np.tile(np.arange(m), repeat))
    first, second = Leaves.of(sizes, sums)[0], Leaves.of(sizes[order], sums[order])[0]
    assert first.keys == second.keys
    one, two = merge(first, height=height), merge(second, height=height)
    assert one.keys == two.keys
    assert (one.labels == two.labels).all()
    assert (one.sizes == two.sizes).all()
    assert (one.vector_sums == two.vector_sums).all()


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
