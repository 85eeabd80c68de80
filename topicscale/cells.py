"""Divide many rows into cells of rows that lie near each other: spherical k-means (Dhillon & Modha 2001), cell by cell.

The cells depend on the rows and their order alone. Rows come in canonical order, which is the order of hashes: the first
of them are a random sample, and one that depends on content alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from topicscale.cluster import Float64, Int64, unit

WIDTH = 256
"""Cells that one division makes, at most."""
_SAMPLE = 64
"""Rows per cell that centres are found from."""
_ROUNDS = 8
_BLOCK = 8192

Over = Callable[..., Iterable[Any]]
"""``over(function, arguments)``: ``map``, or that of a pool of threads."""
Rows = Callable[[Int64], Float64]
"""``rows(index)`` gives float64 (len(index), d), so that not all rows need to exist at once."""


def divide(rows: Rows, index: Int64, *, size: int, over: Over = map) -> list[Int64]:
    """Return the cells, each an ascending part of ``index``, of about ``size`` rows and at most twice that."""
    if len(index) <= 2 * size:
        return [index]
    cells: list[Int64] = []
    for part in _split(rows, index, min(WIDTH, -(-len(index) // size)), over):
        if len(part) > 0.9 * len(index):
            # rows that k-means cannot tell apart are as well divided by their order
            cells += np.array_split(part, -(-len(part) // size))
        else:
            cells += divide(rows, part, size=size, over=over)
    return cells


def _split(rows: Rows, index: Int64, number: int, over: Over) -> list[Int64]:
    sample = unit(rows(index[: _SAMPLE * number]))
    centres = sample[:number].copy()
    for _ in range(_ROUNDS):
        label = _nearest(sample, centres)
        sums, found = sum_groups(lambda places: sample[places], label)
        centres[found] = unit(sums)

    def labels(start: int) -> Int64:
        return _nearest(unit(rows(index[start : start + _BLOCK])), centres)

    label = np.concatenate(list(over(labels, range(0, len(index), _BLOCK))))
    order = np.argsort(label, kind="stable")
    return [index[places] for places in np.split(order, np.flatnonzero(np.diff(label[order])) + 1)]


def _nearest(rows: Float64, centres: Float64) -> Int64:
    """Return each row's most similar centre, the first of equals."""
    # rounded, so that the last bits of a product, which differ between machines, decide nothing
    found: Int64 = np.rint(rows @ centres.T * 2.0**30).argmax(axis=1)
    return found


def sum_groups(rows: Rows, label: Int64) -> tuple[Float64, Int64]:
    """Return the sums float64 (k, d) of the rows of each label that occurs, added in their order, and those labels (k,)."""
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    sums: Float64 | None = None
    done = 0
    while done < len(starts):
        # whole groups, as many as fit into a block; a group that is larger than one is a block of its own
        until = max(done + 1, int(np.searchsorted(ends, starts[done] + _BLOCK, side="right")))
        part = _add(rows, order[starts[done] : ends[until - 1]], starts[done:until] - starts[done])
        if sums is None:
            sums = np.empty((len(starts), part.shape[1]))
        sums[done:until] = part
        done = until
    return (sums if sums is not None else rows(order)), label[order[starts]]


def _add(rows: Rows, places: Int64, starts: Int64) -> Float64:
    """Return the sums of consecutive runs; a product with a sparse matrix of ones adds one row after another."""
    if len(starts) > 1:
        block = rows(places)
        result: Float64 = csr_matrix((np.ones(len(block)), np.arange(len(block)), np.append(starts, len(block)))) @ block
        return result
    total = rows(places[:1])
    for begin in range(1, len(places), _BLOCK):
        block = np.concatenate([total, rows(places[begin : begin + _BLOCK])])
        total = csr_matrix((np.ones(len(block)), np.arange(len(block)), [0, len(block)])) @ block
    return total
