"""Measure topics: against known labels, and by their own words.

Outliers (topic -1) are a cluster of their own wherever clusterings are compared, so that a model cannot gain by leaving
hard documents out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from topicscale.coherence import C_V_WINDOW, c_v, count_many, npmi
from topicscale.tables import OUTLIER
from topicscale.texts import UNSPACED


def clustering(labels_true: Sequence[Any] | npt.NDArray[Any], labels_pred: Sequence[int] | npt.NDArray[Any]) -> dict[str, float]:
    """Return agreement of topics with known labels.

    Parameters
    ----------
    labels_true : (n,)
        Known labels: numbers or strings. Documents without one (None, NaN, pandas' NA) are left out and counted.
    labels_pred : int (n,)
        Topic of each document, -1 for outliers.

    Returns
    -------
    dict
        ``nmi`` (arithmetic mean, which is also the V-measure), ``ami``, ``ari``, ``homogeneity``, ``completeness``,
        ``v_measure``, ``purity`` (share of documents whose label is the commonest of their topic), ``outlier_share``,
        ``nmi_assigned`` (outliers left out: not comparable between models), ``documents``, ``unlabelled``, ``labels``,
        ``topics``.

    Raises
    ------
    ValueError
        The lengths differ, or no document has a label.

    Notes
    -----
    Sources: Vinh, Epps and Bailey, JMLR 11 (2010), for NMI and AMI; Hubert and Arabie, 1985, for ARI; Rosenberg and
    Hirschberg, EMNLP 2007, for the V-measure.
    """
    import pandas as pd
    from sklearn import metrics

    predicted = np.asarray(labels_pred)
    if len(labels_true) != len(predicted):
        raise ValueError(f"labels_true and labels_pred must have the same length. Got {len(labels_true)} and {len(predicted)} instead.")
    labelled = pd.Series(list(labels_true), dtype=object).notna().to_numpy()
    if not labelled.any():
        raise ValueError(f"labels_true must hold a label. Got {len(labels_true)} documents without one instead.")
    # as strings: a column may hold 1 and "1", and numpy cannot sort a mixture
    _, true = np.unique([str(label) for label, ok in zip(labels_true, labelled, strict=True) if ok], return_inverse=True)
    found, pred = np.unique(predicted[labelled], return_inverse=True)
    homogeneity, completeness, v_measure = metrics.homogeneity_completeness_v_measure(true, pred)
    table = metrics.cluster.contingency_matrix(true, pred, sparse=True).tocsc()
    assigned = predicted[labelled] != OUTLIER
    return {
        "nmi": float(metrics.normalized_mutual_info_score(true, pred)),
        "ami": float(metrics.adjusted_mutual_info_score(true, pred)),
        "ari": float(metrics.adjusted_rand_score(true, pred)),
        "homogeneity": float(homogeneity),
        "completeness": float(completeness),
        "v_measure": float(v_measure),
        "purity": float(table.max(axis=0).sum() / len(true)),
        "outlier_share": float(1 - assigned.mean()),
        "nmi_assigned": float(metrics.normalized_mutual_info_score(true[assigned], pred[assigned])) if assigned.any() else 0.0,
        "documents": float(len(true)),
        "unlabelled": float((~labelled).sum()),
        "labels": float(true.max() + 1),
        "topics": float((found != OUTLIER).sum()),
    }


def topic_quality(
    topics: Sequence[Sequence[str]],
    documents: Iterable[Sequence[str]],
    *,
    top_n: int = 10,
    window: int = C_V_WINDOW,
) -> dict[str, float]:
    """Return how coherent and how different topics are, judged by their words.

    Parameters
    ----------
    topics : sequence of sequences of str
        Words of each topic, most important first, outliers left out.
    documents : iterable of sequences of str
        Tokens of each document, in order; read once, one at a time.
    top_n : int, default=10
        Words of each topic that are judged.
    window : int, default=110
        Tokens of a window of C_v.

    Returns
    -------
    dict
        ``npmi`` (documents as windows), ``c_v``, ``diversity``: means over topics; ``topics``; ``unseen_words``: the
        share of judged words that no document holds, which pull both coherences towards 0.
    """
    top = [list(dict.fromkeys(words))[:top_n] for words in topics]
    whole, sliding = count_many(documents, top, windows=(None, window))
    judged = [whole.single[whole.words[word]] for words in top for word in words]
    return {
        "npmi": _mean(npmi(top, whole)),
        "c_v": _mean(c_v(top, sliding)),
        "diversity": diversity(top, top_n=top_n),
        "topics": float(len(top)),
        "unseen_words": float(np.mean([n == 0 for n in judged])) if judged else 0.0,
    }


def diversity(topics: Sequence[Sequence[str]], *, top_n: int = 10) -> float:
    """Return the share of distinct words among the topics' top words, 0 to 1 (Dieng, Ruiz and Blei, TACL 2020)."""
    words = [word for topic in topics for word in topic[:top_n]]
    return len(set(words)) / len(words) if words else 0.0


def sizes(counts: Mapping[int, int]) -> dict[str, float]:
    """Return the outliers' share and the spread of topic sizes, from documents per topic id."""
    total = sum(counts.values())
    inside = np.array([n for topic, n in counts.items() if topic != OUTLIER], dtype=np.int64)
    return {
        "documents": float(total),
        "topics": float(len(inside)),
        "outlier_share": counts.get(OUTLIER, 0) / total if total else 0.0,
        "largest": float(inside.max(initial=0)),
        "median": float(np.median(inside)) if len(inside) else 0.0,
        "smallest": float(inside.min()) if len(inside) else 0.0,
    }


def tokeniser(*, lowercase: bool = True) -> Callable[[str], list[str]]:
    """Return a function that splits a text into words of two characters or more, in any script with spaces.

    Letters, digits, underscores and combining marks make words: without the marks, Hindi and vowelled Arabic fall
    apart. Chinese, Japanese and Thai need a segmenter first.
    """
    import regex

    find = regex.compile(r"[\p{L}\p{M}\p{N}_]{2,}").findall
    return (lambda text: find(text.lower())) if lowercase else find


def with_words(tokens: Callable[[str], list[str]], words: Iterable[str], *, stop_words: Collection[str] = ()) -> Callable[[str], list[str]]:
    """Return a tokeniser that also gives, where they occur, those of some words that ``tokens`` cannot give as one token.

    These are phrases (n-grams, which are of words without the stop words between them) and words of scripts without spaces. Each
    comes after the token in which it begins.

    Parameters
    ----------
    tokens : callable
        See :func:`tokeniser`.
    words : iterable of str
        Topics' words, as they were counted.
    stop_words : collection of str
        Words that were left out before phrases were made.
    """
    import regex

    unspaced = regex.compile(f"[{UNSPACED}]")
    distinct = set(words)
    inside = {word: word.replace(" ", "") for word in distinct if unspaced.search(word)}
    phrases: dict[str, list[tuple[str, ...]]] = {}
    for word in sorted(distinct - set(inside)):
        if " " in word:
            parts = tuple(word.split(" "))
            phrases.setdefault(parts[0], []).append(parts)
    if not inside and not phrases:
        return tokens
    stop = frozenset(stop_words)

    def found(text: str) -> list[str]:
        result: list[str] = []
        plain = tokens(text)
        kept = [(token, i) for i, token in enumerate(plain) if token not in stop]
        after: dict[int, list[str]] = {}
        for at, (token, i) in enumerate(kept):
            for parts in phrases.get(token, ()):
                if tuple(word for word, _ in kept[at : at + len(parts)]) == parts:
                    after.setdefault(i, []).append(" ".join(parts))
        for i, token in enumerate(plain):
            result += [token, *after.get(i, ())]
            if inside and unspaced.search(token):
                result += [word for word, letters in inside.items() if letters in token and word != token]
        return result

    return found


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0
