"""Merge local topics into topics: a function of the set of leaves, whatever their order or grouping.

A leaf is the sufficient statistics of one local topic: its size and the sum of its unit vectors. Leaves are
deduplicated by content and put into canonical order; then a hierarchy is built on their unit centroids, weighted by
the fraction of all documents they hold (see ``topicscale/tree.py``), and cut at a height. Since masses are fractions,
a height means the same for four leaves or forty thousand.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from topicscale.cells import sum_groups
from topicscale.cluster import Float64, Int64, unit
from topicscale.tree import Tree, tree

__all__ = ["Leaves", "Merged", "Tree", "collect", "leaf_key", "merge", "topic_key", "tree"]

BLOCK = 8192


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
        sums = np.asarray(vector_sums, dtype=np.float64)
        if sums.ndim != 2:
            sums = sums.reshape(len(all_sizes), -1) if len(all_sizes) else np.zeros((0, 0))
        if len(sums) != len(all_sizes):
            raise ValueError(f"vector_sums must have one row for each size. Got {len(sums)} rows for {len(all_sizes)} sizes instead.")
        keys = [leaf_key(size, row) for size, row in zip(all_sizes.tolist(), sums, strict=True)]
        first: dict[str, int] = {}
        for row, key in enumerate(keys):
            first.setdefault(key, row)
        ordered = sorted(first)
        rank = {key: position for position, key in enumerate(ordered)}
        rows = np.array([first[key] for key in ordered], dtype=np.int64)
        index = np.array([rank[key] for key in keys], dtype=np.int64)
        distinct = sums[rows]
        distinct += 0.0  # -0.0 and 0.0 are the same number but not the same bytes
        return cls(tuple(ordered), all_sizes[rows], distinct), index


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
    groups = np.asarray(groups, dtype=np.int64)
    k = int(groups.max(initial=-1)) + 1
    sizes, sums = np.zeros(k, np.int64), np.zeros((k, leaves.vector_sums.shape[1]), np.float64)
    np.add.at(sizes, groups, leaves.sizes)
    # in canonical order, so that sums are the same to the bit
    total, found = sum_groups(lambda index: leaves.vector_sums[index], groups)
    sums[found] = total
    members: list[list[str]] = [[] for _ in range(k)]
    for key, group in zip(leaves.keys, groups.tolist(), strict=True):
        members[group].append(key)
    keys = [topic_key(names) for names in members]
    order = np.array(sorted(range(k), key=lambda i: (-int(sizes[i]), keys[i])), dtype=np.int64)
    rank = np.empty(k, np.int64)
    rank[order] = np.arange(k)
    labels, sizes, sums = rank[groups], sizes[order], sums[order]
    centroids, similarities = unit(sums), np.empty(len(leaves))
    for start in range(0, len(leaves), BLOCK):
        part = slice(start, start + BLOCK)
        similarities[part] = np.einsum("ij,ij->i", unit(leaves.vector_sums[part]), centroids[labels[part]])
    return Merged(labels, tuple(keys[i] for i in order), sizes, sums, np.clip(similarities, -1.0, 1.0))


def leaf_key(size: int, vector_sum: Float64) -> str:
    """Return a leaf's content hash, 32 hexadecimal digits."""
    row = np.ascontiguousarray(vector_sum + 0.0, dtype="<f8")
    return hashlib.sha256(f"leaf:{size}:{len(row)}:".encode() + row.tobytes()).hexdigest()[:32]


def topic_key(keys: list[str] | tuple[str, ...]) -> str:
    """Return a hash of a topic's leaves, whatever their order; 32 hexadecimal digits."""
    return hashlib.sha256(("topic:" + ",".join(sorted(set(keys)))).encode()).hexdigest()[:32]
