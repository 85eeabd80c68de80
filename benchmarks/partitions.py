"""The driver over tens of thousands of partitions: real loop, real Ray workers, real Delta commits, made-up work.

``python -m benchmarks.partitions`` makes a store that is said to hold so many partitions and runs on it all stages after ingest,
as `topicscale run` does. What the driver does is real: the loop over units, the pool's scheduling with its retries, commits,
merging, refining, what is published. What workers do is made up: they make four vectors for a partition out of its number, and
write them with the job's own writer. Some units kill their worker the first time, some are slow. Counting words is Spark's work
and is replaced by a line for each topic.

The driver is killed twice, while partitions are embedded and while they are assigned, and started again.

What a driver's time is: processor time of its process, all threads of Ray, Arrow and delta-rs included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import reduce
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.common import table, write
from jobs import run
from jobs.engines import Engines
from jobs.job import Job, new_run_id
from jobs.progress import Bar, Ui
from jobs.stages import publish
from ray_actors.parts import Done, to_list_array
from ray_actors.pool import Pool
from ray_actors.refine import STEPS, nearer, nearest_in
from ray_actors.runtime import Layout
from ray_actors.sample import _position
from topicscale import refine
from topicscale.cluster import exact, unit
from topicscale.config import Config
from topicscale.store import Store, write_part
from topicscale.tables import TABLES

ROWS, PLANTED = 4, 40
"""Documents of a partition, and topics that there are."""
DIES, SLOW, SECONDS = 1000, 200, 0.5
"""One unit in so many kills its worker the first time; one in so many takes so many seconds."""
LIMIT = 7200.0
KIB = 1024


def ids_of(partitions: int) -> list[str]:
    """Return the partitions' ids."""
    return [f"h-{number:05d}-of-{partitions}" for number in range(partitions)]


def vectors_of(partition_id: str, width: int) -> np.ndarray:
    """Return the vectors of a partition, float32 (ROWS, width): each near one of the planted topics."""
    number = int(partition_id.split("-")[1])
    random = np.random.default_rng(number)
    centres = np.random.default_rng(0).normal(size=(PLANTED, width))
    # two documents of one topic, two of another
    topics = np.repeat([number % PLANTED, (number * 7 + 1) % PLANTED], ROWS // 2)
    return unit(centres[topics] + random.normal(size=(ROWS, width)) * 0.2).astype(np.float32)


class Pretender:
    """A worker whose answers have the right form and cost next to nothing."""

    def __init__(self, threads: int, device: str) -> None:
        self._width = int(os.environ["TOPICSCALE_WIDTH"])
        self._marks = Path(os.environ["TOPICSCALE_MARKS"])

    def ready(self) -> bool:
        return True

    def progress(self) -> int:
        return 0

    def embed(self, *, store_uri: str, partition_id: str, space: str, **_: Any) -> Done:
        self._trouble("embed", partition_id)
        ids = self._ids(partition_id)
        rows = pa.table(
            {"doc_id": ids, "text_hash": ids, "space": [space] * ROWS, "vector": to_list_array(vectors_of(partition_id, self._width))}
        )
        return Done(ROWS, {"embeddings": write_part(store_uri, "embeddings", partition_id, rows)})

    def cluster(self, *, store_uri: str, partition_id: str, **_: Any) -> Done:
        self._trouble("cluster", partition_id)
        ids, vectors = self._ids(partition_id), vectors_of(partition_id, self._width)
        labels = np.repeat(np.arange(2, dtype=np.int32), ROWS // 2)
        held = pa.table({"doc_id": ids, "local_topic": labels, "probability": np.ones(ROWS, np.float32)})
        sums = np.stack([exact(vectors[labels == topic]).sum(axis=0) for topic in range(2)])
        found = pa.table(
            {
                "local_topic": pa.array([0, 1], pa.int32()),
                "size": pa.array([ROWS // 2] * 2, pa.int64()),
                "vector_sum": to_list_array(sums),
                "representative_doc_ids": pa.array([[ids[0]], [ids[-1]]]),
            }
        )
        files = {
            "local_assignments": write_part(store_uri, "local_assignments", partition_id, held),
            "local_topics": write_part(store_uri, "local_topics", partition_id, found),
        }
        return Done(ROWS, files, {"topics": 2, "noise": 0})

    def sample(self, *, partition_id: str, share: float, **_: Any) -> tuple[list[str], np.ndarray]:
        ids = self._ids(partition_id)
        chosen = [i for i, doc_id in enumerate(ids) if _position(doc_id) < share * 2**64]
        return [ids[i] for i in chosen], vectors_of(partition_id, self._width)[chosen]

    def calibrate(self, *, vectors: np.ndarray, **_: Any) -> Any:
        from topicscale.calibrate import Pilot

        return Pilot(height=0.05, agreement=1.0, documents=len(vectors), topics=PLANTED, noise=0.0)

    def apply(self, *, step: str, arguments: list[Any], partition_ids: list[str], **_: Any) -> Any:
        import ray

        given = ray.get(arguments)
        return reduce(add, (STEPS[step](vectors_of(pid, self._width), *given) for pid in partition_ids))

    def assign(self, *, references: Any, cutoffs: Any, named: Any, store_uri: str, partition_id: str, **_: Any) -> Done:
        self._trouble("assign", partition_id)
        topics, probabilities = refine.assign(vectors_of(partition_id, self._width), references, cutoffs, named=named)
        rows = pa.table({"doc_id": self._ids(partition_id), "topic_id": topics, "probability": probabilities})
        return Done(ROWS, {"assignments": write_part(store_uri, "assignments", partition_id, rows)}, {"outliers": 0})

    def summarise(self, *, number: int, representatives: int, partition_ids: list[str], **_: Any) -> Any:
        totals, best = [], [[] for _ in range(number)]
        for pid in partition_ids:
            ids, vectors = self._ids(pid), vectors_of(pid, self._width)
            topics = np.repeat([int(pid.split("-")[1]) % number, 0], ROWS // 2).astype(np.int32)
            assigned = pa.table({"doc_id": ids, "topic_id": topics, "probability": np.ones(ROWS, np.float32)})
            totals.append(refine.collect(vectors, topics + 1, number + 1))
            best = nearer(best, nearest_in(assigned, pa.chunked_array([ids]), number, representatives, pid), representatives)
        return reduce(add, totals), best

    def texts(self, *, doc_ids: list[str], **_: Any) -> dict[str, dict[str, str]]:
        return {doc_id: {"text": doc_id} for doc_id in doc_ids}

    def layout(self, *, vectors: np.ndarray, **_: Any) -> np.ndarray:
        return np.ascontiguousarray(vectors[:, :2])

    def _ids(self, partition_id: str) -> list[str]:
        return [f"{partition_id}/{row}" for row in range(ROWS)]

    def _trouble(self, stage: str, partition_id: str) -> None:
        number = int(partition_id.split("-")[1])
        if number % SLOW == SLOW - 1:
            time.sleep(SECONDS)
        if number % DIES == 60:
            mark = self._marks / f"{stage}-{number}"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)


class PretendEngines(Engines):
    """Ray with workers that pretend, and no Spark."""

    def __init__(self, config: Config, workers: int) -> None:
        super().__init__(config)
        self._workers = workers

    def workers(self, layout: Layout, worker: type = Pretender, *, grows: bool = False) -> Pool:
        # without processors of their own, so that there may be more of them than this machine has
        return Pool(Layout(self._workers, 0, 0.0), attempts=3, timeout=300.0, worker=worker)


class Watch(Ui):
    """Writes down the driver's memory and processor time: every second, and where a stage ends."""

    def __init__(self, path: Path) -> None:
        super().__init__("quiet")
        self._file, self._process, self._lock = path.open("a"), psutil.Process(), threading.Lock()
        self._now, self._rows = "", 0
        threading.Thread(target=self._every_second, daemon=True).start()

    def note(self, event: str, **fields: Any) -> None:
        spent = self._process.cpu_times()
        row = {"at": time.time(), "event": event, "rss": self._process.memory_info().rss, "cpu": spent.user + spent.system, **fields}
        with self._lock:
            print(json.dumps(row), file=self._file, flush=True)

    def log(self, event: str, message: str, **fields: Any) -> None:
        super().log(event, message, **fields)
        if event == "stage" and "seconds" in fields:
            self.note("stage", stage=fields["stage"])

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None, **options: Any) -> Iterator[Bar]:
        self._now = name
        with super().stage(name, total, **options) as bar:
            advance = bar.advance

            def advanced(rows: int) -> None:
                if self._rows == 0:
                    self.note("first", stage=name)
                self._rows += rows
                advance(rows)

            bar.advance = advanced  # type: ignore[method-assign]
            yield bar

    def _every_second(self) -> None:
        while True:
            self.note("tick", stage=self._now, partitions=self._rows / ROWS)
            time.sleep(1.0)


def make(path: Path, partitions: int) -> None:
    """Make a store that ingest might have left; the files of its documents are names alone."""
    store = Store(path, create=True)
    ids = ids_of(partitions)
    for name in ("documents", "quarantine", "partitions", "topic_terms"):
        store.create_table(name)
    rows = {"partition_id": ids, "value": [None] * partitions, "rows": [ROWS] * partitions, "chars": [100] * partitions}
    told = pa.table({**rows, "digest": [f"{number:032x}" for number in range(partitions)]}).cast(TABLES["partitions"].schema)
    store.replace("partitions", told, stage="ingest", unit_fingerprint="0" * 32)


def drive(path: Path, config: Config, workers: int) -> None:
    """Run what is left to do on a store, as :func:`jobs.run.fit` does."""
    store = Store(path)
    watch = Watch(path.parent / "watch.jsonl")
    watch.note("start")
    publish.count_terms = _pretend_terms
    with store.lock(run_id := new_run_id()):
        job = Job(store, config, run_id, watch, PretendEngines(config, workers))
        try:
            snapshot = run._stages(job, None, 0)
        finally:
            job.flush()
            job.engines.close()
    watch.note("end", topics=snapshot.summary["topics"], documents=snapshot.summary["documents"], failed=snapshot.summary["failed"])


def _pretend_terms(job: Job, fp: str, **_: Any) -> None:
    topics = range(int(job.store.read("assignments", ["topic_id"])["topic_id"].to_numpy().max()) + 1)
    counted = {"count": 1, "documents": 1, "weight": 1.0, "core_count": 1, "core_weight": 1.0}
    rows = [{"topic_id": topic, "term": f"term{topic}", **counted} for topic in topics]
    job.store.replace("topic_terms", pa.Table.from_pylist(rows, schema=TABLES["topic_terms"].schema), stage="terms", unit_fingerprint=fp)


def simulate(folder: Path, *, partitions: int, workers: int, width: int, kills: list[tuple[str, int]]) -> list[list[dict[str, Any]]]:
    """Run a job of so many partitions in processes of its own, and return what each of them wrote down.

    Parameters
    ----------
    kills : list of (table, partitions)
        The driver is killed when so many partitions are in a table, and started again.
    """
    store, log = folder / "store", folder / "watch.jsonl"
    (folder / "marks").mkdir(parents=True, exist_ok=True)
    make(store, partitions)
    command = [sys.executable, "-m", "benchmarks.partitions", "--drive", str(store), "--workers", str(workers)]
    environment = os.environ | {"TOPICSCALE_WIDTH": str(width), "TOPICSCALE_MARKS": str(folder / "marks")}
    runs: list[list[dict[str, Any]]] = []
    for kill in [*kills, None]:
        log.unlink(missing_ok=True)
        began = time.time()
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        try:
            while process.poll() is None and time.time() - began < LIMIT:
                time.sleep(0.2 if partitions < 2000 else 1.0)
                if kill is not None and len(_committed(store, kill[0])) >= kill[1]:
                    process.kill()
                    break
        finally:
            process.kill()
            code = process.wait()
        if kill is None and code:
            raise SystemExit(f"The driver ended with {code}.")
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        runs.append([{"at": began, "event": "spawn"}, *rows])
    return runs


def _committed(store: Path, name: str) -> set[str]:
    return {row["partition_id"] for row in Store(store).table(name).partitions()}


def growth(rows: list[dict[str, Any]], stage: str) -> float:
    """Return bytes of memory by which the driver grows with each partition that a stage does, by least squares."""
    points = np.array([(row["partitions"], row["rss"]) for row in rows if row["event"] == "tick" and row["stage"] == stage])
    return float(np.polyfit(points[:, 0], points[:, 1], 1)[0]) if len(points) > 10 and np.ptp(points[:, 0]) else float("nan")


def stages(rows: list[dict[str, Any]]) -> Iterator[tuple[str, float, float, int]]:
    """Yield name, seconds, processor seconds of the driver and memory at the end of each stage of a run."""
    marks = [row for row in rows if row["event"] in ("start", "stage", "end")]
    for before, after in pairwise(marks):
        yield after.get("stage", "end"), after["at"] - before["at"], after["cpu"] - before["cpu"], after["rss"]


def logs(store: Path) -> list[list[object]]:
    """Return, for each table of units, commits, checkpoints, bytes of the newest checkpoint, and seconds to read the log."""
    found: list[list[object]] = []
    for name in ("embeddings", "local_assignments", "local_topics", "assignments", "runs"):
        log = store / name / "_delta_log"
        checkpoints = sorted(log.glob("*.checkpoint.parquet"))
        began = time.perf_counter()
        fresh = Store(store)
        units = len(fresh.unit_versions(name))
        seconds = time.perf_counter() - began
        size = f"{checkpoints[-1].stat().st_size / 2**20:.1f}" if checkpoints else ""
        found.append([name, len(list(log.glob("*.json"))), len(checkpoints), size, units, f"{seconds:.2f}"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partitions", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=4, help="Ray actors")
    parser.add_argument("--width", type=int, default=16, help="numbers in a vector")
    parser.add_argument("--kill", nargs="*", default=["embeddings:15000", "assignments:15000"], metavar="TABLE:PARTITIONS")
    parser.add_argument("--folder", type=Path, help="where the store goes and stays (default: a temporary one)")
    parser.add_argument("--drive", type=Path, metavar="STORE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive is not None:
        drive(options.drive, Config.from_dict({"input": {"embedding_column": "vector"}}), options.workers)
        return
    kills = [(name, int(number)) for name, number in (text.split(":") for text in options.kill)]
    with contextlib.ExitStack() as held:
        folder = options.folder or Path(held.enter_context(tempfile.TemporaryDirectory()))
        shutil.rmtree(folder, ignore_errors=True)
        runs = simulate(folder, partitions=options.partitions, workers=options.workers, width=options.width, kills=kills)
        report(runs, options.partitions, kills, folder / "store")


def report(runs: list[list[dict[str, Any]]], partitions: int, kills: list[tuple[str, int]], store: Path) -> None:
    """Write the result."""
    told: list[list[object]] = []
    by_stage: list[list[object]] = []
    for number, rows in enumerate(runs, start=1):
        last = rows[-1]
        first = next((row for row in rows if row["event"] == "first"), None)
        name, done = kills[number - 1] if number <= len(kills) else ("", 0)
        work = f"{first['at'] - rows[0]['at']:.1f} ({first['stage']})" if first else ""
        peak = max(row.get("rss", 0) for row in rows) / 2**20
        until = f"killed with {done:,} in {name}" if name else "the end"
        told.append([number, until, f"{last['at'] - rows[0]['at']:.0f}", work, f"{last['cpu']:.0f}", f"{peak:.0f}"])
        for stage, seconds, cpu, rss in stages(rows):
            slope = growth(rows, stage)
            by_stage.append(
                [number, stage, f"{seconds:.0f}", f"{cpu:.1f}", f"{cpu / partitions * 1000:.2f}", f"{rss / 2**20:.0f}",
                 "" if np.isnan(slope) else f"{slope / KIB:.2f}"]
            )  # fmt: skip
    spent = sum(rows[-1]["cpu"] for rows in runs)
    end = next(row for row in runs[-1] if row["event"] == "end")
    failed = end["failed"] or "none"
    write(
        "partitions",
        "The driver over many partitions",
        [
            (__doc__ or "").strip(),
            f"{partitions:,} partitions, {end['topics']} topics, {end['documents']:,} documents assigned, failed: {failed}. "
            f"Driver time a partition, all stages and all runs together: **{spent / partitions * 1000:.1f} ms**.",
            table(["run", "until", "s", "s to the first unit done", "driver's processor s", "peak MiB"], told),
            table(["run", "stage", "s", "driver's processor s", "ms a partition", "MiB at the end", "grows, KiB a partition"], by_stage),
            table(["log of", "commits", "checkpoints", "newest, MiB", "units", "s to read all units"], logs(store)),
        ],
    )


if __name__ == "__main__":
    main()
