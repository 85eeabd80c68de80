"""The hierarchy over leaves: Ward's criterion (Ward 1963) or average linkage, one definition for tens and for millions.

It is built in rounds: each round joins every pair of clusters that are each other's nearest. For a reducible criterion
(both are; Bruynooghe 1978) that gives the same tree as joining the closest pair one at a time, and a round is a few
operations on whole matrices.

Time and memory of that grow with the square. So, while there are more than ``SWITCH`` clusters, they are divided into
cells of neighbours (see ``topicscale/cells.py``), a tree is begun in each cell, and the lowest joins over all cells are
done, until a quarter of the clusters is left or ``SWITCH``. The next division is of the clusters that are left, so its
borders lie elsewhere; the last ``SWITCH`` clusters get the tree above them without any borders. What is approximate is
below: two leaves on both sides of a border may meet somewhat later than they would. In cells it is always the most
similar clusters that are joined (average linkage), whatever their mass: by Ward's criterion small leaves that have no
neighbour of theirs in the cell would join strangers, because their mass makes that cheap. Such joins get the heights
that Ward's criterion gives them, and above them the tree is Ward's. Whether there are divisions depends
on the number of distinct directions among the leaves, never on the machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from threadpoolctl import threadpool_info, threadpool_limits

from topicscale.cells import Over, Rows, divide, sum_groups
from topicscale.cluster import Float64, Int64, exact, unit

if TYPE_CHECKING:
    from topicscale.merge import Leaves

Criterion = Literal["ward", "average"]

SWITCH = 8192
"""Clusters whose tree is built without cells. Part of the definition: another number is another tree."""
CELL = 1024
"""Clusters of a cell, about."""
THREADS = 16
"""At most: each holds the products of a cell, 32 MiB."""
SHRINK = 4
"""One division leaves one cluster of so many, at least ``SWITCH``."""
_BLOCK = 8192
_ROWS = 128
_COARSE = 1.5 * 2.0**12


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
        return _components(self.leaves, self.first[:joins], self.second[:joins])


class _Joins(NamedTuple):
    gaps: Float64
    first: Int64
    second: Int64


@contextmanager
def _parallel(rows: int) -> Iterator[Over]:
    """Give an ``over`` for many rows that uses as many threads as linear algebra may; how many changes no result."""
    if rows <= CELL:
        yield map
        return
    threads = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(threads, THREADS)) as pool:
        yield pool.map


def tree(leaves: Leaves, *, criterion: Criterion = "ward") -> Tree:
    """Return the hierarchy of the leaves.

    ``ward``: the height of a join is the square root of ``2 a b / (a + b) |x - y|^2`` for masses a, b (fractions of all
    documents) and mass-weighted means x, y of unit centroids. ``average``: one minus the mean cosine over pairs of
    leaves, weighted by mass, which equals ``1 - x . y``. A join is never lower than the joins it is made of.
    """
    m = len(leaves)
    if m < 2:
        return Tree(m, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    with _parallel(m) as over:
        gaps, one, two = _all_joins(leaves, criterion, over)
    order = np.argsort(gaps, kind="stable")  # among equals, a join comes after those it is made of
    heights = np.sqrt(gaps) if criterion == "ward" else gaps
    return Tree(m, np.minimum(one, two)[order], np.maximum(one, two)[order], heights[order])


def _all_joins(leaves: Leaves, criterion: Criterion, over: Over) -> _Joins:
    # leaves of one direction are one cluster to begin with: among equal distances only one pair would join in a round
    same = _directions(leaves)
    lead = np.unique(same, return_index=True)[1]
    twins = np.setdiff1d(np.arange(len(leaves)), lead)
    done = [_Joins(np.zeros(len(twins)), lead[same[twins]], twins)]
    # an empty leaf weighs next to nothing, but it has a place
    mass = np.bincount(same, weights=np.maximum(leaves.sizes, 1)) / max(int(leaves.sizes.sum()), 1)
    name, top = lead, np.zeros(len(lead))  # a leaf that stands for each cluster: its smallest
    reach = top  # as top, in the measure that cells are joined by

    def centroids(index: Int64) -> Float64:
        return unit(leaves.vector_sums[lead[index]])

    rows: Rows = centroids
    while len(name) > SWITCH:
        joins = _in_cells(rows, mass, reach, over)
        if len(joins.gaps) == 0:
            break
        gaps = _ward_gaps(rows, mass, top, joins) if criterion == "ward" else joins.gaps
        done.append(_Joins(gaps, name[joins.first], name[joins.second]))
        group = _components(len(name), joins.first, joins.second)
        mean, mass = _means(rows, mass, group)
        rows = _picker(mean)
        top, reach = _raised(top, group, joins.first, gaps), _raised(reach, group, joins.first, joins.gaps)
        name = name[np.unique(group, return_index=True)[1]]
    joins = _rounds(rows(np.arange(len(name))), mass, top, criterion, over=over)
    done.append(_Joins(joins.gaps, name[joins.first], name[joins.second]))
    return _Joins(*(np.concatenate(parts) for parts in zip(*done, strict=True)))


def _raised(top: Float64, group: Int64, joined: Int64, gaps: Float64) -> Float64:
    """Return the greatest gap inside each group."""
    height = np.zeros(int(group.max(initial=-1)) + 1)
    np.maximum.at(height, group, top)
    np.maximum.at(height, group[joined], gaps)
    return height


def _ward_gaps(rows: Rows, mass: Float64, top: Float64, joins: _Joins) -> Float64:
    """Return what Ward's criterion says of given joins, each at least that of the joins beneath it."""
    gaps = np.empty(len(joins.gaps))
    group = _components(len(mass), joins.first, joins.second)[joins.first]
    order = np.argsort(group, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        nodes = np.unique(np.concatenate([joins.first[part], joins.second[part]]))
        mean, weight, height, root = rows(nodes), mass[nodes].tolist(), top[nodes].tolist(), list(range(len(nodes)))
        sides = zip(np.searchsorted(nodes, joins.first[part]), np.searchsorted(nodes, joins.second[part]), strict=True)
        for join, (a, b) in zip(part, sides, strict=True):
            while root[a] != a:
                a = root[a]
            while root[b] != b:
                b = root[b]
            apart, both = mean[a] - mean[b], weight[a] + weight[b]
            gap = _rounded(2.0 * weight[a] * weight[b] / both * float(apart @ apart))
            gaps[join] = height[a] = max(gap, height[a], height[b])
            mean[a] = (weight[a] * mean[a] + weight[b] * mean[b]) / both
            weight[a], root[b] = both, a
    return gaps


def _rounded(value: float) -> float:
    """Return a number in 30 bits, so that the last bits of a product, which differ between machines, decide nothing."""
    fraction, exponent = math.frexp(value)
    return math.ldexp(round(fraction * 2.0**30), exponent - 30)


def _picker(mean: Float64) -> Rows:
    return lambda index: mean[index]


def _directions(leaves: Leaves) -> Int64:
    """Return which leaves have the same unit centroid, (m,), numbered by first leaf."""
    seen: dict[bytes, int] = {}
    found = np.empty(len(leaves), np.int64)
    for start in range(0, len(leaves), _BLOCK):
        block = exact(unit(leaves.vector_sums[start : start + _BLOCK]))
        for place, row in enumerate(block, start=start):
            found[place] = seen.setdefault(hashlib.blake2b(row.data, digest_size=16).digest(), len(seen))
    return found


def _in_cells(rows: Rows, mass: Float64, top: Float64, over: Over) -> _Joins:
    """Return the joins of the most similar clusters within cells, in the order of their gaps."""
    n = len(mass)

    def joins(cell: Int64) -> _Joins:
        # a cell gives twice the joins that are wanted of all, because some cells are denser than others
        gaps, first, second = _rounds(rows(cell), mass[cell], top[cell], "average", until=len(cell) // (2 * SHRINK))
        return _Joins(gaps, cell[first], cell[second])

    gaps, first, second = (np.concatenate(p) for p in zip(*over(joins, divide(rows, np.arange(n), size=CELL, over=over)), strict=True))
    order = np.argsort(gaps, kind="stable")[: n - max(SWITCH, n // SHRINK)]
    return _Joins(gaps[order], first[order], second[order])


def _rounds(mean: Float64, mass: Float64, top: Float64, criterion: Criterion, *, until: int = 1, over: Over = map) -> _Joins:
    """Return the joins of n clusters until a number is left, each after those it is made of.

    A gap is at least both sides' ``top``. The last round may leave fewer clusters than ``until``.
    """
    products = _Products(mean, mass, criterion, over)
    top = top.copy()
    name = np.arange(len(mean))  # ascending at all times: a join keeps the place and the name of its left side
    done = [_Joins(np.zeros(0), name[:0], name[:0])]
    alive = np.ones(len(mean), bool)
    near, gap = products.nearest(np.arange(len(mean)))
    number = len(mean)
    while number > max(until, 1):
        mutual = np.flatnonzero(alive & (near[near] == np.arange(len(near))))
        left = mutual[mutual < near[mutual]]
        right = near[left]
        if len(left) == 0:
            # rounding can make a ring of nearest neighbours without a mutual pair: join the closest pair
            closest = int(np.argmin(np.where(alive, gap, np.inf)))
            left, right = np.sort([[closest], [near[closest]]], axis=0)
            gap[left] = gap[closest]
        height = np.maximum(gap[left], np.maximum(top[left], top[right]))
        done.append(_Joins(height, name[left], name[right]))
        products.join(left, right)
        top[left] = height
        alive[right] = False
        number -= len(left)
        changed = np.zeros(len(near), bool)
        changed[left] = changed[right] = True
        # reducibility: no joined cluster is nearer than both its parts were, so only those are asked again who lost theirs
        stale = alive & (changed | changed[near])
        if 2 * number < len(alive):
            products.keep(alive)
            position = np.cumsum(alive) - 1
            near, gap, top, name, stale = position[near[alive]], gap[alive], top[alive], name[alive], stale[alive]
            alive = np.ones(number, bool)
        if number > max(until, 1):
            rows = np.flatnonzero(stale)
            near[rows], gap[rows] = products.nearest(rows)
    gaps, first, second = (np.concatenate(parts) for parts in zip(*done, strict=True))
    return _Joins(gaps, first, second)


class _Products:
    """The products of n clusters' means. Those of joined clusters are means of products, so vectors are not needed again."""

    def __init__(self, mean: Float64, mass: Float64, criterion: Criterion, over: Over) -> None:
        n = len(mean)
        self.products = np.empty((n, n))
        self.mass, self.ward, self.over = mass.copy(), criterion == "ward", over

        def fill(start: int) -> None:
            np.matmul(mean[start : start + _ROWS], mean.T, out=self.products[start : start + _ROWS])

        list(over(fill, range(0, n, _ROWS)))
        # a distance is x . x + y . y - 2 x . y, or 1/2 + 1/2 - x . y; infinite for what has been joined to another
        self.square = self.products.diagonal().copy() if self.ward else np.full(n, 0.5)

    def nearest(self, rows: Int64) -> tuple[Int64, Float64]:
        """Return the nearest other cluster (q,) of each given one, the first of equals, and the gap (q,), rounded."""
        found = list(self.over(self._nearest, [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]))
        return np.concatenate([index for index, _ in found]), np.concatenate([gap for _, gap in found])

    def _nearest(self, rows: Int64) -> tuple[Int64, Float64]:
        # rounded twice, so that the last bits of a product, which differ between machines, decide nothing: to 2^-40, which
        # makes 0 of what is equal, by adding a number whose last bit that is; and to 30 bits, like floats of fewer digits
        gap = self.products[rows]
        gap *= -2.0 if self.ward else -1.0
        gap += self.square
        gap += self.square[rows, None] + _COARSE
        gap -= _COARSE
        if self.ward:
            half = 0.5 / self.mass
            gap /= half + half[rows, None]
        bits = gap.view(np.int64)
        bits += 1 << 22
        bits &= -(1 << 23)
        place = np.arange(len(rows))
        gap[place, rows] = np.inf
        index = gap.argmin(axis=1)
        return index, gap[place, index]

    def join(self, left: Int64, right: Int64) -> None:
        """Join clusters to others, in their places."""
        a, b = self.mass[left], self.mass[right]
        a, b = a / (a + b), b / (a + b)
        rows = a[:, None] * self.products[left] + b[:, None] * self.products[right]
        rows[:, left] = a * rows[:, left] + b * rows[:, right]
        self.products[left] = rows
        self.products[:, left] = rows.T
        self.mass[left] += self.mass[right]
        if self.ward:
            self.square[left] = self.products[left, left]
        self.square[right] = np.inf

    def keep(self, alive: npt.NDArray[np.bool_]) -> None:
        self.products = self.products[np.ix_(alive, alive)]
        self.mass, self.square = self.mass[alive], self.square[alive]


def _means(rows: Rows, mass: Float64, group: Int64) -> tuple[Float64, Float64]:
    """Return the means (k, d) and masses (k,) of groups of clusters."""
    sums, _ = sum_groups(lambda index: rows(index) * mass[index, None], group)
    total = np.bincount(group, weights=mass).astype(np.float64)
    return sums / total[:, None], total


def _components(n: int, first: Int64, second: Int64) -> Int64:
    """Return the connected component of each of n nodes, numbered by first node."""
    graph = csr_matrix((np.ones(len(first), np.int8), (first, second)), shape=(n, n))
    label = connected_components(graph, directed=False)[1]
    _, start, inverse = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(start), np.int64)
    rank[np.argsort(start)] = np.arange(len(start))
    result: Int64 = rank[inverse.ravel()]
    return result
