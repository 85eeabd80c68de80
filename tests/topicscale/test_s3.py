"""Stores and inputs on a real S3 server: what delta-rs and the driver do there. Spark's part is in tests/jobs/test_s3.py."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from unittest.mock import Mock

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from spark.tables import replace_rows, replace_table
from tests.s3_server import BUCKET, Proxy, reached
from topicscale import lease, registry, storage
from topicscale.config import Config, InputConfig, StorageConfig, fingerprint, load
from topicscale.documents import staged
from topicscale.errors import InputError, RequestError, StoreError, StoreLocked
from topicscale.files import Folder
from topicscale.inputs import inspect
from topicscale.ledger import FOLDER, Ledger, at_hand
from topicscale.store import PENDING, Store, UnitWrite, write_part
from topicscale.tables import TABLES


@pytest.fixture(scope="module")
def endpoint():
    """The address of a server, which this process reaches object stores by."""
    with reached() as address:
        yield address


@pytest.fixture
def uri(endpoint, request) -> str:
    """The address of a folder for one test."""
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').strip(']')}"


def rows(partition: str, number: int) -> pa.Table:
    return pa.table(
        {
            "doc_id": [f"{partition}-{i}" for i in range(number)],
            "local_topic": pa.array(range(number), pa.int32()),
            "probability": pa.array([0.5] * number, pa.float32()),
        }
    )


def put(store: Store, partition: str, number: int, unit: str) -> None:
    files = write_part(store.uri, "local_assignments", partition, rows(partition, number))
    store.commit("local_assignments", [UnitWrite("cluster", partition, fingerprint(unit), files)])


def test_units_are_replaced_as_in_a_local_store(uri) -> None:
    store = Store(uri, create=True)
    put(store, "p", 3, "a")
    put(store, "q", 5, "a")
    put(store, "p", 2, "b")
    again = Store(uri + "/")
    assert again.site_id == store.site_id
    assert again.read("local_assignments").num_rows == 7
    assert again.read("local_assignments", partitions=["p"])["doc_id"].to_pylist() == ["p-0", "p-1"]
    assert again.done("local_assignments", "cluster", {"p": fingerprint("b"), "q": fingerprint("b")}) == {"p"}
    again.publish(configuration={}, summary={}, unit_fingerprint=fingerprint("g"))
    assert Store(uri).pin().versions["local_assignments"] == 3


def test_what_is_no_store_is_said(uri) -> None:
    with pytest.raises(StoreError, match="There is no topicscale store at 's3://"):
        Store(uri)
    Folder(uri).write("other.txt", b"theirs")
    with pytest.raises(StoreError, match="not empty"):
        Store(uri, create=True)
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/x.*cannot be made"):
        Store("s3://no-such-bucket/x", create=True)


def test_a_server_that_does_not_answer_is_told_of(uri, monkeypatch) -> None:
    monkeypatch.setattr(storage, "_ATTEMPTS", 1)
    before = storage.settings()
    storage.use(StorageConfig(endpoint="http://127.0.0.1:9"))
    try:
        with pytest.raises(StoreError, match=r"cannot be reached"):
            Store(uri)
    finally:
        storage.use(before)


def test_small_files_are_there_whole_or_not_at_all(uri) -> None:
    files = Folder(uri)
    assert files.read("a/b.json") is None
    files.write("a/b.json", b"1")
    files.write("a/b.json", b"22")
    files.write("a/c/d.json", b"3")
    assert files.read("a/b.json") == b"22"
    assert [file.name for file in files.files("a")] == ["a/b.json"]
    assert [file.name for file in files.files("a", deep=True)] == ["a/b.json", "a/c/d.json"]
    files.remove("a/b.json")
    files.remove("a/b.json")
    files.clear("a")
    assert files.files("a", deep=True) == []


# -- two writers -------------------------------------------------------------------------------------------------------


def _append(uri: str, endpoint: str, writer: int, number: int, failures: multiprocessing.Queue) -> None:
    storage.use(StorageConfig(endpoint=endpoint))
    failed = []
    for i in range(number):
        try:
            write_deltalake(uri, pa.table({"row": [writer * 1000 + i]}), mode="append", storage_options=storage.delta_options(uri))
        except Exception:
            failed.append(writer * 1000 + i)
    failures.put(failed)


def test_no_commit_of_two_racing_writers_is_lost(uri, endpoint) -> None:
    options = storage.delta_options(uri)
    write_deltalake(uri, pa.table({"row": [-1]}), storage_options=options)
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    writers = [context.Process(target=_append, args=(uri, endpoint, writer, 8, failures)) for writer in (1, 2)]
    for writer in writers:
        writer.start()
    failed = {row for _ in writers for row in failures.get(timeout=300)}
    for writer in writers:
        writer.join(60)
    table = DeltaTable(uri, storage_options=options)
    landed = set(table.to_pyarrow_table()["row"].to_pylist()) - {-1}
    wanted = {writer * 1000 + i for writer in (1, 2) for i in range(8)}
    # every write is there, or its writer was told that it is not
    assert landed == wanted - failed
    assert table.version() == len(landed)


def test_a_commit_that_another_came_before_is_refused_or_follows_it(uri) -> None:
    store = Store(uri, create=True)
    one, other = store.table("topics"), store.table("topics")
    table = store.table("topics").to_pyarrow_table()
    write_deltalake(one, table, mode="append")
    write_deltalake(other, table, mode="append")
    assert store.version("topics") == 2


# -- the lock ----------------------------------------------------------------------------------------------------------


def test_a_store_in_use_names_its_holder(uri) -> None:
    one, other = Store(uri, create=True), Store(uri)
    with one.lock("first"):
        with pytest.raises(StoreLocked, match=rf"run first \(process {os.getpid()} on .*sign of life"), other.lock("second"):
            pass
        put(one, "p", 1, "a")
    with other.lock("second"):
        put(other, "p", 2, "b")


def test_of_many_that_want_the_lock_at_once_one_has_it(uri) -> None:
    Store(uri, create=True)
    start, held, refused = threading.Barrier(4), [], []
    done = threading.Event()

    def want(number: int) -> None:
        store = Store(uri)
        start.wait()
        try:
            with store.lock(f"run-{number}"):
                held.append(number)
                done.wait(60)
        except StoreLocked:
            refused.append(number)
        if len(refused) == 3:
            done.set()

    threads = [threading.Thread(target=want, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    assert len(refused) == 3


HOLD = """
import sys, time
from topicscale import storage
from topicscale.config import StorageConfig
from topicscale.store import Store
storage.use(StorageConfig(endpoint=sys.argv[2]))
with Store(sys.argv[1]).lock("killed"):
    print("held", flush=True)
    time.sleep(600)
"""


def _killed_holder(uri: str, endpoint: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, uri, endpoint], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_the_lock_of_a_process_that_was_killed_here_is_free_at_once(uri, endpoint) -> None:
    store = Store(uri, create=True)
    _killed_holder(uri, endpoint)
    with store.lock("next"):
        pass


def test_the_lock_of_a_machine_that_is_gone_is_free_after_a_while(uri, endpoint, monkeypatch) -> None:
    store = Store(uri, create=True)
    _killed_holder(uri, endpoint)
    monkeypatch.setattr(lease, "_machine", lambda: "another")
    with pytest.raises(StoreLocked, match=r"run killed .*free 60 s after"), store.lock("next"):
        pass
    monkeypatch.setattr(lease, "LEASE", 1.0)
    time.sleep(2.5)  # the server tells times to the second
    with store.lock("next"):
        pass


@pytest.fixture
def asleep(monkeypatch) -> None:
    """Holders of locks hang: none gives another sign of life, and a second later its lock may be taken over."""
    monkeypatch.setattr(lease, "LEASE", 1.0)
    monkeypatch.setattr(lease, "BEAT", 1000.0)


def test_a_lock_that_was_taken_over_is_noticed(uri, asleep) -> None:
    one, other = Store(uri, create=True), Store(uri)
    with one.lock("hanging"):
        time.sleep(2.5)
        with other.lock("next"), pytest.raises(StoreError, match="taken over"):
            put(one, "p", 1, "a")


def test_who_slept_does_not_go_on_after_another_was_there(uri, asleep) -> None:
    """Another has come and gone: what was read before it is not what is there now."""
    one, other = Store(uri, create=True), Store(uri)
    with one.lock("sleeping"):
        time.sleep(2.5)
        with other.lock("next"):
            pass
        with pytest.raises(StoreError, match=r"held by run next.* meanwhile"):
            put(one, "p", 1, "a")


def test_a_take_over_is_noticed_whatever_object_writes_and_however_the_server_answers(uri, asleep, monkeypatch) -> None:
    one, other = Store(uri, create=True), Store(uri)
    with one.lock("sleeping"):
        time.sleep(2.5)
        with other.lock("next"):
            pass
        with monkeypatch.context() as failing:
            failing.setattr(lease, "DeltaTable", lambda *_, **__: (_ for _ in ()).throw(DeltaError("no connection")))
            with pytest.raises(StoreError, match="may have been taken over"):
                put(one, "p", 1, "a")
        # the beat arrived, and says nothing of who holds the lock
        with pytest.raises(StoreError, match=r"held by run next.* meanwhile"):
            put(Store(uri), "p", 1, "a")
        frame = Mock()
        with pytest.raises(StoreError, match="taken over"):
            replace_rows(frame, uri, "documents", where="true")
        with pytest.raises(StoreError, match="taken over"):
            replace_table(frame, uri, "documents")
        assert not [call for call in frame.mock_calls if call[0].endswith("save")]


def test_a_beat_that_arrives_late_hides_no_take_over(uri, monkeypatch) -> None:
    """It was begun in time, and is there after another took the lock: a put that was retried for long."""
    monkeypatch.setattr(lease, "LEASE", 5.0)
    monkeypatch.setattr(lease, "BEAT", 3.5)
    one, other = Store(uri, create=True), Store(uri)
    taken, arrived, write = threading.Event(), threading.Event(), one.files.write

    def late(name: str, content: bytes) -> None:
        taken.wait(60)
        write(name, content)
        arrived.set()

    with one.lock("slow"):
        monkeypatch.setattr(one.files, "write", late)
        time.sleep(7)  # the server tells times to the second
        with other.lock("next"):
            taken.set()
            assert arrived.wait(60)
            with pytest.raises(StoreError, match="taken over"):
                put(one, "p", 1, "a")


def test_who_slept_alone_goes_on(uri, asleep) -> None:
    one = Store(uri, create=True)
    with one.lock("sleeping"):
        time.sleep(2.5)
        put(one, "p", 1, "a")


def test_beats_keep_the_lock(uri, monkeypatch) -> None:
    monkeypatch.setattr(lease, "LEASE", 4.0)
    monkeypatch.setattr(lease, "BEAT", 0.5)
    one, other = Store(uri, create=True), Store(uri)
    with one.lock("first"):
        time.sleep(6)
        with pytest.raises(StoreLocked), other.lock("second"):
            pass


def test_a_folder_that_a_glob_fits_brings_its_files(uri) -> None:
    store = Store(uri, create=True)
    for name in ("in/month=01/a.csv", "in/month=02/b.csv", "in/month=02/_SUCCESS", "in/year/c.csv", "in/_d.csv"):
        store.files.write(name, b"text\none\n")
    found = [path.removeprefix(f"{store.uri}/in/") for path in inspect(InputConfig(paths=(f"{store.uri}/in/month=*",))).paths]
    assert found == ["month=01/a.csv", "month=02/b.csv"]
    with pytest.raises(InputError, match="hidden"):
        inspect(InputConfig(paths=(f"{store.uri}/in/_d.csv",)))


def test_trained_models_of_a_store_that_was_copied_are_told_and_not_loaded(uri) -> None:
    store = Store(uri, create=True)
    store.create_table("models")
    told = dict.fromkeys(("steps", "measures", "configuration", "data"), "{}")
    row = {"name": "mine", "revision": "r1", "status": "published", "verdict": "", "base": "b", "at": datetime.now(UTC), **told}
    store.append("models", pa.Table.from_pylist([row], schema=TABLES["models"].schema))
    assert registry.located(Config(), store) == Config()
    assert [model.name for model in registry.trained(store)] == ["mine"]
    with pytest.raises(RequestError, match="object store"):
        registry.located(load(overrides=["embedding.model=mine"]), store)


def test_a_store_that_forgets_takes_no_other_run(uri) -> None:
    store = Store(uri, create=True)
    store.files.write(PENDING, json.dumps(["d1"]).encode())
    with pytest.raises(StoreError, match="topicscale forget"), store.lock("run"):
        pass


# -- a server that fails -----------------------------------------------------------------------------------------------


def test_a_server_that_fails_for_a_moment_is_asked_again(uri, endpoint) -> None:
    proxy = Proxy(endpoint)
    before = storage.settings()
    storage.use(StorageConfig(endpoint=proxy.address))
    try:
        store = Store(uri, create=True)
        proxy.set(failing=1.5)
        put(store, "p", 3, "a")
        assert proxy.refused() > 0
        proxy.set(failing=1.5)
        store.files.write("note", b"1")
        proxy.set(delay=0.1)
        assert store.read("local_assignments").num_rows == 3
        assert store.files.read("note") == b"1"
    finally:
        storage.use(before)
        proxy.close()


# -- inputs ------------------------------------------------------------------------------------------------------------


def test_files_folders_and_globs_are_found_with_their_columns(uri) -> None:
    files = Folder(uri)
    for name in ("a.csv", "deep/b.csv", "deep/_hidden.csv"):
        files.write(name, b"id,text\n1,one two\n2,three\n")
    files.write("other.jsonl", b'{"text": "x"}\n')
    plan = inspect(InputConfig(paths=(f"{uri}/a.csv",)))
    assert (plan.format, [c.name for c in plan.columns], plan.rows) == ("csv", ["id", "text"], 2)
    assert inspect(InputConfig(paths=(f"{uri}/deep",))).paths == (f"{uri}/deep/b.csv",)
    assert inspect(InputConfig(paths=(f"{uri}/**/*.csv",))).paths == (f"{uri}/a.csv", f"{uri}/deep/b.csv")
    assert inspect(InputConfig(paths=(f"{uri}/[ab].cs?",))).paths == (f"{uri}/a.csv",)
    assert inspect(InputConfig(paths=(f"{uri}/*.jsonl",))).format == "jsonl"


def test_parquet_and_delta_are_looked_into(uri) -> None:
    import pyarrow.parquet as pq

    table = pa.table({"text": ["one", "two"], "vector": [[1.0, 2.0], [3.0, 4.0]]})
    with Folder(uri).sink("a.parquet") as sink:
        pq.write_table(table, sink)
    plan = inspect(InputConfig(paths=(f"{uri}/a.parquet",), embedding_column="vector"))
    assert (plan.rows, plan.dimension) == (2, 2)
    write_deltalake(f"{uri}/table", table, storage_options=storage.delta_options(uri))
    plan = inspect(InputConfig(paths=(f"{uri}/table",)))
    assert (plan.format, plan.version, [c.name for c in plan.columns]) == ("delta", 0, ["text", "vector"])
    with pytest.raises(InputError, match=r"no Delta table\. Got 's3://.*/table', which is one"):
        inspect(InputConfig(paths=(uri,)))


def test_documents_in_memory_are_put_beside_the_tables_for_as_long_as_they_are_read(uri) -> None:
    with staged(["one", "two"], None, InputConfig(), uri) as (source, _):
        assert source.paths[0].startswith(f"{uri}/")
        assert inspect(source).rows == 2
        with pytest.raises(StoreLocked), staged(["one", "two"], None, InputConfig(), uri):
            pass
        assert inspect(source).rows == 2
    assert Folder(uri).files("_work", deep=True) == []


def test_an_object_that_changed_changes_the_fingerprint(uri) -> None:
    files = Folder(uri)
    files.write("a.csv", b"id,text\n1,one\n")
    config = InputConfig(paths=(f"{uri}/a.csv",))
    before = inspect(config).fingerprint
    assert inspect(config).fingerprint == before
    time.sleep(1.1)  # of the same length: only the time tells, to the second
    files.write("a.csv", b"id,text\n1,two\n")
    assert inspect(config).fingerprint != before


def test_what_is_missing_or_wrong_is_said_as_of_local_files(uri) -> None:
    files = Folder(uri)
    files.write("empty.csv", b"")
    files.write("a.csv", b"id,text\n1,one\n")
    for path, override, match in (
        ("none.csv", {}, "There is no input"),
        ("*.tsv", {}, "There is no input"),
        ("empty.csv", {}, "empty"),
        ("a.csv", {"text_column": ("body",)}, "input.text_column names 'body'"),
    ):
        with pytest.raises(InputError, match=match):
            inspect(InputConfig(paths=(f"{uri}/{path}",), **override))
    with pytest.raises(InputError, match="no-such-bucket"):
        inspect(InputConfig(paths=("s3://no-such-bucket/a.csv",)))


# -- the record of exports ---------------------------------------------------------------------------------------------


def test_the_record_of_exports_is_kept_and_half_a_record_is_none(uri) -> None:
    import numpy as np

    from topicscale.differencing import Members

    store = Store(uri, create=True)
    with at_hand(store.files) as (folder, keep):
        ledger = Ledger(folder)
        secret = ledger.hashes(["x"])
        (ledger.begin()).mkdir()
        none = Members(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64))
        ledger.record(documents=none, members=none, keys=["k"], generation=1, minimum=5, site="here")
        keep()
    store.files.write(f"{FOLDER}/2/documents.parquet", b"cut short")
    with at_hand(store.files) as (folder, _):
        again = Ledger(folder)
        assert [entry.number for entry in again.entries] == [1]
        assert again.hashes(["x"]) == secret
    assert not folder.exists()
    # nor does it become a part of the next record of that number
    assert not [file.name for file in store.files.files(f"{FOLDER}/2", deep=True)]


def test_an_export_whose_lock_was_lost_is_not_recorded(uri, asleep) -> None:
    """Another may have left meanwhile: both records would have one number."""
    import numpy as np

    from topicscale.differencing import Members

    one, other = Store(uri, create=True), Store(uri)
    none = Members(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64))
    with one.lock("export"), at_hand(one.files) as (folder, keep):
        ledger = Ledger(folder)
        ledger.begin().mkdir()
        ledger.record(documents=none, members=none, keys=["k"], generation=1, minimum=5, site="here")
        time.sleep(2.5)
        with other.lock("next"), pytest.raises(StoreError, match="taken over"):
            keep()
    assert not [file.name for file in one.files.files(FOLDER, deep=True)]
