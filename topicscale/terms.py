"""Choosing keywords from the rows of ``topic_terms``, batch by batch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from topicscale.config import TermsConfig, fingerprint


def top_terms(batches: Iterable[pa.RecordBatch], number: int) -> dict[int, list[tuple[str, float]]]:
    """Return each topic's ``number`` terms of the highest weight, best first; equal weights go alphabetically.

    Parameters
    ----------
    batches : iterable of RecordBatch
        With the columns ``topic_id``, ``term``, ``weight``; any order.
    """
    best: pa.Table | None = None
    for batch in batches:
        rows = pa.Table.from_batches([batch]).select(["topic_id", "term", "weight"])
        best = _best(rows if best is None else pa.concat_tables([best, rows]), number)
    found: dict[int, list[tuple[str, float]]] = {}
    if best is not None:
        for row in best.to_pylist():
            found.setdefault(row["topic_id"], []).append((row["term"], row["weight"]))
    return found


def _best(rows: pa.Table, number: int) -> pa.Table:
    rows = rows.filter(pc.greater(rows["weight"], 0.0))
    order = [("topic_id", "ascending"), ("weight", "descending"), ("term", "ascending")]
    rows = rows.sort_by(order).combine_chunks()
    topics = rows["topic_id"].to_numpy()
    if len(topics) == 0:
        return rows
    import numpy as np

    starts = np.searchsorted(topics, topics)  # rows are sorted by topic: where each row's topic begins
    return rows.filter(pa.array(np.arange(len(topics)) - starts < number))


def vocabulary(config: TermsConfig) -> str:
    """Return, as JSON, the settings that two stores must share for their terms to be the same terms.

    A list of stop words is told by its digest: it may hold words that are nobody else's business.
    """
    stop = config.stop_words
    told = stop if stop is None or isinstance(stop, str) else f"list {fingerprint(sorted(stop))}"
    return json.dumps({"lowercase": config.lowercase, "ngram_range": list(config.ngram_range), "stop_words": told}, sort_keys=True)


def name(topic_id: int, keywords: list[str]) -> str:
    """Return a topic's name as BERTopic's users know it: the id and its four best terms."""
    return "_".join([str(topic_id), *keywords[:4]])


def term_maps(batches: Iterable[pa.RecordBatch], topics: Sequence[int]) -> tuple[pa.MapArray, pa.MapArray]:
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
    import numpy as np

    wanted = pa.array(topics, pa.int32())
    schema = pa.schema([("topic_id", pa.int32()), ("term", pa.string()), ("count", pa.int64()), ("documents", pa.int64())])
    parts = [pa.Table.from_batches([batch]).select(schema.names).cast(schema) for batch in batches]
    rows = pa.concat_tables([schema.empty_table(), *parts])
    rows = rows.filter(pc.is_in(rows["topic_id"], value_set=wanted)).sort_by([("topic_id", "ascending"), ("term", "ascending")])
    ends = np.searchsorted(rows["topic_id"].to_numpy(), np.asarray(topics, np.int32), side="right")
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    term, count, documents = (pa.concat_arrays([pa.array([], column.type), *column.chunks]) for column in rows.columns[1:])
    return pa.MapArray.from_arrays(offsets, term, count), pa.MapArray.from_arrays(offsets, term, documents)
