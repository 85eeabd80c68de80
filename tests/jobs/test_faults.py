"""Kill things while a job runs, run it again, and compare its tables with an undisturbed run's (``make test-faults``).

With every test run go the kills of ``test_s3.py`` (the driver, half way), ``test_many_partitions.py`` and ``test_pool.py`` (workers).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests import corpus
from tests.jobs.compare import contents
from topicscale.store import MARKER, Store

pytestmark = pytest.mark.faults

LIMIT = 300.0
"""Seconds within which a point is reached and a process ends."""


def command(source: Path, store: Path) -> list[str]:
    options = ["--id-column", "id", "--partitions", "4", "--min-topic-size", "5", "--set", "embedding.batch_tokens=256"]
    return [sys.executable, "-m", "jobs.run", "--input", str(source), "--store", str(store), "--json", *options]


def start(source: Path, store: Path, log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(source, store), stdin=subprocess.DEVNULL, stdout=log.open("ab"), stderr=subprocess.STDOUT)


def rows_of(store: Path, table: str) -> int:
    if not (store / MARKER).exists():
        return 0
    opened = Store(store)
    return opened.table(table).to_pyarrow_dataset().count_rows() if opened.has(table) else 0


POINTS: dict[str, Callable[[Path], bool]] = {
    "start": lambda store: (store / "_lock").exists(),
    "ingest": lambda store: (store / "documents").exists(),
    "ingested": lambda store: (store / "partitions" / "_delta_log").exists() and rows_of(store, "partitions") > 0,
    "embedding": lambda store: any(store.glob("embeddings/partition_id=*/*.parquet")),
    "embedded": lambda store: rows_of(store, "embeddings") > 0,
    "clustering": lambda store: any(store.glob("local_topics/partition_id=*/*.parquet")),
    "refined": lambda store: any(store.glob("_work/refine-*.npz")),
    "assigned": lambda store: rows_of(store, "assignments") > 0,
    "terms": lambda store: (store / "topic_terms").exists(),
    "topics": lambda store: rows_of(store, "topics") > 0,
}


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def named(process: psutil.Process, *words: str) -> bool:
    try:
        line = " ".join([process.name(), *process.cmdline()])
    except psutil.Error:
        return False
    return any(word in line for word in words)


VICTIMS: dict[str, Callable[[int], list[int]]] = {
    "driver": lambda pid: [pid],
    "actor": lambda pid: [p.pid for p in descendants(pid) if named(p, "ray::Worker")],
    "node": lambda pid: [p.pid for p in descendants(pid) if named(p, "raylet/raylet")],
    "jvm": lambda pid: [p.pid for p in descendants(pid) if named(p, "SparkSubmit", "org.apache.spark")],
}


def reach(point: str, store: Path, process: subprocess.Popen[bytes]) -> bool:
    """Wait for a point; False if the job ended first."""
    until = time.monotonic() + LIMIT
    while not POINTS[point](store):
        if process.poll() is not None:
            return False
        assert time.monotonic() < until, f"the job did not reach {point} within {LIMIT} s"
        time.sleep(0.02)
    return True


def gone(pids: list[int]) -> bool:
    """Return whether the processes have ended. Ray's own agents look for their parent once a minute, and are let off."""
    left = 0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            left += process.status() != psutil.STATUS_ZOMBIE and not process.name().endswith("Agent")
    return not left


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return corpus.write_csv(tmp_path_factory.mktemp("input") / "corpus.csv", corpus.rows())


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory) -> dict[str, list[str]]:
    store = tmp_path_factory.mktemp("stores") / "undisturbed"
    subprocess.run(command(source, store), check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT)
    return contents(str(store))


def disturb(victim: str, point: str, source: Path, store: Path, log: Path) -> tuple[int, list[int]]:
    """Run a job, kill the victim at the point, and return the job's exit code and its other processes."""
    process = start(source, store, log)
    try:
        if reach(point, store, process):
            pids: list[int] = []
            until = time.monotonic() + 30
            while not pids and process.poll() is None and time.monotonic() < until:
                pids = VICTIMS[victim](process.pid)  # the JVM and the workers may still be starting
                time.sleep(0.02)
            family = [p.pid for p in descendants(process.pid)]
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            family = []
        return process.wait(LIMIT), family
    finally:
        if process.poll() is None:
            process.kill()


def check(victim: str, point: str, source: Path, undisturbed: dict[str, list[str]], folder: Path) -> None:
    store, log = folder / "store", folder / "log"
    code, family = disturb(victim, point, source, store, log)
    if victim == "driver":
        assert code == -signal.SIGKILL
        until = time.monotonic() + 60
        while not gone(family):
            assert time.monotonic() < until, "processes outlived their driver"
            time.sleep(0.2)
    if victim == "actor":
        assert code == 0, log.read_text()[-3000:]  # the pool replaces it, and the job goes on
    if code != 0:
        again = subprocess.run(command(source, store), stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT)
        assert again.returncode == 0, again.stderr.decode()[-3000:]
        runs = [row for row in Store(store).read("runs").to_pylist() if (row["stage"], row["status"]) == ("embed", "done")]
        assert len(runs) == 4, "a finished unit was done again, or one is missing"
    assert contents(str(store)) == undisturbed


@pytest.mark.parametrize("point", list(POINTS))
@pytest.mark.parametrize("victim", list(VICTIMS))
def test_matrix(victim, point, source, undisturbed, tmp_path) -> None:
    check(victim, point, source, undisturbed, tmp_path)


@pytest.mark.parametrize(("how", "point"), [(signal.SIGINT, "terms"), (signal.SIGTERM, "embedded")])
def test_an_interrupted_job_can_be_resumed(how, point, source, undisturbed, tmp_path) -> None:
    store, log = tmp_path / "store", tmp_path / "log"
    process = start(source, store, log)
    assert reach(point, store, process)
    process.send_signal(how)
    assert process.wait(60) == 130
    said = log.read_text()
    assert "run the same command again" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert "***" not in said, "the engines' stack traces are for their developers"
    subprocess.run(command(source, store), check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT)
    assert contents(str(store)) == undisturbed


def test_a_full_disk_is_said_and_nothing_is_lost(source, undisturbed, tmp_path) -> None:
    """On a small file system of its own; needs root to mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        store = folder / "store"
        full = subprocess.run(command(source, store), stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT)
        assert full.returncode in (1, 2)
        assert "space" in full.stderr.decode().lower()
        subprocess.run(["mount", "-o", "remount,size=200m", str(folder)], check=True)
        subprocess.run(command(source, store), check=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT)
        assert contents(str(store)) == undisturbed
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
