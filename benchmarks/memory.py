"""Peak memory of the whole process tree at 100,000 documents against 25,000: bounded by a partition, not by the corpus.

    python -m benchmarks.memory

Paragraphs of docstrings, the same configuration, `topicscale run` into a fresh store. Proportional set sizes (shared
pages counted once) of the driver, the JVM, Ray and every worker are summed twice a second; the JVM's own memory is
included.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.common import corpus, table, write
from benchmarks.whole_job import GIB, ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--documents", type=int, nargs=2, default=[25_000, 100_000], metavar=("FEW", "MANY"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="configuration of topicscale's side")
    arguments = parser.parse_args()
    options = [word for pair in arguments.set for word in ("--set", pair)]
    peaks: dict[int, list[int]] = {n: [] for n in arguments.documents}
    seconds: dict[int, list[float]] = {n: [] for n in arguments.documents}
    for _ in range(arguments.rounds):
        for documents in arguments.documents:
            source = corpus("paragraphs", arguments.data, documents=documents)
            with tempfile.TemporaryDirectory() as scratch:
                done, _, _ = ours(source, Path(scratch), options)
            peaks[documents].append(done.peak)
            seconds[documents].append(done.seconds)
            print(f"{documents:,} documents: {done.peak / GIB:.2f} GiB, {done.seconds:.0f} s", flush=True)
    few, many = arguments.documents
    rows = [
        [f"{n:,}", " ".join(f"{peak / GIB:.2f}" for peak in peaks[n]), f"{max(peaks[n]) / GIB:.2f}", f"{max(seconds[n]):.0f}"]
        for n in arguments.documents
    ]
    ratio = max(peaks[many]) / max(peaks[few])
    write(
        "memory",
        "Peak memory of the whole process tree",
        [table(["documents", "rounds, GiB", "peak, GiB", "s"], rows), f"Ratio of the peaks: **{ratio:.2f}**."],
    )


if __name__ == "__main__":
    main()
