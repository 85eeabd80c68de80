"""Merge local topics of which the answer is known: time, memory, and how both grow.

    python -m benchmarks.merge --data ../shared/data

Each row is a process of its own, which generates its leaves (see ``benchmarks/planted.py``) and merges them into the
planted number of topics. Then the tree in cells is compared with the exact one where both can be built, on generated
leaves and on micro-clusters of documents. Writes ``benchmarks/results/merge.md``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

import topicscale.tree as hierarchy
from benchmarks.common import CACHE, run, table, write
from benchmarks.planted import TOPICS, planted
from topicscale.cluster import local_statistics, micro
from topicscale.merge import Leaves, collect, tree

Found = dict[str, Any]
AHEAD = 30_000_000


SIMILARITY = 0.45
"""Between the generated topics' own (.56 and more) and that to others (.3)."""


def once(leaves: int, topics: int, threads: int, criterion: str) -> Found:
    """Merge generated leaves and say what it took: Ward's tree cut at the planted number, average linkage at ``SIMILARITY``."""
    sizes, sums, true = planted(leaves, topics=topics)
    with threadpool_limits(threads):
        began, work = time.perf_counter(), time.process_time()
        distinct, index = Leaves.of(sizes, sums)
        del sums
        if criterion == "ward":
            groups = tree(distinct).cut(number=len(np.unique(true)))
        else:
            groups = tree(distinct, criterion="average").cut(height=1.0 - SIMILARITY)
        merged = collect(distinct, groups)
        seconds, processor = time.perf_counter() - began, time.process_time() - work
    return {"seconds": seconds, "processor": processor, "ari": adjusted_rand_score(true, merged.labels[index]), "topics": merged.number}


def compare(name: str, leaves: Leaves) -> list[list[str]]:
    """Compare the tree in cells with the exact one."""
    rows = []
    m, switch = len(leaves), hierarchy.SWITCH
    for criterion in ("ward", "average"):
        found = {}
        for form, number in (("exact", m), ("in cells", m // 4)):
            hierarchy.SWITCH = number
            work = time.process_time()
            found[form] = tree(leaves, criterion=criterion), time.process_time() - work  # type: ignore[arg-type]
        hierarchy.SWITCH = switch
        (exact, before), (cells, after) = found["exact"], found["in cells"]
        for topics in (30, 100, 300, 1000):
            same = adjusted_rand_score(exact.cut(number=topics), cells.cut(number=topics))
            height = float(exact.heights[m - topics - 1])
            level = adjusted_rand_score(exact.cut(number=topics), cells.cut(height=height))
            row = [name, f"{m:,}", criterion, topics, f"{same:.3f}", f"{level:.3f}", cells.cut(height=height).max() + 1]
            rows.append([*map(str, row), f"{before:.0f}", f"{after:.0f}"])
    return rows


def documents(data: Path, corpus: str) -> Leaves:
    """Return micro-clusters of two documents, from partitions of about 900."""
    from benchmarks.quality import CORPORA, embed

    CACHE.mkdir(parents=True, exist_ok=True)
    vectors = embed(CORPORA[corpus](data)[0], CACHE)
    order = np.random.default_rng(0).permutation(len(vectors))
    sizes, sums = [], []
    for part in np.array_split(order, -(-len(order) // 900)):
        rows = vectors[np.sort(part)]
        count, total, _ = local_statistics(micro(rows, np.ones(len(rows), np.int64), size=2), rows, representatives=0)
        sizes.append(count)
        sums.append(total)
    return Leaves.of(np.concatenate(sizes), np.concatenate(sums))[0]


def generated(leaves: int, topics: int) -> Leaves:
    sizes, sums, _ = planted(leaves, topics=topics)
    return Leaves.of(sizes, sums)[0]


def growth(rows: dict[int, Found], key: str, first: int, last: int) -> float:
    return math.log(rows[last][key] / rows[first][key]) / math.log(last / first)


def plan(rows: dict[int, Found], threads: int) -> str:
    numbers = sorted(rows)
    low, high = numbers[0], numbers[-1]
    work = ", ".join(f"{a:,} to {b:,}: {growth(rows, 'processor', a, b):.2f}" for a, b in [(low, high), *itertools.pairwise(numbers)])
    per_leaf = (rows[high]["processor"] - rows[low]["processor"]) / (high - low)
    ahead = rows[high]["processor"] + per_leaf * (AHEAD - high)
    gigabytes = AHEAD * 384 * 8 / 1e9
    hours = f"{ahead / 3600:.1f} processor hours, {ahead / 3600 / threads:.1f} hours on {threads} processors"
    return f"""Exponent of processor time: {work}. Of seconds, {low:,} to {high:,}: {growth(rows, "seconds", low, high):.2f}.
Up to {hierarchy.SWITCH:,} leaves time grows with the square; above, with the number, since cells have a fixed size: the last
{hierarchy.SWITCH:,} clusters cost the same whatever is below them.

Extrapolated to {AHEAD // 10**6} million at exponent 1 ({per_leaf * 1000:.2f} processor ms a leaf): {hours}.
The leaves alone are {gigabytes:.0f} GB, so one machine like this one cannot hold them, and need not. The plan:

1. Divide the leaves among workers by the first division's centres, which come from a sample of 16,384 leaves (in canonical
   order, hence the same everywhere); each leaf goes to one of at most 256 groups, about 120,000 leaves or 360 MB each.
2. A worker divides its group into cells and sends back the joins within them: two numbers and a height each, 24 bytes.
3. The driver takes the lowest joins of all and workers replace joined clusters by their means and masses: a quarter is left
   (7.5 million, then 1.9, then .47), divided anew. From 300,000 on it is the row above, on one machine.
4. Sums, sizes and keys of topics add up by group, on the workers, exactly and in any order.

Where a group of sites merges first (a country, a business unit), its merged store holds the union of its leaves, so that the
merge above it is the merge of all. Those above it may take the group's topics as leaves instead: faster, and no longer the same
result, since what a group joined stays joined."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the corpora; without it only generated leaves")
    parser.add_argument("--leaves", type=int, nargs="+", default=[30_000, 100_000, 300_000])
    parser.add_argument("--topics", type=int, default=TOPICS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--criteria", nargs="+", default=["ward", "average"], choices=["ward", "average"])
    parser.add_argument("--no-comparison", action="store_true", help="no comparison of cells with the exact tree")
    parser.add_argument("--once", action="store_true", help="one row, as JSON")
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(once(arguments.leaves[0], arguments.topics, arguments.threads, arguments.criteria[0])))
        return
    rows: dict[int, Found] = {}
    shown = []
    for leaves, criterion in itertools.product(arguments.leaves, arguments.criteria):
        settings = ["--leaves", str(leaves), "--topics", str(arguments.topics), "--threads", str(arguments.threads)]
        process = run([sys.executable, "-m", "benchmarks.merge", "--once", *settings, "--criteria", criterion])
        found = json.loads(process.output.splitlines()[-1])
        rows.setdefault(leaves, found)
        peak = f"{process.peak / 2**30:.2f}"
        shown.append(
            [f"{leaves:,}", criterion, f"{found['seconds']:.1f}", f"{found['processor']:.1f}", peak, found["topics"], f"{found['ari']:.3f}"]
        )
        print(*shown[-1], file=sys.stderr, flush=True)
    compared = [] if arguments.no_comparison else compare("generated", generated(12_000, 120))
    if arguments.data.is_dir() and not arguments.no_comparison:
        for corpus in ("agnews", "banking77"):
            compared += compare(f"{corpus}, micro-clusters", documents(arguments.data, corpus))
    main_table = table(("leaves", "criterion", "seconds", "processor seconds", "peak GiB", "topics", "ARI against the planted"), shown)
    columns = ("leaves of", "leaves", "criterion", "topics", "ARI, same number", "ARI, same height", "topics at that height")
    parts = [
        f"{arguments.topics:,} planted topics, 384 dimensions, {arguments.threads} threads."
        " Seconds: `Leaves.of`, `tree`, `cut` and `collect`. Peak: the whole process, the generated input included.",
        main_table,
        plan(rows, arguments.threads),
        "The tree in cells against the exact one. Cells are forced: the switch is at a quarter of the leaves"
        f" instead of {hierarchy.SWITCH:,}.",
        table((*columns, "exact, processor s", "in cells, processor s"), compared),
    ]
    write("merge", "Merging many local topics", parts)


if __name__ == "__main__":
    main()
