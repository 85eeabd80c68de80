"""Generate local topics of which the answer is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from topicscale.cluster import exact, unit

DIMENSIONS = 384
TOPICS = 3000
THEMES = 150


def planted(
    leaves: int, *, topics: int = TOPICS, seed: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return sizes int64 (m,), vector sums float64 (m, 384) and the planted topic of each leaf int64 (m,).

    Topics lie around themes (cosine about .55 to their theme, .3 to each other). They have log-normally many leaves of
    log-normally many documents (median 20). A leaf's centroid has a cosine of .75 to .9 to its topic's; one leaf in
    twenty also leans towards another topic of the theme, and noise has a few directions that all topics share.
    """
    random = np.random.default_rng(seed)
    themes = unit(random.normal(size=(THEMES, DIMENSIONS)))
    theme = random.integers(0, THEMES, topics)
    centres = unit(0.55 * themes[theme] + np.sqrt(1 - 0.55**2) * unit(random.normal(size=(topics, DIMENSIONS))))
    share = random.lognormal(0.0, 0.8, topics)
    true = random.choice(topics, leaves, p=share / share.sum())
    sizes = np.maximum(random.lognormal(3.0, 1.0, leaves).astype(np.int64), 3)
    cosine = random.uniform(0.75, 0.9, leaves)
    shared = unit(random.normal(size=(20, DIMENSIONS)))
    order = np.argsort(theme, kind="stable")
    place = np.argsort(order)
    other = order[(place[true] + 1) % topics]  # mostly of the same theme
    sums = np.empty((leaves, DIMENSIONS))
    for start in range(0, leaves, 8192):
        part = slice(start, min(start + 8192, leaves))
        number = part.stop - part.start
        noise = unit(unit(random.normal(size=(number, DIMENSIONS))) + 0.5 * unit(random.normal(size=(number, 20))) @ shared)
        lean = 0.5 * (random.random(number) < 0.05)[:, None] * centres[other[part]]
        middle = unit(centres[true[part]] + lean)
        noise = unit(noise - np.einsum("ij,ij->i", noise, middle)[:, None] * middle)
        c = cosine[part, None]
        # documents of a leaf are not all alike: the sum of their unit vectors is shorter than their number
        sums[part] = exact((c * middle + np.sqrt(1 - c**2) * noise) * 0.7) * sizes[part, None]
    return sizes, sums, true
