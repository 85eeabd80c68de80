"""What changed between two topic models: topics found, gone, grown, shrunk, split and joined.

Links between the topics of both sides (see ``topicscale/overlap.py``) decide the kind of each change:

=========  =====================================================================================================
kind       meaning
=========  =====================================================================================================
found      a later topic without a link
gone       an earlier topic without a link
split      an earlier topic with links to several later ones
joined     a later topic with links to several earlier ones
grown      one link, and both the topic's documents and its share of all documents are greater by ``min_change``
shrunk     one link, and both were greater by ``min_change`` before
renamed    one link, neither grown nor shrunk, and another name: see :func:`renamed`
same       one link, none of these
=========  =====================================================================================================

Both size and share must change: when a corpus doubles, a topic that doubles with it has not grown, and one that no new
document fits has not shrunk. A topic can be part of a split and of a join: then both list it. Every topic is in at least
one change. Exchanging the two sides exchanges found and gone, grown and shrunk, split and joined.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from topicscale.cluster import unit
from topicscale.overlap import Flows, Links, Side, by_documents, by_vectors
from topicscale.tables import OUTLIER
from topicscale.terms import name

MIN_CHANGE = 0.1
"""By how much a topic must be larger on one side: what a table shows as a change at a glance."""
KEPT_WORDS = 0.5
"""A topic that keeps fewer of its keywords than this share goes by other words. Keywords at the end of a list change places at
every run; half of the list does not."""
SHOWN = 3
"""How many of the topics that a found topic's documents came from, or a gone one's went to, are told."""
NEW, REMOVED = "new", "removed"
"""Where documents come from that the earlier side lacks, and where those go that the later side lacks."""

Kind = Literal["found", "gone", "split", "joined", "grown", "shrunk", "renamed", "same"]
KINDS: tuple[Kind, ...] = ("found", "gone", "split", "joined", "grown", "shrunk", "renamed", "same")


@dataclass(frozen=True)
class Flow:
    """Documents that went from one topic to another."""

    before: int | str
    """A topic id, -1 for outliers, or NEW."""
    after: int | str
    """A topic id, -1 for outliers, or REMOVED."""
    documents: int


@dataclass(frozen=True)
class Change:
    """One change: the topics of both sides that it links."""

    kind: Kind
    before: tuple[int, ...]
    """Topic ids, largest first."""
    after: tuple[int, ...]
    size_before: int
    size_after: int
    share_before: float
    share_after: float
    overlap: float | None
    """Shared documents on both sides of the change, as a fraction of those on either (Jaccard). None without shared documents."""
    similarity: float | None
    """Cosine of both sides' mean reference vectors. None for found and gone, and across embedding spaces."""
    renamed: bool
    keywords_gained: tuple[str, ...]
    keywords_lost: tuple[str, ...]
    flows: tuple[Flow, ...]
    """Shared documents of each link; for found and gone where most documents came from or went to. Empty without shared documents."""


@dataclass(frozen=True)
class Outliers:
    """What became of documents without a topic. Flows are None without shared documents."""

    before: int
    after: int
    stayed: int | None
    left: int | None
    """Found a topic."""
    joined: int | None
    """Lost theirs."""
    new: int | None
    """Outliers that the earlier side lacks."""


@dataclass(frozen=True)
class Moved:
    """A topic id that both sides use for different topics."""

    topic_id: int
    now: tuple[int, ...]
    """The later topics that the earlier one's content is in."""
    was: tuple[int, ...]
    """The earlier topics that the later one's content comes from."""


@dataclass(frozen=True)
class Difference:
    """All that changed, largest first."""

    changed: bool
    """False when both sides hold the same topics, sizes, names and (as far as shared documents tell) assignments."""
    changes: tuple[Change, ...]
    outliers: Outliers
    moved: tuple[Moved, ...]
    shared: int | None
    """Documents on both sides; None when topics were matched by reference vectors."""
    reassigned: int | None
    """Shared documents that are in another topic: neither the same nor, where ids changed, its counterpart; outliers included."""


def compare(before: Side, after: Side, flows: Flows | None, *, min_change: float = MIN_CHANGE, one_space: bool = True) -> Difference:
    """Return what changed from one side to the other.

    Parameters
    ----------
    flows : Flows or None
        What became of the documents that both hold. None matches topics by their reference vectors.
    min_change : float, default=.1
        What makes a topic grown or shrunk, as a fraction of the smaller side.
    one_space : bool, default=True
        Whether the reference vectors are of one embedding space. Needed when there are no flows.

    Raises
    ------
    ValueError
        There are neither flows nor vectors that can be compared, or ``min_change`` is not a number from 0 up.
    """
    if not 0 <= min_change < float("inf"):
        raise ValueError(f"min_change must be a number from 0 up. Got {min_change} instead.")
    if flows is None and not one_space:
        raise ValueError("compare must be given flows, or vectors of one embedding space.")
    links = by_vectors(before, after) if flows is None else by_documents(before, after, flows)
    return _Comparison(before, after, flows, links, min_change, one_space).run()


def renamed(before: Side, i: int, after: Side, j: int) -> bool:
    """Return whether two linked topics have different names.

    They do when a name that was given (by hand or by a model) is another or is there on one side only, or when fewer than
    half of the shorter list of keywords are in the other. A name that begins with the topic's id is the one made of its
    keywords (``terms.name``); ``update`` keeps it while the keywords move on.
    """
    if _given(before, i) != _given(after, j):
        return True
    number = min(len(before.keywords[i]), len(after.keywords[j]))
    kept = set(before.keywords[i][:number]) & set(after.keywords[j][:number])
    return len(kept) < KEPT_WORDS * number


def _given(side: Side, i: int) -> str:
    label = side.labels[i]
    made = name(int(side.ids[i]), [])
    return "" if label == made or label.startswith(f"{made}_") else label


class _Comparison:
    """The state of one comparison. Topics are positions in their side here, and ids in what comes out."""

    def __init__(self, before: Side, after: Side, flows: Flows | None, links: Links, min_change: float, one_space: bool) -> None:
        self.before, self.after, self.flows, self.min_change = before, after, flows, min_change
        self.comparable = one_space and before.vectors.shape[1] == after.vectors.shape[1] > 0
        self.forward: dict[int, list[int]] = {}
        self.backward: dict[int, list[int]] = {}
        for i, j in zip(links.before.tolist(), links.after.tolist(), strict=True):
            self.forward.setdefault(i, []).append(j)
            self.backward.setdefault(j, []).append(i)
        self.number: dict[tuple[int, int], int] = {}
        self.outgoing: dict[int, list[Flow]] = {}
        self.incoming: dict[int, list[Flow]] = {}
        if flows is not None:
            for one, other, documents in zip(flows.before.tolist(), flows.after.tolist(), flows.documents.tolist(), strict=True):
                self.number[one, other] = documents
                self.outgoing.setdefault(one, []).append(Flow(one, other, documents))
                self.incoming.setdefault(other, []).append(Flow(one, other, documents))

    def run(self) -> Difference:
        changes = []
        for i in range(len(self.before.ids)):
            others = self.forward.get(i, [])
            if not others:
                changes.append(self.change("gone", [i], []))
            elif len(others) > 1:
                changes.append(self.change("split", [i], others))
            elif len(self.backward[others[0]]) == 1:
                changes.append(self.change(self.kind(i, others[0]), [i], others))
        for j in range(len(self.after.ids)):
            others = self.backward.get(j, [])
            if not others:
                changes.append(self.change("found", [], [j]))
            elif len(others) > 1:
                changes.append(self.change("joined", others, [j]))
        changes.sort(key=lambda c: (-max(c.size_before, c.size_after), KINDS.index(c.kind), c.before, c.after))
        return Difference(
            self.changed(),
            tuple(changes),
            self.outliers(),
            self.moved(),
            None if self.flows is None else self.flows.total,
            self.reassigned(),
        )

    def kind(self, i: int, j: int) -> Kind:
        size, later = int(self.before.sizes[i]), int(self.after.sizes[j])
        if self._greater(later, self.after.documents, size, self.before.documents):
            return "grown"
        if self._greater(size, self.before.documents, later, self.after.documents):
            return "shrunk"
        return "renamed" if renamed(self.before, i, self.after, j) else "same"

    def _greater(self, size: int, documents: int, other: int, other_documents: int) -> bool:
        least = 1.0 + self.min_change
        # the shares are multiplied out, so that whole numbers are compared
        larger = size > other and size * other_documents > other * documents
        return larger and size >= least * other and size * other_documents >= least * other * documents

    def change(self, kind: Kind, before: list[int], after: list[int]) -> Change:
        before = sorted(before, key=lambda i: (-int(self.before.sizes[i]), i))
        after = sorted(after, key=lambda j: (-int(self.after.sizes[j]), j))
        ids, later = tuple(int(self.before.ids[i]) for i in before), tuple(int(self.after.ids[j]) for j in after)
        size, size_later = int(self.before.sizes[before].sum()), int(self.after.sizes[after].sum())
        words = list(dict.fromkeys(word for i in before for word in self.before.keywords[i]))
        words_later = list(dict.fromkeys(word for j in after for word in self.after.keywords[j]))
        return Change(
            kind,
            ids,
            later,
            size,
            size_later,
            size / max(self.before.documents, 1),
            size_later / max(self.after.documents, 1),
            self.overlap(ids, later),
            self.similarity(before, after),
            len(before) == len(after) == 1 and renamed(self.before, before[0], self.after, after[0]),
            tuple(word for word in words_later if word not in words),
            tuple(word for word in words if word not in words_later),
            self.told(ids, later, size, size_later),
        )

    def overlap(self, ids: tuple[int, ...], later: tuple[int, ...]) -> float | None:
        if self.flows is None:
            return None
        both = sum(self.number.get((one, other), 0) for one in ids for other in later)
        either = sum(f.documents for one in ids for f in self.outgoing.get(one, []))
        either += sum(f.documents for other in later for f in self.incoming.get(other, [])) - both
        return both / either if either else 1.0 if ids and later else 0.0

    def similarity(self, before: list[int], after: list[int]) -> float | None:
        if not self.comparable or not before or not after:
            return None
        one, other = (
            (unit(side.vectors[rows]) * np.maximum(side.sizes[rows], 1)[:, None]).sum(axis=0, keepdims=True)
            for side, rows in ((self.before, before), (self.after, after))
        )
        return round(float((unit(one) * unit(other)).sum()), 6)

    def told(self, ids: tuple[int, ...], later: tuple[int, ...], size: int, size_later: int) -> tuple[Flow, ...]:
        if self.flows is None:
            return ()
        if ids and later:
            pairs = ((one, other) for one in ids for other in later)
            return _largest(Flow(one, other, self.number[one, other]) for one, other in pairs if (one, other) in self.number)
        if ids:
            known = self.outgoing.get(ids[0], [])
            rest = size - sum(flow.documents for flow in known)
            return _largest([*known, Flow(ids[0], REMOVED, rest)])[:SHOWN]
        known = self.incoming.get(later[0], [])
        rest = size_later - sum(flow.documents for flow in known)
        return _largest([*known, Flow(NEW, later[0], rest)])[:SHOWN]

    def outliers(self) -> Outliers:
        before, after = self.before.outliers, self.after.outliers
        if self.flows is None:
            return Outliers(before, after, None, None, None, None)
        stayed = self.number.get((OUTLIER, OUTLIER), 0)
        left = sum(flow.documents for flow in self.outgoing.get(OUTLIER, [])) - stayed
        joined = sum(flow.documents for flow in self.incoming.get(OUTLIER, [])) - stayed
        return Outliers(before, after, stayed, left, joined, max(after - stayed - joined, 0))

    def reassigned(self) -> int | None:
        if self.flows is None:
            return None
        linked = {(int(self.before.ids[i]), int(self.after.ids[j])) for i, others in self.forward.items() for j in others}
        linked.add((OUTLIER, OUTLIER))
        return sum(documents for pair, documents in self.number.items() if pair not in linked)

    def moved(self) -> tuple[Moved, ...]:
        found = []
        for topic in np.intersect1d(self.before.ids, self.after.ids).tolist():
            i, j = int(np.searchsorted(self.before.ids, topic)), int(np.searchsorted(self.after.ids, topic))
            now, was = self.forward.get(i, []), self.backward.get(j, [])
            if j not in now:
                ids, later = (tuple(int(self.before.ids[k]) for k in was), tuple(int(self.after.ids[k]) for k in now))
                found.append(Moved(topic, later, ids))
        return tuple(found)

    def changed(self) -> bool:
        one, other = self.before, self.after
        if not (np.array_equal(one.ids, other.ids) and np.array_equal(one.sizes, other.sizes) and one.outliers == other.outliers):
            return True
        if (one.labels, one.keywords) != (other.labels, other.keywords):
            return True
        if self.flows is None:
            return not np.allclose(one.vectors, other.vectors, rtol=0, atol=1e-6)
        kept = sum(documents for (before, after), documents in self.number.items() if before == after)
        return kept != one.documents or kept != other.documents


def _largest(flows: Iterable[Flow]) -> tuple[Flow, ...]:
    return tuple(sorted((f for f in flows if f.documents > 0), key=lambda f: (-f.documents, str(f.before), str(f.after))))
