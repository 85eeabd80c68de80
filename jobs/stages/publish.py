"""Stages 6 and 7: term counts (Spark) beside statistics and the map (Ray); then topics, lineage, and a generation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.job import Job
from jobs.stages.cluster import sample
from jobs.stages.embed import model_of
from jobs.stages.refine import Topics, merge, read_local
from ray_actors.parts import to_list_array
from ray_actors.pool import Unit
from ray_actors.refine import Nearest, by_partition, nearer
from topicscale import labels
from topicscale.cluster import Float32, unit
from topicscale.leaf_terms import term_maps, vocabulary
from topicscale.merge import leaf_key, topic_key
from topicscale.refine import Sums, assign
from topicscale.store import next_version, says, unit_id
from topicscale.tables import OUTLIER, SHOWN_CHARS, TABLES
from topicscale.terms import KEYWORDS, name, top_terms

_TABLES = ("topics", "topic_lineage", "topic_labels", "site_topics")


def terms_print(job: Job, refined: str, assigned: Mapping[str, str]) -> str:
    """Return the fingerprint of the term counts."""
    counted = {key: value for key, value in job.config.to_dict()["terms"].items() if key != "top_n_words"}  # that one only shows
    return job.print_of("terms", refined, sorted(assigned.items()), counted)


def map_print(job: Job, refined: str, assigned: Mapping[str, str]) -> str:
    """Return the fingerprint of the map."""
    return job.print_of("map", refined, sorted(assigned.items()), job.config.represent.map_documents, job.config.cluster.seed)


def publish_print(job: Job, terms: str, placed: str, space: str) -> str:
    """Return the fingerprint of the tables that describe topics."""
    return job.print_of("publish", terms, placed, space, job.config.represent.representative_documents, job.config.terms.top_n_words)


def publish(
    job: Job,
    *,
    topics: Topics,
    refined: str,
    assigned: Mapping[str, str],
    rows: Mapping[str, int],
    space: str,
    height: float | None,
) -> str:
    """Write all that describes the topics and return its fingerprint; where units failed, fewer partitions than ``rows`` are assigned."""
    terms, placed = terms_print(job, refined, assigned), map_print(job, refined, assigned)
    fp = publish_print(job, terms, placed, space)
    done = all(says(job.store.unit_version(table, "publish"), fp) for table in _TABLES)

    def on_ray() -> tuple[Sums, list[list[Nearest]]] | None:
        _place(job, placed, topics, sorted(assigned), rows)
        return None if done else summarise(job, len(topics.keys), sorted(assigned), rows)

    if not says(job.store.unit_version("topic_terms", "terms"), terms):
        # before the thread: starting the JVM forks, and OpenBLAS, which empties its thread pool at a fork, hangs for ever
        # in a product that another thread has under way
        job.engines.spark  # noqa: B018
    # neither needs the other, and each leaves processors idle while it waits
    beside = _Thread(on_ray)
    beside.start()
    try:
        count_terms(job, terms, cores=topics.cores)
    finally:
        beside.join()
    summary = beside.result()
    if summary is None:
        return fp
    sums, nearest = summary
    began = time.monotonic()
    texts = read_texts(job, nearest)
    keywords = top_terms(job.store.read_batches("topic_terms", KEYWORDS), job.config.terms.top_n_words)
    named = labels.carried(job.store, topics.keys, topics.vectors)
    for topic, similarity in named.alike.items():
        said = f"publish: topic {topic} is called {named.names[topic]!r}, as one that is {similarity:.3f} like it was"
        job.ui.log("stage", said, stage="publish")
    for label in named.gone:
        job.ui.log("warning", f"publish: the topic that was named {label!r} is gone; generations before this one keep it")
    _write_topics(job, fp, topics, sums, keywords, nearest, texts, named.names)
    _write_lineage(job, fp, topics, partitions=len(rows), height=height)
    write_sites(job, fp, topics, sums, space, named.names)
    job.whole("publish", fp, rows=len(topics.keys), seconds=time.monotonic() - began)
    return fp


def count_terms(job: Job, fp: str, *, cores: Float32) -> None:
    """Write ``topic_terms``, unless it holds what ``fp`` says."""
    if says(job.store.unit_version("topic_terms", "terms"), fp):
        return
    from spark import terms as shell

    began = time.monotonic()
    versions = {table: job.store.table(table).version() for table in ("documents", "assignments")}
    transaction = {"topic_terms": (unit_id("terms"), next_version(job.store.unit_version("topic_terms", "terms"), fp))}
    counted = shell.count_terms(
        job.engines.spark, job.config.terms, store_uri=job.store.uri, cores=cores, versions=versions, txn=transaction
    )
    job.whole("terms", fp, rows=counted.rows, seconds=time.monotonic() - began)


def _place(job: Job, fp: str, topics: Topics, partitions: list[str], rows: Mapping[str, int]) -> None:
    if says(job.store.unit_version("document_map", "map"), fp):
        return
    began = time.monotonic()
    size = job.config.represent.map_documents
    table = TABLES["document_map"].schema.empty_table()
    if size:
        shown = sample(job, partitions, sum(rows[pid] for pid in partitions), size)
        labels, _ = assign(shown.vectors, topics.vectors, topics.cutoffs, named=topics.named)
        points = job.engines.pool.call("layout", vectors=shown.vectors, labels=labels, seed=job.config.cluster.seed)
        table = pa.table({"doc_id": shown.doc_ids, "partition_id": shown.partition_ids, "x": points[:, 0], "y": points[:, 1]})
    job.store.replace("document_map", table, stage="map", unit_fingerprint=fp)
    job.whole("map", fp, rows=table.num_rows, seconds=time.monotonic() - began)


def summarise(job: Job, number: int, partitions: list[str], rows: Mapping[str, int]) -> tuple[Sums, list[list[Nearest]]]:
    """Return the whole corpus's statistics by topic (outliers first) and each topic's nearest documents with their partition."""
    versions = {
        "embeddings_version": job.store.table("embeddings").version(),
        "assignments_version": job.store.table("assignments").version(),
    }
    wanted = job.config.represent.representative_documents
    groups = job.groups(partitions, rows)
    units = [
        Unit(key, {"number": number, "representatives": wanted, "store_uri": job.store.uri, "partition_ids": group, **versions})
        for key, group in groups.items()
    ]
    total: Sums | None = None
    nearest: list[list[Nearest]] = [[] for _ in range(number)]
    with job.ui.stage("summarise", sum(rows[pid] for pid in partitions)) as bar:
        for key, (sums, found) in job.each("summarise", units, stage="summarise"):
            total = sums if total is None else total + sums
            nearest = nearer(nearest, found, wanted)
            bar.advance(sum(rows[pid] for pid in groups[key]))
    assert total is not None
    return total, nearest


def read_texts(job: Job, nearest: list[list[Nearest]]) -> dict[str, str]:
    version = job.store.table("documents").version()
    units = [
        Unit(pid, {"store_uri": job.store.uri, "partition_id": pid, "documents_version": version, "doc_ids": ids, "columns": ["text"]})
        for pid, ids in by_partition(nearest)
    ]
    texts: dict[str, str] = {}
    for _, found in job.each("texts", units, stage="texts"):
        texts |= {doc_id: row["text"][:SHOWN_CHARS] for doc_id, row in found.items()}
    return texts


def _write_topics(
    job: Job,
    fp: str,
    topics: Topics,
    sums: Sums,
    keywords: Mapping[int, list[tuple[str, float]]],
    nearest: list[list[Nearest]],
    texts: Mapping[str, str],
    names: Mapping[int, str],
) -> None:
    described: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    for topic in range(OUTLIER, len(topics.keys)):
        if topic == OUTLIER and sums.counts[0] == 0:
            continue
        words = [term for term, _ in keywords.get(topic, [])]
        shown = [] if topic == OUTLIER else [texts[doc_id] for _, doc_id, _, _ in nearest[topic] if doc_id in texts]
        row = topic_row(topic, topics, sums, words, shown)
        described.append(row | {"label": names[topic]} if topic in names else row)
        told.append({"topic_id": topic, "aspect": "ctfidf", "label": name(topic, words), "terms": words, "status": "ok", "detail": ""})
        told += zeroshot_label(topic, topics)
        if topic in names:
            told.append(labels.label_row(topic, names[topic]))
    job.store.replace("topics", pa.Table.from_pylist(described, schema=TABLES["topics"].schema), stage="publish", unit_fingerprint=fp)
    job.store.replace(
        "topic_labels", pa.Table.from_pylist(told, schema=TABLES["topic_labels"].schema), stage="publish", unit_fingerprint=fp
    )


def zeroshot_label(topic: int, topics: Topics) -> list[dict[str, Any]]:
    """Return the row of ``topic_labels`` that holds the name a topic was given in advance; none where it was found."""
    if topic == OUTLIER or not topics.names[topic]:
        return []
    return [{"topic_id": topic, "aspect": "zeroshot", "label": topics.names[topic], "terms": [], "status": "ok", "detail": ""}]


def topic_row(topic: int, topics: Topics, sums: Sums, keywords: list[str], representative_docs: list[str]) -> dict[str, Any]:
    """Return a row of ``topics``; ``sums`` has the outliers first."""
    outlier = topic == OUTLIER
    given = "" if outlier else topics.names[topic]
    # the outliers' centre is told for the curious; nothing is assigned to it
    vector = unit(sums.vector_sums[:1])[0] if outlier else topics.vectors[topic]
    return {
        "topic_id": topic,
        "topic_key": "" if outlier else topics.keys[topic],
        "kind": "outliers" if outlier else "zeroshot" if given else "found",
        "size": int(sums.counts[topic + 1]),
        "reference_vector": vector.astype(np.float32).tolist(),
        "cutoff": None if outlier else float(topics.cutoffs[topic]),
        "core": None if outlier else float(topics.cores[topic]),
        "parent_id": None,
        "label": given or name(topic, keywords),
        "keywords": keywords,
        "representative_docs": representative_docs,
    }


def _write_lineage(job: Job, fp: str, topics: Topics, *, partitions: int, height: float | None) -> None:
    local = read_local(job)
    merged = merge(job, local, partitions=partitions, height=height, named=int(topics.named.sum()))
    final = np.full(merged.number + 1, OUTLIER, np.int32)  # merged topics that dissolved have no topic of their own
    found = np.flatnonzero(topics.merged >= 0)
    final[topics.merged[found]] = found
    group = merged.labels[local.leaf]
    lineage = pa.table(
        {
            "site": pa.array([""] * len(local.topics), pa.string()),
            "partition_id": pa.array(local.partition_ids, pa.string()),
            "local_topic": pa.array(local.topics, pa.int32()),
            "topic_key": pa.array([local.leaves.keys[i] for i in local.leaf], pa.string()),
            "size": pa.array(local.sizes, pa.int64()),
            "topic_id": pa.array(final[group], pa.int32()),
            "similarity": pa.array(merged.similarities[local.leaf], pa.float32()),
        }
    )
    job.store.replace("topic_lineage", lineage, stage="publish", unit_fingerprint=fp)


def write_sites(job: Job, fp: str, topics: Topics, sums: Sums, space: str, names: Mapping[int, str]) -> None:
    """Write the leaves that merging stores reads: exact sums of what was assigned, outliers included, no text but given names."""
    present = [t for t in range(OUTLIER, len(topics.keys)) if sums.counts[t + 1] > 0]
    keys = [leaf_key(int(sums.counts[t + 1]), sums.vector_sums[t + 1]) for t in present]
    counts, documents = term_maps(job.store.read_batches("topic_terms", ["topic_id", "term", "count", "documents"]), present)
    vectors = sums.vector_sums[[t + 1 for t in present]] if present else np.zeros((0, 0))
    table = pa.table(
        {
            "site": pa.repeat("", len(present)),
            "site_id": pa.repeat("", len(present)),
            "generation": pa.repeat(0, len(present)),
            "topic_key": pa.array(
                ["outliers" if t == OUTLIER else topic_key([key]) for t, key in zip(present, keys, strict=True)], pa.string()
            ),
            "label": pa.array([names.get(t) or ("" if t == OUTLIER else topics.names[t]) for t in present], pa.string()),
            "size": pa.array([int(sums.counts[t + 1]) for t in present], pa.int64()),
            "vector_sum": to_list_array(vectors),
            "term_counts": counts,
            "term_documents": documents,
            "min_documents": pa.repeat(job.config.terms.min_df, len(present)),
            "embedding_space": pa.repeat(space, len(present)),
            "embedding_model": pa.repeat(model_of(job), len(present)),
            "vocabulary": pa.repeat(vocabulary(job.config.terms), len(present)),
        }
    )
    job.store.replace("site_topics", table, stage="publish", unit_fingerprint=fp)


class _Thread(threading.Thread):
    """A thread whose value, or error, is had where it is asked for."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value
