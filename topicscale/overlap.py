"""How the topics of two models overlap: by the documents that both hold, or by their reference vectors.

Both ways end in *links*: pairs of an earlier and a later topic of which one is, in good part, the other. Everything here
is symmetric: exchanging the two sides exchanges the two columns of the result and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from topicscale.cluster import Float32, Float64, Int64, unit
from topicscale.tables import OUTLIER

MOSTLY = 0.5
"""More than this share of a topic's documents is most of them: at most one topic can hold it, so that it needs no ranking."""
SIZEABLE = 0.1
"""A smaller share than this of a topic is a crumb: it makes no split and no join. With ten sizeable parts, a topic is in pieces."""
SIMILAR = 0.8
"""Reference vectors less similar than this are no counterparts. Two samples of n documents whose mean pairwise cosine is c have
means with a cosine near c / (c + (1 - c) / n): .81 for ten loosely related documents (c = .3), so that even the smallest of the
usual topics, found again in other documents, is above it."""
RELATED = 0.5
"""A part must be this similar to its whole; less than a counterpart, since the mean of two unlike parts is near neither."""
NEARER = 0.7
"""Parts make a whole when together they are at most this fraction as far from it as the nearest of them alone. Adding a few related
documents moves any mean a little nearer, which is no evidence. Of 117 splits and joins planted in Banking77 and AG News (k-means
topics of the latter), the sides' documents drawn apart, .5 found 50, .7 found 92, neither made one up; .85 found 104 and made one up."""
SHARED = 0.5
"""Documents match topics when both sides hold at least this share of the smaller side's documents. Below it the documents that
happen to be in both speak for too little of the topics."""
BLOCK = 2048
BUFFER = 1_000_000
"""Documents counted at a time: sorting the pairs of topics at every batch would cost more than the batch."""

Batches = Callable[[], Iterable[pa.RecordBatch]]


@dataclass(frozen=True)
class Side:
    """The topics of one side, outliers apart."""

    ids: Int64
    """(k,): ascending."""
    keys: tuple[str, ...]
    sizes: Int64
    """(k,): documents."""
    labels: tuple[str, ...]
    keywords: tuple[tuple[str, ...], ...]
    vectors: Float32
    """(k, d): reference vectors."""
    outliers: int

    @property
    def documents(self) -> int:
        """All documents, outliers included."""
        return int(self.sizes.sum()) + self.outliers

    @classmethod
    def of(cls, topics: pa.Table) -> Side:
        """Return the side that rows of the table ``topics`` describe."""
        rows = sorted(topics.to_pylist(), key=lambda row: row["topic_id"])
        found = [row for row in rows if row["topic_id"] != OUTLIER]
        vectors = np.array([row["reference_vector"] or [] for row in found], np.float32)
        return cls(
            np.array([row["topic_id"] for row in found], np.int64),
            tuple(row["topic_key"] or "" for row in found),
            np.array([row["size"] for row in found], np.int64),
            tuple(row["label"] or "" for row in found),
            tuple(tuple(row["keywords"] or ()) for row in found),
            vectors.reshape(len(found), -1 if len(found) else 0),
            sum(row["size"] for row in rows if row["topic_id"] == OUTLIER),
        )


@dataclass(frozen=True)
class Flows:
    """How many shared documents went from each earlier to each later topic id, outliers (-1) included; pairs without any left out."""

    before: Int64
    after: Int64
    documents: Int64

    @property
    def total(self) -> int:
        """Documents that both sides hold."""
        return int(self.documents.sum())


@dataclass(frozen=True)
class Links:
    """Pairs of positions in two sides' topics, ascending."""

    before: Int64
    after: Int64


def count(before: Batches, after: Batches, *, passes: int = 1) -> Flows:
    """Return the flows between two sets of assignments.

    Parameters
    ----------
    before, after : callable
        Returns record batches with the columns ``doc_id`` and ``topic_id``, each document once, in any order.
    passes : int
        Both are read this many times, and one in ``passes`` documents of ``before`` is held: 12 bytes each, 44 while they are sorted.

    Notes
    -----
    Documents meet by a 64-bit hash of their id: among 30 million, the chance that any two share one is 3 in 100,000, and it
    would move a count by one. Apart from the hashes, memory grows with the pairs of topics that have documents in common.
    """
    pairs, numbers = np.zeros(0, np.int64), np.zeros(0, np.int64)
    waiting: list[Int64] = []
    for part in range(passes):
        held = [_hashed(batch, part, passes) for batch in before()]
        ids = np.concatenate([np.zeros(0, np.uint64), *(part_ids for part_ids, _ in held)])
        topics = np.concatenate([np.zeros(0, np.int32), *(topic for _, topic in held)])
        del held
        if len(ids) == 0:
            continue
        order = np.argsort(ids, kind="stable")
        ids, topics = ids[order], topics[order]
        for batch in after():
            wanted, topic = _hashed(batch, part, passes)
            position = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
            same = ids[position] == wanted
            code = ((topics[position[same]].astype(np.int64) + 1) << 32) | (topic[same].astype(np.int64) + 1)
            waiting.append(code)
            if sum(map(len, waiting)) >= max(BUFFER, len(pairs)):
                pairs, numbers = _added(pairs, numbers, waiting)
                waiting = []
    pairs, numbers = _added(pairs, numbers, waiting)
    return Flows((pairs >> 32) - 1, (pairs & 0xFFFFFFFF) - 1, numbers)


def _added(pairs: Int64, numbers: Int64, waiting: list[Int64]) -> tuple[Int64, Int64]:
    found, times = np.unique(np.concatenate([np.zeros(0, np.int64), *waiting]), return_counts=True)
    merged, where = np.unique(np.concatenate([pairs, found]), return_inverse=True)
    total = np.zeros(len(merged), np.int64)
    np.add.at(total, where.ravel(), np.concatenate([numbers, times]))
    return merged, total


def by_documents(before: Side, after: Side, flows: Flows) -> Links:
    """Return the links that shared documents make.

    A pair is linked when more than half (``MOSTLY``) of either topic's documents are in the other and at least a tenth
    (``SIZEABLE``) of the other's come from it, or when more than half of the shared documents of *both* are the same: then
    it is one topic, however much it grew. Shares are of the shared documents a topic holds (outliers of the other side
    count), or of as many as a topic of its size holds on average, if that is more: a topic of 200 new documents that took
    20 old ones is a new topic, unless the corpus grew tenfold. Topics without any shared document on either side (empty
    ones, as named topics may be) are linked when id and content key are the same.
    """
    rows, columns = _position(before.ids, flows.before), _position(after.ids, flows.after)
    held_before = np.bincount(rows[rows >= 0], weights=flows.documents[rows >= 0], minlength=len(before.ids))
    held_after = np.bincount(columns[columns >= 0], weights=flows.documents[columns >= 0], minlength=len(after.ids))
    both = (rows >= 0) & (columns >= 0)
    a, b, number = rows[both], columns[both], flows.documents[both]
    kept = (number > MOSTLY * held_before[a]) & (number > MOSTLY * held_after[b])
    of_before = number / np.maximum(held_before, before.sizes * (flows.total / max(before.documents, 1)))[a]
    of_after = number / np.maximum(held_after, after.sizes * (flows.total / max(after.documents, 1)))[b]
    most = np.maximum(of_before, of_after) > MOSTLY
    linked = kept | (most & (np.minimum(of_before, of_after) >= SIZEABLE))
    pairs = set(zip(a[linked].tolist(), b[linked].tolist(), strict=True))
    empty = {(int(after.ids[j]), after.keys[j]): int(j) for j in np.flatnonzero(held_after == 0)}
    for i in np.flatnonzero(held_before == 0):
        j = empty.get((int(before.ids[i]), before.keys[i]))
        if j is not None:
            pairs.add((int(i), j))
    return _links(pairs)


def by_vectors(before: Side, after: Side) -> Links:
    """Return the links that reference vectors of one embedding space make.

    First the most similar pairs of at least ``SIMILAR`` are matched one to one. A topic left over becomes a part of the
    topic it is most similar to, if it is ``RELATED`` and of a sizeable share, where the parts' mean, weighted by their
    documents, is as similar to the whole as a counterpart must be, and clearly nearer (``NEARER``) than one of them alone:
    the parts must explain what the nearest of them leaves unexplained.
    """
    rows, columns, cosines = _similar(unit(before.vectors), unit(after.vectors))
    first, second = before.ids[rows], after.ids[columns]
    # ties go to equal ids, then to equal sizes; every key is symmetric in the two sides
    resized = np.abs(before.sizes[rows] - after.sizes[columns])
    order = np.lexsort((np.abs(first - second), first + second, resized, first != second, -cosines))
    ranked = list(zip(rows[order].tolist(), columns[order].tolist(), strict=True))
    forward: dict[int, int] = {}
    backward: dict[int, int] = {}
    for i, j in ranked:
        if i not in forward and j not in backward:
            forward[i], backward[j] = j, i
    pairs = set(forward.items())
    pairs |= set(_parts(before, after, forward, set(backward)))
    pairs |= {(i, j) for j, i in _parts(after, before, backward, set(forward))}
    return _links(pairs)


def _parts(wholes: Side, parts: Side, match: dict[int, int], taken: set[int]) -> list[tuple[int, int]]:
    """Return (whole, part) for the parts not yet matched that help to make up the whole they are most like."""
    left = np.array([part for part in range(len(parts.ids)) if part not in taken], np.int64)
    nearest, cosines = _nearest(unit(parts.vectors[left]), unit(wholes.vectors))
    groups: dict[int, list[int]] = {}
    for rank in np.argsort(-cosines, kind="stable"):
        if cosines[rank] >= RELATED:
            groups.setdefault(int(nearest[rank]), []).append(int(left[rank]))
    found: list[tuple[int, int]] = []
    for whole, others in sorted(groups.items()):
        members = np.array([match[whole], *others] if whole in match else others)
        weights = np.maximum(parts.sizes[members], 1)
        members = members[(weights >= SIZEABLE * weights.sum()) | (np.arange(len(members)) == 0)]
        sums = np.cumsum(unit(parts.vectors[members]) * np.maximum(parts.sizes[members], 1)[:, None], axis=0)
        gaps = np.round(1.0 - unit(sums) @ unit(wholes.vectors[[whole]])[0], 6)
        best = int(gaps.argmin())
        if best and gaps[best] <= min(NEARER * gaps[0], 1.0 - SIMILAR):
            found += [(whole, int(part)) for part in members[: best + 1]]
    return found


def _nearest(x: Float64, y: Float64) -> tuple[Int64, Float64]:
    """Return each row's most similar row of y (the first of equals) and the cosine."""
    index, cosine = np.zeros(len(x), np.int64), np.full(len(x), -1.0)
    for start in range(0, len(x) if len(y) else 0, BLOCK):
        block = np.round(x[start : start + BLOCK] @ y.T, 6)
        index[start : start + BLOCK], cosine[start : start + BLOCK] = block.argmax(axis=1), block.max(axis=1)
    return index, cosine


def _similar(x: Float64, y: Float64) -> tuple[Int64, Int64, Float64]:
    """Return the pairs of rows with a cosine of at least SIMILAR, and the cosine."""
    rows, columns, cosines = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for start in range(0, len(x) if len(y) else 0, BLOCK):
        # rounded, so that the last bits of a product, which depend on the order of the sides, decide nothing
        block = np.round(x[start : start + BLOCK] @ y.T, 6)
        i, j = np.nonzero(block >= SIMILAR)
        rows.append(i + start)
        columns.append(j)
        cosines.append(block[i, j])
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(cosines)


def _position(ids: Int64, wanted: Int64) -> Int64:
    """Return where each wanted id is in ascending ids, -1 for one that is not."""
    if len(ids) == 0:
        return np.full(len(wanted), -1, np.int64)
    position = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[position] == wanted, position, -1).astype(np.int64)


def hashes(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """Return 64-bit hashes of document ids, the same on every machine."""
    from pandas.util import hash_array

    return np.asarray(hash_array(ids.to_numpy(zero_copy_only=False), categorize=False), np.uint64)


def _hashed(batch: pa.RecordBatch, part: int, passes: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]:
    ids = hashes(batch.column("doc_id"))
    topics = batch.column("topic_id").to_numpy(zero_copy_only=False).astype(np.int32)
    here = ids % np.uint64(passes) == part
    return ids[here], topics[here]


def _links(pairs: set[tuple[int, int]]) -> Links:
    ordered = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    return Links(ordered[:, 0], ordered[:, 1])
