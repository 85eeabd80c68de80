"""Topic quality: what topics does one fit on this model's vectors find?

A single fit in memory, by the steps and settings that the job takes, on at most ``SAMPLE`` documents. Which ones depends on their
ids or texts alone, so that every model is judged on the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from topicscale import calibrate, evaluate, merge, refine
from topicscale.cluster import cluster, local_min_cluster_size, local_statistics
from topicscale.coherence import count_matrix, npmi
from topicscale.config import Config, TermsConfig
from topicscale.ctfidf import c_tf_idf
from topicscale.represent.view import Encode, Float32
from topicscale.tables import OUTLIER
from topicscale.terms import stop_words, top_terms

SAMPLE = calibrate.SAMPLE
"""Documents of a fit, at most."""


def chosen(keys: Sequence[str], number: int = SAMPLE) -> npt.NDArray[np.int64]:
    """Return the rows, int64, of the ``number`` keys of the least SHA-256, in that order, whatever order the rows are in."""
    hashes = [hashlib.sha256(key.encode()).digest() for key in keys]
    return np.array(sorted(range(len(keys)), key=lambda row: (hashes[row], row))[:number], dtype=np.int64)


def topics(
    encode: Encode, texts: Sequence[str], config: Config, *, labels: Sequence[Any] | None = None, documents: int | None = None
) -> dict[str, float]:
    """Return how good the topics are that one fit finds in ``texts``.

    Parameters
    ----------
    encode : callable
        Return the texts' unit vectors, float32 (n, d).
    texts : sequence of str, of length n
        In an order of their own (see :func:`chosen`): some algorithms depend on it.
    config : Config
        ``cluster``, ``topics`` and ``terms`` are used. Zero-shot names are not.
    labels : sequence, optional
        Known classes; None where a document has none.
    documents : int, optional
        Documents that ``texts`` are a sample of; ``topics.min_size`` is taken down with the sample, as the job's own pilot does.

    Returns
    -------
    dict
        ``npmi``: mean coherence of the topics' words, documents as windows, and -1 (its least) where no topic is found; ``diversity``;
        ``outlier_share``; ``topics``; ``documents``; with labels ``nmi``, outliers being a cluster of their own, and ``labelled``: the
        documents that it rests on.

    Notes
    -----
    More and smaller topics have rarer words, which cohere otherwise: read ``npmi`` beside ``topics``. Words are taken apart at
    spaces: scripts without any (Chinese, Japanese, Thai) are not segmented here, as the job's own counting does.
    """
    assigned, core = fit(encode(texts), config, documents=documents)
    words, coherence = keywords(texts, assigned, core, config.terms)
    measured = {
        "npmi": coherence,
        "diversity": evaluate.diversity(words, top_n=config.terms.top_n_words),
        "outlier_share": float((assigned == OUTLIER).mean()) if len(assigned) else 0.0,
        "topics": float(len(np.unique(assigned[assigned != OUTLIER]))),
        "documents": float(len(texts)),
    }
    if labels is not None:
        agreement = evaluate.clustering(labels, assigned)
        measured |= {"nmi": agreement["nmi"], "labelled": agreement["documents"]}
    return measured


def fit(vectors: Float32, config: Config, *, documents: int | None = None) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Return every row's topic from a single fit by the steps of the job.

    Returns
    -------
    topics : int32 (n,)
        -1 for outliers.
    core : bool (n,)
        Whether a row is of its topic's core; outliers are.
    """
    n = len(vectors)
    min_size = calibrate.sample_min_size(config.topics.min_size, n=n, documents=documents)
    size = local_min_cluster_size(config.cluster, min_size, documents=n, partitions=1)
    found = cluster(vectors, config.cluster, min_cluster_size=size)
    if found.number == 0:
        return np.full(n, OUTLIER, np.int32), np.ones(n, bool)
    leaves, _ = merge.Leaves.of(*local_statistics(found.labels, vectors, representatives=0)[:2])
    if config.topics.number is not None:
        merged = merge.merge(leaves, number=config.topics.number)
    elif config.topics.similarity is not None:
        merged = merge.merge(leaves, similarity=config.topics.similarity)
    else:
        merged = merge.collect(leaves, np.arange(len(leaves), dtype=np.int64))
    wanted = config.topics
    reference = refine.refine(
        refine.local([vectors]), merged.centroids, min_size=min_size, rounds=wanted.rounds, outliers=wanted.outliers, core=wanted.core
    )
    topics, similarity = refine.assign(vectors, reference.vectors, reference.cutoffs)
    return topics, (topics == OUTLIER) | (similarity >= reference.cores[topics])


def keywords(
    texts: Sequence[str], assigned: npt.NDArray[np.int32], core: npt.NDArray[np.bool_], config: TermsConfig
) -> tuple[list[list[str]], float]:
    """Return the words of each topic by c-TF-IDF in its core, outliers left out, and their mean NPMI over the texts (-1 without topics)."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

    found, index = np.unique(assigned, return_inverse=True)
    if not (found != OUTLIER).any():
        return [], -1.0
    vectorizer = CountVectorizer(
        tokenizer=evaluate.tokeniser(lowercase=config.lowercase),
        token_pattern=None,
        lowercase=False,
        stop_words=stop_words(config.stop_words) or None,
        ngram_range=config.ngram_range,
        min_df=config.min_df,
    )
    try:
        matrix = vectorizer.fit_transform(texts).tocsr()
    except ValueError:  # no term is left: stop words alone, or none in min_df documents
        return [[] for topic in found if topic != OUTLIER], 0.0
    terms = vectorizer.get_feature_names_out()
    member = csr_matrix((core.astype(np.float64), (index.ravel(), np.arange(len(texts)))), shape=(len(found), len(texts)))
    weights = c_tf_idf(
        csr_matrix(member @ matrix), bm25_weighting=config.bm25_weighting, reduce_frequent_words=config.reduce_frequent_words
    ).tocoo()
    rows = pa.table({"topic_id": found[weights.row].astype(np.int32), "term": terms[weights.col].tolist(), "core_weight": weights.data})
    best = top_terms(rows.to_batches(), config.top_n_words)
    words = [[term for term, _ in best.get(int(topic), [])] for topic in found if topic != OUTLIER]
    return words, float(npmi(words, count_matrix(matrix, list(terms), words)).mean())
