"""The tables that describe a BERTopic model's topics.

What is exact and what is not
-----------------------------
BERTopic saves what its topics look like, not what they were made of.

===================  ==================================================================================================
exact                ids, sizes, names, labels, words, weights; term counts where the idf agrees with them (the store's
                     summary then says ``"terms": "recovered"``: all but a factor common to every count of the model)
vector sums          size times topic embedding. That is the sum itself where the model's embeddings are means of unit
                     vectors, as BERTopic makes them (none is longer than 1); else the sum of as many unit vectors in
                     its direction
term counts          else (``"terms": "estimated"``) a topic's share of the term times its estimated number of terms, see
                     :func:`topicscale.bertopic.counts.recover`
term documents       the documents that so many uses would fall on at random, at most the topic's size
cut-offs             none: ``transform`` gives every document its nearest topic
===================  ==================================================================================================

BERTopic takes punctuation out of English texts before it counts ("it's" is its term "its"), joins a topic's documents, so
that n-grams cross from one to the next, and drops terms by the topics that have them (``min_df``).

The terms' settings in ``site_topics.vocabulary`` therefore carry ``"approximate": true``. A model saved without
c-TF-IDF (``"terms": "none"``) gets the words it shows, with their weights and a count of 0, and no counts in
``site_topics``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from topicscale.bertopic.counts import Counts, documents_with, recover
from topicscale.bertopic.folder import Folder, Words
from topicscale.cluster import Float64, unit
from topicscale.config import Config
from topicscale.labels import MAIN
from topicscale.leaf_terms import term_maps, vocabulary
from topicscale.merge import leaf_key, topic_key
from topicscale.models import told
from topicscale.refine import ALL
from topicscale.tables import OUTLIER, TABLES
from topicscale.terms import KEYWORDS, name, top_terms

OURS = ("ctfidf", "manual", MAIN)
"""Aspects that mean something else here than a BERTopic user's aspect of that name."""
_WORD = r"(?u)\b\w\w+\b"
"""CountVectorizer's own token_pattern."""


@dataclass(frozen=True)
class Tables:
    """The tables of a store that holds topics alone."""

    tables: Mapping[str, pa.Table]
    terms: str
    """How the term counts were had: recovered, estimated, or none."""


def tables(folder: Folder, config: Config, *, space: str, site: str = "", site_id: str = "", generation: int = 0) -> Tables:
    """Return the tables that describe a BERTopic model's topics. Writes nothing."""
    sums = vector_sums(folder)
    keys = [leaf_key(int(size), row) for size, row in zip(folder.sizes, sums, strict=True)]
    counted = None if folder.terms is None else _counted(folder)
    terms = _shown_terms(folder) if counted is None else _all_terms(folder, counted)
    weights = weights_of(terms.to_batches(), {word for words in folder.words.values() for word, _ in words})
    real = terms.filter(pc.greater(terms["count"], 0))
    counts, documents = term_maps(real.to_batches(), folder.ids)
    present = [row for row, topic in enumerate(folder.ids) if topic != OUTLIER]
    k = len(folder.ids)
    sites = {
        "site": [site] * k,
        "site_id": [site_id] * k,
        "generation": [generation] * k,
        "topic_key": ["outliers" if topic == OUTLIER else topic_key([key]) for topic, key in zip(folder.ids, keys, strict=True)],
        "label": [_label(folder, topic) or _written(folder, topic, weights) for topic in folder.ids],
        "size": folder.sizes,
        "vector_sum": sums.tolist(),
        "term_counts": counts,
        "term_documents": documents,
        "min_documents": [_min_documents(folder)] * k,
        "embedding_space": [space] * k,
        "embedding_model": [told(config.embedding.model)] * k,
        "vocabulary": [_vocabulary(folder, config)] * k,
    }
    lineage = {
        "site": [site] * len(present),
        "partition_id": [""] * len(present),
        "local_topic": [folder.ids[row] for row in present],
        "topic_key": [keys[row] for row in present],
        "size": [int(folder.sizes[row]) for row in present],
        "topic_id": [folder.ids[row] for row in present],
        "similarity": [1.0] * len(present),
    }
    found = {
        "topics": pa.Table.from_pylist(_topics(folder, sums, keys), schema=TABLES["topics"].schema),
        "topic_terms": terms,
        "topic_labels": pa.Table.from_pylist(
            _labels(folder, weights, top_terms(terms.to_batches(), config.terms.top_n_words)), schema=TABLES["topic_labels"].schema
        ),
        "topic_lineage": pa.table(lineage, schema=TABLES["topic_lineage"].schema),
        "site_topics": pa.table(sites, schema=TABLES["site_topics"].schema),
    }
    return Tables(found, "none" if counted is None else "recovered" if counted.exact else "estimated")


def vector_sums(folder: Folder) -> Float64:
    """Return the topics' sums of unit vectors, as nearly as they are known: float64 (k, d)."""
    means = folder.embeddings.astype(np.float64)
    if np.linalg.norm(means, axis=1).max(initial=0.0) > 1.0 + 1e-4:
        means = unit(means)  # of vectors that were no unit vectors
    # on the grid that sums of unit vectors keep, so that these add up exactly, too
    return np.asarray(np.rint(folder.sizes[:, None] * means * 2.0**30) / 2.0**30, dtype=np.float64)


def _topics(folder: Folder, sums: Float64, keys: list[str]) -> list[dict[str, Any]]:
    references = unit(folder.embeddings).astype(np.float32)
    return [
        {
            "topic_id": topic,
            "topic_key": "" if topic == OUTLIER else topic_key([keys[row]]),
            # a zero-shot topic, too: BERTopic's loaded model gives it no precedence, and its least similarity is not saved
            "kind": "outliers" if topic == OUTLIER else "found",
            "size": int(folder.sizes[row]),
            "reference_vector": references[row].tolist(),
            "cutoff": None if topic == OUTLIER else ALL,
            "core": None if topic == OUTLIER else ALL,
            "parent_id": None,
            "label": _label(folder, topic) or name(topic, _keywords(folder, topic)),
            "keywords": _keywords(folder, topic),
            "representative_docs": folder.documents.get(topic, []),
        }
        for row, topic in enumerate(folder.ids)
    ]


def _keywords(folder: Folder, topic: int) -> list[str]:
    return [word for word, _ in folder.words.get(topic, [])]


def _label(folder: Folder, topic: int) -> str:
    """Return a topic's name that someone or some model gave it, empty if there is none."""
    label = folder.custom.get(topic, "") or folder.names.get(topic, "")
    return "" if label == name(topic, _keywords(folder, topic)) else label


def _written(folder: Folder, topic: int, weights: Mapping[tuple[int, str], float]) -> str:
    """Return the phrase that a language model gave as a topic's one word, if that is what its representation is."""
    words = _keywords(folder, topic)
    return words[0] if len(words) == 1 and (topic, words[0]) not in weights else ""


def _labels(folder: Folder, weights: Mapping[tuple[int, str], float], best: Mapping[int, Words]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def add(topic: int, aspect: str, label: str, words: Words, *, weighed: bool = True) -> None:
        detail = json.dumps({"weights": [weight for _, weight in words]}) if weighed and words else ""
        terms = [word for word, _ in words]
        rows.append({"topic_id": topic, "aspect": aspect, "label": label, "terms": terms, "status": "ok", "detail": detail})

    for topic in folder.ids:
        main, counted = folder.words.get(topic, []), best.get(topic, [])
        add(topic, "ctfidf", name(topic, [word for word, _ in counted]), counted, weighed=False)
        # compared by weight: of words of equal weight any may be the last
        known = [(given, weights.get((topic, word), 0.0), best) for (word, given), (_, best) in zip(main, counted, strict=False)]
        if main and (len(main) != len(counted) or any(max(row) - min(row) > 1e-9 for row in known)):
            add(topic, MAIN, _written(folder, topic, weights), main)
        if _label(folder, topic):
            add(topic, "manual", _label(folder, topic), [])
        for aspect, by_topic in folder.aspects.items():
            words = by_topic.get(topic, [])
            add(topic, f"{aspect} (BERTopic)" if aspect in OURS else aspect, words[0][0] if len(words) == 1 else "", words)
    return rows


def weights_of(batches: Iterable[pa.RecordBatch], words: set[str]) -> dict[tuple[int, str], float]:
    """Return the weights that keywords are chosen by, of some words, from the rows of ``topic_terms``, by topic and word."""
    wanted = pa.array(sorted(words), pa.string())
    found: dict[tuple[int, str], float] = {}
    for batch in batches:
        rows = batch.filter(pc.is_in(batch.column("term"), value_set=wanted))
        topics, terms, weights = (rows.column(column).to_pylist() for column in KEYWORDS)
        found.update(zip(zip(topics, terms, strict=True), weights, strict=True))
    return found


def _counted(folder: Folder) -> Counts:
    assert folder.terms is not None
    return recover(
        folder.terms.weights,
        folder.terms.idf,
        folder.sizes,
        bm25_weighting=folder.terms.transformer.get("bm25_weighting") is True,
        reduce_frequent_words=folder.terms.transformer.get("reduce_frequent_words") is True,
    )


def _all_terms(folder: Folder, counted: Counts) -> pa.Table:
    assert folder.terms is not None
    matrix = counted.matrix
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    weights = np.asarray(folder.terms.weights[rows, matrix.indices]).ravel()
    names = pa.array(folder.terms.names, pa.string()).take(pa.array(matrix.indices))
    table = {
        "topic_id": np.asarray(folder.ids, np.int32)[rows],
        "term": names,
        "count": matrix.data.astype(np.int64),
        "documents": documents_with(matrix.data.astype(np.int64), folder.sizes[rows]),
        "weight": weights,
        "core_count": matrix.data.astype(np.int64),
        "core_weight": weights,
    }
    return pa.table(table, schema=TABLES["topic_terms"].schema)


def _shown_terms(folder: Folder) -> pa.Table:
    found = [(topic, word, weight) for topic, words in sorted(folder.words.items()) for word, weight in words]
    table = {
        "topic_id": [topic for topic, _, _ in found],
        "term": [word for _, word, _ in found],
        "count": [0] * len(found),
        "documents": [0] * len(found),
        "weight": [weight for _, _, weight in found],
        "core_count": [0] * len(found),
        "core_weight": [weight for _, _, weight in found],
    }
    return pa.table(table, schema=TABLES["topic_terms"].schema)


def _vocabulary(folder: Folder, config: Config) -> str:
    settings = {} if folder.terms is None else folder.terms.vectorizer
    other = {
        key: settings[key]
        for key, usual in (("token_pattern", _WORD), ("analyzer", "word"), ("strip_accents", None))
        if settings.get(key, usual) != usual
    }
    return vocabulary(config.terms, approximate=True, other=other)


def _min_documents(folder: Folder) -> int:
    """Return 1 if every term is there. BERTopic's ``min_df`` counts topics: a term below it is in fewer documents only at times."""
    if folder.terms is None:
        return 1
    params = folder.terms.vectorizer
    least = params.get("min_df", 1)
    if isinstance(least, float):  # a share of topics
        least = math.ceil(least * len(folder.ids)) if math.isfinite(least) else 1
    dropped = params.get("max_features") is not None or params.get("max_df", 1.0) != 1.0
    return max(1, min(least, 2**31) if isinstance(least, int) else 1, 2 if dropped else 1)
