"""The pilot finds a granularity that carries over to other numbers of partitions."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score

from topicscale.calibrate import SAMPLE, Pilot, combine, pilot
from topicscale.cluster import cluster, local_min_cluster_size, local_statistics, unit
from topicscale.config import ClusterConfig
from topicscale.merge import Leaves, merge

CONFIG = ClusterConfig()


def planted(topics: int, each: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    centres = unit(random.normal(size=(topics, 48)))
    true = random.permutation(np.repeat(np.arange(topics), each))
    return unit(centres[true] + 0.1 * random.normal(size=(len(true), 48))).astype(np.float32), true


@pytest.mark.parametrize("partitions", [4, 16])
def test_merging_at_the_pilots_height_finds_the_planted_topics(partitions: int) -> None:
    vectors, true = planted(15, 120)
    found = pilot(vectors, CONFIG, partitions=partitions)
    # some of the whole fits find a topic of strays beside the planted ones
    assert 15 <= found.topics <= 17
    # the mean over five whole fits, of which one may find two topics in all (seed 43 on some processors): .87 then, .99 else
    assert found.agreement > 0.85
    size = local_min_cluster_size(CONFIG, 10, documents=len(vectors), partitions=partitions)
    parts = np.array_split(vectors, partitions)
    labels = [cluster(part, CONFIG, min_cluster_size=size, fine=True).labels for part in parts]
    sizes, sums = zip(*[local_statistics(mine, part)[:2] for mine, part in zip(labels, parts, strict=True)], strict=True)
    leaves, leaf = Leaves.of(np.concatenate(sizes), np.concatenate(sums))
    assert len(leaves) > 15
    merged = merge(leaves, height=found.height)
    # at the gap above the planted topics, though most whole fits find one more
    assert merged.number == 15
    before = np.cumsum([0, *map(len, sizes)])[:-1]
    row = np.concatenate([np.where(mine < 0, -1, mine + first) for mine, first in zip(labels, before, strict=True)])
    placed = row >= 0
    assert adjusted_mutual_info_score(true[placed], merged.labels[leaf][row[placed]]) > 0.98


def test_a_smallest_local_topic_that_is_given_is_a_partitions_and_not_a_parts() -> None:
    vectors, _ = planted(12, 100)
    config = ClusterConfig(algorithm="hdbscan", min_cluster_size=200)
    # a partition of 6,000 documents has 500 of a topic, and a part of the pilot 25
    found = pilot(vectors, config, documents=24_000, partitions=4)
    halves = np.array_split(vectors, 2)
    sizes, sums = zip(*[local_statistics(cluster(half, config, min_cluster_size=25).labels, half)[:2] for half in halves], strict=True)
    leaves, _ = Leaves.of(np.concatenate(sizes), np.concatenate(sums))
    assert len(leaves) == 24
    assert merge(leaves, height=found.height).number == 12


def test_a_pilot_repeats_itself_and_has_a_content_id() -> None:
    vectors, _ = planted(6, 60)
    one, two = pilot(vectors, CONFIG), pilot(vectors, CONFIG)
    assert one == two
    assert one.key == two.key
    assert len(one.key) == 32


@pytest.mark.parametrize("n", [0, 1, 2, 5, 20, 60])
def test_few_or_identical_documents_do_not_raise(n: int) -> None:
    random = np.random.default_rng(0)
    found = pilot(unit(random.normal(size=(n, 16))).astype(np.float32), CONFIG, documents=1000, partitions=8)
    assert found.height >= 0
    same = pilot(np.ones((n, 16), np.float32) / 4, CONFIG)
    assert same.height >= 0


def test_combined_height_is_the_weighted_median() -> None:
    pilots = [Pilot(0.1, 0.8, 100, 5, 0.0), Pilot(0.2, 0.8, 1000, 5, 0.0), Pilot(0.9, 0.8, 100, 5, 0.0)]
    assert combine(pilots) == combine(pilots[::-1]) == 0.2
    with pytest.raises(ValueError, match="at least one"):
        combine([])


def test_height_falls_as_sites_join_and_goes_by_the_greater_site() -> None:
    one = Pilot(0.2, 0.8, 1000, 5, 0.0)
    assert combine([one], documents=[50_000]) == pytest.approx(0.2)
    others = [Pilot(0.2, 0.8, 1000, n, 0.0) for n in range(8)]
    assert combine(others, documents=[1000] * 8) == pytest.approx(0.1)
    small = Pilot(0.9, 0.8, 1000, 5, 0.0)
    # samples are of one size; the sites are not
    assert combine([one, small], documents=[99_000, 1000]) == combine([small, one], documents=[1000, 99_000])
    assert combine([one, small], documents=[99_000, 1000]) == pytest.approx(0.2, rel=0.01)
    with pytest.raises(ValueError, match="each pilot"):
        combine([one], documents=[1, 2])


def test_sample_bound() -> None:
    assert 1000 < SAMPLE <= 10_000
