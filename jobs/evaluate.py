"""`topicscale evaluate`: how good a store's topics are, by their words and against a column of labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from topicscale import evaluate as measures
from topicscale.config import Config
from topicscale.errors import RequestError
from topicscale.store import Store
from topicscale.tables import OUTLIER
from topicscale.terms import stop_words

OWN = {"doc_id", "partition_id", "text", "text_hash", "embedding"}


def evaluate(store: str, *, labels: str | None = None) -> dict[str, Any]:
    """Return coherence (NPMI, C_v), diversity, sizes, and with ``labels`` the agreement with that column of ``documents``.

    Documents are read batch by batch; only labels and topic ids are held whole.

    Raises
    ------
    RequestError
        ``labels`` is no kept column.
    StoreError
        The store holds merged topics and no documents.
    """
    source = Store(store)
    snapshot = source.pin()
    source.check_documents()
    check_labels(source, labels)
    topics = source.read("topics", ["topic_id", "size", "keywords"]).sort_by("topic_id").to_pylist()
    words = [row["keywords"] for row in topics if row["topic_id"] != OUTLIER]
    terms = Config.from_dict(snapshot.configuration).terms
    tokens = measures.tokeniser(lowercase=terms.lowercase)
    tokens = measures.with_words(tokens, (word for topic in words for word in topic), stop_words=stop_words(terms.stop_words))

    def documents() -> Iterator[list[str]]:
        for batch in source.read_batches("documents", ["text"]):
            for text in batch.column("text").to_pylist():
                yield tokens(text)

    found: dict[str, Any] = {
        "store": source.uri,
        "generation": snapshot.generation,
        "sizes": measures.sizes({row["topic_id"]: row["size"] for row in topics}),
        "words": measures.topic_quality(words, documents()),
    }
    if labels is not None:
        true, predicted = source.read("documents", ["doc_id", labels]), source.read("assignments", ["doc_id", "topic_id"])
        # as text: Arrow joins no lists. By names of our own: a kept column may be called topic_id
        shown = pa.array([None if v is None or v != v else str(v) for v in true[labels].to_pylist()], pa.string())
        true = pa.table({"id": true["doc_id"], "true": shown})
        joined = true.join(predicted.rename_columns(["id", "predicted"]), "id", join_type="inner")
        named = np.array(joined["true"].to_pylist(), dtype=object)
        if all(label is None for label in named):
            raise RequestError(f"--labels must be a column that holds labels. {labels!r} holds none.")
        found["labels"] = {"column": labels, **measures.clustering(named, joined["predicted"].to_numpy())}
    return found


def check_labels(source: Store, labels: str | None) -> None:
    """Raise RequestError where ``labels`` is no kept column of the pinned documents."""
    assert source.pinned is not None
    columns = [f.name for f in source.table("documents", version=source.pinned.versions["documents"]).to_pyarrow_dataset().schema]
    kept = [name for name in columns if name not in OWN]
    if labels is not None and labels not in kept:
        names = ", ".join(kept) or "there is none"
        raise RequestError(f"--labels must be a kept column of the documents: {names}. Got {labels!r} instead.")


def describe(found: dict[str, Any]) -> str:
    """Return the measures as text for a terminal."""
    lines = [f"{found['store']} (generation {found['generation']})"]
    for section in ("sizes", "words", "labels"):
        for key, value in found.get(section, {}).items():
            if isinstance(value, str):
                shown = value
            else:
                shown = f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1 else f"{value:.4f}"
            lines.append(f"{section:<7} {key:<20} {shown:>12}")
    return "\n".join(lines)
