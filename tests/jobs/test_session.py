"""Several jobs of one process, which share their engines."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jobs.progress import Ui
from jobs.run import run
from tests import corpus
from tests.jobs.compare import contents
from topicscale import config


def workers() -> set[int]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # one that ends this very moment
            if "ray::Worker" in " ".join(process.cmdline()):
                found.add(process.pid)
    return found


def test_jobs_of_a_session_share_workers_and_nothing_else(kept, tmp_path, spark, ray_layout) -> None:
    some, all_of_them = corpus.write_csv(tmp_path / "some.csv", corpus.rows()[:120]), corpus.write_csv(tmp_path / "all.csv", corpus.rows())

    def fit(source: Path, store: Path) -> None:
        basic = {"input": {"paths": [str(source)], "id_column": "id"}, "partition": {"number": 2}, "topics": {"min_size": 5}}
        run(config.load(values=basic), str(store), ui=Ui("quiet"))

    kept.release()
    fit(some, tmp_path / "alone")
    first = workers()
    assert first, "no worker was kept"
    fit(all_of_them, tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    fit(some, tmp_path / "store")
    assert workers() == first, "other workers than before"
    assert contents(str(tmp_path / "store")) == contents(str(tmp_path / "alone"))


PROGRAM = """
import shutil, sys, time
import psutil
from tests.jobs.test_session import workers
from topicscale import TopicModel, session

def fit(store, texts):
    # ids tell that nothing of another fit is left
    topics, _ = TopicModel(min_topic_size=5, config={"partition": {"number": 2}}, store=store).fit_transform(texts)
    return topics

source, folder = sys.argv[1:]
texts = open(source).read().splitlines()
alone = fit(folder + "/alone", texts[:120])
assert not workers()
with session() as engines:
    fit(folder + "/store", texts)
    first = workers()
    assert first, "no worker was kept"
    shutil.rmtree(folder + "/store")
    assert fit(folder + "/store", texts[:120]) == alone
    assert workers() == first, "other workers than before"
    engines.release()
    until = time.monotonic() + 30
    while workers():
        assert time.monotonic() < until, "workers outlived their release"
        time.sleep(0.2)
    assert fit(folder + "/again", texts[:120]) == alone
    # another size of workers
    model = TopicModel(min_topic_size=5, config={"partition": {"number": 2}, "ray": {"cpus_per_actor": 1}}, store=folder + "/one")
    before = workers()
    model.fit(texts[:120])
    assert workers() and not workers() & before
import ray
from pyspark.sql import SparkSession
assert not ray.is_initialized() and SparkSession.getActiveSession() is None
_, left = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=30)
assert not left, left
print("as expected")
"""


@pytest.mark.slow
def test_a_session_ends_what_it_started(tmp_path) -> None:
    source = tmp_path / "texts"
    source.write_text("\n".join(text for _, text, _ in corpus.rows()))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source), str(tmp_path)], capture_output=True, text=True, timeout=380, stdin=subprocess.DEVNULL
    )
    assert done.stdout.endswith("as expected\n"), done.stdout[-2000:] + done.stderr[-3000:]
