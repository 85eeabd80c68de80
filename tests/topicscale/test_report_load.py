"""The report's data read from a real store; no engine is needed for that."""

from __future__ import annotations

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from topicscale.errors import StoreError
from topicscale.report import build, load
from topicscale.store import Store, UnitWrite, write_part
from topicscale.tables import TABLES

PARTITIONS = ("site-a", "site-b")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Forty documents in two partitions and two topics, five outliers, three quarantined rows."""
    path = tmp_path_factory.mktemp("store")
    made = Store(path / "s", create=True)
    ids = [f"d{i:02}" for i in range(40)]
    topic = [-1 if i % 8 == 7 else i % 2 for i in range(40)]
    partition = [PARTITIONS[i % 5 == 0] for i in range(40)]
    documents = pa.table(
        {
            "doc_id": ids,
            "partition_id": partition,
            "text": [f"The text of document {i}" for i in range(40)],
            "text_hash": ids,
            "Title": [None if i == 0 else f"Title {i}" for i in range(40)],
        }
    )
    # what Spark writes in a run
    write_deltalake(made.table_path("documents"), documents, partition_by=["partition_id"])
    spark = {
        "partitions": {"partition_id": PARTITIONS, "value": ("Site A", "Site B"), "rows": (32, 8), "chars": (1, 1), "digest": ("", "")},
        "quarantine": {
            "source": ["f:1", "f:2", "f:3"],
            "reason": ["empty", "empty", "bad_row"],
            "raw": ["", " ", "a;b"],
            "doc_id": [None] * 3,
        },
    }
    for name, columns in spark.items():
        write_deltalake(made.table_path(name), pa.table(columns).cast(TABLES[name].schema))
    for one in PARTITIONS:
        mine = [i for i in range(40) if partition[i] == one]
        rows = pa.table(
            {
                "doc_id": [ids[i] for i in mine],
                "topic_id": pa.array([topic[i] for i in mine], pa.int32()),
                "probability": pa.array([1.0] * len(mine), pa.float32()),
            }
        )
        files = write_part(made.uri, "assignments", one, rows.append_column("partition_id", pa.array([one] * len(mine))))
        made.commit("assignments", [UnitWrite("assign", one, "ab" * 16, files)])
    topics = [
        {"topic_id": -1, "size": 5, "label": "-1_x", "keywords": ["x"], "representative_docs": []},
        {"topic_id": 0, "size": 20, "label": "0_oil", "keywords": ["oil", "gas"], "representative_docs": ["d02", "A text itself"]},
        {"topic_id": 1, "size": 15, "label": "Courts", "keywords": ["court"], "representative_docs": None},
    ]
    lineage = [{"partition_id": p, "local_topic": k, "topic_id": k % 2, "size": 5} for p in PARTITIONS for k in range(3)]
    labels = [
        {"topic_id": 0, "aspect": "ctfidf", "label": "0_oil", "terms": ["oil"], "status": "ok"},
        {"topic_id": 0, "aspect": "llm", "label": "Energy", "terms": [], "status": "ok"},
        {"topic_id": 1, "aspect": "llm", "label": "?", "terms": [], "status": "failed"},
        {"topic_id": 1, "aspect": "manual", "label": "Courts", "terms": [], "status": "ok"},
    ]
    places = [
        {"doc_id": d, "partition_id": p, "x": float(i), "y": float(i % 7)} for i, (d, p) in enumerate(zip(ids, partition, strict=True))
    ]
    for name, rows in (("topics", topics), ("topic_lineage", lineage), ("topic_labels", labels), ("document_map", places)):
        made.replace(name, pa.Table.from_pylist(rows, schema=TABLES[name].schema), stage="t", unit_fingerprint="cd" * 16)
    runs = [
        {"run_id": run, "stage": stage, "partition_id": p, "status": status, "rows": 20, "seconds": 1.5, "at": at}
        for at, (run, stage, p, status) in enumerate(
            [
                ("r1", "ingest", None, "done"),
                ("r1", "embed", "site-a", "done"),
                ("r2", "embed", "site-a", "failed"),
                ("r2", "embed", "site-gone", "done"),
                ("r3", "embed", "site-b", "done"),
            ]
        )
    ]
    made.append("runs", pa.Table.from_pylist(runs, schema=TABLES["runs"].schema))
    made.publish(configuration={"embedding": {"model": "some-model"}}, summary={}, unit_fingerprint="ef" * 16)
    return made.uri


def test_reads_what_the_page_shows(store):
    data = load(Store(store), title="Mine", evaluation={"store": "x", "words": {"npmi": 0.1, "topics": 2}, "labels": {"nmi": 0.4}})
    assert (data.title, data.documents, data.total) == ("Mine", 40, 40)
    assert [t.topic_id for t in data.topics] == [0, 1, -1]
    first = data.topics[0]
    # an id becomes its text, a text stays
    assert first.examples == ("The text of document 2", "A text itself")
    assert {name: a.label for name, a in first.aspects.items()} == {"llm": "Energy"}
    assert [t.local_topics for t in data.topics] == [4, 2, None]
    assert "llm" not in data.topics[1].aspects
    assert data.evaluation == {"nmi": 0.4, "npmi": 0.1}
    assert "some-model" in data.configuration
    assert data.summary == {"Embedding": "some-model"}


def test_map_shows_titles_and_the_assigned_topics(store):
    shown = load(Store(store)).map
    assert len(shown) == 40
    assert shown.text[:2] == ["The text of document 0", "Title 1"]
    assert shown.topic_id.tolist() == [-1 if i % 8 == 7 else i % 2 for i in range(40)]


def test_lineage_counts_documents_under_the_partitions_names(store):
    data = load(Store(store))
    assert {item.partition for item in data.lineage} == {"Site A", "Site B"}
    assert sum(item.documents for item in data.lineage) == 40
    assert sum(item.documents for item in data.lineage if item.topic_id == -1) == 5


def test_quarantine_and_timings(store):
    data = load(Store(store))
    assert data.quarantine == {"empty": 2, "bad_row": 1}
    assert [row.reason for row in data.quarantine_examples] == ["bad_row", "empty", "empty"]
    # what each unit last took, whichever run did it, failed ones aside
    assert [(t.stage, t.units, t.rows, t.seconds) for t in data.timings] == [("ingest", 1, 20, 1.5), ("embed", 2, 40, 3.0)]


def test_page_of_a_store(store):
    html = build(load(Store(store)))
    assert "40 documents in 2 topics" in html
    assert "Energy" in html


def test_more_documents_than_the_page_shows(store, monkeypatch):
    monkeypatch.setattr("topicscale.report.read.MAX_POINTS", 10)
    data = load(Store(store))
    assert len(data.map) == 10
    assert data.documents == 40


def test_a_store_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(StoreError, match="holds no finished run"):
        load(Store(tmp_path / "s", create=True))
