"""`make demo`: the whole job on the docstrings of the packages that are installed here, with nothing to download.

Run again, it finds that everything is done. ``--fresh`` starts over.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from topicscale.errors import JobFailed, RequestError, TopicscaleError

DOCUMENTS, PARTITIONS, SHOWN = 20_000, 4, 20


def corpus(folder: Path, documents: int) -> Path:
    """Return a JSON lines file of docstrings in ``folder``, made anew when packages were installed or removed since."""
    from jobs.docstrings import build_corpus

    path = folder / f"docstrings-{documents}.jsonl"
    installed = Path(sysconfig.get_paths()["purelib"]).stat().st_mtime
    if not path.exists() or path.stat().st_mtime < installed:
        build_corpus(path, documents)
    return path


def demo(folder: Path, *, documents: int = DOCUMENTS, partitions: int = PARTITIONS) -> Path:
    """Find the topics of a corpus of docstrings, print the largest, and return the path of the report."""
    from jobs import topics
    from jobs.report import report
    from jobs.run import run
    from topicscale.config import Config

    if documents < 1:
        raise RequestError(f"--documents must be at least 1. Got {documents} instead.")
    began = time.monotonic()
    source = corpus(folder, documents)
    print(f"corpus: {source} ({time.monotonic() - began:.0f} s)", file=sys.stderr)
    store = folder / "store"
    # as: topicscale run --input docstrings-20000.jsonl --id-column id --partitions 4 --min-topic-size 20 --store store
    config = Config.from_dict(
        {
            "input": {"paths": [str(source)], "id_column": "id"},
            "partition": {"number": partitions},
            "topics": {"min_size": max(2, documents // 1000)},
        }
    )
    result = run(config, str(store))
    written = report(str(store), folder / "report.html")
    print(topics.describe(topics.topics(str(store), top=SHOWN)))
    share = result.outliers / max(result.documents, 1)
    skipped = ": all was done already" if result.nothing_to_do else ""
    print(
        f"\n{result.documents:,} documents in {partitions} partitions, {result.topics:,} topics, {share:.1%} outliers; "
        f"{time.monotonic() - began:.0f} s{skipped}. The {min(SHOWN, result.topics)} largest topics are above."
    )
    print(f"Tables: {store}\nReport: {written}")
    if result.failed:
        raise JobFailed(f"Units failed in {', '.join(result.failed)}. See `topicscale status --store {store}`; the same command goes on.")
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return an exit code, as the command line's."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where corpus, tables and report go (default: demo)")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, metavar="N", help=f"default: {DOCUMENTS:,}")
    parser.add_argument("--partitions", type=int, default=PARTITIONS, metavar="N", help=f"default: {PARTITIONS}")
    parser.add_argument("--fresh", action="store_true", help="remove the folder's store first")
    options = parser.parse_args(arguments)
    if options.fresh:
        shutil.rmtree(options.folder / "store", ignore_errors=True)
    try:
        demo(options.folder, documents=options.documents, partitions=options.partitions)
    except TopicscaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    from jobs.cli import leave

    leave(main())
