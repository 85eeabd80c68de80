"""A store's topics into a folder that BERTopic loads.

What goes out: sizes, names, words, labels, aspects, representative documents, reference vectors and all c-TF-IDF
weights. What cannot: cut-offs (BERTopic's ``transform`` takes the nearest topic embedding, the outliers' mean among
them) and lineage. The folder holds the corpus's terms and, where the store has them, representative documents: it is as
confidential as they are.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_matrix

from topicscale.bertopic.folder import CONFIG, CTFIDF, CTFIDF_CONFIG, EMBEDDINGS, REPRESENTATIVE, TOPICS
from topicscale.bertopic.tables import OURS, weights_of
from topicscale.cluster import unit
from topicscale.config import Config
from topicscale.errors import RequestError
from topicscale.labels import MAIN, weighed
from topicscale.labels import names as names_given
from topicscale.models import PACKAGED, is_path
from topicscale.refine import nearest
from topicscale.store import Store
from topicscale.tables import OUTLIER
from topicscale.terms import KEYWORDS, name

_FILES = (EMBEDDINGS, CTFIDF, CTFIDF_CONFIG, CONFIG, TOPICS)  # the last says that the others are there
_EMPTY: list[Any] = ["", 1e-05]
"""What BERTopic pads a topic's words with; it cannot show a topic that has none."""


def write(store: Store, directory: str | Path, *, config: Config, assigned: Sequence[int] = ()) -> Path:
    """Write the topics of a store, at the generation it is pinned to, as a BERTopic folder, and return the folder.

    Parameters
    ----------
    directory : str or Path
        New, empty, or with a BERTopic model in it, which is replaced.
    assigned : sequence of int
        Topic of each document. Where they are not exactly the documents that the topics' sizes count, ``topics_`` of the
        loaded model holds each topic as often as its size says, in no order.

    Raises
    ------
    RequestError
        The store has no topics or no topic embeddings, or the folder holds something else.
    """
    target = Path(directory).expanduser()
    if target.exists() and (not target.is_dir() or set(os.listdir(target)) - set(_FILES)):
        raise RequestError(f"directory must be a new or empty folder. {str(directory)!r} holds something else already. Name another.")
    rows = sorted(store.read("topics").to_pylist(), key=lambda row: int(row["topic_id"]))
    ids = [int(row["topic_id"]) for row in rows]
    if not ids or ids != list(range(ids[0], ids[0] + len(ids))) or ids[0] not in (OUTLIER, 0):
        raise RequestError(f"The store {store.uri!r} must have topics numbered without gaps for BERTopic. Got {ids[:20]} instead.")
    if any(len(row["reference_vector"] or ()) == 0 for row in rows):
        raise RequestError(
            f"The topics of {store.uri!r} have no embeddings, which BERTopic needs: it was merged by terms, over several embedding models."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bertopic-", dir=target.parent) as made:
        folder = Path(made)
        _save(folder / EMBEDDINGS, {"topic_embeddings": _embeddings(store, rows)})
        _dump(folder / TOPICS, _described(store, rows, ids, assigned))
        _dump(folder / CONFIG, _parameters(config))
        counted = _weights(store, ids, config)
        if counted is not None:
            weights, idf, terms = counted
            tensors = {"indptr": weights.indptr, "indices": weights.indices, "data": weights.data}
            _save(folder / CTFIDF, tensors | {"shape": np.array(weights.shape), "diag": idf})
            _dump(folder / CTFIDF_CONFIG, _vectorizer(config, terms))
        target.mkdir(exist_ok=True)
        for file in _FILES:
            if (folder / file).exists():
                (folder / file).replace(target / file)
            else:
                (target / file).unlink(missing_ok=True)
    return target


def _embeddings(store: Store, rows: list[dict[str, Any]]) -> npt.NDArray[np.float32]:
    """Return the reference vectors, each as long as the mean of its topic's documents, which is what BERTopic has.

    The leaves tell the means: those nearest to a topic, if their sizes add up to the topic's. Where they do not, the
    length is the other topics' median (1 without any).
    """
    references = unit(np.array([row["reference_vector"] for row in rows], np.float64))
    sizes = np.array([row["size"] for row in rows], np.int64)
    first = int(rows[0]["topic_id"] == OUTLIER)
    leaves = store.read("site_topics", ["topic_key", "size", "vector_sum"]).combine_chunks()
    sums = leaves["vector_sum"].combine_chunks().flatten().to_numpy()
    lengths = np.full(len(rows), np.nan)
    if leaves.num_rows and len(sums) == leaves.num_rows * references.shape[1]:
        sums = sums.reshape(leaves.num_rows, -1)
        of = np.full(leaves.num_rows, len(rows))  # a row more than there are topics: of no topic
        outliers = pc.equal(leaves["topic_key"], "outliers").to_numpy()
        of[outliers] = 0 if first else len(rows)
        if len(rows) > first and not outliers.all():
            of[~outliers] = first + nearest(unit(sums[~outliers]).astype(np.float32), references[first:].astype(np.float32))[0]
        member = csr_matrix((np.ones(len(of)), (of, np.arange(len(of)))), shape=(len(rows) + 1, len(of)))
        held = (member @ leaves["size"].to_numpy())[:-1]
        length = np.linalg.norm((member @ sums)[:-1], axis=1) / np.maximum(sizes, 1)
        lengths = np.where((held == sizes) & (length > 0), length, np.nan)
    known = lengths[np.isfinite(lengths)]
    lengths[~np.isfinite(lengths)] = np.median(known) if len(known) else 1.0
    return np.asarray(references * lengths[:, None], dtype=np.float32)


def _described(store: Store, rows: list[dict[str, Any]], ids: list[int], assigned: Sequence[int]) -> dict[str, Any]:
    sizes = {int(row["topic_id"]): int(row["size"]) for row in rows}
    labels = store.read("topic_labels").to_pylist()
    main = {row["topic_id"]: [list(pair) for pair in weighed(row)] for row in labels if row["aspect"] == MAIN}
    words = {int(row["topic_id"]): list(row["keywords"] or ()) for row in rows}
    weights = weights_of(
        store.read_batches("topic_terms", KEYWORDS) if store.has("topic_terms") else (),
        {word for keywords in words.values() for word in keywords},
    )
    shown = {t: main.get(t) or [[word, weights.get((t, word), 0.0)] for word in words[t]] for t in ids}
    names = {t: name(t, words[t]) for t in ids}
    given = names_given(labels)  # and not the topics' labels: an update leaves those made of earlier keywords
    aspects: dict[str, dict[str, list[list[Any]]]] = {}
    for row in labels:
        if row["aspect"] not in OURS:
            aspect = aspects.setdefault(row["aspect"], {str(t): [_EMPTY] for t in ids})
            aspect[str(row["topic_id"])] = [list(pair) for pair in weighed(row)] or [_EMPTY]
    counted = dict(zip(*np.unique(np.asarray(assigned, np.int64), return_counts=True), strict=True)) if len(assigned) else {}
    in_order = all(counted.get(t, 0) == sizes[t] for t in ids) and sum(counted.values()) == sum(sizes.values())
    topics = [int(t) for t in assigned] if in_order else np.repeat(ids, [sizes[t] for t in ids]).tolist()
    return {
        "topic_representations": {str(t): shown[t] or [_EMPTY] for t in ids},
        "topics": topics,
        "topic_sizes": {str(t): sizes[t] for t in ids},
        "topic_mapper": [[t, t] for t in ids],
        "topic_labels": names,
        "custom_labels": [given.get(t, names[t]) for t in ids] if any(given.get(t, names[t]) != names[t] for t in ids) else None,
        "_outliers": int(ids[0] == OUTLIER),
        "topic_aspects": aspects,
        REPRESENTATIVE: {str(row["topic_id"]): row["representative_docs"] for row in rows if row["representative_docs"]},
    }


def _parameters(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = {
        "calculate_probabilities": False,
        "language": "english",
        "low_memory": False,
        "min_topic_size": config.topics.min_size,
        "n_gram_range": list(config.terms.ngram_range),
        "nr_topics": config.topics.number,
        "seed_topic_list": None,
        "top_n_words": config.terms.top_n_words,
        "verbose": False,
        "zeroshot_min_similarity": 0.7,
        "zeroshot_topic_list": None,
    }
    model = config.embedding.model
    # where a model lies on this machine is nobody else's business, nor of use to them
    if config.input.embedding_column is None and not is_path(model):
        found["embedding_model"] = f"sentence-transformers/{model}" if model in PACKAGED else model
    return found


def _weights(store: Store, ids: list[int], config: Config) -> tuple[csr_matrix, npt.NDArray[np.float64], list[str]] | None:
    """Return the c-TF-IDF weights (topics, terms), each term's idf, and the terms; None if the store has no counts."""
    if not store.has("topic_terms"):
        return None
    rows = store.read("topic_terms", ["topic_id", "term", "count", "weight"])
    rows = rows.filter(pc.and_(pc.greater(rows["count"], 0), pc.is_in(rows["topic_id"], value_set=pa.array(ids, pa.int32()))))
    if rows.num_rows == 0:
        return None
    terms = pc.unique(rows["term"]).sort()
    columns = pc.index_in(rows["term"], value_set=terms).to_numpy()
    topics = rows["topic_id"].to_numpy() - ids[0]
    counts, weights = rows["count"].to_numpy().astype(np.float64), rows["weight"].to_numpy()
    share = counts / np.bincount(topics, counts, minlength=len(ids))[topics]
    tf = np.sqrt(share) if config.terms.reduce_frequent_words else share
    # the idf that the weights were made with: one made anew from estimated counts would not go with them
    idf = np.bincount(columns, weights, minlength=len(terms)) / np.bincount(columns, tf, minlength=len(terms))
    matrix = csr_matrix((weights, (topics, columns)), shape=(len(ids), len(terms)))
    matrix.sort_indices()
    return matrix, idf, terms.to_pylist()


def _vectorizer(config: Config, terms: list[str]) -> dict[str, Any]:
    stop = config.terms.stop_words
    params = {
        "analyzer": "word",
        "binary": False,
        "decode_error": "strict",
        "encoding": "utf-8",
        "input": "content",
        "lowercase": config.terms.lowercase,
        "max_df": 1.0,
        "max_features": None,
        "min_df": 1,
        "ngram_range": list(config.terms.ngram_range),
        "stop_words": stop if stop is None or isinstance(stop, str) else list(stop),
        "strip_accents": None,
        "token_pattern": r"(?u)\b\w\w+\b",
        "vocabulary": None,
    }
    weighting = {"bm25_weighting": config.terms.bm25_weighting, "reduce_frequent_words": config.terms.reduce_frequent_words}
    return {"ctfidf_model": weighting, "vectorizer_model": {"params": params, "vocab": {term: i for i, term in enumerate(terms)}}}


def _dump(file: Path, content: Mapping[str, Any]) -> None:
    # BERTopic reads it back as UTF-8: only ASCII is the same everywhere
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _save(file: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    from safetensors.numpy import save_file

    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, file)
