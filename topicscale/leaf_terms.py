"""The terms of leaves: maps that travel without documents, and add up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from topicscale.config import TermsConfig, fingerprint
from topicscale.errors import RequestError
from topicscale.tables import TABLES


def vocabulary(config: TermsConfig, *, approximate: bool = False, other: Mapping[str, Any] | None = None) -> str:
    """Return, as JSON, the settings that two stores must share for their terms to be the same terms.

    A list of stop words is told by its digest: it may hold words that are nobody else's business.

    Parameters
    ----------
    approximate : bool, default=False
        The counts were taken back from weights (see ``topicscale.bertopic``): said by a key of that name, which is no
        setting and is absent otherwise.
    other : mapping, optional
        Further settings that an imported model's terms were counted with.
    """
    stop = config.stop_words
    told = stop if stop is None or isinstance(stop, str) else f"list {fingerprint(sorted(stop))}"
    settings = {"lowercase": config.lowercase, "ngram_range": list(config.ngram_range), "stop_words": told, **(other or {})}
    return json.dumps({**settings, **({"approximate": True} if approximate else {})}, sort_keys=True)


def reconciled(vocabularies: Iterable[str]) -> str:
    """Return the one setting of several vocabularies.

    Raises
    ------
    RequestError
        They differ: their sums would be counts of different things. What differs is named.
    """
    distinct = sorted(set(vocabularies))
    approximate = any(json.loads(text).get("approximate") for text in distinct)
    settings = sorted({json.dumps({k: v for k, v in json.loads(text).items() if k != "approximate"}, sort_keys=True) for text in distinct})
    if len(settings) > 1:
        one, other = json.loads(settings[0]), json.loads(settings[1])
        differ = "; ".join(
            f"terms.{key}: {one.get(key)} and {other.get(key)}" for key in sorted({*one, *other}) if one.get(key) != other.get(key)
        )
        raise RequestError(
            f"Stores can only be merged when their terms were counted with the same settings. These differ: {differ}. "
            "Run one of them again with the other's settings (only its terms are counted again)."
        )
    chosen = json.loads(settings[0]) if settings else {}
    return json.dumps({**chosen, **({"approximate": True} if approximate else {})}, sort_keys=True)


def summed(rows: pa.Table, topics: npt.NDArray[np.int64], config: TermsConfig) -> pa.Table:
    """Return ``topic_terms`` of topics made of leaves: counts add up, and weights are those of the sums.

    Leaves do not tell which documents are a topic's core: all of them are.

    Parameters
    ----------
    rows : Table
        ``site_topics``.
    topics : int64 (rows,)
        The topic of each row. Outliers (-1) are a class like the others.
    """
    parts: list[pa.Table] = []
    start = 0
    pairs = zip(rows["term_counts"].chunks, rows["term_documents"].chunks, strict=True)
    for counts, documents in pairs:
        lengths = np.diff(counts.offsets.to_numpy())
        owner = np.repeat(topics[start : start + len(counts)], lengths)
        start += len(counts)
        low, high = counts.offsets[0].as_py(), counts.offsets[-1].as_py()
        parts.append(
            pa.table(
                {
                    "topic_id": pa.array(owner, pa.int32()),
                    "term": counts.keys[low:high],
                    "count": counts.items[low:high],
                    "documents": documents.items[documents.offsets[0].as_py() : documents.offsets[-1].as_py()],
                }
            )
        )
    schema = TABLES["topic_terms"].schema
    if not parts:
        return schema.empty_table()
    table = pa.concat_tables(parts).group_by(["topic_id", "term"]).aggregate([("count", "sum"), ("documents", "sum")])
    table = table.sort_by([("topic_id", "ascending"), ("term", "ascending")])
    weights = weigh(table, config, classes=len(np.unique(topics)))
    counts, weighed = table["count_sum"], pa.array(weights)
    columns = [table["topic_id"], table["term"], counts, table["documents_sum"], weighed, counts, weighed]
    return pa.table(columns, names=schema.names).cast(schema)


def weigh(table: pa.Table, config: TermsConfig, *, classes: int) -> npt.NDArray[np.float64]:
    """Return the c-TF-IDF weight (see :mod:`topicscale.ctfidf`) of each row of (``topic_id``, ``term``, ``count_sum``)."""
    from topicscale.ctfidf import idf

    counts: npt.NDArray[np.float64] = table["count_sum"].to_numpy().astype(np.float64)
    if len(counts) == 0:
        return counts
    _, topic = np.unique(table["topic_id"].to_numpy(), return_inverse=True)
    term = table["term"].combine_chunks().dictionary_encode()
    codes = np.asarray(pa.concat_arrays([c.indices for c in term.chunks]) if isinstance(term, pa.ChunkedArray) else term.indices)
    totals = np.bincount(topic, weights=counts)
    frequencies = np.bincount(codes, weights=counts).astype(np.float64)
    of_term = idf(frequencies, int(counts.sum()) // max(1, classes), bm25_weighting=config.bm25_weighting)
    share = counts / totals[topic]
    weights: npt.NDArray[np.float64] = (np.sqrt(share) if config.reduce_frequent_words else share) * of_term[codes]
    return weights


HASHED = 2048
"""Dimensions that c-TF-IDF rows are hashed to: cosines keep within about .02."""


def hashed(rows: pa.Table) -> npt.NDArray[np.float64]:
    """Return the c-TF-IDF weights of leaves as unit rows float64 (rows, HASHED), by signed feature hashing (Weinberger et al. 2009).

    Each leaf is a class of its own. Hashing needs no common list of terms, so that millions fit.
    """
    from sklearn.feature_extraction import FeatureHasher

    topics = np.arange(rows.num_rows, dtype=np.int64)
    table = summed(rows, topics, TermsConfig())
    starts = np.searchsorted(table["topic_id"].to_numpy(), np.arange(rows.num_rows + 1))
    hasher = FeatureHasher(HASHED, input_type="pair")

    def pairs(i: int) -> list[tuple[str, float]]:
        part = table.slice(starts[i], starts[i + 1] - starts[i])
        return list(zip(part["term"].to_pylist(), part["weight"].to_pylist(), strict=True))

    matrix = hasher.transform(pairs(i) for i in range(rows.num_rows)).toarray() if rows.num_rows else np.zeros((0, HASHED))
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    # on the grid that sums of unit vectors keep, so that these add up exactly, too
    result: npt.NDArray[np.float64] = np.rint(np.divide(matrix, length, out=np.zeros_like(matrix), where=length > 0) * 2.0**30) / 2.0**30
    return result


BLOCK = 10_000_000
"""Terms of one Arrow array, and those of the topic that ends it: an array holds 2 GiB of text."""


def term_maps(batches: Iterable[pa.RecordBatch], topics: Sequence[int]) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return each topic's terms with their counts, and with the documents that hold them: map<string, int64>, sorted by term.

    Parameters
    ----------
    batches : iterable of RecordBatch
        With the columns ``topic_id``, ``term``, ``count``, ``documents``; any order.
    topics : sequence of int
        Ascending; one map each, empty for a topic without terms.

    Notes
    -----
    Arrow all the way: a vocabulary of millions of terms takes ten times the room as Python objects.
    """
    wanted = pa.array(topics, pa.int32())
    schema = pa.schema([("topic_id", pa.int32()), ("term", pa.string()), ("count", pa.int64()), ("documents", pa.int64())])
    parts = [pa.Table.from_batches([batch]).select(schema.names).cast(schema) for batch in batches]
    rows = pa.concat_tables([schema.empty_table(), *parts])
    rows = rows.filter(pc.is_in(rows["topic_id"], value_set=wanted)).sort_by([("topic_id", "ascending"), ("term", "ascending")])
    ends = np.searchsorted(rows["topic_id"].to_numpy(), np.asarray(topics, np.int32), side="right")
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    kind, maps = pa.map_(pa.string(), pa.int64()), []
    for topic in np.split(np.arange(len(ends)), np.flatnonzero(np.diff(starts // BLOCK)) + 1):
        if len(topic) == 0:
            continue
        first, end = int(starts[topic[0]]), int(ends[topic[-1]])
        offsets = pa.array(np.concatenate([starts[topic], [end]]) - first, pa.int32())
        term, count, documents = (
            pa.concat_arrays([pa.array([], column.type), *column.slice(first, end - first).chunks]) for column in rows.columns[1:]
        )
        maps.append((pa.MapArray.from_arrays(offsets, term, count), pa.MapArray.from_arrays(offsets, term, documents)))
    return pa.chunked_array([one for one, _ in maps], kind), pa.chunked_array([other for _, other in maps], kind)
