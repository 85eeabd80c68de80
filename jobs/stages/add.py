"""What a batch of new documents does to the topics: found topics are appended, sums grow, nothing that was there moves."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.job import Job, Partition
from jobs.stages import publish
from jobs.stages.refine import Topics
from jobs.stages.zeroshot import Names, key_of
from ray_actors.parts import to_matrix
from ray_actors.refine import Nearest
from topicscale import labels as naming
from topicscale.cluster import Float32, unit
from topicscale.federate import vector_sums
from topicscale.merge import leaf_key, topic_key
from topicscale.novel import newcomers
from topicscale.refine import ALL, Sums
from topicscale.store import Snapshot, next_version, says, unit_id
from topicscale.tables import OUTLIER, TABLES
from topicscale.terms import KEYWORDS, name, top_terms

MARGIN = 0.1
"""How far below a topic's mean cosine a document still counts as explained by it."""


@dataclass(frozen=True)
class Base:
    """The topics of the generation that a batch is added to."""

    rows: list[dict[str, Any]]
    """``topics`` by id, outliers first if there are any; ids of topics are 0 to k - 1."""
    topics: Topics
    sums: Sums
    """(k + 1): outliers first."""


def read_base(job: Job, base: Snapshot) -> Base:
    """Return the topics of a generation, with their exact sums."""
    table = job.store.read("topics", version=base.versions["topics"]).sort_by("topic_id")
    rows = table.to_pylist()
    found = [row for row in rows if row["topic_id"] != OUTLIER]
    vectors = to_matrix(table.filter(pc.not_equal(table["topic_id"], OUTLIER))["reference_vector"])
    sites = job.store.read("site_topics", version=base.versions["site_topics"])
    labels = job.store.read("topic_labels", ["topic_id", "aspect", "label"], version=base.versions["topic_labels"]).to_pylist()
    given = {row["topic_id"]: row["label"] for row in labels if row["aspect"] == "zeroshot"}  # a hand-set name may hide it
    present = [row["topic_id"] for row in rows if row["size"] > 0]  # in this order publish writes the leaves
    matrix = vector_sums(sites)
    sums = np.zeros((len(found) + 1, matrix.shape[1]))
    counts = np.zeros(len(found) + 1, np.int64)
    for topic, size, total in zip(present, sites["size"].to_pylist(), matrix, strict=True):
        counts[topic + 1], sums[topic + 1] = size, total
    topics = Topics(
        [row["topic_key"] for row in found],
        vectors,
        np.array([row["cutoff"] for row in found], np.float32),
        np.array([row["core"] for row in found], np.float32),
        counts[1:],
        np.full(len(found), -1, np.int64),
        [given.get(row["topic_id"], row["label"]) if row["kind"] == "zeroshot" else "" for row in found],
    )
    return Base(rows, topics, Sums(counts, sums))


def explained(base: Base) -> dict[str, Any]:
    """Return what tells a unit of clustering which documents of a batch are well enough explained by the topics there are.

    A document is, when its cosine to the nearest topic is at most :data:`MARGIN` below that topic's mean. What is left is where
    new topics are looked for. Looking among outliers alone misses most of a topic that is near another; looking everywhere
    finds no more, and keeps ten times as many local topics to be looked through with every batch.
    """
    counts, sums = base.sums.counts[1:], base.sums.vector_sums[1:]
    mean = np.linalg.norm(sums, axis=1) / np.maximum(counts, 1)  # the mean cosine of unit rows to their own centre
    found = (counts > 0) & ~base.topics.named  # what names take is left out by itself
    return {"topics": base.topics.vectors[found], "limits": (mean - MARGIN)[found].astype(np.float32)}


@dataclass(frozen=True)
class Extended:
    """Topics with those that a batch brought."""

    topics: Topics
    new: list[int]
    """Ids of the new ones."""
    leaves: pa.Table
    """The batches' local topics that were looked at."""
    of_leaf: npt.NDArray[np.int64]
    """(leaves,): the new topic that each local topic makes, -1 for none."""


def extend(job: Job, base: Base, partitions: list[str], *, height: float, names: Names | None) -> Extended:
    """Return the topics, the names that took no document before and do now, and topics found in what fits none of them.

    Candidates are the local topics of all batches since the topics were fitted, so that what comes a few documents a day
    is seen once it is enough; documents of earlier batches stay where they were assigned.

    Parameters
    ----------
    partitions : list of str
        Partitions of those batches.
    height : float
        The granularity that the store was merged at; 0 where none was found, and no topic is.
    """
    rows = job.store.read("local_topics", ["partition_id", "local_topic", "size", "vector_sum"], partitions=partitions)
    rows = rows.sort_by([("partition_id", "ascending"), ("local_topic", "ascending")])
    sums, sizes = vector_sums(rows), rows["size"].to_numpy()
    topics, k = base.topics, len(base.topics.keys)
    found = ~topics.named  # what a name did not take is no part of its topic, however near
    present = found & (base.sums.counts[1:] > 0)  # documents may all have been forgotten
    # the same texts day by day are as many documents: of leaves alike in all, the hierarchy would take one
    leaves = np.array([leaf_key(int(size), total) for size, total in zip(sizes, sums, strict=True)], dtype=np.str_)
    _, first, alike, times = np.unique(leaves, return_index=True, return_inverse=True, return_counts=True)
    fresh = []
    if height:  # 0 joins nothing: every local topic would be one
        fresh = newcomers(
            base.sums.counts[1:][present],
            base.sums.vector_sums[1:][present],
            candidate_sizes=sizes[first] * times,
            candidate_sums=sums[first] * times[:, None],
            height=height,
            min_size=job.config.topics.min_size,
        )
    groups = {topic_key(leaves[first[members]].tolist()): np.flatnonzero(np.isin(alike, members)) for members in fresh}
    # a topic that is there and took no document, of which no mass tells
    groups = {key: members for key, members in groups.items() if key not in topics.keys}
    woken = [] if names is None else [i for i, key in enumerate(names.keys) if key not in topics.keys]
    of_leaf = np.full(len(sizes), -1, np.int64)
    for number, members in enumerate(groups.values()):
        of_leaf[members] = k + len(woken) + number
    number, new = len(groups), len(woken) + len(groups)
    if new == 0:
        return Extended(topics, [], rows, of_leaf)
    labels = [] if names is None else [names.labels[i] for i in woken]
    centres = [] if names is None else [names.vectors[i] for i in woken]
    totals = np.array([sums[members].sum(axis=0) for members in groups.values()]).reshape(number, sums.shape[1])
    centres += list(unit(totals))
    # the batch alone says little about how far a new topic reaches: it reaches as far as the others do, and to its own documents
    mean = np.linalg.norm(totals, axis=1) / np.array([sizes[members].sum() for members in groups.values()])
    usual = np.median(topics.cutoffs[found]) if found.any() else ALL
    least = np.full(len(woken), job.config.zeroshot.min_similarity, np.float32)
    extended = Topics(
        topics.keys + [key_of(label) for label in labels] + list(groups),
        np.concatenate([topics.vectors.reshape(k, -1 if k else len(centres[0])), np.array(centres, np.float32)]),
        np.concatenate([topics.cutoffs, least, np.minimum(usual, mean - MARGIN).astype(np.float32)]),
        np.concatenate([topics.cores, np.full(new, ALL, np.float32)]),
        np.concatenate([topics.sizes, np.zeros(new, np.int64)]),
        np.concatenate([topics.merged, np.full(new, -1, np.int64)]),
        topics.names + labels + [""] * number,
    )
    return Extended(extended, list(range(k, k + new)), rows, of_leaf)


def publish_batch(
    job: Job,
    base: Snapshot,
    before: Base,
    found: Extended,
    *,
    fp: str,
    partitions: list[Partition],
    space: str,
) -> Sums:
    """Write the tables that describe topics, with the batch's documents added, and return the batch's own sums.

    Everything is made of the base generation's rows and the batch's, so that a repeated call writes the same.
    """
    began = time.monotonic()
    pids, rows = [p.partition_id for p in partitions], {p.partition_id: p.rows for p in partitions}
    number = len(found.topics.keys)
    added, nearest = publish.summarise(job, number, pids, rows)
    held = Sums(_grown(before.sums.counts, added.counts.shape), _grown(before.sums.vector_sums, added.vector_sums.shape))
    total = held + added
    _add_terms(job, base, fp, pids, classes=int((total.counts > 0).sum()), cores=found.topics.cores)
    texts = publish.read_texts(job, [nearest[topic] for topic in found.new])
    keywords = top_terms(job.store.read_batches("topic_terms", KEYWORDS), job.config.terms.top_n_words)
    _write_topics(job, base, fp, before, found, total, keywords, nearest, texts)
    _write_lineage(job, base, fp, found, set(pids))
    names = naming.names(job.store.read("topic_labels", version=base.versions["topic_labels"]).to_pylist())
    publish.write_sites(job, fp, found.topics, total, space, names)
    job.whole("publish", fp, rows=number, seconds=time.monotonic() - began)
    return added


def recount(job: Job, fp: str) -> None:
    """Write the trends of topics that were fitted anew on documents of which some came in batches."""
    store = job.store
    snapshots = store.snapshots()
    versions = snapshots[-1].versions if snapshots else {}
    batches = store.read("batches", version=versions["batches"]).to_pylist() if "batches" in versions else []
    if not batches or says(store.unit_version("topic_trends", "add"), fp):
        return
    first = [row["at"] for row in store.read("topic_trends", version=versions["topic_trends"]).to_pylist() if row["batch"] == 0]
    at = {0: min(first, default=snapshots[0].at)} | {row["batch"]: row["at"] for row in batches}
    batch_of = {pid: row["batch"] for row in batches for pid in row["partition_ids"]}
    counts: Counter[tuple[int, int]] = Counter()
    for rows in store.read_batches("assignments", ["partition_id", "topic_id"]):
        found = pa.Table.from_batches([rows]).group_by(["partition_id", "topic_id"]).aggregate([([], "count_all")])
        for row in found.to_pylist():
            counts[batch_of.get(row["partition_id"], 0), row["topic_id"]] += row["count_all"]
    told = [
        {"batch": batch, "at": at[batch], "topic_id": topic, "documents": documents} for (batch, topic), documents in sorted(counts.items())
    ]
    store.replace("topic_trends", pa.Table.from_pylist(told, schema=TABLES["topic_trends"].schema), stage="add", unit_fingerprint=fp)


def _grown(values: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return sums with zeros for what they do not have: topics that are new, and all of it where every document was forgotten."""
    grown = np.zeros(shape, values.dtype)
    grown[tuple(map(slice, values.shape))] = values
    return grown


def _add_terms(job: Job, base: Snapshot, fp: str, partitions: list[str], *, classes: int, cores: Float32) -> None:
    previous = job.store.unit_version("topic_terms", "terms")
    if says(previous, fp):
        return
    from spark import terms as shell

    began = time.monotonic()
    versions = {table: job.store.table(table).version() for table in ("documents", "assignments")}
    counted = shell.add_terms(
        job.engines.spark,
        job.config.terms,
        store_uri=job.store.uri,
        partitions=partitions,
        versions={**versions, "topic_terms": base.versions["topic_terms"]},
        classes=classes,
        cores=cores,
        txn={"topic_terms": (unit_id("terms"), next_version(previous, fp))},
    )
    job.whole("terms", fp, rows=counted.rows, seconds=time.monotonic() - began)


def _write_topics(
    job: Job,
    base: Snapshot,
    fp: str,
    before: Base,
    found: Extended,
    total: Sums,
    keywords: Mapping[int, list[tuple[str, float]]],
    nearest: list[list[Nearest]],
    texts: Mapping[str, str],
) -> None:
    described = {row["topic_id"]: dict(row) for row in before.rows}
    words = {topic: [term for term, _ in best] for topic, best in keywords.items()}
    if total.counts[0]:
        fresh = publish.topic_row(OUTLIER, found.topics, total, words.get(OUTLIER, []), [])
        described.setdefault(OUTLIER, fresh)["reference_vector"] = fresh["reference_vector"]
    for topic in found.new:
        shown = [texts[doc_id] for _, doc_id, _, _ in nearest[topic] if doc_id in texts]
        described[topic] = publish.topic_row(topic, found.topics, total, words.get(topic, []), shown)
    for topic, row in described.items():
        # names stay as they were: people refer to them
        row |= {"size": int(total.counts[topic + 1]), "keywords": words.get(topic, [])}
    rows = [described[topic] for topic in sorted(described)]
    job.store.replace("topics", pa.Table.from_pylist(rows, schema=TABLES["topics"].schema), stage="publish", unit_fingerprint=fp)
    kept = [row for row in job.store.read("topic_labels", version=base.versions["topic_labels"]).to_pylist() if row["aspect"] != "ctfidf"]
    kept += [row for topic in found.new for row in publish.zeroshot_label(topic, found.topics)]
    labels = [
        {"topic_id": row["topic_id"], "aspect": "ctfidf", "label": name(row["topic_id"], row["keywords"]), "terms": row["keywords"]}
        for row in rows
    ]
    table = pa.Table.from_pylist([{**row, "status": "ok", "detail": ""} for row in labels] + kept, schema=TABLES["topic_labels"].schema)
    job.store.replace("topic_labels", table, stage="publish", unit_fingerprint=fp)


def _write_lineage(job: Job, base: Snapshot, fp: str, found: Extended, present: set[str]) -> None:
    """Append the batch's local topics: which became a new topic, and which did not (-1)."""
    held = job.store.read("topic_lineage", version=base.versions["topic_lineage"])
    sums, sizes = vector_sums(found.leaves), found.leaves["size"].to_pylist()
    rows = []
    for i, (pid, local) in enumerate(zip(found.leaves["partition_id"].to_pylist(), found.leaves["local_topic"].to_pylist(), strict=True)):
        topic = int(found.of_leaf[i])
        if pid not in present and topic < 0:
            continue  # told when its own batch was added
        similarity = float(found.topics.vectors[topic] @ sums[i] / max(np.linalg.norm(sums[i]), 1e-12)) if topic >= 0 else 0.0
        leaf = {"site": "", "partition_id": pid, "local_topic": local, "topic_key": leaf_key(sizes[i], sums[i]), "size": sizes[i]}
        rows.append({**leaf, "topic_id": topic, "similarity": similarity})
    schema = TABLES["topic_lineage"].schema
    again = {(row["partition_id"], row["local_topic"]) for row in rows}
    kept = [(p, t) not in again for p, t in zip(held["partition_id"].to_pylist(), held["local_topic"].to_pylist(), strict=True)]
    held = held.filter(pa.array(kept, pa.bool_()))
    job.store.replace(
        "topic_lineage", pa.concat_tables([held, pa.Table.from_pylist(rows, schema=schema)]), stage="publish", unit_fingerprint=fp
    )
