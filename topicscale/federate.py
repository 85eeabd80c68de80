"""Merge stores of many sites: a function of the set of their leaves (``site_topics``), never of their documents.

What makes the outcome independent of order, grouping and repetition:

* of one site (``site_id``) only the newest generation counts, and of that the rows that hold most terms, so that
  yesterday's statistics are not counted beside today's, nor an export beside the store it came from;
* leaves of equal content are one leaf;
* merging rests on the leaves in canonical order, with sums that are exact;
* a merged store holds the union of its inputs' leaves, so that merging it again starts from the same set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from topicscale.calibrate import Pilot, combine
from topicscale.cluster import Float64, Int64, exact, unit
from topicscale.errors import RequestError
from topicscale.labels import WRITTEN, relabelled
from topicscale.leaf_terms import hashed, reconciled
from topicscale.merge import Leaves, Merged, leaf_key, merge
from topicscale.models import UNNAMED
from topicscale.tables import OUTLIER, TABLES
from topicscale.texts import one_line

OUTLIERS = "outliers"
"""The ``topic_key`` of outliers' leaves."""


@dataclass(frozen=True)
class Union:
    """The leaves and pilots of several stores, each once, in canonical order."""

    rows: pa.Table
    """``site_topics``, topics before outliers, by content."""
    keys: tuple[str, ...]
    """Content of each row."""
    pilots: pa.Table
    spaces: dict[tuple[str, int], str] = field(default_factory=dict)
    """Embedding space, with the length of its vectors -> the model's name."""
    written: Mapping[str, str] = field(default_factory=dict)
    """Labels that no person gave -> the aspect that has them (:data:`topicscale.labels.WRITTEN`)."""

    @property
    def outliers(self) -> npt.NDArray[np.bool_]:
        """Which rows are outliers' leaves."""
        return np.asarray(pc.equal(self.rows["topic_key"], OUTLIERS).to_numpy(zero_copy_only=False), dtype=bool)


@dataclass(frozen=True)
class Federation:
    """Topics merged over sites."""

    union: Union
    merged: Merged
    topics: Int64
    """(rows,): the topic of each row of the union, -1 for outliers."""
    similarities: npt.NDArray[np.float32]
    """(rows,): cosine of each leaf to its topic; 0 for outliers."""
    vocabulary: str
    """The settings all terms were counted with, as JSON."""
    min_documents: int
    """Terms in fewer documents of a leaf may be missing from the sums; 1: the sums are exact."""
    without_terms: int = 0
    """Leaves that could not be matched by terms, because they have none: each is a topic of its own."""


def unite(site_topics: Sequence[pa.Table], pilots: Sequence[pa.Table], written: Sequence[Mapping[str, str]] = ()) -> Union:
    """Return the union of stores' leaves.

    Parameters
    ----------
    site_topics, pilots : sequences of Table
        By the contract's schemas, with ``site``, ``site_id`` and ``generation`` filled in.
    written : sequence of mapping
        Of each store, the labels that no person gave (:func:`topicscale.labels.written`).
    """
    rows = pa.concat_tables([table.select(TABLES["site_topics"].schema.names) for table in site_topics]).combine_chunks()
    found = pa.concat_tables([table.select(TABLES["pilots"].schema.names) for table in pilots]).combine_chunks()
    newest: dict[str, int] = {}
    for source in (rows, found):
        for site, generation in zip(source["site_id"].to_pylist(), source["generation"].to_pylist(), strict=True):
            newest[site] = max(generation, newest.get(site, generation))
    rows, found = _newest(rows, newest), _newest(found, newest)
    fullest: dict[str, int] = {}
    for site, least in zip(rows["site_id"].to_pylist(), rows["min_documents"].to_pylist(), strict=True):
        fullest[site] = min(least, fullest.get(site, least))
    rows = _fullest(rows, fullest)
    for column in ("site", "label"):  # other people's text: it is shown in terminals and pages
        shown = pa.array([one_line(text) for text in rows[column].to_pylist()], pa.string())
        rows = rows.set_column(rows.schema.get_field_index(column), column, shown)
    rows, keys = _distinct_leaves(rows)
    models = rows["embedding_model"].to_pylist()
    spaces = dict(sorted(set(zip(_spaces(rows), models, strict=True))))
    counted = [_fullest(_newest(table, newest), fullest) for table in site_topics]
    return Union(rows, keys, _distinct_pilots(found), spaces, _written(rows, counted, written))


def _written(rows: pa.Table, site_topics: Sequence[pa.Table], written: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return which labels of the rows no person gave at any site, each with the first of the aspects that have it."""
    by_hand = {label for table, of in zip(site_topics, written, strict=False) for label in table["label"].to_pylist() if label not in of}
    found = {label: aspect for aspect in reversed(WRITTEN) for of in written for label, told in of.items() if told == aspect}
    shown = {one_line(label): aspect for label, aspect in found.items() if label not in by_hand}
    return {label: shown[label] for label in sorted(set(rows["label"].to_pylist()) & shown.keys())}


def federate(union: Union, *, height: float | None = None, similarity: float | None = None, match: str = "embeddings") -> Federation:
    """Return the topics of a union.

    Parameters
    ----------
    height, similarity : float
        Exactly one: see :func:`topicscale.merge.merge`.
    match : {"embeddings", "terms"}
        What topics are compared by: their mean vectors, which needs one embedding space, or their c-TF-IDF weights.

    Raises
    ------
    RequestError
        The leaves live in different embedding spaces, or their terms were counted with different settings.
    """
    outliers = union.outliers
    inside = np.flatnonzero(~outliers)
    sizes = union.rows["size"].to_numpy()
    terms = reconciled(union.rows["vocabulary"].to_pylist())
    bare: list[int] = []
    if match == "terms":
        sums = hashed(union.rows)
        bare = [i for i in inside.tolist() if not sums[i].any()]
        if inside.size and len(bare) == len(inside):
            raise RequestError(
                "Topics can only be matched by their terms when they have some. Got none instead: export with a lower "
                "--min-document-frequency, or save a BERTopic model with save_ctfidf=True."
            )
        for i in bare:  # it is like no other: a direction of its own, which follows from nothing but the leaf
            sums[i] = _own_direction(union.keys[i], sums.shape[1])
        sums *= sizes[:, None]
    else:
        check_spaces(union)
        sums = vector_sums(union.rows)
    leaves, index = Leaves.of(sizes[inside], sums[inside])
    merged = merge(leaves, height=height, similarity=similarity)
    topics = np.full(len(sizes), OUTLIER, np.int64)
    topics[inside] = merged.labels[index]
    similarities = np.zeros(len(sizes), np.float32)
    similarities[inside] = merged.similarities[index]
    least = union.rows["min_documents"].to_pylist()
    return Federation(union, merged, topics, similarities, terms, max(least, default=1), len(bare))


def _own_direction(key: str, dimensions: int) -> Float64:
    random = np.random.default_rng(int(hashlib.sha256(key.encode()).hexdigest()[:16], 16))
    found: Float64 = exact(unit(random.normal(size=(1, dimensions))))[0]
    return found


def check_spaces(union: Union) -> None:
    """Raise RequestError when the leaves live in more than one embedding space."""
    if len(union.spaces) > 1:
        told = []
        sites, of_row = union.rows["site"].to_pylist(), _spaces(union.rows)
        for (space, length), model in union.spaces.items():
            of = sorted({site for site, at in zip(sites, of_row, strict=True) if at == (space, length)})
            told.append(f"{model} [{space[:8]}, {length} dimensions] ({', '.join(of[:5])}{' ...' if len(of) > 5 else ''})")
        named = (
            "Where vectors came with the documents, name the model that made them: topicscale update --refit --set embedding.model=NAME "
            "--store ..., at every site. "
        )
        raise RequestError(
            f"Stores can only be merged by embeddings of one model. Got {len(told)} instead: {'; '.join(told)}. "
            f"{named if UNNAMED in union.spaces.values() else ''}"
            "Match them by their words with --match terms, or embed one side again with the other's model."
        )


def _spaces(rows: pa.Table) -> list[tuple[str, int]]:
    """Return each row's embedding space with the length of its vectors, which a model's name does not tell."""
    return list(zip(rows["embedding_space"].to_pylist(), pc.list_value_length(rows["vector_sum"]).to_pylist(), strict=True))


def vector_sums(rows: pa.Table) -> Float64:
    """Return ``vector_sum`` as a matrix (rows, d) float64."""
    if rows.num_rows == 0:
        return np.zeros((0, 0))
    column = rows["vector_sum"].combine_chunks()
    flat = (pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column).flatten()
    return np.asarray(flat.to_numpy(zero_copy_only=False), dtype=np.float64).reshape(rows.num_rows, -1)


def labels(federation: Federation) -> tuple[dict[int, str], dict[int, list[str]]]:
    """Return each topic's given name, and the names it won over.

    What a person gave comes before what was given in advance, and that before what a language model wrote; then counts by how many
    documents' topics have a name, then the alphabet.
    """
    ranks = {label: 1 + WRITTEN.index(aspect) for label, aspect in federation.union.written.items()}
    votes: dict[int, dict[str, int]] = {}
    rows = federation.union.rows
    for topic, label, size in zip(federation.topics, rows["label"].to_pylist(), rows["size"].to_pylist(), strict=True):
        if label and topic >= 0:
            of = votes.setdefault(int(topic), {})
            of[label] = of.get(label, 0) + size
    ranked = {topic: sorted(of, key=lambda name: (ranks.get(name, 0), -of[name], name)) for topic, of in votes.items()}
    return {topic: names[0] for topic, names in ranked.items()}, {topic: names[1:] for topic, names in ranked.items() if names[1:]}


def renamed(federation: Federation, names: Mapping[int, str]) -> Federation:
    """Return the same topics, the leaves of some of them (by topic id) under the names given to these topics."""
    rows = relabelled(federation.union.rows, [names.get(int(topic)) for topic in federation.topics])
    written = {label: aspect for label, aspect in federation.union.written.items() if label not in names.values()}
    return replace(federation, union=replace(federation.union, rows=rows, written=written))


def by_site(federation: Federation) -> list[dict[str, Any]]:
    """Return, for each site by name: its documents, its topics, and which of them other sites share.

    ``shared`` and ``only_here`` list the site's own leaves with the merged topic and the similarity to it.
    """
    rows = federation.union.rows
    ids, names = rows["site_id"].to_pylist(), rows["site"].to_pylist()
    holders: dict[int, set[str]] = {}
    for topic, site in zip(federation.topics, ids, strict=True):
        holders.setdefault(int(topic), set()).add(site)
    found: dict[str, dict[str, Any]] = {}
    keys, sizes = rows["topic_key"].to_pylist(), rows["size"].to_pylist()
    columns = zip(ids, names, federation.topics, keys, sizes, federation.similarities, strict=True)
    for site, name, topic, key, size, similarity in columns:
        entry = found.setdefault(site, {"site": name, "documents": 0, "outliers": 0, "shared": [], "only_here": []})
        entry["documents"] += size
        if topic == OUTLIER:
            entry["outliers"] += size
            continue
        kind = "shared" if len(holders[int(topic)]) > 1 else "only_here"
        entry[kind].append({"topic_key": key, "topic_id": int(topic), "size": size, "similarity": round(float(similarity), 4)})
    for entry in found.values():
        for kind in ("shared", "only_here"):
            entry[kind].sort(key=lambda leaf: (leaf["topic_id"], -leaf["size"], leaf["topic_key"]))
    return sorted(found.values(), key=lambda entry: (entry["site"], -entry["documents"]))


def height(union: Union) -> float:
    """Return the granularity for the whole of what sites found on their own documents (see :func:`topicscale.calibrate.combine`).

    Raises
    ------
    RequestError
        No site found any (models that came from elsewhere, or sites too small to be divided).
    """
    documents: dict[str, int] = {}
    for site, size in zip(union.rows["site_id"].to_pylist(), union.rows["size"].to_pylist(), strict=True):
        documents[site] = documents.get(site, 0) + size
    found = [row for row in union.pilots.to_pylist() if row["agreement"] > 0 and row["height"] > 0 and row["site_id"] in documents]
    if not found:
        raise RequestError("No store says at which similarity its topics are one topic. Give it: --similarity 0.75, for example.")
    pilots = [Pilot(row["height"], row["agreement"], row["documents"], 0, 0.0) for row in found]
    return combine(pilots, documents=[documents[row["site_id"]] for row in found])


def _newest(table: pa.Table, newest: dict[str, int]) -> pa.Table:
    current = [newest[s] == g for s, g in zip(table["site_id"].to_pylist(), table["generation"].to_pylist(), strict=True)]
    return table.filter(pa.array(current, pa.bool_()))


def _fullest(table: pa.Table, fullest: dict[str, int]) -> pa.Table:
    current = [fullest[s] == m for s, m in zip(table["site_id"].to_pylist(), table["min_documents"].to_pylist(), strict=True)]
    return table.filter(pa.array(current, pa.bool_()))


def _distinct_leaves(rows: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
    """Return the rows in canonical order, leaves of equal content once, and each one's content key."""
    keys = content_keys(rows)
    # of copies the same one is kept whatever the order: the most complete, then by name
    sites, ids = rows["site"].to_pylist(), rows["site_id"].to_pylist()
    names, least = rows["label"].to_pylist(), rows["min_documents"].to_pylist()
    order = sorted(range(len(keys)), key=lambda i: (keys[i], least[i], not names[i], names[i], sites[i], ids[i]))
    kept = [i for position, i in enumerate(order) if position == 0 or keys[order[position - 1]] != keys[i]]
    return rows.take(pa.array(kept, pa.int64())), tuple(keys[i] for i in kept)


def content_keys(rows: pa.Table) -> list[str]:
    """Return what tells each leaf's content from another's, and outliers from topics."""
    sizes, sums = rows["size"].to_pylist(), vector_sums_ragged(rows)
    outlier = [key == OUTLIERS for key in rows["topic_key"].to_pylist()]
    return [f"{int(o)}{leaf_key(size, row)}" for o, size, row in zip(outlier, sizes, sums, strict=True)]


def vector_sums_ragged(rows: pa.Table) -> list[Float64]:
    """Return each row's ``vector_sum``; two embedding spaces may have different lengths."""
    found: list[Float64] = []
    for chunk in rows["vector_sum"].chunks:
        offsets = chunk.offsets.to_numpy()
        flat = np.asarray(chunk.values.to_numpy(zero_copy_only=False), dtype=np.float64)
        found += [flat[a:b] for a, b in pairwise(offsets)]
    return found


def _distinct_pilots(rows: pa.Table) -> pa.Table:
    """Return one pilot a site, by content: an export tells of the same finding in fewer digits."""
    sites, keys, documents = (rows[name].to_pylist() for name in ("site_id", "pilot_key", "documents"))
    names = rows["site"].to_pylist()
    order = sorted(range(len(keys)), key=lambda i: (sites[i], -documents[i], keys[i], names[i]))
    kept = [i for position, i in enumerate(order) if position == 0 or sites[order[position - 1]] != sites[i]]
    return rows.take(pa.array(sorted(kept, key=lambda i: (keys[i], sites[i])), pa.int64()))


def fingerprint(union: Union, *options: Any) -> str:
    """Return a digest of a union and the options of its merge."""
    digest = hashlib.sha256(repr(options).encode())
    told = ("label", "site", "min_documents", "vocabulary")
    for values in (union.keys, *(union.rows[name].to_pylist() for name in told)):
        digest.update(repr(list(values)).encode())
    for name in ("term_counts", "term_documents"):
        for chunk in union.rows[name].chunks:
            _digest_map(digest, chunk)
    digest.update(repr(union.pilots["pilot_key"].to_pylist()).encode())
    if union.written:
        digest.update(repr(sorted(union.written.items())).encode())
    return digest.hexdigest()[:32]


def _digest_map(digest: Any, column: pa.MapArray) -> None:
    """Add the content of a map column to a digest, wherever in memory it lies."""
    offsets = column.offsets.to_numpy()
    digest.update(np.diff(offsets).astype("<i8").tobytes())
    names = column.keys[offsets[0] : offsets[-1]]
    ends = np.frombuffer(names.buffers()[1] or b"", np.int32)[names.offset : names.offset + len(names) + 1]
    if len(names):
        digest.update(np.diff(ends).astype("<i8").tobytes())
        digest.update(memoryview(names.buffers()[2])[ends[0] : ends[-1]])
    digest.update(column.items[offsets[0] : offsets[-1]].to_numpy().astype("<i8").tobytes())
