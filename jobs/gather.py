"""``topicscale merge --documents``: the sites' documents beside their merged topics, one partition at a time.

A document goes where its topic at the site went, so that the merged sizes stay the numbers of documents. Ids and
partitions carry the site's name in front: two sites may give the same id to different documents.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import write_deltalake

from jobs.progress import Ui
from ray_actors.parts import forget_handles, read_partition, to_matrix
from ray_actors.refine import by_partition, nearest, texts
from ray_actors.sample import collect, sample
from topicscale import sites
from topicscale.config import Config, fingerprint
from topicscale.errors import RequestError
from topicscale.federate import Federation
from topicscale.layout import layout
from topicscale.store import PartFile, Snapshot, Store, UnitWrite, write_part
from topicscale.tables import PARTITION, SHOWN_CHARS, TABLES, slug
from topicscale.texts import one_line

STAGE = "gather"
COPIED = ("documents", "embeddings", "assignments")
MADE = ("documents", "partitions")
"""Tables that merged topics without documents do not have."""
MERGING = "_merge"
"""Marks a store whose documents a merge is changing: the next one finishes what was cut short."""
_AT_ONCE = 64
"""Partitions that are committed together."""


@dataclass(frozen=True)
class Source:
    """A site's store whose documents are copied."""

    name: str
    store: Store
    snapshot: Snapshot
    topics: Mapping[int, int]
    """The site's topics, outliers among them -> the merged topic."""
    partitions: Mapping[str, str]
    """Ids of the site's partitions -> those of the copies."""
    schema: pa.Schema
    """Of its documents."""


def sources(opened: Sequence[tuple[str, Store, Snapshot]], found: Federation) -> list[Source]:
    """Return the stores to copy documents from: of those that the merge counts, the ones that hold any.

    Parameters
    ----------
    opened : sequence of (name, Store, Snapshot)
        The inputs, pinned.

    Raises
    ------
    RequestError
        Documents would come from a merge, from two sites of one name, in vectors of more than one model, or with columns that
        do not go together.
    """
    rows = found.union.rows
    leaves = zip(*(rows[column].to_pylist() for column in ("site_id", "generation", "topic_key", "size")), strict=True)
    # a leaf that is given more than once is counted once: the first store that holds its documents has them copied
    into = dict(zip(leaves, map(int, found.topics), strict=True))
    chosen: dict[str, Source] = {}
    for given, store, snapshot in sorted(opened, key=lambda source: (source[0], source[1].uri)):
        name = one_line(given)
        if "documents" not in snapshot.versions:
            continue
        if sites.is_merged(snapshot):
            raise RequestError(
                f"Documents are copied from the sites' own stores. {store.uri!r} is a merge: name the stores it was made of."
            )
        keys = store.read("site_topics", ["topic_key", "size"])
        own = sites.topic_of_leaves(store, store.read("topics", ["topic_id", "size"]))
        topics = {}
        for topic, key, size in zip(own, keys["topic_key"].to_pylist(), keys["size"].to_pylist(), strict=True):
            if (merged := into.pop((store.site_id, snapshot.generation, key, size), None)) is not None:
                topics[topic] = merged
        if not topics:
            continue
        if "/" in name:
            raise RequestError(
                f"A site's name goes before its documents' ids, with a slash between them, and must have none. Got {name!r} instead: "
                f"--inputs NAME={store.uri}."
            )
        if name in chosen:
            raise RequestError(
                f"Sites must have different names, which go before their documents' ids. Both {chosen[name].store.uri!r} and {store.uri!r} "
                f"are {name!r}: give them names, --inputs NAME={store.uri}."
            )
        held = store.table("assignments", version=snapshot.versions["assignments"]).partitions()
        partitions = {row[PARTITION]: _partition(name, row[PARTITION]) for row in held}
        columns = store.table("documents", version=snapshot.versions["documents"]).to_pyarrow_dataset().schema
        chosen[name] = Source(name, store, snapshot, topics, partitions, columns)
    if not chosen:
        raise RequestError("None of the inputs holds documents: they are exports, merges or imports. Leave out --documents.")
    if len(found.union.spaces) > 1:
        raise RequestError(
            "Documents can only be copied where one model embedded all sites', as topics are compared with them. "
            f"Got {', '.join(sorted(found.union.spaces.values()))} instead. Leave out --documents."
        )
    result = [chosen[name] for name in sorted(chosen)]
    schema(result)  # what it refuses is refused before anything is written
    return result


def schema(found: Sequence[Source]) -> pa.Schema:
    """Return the columns of all sites' documents; of different types at two sites they are text.

    Raises
    ------
    RequestError
        Such a column cannot be text.
    """
    fields: dict[str, pa.Field] = {field.name: field for field in TABLES["documents"].schema}
    for source in found:
        for field in source.schema:
            key = field.name.lower()  # Delta's columns differ in more than case
            there = fields.setdefault(key, pa.field(field.name, field.type))
            if there.type == field.type or key in TABLES["documents"].schema.names:
                continue
            for kind in (there.type, field.type):
                if pa.types.is_nested(kind) or pa.types.is_binary(kind):
                    raise RequestError(
                        f"The column {field.name!r} of the documents is {field.type} at {source.name!r} and {there.type} elsewhere. "
                        "Run the one or the other without it: topicscale run --keep ..."
                    )
            fields[key] = pa.field(there.name, pa.string())
    return pa.schema(list(fields.values()))


def fingerprint_of(found: Sequence[Source]) -> list[Any]:
    """Return what tells of the documents that are copied."""
    return [[source.name, *_content(source)] for source in found]


def _content(source: Source) -> list[Any]:
    """Return what tells one content of a site's store from another: generations count anew in one that was put back from a copy."""
    return [source.store.site_id, source.snapshot.generation, str(source.snapshot.at)]


def copy(target: Store, found: Sequence[Source], centres: npt.NDArray[np.float32], *, fp: str, ui: Ui) -> None:
    """Make the target's documents, vectors and assignments those of the sites.

    A partition that was copied from the same generation of its site stays; one whose site is not among the inputs any more goes.

    Parameters
    ----------
    centres : float32 (k, d)
        The merged topics' vectors, unit rows.
    fp : str
        Fingerprint of the merge.
    """
    forget_handles()  # this process may have read another store here, which has been removed
    columns = schema(found)
    _make(target, columns)
    shape = [(field.name, str(field.type)) for field in columns]
    kept = [name for source in found for name in source.partitions.values()]
    with ui.stage("copy", len(kept), unit="partitions") as bar:
        for source in found:
            given = fingerprint(source.name, _content(source), sorted(source.topics))
            prints = {"documents": fingerprint(given, shape), "embeddings": given, "assignments": fingerprint(given, fp)}
            done = {table: target.done(table, STAGE, dict.fromkeys(source.partitions.values(), prints[table])) for table in COPIED}
            pairs = sorted(source.partitions.items())
            for first in range(0, len(pairs), _AT_ONCE):
                writes: dict[str, list[UnitWrite]] = {table: [] for table in COPIED}
                for old, new in pairs[first : first + _AT_ONCE]:
                    for table, files in _copy(target, source, old, columns, centres, [t for t in COPIED if new not in done[t]]).items():
                        writes[table].append(UnitWrite(STAGE, new, prints[table], files))
                    bar.advance(1)
                for table, made in writes.items():
                    target.commit(table, made)
    for table in COPIED:
        target.retain(table, STAGE, kept)
    counts: Counter[str] = Counter()
    for batch in target.read_batches("assignments", [PARTITION]):
        counts.update({row["values"]: row["counts"] for row in pc.value_counts(batch[PARTITION]).to_pylist()})
    rows = [row for source in found for row in _partitions(source, counts)]
    target.replace("partitions", pa.Table.from_pylist(rows, schema=TABLES["partitions"].schema), stage=STAGE, unit_fingerprint=fp)


def counted(target: Store, found: Sequence[Source]) -> dict[str, int]:
    """Return how many documents of how many sites were copied."""
    return {"documents": sum(target.read("partitions")["rows"].to_pylist()), "sites": len(found)} if found else {}


def clear(target: Store) -> None:
    """Empty every table of a target that an earlier merge copied documents into."""
    if target.has("documents"):
        for table in COPIED:
            target.retain(table, STAGE, ())
        for table in ("document_map", "partitions"):
            target.replace(table, TABLES[table].schema.empty_table(), stage=STAGE, unit_fingerprint=fingerprint("none"))


def erase(target: Store, *, unfinished: bool) -> None:
    """Remove generations, files and all, whose documents are not the newest one's: what a site has removed is gone here, too.

    One without documents goes as well where others have some: its topics' terms are the documents' words.

    Parameters
    ----------
    unfinished : bool
        A merge before this one was cut short, and may have left documents that no generation names.
    """
    *older, newest = target.snapshots()
    if unfinished or any(held.versions.get("documents") != newest.versions.get("documents") for held in older):
        if target.has("answers"):  # a model's answers tell what its prompts held
            target.table("answers").delete()
        target.forget_history()


def representatives(target: Store, topics: int) -> list[list[str]]:
    """Return, for each topic, the beginnings of the documents nearest to it that are not copies of each other."""
    partitions, versions = _held(target), _versions(target)
    wanted = Config().represent.representative_documents
    at = {"embeddings_version": versions["embeddings"], "assignments_version": versions["assignments"]}
    best = nearest(number=topics, representatives=wanted, store_uri=target.uri, partition_ids=partitions, **at)
    found: dict[str, str] = {}
    read = {"columns": ["text"], "documents_version": versions["documents"], "characters": SHOWN_CHARS}
    for partition, ids in by_partition(best):
        rows = texts(store_uri=target.uri, partition_id=partition, doc_ids=ids, **read)
        found |= {doc_id: row["text"] for doc_id, row in rows.items()}
    return [[found[doc_id] for _, doc_id, _, _ in candidates] for candidates in best]


def place(target: Store, *, fp: str) -> None:
    """Write the map of a sample of the documents, those of all sites on one."""
    partitions, versions = _held(target), _versions(target)
    size, documents = Config().represent.map_documents, sum(target.read("partitions")["rows"].to_pylist())
    share, at = size / max(documents, 1), versions["embeddings"]
    found = ((pid, sample(store_uri=target.uri, partition_id=pid, embeddings_version=at, share=share)) for pid in partitions)
    some = collect(found, size)
    rows = TABLES["document_map"].schema.empty_table()
    if some.doc_ids:
        shown = pa.array(some.doc_ids, pa.string())
        topic_of: dict[str, int] = {}
        for batch in target.read_batches("assignments", ["doc_id", "topic_id"]):
            mine = batch.filter(pc.is_in(batch["doc_id"], value_set=shown))
            topic_of.update(zip(mine["doc_id"].to_pylist(), mine["topic_id"].to_pylist(), strict=True))
        points = layout(some.vectors, [topic_of[doc_id] for doc_id in some.doc_ids], seed=Config().cluster.seed)
        rows = pa.table({"doc_id": shown, PARTITION: some.partition_ids, "x": points[:, 0], "y": points[:, 1]})
    target.replace("document_map", rows, stage=STAGE, unit_fingerprint=fp)


def _copy(
    target: Store, source: Source, partition: str, columns: pa.Schema, centres: npt.NDArray[np.float32], tables: Sequence[str]
) -> dict[str, tuple[PartFile, ...]]:
    """Write the files of one partition for these tables; documents of topics that are counted elsewhere are left out."""
    if not tables:
        return {}
    versions, uri, new = source.snapshot.versions, source.store.uri, source.partitions[partition]
    assigned = read_partition(uri, "assignments", partition, ["doc_id", "topic_id", "probability"], versions["assignments"])
    assigned = assigned.filter(pc.is_in(assigned["topic_id"], value_set=pa.array(sorted(source.topics), pa.int32())))
    made: dict[str, pa.Table] = {}
    if "documents" in tables:
        rows = _of(read_partition(uri, "documents", partition, source.schema.names, versions["documents"]), assigned)
        rows = rows.rename_columns([name.lower() for name in rows.column_names])
        values = [rows[key].cast(f.type) if (key := f.name.lower()) in rows.column_names else pa.nulls(len(rows), f.type) for f in columns]
        made["documents"] = pa.table(values, schema=columns)
    if "embeddings" in tables or "assignments" in tables:
        held = ["doc_id", "text_hash", "space", "vector"]
        vectors = _of(read_partition(uri, "embeddings", partition, held, versions["embeddings"]), assigned)
        made["embeddings"] = vectors
        topics = np.array([source.topics[topic] for topic in assigned["topic_id"].to_pylist()], np.int32)
        probability = assigned["probability"].to_numpy().copy()
        inside = np.flatnonzero(topics >= 0)
        if len(inside):
            probability[inside] = np.einsum("ij,ij->i", to_matrix(vectors["vector"])[inside], centres[topics[inside]])
        made["assignments"] = pa.table({"doc_id": assigned["doc_id"], "topic_id": topics, "probability": probability})
    files = {}
    for table in tables:
        ids = pc.binary_join_element_wise(source.name, made[table]["doc_id"].cast(pa.string()), "/")
        rows = made[table].set_column(made[table].schema.get_field_index("doc_id"), "doc_id", ids)
        files[table] = write_part(target.uri, table, new, rows, schema=columns if table == "documents" else None)
    return files


def _of(rows: pa.Table, assigned: pa.Table) -> pa.Table:
    """Return the rows of the documents that were assigned, in their order: both come sorted by id."""
    return rows.filter(pc.is_in(rows["doc_id"].cast(pa.string()), value_set=assigned["doc_id"].cast(pa.string()).combine_chunks()))


def _partition(site: str, partition: str) -> str:
    return f"{slug(site) or 'site'}-{hashlib.sha256(site.encode()).hexdigest()[:8]}-{partition}"


def _partitions(source: Source, counts: Mapping[str, int]) -> list[dict[str, Any]]:
    held = {row[PARTITION]: row for row in source.store.read("partitions").to_pylist()}
    rows = []
    for old, new in sorted(source.partitions.items()):
        row = held.get(old, {})
        whole = row.get("rows") == counts[new]  # characters and digest of a part are not known
        value = f"{source.name}: {row['value']}" if row.get("value") else source.name
        same = {key: row[key] if whole else None for key in ("chars", "digest")}
        rows.append({PARTITION: new, "value": value, "rows": counts[new], **same})
    return rows


def _make(target: Store, columns: pa.Schema) -> None:
    """Make the tables that Spark makes elsewhere; documents with other columns than they have are made anew."""
    target.create_table("partitions")
    target.create_table("documents", schema=columns)
    handle = target.table("documents")
    if [(f.name, f.type) for f in pa.schema(handle.schema().to_arrow())] != [(f.name, f.type) for f in columns]:
        target.retain("documents", STAGE, ())  # none of its partitions is done any more
        handle = target.table("documents")
        write_deltalake(handle, columns.empty_table(), mode="overwrite", schema_mode="overwrite", partition_by=[PARTITION])


def _held(target: Store) -> list[str]:
    return sorted({row[PARTITION] for row in target.table("assignments").partitions()})


def _versions(target: Store) -> dict[str, int]:
    return {table: target.table(table).version() for table in COPIED}
