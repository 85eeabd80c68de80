"""What two releases of sums tell together: the smallest group of documents that they set apart.

A release is a set of leaves, each told by sums over its documents. Who holds two releases can add and subtract their
leaves: whatever the factors, the documents that do not cancel include the boundary of some set of leaves, that is the
documents of which exactly one leaf (the old or the new) is in the set. So draw a graph: a node for every leaf of either
release and one for "in no leaf", an edge for every document from its old leaf to its new one. No combination of the two
releases tells of a group under K documents, and of more than none, if no cut of the graph weighs between 1 and K - 1.
Such a cut is found by contracting edges that are too heavy to be in one, then as Stoer and Wagner (1997) do.

This holds for every pair of releases. It says nothing of combinations of three.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from topicscale.cluster import Float64, Int64

UInt64 = npt.NDArray[np.uint64]
OUTSIDE = 0
"""The node of documents that are in no leaf."""
_DOCUMENT = 2
"""Weight of a document. An edited one is a triangle of half edges between its leaves and the outside: it counts once, however it is cut."""
_TRACE = 1e-6
"""Weight that keeps leaves connected where a document is in several leaves of a release, and no cut can be claimed to hold it."""


@dataclass(frozen=True)
class Members:
    """Which documents are in which leaf. A document may be in several leaves."""

    documents: UInt64
    """(n,): keyed hashes of document ids."""
    texts: UInt64
    """(n,): keyed hashes of their texts."""
    leaves: Int64
    """(n,): 0 to the number of leaves - 1."""
    vectors: UInt64 | None = None
    """(n,): keyed hashes of texts and vectors, where vectors came with the documents: one may change where the text does not."""

    def taken(self, rows: npt.NDArray[np.bool_]) -> Members:
        """Return some rows."""
        vectors = None if self.vectors is None else self.vectors[rows]
        return Members(self.documents[rows], self.texts[rows], self.leaves[rows], vectors)

    def of(self, chosen: Collection[int]) -> Members:
        """Return the rows of some leaves, numbered as before."""
        return self.taken(np.isin(self.leaves, np.fromiter(chosen, np.int64)))


def changed(old: Members, new: Members) -> int:
    """Return how many documents are in one set alone, or in both with different texts; leaves are of no account."""
    one, two = _distinct(old), _distinct(new)
    _, a, b = np.intersect1d(one.documents, two.documents, assume_unique=True, return_indices=True)
    same = int((one.texts[a] == two.texts[b]).sum())
    both = len(a)
    return len(one.documents) + len(two.documents) - both - same


def alone(members: Members, *, leaves: int) -> Int64:
    """Return for each leaf how many documents are in it and in no other.

    While that is K or more for every leaf of a release, no set of its leaves alone is a narrow cut, and what comes later
    can be told apart from it.
    """
    _, inverse, count = np.unique(members.documents, return_inverse=True, return_counts=True)
    return np.bincount(members.leaves[count[inverse] == 1], minlength=leaves).astype(np.int64)


def _distinct(members: Members) -> Members:
    documents, first = np.unique(members.documents, return_index=True)
    return Members(documents, members.texts[first], members.leaves[first])


@dataclass(frozen=True)
class Stale:
    """What a release must not tell anew, and which old leaves stand for it."""

    withheld: frozenset[int]
    """New leaves."""
    instead: tuple[tuple[int, int], ...]
    """(old release, its leaf), in order."""


def settle(new: Members, history: Sequence[Members], minimum: int, *, leaves: int) -> Stale:
    """Return the new leaves that would set a small group of documents apart from an old release.

    Parameters
    ----------
    new : Members
        A document is in one leaf at most.
    history : sequence of Members
        Old releases, oldest first. Their leaves may overlap; :func:`alone` says how far.
    minimum : int
        The smallest group that may be told, beside any old release. What one told by itself under a smaller K stays told.
    leaves : int
        Number of new leaves.

    Notes
    -----
    One pass is enough: a leaf that is withheld counts as outside, so the cuts that are left were there before.
    """
    fresh = set(range(leaves))
    instead: dict[tuple[int, int], None] = {}
    for index in reversed(range(len(history))):  # the newest first: what stands for a leaf should be as new as can be
        while fresh:
            cuts = _cuts(new.of(fresh), history[index], minimum, leaves=leaves)
            if not cuts:
                break
            for nodes in cuts:
                mine = {node - 1 for node in nodes if node <= leaves}
                if not mine:
                    # old leaves that overlap so much that nothing can be claimed of them: tell nothing anew
                    mine = set(fresh)
                fresh -= mine
                instead |= dict.fromkeys((index, node - 1 - leaves) for node in nodes if node > leaves)
    return Stale(frozenset(range(leaves)) - fresh, tuple(sorted(instead)))


def too_close(new: Members, old: Members, minimum: int, *, leaves: int) -> set[int]:
    """Return new leaves that with others set fewer than ``minimum`` documents apart from an old release; without them fewer do, or none.

    Unlike in :func:`settle` a document may be in several new leaves. Where a small group is set apart by old leaves alone, all new ones
    are returned.
    """
    found = [{node - 1 for node in nodes if node <= leaves} for nodes in _cuts(new, old, minimum, leaves=leaves)]
    return set().union(*(mine or set(range(leaves)) for mine in found))


def _cuts(new: Members, old: Members, minimum: int, *, leaves: int) -> list[set[int]]:
    """Return narrow cuts of two releases: of what is told of texts (terms), else of what is told of vectors, if that is not the same.

    Those of old leaves alone that are under ``minimum`` are none: their release told them under a smaller K.
    """
    pairs = [(new, old)]
    if new.vectors is not None and old.vectors is not None:
        pairs.append((replace(new, texts=new.vectors), replace(old, texts=old.vectors)))
    told = alone(old, leaves=int(old.leaves.max(initial=-1)) + 1)
    small = 1 + leaves + np.flatnonzero((told > 0) & (told < minimum))
    for one, other in pairs:
        nodes, first, second, weight = _edges(one, other, leaves=leaves)
        group, torn = _followed(nodes, first, second, weight, small)
        cuts = [torn] if torn else narrow_cuts(nodes, group[first], group[second], weight, limit=_DOCUMENT * minimum)
        if cuts:
            return cuts
    return []


def _followed(nodes: int, first: Int64, second: Int64, weight: Float64, small: Int64) -> tuple[Int64, set[int]]:
    """Return the node that each node goes with, and new leaves that share an old leaf that told of few and goes with none.

    A small old leaf goes with the node that at least half of it is in. To the side of that one it can be moved in every narrow cut, which
    gets no heavier; if nothing of the cut is left then, it was the small leaf alone that it told of.
    """
    group, torn = np.arange(nodes), set[int]()
    now, before = np.minimum(first, second), np.maximum(first, second)  # nodes of old leaves come last
    for leaf in small.tolist():
        held = np.bincount(now[before == leaf], weights=weight[before == leaf])
        if 2 * held.max() >= held.sum():
            group[leaf] = held.argmax()
        else:
            torn |= set(np.flatnonzero(held).tolist()) - {OUTSIDE}
    return group, torn


def _edges(new: Members, old: Members, *, leaves: int) -> tuple[int, Int64, Int64, Float64]:
    """Return the graph of two releases: number of nodes, and both ends and the weight of every edge.

    Nodes: 0 outside, then the new leaves, then the old.
    """
    found, inverse, count = np.unique(new.documents, return_inverse=True, return_counts=True)
    many = count[inverse] > 1  # no cut can be claimed to hold them either
    order = np.flatnonzero(~many)[np.argsort(new.documents[~many], kind="stable")]
    documents, texts, mine = new.documents[order], new.texts[order], new.leaves[order] + 1
    theirs = old.leaves + 1 + leaves
    _, inverse, counted = np.unique(old.documents, return_inverse=True, return_counts=True)
    several = (counted[inverse] > 1) | np.isin(old.documents, found[count > 1])
    place = np.minimum(np.searchsorted(documents, old.documents), max(len(documents) - 1, 0))
    met = documents[place] == old.documents if len(documents) else np.zeros(len(place), bool)
    kept = np.zeros(len(old.documents), bool)
    kept[met] = texts[place[met]] == old.texts[met]
    alone = np.ones(len(documents), bool)
    alone[place[met]] = False
    partner = np.zeros(len(place), np.int64)
    partner[met] = mine[place[met]]
    plain = ~several
    parts = [
        (partner[plain & met & kept], theirs[plain & met & kept], _DOCUMENT),
        (partner[plain & met & ~kept], theirs[plain & met & ~kept], _DOCUMENT / 2),
        (partner[plain & met & ~kept], None, _DOCUMENT / 2),
        (theirs[plain & met & ~kept], None, _DOCUMENT / 2),
        (theirs[plain & ~met], None, _DOCUMENT),
        (mine[alone], None, _DOCUMENT),
        (theirs[several], None, _TRACE),
        (partner[several & met], None, _TRACE),
        (new.leaves[many] + 1, None, _TRACE),
    ]
    first = np.concatenate([a for a, _, _ in parts])
    second = np.concatenate([np.zeros(len(a), np.int64) if b is None else b for a, b, _ in parts])
    weight = np.concatenate([np.full(len(a), float(w)) for a, _, w in parts])
    return 1 + leaves + int(old.leaves.max(initial=-1)) + 1, first, second, weight


def narrow_cuts(nodes: int, first: Int64, second: Int64, weight: Float64, *, limit: float) -> list[set[int]]:
    """Return sets of nodes without node 0 whose boundary weighs more than 0 and less than ``limit``; empty if there are none.

    Not every such set is returned, but at least one if there is one.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    group = np.arange(nodes)
    while True:
        # an edge of the limit or more is in no narrow cut: its ends are one node, and parallel edges add up
        a, b = group[first], group[second]
        pairs, inverse = np.unique(np.minimum(a, b) * nodes + np.maximum(a, b), return_inverse=True)
        total = np.bincount(inverse.ravel(), weights=weight, minlength=len(pairs))
        a, b = pairs // nodes, pairs % nodes
        heavy = (total >= limit) & (a != b)
        if not heavy.any():
            break
        _, joined = connected_components(coo_array((np.ones(heavy.sum()), (a[heavy], b[heavy])), shape=(nodes, nodes)), directed=False)
        group = joined[group].astype(np.int64)
    a, b, total = a[a != b], b[a != b], total[a != b]
    degree = np.bincount(a, weights=total, minlength=nodes) + np.bincount(b, weights=total, minlength=nodes)
    outside = group[OUTSIDE]
    found = [_within(group, {int(g)}) for g in np.flatnonzero((degree > 0) & (degree < limit)) if g != outside]
    if found:
        return found
    number, component = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(nodes, nodes)), directed=False)
    for c in range(number):
        members = np.flatnonzero((component == c) & (degree > 0))
        if len(members) < 2:
            continue
        dense = np.zeros((len(members), len(members)))
        inside = component[a] == c
        row, column = np.searchsorted(members, a[inside]), np.searchsorted(members, b[inside])
        dense[row, column] = total[inside]
        dense[column, row] = total[inside]
        side = _cut_below(dense, limit)
        if side is not None:
            chosen = {int(g) for g in members[side]}
            if outside in chosen:
                chosen = {int(g) for g in members} - chosen
            return [_within(group, chosen)]
    return []


def _within(group: Int64, chosen: set[int]) -> set[int]:
    return {int(node) for node in np.flatnonzero(np.isin(group, list(chosen)))}


def _cut_below(weights: Float64, limit: float) -> list[int] | None:
    """Return one side of a cut of a connected graph that weighs less than ``limit``, None if there is none.

    Nodes are scanned in the order of what ties them to those scanned before. The last one's ties are a cut (Stoer and
    Wagner 1997); and two nodes whose edge brings the ties of the later one to the limit are on one side of every narrow cut
    (Nagamochi and Ibaraki 1992), so they become one node for the next round.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    sides = np.arange(len(weights))
    while len(weights) > 1:
        n = len(weights)
        ties, waiting, last, cut = np.zeros(n), np.ones(n, bool), 0, 0.0
        one: list[int] = []
        other: list[int] = []
        for step in range(n):
            last = int(np.where(waiting, ties, -1.0).argmax()) if step else 0
            cut = float(ties[last])
            waiting[last] = False
            ties += weights[last]
            same = np.flatnonzero(waiting & (weights[last] > 0) & (ties >= limit))
            one += [last] * len(same)
            other += same.tolist()
        if cut < limit:
            return np.flatnonzero(sides == last).tolist()
        number, group = connected_components(coo_array((np.ones(len(one)), (one, other)), shape=(n, n)), directed=False)
        assert number < n, "the last node's ties reach the limit, so it was joined"
        starts = np.argsort(group, kind="stable")
        first = np.searchsorted(group[starts], np.arange(number))
        weights = np.add.reduceat(np.add.reduceat(weights[starts][:, starts], first, axis=0), first, axis=1)
        np.fill_diagonal(weights, 0.0)
        sides = group[sides]
    return None
