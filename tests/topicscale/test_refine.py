"""Refinement is a map and a sum; assignment depends on a row and the references alone."""

from __future__ import annotations

import numpy as np
import pytest

from topicscale.cluster import unit
from topicscale.refine import (
    ALL,
    BINS,
    BLOCK,
    CORE_DOCUMENTS,
    Sums,
    accumulate,
    assign,
    cores,
    cutoffs,
    histogram,
    local,
    nearest,
    refine,
    rest,
    total,
    update,
)


def rows(n: int, d: int = 48, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, d))).astype(np.float32)


def planted(topics: int, each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centres = unit(random.normal(size=(topics, 32)))
    true = np.tile(np.arange(topics), each)
    return unit(centres[true] + 0.08 * random.normal(size=(len(true), 32))).astype(np.float32), true, centres


def test_a_row_is_assigned_alike_in_any_batch() -> None:
    vectors, references = rows(3 * BLOCK + 17), rows(37, seed=1)
    limits = np.full(37, 0.1, np.float32)
    topics, probabilities = assign(vectors, references, limits)
    order = np.random.default_rng(2).permutation(len(vectors))
    for part in np.array_split(order, 11):
        some, values = assign(vectors[part], references, limits)
        assert (some == topics[part]).all()
        assert (values == probabilities[part]).all()
    one, value = assign(vectors[5:6], references, limits)
    assert (one[0], value[0]) == (topics[5], probabilities[5])


def test_partitions_order_and_number_change_no_bit() -> None:
    vectors, start = rows(2000), rows(12, seed=1)
    order = np.random.default_rng(3).permutation(len(vectors))
    one = refine(local([vectors]), start, min_size=20, outliers=0.05)
    many = refine(local([vectors[part] for part in np.array_split(order, 7)]), start, min_size=20, outliers=0.05)
    assert (one.vectors == many.vectors).all()
    assert (one.cutoffs == many.cutoffs).all()
    assert (one.kept == many.kept).all()


def test_sums_are_exact() -> None:
    vectors, references = rows(999), rows(5, seed=1)
    whole = accumulate(vectors, references)
    parts = total([accumulate(vectors[i : i + 100], references) for i in range(900, -1, -100)])
    assert (whole.counts == parts.counts).all()
    assert (whole.vector_sums == parts.vector_sums).all()
    assert whole.counts.sum() == 999


def test_the_core_is_the_nearest_half_of_a_topic() -> None:
    vectors, true, centres = planted(3, 200)
    kept = np.concatenate([np.flatnonzero(true == 0), np.flatnonzero(true == 1)[:40], np.flatnonzero(true == 2)[:20]])
    found = refine(local([vectors[kept]]), centres, outliers=0.0, core=0.5)
    topics, similarity = assign(vectors[kept], found.vectors, found.cutoffs)
    core = similarity >= found.cores[topics]
    counts = [int(core[topics == topic].sum()) for topic in range(3)]
    assert 100 <= counts[0] <= 103  # documents of the bin that the limit falls into are all of it
    assert CORE_DOCUMENTS <= counts[1] <= CORE_DOCUMENTS + 2
    assert counts[2] == 20
    assert found.cores[2] == ALL
    for topic in range(2):
        mine = topics == topic
        assert similarity[mine & core].min() > similarity[mine & ~core].max()
    assert (refine(local([vectors[kept]]), centres, outliers=0.0).cores == ALL).all()
    assert len(cores(np.zeros((0, BINS), np.int64), 0.5)) == 0


def test_rounds_move_poor_centroids_to_the_topics() -> None:
    vectors, true, centres = planted(6, 100)
    start = unit(centres + 0.15 * np.random.default_rng(1).normal(size=centres.shape))
    found = refine(local([vectors]), start, outliers=0.0)
    topics, _ = assign(vectors, found.vectors, found.cutoffs)
    assert (topics == true).all()
    assert (np.einsum("ij,ij->i", found.vectors, centres) > 0.99).all()


def test_small_topics_dissolve_into_the_nearest() -> None:
    vectors, true, centres = planted(3, 40)
    vectors = np.concatenate([vectors[true < 2], vectors[true == 2][:5]])
    found = refine(local([vectors]), centres, min_size=10, outliers=0.0)
    assert found.kept.tolist() == [0, 1]
    topics, _ = assign(vectors, found.vectors, found.cutoffs)
    assert (topics >= 0).all()
    tiny = refine(local([vectors[:3]]), centres, min_size=10, outliers=0.0)
    assert len(tiny.kept) == 1


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_the_share_of_outliers_is_kept_to_and_the_farthest_go(share: float) -> None:
    vectors, _, centres = planted(4, 250)
    strays = rows(20, 32, seed=9)
    found = refine(local([vectors, strays]), centres, rounds=1, outliers=share)
    topics, probabilities = assign(np.concatenate([vectors, strays]), found.vectors, found.cutoffs)
    left = (topics < 0).mean()
    assert 0.5 * share <= left <= share
    assert (probabilities[topics < 0] == 0).all()
    assert (topics[-20:] < 0).mean() > (topics[:-20] < 0).mean()


def test_no_outliers_when_none_are_wanted_or_all_are_alike() -> None:
    vectors, _, centres = planted(4, 50)
    found = refine(local([vectors]), centres, outliers=0.0)
    assert (assign(vectors, found.vectors, found.cutoffs)[0] >= 0).all()
    same = np.repeat(rows(1), 50, axis=0)
    found = refine(local([same]), same[:1], outliers=0.2)
    assert (assign(same, found.vectors, found.cutoffs)[0] == 0).all()


def test_no_topic_is_cut_below_the_minimum_size() -> None:
    vectors, _, centres = planted(10, 11)
    found = refine(local([vectors]), centres, min_size=10, outliers=0.5)
    topics, _ = assign(vectors, found.vectors, found.cutoffs)
    assert (np.bincount(topics[topics >= 0], minlength=10) >= 10).all()


def test_cutoffs_count_what_assign_leaves_out() -> None:
    vectors, references = rows(5000), rows(9, seed=1)
    bins = histogram(vectors, references)
    assert bins.shape == (9, BINS)
    assert bins.sum() == 5000
    limits = cutoffs(bins, 0.1)
    assert 0.09 <= (assign(vectors, references, limits)[0] < 0).mean() <= 0.1


def test_a_few_documents_very_far_from_a_narrow_topic_are_no_more_than_the_share() -> None:
    cosines = np.concatenate([np.full(9_990, 0.9995), np.full(10, 0.3)])
    vectors = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1).astype(np.float32)
    reference = np.array([[1.0, 0.0]], np.float32)
    limits = cutoffs(histogram(vectors, reference), 0.0005)
    assert (assign(vectors, reference, limits)[0] < 0).sum() <= 5


def test_without_topics_all_are_outliers() -> None:
    nothing = refine(local([rows(5)]), np.zeros((0, 48), np.float32))
    topics, probabilities = assign(rows(5), nothing.vectors, nothing.cutoffs)
    assert topics.tolist() == [-1] * 5
    assert probabilities.sum() == 0


def test_a_topic_without_documents_stays_where_it_was() -> None:
    before = rows(2)
    after = update(Sums(np.array([3, 0]), np.stack([before[0] * 3.0, before[1] * 0.0]).astype(np.float64)), before)
    assert (after[1] == before[1]).all()


def test_equals_go_to_the_first() -> None:
    vector = rows(1)
    assert nearest(vector, np.concatenate([vector, vector]))[0].tolist() == [0]


def test_names_come_first_and_take_what_reaches_them() -> None:
    vectors, references = rows(3 * BLOCK + 17), rows(9, seed=1)
    named = np.array([False, True, False, True, False, False, True, False, False])
    limits = np.where(named, 0.25, 0.1).astype(np.float32)
    topics, probabilities = assign(vectors, references, limits, named=named)
    # as BERTopic does it: the nearest name where it is near enough; what is left goes to the nearest of the others
    cosines = vectors.astype(np.float64) @ references.T.astype(np.float64)
    names = np.flatnonzero(named)
    best = names[cosines[:, names].argmax(axis=1)]
    takes = cosines[np.arange(len(vectors)), best] >= 0.25
    assert 0 < takes.sum() < len(vectors)
    assert (topics[takes] == best[takes]).all()
    left = rest(vectors, references[names], 0.25)
    assert (left == np.flatnonzero(~takes)).all()
    alone, values = assign(vectors[left], references[~named], limits[~named])
    assert (topics[left] == np.where(alone >= 0, np.flatnonzero(~named)[alone], -1)).all()
    assert (probabilities[left] == values).all()
    np.testing.assert_allclose(probabilities[takes], cosines[takes, best[takes]], atol=1e-6)
    # some documents are nearer to a found topic than to the name that takes them
    assert (cosines[takes].argmax(axis=1) != best[takes]).any()


def test_without_names_or_with_names_alone_nothing_is_special() -> None:
    vectors, references = rows(500), rows(6, seed=1)
    limits = np.full(6, 0.2, np.float32)
    plain = assign(vectors, references, limits)
    for named in (np.zeros(6, bool), np.ones(6, bool)):
        topics, probabilities = assign(vectors, references, limits, named=named)
        assert (topics == plain[0]).all()
        assert (probabilities == plain[1]).all()
    assert (rest(vectors, np.zeros((0, 48), np.float32), 0.5) == np.arange(500)).all()
