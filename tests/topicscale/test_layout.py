"""The map: neighbours near, the same each time, and never an error for few documents."""

from __future__ import annotations

import numpy as np
import pytest

from topicscale.cluster import unit
from topicscale.layout import layout


def test_topics_lie_together_and_apart() -> None:
    random = np.random.default_rng(0)
    true = np.arange(400) % 5
    vectors = unit(unit(random.normal(size=(5, 32)))[true] + 0.1 * random.normal(size=(400, 32))).astype(np.float32)
    place = layout(vectors, true)
    assert place.shape == (400, 2)
    assert place.dtype == np.float32
    distance = np.linalg.norm(place[:, None] - place[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (true[distance.argmin(axis=1)] == true).mean() > 0.98
    for threads in (1, 2):
        assert (layout(vectors, true, threads=threads) == place).all()
    assert np.median(np.hypot(*place.T)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 17])
def test_few_documents(n: int) -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(n, 8))).astype(np.float32)
    place = layout(vectors, np.full(n, -1))
    assert place.shape == (n, 2)
    assert np.isfinite(place).all()


def test_identical_documents_and_outliers() -> None:
    vectors = np.full((30, 16), 0.25, np.float32)
    assert np.isfinite(layout(vectors, np.zeros(30, int))).all()
