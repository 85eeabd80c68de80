"""Merge local topics into topics: a function of the set of leaves, whatever their order or grouping.

A leaf is the sufficient statistics of one local topic: its size and the sum of its unit vectors. Leaves are
deduplicated by content and put into canonical order; then a hierarchy is built on their unit centroids, weighted by
the fraction of all documents they hold (Ward's criterion, Ward 1963), and cut at a height. Since masses are fractions,
a height means the same for four leaves or forty thousand.

The hierarchy is built in rounds: each round joins every pair of clusters that are each other's nearest. For a
reducible criterion (Ward and average linkage are; Bruynooghe 1978) that gives the same tree as joining the closest
pair one at a time, and a round is matrix products over blocks, so memory grows with leaves, not with their square.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from topicscale.cluster import Float64, Int64, unit

BLOCK = 2048


@dataclass(frozen=True)
class Leaves:
    """Distinct local topics in canonical order."""

    keys: tuple[str, ...]
    """Content hashes, ascending."""
    sizes: Int64
    """(m,): documents."""
    vector_sums: Float64
    """(m, d): sums of unit vectors."""

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(cls, sizes: npt.ArrayLike, vector_sums: npt.ArrayLike) -> tuple[Leaves, Int64]:
        """Return the leaves of rows in any order, repetitions allowed, and the leaf of each row."""
        all_sizes = np.asarray(sizes, dtype=np.int64).ravel()
        sums = np.asarray(vector_sums, dtype=np.float64) + 0.0
        if sums.ndim != 2:
            sums = sums.reshape(len(all_sizes), -1) if len(all_sizes) else np.zeros((0, 0))
        if len(sums) != len(all_sizes):
            raise ValueError(f"vector_sums must have one row for each size. Got {len(sums)} rows for {len(all_sizes)} sizes instead.")
        keys = [leaf_key(int(size), row) for size, row in zip(all_sizes, sums, strict=True)]
        first: dict[str, int] = {}
        for row, key in enumerate(keys):
            first.setdefault(key, row)
        ordered = sorted(first)
        rank = {key: position for position, key in enumerate(ordered)}
        rows = np.array([first[key] for key in ordered], dtype=np.int64)
        index = np.array([rank[key] for key in keys], dtype=np.int64)
        return cls(tuple(ordered), all_sizes[rows], sums[rows]), index


@dataclass(frozen=True)
class Tree:
    """A hierarchy over m leaves: the joins in the order of their heights."""

    leaves: int
    first: Int64
    """(m - 1,): a leaf of one side of the join."""
    second: Int64
    """(m - 1,): a leaf of the other side."""
    heights: Float64
    """(m - 1,): ascending."""

    def cut(self, *, height: float | None = None, number: int | None = None) -> Int64:
        """Return the cluster of each leaf (m,), numbered by first leaf, after the joins up to a height or down to a number."""
        if (height is None) == (number is None):
            raise ValueError("cut must be given either a height or a number.")
        if height is not None:
            joins = int(np.searchsorted(self.heights, height, side="right"))
        else:
            assert number is not None
            joins = min(len(self.heights), max(0, self.leaves - max(number, 1)))
        parent = np.arange(self.leaves)

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        for a, b in zip(self.first[:joins], self.second[:joins], strict=True):
            i, j = root(int(a)), root(int(b))
            parent[max(i, j)] = min(i, j)
        roots = np.array([root(i) for i in range(self.leaves)], dtype=np.int64)
        return np.unique(roots, return_inverse=True)[1].astype(np.int64).ravel()


@dataclass(frozen=True)
class Merged:
    """Topics made of leaves, largest first; equal sizes go by key."""

    labels: Int64
    """(m,): the topic of each leaf."""
    keys: tuple[str, ...]
    """(k,): a hash of each topic's leaves."""
    sizes: Int64
    """(k,)"""
    vector_sums: Float64
    """(k, d)"""
    similarities: Float64
    """(m,): cosine of each leaf's centroid to its topic's."""

    @property
    def number(self) -> int:
        return len(self.keys)

    @property
    def centroids(self) -> npt.NDArray[np.float32]:
        """(k, d) float32 unit rows."""
        return unit(self.vector_sums).astype(np.float32)


def merge(leaves: Leaves, *, height: float | None = None, number: int | None = None, similarity: float | None = None) -> Merged:
    """Return the topics of a set of leaves.

    Parameters
    ----------
    leaves : Leaves
    height : float
        Join while Ward's height is at most this (what ``calibrate.pilot`` finds); 0 leaves distinct leaves apart.
    number : int
        Join until this many topics are left (fewer when there are fewer leaves).
    similarity : float
        Join while the mean cosine between the leaves of two topics is at least this (average linkage).

    Raises
    ------
    ValueError
        Not exactly one of ``height``, ``number`` and ``similarity`` is given.
    """
    if sum(value is not None for value in (height, number, similarity)) != 1:
        raise ValueError("merge must be given exactly one of height, number and similarity.")
    if similarity is not None:
        groups = tree(leaves, criterion="average").cut(height=1.0 - similarity)
    else:
        groups = tree(leaves).cut(height=height, number=number)
    return collect(leaves, groups)


def collect(leaves: Leaves, groups: Int64) -> Merged:
    """Return the topics of a given grouping (m,) of leaves, numbered by size, then key."""
    k = int(groups.max(initial=-1)) + 1
    d = leaves.vector_sums.shape[1]
    sizes, sums = np.zeros(k, np.int64), np.zeros((k, d), np.float64)
    members: list[list[str]] = [[] for _ in range(k)]
    for leaf, group in enumerate(groups):  # in canonical order, so that sums are the same to the bit
        sizes[group] += leaves.sizes[leaf]
        sums[group] += leaves.vector_sums[leaf]
        members[group].append(leaves.keys[leaf])
    keys = [topic_key(names) for names in members]
    order = sorted(range(k), key=lambda i: (-int(sizes[i]), keys[i]))
    rank = np.empty(k, np.int64)
    rank[order] = np.arange(k)
    labels = rank[groups] if k else groups.astype(np.int64)
    sums = sums[order] if k else sums
    similarities = np.einsum("ij,ij->i", unit(leaves.vector_sums), unit(sums)[labels]) if k else np.zeros(0)
    return Merged(labels, tuple(keys[i] for i in order), sizes[order] if k else sizes, sums, np.clip(similarities, -1.0, 1.0))


def leaf_key(size: int, vector_sum: Float64) -> str:
    """Return a leaf's content hash, 32 hexadecimal digits."""
    row = np.ascontiguousarray(vector_sum + 0.0, dtype="<f8")
    return hashlib.sha256(f"leaf:{size}:{len(row)}:".encode() + row.tobytes()).hexdigest()[:32]


def topic_key(keys: list[str] | tuple[str, ...]) -> str:
    """Return a hash of a topic's leaves, whatever their order; 32 hexadecimal digits."""
    return hashlib.sha256(("topic:" + ",".join(sorted(set(keys)))).encode()).hexdigest()[:32]


def tree(leaves: Leaves, *, criterion: Literal["ward", "average"] = "ward") -> Tree:
    """Return the hierarchy of the leaves.

    ``ward``: the height of a join is the square root of ``2 a b / (a + b) |x - y|^2`` for masses a, b (fractions of all
    documents) and mass-weighted means x, y of unit centroids. ``average``: one minus the mean cosine over pairs of
    leaves, weighted by mass, which equals ``1 - x . y``.
    """
    m = len(leaves)
    empty = np.zeros(0, np.int64)
    if m < 2:
        return Tree(m, empty, empty, np.zeros(0))
    mass = leaves.sizes / max(int(leaves.sizes.sum()), 1)
    mean = unit(leaves.vector_sums)
    name = np.arange(m)  # a leaf that stands for the cluster: its smallest
    nearest, gap = _nearest(mean, mass, np.arange(m), criterion)
    joins: list[tuple[float, int, int]] = []
    while len(name) > 1:
        mutual = np.flatnonzero(nearest[nearest] == np.arange(len(name)))
        left = mutual[mutual < nearest[mutual]]
        right = nearest[left]
        if len(left) == 0:
            # rounding can make a ring of nearest neighbours without a mutual pair: join the closest pair
            left = np.array([int(np.argmin(gap))])
            right = nearest[left]
        for a, b in zip(left, right, strict=True):
            joins.append((float(gap[a]), int(min(name[a], name[b])), int(max(name[a], name[b]))))
        total = mass[left] + mass[right]
        mean[left] = (mass[left, None] * mean[left] + mass[right, None] * mean[right]) / total[:, None]
        mass[left] = total
        name[left] = np.minimum(name[left], name[right])
        changed = np.zeros(len(name), bool)
        changed[left] = changed[right] = True
        keep = np.ones(len(name), bool)
        keep[right] = False
        # reducibility: no joined cluster is nearer than both its parts were, so only those are asked again who lost theirs
        stale = (changed | changed[nearest])[keep]
        position = np.cumsum(keep) - 1
        mean, mass, name = mean[keep], mass[keep], name[keep]
        nearest, gap = position[nearest[keep]], gap[keep]
        if len(name) > 1:
            rows = np.flatnonzero(stale)
            nearest[rows], gap[rows] = _nearest(mean, mass, rows, criterion)
    joins.sort()
    heights = np.array([height for height, _, _ in joins])
    if criterion == "ward":
        heights = np.sqrt(heights)
    return Tree(m, np.array([a for _, a, _ in joins]), np.array([b for _, _, b in joins]), heights)


def _nearest(mean: Float64, mass: Float64, rows: Int64, criterion: str) -> tuple[Int64, Float64]:
    """Return each given row's nearest other row (the first of equals) and the gap to it."""
    index, gap = np.empty(len(rows), np.int64), np.empty(len(rows), np.float64)
    square = np.einsum("ij,ij->i", mean, mean)
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        product = mean[part] @ mean.T
        if criterion == "ward":
            distance = np.maximum(square[part, None] + square[None, :] - 2.0 * product, 0.0)
            distance *= 2.0 * mass[part, None] * mass[None, :] / (mass[part, None] + mass[None, :])
        else:
            distance = np.maximum(1.0 - product, 0.0)
        # rounded, so that the last bits of a matrix product, which differ between machines, decide nothing
        distance = _round(distance)
        distance[np.arange(len(part)), part] = np.inf
        index[start : start + len(part)] = distance.argmin(axis=1)
        gap[start : start + len(part)] = distance.min(axis=1)
    return index, gap


def _round(values: Float64) -> Float64:
    """Round to about 9 significant digits."""
    mantissa, exponent = np.frexp(values)
    result: Any = np.ldexp(np.rint(mantissa * 2.0**30) / 2.0**30, exponent)
    return np.asarray(result, dtype=np.float64)
