import json
import multiprocessing
import os
import shutil
import signal

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import write_deltalake

from topicscale.config import fingerprint
from topicscale.errors import RequestError, StoreError, StoreLocked, StoreVersionError
from topicscale.store import MARKER, Store, UnitWrite, check_vacant, next_version, says, write_part
from topicscale.tables import CONTRACT_VERSION

A, B = fingerprint("a"), fingerprint("b")


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store", create=True)


def put(store: Store, partition: str, rows: int, fp: str) -> None:
    table = pa.table(
        {
            "doc_id": [f"{partition}-{i}" for i in range(rows)],
            "local_topic": pa.array(range(rows), pa.int32()),
            "probability": pa.array([0.5] * rows, pa.float32()),
        }
    )
    files = write_part(store.uri, "local_assignments", partition, table)
    store.commit("local_assignments", [UnitWrite("cluster", partition, fp, files)])


def done(store: Store, partition: str, fp: str) -> bool:
    return store.done("local_assignments", "cluster", {partition: fp}) == {partition}


def test_a_unit_written_again_replaces_its_rows_and_no_others(store) -> None:
    put(store, "p", 3, A)
    put(store, "q", 5, A)
    put(store, "p", 2, B)
    assert store.read("local_assignments").num_rows == 7
    assert store.read("local_assignments", partitions=["p"])["doc_id"].to_pylist() == ["p-0", "p-1"]
    assert done(store, "p", B)
    assert not done(store, "p", A)
    assert done(store, "q", A)


def test_going_back_to_an_earlier_fingerprint_writes_again(store) -> None:
    for rows, fp in [(3, A), (2, B), (3, A)]:
        assert not done(store, "p", fp)
        put(store, "p", rows, fp)
        assert done(store, "p", fp)
        assert store.read("local_assignments").num_rows == rows


def test_a_unit_without_rows_is_done_all_the_same(store) -> None:
    put(store, "p", 3, A)
    put(store, "p", 0, B)
    assert store.read("local_assignments").num_rows == 0
    assert done(store, "p", B)


def test_removed_partitions_are_not_taken_for_done_when_they_come_back(store) -> None:
    put(store, "p", 3, A)
    put(store, "q", 3, A)
    store.retain("local_assignments", "cluster", ["q"])
    assert set(store.read("local_assignments")["partition_id"].to_pylist()) == {"q"}
    assert not done(store, "p", A)
    assert done(store, "q", A)


def test_a_file_that_was_never_committed_is_not_seen(store) -> None:
    put(store, "p", 3, A)
    write_part(store.uri, "local_assignments", "p", store.read("local_assignments"))
    assert store.read("local_assignments").num_rows == 3


def test_versions_only_grow() -> None:
    version = None
    for fp in [A, B, A, A, B]:
        following = next_version(version, fp)
        assert version is None or following > version
        assert says(following, fp)
        version = following
    assert not says(None, A)


def test_many_units_are_one_commit(store) -> None:
    before = store.version("local_assignments")
    writes = [UnitWrite("cluster", f"p{i}", A, ()) for i in range(50)]
    store.commit("local_assignments", writes)
    assert store.version("local_assignments") == before + 1
    assert len(store.done("local_assignments", "cluster", {f"p{i}": A for i in range(50)})) == 50


def test_a_generation_pins_every_table(store) -> None:
    put(store, "p", 3, A)
    first = store.publish(configuration={"a": 1}, summary={}, unit_fingerprint=A)
    assert store.publish(configuration={"a": 1}, summary={}, unit_fingerprint=A).generation == first.generation
    put(store, "p", 1, B)
    second = store.publish(configuration={}, summary={}, unit_fingerprint=B)
    assert (first.generation, second.generation) == (1, 2)
    reader = Store(store.uri)
    reader.pin(1)
    assert reader.read("local_assignments").num_rows == 3
    write_deltalake(store.table_path("documents"), pa.table({"doc_id": ["later"]}))
    with pytest.raises(StoreError, match=r"Generation 1 .* has no table 'documents'"):
        reader.read("documents")
    with pytest.raises(StoreError, match=r"Generation 1 .* has no table 'documents'"):
        next(reader.read_batches("documents"))
    reader.pin()
    assert reader.read("local_assignments").num_rows == 1
    with pytest.raises(StoreError, match=r"no generation 9\. It has 1, 2"):
        reader.pin(9)


def test_a_generation_that_was_forgotten_while_it_was_open_says_so(store) -> None:
    put(store, "p", 3, A)
    store.publish(configuration={}, summary={}, unit_fingerprint=A)
    reader = Store(store.uri)
    reader.pin()
    put(store, "p", 1, B)
    store.publish(configuration={}, summary={}, unit_fingerprint=B)
    store.forget_history()
    for read in (
        lambda: reader.read("local_assignments"),
        lambda: list(reader.read_batches("local_assignments")),
        lambda: reader.select("local_assignments", ["doc_id"], pc.field("local_topic") >= 0),
    ):
        with pytest.raises(StoreError, match=r"Files of generation 1 of .* were removed.* Load the newest"):
            read()
    reader.pin()
    assert reader.read("local_assignments").num_rows == 1


def test_a_store_without_a_finished_run_says_so(store) -> None:
    with pytest.raises(StoreError, match="no finished run"):
        store.pin()


def test_what_is_no_store_is_refused(tmp_path) -> None:
    with pytest.raises(StoreError, match="no topicscale store"):
        Store(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(StoreError, match="not empty"):
        Store(tmp_path / "full", create=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        Store(tmp_path / "file", create=True)
    with pytest.raises(RequestError, match="must be a local path or begin with file://, s3://"):
        Store("ftp://host/store", create=True)


@pytest.mark.parametrize("name", ["documents", "models", "topics"])
def test_files_of_ones_own_in_a_folder_with_a_tables_name_are_let_be(name, tmp_path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "letter.txt").write_text("dear")
    with pytest.raises(StoreError, match="not empty"):
        Store(tmp_path, create=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_table_of_ones_own_is_not_taken_for_the_documents(tmp_path) -> None:
    write_deltalake(tmp_path / "documents", pa.table({"text": ["mine"]}))
    with pytest.raises(StoreError, match="not empty"):
        check_vacant(tmp_path)


@pytest.mark.parametrize("name", ["Q3%20reports", "data[1]", "this^that", "a|b", "a\\b"])
def test_an_address_that_libraries_read_in_different_ways_is_refused(name, tmp_path) -> None:
    with pytest.raises(StoreError, match=r"must hold no .* Rename the folder"):
        Store(tmp_path / name, create=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["Q3 reports", "100%", "50% off", "C#", "a:b"])
def test_other_odd_names_are_fine(name, tmp_path) -> None:
    store = Store(tmp_path / name, create=True)
    put(store, "p", 2, A)
    assert Store(tmp_path / name).read("local_assignments").num_rows == 2


def test_a_store_of_another_contract_is_refused_by_both_numbers(store) -> None:
    (store.path / MARKER).write_text(json.dumps({"contract": 99}))
    with pytest.raises(StoreVersionError, match=rf"contract 99.*contract {CONTRACT_VERSION}\b"):
        Store(store.uri)


def test_a_store_whose_making_was_cut_short_is_made_again(store) -> None:
    (store.path / MARKER).unlink()
    (store.path / "_topicscale.4711").write_text("{")  # killed between writing the marker and renaming it
    (store.path / "_lock").touch()
    shutil.rmtree(store.path / "topics" / "_delta_log")
    assert Store(store.uri, create=True).read("topics").num_rows == 0


def test_two_runs_at_once(store) -> None:
    with store.lock("first"), pytest.raises(StoreLocked, match="run first"), Store(store.uri).lock("second"):
        pass
    with store.lock("third"):
        pass


def _hold(uri: str, ready) -> None:
    with Store(uri).lock("victim"):
        ready.set()
        signal.pause()


def test_a_killed_run_lets_go_of_the_store(store) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(store.uri, ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(StoreLocked, match="run victim"), store.lock("other"):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    with store.lock("other"):
        pass
