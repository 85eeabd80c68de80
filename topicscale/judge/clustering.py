"""Clustering: do k-means clusters of the vectors agree with known labels?"""

from __future__ import annotations

from collections.abc import Sequence

from topicscale import evaluate
from topicscale.represent.view import Encode

STARTS = 10
"""Times k-means is started from other centres (k-means++); the tightest result counts."""


def clustering(encode: Encode, texts: Sequence[str], labels: Sequence[str], *, seed: int = 42) -> dict[str, float]:
    """Return how well as many clusters as there are labels agree with the labels.

    Parameters
    ----------
    encode : callable
        Return the texts' unit vectors, float32 (n, d).
    texts, labels : sequences of str, of length n
    seed : int
        Of k-means' first centres.

    Returns
    -------
    dict
        ``nmi`` (arithmetic mean, hence equal to ``v_measure``), ``v_measure``, ``ami``, ``ari``, ``purity``, ``documents``, ``labels``;
        see :func:`topicscale.evaluate.clustering`.

    Raises
    ------
    ValueError
        The lengths differ, or there are fewer than two labels.

    Notes
    -----
    Lloyd's k-means of scikit-learn with ``STARTS`` starts, on unit vectors: Euclidean distances there order as cosines do. The
    V-measure is what MTEB reports clustering by (Muennighoff et al., EACL 2023), with mini-batches where this takes all rows.
    """
    from sklearn.cluster import KMeans

    if len(texts) != len(labels):
        raise ValueError(f"texts and labels must have the same length. Got {len(texts)} and {len(labels)} instead.")
    number = len({str(label) for label in labels})
    if number < 2:
        raise ValueError(f"labels must hold at least two classes. Got {number} instead.")
    found = KMeans(number, n_init=STARTS, random_state=seed).fit_predict(encode(texts))
    measured = evaluate.clustering([str(label) for label in labels], found)
    return {key: measured[key] for key in ("nmi", "v_measure", "ami", "ari", "purity", "documents", "labels")}
