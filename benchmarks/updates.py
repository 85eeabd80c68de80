"""Thirty daily updates against one fit of everything: agreement with the labels, and seconds a day.

    python -m benchmarks.updates --data ../shared/data

Half of a corpus is fitted, the rest arrives in 30 equal batches through `topicscale.update`'s own code. In the scenario
"emerging" a fifth of the labels appears in batches only. Both engines are started once, so that their start-up is apart.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.common import corpus, table, write
from jobs.progress import Ui
from jobs.run import run
from jobs.update import update
from ray_actors import runtime
from topicscale.config import Config, RayConfig, SparkConfig, load
from topicscale.evaluate import clustering
from topicscale.store import Store

Row = dict[str, str]


def days(rows: list[Row], scenario: str, batches: int, seed: int) -> tuple[list[Row], list[list[Row]]]:
    """Return what is fitted first, and each day's documents."""
    order = random.Random(seed)
    late: set[str] = set()
    if scenario == "emerging":
        labels = sorted({row["label"] for row in rows})
        late = set(order.sample(labels, max(1, len(labels) // 5)))
    shuffled = list(rows)
    order.shuffle(shuffled)
    possible = [row for row in shuffled if row["label"] not in late]
    first = possible[: len(rows) // 2]
    taken = {row["id"] for row in first}
    rest = [row for row in shuffled if row["id"] not in taken]
    size = -(-len(rest) // batches)
    return first, [rest[i : i + size] for i in range(0, len(rest), size)]


def save(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings(path: Path) -> Config:
    return load(values={"input": {"paths": [str(path)], "id_column": "id"}})


def agreement(store: Path, rows: list[Row]) -> tuple[float, int]:
    """Return NMI over all documents, outliers a cluster of their own, and the number of topics."""
    reader = Store(store)
    summary = reader.pin().summary
    found = {row["doc_id"]: row["topic_id"] for row in reader.read("assignments").to_pylist()}
    return clustering([row["label"] for row in rows], [found[row["id"]] for row in rows])["nmi"], summary["topics"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--corpora", nargs="+", default=["agnews", "banking77"], choices=["agnews", "banking77"])
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from spark import session

    runtime.start(RayConfig())
    session.start(SparkConfig(), app_name="benchmark")
    quiet = Ui("quiet")
    rows: list[list[str]] = []
    for name in arguments.corpora:
        source = corpus(name, arguments.data)
        documents: list[Row] = [json.loads(line) for line in source.open(encoding="utf-8")]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            run(settings(source), str(folder / "one"), ui=quiet)
            whole, topics = agreement(folder / "one", documents)
            print(f"{name}: one fit NMI {whole:.3f}, {topics} topics", flush=True)
            for scenario in ("all from the start", "emerging"):
                store = folder / scenario.split()[0]
                first, batches = days(documents, scenario, arguments.batches, arguments.seed)
                run(settings(save(folder / "first.jsonl", first)), str(store), ui=quiet)
                seconds = []
                for number, batch in enumerate(batches, 1):
                    path = save(folder / f"day{number}.jsonl", batch)
                    began = time.perf_counter()
                    update([str(path)], store, ui=quiet)
                    seconds.append((time.perf_counter() - began) / len(batch))
                    print(f"{name}, {scenario}: day {number}, {1000 * seconds[-1]:.1f} ms a document", flush=True)
                found, topics = agreement(store, documents)
                early, late = statistics.median(seconds[1:4]), statistics.median(seconds[-3:])
                cells = [f"{found:.3f}", f"{whole:.3f}", f"{found - whole:+.3f}", f"{topics}"]
                times = [f"{1000 * early:.1f}", f"{1000 * late:.1f}", f"{late / early:.2f}"]
                rows.append([name, scenario, *cells, *times])
    write(
        "updates",
        f"{arguments.batches} daily updates against one fit",
        [
            table(["corpus", "labels", "NMI", "one fit", "difference", "topics", "ms/document, days 2-4", "last 3 days", "ratio"], rows),
            "Half of the documents are fitted first. Milliseconds are medians over three days, both engines running.",
        ],
    )


if __name__ == "__main__":
    main()
