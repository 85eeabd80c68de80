"""The whole job with store and input on a real S3 server: Spark and delta-rs each write their own tables of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import cli
from jobs.run import run
from spark import jars
from tests import corpus
from tests.jobs.compare import contents
from tests.s3_server import BUCKET, SECRET, Proxy, reached
from topicscale import storage
from topicscale.config import StorageConfig, load
from topicscale.errors import ResourceError
from topicscale.files import Folder
from topicscale.store import MARKER, Store
from topicscale.tables import TABLES

LIMIT = 500.0
"""Seconds within which a job ends."""
STORE = f"s3://{BUCKET}/stores/one"
INPUT = f"s3://{BUCKET}/in/corpus.csv"


def arguments(source: str, store: str) -> list[str]:
    basic = ["--id-column", "id", "--partitions", "3", "--min-topic-size", "5", "--set", "embedding.batch_tokens=256"]
    return ["--input", source, "--store", store, "--json", *basic]


def command(source: str, store: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "jobs.run", *arguments(source, store), *options]


def start(options: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(options, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)


def wait_for(reached: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + LIMIT
    while not reached():
        assert process.poll() is None, "the job ended too early"
        assert time.monotonic() < until, "the job did not come so far"
        time.sleep(0.2)


def rows_of(table: str) -> int:
    if not Folder(STORE).exists(MARKER):
        return 0
    store = Store(STORE)
    return store.table(table).to_pyarrow_dataset().count_rows() if store.has(table) else 0


@pytest.fixture(scope="module")
def local(tmp_path_factory, spark, ray_layout) -> dict[str, list[str]]:
    """The tables of an undisturbed run into a local store."""
    folder = tmp_path_factory.mktemp("local")
    source = corpus.write_csv(folder / "corpus.csv", corpus.rows(each=30))
    assert cli.main(["run", *arguments(str(source), str(folder / "store"))]) == 0
    return contents(str(folder / "store"))


@pytest.fixture(scope="module")
def endpoint(local, tmp_path_factory):
    """The address of a server with the corpus, which this process reaches object stores by."""
    jars.check(["s3"])
    with reached() as address:
        source = corpus.write_csv(tmp_path_factory.mktemp("input") / "corpus.csv", corpus.rows(each=30))
        Folder(INPUT).write("", source.read_bytes())
        yield address


@pytest.fixture(scope="module")
def disturbed(endpoint, tmp_path_factory) -> tuple[str, dict[str, object]]:
    """The log of a run that met a failing, then slow server and was killed half way, with what its rerun answered."""
    log = tmp_path_factory.mktemp("log") / "log"
    proxy = Proxy(endpoint)
    process = None
    try:
        process = start(command(INPUT, STORE, "--set", f"storage.endpoint={proxy.address}"), log)
        wait_for(lambda: Folder(STORE).exists("documents/_delta_log"), process)
        proxy.set(failing=3, delay=0.02)
        wait_for(lambda: rows_of("embeddings") > 0, process)
        assert proxy.refused() > 0
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        proxy.close()
    again = subprocess.run(
        command(INPUT, STORE, "--set", f"storage.endpoint={endpoint}"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )
    assert again.returncode == 0, again.stderr.decode()
    return log.read_text() + again.stderr.decode(), json.loads(again.stdout)


def test_the_tables_are_those_of_a_local_run(disturbed, local) -> None:
    assert contents(STORE) == local


def test_what_was_done_before_the_kill_is_not_done_again(disturbed) -> None:
    _, result = disturbed
    stages = {row["stage"] for row in Store(STORE).read("runs").to_pylist() if row["run_id"] == result["run_id"]}
    assert "ingest" not in stages
    assert "cluster" in stages


def test_each_engine_wrote_its_own_tables(disturbed) -> None:
    for name, spec in TABLES.items():
        logs = [file for file in Folder(STORE).files(f"{name}/_delta_log") if file.name.endswith(".json")]
        content = b"\n".join(Folder(STORE).read(file.name) or b"" for file in logs)
        wrote = {json.loads(line).get("commitInfo", {}).get("engineInfo", "")[:5] for line in content.splitlines() if b"commitInfo" in line}
        assert wrote <= ({"Apach"} if spec.writer == "spark" else {"delta", ""}), name


def test_the_secret_is_nowhere(disturbed) -> None:
    log, _ = disturbed
    assert SECRET not in log
    for file in Folder(STORE).files(deep=True):
        assert SECRET.encode() not in (Folder(STORE).read(file.name) or b""), file.name
    assert Store(STORE).snapshots()[-1].configuration["storage"]["endpoint"].startswith("http://127.0.0.1")


def test_every_command_reads_it(disturbed, endpoint, tmp_path, capsys) -> None:
    (tmp_path / "storage.yaml").write_text(f"storage: {{endpoint: '{endpoint}'}}\n")
    how = ["--storage", str(tmp_path / "storage.yaml")]

    def answer(*arguments: str) -> dict[str, object]:
        assert cli.main([*arguments, *how, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    storage.use(StorageConfig(endpoint="http://127.0.0.1:9"))  # what the command line must put right
    number = answer("status", "--store", STORE)["summary"]["topics"]
    assert len(answer("topics", "--store", STORE)) == number + 1
    assert Path(answer("report", "--store", STORE, "--output", str(tmp_path / "r.html"))["report"]).stat().st_size > 10_000
    assert "npmi" in json.dumps(answer("evaluate", "--store", STORE)).lower()
    assert (
        answer("export", "--store", STORE, "--topics-only", "--min-document-frequency", "2", "--output", str(tmp_path / "out"))["export"]
        == 1
    )
    merged = answer("merge", "--inputs", STORE, f"other={tmp_path / 'out'}", "--store", f"s3://{BUCKET}/stores/merged", "--documents")
    assert merged["store"] == f"s3://{BUCKET}/stores/merged"
    assert merged["copied"] == {"documents": merged["documents"], "sites": 1}, "the export of the same site tells less than its store"
    assert answer("diff", "--from", STORE, "--to", f"{STORE}@1")["changed"] is False
    assert answer("models", "--store", STORE)["models"] == []
    assert cli.main(["finetune", "--recipe", "crop", "--store", STORE, "--output", "mine", *how]) == 2
    assert "on this machine" in capsys.readouterr().err
    storage.use(StorageConfig(endpoint=endpoint))


@pytest.mark.slow
def test_updates_and_removals_work_there_and_a_rerun_does_nothing(disturbed, endpoint, tmp_path) -> None:
    environment = {**os.environ, "AWS_ENDPOINT_URL": endpoint}

    def do(*arguments: str) -> dict[str, object]:
        done = subprocess.run(
            [*arguments, "--json"], stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=False, env=environment
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    again = do(*command(INPUT, STORE))
    assert again["nothing_to_do"] is True
    batch = tmp_path / "batch.csv"
    batch.write_text("id,text,theme\nn1,The rocket was ready so we had to launch it near the planet.,space\n")
    topicscale = [sys.executable, "-m", "jobs.cli"]
    added = do(*topicscale, "update", "--input", str(batch), "--store", STORE)
    assert added["documents"] == 1
    (tmp_path / "ids").write_text("n1\n")
    assert do(*topicscale, "forget", "--ids", str(tmp_path / "ids"), "--store", STORE)["forgotten"] == 1
    assert "n1" not in Store(STORE).read("documents", ["doc_id"])["doc_id"].to_pylist()


def test_missing_jars_are_told_of_before_anything_starts(monkeypatch, tmp_path, endpoint) -> None:
    monkeypatch.setattr(jars, "jar_folder", lambda: tmp_path)
    config = load(values={"input": {"paths": [INPUT]}, "storage": {"endpoint": endpoint}})
    with pytest.raises(ResourceError, match=r"-m spark\.jars s3"):
        run(config, f"s3://{BUCKET}/stores/none")
    assert not Folder(f"s3://{BUCKET}/stores/none").exists("")
