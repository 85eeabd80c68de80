"""Partitions asked for together give what they give one by one."""

from __future__ import annotations

from functools import reduce
from operator import add
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from jobs.job import GROUPS, Job
from jobs.progress import Ui
from ray_actors.parts import to_list_array
from ray_actors.refine import apply, nearer, nearest, summarise
from topicscale.cluster import unit
from topicscale.config import Config
from topicscale.store import Store, UnitWrite, write_part

PARTITIONS = [f"p{number}" for number in range(5)]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    store = Store(tmp_path_factory.mktemp("groups") / "store", create=True)
    random = np.random.default_rng(0)
    for pid in PARTITIONS:
        vectors = unit(random.normal(size=(30, 4))).astype(np.float32)
        ids = [f"{pid}-{row:02d}" for row in range(30)]
        tables = {
            # texts that several partitions hold, at equal probabilities
            "embeddings": pa.table(
                {"doc_id": ids, "text_hash": [f"t{row % 20}" for row in range(30)], "space": ["s"] * 30, "vector": to_list_array(vectors)}
            ),
            "assignments": pa.table(
                {
                    "doc_id": ids,
                    "topic_id": pa.array(random.integers(-1, 4, 30), pa.int32()),
                    "probability": pa.array(random.integers(1, 4, 30) / 4, pa.float32()),
                }
            ),
        }
        for name, rows in tables.items():
            store.commit(name, [UnitWrite(name, pid, "0" * 32, write_part(store.uri, name, pid, rows))])
    return store


@pytest.mark.parametrize("groups", [[PARTITIONS], [PARTITIONS[3:], PARTITIONS[:3]], [[pid] for pid in reversed(PARTITIONS)]])
def test_grouping_changes_no_bit(store, groups) -> None:
    at = {"embeddings_version": store.version("embeddings"), "assignments_version": store.version("assignments")}
    centroids = unit(np.random.default_rng(1).normal(size=(3, 4))).astype(np.float32)

    def statistics(of: list[list[str]]):
        steps = {"store_uri": store.uri, "embeddings_version": at["embeddings_version"], "arguments": (centroids,)}
        passes = [
            reduce(add, [apply(step=step, partition_ids=group, **steps) for group in of]) for step in ("accumulate", "histogram")
        ]  # fmt: skip
        asked = {"number": 4, "representatives": 3, "store_uri": store.uri, **at}
        found = [summarise(partition_ids=group, **asked) for group in of]
        best = reduce(lambda one, other: nearer(one, other, 3), [near for _, near in found])
        assert best == reduce(lambda one, other: nearer(one, other, 3), [nearest(partition_ids=group, **asked) for group in of])
        return passes, reduce(add, [sums for sums, _ in found]), best

    (moved, bins), sums, best = statistics(groups)
    (moved_one, bins_one), sums_one, best_one = statistics([[pid] for pid in PARTITIONS])
    assert moved.vector_sums.tobytes() == moved_one.vector_sums.tobytes()
    assert sums.vector_sums.tobytes() == sums_one.vector_sums.tobytes()
    assert (bins == bins_one).all()
    assert best == best_one
    assert all(len({candidate[2] for candidate in topic}) == len(topic) == 3 for topic in best)


@pytest.mark.parametrize(("partitions", "workers"), [(1, 4), (40, 2), (1000, 3)])
def test_groups_hold_every_partition_once_and_are_about_equal(store, partitions, workers) -> None:
    job = Job(store, Config(), "run", Ui("quiet"), SimpleNamespace(pool=SimpleNamespace(layout=SimpleNamespace(actors=workers))))
    rows = {f"p{number:04d}": 1 + number % 100 for number in range(partitions)}
    groups = job.groups(rows, rows)
    assert sorted(pid for group in groups.values() for pid in group) == sorted(rows)
    assert len(groups) == min(partitions, GROUPS * workers)
    sizes = [sum(rows[pid] for pid in group) for group in groups.values()]
    assert max(sizes) - min(sizes) <= 100
