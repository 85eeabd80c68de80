"""Finished stores of sites, made here without an engine: topics, leaves, pilots and terms, and no documents to speak of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from topicscale.cluster import exact, unit
from topicscale.config import Config, fingerprint
from topicscale.leaf_terms import vocabulary
from topicscale.merge import leaf_key, topic_key
from topicscale.store import Store
from topicscale.tables import OUTLIER, TABLES
from topicscale.terms import name

THEMES = ("oil gas barrel", "court judge trial", "goal match league", "nurse vaccine dose", "moon orbit probe", "chip code kernel")
PRINT = fingerprint("site")


def site(path: Path, themes: Sequence[int], *, seed: int = 0, outliers: int = 5, space: str = "space", dimensions: int = 16) -> Store:
    """Write a site's finished store, a topic for each theme, the first the largest, and publish it."""
    store = Store(path, create=True)
    random = np.random.default_rng(seed)
    topics: list[dict[str, Any]] = []
    leaves: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    for topic in range(OUTLIER if outliers else 0, len(themes)):
        size = outliers if topic == OUTLIER else 40 - 5 * topic
        words = ["the", "and"] if topic == OUTLIER else THEMES[themes[topic]].split()
        centre = np.zeros(dimensions) if topic == OUTLIER else np.eye(dimensions)[themes[topic]]
        total = exact(unit(centre + 0.05 * random.normal(size=(size, dimensions)))).sum(axis=0)
        key = topic_key([leaf_key(size, total)])
        made = name(topic, words)
        topics.append(
            {
                "topic_id": topic,
                "topic_key": "" if topic == OUTLIER else key,
                "kind": "outliers" if topic == OUTLIER else "found",
                "size": size,
                "reference_vector": unit(total[None])[0].tolist(),
                "cutoff": None if topic == OUTLIER else 0.2,
                "core": None if topic == OUTLIER else 0.2,
                "label": made,
                "keywords": words,
                "representative_docs": [],
            }
        )
        labels.append({"topic_id": topic, "aspect": "ctfidf", "label": made, "terms": words, "status": "ok", "detail": ""})
        leaves.append(
            {
                "site": "",
                "site_id": "",
                "generation": 0,
                "topic_key": "outliers" if topic == OUTLIER else key,
                "label": "",
                "size": size,
                "vector_sum": total.tolist(),
                "term_counts": [(word, size) for word in words],
                "term_documents": [(word, size) for word in words],
                "min_documents": 1,
                "embedding_space": space,
                "embedding_model": f"model of {space}",
                "vocabulary": vocabulary(Config().terms),
            }
        )
    pilot = {"pilot_key": str(seed), "embedding_space": space, "documents": 100, "height": 0.2, "agreement": 0.9}
    pilots = [{"site": "", "site_id": "", "generation": 0, **pilot}]
    contents = {"topics": topics, "site_topics": leaves, "topic_labels": labels, "pilots": pilots}
    for table, rows in contents.items():
        store.replace(table, pa.Table.from_pylist(rows, schema=TABLES[table].schema), stage="publish", unit_fingerprint=PRINT)
    # what Spark writes in a run
    terms = [
        {"topic_id": row["topic_id"], "term": word, "documents": row["size"]}
        | dict.fromkeys(("count", "core_count"), row["size"])
        | dict.fromkeys(("weight", "core_weight"), 1.0 / (1 + place))
        for row in topics
        for place, word in enumerate(row["keywords"])
    ]
    write_deltalake(store.table_path("topic_terms"), pa.Table.from_pylist(terms, schema=TABLES["topic_terms"].schema))
    documents = {"doc_id": ["a"], "partition_id": ["p"], "text": ["a text"], "text_hash": ["a"]}
    write_deltalake(store.table_path("documents"), pa.table(documents), partition_by=["partition_id"])
    summary = {
        "documents": sum(row["size"] for row in topics),
        "topics": len(themes),
        "outliers": outliers,
        "space": space,
        "model": "m",
        "failed": {},
    }
    store.publish(configuration=Config().to_dict(), summary=summary, unit_fingerprint=PRINT)
    return store
