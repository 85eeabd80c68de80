"""Choosing keywords from the rows of ``topic_terms``, batch by batch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

KEYWORDS = ["topic_id", "term", "core_weight"]
"""The columns of ``topic_terms`` that keywords are chosen by."""


def top_terms(batches: Iterable[pa.RecordBatch], number: int) -> dict[int, list[tuple[str, float]]]:
    """Return each topic's ``number`` terms of the highest weight, best first; equal weights go alphabetically.

    Parameters
    ----------
    batches : iterable of RecordBatch
        With the columns :data:`KEYWORDS`; any order.
    """
    best: pa.Table | None = None
    for batch in batches:
        rows = pa.Table.from_batches([batch]).select(KEYWORDS)
        best = _best(rows if best is None else pa.concat_tables([best, rows]), number)
    found: dict[int, list[tuple[str, float]]] = {}
    if best is not None:
        for row in best.to_pylist():
            found.setdefault(row["topic_id"], []).append((row["term"], row["core_weight"]))
    return found


def _best(rows: pa.Table, number: int) -> pa.Table:
    rows = rows.filter(pc.greater(rows["core_weight"], 0.0))
    order = [("topic_id", "ascending"), ("core_weight", "descending"), ("term", "ascending")]
    rows = rows.sort_by(order).combine_chunks()
    topics = rows["topic_id"].to_numpy()
    if len(topics) == 0:
        return rows
    starts = np.searchsorted(topics, topics)  # rows are sorted by topic: where each row's topic begins
    return rows.filter(pa.array(np.arange(len(topics)) - starts < number))


_WORD = re.compile(r"\b\w\w+\b")


def words(text: str) -> list[str]:
    """Return the words of a text as scikit-learn's vectorizers find them by default, in their order and case."""
    return _WORD.findall(text)


def name(topic_id: int, keywords: list[str]) -> str:
    """Return a topic's name as BERTopic's users know it: the id and its four best terms."""
    return "_".join([str(topic_id), *keywords[:4]])


def stop_words(given: str | Sequence[str] | None) -> list[str]:
    """Return the stop words that ``terms.stop_words`` means."""
    if given is None:
        return []
    if given == "english":
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        return sorted(ENGLISH_STOP_WORDS)
    return [given] if isinstance(given, str) else sorted(set(given))
