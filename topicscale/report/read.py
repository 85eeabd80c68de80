"""Read what a report shows from a store, at its newest finished generation.

Tables with a row per document are read batch by batch and only what the page shows is kept, so memory is bounded by the
map's sample and the number of topics and partitions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from topicscale import sites
from topicscale.labels import names as names_given
from topicscale.report.data import HOVER_CHARS, Aspect, DocumentMap, Lineage, QuarantinedRow, ReportData, Timing, Topic, shorten
from topicscale.report.page import MAX_POINTS
from topicscale.store import Store
from topicscale.tables import OUTLIER, PARTITION

TITLES = ("title", "headline", "name", "subject")
"""Kept input columns that name a document better than the beginning of its text does."""
EXAMPLES = 3
QUARANTINED = 20
MEASURES = ("nmi", "ami", "ari", "purity", "npmi", "c_v", "diversity")


class Reader(Protocol):
    """What is needed of a store (``topicscale.store.Store``)."""

    def has(self, name: str) -> bool: ...

    def pin(self, generation: int | None = None) -> Any: ...

    def read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table: ...

    def read_batches(self, name: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]: ...

    def table(self, name: str, *, version: int | None = None) -> Any: ...


def load(
    store: Reader, *, title: str = "Topics", generation: int | None = None, evaluation: Mapping[str, float] | None = None
) -> ReportData:
    """Return what a report shows of a store.

    Parameters
    ----------
    store : Store
        Pinned to ``generation`` (None: the newest) by this function.
    evaluation : mapping, optional
        Measures, as ``topicscale.evaluate`` returns them; several such mappings may be grouped in one.

    Raises
    ------
    StoreError
        The store holds no finished run.
    """
    snapshot = store.pin(generation)
    if "documents" not in snapshot.versions:
        return _topics_alone(store, snapshot, title, evaluation or {})
    held = {name for name in snapshot.versions if store.has(name)}
    places = _map_rows(store) if "document_map" in held else {}
    rows = _topic_rows(store)
    examples = {str(doc) for row in rows for doc in (row["representative_docs"] or [])[:EXAMPLES]}
    hover, texts = _texts(store, snapshot, set(places), examples)
    shares: Counter[tuple[int, str]] = Counter()
    topic_of: dict[str, int] = {}
    _read_assignments(store, places, shares, topic_of)
    labels = store.read("topic_labels").to_pylist() if "topic_labels" in held else []
    aspects, given = _aspects(labels), names_given(labels)
    local = _local_topics(store) if "topic_lineage" in held else {}
    leaves = sites.leaves(cast(Store, store)) if sites.is_merged(snapshot) else []
    names = _partition_names(store) if "partitions" in held else {}
    shown = [doc for doc in places if doc in topic_of]
    refused, refused_examples = _quarantine(store) if "quarantine" in held else ({}, [])
    at = snapshot.at or datetime.now(UTC)
    return ReportData(
        title=title,
        generated=at if at.tzinfo else at.replace(tzinfo=UTC),
        topics=[
            Topic(
                topic_id=row["topic_id"],
                size=row["size"],
                label=given.get(row["topic_id"], ""),
                keywords=tuple(row["keywords"] or ()),
                # a store may hold the documents' ids or their texts
                examples=tuple(texts.get(str(doc), str(doc)) for doc in (row["representative_docs"] or [])[:EXAMPLES]),
                aspects=aspects.get(row["topic_id"], {}),
                local_topics=local.get(row["topic_id"]),
            )
            for row in rows
        ],
        map=DocumentMap(
            np.array([places[doc][0] for doc in shown], np.float32),
            np.array([places[doc][1] for doc in shown], np.float32),
            np.array([topic_of[doc] for doc in shown], np.int32),
            [hover.get(doc, "") for doc in shown],
        )
        if shown
        else None,
        documents=sum(row["size"] for row in rows),  # of all sites, some of which may have kept their documents
        summary={"Embedding": snapshot.configuration["embedding"]["model"]} if "embedding" in snapshot.configuration else {},
        lineage=[Lineage(topic, names.get(partition, partition), n) for (topic, partition), n in sorted(shares.items())],
        quarantine=refused,
        quarantine_examples=refused_examples,
        configuration=yaml.safe_dump(dict(snapshot.configuration), sort_keys=False, allow_unicode=True) if snapshot.configuration else "",
        timings=_timings(store, snapshot) if store.has("runs") else [],
        evaluation=_measures(evaluation or {}),
        sites=sites.by_site(leaves),
        conflicts=sites.conflicts(leaves, {row["topic_id"]: row["label"] or "" for row in rows}),
    )


def _topic_rows(store: Reader) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = store.read("topics", _TOPIC_COLUMNS).to_pylist()
    return sorted(rows, key=lambda row: (row["topic_id"] == OUTLIER, -row["size"], row["topic_id"]))


def _topics_alone(store: Reader, snapshot: Any, title: str, evaluation: Mapping[str, Any]) -> ReportData:
    """Return what a report shows of topics without their documents: merged ones, or those of an imported model."""
    summary, at = snapshot.summary, snapshot.at or datetime.now(UTC)
    merged = sites.is_merged(snapshot)
    leaves = sites.leaves(cast(Store, store)) if merged else []
    rows, labels = _topic_rows(store), store.read("topic_labels").to_pylist()
    aspects, given = _aspects(labels), names_given(labels)
    facts = {"Embedding": summary["model"]} if summary.get("model") else {}
    how = {key: summary[key] for key in _MERGED if summary.get(key) is not None}
    if merged:
        facts["Matched by"] = "words" if summary.get("match") == "terms" else "embeddings"
        facts |= {} if summary.get("exact_terms", True) else {"Term counts": "approximate"}
    settings = {key: snapshot.configuration[key] for key in ("embedding", "terms") if key in snapshot.configuration}
    return ReportData(
        title=title,
        generated=at if at.tzinfo else at.replace(tzinfo=UTC),
        topics=[
            Topic(
                topic_id=row["topic_id"],
                size=row["size"],
                label=given.get(row["topic_id"], ""),
                keywords=tuple(row["keywords"] or ()),
                examples=tuple(map(str, (row["representative_docs"] or [])[:EXAMPLES])),
                aspects=aspects.get(row["topic_id"], {}),
            )
            for row in rows
        ],
        summary=facts,
        configuration=yaml.safe_dump({**({"merge": how} if how else {}), **settings}, sort_keys=False, allow_unicode=True),
        timings=_timings(store, snapshot) if store.has("runs") else [],
        evaluation=_measures(evaluation),
        sites=sites.by_site(leaves),
        conflicts=sites.conflicts(leaves, {row["topic_id"]: row["label"] for row in rows}),
    )


_MERGED = ("match", "similarity", "height", "min_documents", "exact_terms")


def _measures(values: Mapping[str, Any]) -> dict[str, float]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= value if isinstance(value, Mapping) else {name: value}
    return {name: float(flat[name]) for name in MEASURES if name in flat}


_TOPIC_COLUMNS = ("topic_id", "size", "label", "keywords", "representative_docs")


def _map_rows(store: Reader) -> dict[str, tuple[float, float]]:
    """Return document -> coordinates, sorted by id; an even sample of more than the page shows."""
    table = store.read("document_map", ("doc_id", "x", "y")).sort_by("doc_id")
    if table.num_rows > MAX_POINTS:
        table = table.take(pa.array(np.linspace(0, table.num_rows - 1, MAX_POINTS).astype(np.int64)))
    ids, x, y = (table.column(name).to_pylist() for name in ("doc_id", "x", "y"))
    return {doc: (px, py) for doc, px, py in zip(ids, x, y, strict=True)}


def _texts(store: Reader, snapshot: Any, mapped: set[str], examples: set[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return a short text for each mapped document and the text of each example."""
    known = {
        field.name.lower(): field.name for field in store.table("documents", version=snapshot.versions.get("documents")).schema().fields
    }
    title = next((known[name] for name in TITLES if name in known), None)
    columns = ["doc_id", "text", *([title] if title else [])]
    wanted = pa.array(sorted(mapped | examples), pa.string())
    hover: dict[str, str] = {}
    full: dict[str, str] = {}
    for batch in store.read_batches("documents", columns):
        found = batch.filter(pc.is_in(batch.column("doc_id"), value_set=wanted))
        # only the head of a text is shown, and a batch may hold texts of megabytes
        heads = pc.utf8_slice_codeunits(found.column("text"), 0, 4000).to_pylist()
        titles = found.column(title).to_pylist() if title else [None] * len(heads)
        for doc, text, name in zip(found.column("doc_id").to_pylist(), heads, titles, strict=True):
            if doc in mapped:
                hover[doc] = shorten(str(name or text or ""), HOVER_CHARS)
            if doc in examples:
                full[doc] = text or ""
    return hover, full


def _read_assignments(store: Reader, mapped: Mapping[str, Any], shares: Counter[tuple[int, str]], topic_of: dict[str, int]) -> None:
    wanted = pa.array(sorted(mapped), pa.string())
    for batch in store.read_batches("assignments", ("doc_id", PARTITION, "topic_id")):
        counts = pa.Table.from_batches([batch]).group_by([PARTITION, "topic_id"]).aggregate([("doc_id", "count")])
        for row in counts.to_pylist():
            shares[row["topic_id"], row[PARTITION]] += row["doc_id_count"]
        found = batch.filter(pc.is_in(batch.column("doc_id"), value_set=wanted))
        topic_of.update(zip(found.column("doc_id").to_pylist(), found.column("topic_id").to_pylist(), strict=True))


def _aspects(labels: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, Aspect]]:
    result: dict[int, dict[str, Aspect]] = {}
    for row in labels:
        # c-TF-IDF's words are the keywords already
        if row["aspect"] != "ctfidf" and row["status"] != "failed":
            # a model that gave no label: the topic goes by its keywords, which are there already
            label = "" if row["status"] == "fallback" else row["label"] or ""
            if label or row["terms"]:
                result.setdefault(row["topic_id"], {})[row["aspect"]] = Aspect(tuple(row["terms"] or ()), label)
    return result


def _local_topics(store: Reader) -> dict[int, int]:
    """Return the number of local topics that each topic was merged from."""
    table = store.read("topic_lineage", ("topic_id", "local_topic"))
    return dict(Counter(table.filter(pc.greater_equal(table.column("local_topic"), 0)).column("topic_id").to_pylist()))


def _partition_names(store: Reader) -> dict[str, str]:
    """Return the value that each partition stands for: several are of one that was split for size, or came again in a batch."""
    return {row[PARTITION]: row["value"] for row in store.read("partitions", (PARTITION, "value")).to_pylist() if row["value"]}


def _quarantine(store: Reader) -> tuple[dict[str, int], list[QuarantinedRow]]:
    """Return rows refused by reason, and a few of each, the reasons in turn."""
    counts: Counter[str] = Counter()
    kept: dict[str, list[QuarantinedRow]] = {}
    for batch in store.read_batches("quarantine", ("reason", "source", "raw")):
        for reason in batch.column("reason").to_pylist():
            counts[reason] += 1
        for row in batch.slice(0, 500).to_pylist():
            some = kept.setdefault(row["reason"], [])
            if len(some) < QUARANTINED:
                some.append(QuarantinedRow(row["reason"], row["source"] or "", row["raw"] or ""))
    turns = [some[i] for i in range(QUARANTINED) for _, some in sorted(kept.items()) if i < len(some)]
    return dict(counts), turns[:QUARANTINED]


def _timings(store: Reader, snapshot: Any) -> list[Timing]:
    """Return what each stage took: the time that each of its units last took, summed, in the order in which stages began."""
    present = {None, ""} | (
        set(store.read("partitions", ["partition_id"])["partition_id"].to_pylist()) if "partitions" in snapshot.versions else set()
    )
    rows = sorted((row for row in store.read("runs").to_pylist() if row["status"] == "done"), key=lambda row: row["at"])
    newest = {(row["stage"], row["partition_id"]): row for row in rows if row["partition_id"] in present}
    stages: dict[str, list[Any]] = {}
    for row in sorted(newest.values(), key=lambda row: row["at"]):
        stages.setdefault(row["stage"], []).append(row)
    return [
        Timing(stage, sum(row["seconds"] or 0.0 for row in units), sum(row["rows"] or 0 for row in units), len(units))
        for stage, units in stages.items()
    ]
