"""Several jobs of one process, which share their engines."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests import corpus

PROGRAM = """
import contextlib, shutil, sys, time
import psutil
from topicscale import TopicModel, session

def workers():
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # one that ends this very moment
            if "ray::Worker" in " ".join(process.cmdline()):
                found.add(process.pid)
    return found

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


@pytest.mark.timeout(400)
def test_jobs_of_a_session_share_workers_and_nothing_else(tmp_path) -> None:
    source = tmp_path / "texts"
    source.write_text("\n".join(text for _, text, _ in corpus.rows()))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source), str(tmp_path)], capture_output=True, text=True, timeout=380, stdin=subprocess.DEVNULL
    )
    assert done.stdout.endswith("as expected\n"), done.stdout[-2000:] + done.stderr[-3000:]
