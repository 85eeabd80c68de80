"""The whole job on real engines: what it writes, what it skips, what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.progress import Ui
from jobs.run import run
from jobs.stages.ingest import check_base
from tests import corpus
from tests.jobs.compare import contents
from topicscale import TopicModel, config
from topicscale.errors import JobFailed, RequestError, StoreError
from topicscale.evaluate import clustering
from topicscale.store import Store

QUIET = Ui("quiet")


def settings(path, *overrides: str, **values) -> config.Config:
    basic = {"input": {"paths": [str(path)], "id_column": "id"}, "partition": {"number": 2}, "topics": {"min_size": 5}, **values}
    return config.load(values=basic, overrides=list(overrides))


def logged(store: str, run_id: str) -> dict[str, int]:
    """Return how many units of each stage a run did."""
    found: dict[str, int] = {}
    for row in Store(store).read("runs").to_pylist():
        if row["run_id"] == run_id and row["status"] == "done":
            found[row["stage"]] = found.get(row["stage"], 0) + 1
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return corpus.write_csv(tmp_path_factory.mktemp("input") / "corpus.csv", corpus.rows())


@pytest.fixture(scope="module")
def finished(source, tmp_path_factory, spark, ray_layout):
    store = str(tmp_path_factory.mktemp("stores") / "store")
    return store, run(settings(source), store, ui=QUIET)


def test_every_document_is_assigned_once_and_all_adds_up(finished) -> None:
    store, result = finished
    reader = Store(store)
    reader.pin()
    ids = [row[0] for row in corpus.rows()]
    assert sorted(reader.read("assignments")["doc_id"].to_pylist()) == sorted(ids)
    assert sorted(reader.read("documents")["doc_id"].to_pylist()) == sorted(ids)
    topics = {row["topic_id"]: row for row in reader.read("topics").to_pylist()}
    counts: dict[int, int] = {}
    for topic in reader.read("assignments")["topic_id"].to_pylist():
        counts[topic] = counts.get(topic, 0) + 1
    assert {topic: row["size"] for topic, row in topics.items()} == counts
    assert result.documents == len(ids)
    sizes = [topics[i]["size"] for i in range(result.topics)]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(reader.read("site_topics")["size"].to_pylist()) == len(ids)
    assert sum(reader.read("local_topics")["size"].to_pylist()) <= len(ids)
    assert reader.read("topic_lineage").num_rows == reader.read("local_topics").num_rows


def test_the_planted_themes_are_found(finished) -> None:
    store, result = finished
    reader = Store(store)
    reader.pin()
    joined = reader.read("documents", ["doc_id", "theme"]).join(reader.read("assignments"), "doc_id")
    assert clustering(joined["theme"].to_pylist(), joined["topic_id"].to_pylist())["purity"] > 0.9
    assert 3 <= result.topics <= 25


def test_site_topics_hold_exact_sums(finished) -> None:
    store, _ = finished
    reader = Store(store)
    reader.pin()
    vectors = np.array(reader.read("embeddings", ["vector"])["vector"].to_pylist(), np.float64)
    leaves = reader.read("site_topics").to_pylist()
    total = np.sum([leaf["vector_sum"] for leaf in leaves], axis=0)
    # vectors are rounded to 2^-30 before they are summed
    np.testing.assert_allclose(total, vectors.sum(axis=0), rtol=0, atol=len(vectors) * 2**-30)
    terms = reader.read("topic_terms").to_pylist()
    assert sum(row["count"] for row in terms) == sum(count for leaf in leaves for _, count in leaf["term_counts"])


def test_transform_on_stored_vectors_returns_the_stored_assignments(finished) -> None:
    store, _ = finished
    reader = Store(store)
    reader.pin()
    model = TopicModel.load(store)
    stored = reader.read("embeddings", ["doc_id", "vector"]).sort_by("doc_id")
    rows = reader.read("assignments", ["doc_id", "topic_id", "probability"]).sort_by("doc_id")
    topics, probabilities = model.transform([""] * rows.num_rows, np.array(stored["vector"].to_pylist(), np.float32))
    assert topics == rows["topic_id"].to_pylist()
    assert probabilities.tolist() == rows["probability"].to_pylist()


def test_transform_on_embedded_texts_stays_within_the_stated_margin(finished) -> None:
    # bfloat16 vectors depend a little on the batch they are computed in: cosines move by less than .01, which can move a
    # document only where two topics, or a topic and its cut-off, are that close
    store, _ = finished
    reader = Store(store)
    reader.pin()
    model = TopicModel.load(store)
    texts = reader.read("documents", ["doc_id", "text"]).sort_by("doc_id")["text"].to_pylist()
    stored = reader.read("assignments", ["doc_id", "topic_id", "probability"]).sort_by("doc_id")
    topics, probabilities = model.transform(texts)
    same = np.array(topics) == stored["topic_id"].to_numpy()
    assert np.abs(probabilities - stored["probability"].to_numpy())[same].max() < 0.01
    assert same.mean() >= 0.99  # `benchmarks/margin.py` finds none of 1,500 moved


def test_a_rerun_does_nothing(source, finished) -> None:
    store, first = finished
    again = run(settings(source), store, ui=QUIET)
    assert again.nothing_to_do
    assert again.generation == first.generation


def test_an_input_that_was_written_again_makes_a_generation_that_can_be_added_to(source, finished, tmp_path) -> None:
    """What no topic depends on, a column beside the text, is read anew with it; and an update or forget would be refused otherwise."""
    store = shutil.copytree(finished[0], str(tmp_path / "store"))
    path = corpus.write_csv(tmp_path / "corpus.csv", [(doc_id, text, theme.upper()) for doc_id, text, theme in corpus.rows()])
    again = run(settings(path), store, ui=QUIET)
    assert set(logged(store, again.run_id)) == {"ingest"}
    assert again.generation == finished[1].generation + 1
    reader = Store(store)
    base = reader.pin()
    assert all(theme.isupper() for theme in reader.read("documents", ["theme"])["theme"].to_pylist())
    check_base(Store(store), base)
    assert run(settings(path), store, ui=QUIET).nothing_to_do


def test_the_same_input_into_another_store_gives_the_same_tables(source, finished, tmp_path) -> None:
    store, _ = finished
    run(settings(source), str(tmp_path / "other"), ui=QUIET)
    assert contents(str(tmp_path / "other")) == contents(store)


def test_only_what_depends_on_a_change_is_redone_and_going_back_restores(source, finished, tmp_path) -> None:
    original, _ = finished
    store = shutil.copytree(original, str(tmp_path / "store"))
    words = run(settings(source, "terms.bm25_weighting=true"), store, ui=QUIET)
    assert set(logged(store, words.run_id)) == {"terms", "publish"}
    merged = run(settings(source, "topics.number=4"), store, ui=QUIET)
    assert set(logged(store, merged.run_id)) == {"refine", "assign", "terms", "map", "publish"}
    assert merged.topics <= 4
    back = run(settings(source), store, ui=QUIET)
    assert "embed" not in logged(store, back.run_id)
    assert contents(store) == contents(original)
    assert back.generation == 4


def test_other_partitions_reuse_the_vectors(source, finished, tmp_path) -> None:
    store = shutil.copytree(finished[0], str(tmp_path / "store"))
    again = run(settings(source, "partition.number=3"), store, ui=QUIET)
    units = [r for r in Store(store).read("runs").to_pylist() if (r["run_id"], r["stage"], r["status"]) == (again.run_id, "embed", "done")]
    details = [json.loads(r["detail"]) for r in units]
    assert len(details) == 3
    assert sum(d.get("embedded", 0) for d in details) == 0
    assert sum(d["reused"] for d in details) == len(corpus.rows())
    assert {row["partition_id"] for row in Store(store).table("assignments").partitions()} == {
        row["partition_id"] for row in Store(store).table("documents").partitions()
    }


def test_new_rows_redo_their_partition_and_embed_only_themselves(finished, tmp_path) -> None:
    store = shutil.copytree(finished[0], str(tmp_path / "store"))
    content = corpus.rows()
    more = [*content, ("new", "The comet came near the planet and the telescope saw it.", "space")]
    again = run(settings(corpus.write_csv(tmp_path / "corpus.csv", more)), store, ui=QUIET)
    units = [r for r in Store(store).read("runs").to_pylist() if (r["run_id"], r["stage"], r["status"]) == (again.run_id, "embed", "done")]
    assert len(units) == 1
    assert json.loads(units[0]["detail"])["embedded"] == 1
    assert again.documents == len(content) + 1


def test_bad_rows_are_counted_and_kept_aside(tmp_path, spark, ray_layout) -> None:
    content = corpus.rows(each=12)
    source = tmp_path / "corpus.csv"
    corpus.write_csv(source, content)
    with source.open("ab") as file:
        file.write(b'e1,"",space\r\ne2,   ,space\r\nd0000,again,space\r\n,no id,space\r\nu1,caf\xe9 bytes,space\r\nx1,one,two,three\r\n')
    store = str(tmp_path / "store")
    result = run(settings(source, "partition.number=1"), store, ui=QUIET)
    reader = Store(store)
    reasons = sorted(reader.read("quarantine")["reason"].to_pylist())
    assert reasons == ["bad_row", "duplicate_id", "empty", "empty", "missing_id", "undecodable"]
    assert result.documents == len(content)


def test_too_many_bad_rows_fail_the_job_and_say_where_to_look(tmp_path, spark, ray_layout) -> None:
    source = tmp_path / "bad.csv"
    source.write_text("id,text\n1,\n2,\n3,good enough\n")
    with pytest.raises(JobFailed, match=r"2 of 3 rows.*topicscale status"):
        run(settings(source), str(tmp_path / "store"), ui=QUIET)


@pytest.mark.parametrize(
    "texts", [["same text"] * 30, ["a b", "c d"], pytest.param([f"word{i}" for i in range(12)], marks=pytest.mark.slow)]
)
def test_odd_corpora_work(texts, tmp_path, spark, ray_layout) -> None:
    model = TopicModel(min_topic_size=5, store=tmp_path / "store")
    topics, probabilities = model.fit_transform(texts)
    assert len(topics) == len(probabilities) == len(texts)
    assert len(set(topics[:30])) == 1 or texts[0] != texts[1]


def test_what_is_wrong_is_said_before_anything_starts(source, tmp_path) -> None:
    wrong = {
        "input.text_column=txt": "text",
        "input.paths=[/nowhere/x.csv]": "nowhere",
        "embedding.model=./nowhere": "nowhere",
        "cluster.algorithm=evok": "evoc",
        "ray.actors=999": "999",
        "input.id_column=idd": "id",
    }
    for override, hint in wrong.items():
        with pytest.raises(RequestError, match=hint):
            run(settings(source, override), str(tmp_path / "store"), ui=QUIET)
    assert not (tmp_path / "store").exists()


def test_two_runs_on_one_store(source, finished) -> None:
    store, _ = finished
    with Store(store).lock("the-other-run"), pytest.raises(StoreError, match="the-other-run"):
        run(settings(source), store, ui=QUIET)


def process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command, root = [sys.executable, "-m", "jobs.cli", *arguments], Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=240, env={**os.environ, **variables})


def test_another_spark_of_the_machine_is_not_in_the_way(source, tmp_path) -> None:
    """Where data engineers work: Spark and Hadoop are set up for a cluster, in other versions, and python3 is another too."""
    site = "<configuration><property><name>fs.defaultFS</name><value>hdfs://127.0.0.1:9/</value></property></configuration>"
    (tmp_path / "core-site.xml").write_text(site)
    (tmp_path / "spark-defaults.conf").write_text("spark.master yarn\nspark.jars.packages no.such:package:1\n")
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    here = dict.fromkeys(("SPARK_HOME", "SPARK_CONF_DIR", "HADOOP_CONF_DIR"), str(tmp_path))
    here |= {"PYSPARK_SUBMIT_ARGS": "--master yarn pyspark-shell", "JAVA_TOOL_OPTIONS": "-XX:+UseG1GC", "LC_ALL": "C"}
    here["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    here["TMPDIR"] = str(tmp_path / "of more characters than the sockets of Ray can have")
    os.mkdir(here["TMPDIR"])
    store = str(tmp_path / "in Köln")
    done = process("run", "--input", str(source), "--store", store, **here)
    assert done.returncode == 0, done.stderr
    assert "SPARK_HOME is not used" in done.stderr
    assert len(Store(store).read("documents")) == 200


def test_what_spark_says_of_its_failure_is_said(source, tmp_path) -> None:
    broken = "spark.conf={spark.hadoop.fs.file.impl: no.such.Class}"
    done = process("run", "--input", str(source), "--store", str(tmp_path / "store"), "--set", broken)
    assert done.returncode == 1
    assert "error: Spark failed: java.lang.ClassNotFoundException: Class no.such.Class not found. What is finished is kept" in done.stderr
    assert "Traceback" not in done.stderr
