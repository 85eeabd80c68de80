"""Finding negatives: texts that an anchor is to be told from.

Search is exact, over blocks of anchors, in memory that does not grow with their number. Nothing is kept between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from topicscale.errors import ConfigError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Mode = Literal["easy", "semi-hard", "hard"]
MODES: tuple[Mode, ...] = ("easy", "semi-hard", "hard")
MEMORY = 64 * 2**20
"""Bytes of the similarities under work, at least one row of them."""
SEMI_HARD = 0.1
"""Cosine: FaceNet's margin of 0.2 between squared distances of unit vectors, which are 2 - 2 cos."""
RELATIVE = 0.95
"""A candidate more like the anchor than this share of its positive is taken for a positive that nobody labelled (NV-Retriever's
TopK-PercPos at the value that its paper found best)."""
_TRIES = 20


def top(
    queries: Float32, corpus: Float32, k: int, *, excluded: Sequence[Iterable[int]] | None = None, memory: int = MEMORY
) -> tuple[Int64, Float32]:
    """Return each query's ``k`` most alike rows of the corpus, best first, ties by row.

    Parameters
    ----------
    queries : numpy.ndarray, float32 (n, d)
        Unit vectors.
    corpus : numpy.ndarray, float32 (m, d)
        Unit vectors.
    excluded : sequence of iterable of int, optional
        Rows of the corpus, by query, that it never gets.
    memory : int
        Bytes of the similarities under work, at least one row of them.

    Returns
    -------
    rows : numpy.ndarray, int64 (n, k)
        -1 where there are fewer.
    similarities : numpy.ndarray, float32 (n, k)
        -inf where there are fewer.
    """
    rows = np.full((len(queries), k), -1, np.int64)
    found = np.full((len(queries), k), -np.inf, np.float32)
    for start, block in _blocks(queries, corpus, memory):
        for i, row in enumerate(block, start):
            if excluded is not None:
                row[np.fromiter(excluded[i], np.int64)] = -np.inf
            best = _best(row, k)
            rows[i, : len(best)], found[i, : len(best)] = best, row[best]
    return rows, found


def mine(
    anchors: Sequence[str],
    positives: Sequence[str],
    corpus: Sequence[str],
    embed: Callable[[Sequence[str]], Float32],
    *,
    mode: Mode,
    number: int = 1,
    margin: float | None = None,
    max_similarity: float | None = None,
    relative: float | None = RELATIVE,
    groups: tuple[Sequence[Any], Sequence[Any]] | None = None,
    seed: int = 42,
    memory: int = MEMORY,
) -> Int64:
    """Return negatives of (anchor, positive) pairs: rows of the corpus.

    A text that is identical to the anchor, or that any pair couples with it, is never its negative; nor is one of the anchor's own
    group. Deterministic: the draws of a row depend on the seed and its number alone.

    ``easy``
        Drawn at random. Nothing is embedded.
    ``semi-hard``
        Drawn at random from those that are less like the anchor than its positive, by less than ``margin`` (Schroff, Kalenichenko and
        Philbin: FaceNet, CVPR 2015, equation 4, with cosines for distances). Where there are too few, the most alike of those that
        are further away.
    ``hard``
        The most alike. Left out as likely positives: those above ``max_similarity``, above ``relative`` times the positive's
        similarity, or above it less ``margin`` (Moreira et al.: NV-Retriever, 2024, section 3.2: TopK-Abs, TopK-PercPos and
        TopK-MarginPos).

    Parameters
    ----------
    anchors, positives : sequence of str
        Of one length, n.
    corpus : sequence of str
        Candidates. The same text twice counts twice.
    embed : callable
        Gives the unit vectors (n, d) of texts.
    number : int
        Negatives for each pair.
    margin : float, optional
        Cosine. None is ``SEMI_HARD`` for semi-hard, and no limit for hard.
    max_similarity, relative : float, optional
        Limits for ``hard``; None is no limit. For a positive of negative similarity s, the relative limit is s - (1 - relative) |s|.
    groups : pair of sequences, optional
        Group of each pair, and of each text of the corpus.

    Returns
    -------
    numpy.ndarray, int64 (n, number)
        Best first, distinct in a row, -1 where there are fewer.

    Raises
    ------
    ConfigError
        The mode is unknown, or a number is out of its range.
    """
    _check(mode, number, margin, max_similarity, relative)
    forbidden = _forbidden(anchors, positives, corpus)
    own: tuple[Int64, Int64] | None = None
    if groups is not None:
        codes: dict[Any, int] = {}
        own = tuple(np.array([codes.setdefault(group, len(codes)) for group in side], np.int64) for side in groups)  # type: ignore[assignment]
    if mode == "easy":
        return _random(forbidden, own, len(corpus), number, seed)
    texts = list(dict.fromkeys([*anchors, *positives, *corpus]))
    at = {text: i for i, text in enumerate(texts)}
    vectors = embed(texts)
    queries, targets = (vectors[[at[text] for text in side]] for side in (anchors, positives))
    to_positive = np.einsum("nd,nd->n", queries, targets)
    result = np.full((len(anchors), number), -1, np.int64)
    for start, block in _blocks(queries, vectors[[at[text] for text in corpus]], memory):
        for i, row in enumerate(block, start):
            row[forbidden[i]] = -np.inf
            if own is not None:
                row[own[1] == own[0][i]] = -np.inf
            positive = float(to_positive[i])
            if mode == "hard":
                row[row > _limit(positive, margin, max_similarity, relative)] = -np.inf
                best = _best(row, number)
            else:
                best = _semi_hard(row, positive, SEMI_HARD if margin is None else margin, number, np.random.default_rng([seed, i]))
            result[i, : len(best)] = best
    return result


def _check(mode: str, number: int, margin: float | None, max_similarity: float | None, relative: float | None) -> None:
    if mode not in MODES:
        raise ConfigError(f"Negatives must be one of {', '.join(MODES)}. Got {mode!r} instead.")
    if number < 1:
        raise ConfigError(f"The number of negatives must be at least 1. Got {number} instead.")
    if margin is not None and not 0 <= margin <= 2:
        raise ConfigError(f"margin must be between 0 and 2, a difference of cosines. Got {margin} instead.")
    if max_similarity is not None and not -1 <= max_similarity <= 1:
        raise ConfigError(f"max_similarity must be between -1 and 1, a cosine. Got {max_similarity} instead.")
    if relative is not None and not 0 < relative <= 1:
        raise ConfigError(f"relative must be above 0 and at most 1, a share of the positive's similarity. Got {relative} instead.")


def _limit(positive: float, margin: float | None, max_similarity: float | None, relative: float | None) -> float:
    limits = [np.inf]
    if margin is not None:
        limits.append(positive - margin)
    if max_similarity is not None:
        limits.append(max_similarity)
    if relative is not None:
        limits.append(positive - (1 - relative) * abs(positive))
    return float(min(limits))


def _semi_hard(row: Float32, positive: float, margin: float, number: int, random: np.random.Generator) -> Int64:
    row[row >= positive] = -np.inf
    band = np.flatnonzero(row > positive - margin)
    drawn = random.choice(band, min(number, len(band)), replace=False) if len(band) else band
    row[band] = -np.inf
    further = _best(row, number - len(drawn)) if len(drawn) < number else drawn[:0]
    return np.concatenate([drawn, further])


def _random(forbidden: list[Int64], own: tuple[Int64, Int64] | None, size: int, number: int, seed: int) -> Int64:
    result = np.full((len(forbidden), number), -1, np.int64)
    for i, banned in enumerate(forbidden):
        random, chosen, never = np.random.default_rng([seed, i]), dict[int, None](), set(banned.tolist())
        for candidate in random.integers(0, size, _TRIES * number).tolist() if size else []:
            if candidate not in never and (own is None or own[1][candidate] != own[0][i]):
                chosen[candidate] = None
            if len(chosen) == number:
                break
        if len(chosen) < number:  # few are allowed: list them
            allowed = np.ones(size, bool)
            allowed[banned] = False
            if own is not None:
                allowed &= own[1] != own[0][i]
            allowed[list(chosen)] = False
            chosen.update(dict.fromkeys(random.permutation(np.flatnonzero(allowed))[: number - len(chosen)].tolist()))
        result[i, : len(chosen)] = list(chosen)
    return result


def _forbidden(anchors: Sequence[str], positives: Sequence[str], corpus: Sequence[str]) -> list[Int64]:
    """Return for each pair the rows of the corpus that hold its anchor, or a text that some pair couples with it."""
    where: dict[str, list[int]] = {}
    for row, text in enumerate(corpus):
        where.setdefault(text, []).append(row)
    coupled: dict[str, dict[str, None]] = {}
    for anchor, positive in zip(anchors, positives, strict=True):
        coupled.setdefault(anchor, {anchor: None})[positive] = None
        coupled.setdefault(positive, {positive: None})[anchor] = None
    return [
        np.array([row for text in {**coupled[anchor], positive: None} for row in where.get(text, ())], np.int64)
        for anchor, positive in zip(anchors, positives, strict=True)
    ]


def _blocks(queries: Float32, corpus: Float32, memory: int) -> Iterable[tuple[int, Float32]]:
    """Yield the first query's number and the similarities (rows, m), which may be written over."""
    step = max(1, memory // max(4 * len(corpus), 1))
    for start in range(0, len(queries), step):
        yield start, queries[start : start + step] @ corpus.T


def _best(row: Float32, k: int) -> Int64:
    """Return the places of the ``k`` largest finite values, largest first, ties by place."""
    if k < len(row):
        least = np.partition(row, len(row) - k)[len(row) - k]
        places = np.flatnonzero((row >= least) & (row > -np.inf))
    else:
        places = np.flatnonzero(row > -np.inf)
    return places[np.lexsort((places, -row[places]))][:k].astype(np.int64)
