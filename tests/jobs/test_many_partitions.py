"""A driver over hundreds of partitions, killed and started again: `benchmarks/partitions.py` in small."""

from __future__ import annotations

from collections import Counter

import pytest
from deltalake import DeltaTable

from benchmarks.partitions import ROWS, simulate
from topicscale.config import fingerprint
from topicscale.store import Store, UnitWrite, says, unit_id, write_part

PARTITIONS, KILLED = 300, 100
TABLES = {"embeddings": "embed", "local_assignments": "cluster", "local_topics": "cluster", "assignments": "assign"}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("partitions")
    runs = simulate(folder, partitions=PARTITIONS, workers=2, width=8, kills=[("embeddings", KILLED)])
    return Store(folder / "store"), runs, folder


def test_every_partition_is_done_once_although_driver_and_workers_were_killed(simulated) -> None:
    store, runs, folder = simulated
    assert [rows[-1]["event"] for rows in runs] != ["end", "end"]
    end = next(row for row in runs[-1] if row["event"] == "end")
    assert (end["documents"], end["failed"]) == (PARTITIONS * ROWS, {})
    assert {path.name.split("-")[0] for path in (folder / "marks").iterdir()} == {"embed", "cluster", "assign"}  # workers died
    for table in ("embeddings", "local_assignments", "assignments"):
        found = Counter(store.read(table, ["partition_id"])["partition_id"].to_pylist())
        assert set(found.values()) == {ROWS}, table
        assert len(found) == PARTITIONS, table


def test_what_was_committed_before_the_kill_is_not_done_again(simulated) -> None:
    store, _, _ = simulated
    log = store.read("runs").to_pylist()
    last = max(row["run_id"] for row in log)
    again = [row["partition_id"] for row in log if (row["run_id"], row["stage"], row["status"]) == (last, "embed", "done")]
    assert len(set(again)) == len(again) <= PARTITIONS - KILLED


def test_units_are_committed_in_batches(simulated) -> None:
    store, _, _ = simulated
    for table, stage in TABLES.items():
        assert len(store.unit_versions(table)) == PARTITIONS, stage
        assert store.table(table).version() < PARTITIONS / 5, table


def test_a_long_log_is_read_from_a_checkpoint(tmp_path) -> None:
    store = Store(tmp_path / "store", create=True)
    import pyarrow as pa

    rows = pa.table({"doc_id": ["d"], "topic_id": [0], "probability": [1.0]})

    def write(pid: str, what: str) -> None:
        store.commit("assignments", [UnitWrite("assign", pid, fingerprint(what), write_part(store.uri, "assignments", pid, rows))])

    for number in range(55):
        write(f"p{number:02d}", "one")
    log = store.path / "assignments" / "_delta_log"
    assert list(log.glob("*.checkpoint.parquet"))
    write("p03", "other")
    assert store.table("assignments").to_pyarrow_dataset().count_rows() == 55
    # without the commits that the checkpoint holds, as after a clean-up of the log
    for number in range(40):
        (log / f"{number:020d}.json").unlink()
    handle = DeltaTable(str(log.parent))
    for reader in (store, Store(store.path)):
        versions = reader.unit_versions("assignments")
        assert {app: handle.transaction_version(app) for app in versions} == dict(versions)
        assert says(versions[unit_id("assign", "p03")], fingerprint("other"))
        assert reader.done("assignments", "assign", {f"p{n:02d}": fingerprint("one") for n in range(60)}) == {
            f"p{n:02d}" for n in range(55) if n != 3
        }
    # an earlier version is told from what led to it
    then = store.unit_versions("assignments", version=52)
    assert len(then) == 52
    assert says(then[unit_id("assign", "p03")], fingerprint("one"))


def test_a_partition_is_read_from_its_own_files_alone(tmp_path) -> None:
    import pyarrow as pa

    from ray_actors.parts import read_partition

    store = Store(tmp_path / "store", create=True)
    for pid in ("a", "b"):
        rows = pa.table({"doc_id": [f"{pid}1", f"{pid}2"], "topic_id": [0, 1], "probability": [1.0, 0.5]})
        store.commit("assignments", [UnitWrite("assign", pid, fingerprint(pid), write_part(store.uri, "assignments", pid, rows))])
    for path in store.path.glob("assignments/partition_id=b/*.parquet"):
        path.write_bytes(b"no parquet")
    version = store.table("assignments").version()
    assert read_partition(store.uri, "assignments", "a", ["doc_id"], version)["doc_id"].to_pylist() == ["a1", "a2"]
    assert store.read("assignments", ["doc_id"], partitions=["a"])["doc_id"].to_pylist() == ["a1", "a2"]
