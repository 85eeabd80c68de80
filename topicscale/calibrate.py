"""Find the granularity at which partitions' topics should be merged, from a sample of documents.

The sample is clustered whole, several times, and again in parts. The parts' topics are merged at many heights and refined,
and the finding is the height at which the result agrees best with the whole fits (adjusted mutual information, Vinh et al.
2010, the mean over the fits). A height is a fraction-of-mass measure, so it holds for other numbers of documents and
partitions too, where a number of topics would not.
"""

from __future__ import annotations

import hashlib
import math
import statistics
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from topicscale import refine as refinement
from topicscale.cluster import Clustering, Float32, Float64, Int32, Int64, cluster, local_min_cluster_size, local_statistics
from topicscale.config import ClusterConfig
from topicscale.merge import Leaves, collect, tree

SAMPLE = 8_000
"""Documents of a pilot, at most."""
FITS = 5
"""Whole fits: with another seed, or vectors rounded otherwise, EVoC finds 35 to 104 topics in the 7,600 articles of AG News.

Agreement with one fit goes up and down by .01 from one number of merged topics to the next, which is as much as it falls
over a factor of 1.5 about its peak; the mean over five is smoother, where the peaks of each, or their median, are not.
"""
TOLERANCE = 0.01
"""Agreements within this fraction of the best count as equal."""
STEEP = 2.0
"""A join so many times as high as the one before it is a gap: below it topics come together, above it strangers do."""
NEAR = 1.5
"""A gap is looked for at up to so many times the number of topics that agrees best, or as few."""
MIN_PARTS = 4
"""Parts of the sample, at least."""
GROWTH = 1 / 3
"""How a site's height falls as its documents are merged with others': height ~ documents ** -GROWTH.

More documents show more topics, each a smaller share of the whole. Topics of equal mass 1 / k join at a height of k ** -.5,
so this says that topics grow as documents ** (2 / 3); single fits of AG News and Banking77 and of their quarters grow by
exponents of .6 to 1.2. 0, 1/4, .35 and 1/2 were compared by NMI with those corpora's labels (two assignments to sites)
before 1/3 was taken, so figures on them are not those of data unseen.
"""


@dataclass(frozen=True)
class Pilot:
    """What a pilot found."""

    height: float
    """Where to cut the tree of merged leaves."""
    agreement: float
    """Adjusted mutual information with the whole fits, their mean, 0 to 1."""
    documents: int
    topics: int
    """Topics of a whole fit of the sample, the median of all."""
    noise: float
    """Share of the sample that a whole fit left as noise, the median of all."""

    @property
    def key(self) -> str:
        """Content id of the finding, 32 hexadecimal digits."""
        content = struct.pack("<ddqqd", self.height, self.agreement, self.documents, self.topics, self.noise)
        return hashlib.sha256(b"pilot:" + content).hexdigest()[:32]


def pilot(
    vectors: Float32,
    config: ClusterConfig,
    *,
    min_size: int = 10,
    documents: int | None = None,
    partitions: int = 4,
    rounds: int = 3,
    threads: int | None = None,
) -> Pilot:
    """Return the height at which a sample's parts agree best with fits of the whole sample.

    Parameters
    ----------
    vectors : float32 (n, d)
        The sample's unit rows, in an order that depends on the sample alone (by document id); at most ``SAMPLE`` are used.
    config, min_size, rounds
        As for the job.
    documents : int, optional
        Documents of the corpus; the sample's size by default.
    partitions : int
        Partitions of the job: the sample is divided into parts of about their size, at least 4.
    """
    from sklearn.metrics import adjusted_mutual_info_score  # a second of import, which no refused command should wait for

    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if len(vectors) > SAMPLE:
        vectors = vectors[np.sort(np.random.default_rng(config.seed).permutation(len(vectors))[:SAMPLE])]
    n = len(vectors)
    corpus = max(documents or n, n)
    if n < 2:
        return Pilot(0.0, 0.0, n, 0, float(n))
    smallest = sample_min_size(min_size, n=n, documents=corpus)
    parts = _parts(n, int(np.clip(round(n * partitions / corpus), MIN_PARTS, max(MIN_PARTS, n // 32))), config.seed)
    size = local_min_cluster_size(config, min_size, documents=corpus, partitions=max(partitions, 2))
    if config.min_cluster_size is not None:  # it was given for a partition, of which a part has a share
        size = sample_min_size(size, n=n // len(parts), documents=corpus // max(partitions, 1))
    found = [
        local_statistics(cluster(p, config, min_cluster_size=size, fine=True, threads=threads).labels, p, representatives=0)[:2]
        for p in (vectors[rows] for rows in parts)
    ]
    leaves, _ = Leaves.of(np.concatenate([s for s, _ in found]), np.concatenate([v for _, v in found]))
    hierarchy = tree(leaves) if len(leaves) > 1 else None

    def cut(number: int) -> Int32:
        assert hierarchy is not None
        merged = collect(leaves, hierarchy.cut(number=number))
        moved = refinement.update(refinement.accumulate(vectors, merged.centroids), merged.centroids)
        return refinement.nearest(vectors, moved)[0]

    fits: list[Clustering] = []
    for seed in range(config.seed, config.seed + FITS):
        fit = cluster(vectors, replace(config, seed=seed), min_cluster_size=smallest, threads=threads)
        if len(fits) == 1 and np.array_equal(fit.labels, fits[0].labels):
            break  # a seed changes nothing
        fits.append(fit)
    topics = statistics.median_low([fit.number for fit in fits])
    noise = statistics.median_low([float((fit.labels < 0).mean()) for fit in fits])
    wholes = [_finish(vectors, _sums(fit.labels, vectors), smallest, rounds) for fit in fits if fit.number]
    if hierarchy is None or not wholes:
        return Pilot(0.0, 0.0, n, topics, noise)

    def agreement(number: int) -> float:
        labels = cut(number)
        return statistics.fmean(float(adjusted_mutual_info_score(whole, labels)) for whole in wholes)

    def steepness(number: int) -> float:
        """Return how many times as high as the last join, for that many topics, the next one is."""
        joins = len(leaves) - number
        return float(hierarchy.heights[joins] / max(hierarchy.heights[joins - 1], 1e-12)) if 0 < joins < len(leaves) - 1 else 0.0

    number, best = _best(agreement, around=topics, most=len(leaves), steepness=steepness)
    return Pilot(_between(hierarchy.heights, len(leaves) - number), best, n, topics, noise)


def _best(
    agreement: Callable[[int], float], *, around: int, most: int, steepness: Callable[[int], float] = lambda _: 0.0
) -> tuple[int, float]:
    """Return the number of merged topics, at most so many, that agrees best with the whole fits, and how well.

    Parameters
    ----------
    agreement : callable
        Of a number of merged topics.
    around : int
        Topics of a whole fit.
    steepness : callable
        Of a number of merged topics: how many times as high as the last join the next one is. Where topics are well apart there is
        one number with a gap above it, and a whole fit that finds a topic of strays beside them says one more.
    """
    scores: dict[int, float] = {}

    def look(middle: int, octaves: Float64) -> None:
        for number in np.unique(np.clip(np.round(middle * 2.0**octaves).astype(int), 2, most)).tolist():
            if number not in scores:
                scores[number] = round(agreement(number), 9)

    look(max(around, 2), np.arange(-2.5, 2.51, 0.5))
    look(min(scores, key=lambda number: (-scores[number], number)), np.arange(-0.375, 0.376, 0.125))
    peak = min(scores, key=lambda number: (-scores[number], number))
    steepest = max(range(max(2, math.ceil(peak / NEAR)), max(2, min(most, int(peak * NEAR))) + 1), key=steepness)
    if steepness(steepest) >= STEEP:
        look(steepest, np.zeros(1))
        if scores[steepest] >= (1.0 - TOLERANCE) * max(scores.values()):
            return steepest, scores[steepest]
    # the peak is flat and its tip is chance: of what agrees about as well, what has about as many topics as the whole fits
    alike = [number for number, score in scores.items() if score >= (1.0 - TOLERANCE) * max(scores.values())]
    best = min(alike, key=lambda number: (abs(math.log(number / max(around, 2))), number))
    return best, scores[best]


def sample_min_size(min_size: int, *, n: int, documents: int | None = None) -> int:
    """Return the smallest topic of a fit on ``n`` of ``documents`` documents: ``min_size``'s share, 5 or more where ``min_size`` is."""
    return max(2, min(min_size, max(5, round(min_size * (n / max(documents or n, n, 1))))))


def _sums(labels: Int32, vectors: Float32) -> Float64:
    return refinement.collect(vectors, labels, int(labels.max(initial=-1)) + 1).vector_sums


def _finish(vectors: Float32, sums: Float64, min_size: int, rounds: int) -> Int32:
    """Return the refined assignment of every document, which is what two fits are compared by."""
    reference = refinement.refine(refinement.local([vectors]), sums, min_size=min_size, rounds=rounds, outliers=0.0)
    return refinement.assign(vectors, reference.vectors, reference.cutoffs)[0]


def _parts(n: int, number: int, seed: int) -> list[Int64]:
    order = np.random.default_rng(seed).permutation(n)
    return [np.sort(rows) for rows in np.array_split(order, min(number, n))]


def _between(heights: Float64, joins: int) -> float:
    """Return a height halfway between the last of so many joins and the next."""
    below = float(heights[joins - 1]) if joins else 0.0
    above = float(heights[joins]) if joins < len(heights) else below * 2
    return (below + above) / 2


def combine(pilots: Sequence[Pilot], *, documents: Sequence[int] | None = None) -> float:
    """Return the height at which to merge what several pilots were made for: their weighted median.

    Parameters
    ----------
    pilots : sequence of Pilot
        One a site; the caller leaves out repeated ones. Their order changes nothing.
    documents : sequence of int, optional
        Documents of each pilot's site, outliers included. Heights are then brought to the documents of all sites, by
        ``GROWTH``, and weigh as the sites do rather than as their samples.

    Raises
    ------
    ValueError
        There is no pilot, or not one number of documents for each.
    """
    if not pilots:
        raise ValueError("combine must be given at least one pilot.")
    if documents is None:
        found = [(p.height, p.key, p.documents * max(p.agreement, 0.0) + 1e-9) for p in pilots]
    else:
        if len(documents) != len(pilots):
            raise ValueError(f"documents must have one number for each pilot. Got {len(documents)} for {len(pilots)} pilots instead.")
        whole = max(sum(documents), 1)
        pairs = zip(pilots, documents, strict=True)
        found = [(p.height * (n / whole) ** GROWTH, p.key, n * max(p.agreement, 0.0) + 1e-9) for p, n in pairs]
    found.sort()
    weights = np.cumsum([weight for _, _, weight in found])
    return float(found[int(np.searchsorted(weights, weights[-1] / 2))][0])
