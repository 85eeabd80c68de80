"""A submitted job against the local one: the same tables, and how long it takes to begin.

`python -m benchmarks.cluster` starts two Ray nodes and two Spark workers on loopback (`tests/cluster.py`), a processor each, and runs AG
News there and here, with workers of one processor.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sklearn.metrics import adjusted_rand_score

from benchmarks.common import corpus, table, write
from tests.cluster import Cluster
from tests.jobs.compare import contents
from topicscale.store import Store

LIMIT = 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--documents", type=int, help="the first so many (default: all 7,600)")
    options = parser.parse_args()
    source = corpus("agnews", options.data, documents=options.documents).resolve()
    with tempfile.TemporaryDirectory(prefix="cluster-bench-") as folder, Cluster() as cluster:
        for number in (1, 2):
            cluster.add_ray(number)
            cluster.add_spark(number)
        here, there = Path(folder) / "local", Path(folder) / "cluster"
        asked = ["--partitions", str(options.partitions), "--id-column", "id", "--set", "ray.cpus_per_actor=1"]
        spark = "{spark.sql.shuffle.partitions: 8, spark.databricks.delta.snapshotPartitions: 2, spark.executor.memory: 512m}"
        began = time.time()
        submitted = [*asked, "--set", f"spark.conf={spark}", "--ray", cluster.ray, "--spark", cluster.spark]
        far = _run(["submit", "run", "--input", str(source), "--store", str(there), *submitted], cluster.client)
        first = min(row["at"] for row in Store(there).read("runs").to_pylist() if row["stage"] == "ingest")
        near = _run(["run", "--input", str(source), "--store", str(here), *asked], None)
        stages = [_stages(store) for store in (here, there)]
        equal = contents(str(here)) == contents(str(there))
        topics = [Store(store).read("assignments").sort_by("doc_id")["topic_id"].to_pylist() for store in (here, there)]
    lines: list[list[Any]] = []
    for stage in reversed(dict.fromkeys([*stages[0], *stages[1]])):
        lines.append([stage, *(f"{seconds.get(stage, 0):.1f}" for seconds in stages)])
    lines.append(["the command, s", f"{near:.0f}", f"{far:.0f}"])
    begun = first.timestamp() - stages[1].get("ingest", 0.0) - began
    same = f"Every table equal: {'yes' if equal else 'NO'}; adjusted Rand index of assignments: {adjusted_rand_score(*topics):.4f}."
    said = f"{len(topics[0]):,} documents, {options.partitions} partitions. {same} From `submit` to the first stage running: {begun:.1f} s."
    how = (
        "Seconds of embed and cluster are those of their units, which run two at a time; ingest holds the start of Spark. Both jobs have "
        "the same two processors; on the cluster three JVMs (the driver's and two executors') warm up on them."
    )
    write("cluster", "A submitted job against the local one", [f"{said} {how}", table(["stage, s", "local", "cluster"], lines)])


def _run(arguments: list[str], env: dict[str, str] | None) -> float:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "jobs.cli", *arguments], env=env, stdin=subprocess.DEVNULL, timeout=LIMIT)
    if done.returncode:
        raise SystemExit(f"{arguments[0]} ended with {done.returncode}")
    return time.monotonic() - began


def _stages(store: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in Store(store).read("runs").to_pylist():
        found[row["stage"]] = found.get(row["stage"], 0.0) + row["seconds"]
    return found


if __name__ == "__main__":
    main()
