"""A site's store made by hand: the tables that export reads, without any engine."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from topicscale.cluster import exact, unit
from topicscale.config import TermsConfig, fingerprint
from topicscale.leaf_terms import term_maps, vocabulary
from topicscale.merge import leaf_key, topic_key
from topicscale.store import Store, UnitWrite, write_part
from topicscale.tables import TABLES

PARTITION = "ward-seven-1f2e3d4c"
Document = tuple[str, int, str]
"""(doc_id, topic, text)."""


def documents(sizes: dict[int, int], *, start: int = 0) -> list[Document]:
    """Return documents with words of their topic, of their own, and shared by a few."""
    made = []
    for topic, size in sizes.items():
        for i in range(start, start + size):
            name = f"patient-{topic}-{i}" if topic >= 0 else f"patient-x-{i}"
            text = f"common theme{topic} secret{topic}x{i}" + (f" few{topic}" if i < 4 else "") + (" half" if i % 2 else "")
            made.append((name, topic, text))
    return made


def vector(text: str) -> np.ndarray:
    seed = int(fingerprint("vector", text)[:8], 16)
    topic = next((word for word in text.split() if word.startswith("theme")), "")
    centre = np.random.default_rng(int(fingerprint(topic)[:8], 16)).normal(size=8)
    return exact(unit((centre + 0.2 * np.random.default_rng(seed).normal(size=8))[None]))[0]


def write(
    path: Path,
    content: list[Document],
    *,
    labels: dict[int, str] | None = None,
    space: str = "space-1",
    config: TermsConfig | None = None,
    vectors: dict[str, np.ndarray] | None = None,
) -> Store:
    """Write a generation of a site's store, as a run would leave it; ``vectors``, by id, came with the documents."""
    config = config or TermsConfig()
    store = Store(path, create=True)
    fp = fingerprint(content, labels, space)
    rows = pa.table(
        {
            "doc_id": [d for d, _, _ in content],
            "partition_id": [PARTITION] * len(content),
            "text": [text for _, _, text in content],
            "text_hash": [fingerprint(text) for _, _, text in content],
            "ward": ["geriatrics-annex"] * len(content),
        }
    )
    if vectors is not None:
        rows = rows.append_column("embedding", pa.array([vectors[d].tolist() for d, _, _ in content], pa.list_(pa.float32())))
    of_document = vectors or {d: vector(text) for d, _, text in content}
    write_deltalake(store.table_path("documents"), rows, mode="overwrite", partition_by=["partition_id"])
    assigned = pa.table(
        {
            "doc_id": [d for d, _, _ in content],
            "topic_id": pa.array([topic for _, topic, _ in content], pa.int32()),
            "probability": pa.array([0.5] * len(content), pa.float32()),
        }
    )
    files = write_part(store.uri, "assignments", PARTITION, assigned)
    store.commit("assignments", [UnitWrite("assign", PARTITION, fp, files)])
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    held: dict[int, Counter[str]] = defaultdict(Counter)
    for _, topic, text in content:
        words = [word for word in text.split() if word not in (config.stop_words or ())]
        counts[topic].update(words)
        held[topic].update(set(words))
    terms = [
        {"topic_id": topic, "term": term, "count": n, "documents": held[topic][term], "weight": 0.1, "core_count": n, "core_weight": 0.1}
        for topic, found in counts.items()
        for term, n in found.items()
    ]
    table = pa.Table.from_pylist(terms, schema=TABLES["topic_terms"].schema)
    write_deltalake(store.table_path("topic_terms"), table, mode="overwrite")
    topics = sorted({topic for _, topic, _ in content})
    term_counts, term_documents = term_maps(table.to_batches(), topics)
    sums = {t: np.sum([of_document[d] for d, topic, _ in content if topic == t], axis=0) for t in topics}
    sizes = {t: sum(topic == t for _, topic, _ in content) for t in topics}
    leaves = pa.table(
        {
            "site": [""] * len(topics),
            "site_id": [""] * len(topics),
            "generation": pa.array([0] * len(topics), pa.int64()),
            "topic_key": ["outliers" if t < 0 else topic_key([leaf_key(sizes[t], sums[t])]) for t in topics],
            "label": [(labels or {}).get(t, "") for t in topics],
            "size": pa.array([sizes[t] for t in topics], pa.int64()),
            "vector_sum": [sums[t].tolist() for t in topics],
            "term_counts": term_counts,
            "term_documents": term_documents,
            "min_documents": pa.array([1] * len(topics), pa.int64()),
            "embedding_space": [space] * len(topics),
            "embedding_model": ["MiniLM"] * len(topics),
            "vocabulary": [vocabulary(config)] * len(topics),
        }
    )
    store.replace("site_topics", leaves, stage="publish", unit_fingerprint=fp)
    pilot = {"site": "", "site_id": "", "generation": 0, "pilot_key": fp, "embedding_space": space}
    pilot |= {"documents": len(content), "height": 0.123456789, "agreement": 0.87654321}
    store.replace("pilots", pa.Table.from_pylist([pilot], schema=TABLES["pilots"].schema), stage="calibrate", unit_fingerprint=fp)
    told = {
        "input": {"paths": ["/srv/clinic/letters.csv"], "text_column": ["letter_body"]},
        "partition": {"column": "ward"},
        "embedding": {"model": "/srv/models/MiniLM"},
        "terms": {
            "ngram_range": [1, 1],
            "stop_words": list(config.stop_words) if isinstance(config.stop_words, tuple) else config.stop_words,
        },
    }
    store.publish(configuration=told, summary={"documents": len(content)}, unit_fingerprint=fp)
    return store
