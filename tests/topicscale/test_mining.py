"""Negatives by embedding search are those that a plain search over all similarities finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from topicscale.errors import ConfigError
from topicscale.finetune.mining import MODES, mine, top

N = 60
TEXTS = [f"text {i}" for i in range(N)]
VECTORS = np.random.default_rng(1).normal(size=(N, 8)).astype(np.float32) + 0.6
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


def embed(texts: Sequence[str]) -> np.ndarray:
    return VECTORS[[TEXTS.index(text) for text in texts]]


PAIRS = [(TEXTS[i], TEXTS[i + 1]) for i in range(0, 40, 2)] + [(TEXTS[0], TEXTS[50]), (TEXTS[7], TEXTS[0])]
ANCHORS, POSITIVES = [pair[0] for pair in PAIRS], [pair[1] for pair in PAIRS]


def allowed(anchor: str) -> list[int]:
    coupled = {anchor} | {b for a, b in PAIRS if a == anchor} | {a for a, b in PAIRS if b == anchor}
    return [i for i in range(N) if TEXTS[i] not in coupled]


@pytest.mark.parametrize("memory", [1, 1000, 2**20])
def test_top_is_a_full_sort(memory: int):
    similarities = VECTORS[:13] @ VECTORS.T
    rows, found = top(VECTORS[:13], VECTORS, 5, memory=memory)
    assert (rows == np.argsort(-similarities, axis=1, kind="stable")[:, :5]).all()
    assert np.allclose(found, np.take_along_axis(similarities, rows, 1), atol=1e-6)


def test_top_breaks_ties_by_row_and_marks_what_is_missing():
    same = np.ones((4, 1), np.float32)
    rows, found = top(same[:1], same, 3, excluded=[[0]])
    assert rows.tolist() == [[1, 2, 3]]
    rows, found = top(same[:1], same, 6, excluded=[[0]])
    assert rows.tolist() == [[1, 2, 3, -1, -1, -1]]
    assert np.isneginf(found[0, 3:]).all()


@pytest.mark.parametrize(
    ("rules", "limit"),
    [
        ({"relative": None}, lambda p: 2.0),
        ({}, lambda p: p - 0.05 * abs(p)),
        ({"relative": None, "margin": 0.2}, lambda p: p - 0.2),
        ({"relative": None, "max_similarity": 0.5}, lambda p: 0.5),
        ({"relative": 0.9, "margin": 0.05, "max_similarity": 0.6}, lambda p: min(p - 0.1 * abs(p), p - 0.05, 0.6)),
    ],
)
def test_hard_is_the_most_alike_that_passes(rules: dict[str, float], limit: object):
    found = mine(ANCHORS, POSITIVES, TEXTS, embed, mode="hard", number=3, memory=900, **rules)
    for row, (anchor, positive) in enumerate(PAIRS):
        a, p = embed([anchor, positive])
        most = limit(float(a @ p))  # type: ignore[operator]
        wanted = sorted((i for i in allowed(anchor) if float(VECTORS[i] @ a) <= most), key=lambda i: -float(VECTORS[i] @ a))[:3]
        assert [i for i in found[row].tolist() if i >= 0] == wanted


def test_semi_hard_lies_just_below_the_positive():
    found = mine(ANCHORS, POSITIVES, TEXTS, embed, mode="semi-hard", number=2, margin=0.15)
    in_band = 0
    for row, (anchor, positive) in enumerate(PAIRS):
        a, p = embed([anchor, positive])
        below = {i: float(VECTORS[i] @ a) for i in allowed(anchor) if VECTORS[i] @ a < a @ p}
        band = {i for i, s in below.items() if s > float(a @ p) - 0.15}
        further = sorted(set(below) - band, key=lambda i: -below[i])
        got = found[row].tolist()
        inside = [i for i in got if i in band]
        assert len(inside) == min(2, len(band))
        assert [i for i in got if i not in band and i >= 0] == further[: 2 - len(inside)]
        in_band += len(inside)
    assert in_band > 10


def test_easy_needs_no_vectors_and_draws_from_all():
    found = mine(ANCHORS, POSITIVES, TEXTS, lambda texts: pytest.fail("embedded"), mode="easy", number=4)
    assert all(
        set(row.tolist()) <= set(allowed(anchor)) and len(set(row.tolist())) == 4 for row, anchor in zip(found, ANCHORS, strict=True)
    )
    assert len(np.unique(found)) > N / 2


@pytest.mark.parametrize("mode", MODES)
def test_same_seed_same_negatives_and_identical_texts_never(mode: str):
    corpus = [*TEXTS, *ANCHORS, *POSITIVES]
    first, again = (mine(ANCHORS, POSITIVES, corpus, embed, mode=mode, number=5, seed=3) for _ in range(2))
    assert (first == again).all()
    for row, (anchor, positive) in enumerate(PAIRS):
        assert {anchor, positive}.isdisjoint(corpus[i] for i in first[row] if i >= 0)


@pytest.mark.parametrize("mode", MODES)
def test_own_group_is_left_out(mode: str):
    group = [i % 3 for i in range(N)]
    found = mine(
        ANCHORS, POSITIVES, TEXTS, embed, mode=mode, number=3, relative=None, groups=([group[TEXTS.index(a)] for a in ANCHORS], group)
    )
    assert all(group[i] != group[TEXTS.index(anchor)] for row, anchor in zip(found, ANCHORS, strict=True) for i in row if i >= 0)


@pytest.mark.parametrize("mode", MODES)
def test_no_candidate_is_minus_one(mode: str):
    assert mine(["text 0"], ["text 1"], ["text 1", "text 0"], embed, mode=mode, number=2).tolist() == [[-1, -1]]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"mode": "hardest"}, "easy, semi-hard, hard"),
        ({"number": 0}, "at least 1"),
        ({"relative": 2}, "share"),
        ({"margin": -1}, "between"),
    ],
)
def test_refusals(rules: dict[str, object], said: str):
    with pytest.raises(ConfigError, match=said):
        mine(ANCHORS, POSITIVES, TEXTS, embed, **{"mode": "hard", **rules})  # type: ignore[arg-type]
