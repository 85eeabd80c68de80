"""The table contract: every table of a store, its schema, and the one engine that writes it.

All tables live under one store URI, a folder each. Tables with a row per document are Delta-partitioned by
``partition_id`` (a slug and a short hash, never raw user text). A table has one writer engine, also locally, because
two engines' commits on one table would have to agree on more than the Delta protocol promises: Spark writes what is
counted in the JVM, delta-rs what the Ray side and the driver make, and all of a store that was merged from others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

CONTRACT_VERSION = 3
"""Raised when a table changes so that older stores cannot be read."""

OUTLIER = -1
"""The topic id of documents that belong to no topic."""
SHOWN_CHARS = 500
"""Characters of a representative document that ``topics`` keeps."""

PARTITION = "partition_id"


def slug(name: str) -> str:
    """Return what a partition's id begins with for a name that a person gave; empty if the name has nothing to show."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:20]


def batch_suffix(batch: int) -> str:
    """Return how the ids of the partitions of a batch of `update` end; no other partition's does."""
    return f"-b{batch:05d}"


@dataclass(frozen=True)
class TableSpec:
    """One table of the contract."""

    name: str
    schema: pa.Schema
    writer: Literal["spark", "delta-rs"]
    partitioned: bool = False
    """Delta-partitioned by ``partition_id``."""


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in columns.items()])


_STR, _INT, _LONG, _FLOAT, _DOUBLE = pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64()
_STRINGS, _VECTOR, _SUM = pa.list_(_STR), pa.list_(_FLOAT), pa.list_(_DOUBLE)
_TIME = pa.timestamp("us", tz="UTC")

TABLES: dict[str, TableSpec] = {
    spec.name: spec
    for spec in [
        # -- written by Spark ------------------------------------------------------------------------------------
        # the kept input columns follow these four
        TableSpec("documents", _schema(doc_id=_STR, partition_id=_STR, text=_STR, text_hash=_STR), "spark", partitioned=True),
        # doc_id: the row's own id where the input has an id column, so that the row can be forgotten
        TableSpec("quarantine", _schema(source=_STR, reason=_STR, raw=_STR, doc_id=_STR), "spark"),
        # one row a partition; digest: of its (doc_id, text_hash) pairs, whatever their order
        TableSpec("partitions", _schema(partition_id=_STR, value=_STR, rows=_LONG, chars=_LONG, digest=_STR), "spark"),
        # core_count and core_weight: of the documents nearest to the topic's centre, which keywords are chosen by (topics.core)
        TableSpec(
            "topic_terms",
            _schema(topic_id=_INT, term=_STR, count=_LONG, documents=_LONG, weight=_DOUBLE, core_count=_LONG, core_weight=_DOUBLE),
            "spark",
        ),
        # -- written by delta-rs ---------------------------------------------------------------------------------
        # text_hash and space let vectors be reused when partitions change, and never across two models or precisions: this space
        # is the model's (as in site_topics) with backend and dtype, see jobs/stages/embed.py
        TableSpec(
            "embeddings",
            _schema(doc_id=_STR, partition_id=_STR, text_hash=_STR, space=_STR, vector=_VECTOR),
            "delta-rs",
            partitioned=True,
        ),
        TableSpec(
            "local_assignments",
            _schema(doc_id=_STR, partition_id=_STR, local_topic=_INT, probability=_FLOAT),
            "delta-rs",
            partitioned=True,
        ),
        TableSpec(
            "local_topics",
            _schema(partition_id=_STR, local_topic=_INT, size=_LONG, vector_sum=_SUM, representative_doc_ids=_STRINGS),
            "delta-rs",
            partitioned=True,
        ),
        TableSpec(
            "topics",
            _schema(
                topic_id=_INT,
                topic_key=_STR,
                # outliers, found (by clustering), zeroshot (named in advance)
                kind=_STR,
                size=_LONG,
                reference_vector=_VECTOR,
                # cosines to reference_vector: below the one a document is an outlier, from the other on it is of the topic's core
                cutoff=_FLOAT,
                core=_FLOAT,
                parent_id=_INT,
                label=_STR,
                keywords=_STRINGS,
                representative_docs=_STRINGS,
            ),
            "delta-rs",
        ),
        TableSpec(
            "topic_lineage",
            _schema(site=_STR, partition_id=_STR, local_topic=_INT, topic_key=_STR, size=_LONG, topic_id=_INT, similarity=_FLOAT),
            "delta-rs",
        ),
        TableSpec(
            "assignments",
            _schema(doc_id=_STR, partition_id=_STR, topic_id=_INT, probability=_FLOAT),
            "delta-rs",
            partitioned=True,
        ),
        TableSpec("document_map", _schema(doc_id=_STR, partition_id=_STR, x=_FLOAT, y=_FLOAT), "delta-rs"),
        TableSpec(
            "topic_labels",
            _schema(topic_id=_INT, aspect=_STR, label=_STR, terms=_STRINGS, status=_STR, detail=_STR),
            "delta-rs",
        ),
        # the leaves that merging stores reads. In the store of the site itself `site` and `site_id` are empty and `generation`
        # is 0: what leaves it (merge, export) carries the store's own. `topic_key` is "outliers" for outliers
        TableSpec(
            "site_topics",
            _schema(
                site=_STR,
                site_id=_STR,
                generation=_LONG,
                topic_key=_STR,
                # hand-set or written by a model (topicscale.labels.written says which); empty where keywords are all there is
                label=_STR,
                size=_LONG,
                vector_sum=_SUM,
                term_counts=pa.map_(_STR, _LONG),
                term_documents=pa.map_(_STR, _LONG),
                # terms in fewer documents were left out (1: every counted term is here)
                min_documents=_LONG,
                # the id that must agree, and the name that people know it by
                embedding_space=_STR,
                embedding_model=_STR,
                # the settings terms were counted with, as JSON
                vocabulary=_STR,
            ),
            "delta-rs",
        ),
        # the granularity a pilot found: see topicscale/calibrate.py
        TableSpec(
            "pilots",
            _schema(
                site=_STR,
                site_id=_STR,
                generation=_LONG,
                pilot_key=_STR,
                embedding_space=_STR,
                documents=_LONG,
                height=_DOUBLE,
                agreement=_DOUBLE,
            ),
            "delta-rs",
        ),
        # one row for each batch of documents that `update` added (0: the first run)
        TableSpec(
            "batches",
            _schema(
                batch=_LONG,
                at=_TIME,
                partition_ids=_STRINGS,
                fingerprint=_STR,
                input_rows=_LONG,
                documents=_LONG,
                already_present=_LONG,
                quarantined=_LONG,
                new_topics=pa.list_(_INT),
            ),
            "delta-rs",
        ),
        # what language models answered, by a digest of the model, its settings and the prompt: a cache, in no generation. The
        # texts are hostile: see topicscale/llm/clean.py
        TableSpec(
            "answers",
            _schema(request=_STR, text=_STR, tokens_read=_LONG, tokens_written=_LONG, at=_TIME),
            "delta-rs",
        ),
        # embedding models trained on the store, judged: see topicscale/registry.py
        TableSpec(
            "models",
            _schema(
                name=_STR,
                revision=_STR,
                status=_STR,
                base=_STR,
                base_revision=_STR,
                steps=_STR,
                measures=_STR,
                verdict=_STR,
                configuration=_STR,
                data=_STR,
                steps_done=_LONG,
                seconds=_DOUBLE,
                at=_TIME,
            ),
            "delta-rs",
        ),
        # how many documents of each batch each topic took
        TableSpec("topic_trends", _schema(batch=_LONG, at=_TIME, topic_id=_INT, documents=_LONG), "delta-rs"),
        TableSpec("generations", _schema(generation=_LONG, versions=_STR, configuration=_STR, summary=_STR, at=_TIME), "delta-rs"),
        TableSpec(
            "runs",
            _schema(
                run_id=_STR,
                stage=_STR,
                partition_id=_STR,
                fingerprint=_STR,
                status=_STR,
                rows=_LONG,
                seconds=_DOUBLE,
                at=_TIME,
                detail=_STR,
            ),
            "delta-rs",
        ),
    ]
}

LOGS = ("generations", "runs", "answers", "models")
"""Tables that only grow, and are read at their newest version whatever generation is pinned."""

QUARANTINE_REASONS = ("empty", "too_long", "not_text", "undecodable", "bad_row", "bad_vector", "duplicate_id", "missing_id")
"""Why a row may be refused; a closed list."""
