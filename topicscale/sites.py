"""Whose topics a store's topics are made of: each leaf of ``site_topics`` with the topic it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from topicscale.errors import StoreError
from topicscale.store import Snapshot, Store
from topicscale.tables import OUTLIER


@dataclass(frozen=True)
class Leaf:
    """A site's topic, or its outliers."""

    site: str
    """The site's name; two sites may share one."""
    site_id: str
    topic_key: str
    label: str
    """The name that the site gave it; empty if none."""
    size: int
    topic_id: int
    similarity: float
    """Cosine to the topic; 0 for outliers."""


def is_merged(snapshot: Snapshot) -> bool:
    """Return whether a generation holds topics merged over stores."""
    return bool(snapshot.summary.get("merged"))


def leaves(store: Store) -> list[Leaf]:
    """Return the leaves of a merged store, pinned, in the order of ``site_topics``.

    Raises
    ------
    StoreError
        The store holds topics of its own, or its tables do not belong together.
    """
    snapshot = store.pinned
    if snapshot is None or not is_merged(snapshot):
        raise StoreError(f"The store {store.uri!r} holds topics of its own and no other sites'. Merge stores with: topicscale merge --help")
    lineage = store.read("topic_lineage", ["site", "topic_key", "size", "topic_id", "similarity"]).to_pylist()
    rows = store.read("site_topics", ["site", "site_id", "topic_key", "label", "size"]).to_pylist()
    # by what the rows say, not by their order, which a compacted table need not keep
    found = {(row["site"], row["topic_key"], row["size"]): (row["topic_id"], row["similarity"]) for row in lineage}
    try:
        return [
            Leaf(
                row["site"],
                row["site_id"],
                row["topic_key"],
                row["label"] or "",
                row["size"],
                *found[row["site"], row["topic_key"], row["size"]],
            )
            for row in rows
        ]
    except KeyError as error:
        raise StoreError(f"topic_lineage of {store.uri!r} lacks the leaf {error.args[0]}. Merge the sites' stores again.") from None


def topic_of_leaves(store: Store, topics: pa.Table) -> list[int]:
    """Return the topic of each row of ``site_topics`` of a pinned store, merged or a site's own.

    Parameters
    ----------
    topics : Table
        ``topics`` with ``topic_id`` and ``size``.

    Raises
    ------
    StoreError
        The tables do not belong together.
    """
    assert store.pinned is not None
    if is_merged(store.pinned):
        return [leaf.topic_id for leaf in leaves(store)]
    rows = sorted(zip(topics["topic_id"].to_pylist(), topics["size"].to_pylist(), strict=True))
    sizes = store.read("site_topics", ["size"])["size"].to_pylist()
    # a site's own leaves are written by topic id, those without documents left out or not
    for held in ([row for row in rows if row[1] > 0], rows):
        if [size for _, size in held] == sizes:
            return [topic for topic, _ in held]
    raise StoreError(f"site_topics of {store.uri!r} does not hold its topics. Run the job again, or import the model again.")


@dataclass(frozen=True)
class Site:
    """What one site brought to merged topics."""

    site_id: str
    name: str
    documents: int
    outliers: int
    """Documents that belong to no topic at the site."""
    shared: tuple[Leaf, ...]
    """Its topics that other sites have too, in the order of the topics."""
    only_here: tuple[Leaf, ...]


def by_site(found: list[Leaf]) -> list[Site]:
    """Return the sites by name, the larger one first of those that share one."""
    holders: dict[int, set[str]] = {}
    of: dict[str, list[Leaf]] = {}
    for leaf in found:
        holders.setdefault(leaf.topic_id, set()).add(leaf.site_id)
        of.setdefault(leaf.site_id, []).append(leaf)
    result = []
    for mine in of.values():
        inside = sorted((leaf for leaf in mine if leaf.topic_id != OUTLIER), key=lambda leaf: (leaf.topic_id, -leaf.size, leaf.topic_key))
        alone = tuple(leaf for leaf in inside if len(holders[leaf.topic_id]) == 1)
        shared = tuple(leaf for leaf in inside if len(holders[leaf.topic_id]) > 1)
        documents = sum(leaf.size for leaf in mine)
        result.append(Site(mine[0].site_id, mine[0].site, documents, documents - sum(leaf.size for leaf in inside), shared, alone))
    return sorted(result, key=lambda site: (site.name, -site.documents))


def conflicts(found: list[Leaf], labels: dict[int, str]) -> dict[int, list[str]]:
    """Return the names that other sites gave to a topic than the one it has (``labels``, by topic), most documents first."""
    votes: dict[int, dict[str, int]] = {}
    for leaf in found:
        if leaf.label and leaf.topic_id != OUTLIER and leaf.label != labels.get(leaf.topic_id):
            of = votes.setdefault(leaf.topic_id, {})
            of[leaf.label] = of.get(leaf.label, 0) + leaf.size
    return {topic: sorted(of, key=lambda name: (-of[name], name)) for topic, of in sorted(votes.items())}
