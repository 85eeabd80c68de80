"""The whole job, start-up included, against BERTopic's whole fit: `topicscale run` into a fresh store, and a process that
reads the same file, fits and saves.

    python -m benchmarks.whole_job --data ../shared/data

Both with the same MiniLM and their own defaults, one after the other in alternating order. The overhead is the time of
a run in which no unit of embedding or clustering was under way, so it counts refinement and the map, too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from benchmarks.common import PEER, TOPICSCALE, Run, corpus, run, table, write

GIB = 2**30


def ours(source: Path, folder: Path, options: list[str]) -> tuple[Run, dict[str, float], dict[str, float]]:
    """Return the run, its stages' seconds, and the seconds of the units inside them."""
    store = folder / "store"
    shutil.rmtree(store, ignore_errors=True)
    done = run([*TOPICSCALE, "run", "--input", str(source), "--id-column", "id", "--store", str(store), "--json", *options])
    stages = json.loads(done.output)["seconds"]
    from topicscale.store import Store

    units: dict[str, float] = {}
    for row in Store(str(store)).read("runs").to_pylist():
        if row["partition_id"] is not None:
            units[row["stage"]] = units.get(row["stage"], 0.0) + row["seconds"]
    return done, stages, units


def peer(source: Path, folder: Path) -> Run:
    """Return BERTopic's run."""
    return run([str(PEER), "benchmarks/bertopic/fit.py", str(source), str(folder / "bertopic.json")])


def overhead(done: Run, units: dict[str, float], workers: int) -> float:
    """Return the seconds in which no unit of embedding or clustering was under way, at least."""
    return done.seconds - (units.get("embed", 0.0) + units.get("cluster", 0.0)) / workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--corpora", nargs="+", default=["agnews", "docstrings"], choices=["agnews", "banking77", "docstrings"])
    parser.add_argument("--documents", type=int, help="the first so many of each corpus")
    parser.add_argument("--rounds", type=int, default=3, help="of each side; docstrings have one round fewer")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="configuration of topicscale's side")
    arguments = parser.parse_args()
    if not PEER.exists():
        raise SystemExit("BERTopic has no environment yet. Make it with: make bench-setup")
    from ray_actors import runtime
    from topicscale.config import load

    layout = runtime.local_plan(load(overrides=arguments.set).ray)
    workers = layout.actors if layout else 1
    options = [word for pair in arguments.set for word in ("--set", pair)]
    rows: list[list[str]] = []
    items: list[list[str]] = []
    for name in arguments.corpora:
        source = corpus(name, arguments.data, documents=arguments.documents)
        documents = sum(1 for _ in source.open(encoding="utf-8"))
        mine: list[tuple[Run, dict[str, float], dict[str, float]]] = []
        theirs: list[Run] = []
        rounds = max(1, arguments.rounds - (documents > 20_000))
        with tempfile.TemporaryDirectory() as scratch:
            for number in range(rounds):
                # the order alternates, so that neither always finds the file cache warm
                for side in ("ours", "peer") if number % 2 == 0 else ("peer", "ours"):
                    if side == "ours":
                        mine.append(ours(source, Path(scratch), options))
                    else:
                        theirs.append(peer(source, Path(scratch)))
                    print(f"{name} round {number + 1}: {side} {(mine[-1][0] if side == 'ours' else theirs[-1]).seconds:.1f} s", flush=True)
        median, other = statistics.median(r[0].seconds for r in mine), statistics.median(r.seconds for r in theirs)
        spread = ", ".join(f"{a[0].seconds:.0f}/{b.seconds:.0f}" for a, b in zip(mine, theirs, strict=True))
        memory = f"{max(r[0].peak for r in mine) / GIB:.1f} / {max(r.peak for r in theirs) / GIB:.1f}"
        rows.append([name, f"{documents:,}", f"{median:.1f}", f"{other:.1f}", f"{median / other:.2f}", spread, memory])
        run_, stages, units = min(mine, key=lambda r: abs(r[0].seconds - median))
        items.append([name, "total", f"{run_.seconds:.1f}", ""])
        items += [
            [name, stage, f"{seconds:.1f}", f"{units[stage]:.1f}" if stage in units else ""]
            for stage, seconds in stages.items()
            if stage != "total"
        ]
        inside = stages.get("total", run_.seconds)
        items.append([name, "interpreter, imports, exit", f"{run_.seconds - inside:.1f}", ""])
        items.append([name, "**overhead**", f"**{overhead(run_, units, workers):.1f}**", ""])
    write(
        "whole_job",
        "The whole job against BERTopic's whole fit",
        [
            table(["corpus", "documents", "topicscale s", "BERTopic s", "ratio", "rounds (s/s)", "peak GiB"], rows),
            "Medians of the rounds. Seconds of the median run by stage, and of the units inside a stage where it has any. Stages overlap "
            "(Ray starts beside Spark, the map is made beside the term counts), so they add up to more than the total. "
            f"Overhead: the total without the units of embed and cluster ({workers} worker{'s' * (workers != 1)}).",
            table(["corpus", "stage", "s", "in units s"], items),
        ],
    )


if __name__ == "__main__":
    main()
