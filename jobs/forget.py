"""``topicscale forget``: documents out of every table and every sum, and their old files off the disk."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.job import Job, new_run_id, opened
from jobs.progress import Ui
from jobs.stages import add, embed, ingest, publish
from jobs.update import check
from ray_actors.parts import read_partition, to_list_array, to_matrix
from topicscale import labels as naming
from topicscale.cluster import local_statistics
from topicscale.config import Config, fingerprint
from topicscale.errors import RequestError
from topicscale.merge import leaf_key
from topicscale.refine import Sums, collect
from topicscale.store import PENDING, Snapshot, Store, UnitWrite, next_version, unit_id, write_part
from topicscale.tables import OUTLIER, SHOWN_CHARS, TABLES
from topicscale.terms import KEYWORDS, name, top_terms

PER_DOCUMENT = ("embeddings", "local_assignments", "assignments")
REPRESENTATIVES = 3
GIVEN = ("manual", "zeroshot")
"""Aspects that were not made of documents."""


def forget(ids_file: str | Path, store: str | Path, *, ui: Ui | None = None) -> dict[str, Any]:
    """Remove documents from a store, and return what was removed.

    Their rows go out of every table, their share out of every sum (sizes, vector sums, term counts, trends: exactly, since
    these add up), and every file that held them is deleted: earlier generations cannot be read afterwards. Topics stay the
    topics they were, reference vectors included; ``update --refit`` fits them anew without the documents. What left the
    store before (exports, merges, reports) is not reached.

    Parameters
    ----------
    ids_file : str
        One ``doc_id`` a line.

    Notes
    -----
    The ids are kept in the store until all is done, so that a forget that was killed is finished by the next one; until
    then nothing else writes to the store.

    Raises
    ------
    RequestError
        The file cannot be read or names no id.
    StoreError
        The store holds no finished run or no documents, or is in use.
    """
    ui = ui or Ui()
    began = time.monotonic()
    if "://" in str(ids_file):
        raise RequestError(f"--ids must be a file of this machine. Got {str(ids_file)!r} instead: copy it here first.")
    asked = _read_ids(Path(ids_file))
    check(Store(store))
    target = Store(store)  # not pinned: it reads what was just written
    run_id = new_run_id()
    with target.lock(run_id, forgetting=True), target.without_trainings(run_id):
        ingest.check_batches(target)
        pending = target.files.read(PENDING)
        # a store holds ids as they came, with the space around them
        ids = sorted({*asked, *map(str.strip, asked), *(json.loads(pending) if pending is not None else [])})
        reader = Store(store)
        base = reader.pin()
        if pending is None:  # else what differs from the base is what the forget that was killed has written
            ingest.check_base(target, base)
        config = Config.from_dict(base.configuration)
        with opened(target, config, run_id, ui, rows=0, adds=True) as job:
            gone = _find(reader, ids)
            refused = set(reader.select("quarantine", ["doc_id"], _wanted(ids))["doc_id"].to_pylist())
            unfinished = pending is not None or gone.num_rows > 0 or bool(refused)
            if unfinished:
                target.files.write(PENDING, json.dumps(ids).encode())
            quarantined = _remove(job, reader, base, gone, ids) if gone.num_rows or refused else 0
            if unfinished:
                ui.log("stage", "forget: deleting old files")
                target.forget_history()
                target.files.remove(PENDING)
    found = set(gone["doc_id"].to_pylist())
    return {
        "store": target.uri,
        "forgotten": len(found),
        "not_found": sum(not {line, line.strip()} & (found | refused) for line in asked),
        "quarantined": quarantined,
        "finished_earlier": pending is not None,
        "generation": target.snapshots()[-1].generation,
        "seconds": round(time.monotonic() - began, 3),
    }


def describe(found: Mapping[str, Any]) -> str:
    """Return what was removed, for people."""
    missing = f" {found['not_found']:,} of the ids are not in this store." if found["not_found"] else ""
    if not found["forgotten"] and not found["quarantined"]:
        done = "A forget that was cut short is finished: old files are deleted." if found["finished_earlier"] else "Nothing to forget."
        return f"{done}{missing}"
    more = f", {found['quarantined']:,} rows out of quarantine" if found["quarantined"] else ""
    return (
        f"{found['forgotten']:,} documents forgotten{more}, {found['seconds']:.0f} s -> {found['store']} "
        f"(generation {found['generation']}; earlier ones are gone).{missing}\n"
        f"The topics are still those they helped to find. Fit them anew with: topicscale update --refit --store {found['store']}"
    )


def _read_ids(path: Path) -> list[str]:
    try:
        # lines end as files' lines do, since an id may hold what str.splitlines ends one at
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--ids must be a text file with one doc_id a line. {str(path)!r} cannot be read: {error}") from error
    ids = sorted({line for line in lines if line.strip()})
    if not ids:
        raise RequestError(f"--ids must name at least one doc_id. {str(path)!r} holds none.")
    return ids


def _find(reader: Store, ids: list[str]) -> pa.Table:
    """Return ``doc_id`` and ``partition_id`` of those that the pinned generation holds."""
    return reader.select("documents", ["doc_id", "partition_id", "text"], _wanted(ids))


def _wanted(ids: list[str]) -> pc.Expression:
    return pc.is_in(pc.field("doc_id"), pa.array(ids, pa.string()))


def _remove(job: Job, reader: Store, base: Snapshot, gone: pa.Table, ids: list[str]) -> int:
    from spark import forget as shell

    began = time.monotonic()
    fp = job.print_of("forget", base.generation, fingerprint(ids))
    ingest.drop_unpublished(job.store, base)
    partitions = sorted(set(gone["partition_id"].to_pylist()))
    quarantined = shell.remove_documents(job.engines.spark, job.config, store_uri=job.store.uri, ids=ids, partitions=partitions)
    before = add.read_base(job, base)
    # with their new digests, so that a refit need not embed again; of the space they are in, for which no model need be at hand
    prints = embed.prints_of(job, ingest.read_partitions(job), space=base.summary["space"])
    removed, trends = Sums(np.zeros_like(before.sums.counts), np.zeros_like(before.sums.vector_sums)), {}
    lineage: dict[tuple[str, int], dict[str, Any]] = {}
    with job.ui.stage("forget", len(partitions), unit="partitions") as bar:
        for pid in partitions:
            sums, leaves = _partition(job, base, pid, ids, prints.get(pid, fp), fp, shape=before.sums.vector_sums.shape)
            removed, trends[pid] = removed + sums, sums.counts
            lineage |= {(pid, leaf["local_topic"]): leaf for leaf in leaves}
            bar.advance(1)
    left = Sums(before.sums.counts - removed.counts, before.sums.vector_sums - removed.vector_sums)
    shell.remove_terms(
        job.engines.spark,
        job.config,
        store_uri=job.store.uri,
        ids=ids,
        versions=base.versions,
        classes=int((left.counts > 0).sum()),
        cores=before.topics.cores,
        txn={"topic_terms": (unit_id("terms"), next_version(job.store.unit_version("topic_terms", "terms"), fp))},
    )
    texts = {text[:SHOWN_CHARS] for text in gone["text"].to_pylist()}
    _write_topics(job, base, fp, before, left, removed, texts)
    _write_lineage(job, base, fp, set(partitions), lineage)
    _write_trends(job, base, fp, trends)
    names = naming.names(job.store.read("topic_labels").to_pylist())
    if job.store.has("answers"):  # a model's answers tell what its prompts held
        job.store.table("answers").delete()
    publish.write_sites(job, fp, before.topics, left, base.summary["space"], names)
    # an update that was killed may have left a later version, whose files alone would stay
    batches = job.store.read("batches", version=base.versions["batches"])
    job.store.replace("batches", batches, stage="add", unit_fingerprint=fp)
    placed = job.store.read("document_map", version=base.versions["document_map"])
    job.store.replace("document_map", placed.filter(pc.invert(_among(placed["doc_id"], ids))), stage="map", unit_fingerprint=fp)
    summary = {
        **base.summary,
        "documents": base.summary["documents"] - int(removed.counts.sum()),
        "outliers": base.summary["outliers"] - int(removed.counts[0]),
    }
    job.store.publish(configuration=base.configuration, summary=summary, unit_fingerprint=fp)
    job.whole("forget", fp, rows=gone.num_rows, seconds=time.monotonic() - began)
    return quarantined


def _partition(
    job: Job, base: Snapshot, pid: str, ids: list[str], embed_print: str, fp: str, *, shape: tuple[int, int]
) -> tuple[Sums, list[dict[str, Any]]]:
    """Rewrite one partition without the documents; return the sums that go, outliers first, and the local topics that stay.

    ``shape`` is that of the store's sums: (topics and outliers, d). A partition whose embedding failed has no vectors, and no d.
    """
    held = {table: read_partition(job.store.uri, table, pid, TABLES[table].schema.names, base.versions[table]) for table in PER_DOCUMENT}
    embeddings, assigned = held["embeddings"], held["assignments"]
    vectors = to_matrix(embeddings["vector"]).reshape(embeddings.num_rows, shape[1])
    # a document that could not be assigned is in no sum
    topic_of = dict(zip(assigned["doc_id"].to_pylist(), assigned["topic_id"].to_pylist(), strict=True))
    lost = _among(embeddings["doc_id"], ids).to_numpy()
    topics = np.array([topic_of.get(doc_id, OUTLIER - 1) + 1 for doc_id in embeddings["doc_id"].to_pylist()], np.int64)
    sums = collect(vectors[lost], topics[lost], shape[0])
    writes: dict[str, pa.Table] = {table: rows.filter(pc.invert(_among(rows["doc_id"], ids))) for table, rows in held.items()}
    local = writes["local_assignments"]
    row_of = {doc_id: row for row, doc_id in enumerate(embeddings["doc_id"].to_pylist())}
    names = local["doc_id"].to_pylist()
    sizes, totals, nearest = local_statistics(
        local["local_topic"].to_numpy(), vectors[[row_of[doc_id] for doc_id in names]], representatives=REPRESENTATIVES
    )
    present = np.flatnonzero(sizes)
    writes["local_topics"] = pa.table(
        {
            "local_topic": pa.array(present, pa.int32()),
            "size": pa.array(sizes[present], pa.int64()),
            "vector_sum": to_list_array(totals[present]),
            "representative_doc_ids": pa.array([[names[row] for row in nearest[i]] for i in present], pa.list_(pa.string())),
        }
    )
    stages = {"embeddings": "embed", "local_assignments": "cluster", "local_topics": "cluster", "assignments": "assign"}
    for table, rows in writes.items():
        if rows.num_rows == 0 and table != "local_topics" and held[table].num_rows == 0:
            continue
        files = write_part(job.store.uri, table, pid, rows)
        job.store.commit(table, [UnitWrite(stages[table], pid, embed_print if table == "embeddings" else fp, files)])
    leaves = [{"local_topic": int(i), "size": int(sizes[i]), "topic_key": leaf_key(int(sizes[i]), totals[i])} for i in present]
    return sums, leaves


def _among(column: pa.ChunkedArray, ids: list[str]) -> pa.ChunkedArray:
    return pc.is_in(column, value_set=pa.array(ids, pa.string()))


def _write_topics(job: Job, base: Snapshot, fp: str, before: add.Base, left: Sums, removed: Sums, texts: set[str]) -> None:
    best = top_terms(job.store.read_batches("topic_terms", KEYWORDS), job.config.terms.top_n_words)
    labels = job.store.read("topic_labels", version=base.versions["topic_labels"]).to_pylist()
    # what was made of a topic's documents may hold a word that nobody else wrote: it goes, until it is made again
    labels = [row for row in labels if row["aspect"] in GIVEN or not removed.counts[row["topic_id"] + 1]]
    named = {row["topic_id"] for row in labels if row["aspect"] in GIVEN}
    rows = []
    for row in before.rows:
        topic = row["topic_id"]
        words = [term for term, _ in best.get(topic, [])]
        if topic == OUTLIER and left.counts[0] == 0:
            continue
        row = {**row, "size": int(left.counts[topic + 1]), "keywords": words}
        row["representative_docs"] = [text for text in row["representative_docs"] if text not in texts]
        if removed.counts[topic + 1] and topic not in named:
            row["label"] = name(topic, words)
        if topic == OUTLIER:
            row["reference_vector"] = publish.topic_row(OUTLIER, before.topics, left, [], [])["reference_vector"]
        rows.append(row)
    job.store.replace("topics", pa.Table.from_pylist(rows, schema=TABLES["topics"].schema), stage="publish", unit_fingerprint=fp)
    told = [
        {"topic_id": r["topic_id"], "aspect": "ctfidf", "label": name(r["topic_id"], r["keywords"]), "terms": r["keywords"]}
        | {"status": "ok", "detail": ""}
        for r in rows
    ] + [row for row in labels if row["aspect"] != "ctfidf"]
    job.store.replace(
        "topic_labels", pa.Table.from_pylist(told, schema=TABLES["topic_labels"].schema), stage="publish", unit_fingerprint=fp
    )


def _write_lineage(job: Job, base: Snapshot, fp: str, partitions: set[str], leaves: Mapping[tuple[str, int], dict[str, Any]]) -> None:
    rows = []
    for row in job.store.read("topic_lineage", version=base.versions["topic_lineage"]).to_pylist():
        if row["partition_id"] in partitions:
            leaf = leaves.get((row["partition_id"], row["local_topic"]))
            if leaf is None:
                continue
            row = {**row, **leaf}
        rows.append(row)
    job.store.replace(
        "topic_lineage", pa.Table.from_pylist(rows, schema=TABLES["topic_lineage"].schema), stage="publish", unit_fingerprint=fp
    )


def _write_trends(job: Job, base: Snapshot, fp: str, removed: Mapping[str, Any]) -> None:
    batch_of = {
        pid: row["batch"] for row in job.store.read("batches", version=base.versions["batches"]).to_pylist() for pid in row["partition_ids"]
    }
    less: dict[tuple[int, int], int] = {}
    for pid, counts in removed.items():
        for topic, count in enumerate(counts):
            key = (batch_of.get(pid, 0), topic - 1)
            less[key] = less.get(key, 0) + int(count)
    rows = job.store.read("topic_trends", version=base.versions["topic_trends"]).to_pylist()
    for row in rows:
        row["documents"] -= less.get((row["batch"], row["topic_id"]), 0)
    job.store.replace("topic_trends", pa.Table.from_pylist(rows, schema=TABLES["topic_trends"].schema), stage="add", unit_fingerprint=fp)
