"""Names that people give to topics: checked, written as a generation of their own, kept when the tables are made again.

A name is a row of ``topic_labels`` (aspect ``manual``), the ``label`` of its topic in ``topics``, and the ``label`` of the
topic's leaves in ``site_topics``, so that it goes along when stores are merged.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake.exceptions import DeltaError

from topicscale.cluster import Float32
from topicscale.errors import RequestError, StoreError
from topicscale.refine import nearest
from topicscale.sites import is_merged, topic_of_leaves
from topicscale.store import Snapshot, Store
from topicscale.tables import OUTLIER, TABLES
from topicscale.terms import name
from topicscale.texts import LONGEST, commands

ASPECT = "manual"
MAIN = "main"
"""The aspect that holds a BERTopic model's main representation where that is not c-TF-IDF's."""
LABEL_COLUMNS = ("topic_id", "aspect", "label")
"""What :func:`held` reads."""
HERE = "set in this store"
"""The ``detail`` of names that were set here, and did not come from a site with its topics."""
WRITTEN = ("zeroshot", "llm")
"""Aspects whose label names a topic that nobody named by hand, in the order that they count in."""
ALIKE = 0.98
"""Cosine of reference vectors from which on two topics are one whose documents have changed. Of the pairs of topics that two fits
of one corpus over other partitions made, and that were each other's most similar ones by so much, all shared half of their
documents and more; topics of one fit are no more similar than .9; and half of a topic's documents at random are .98 like it."""
_LOOK_BACK = 20


def check(labels: Mapping[int, str] | Sequence[str], topic_ids: Sequence[int]) -> dict[int, str]:
    """Return names by topic, without space around them; an empty one is to be removed.

    Parameters
    ----------
    labels : mapping of int to str, or sequence of str
        A sequence has a name for every topic, in the order of ids, the outliers' first if there are outliers.
    topic_ids : sequence of int
        The topics there are, ascending.

    Raises
    ------
    RequestError
        A topic is unknown, or a name is no text, spans lines, holds control characters, or is too long.
    """
    if isinstance(labels, Mapping):
        given = [(_topic_id(topic, topic_ids), label) for topic, label in labels.items()]
    elif isinstance(labels, Sequence) and not isinstance(labels, (str, bytes)):
        if len(labels) != len(topic_ids):
            first = ", the outliers' first" if OUTLIER in topic_ids else ""
            raise RequestError(
                f"labels must hold a name for each of the {len(topic_ids)} topics in the order of their ids{first}. Got {len(labels)} "
                "instead. Name some of them with a dict: {topic id: name}."
            )
        given = list(zip(topic_ids, labels, strict=True))
    else:
        raise RequestError(f"labels must be a dict of topic ids and names, or a list of names. Got {type(labels).__name__} instead.")
    return {topic: _checked(topic, label) for topic, label in given}


def set_labels(store: Store, labels: Mapping[int, str] | Sequence[str], *, generation: int) -> Snapshot:
    """Write names of topics and return the generation that has them; names that are there already make no new one.

    Every other table stays as it is, and counts as what it was: a finished run that is started again does nothing.

    Parameters
    ----------
    store : Store
        Pinned to its newest generation by this function.
    labels : mapping or sequence
        See :func:`check`. Topics that are not named keep their names.
    generation : int
        The generation whose topics the ids mean.

    Raises
    ------
    RequestError
        See :func:`check`; nothing was written.
    StoreError
        The store is in use, or has a newer generation.
    """
    with store.lock("set_topic_labels"):
        base = store.pin()
        if base.generation != generation:
            raise StoreError(
                f"The store {store.uri!r} has moved on from generation {generation} to {base.generation}, where ids may mean other "
                "topics. Load it again, and look at its topics before you name them."
            )
        wanted = check(labels, sorted(store.read("topics", ["topic_id"])["topic_id"].to_pylist()))
        rows = store.read("topic_labels").to_pylist()
        before = held(rows)
        after = {topic: label for topic, label in (before | wanted).items() if label}
        if after == before:
            return base
        changed = {topic for topic in wanted if after.get(topic) != before.get(topic)}
        kept = [row for row in rows if row["aspect"] != ASPECT or row["topic_id"] not in changed]
        kept += [label_row(topic, after[topic]) for topic in sorted(changed) if topic in after]
        return rewrite(store, base, kept, changed)


def rewrite(
    store: Store, base: Snapshot, rows: Sequence[Mapping[str, Any]], changed: Collection[int], *, summary: Mapping[str, Any] | None = None
) -> Snapshot:
    """Write the rows of ``topic_labels``, rename the topics that they changed, and return the generation that has it all.

    A topic goes by the name that was given by hand, in advance, or by a language model, in that order, else by its keywords.
    Every other table stays as it is, and counts as what it was.

    Parameters
    ----------
    store : Store
        Pinned to ``base``, and locked.
    rows : sequence of mapping
        All of ``topic_labels``.
    changed : collection of int
        Topics whose rows are not those of ``base``. The others keep their names.
    summary : mapping, optional
        Added to the generation's.
    """
    topics = store.read("topics").sort_by("topic_id")
    given = names(rows)
    described = topics.to_pylist()
    for row in described:
        topic = row["topic_id"]
        if topic in changed:
            row["label"] = given.get(topic) or name(topic, row["keywords"] or [])
    leaves = _named_leaves(store, topics, {topic: given.get(topic, "") for topic in changed})
    stage = "merge" if is_merged(base) else "publish"
    contents = {
        "topics": pa.Table.from_pylist(described, schema=TABLES["topics"].schema),
        "site_topics": leaves,
        # last: it is asked whether there is anything to do, when a call that was killed is repeated
        "topic_labels": pa.Table.from_pylist(list(rows), schema=TABLES["topic_labels"].schema),
    }
    # the other tables as this generation has them: a run that never finished may have written since
    versions = dict(base.versions)
    for table, content in contents.items():
        versions[table] = store.amend(table, content, stage=stage, version=base.versions[table])
    return store.publish(configuration=base.configuration, summary={**base.summary, **(summary or {})}, versions=versions)


def held(rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return the hand-set names by topic, from the rows of ``topic_labels``."""
    return {row["topic_id"]: row["label"] for row in rows if row["aspect"] == ASPECT and row["label"]}


def names(rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return, by topic, the names that are more than keywords: given by hand, in advance, or by a language model, in that order."""
    return {**_written(rows), **held(rows)}


def written(store: Store) -> dict[str, str]:
    """Return the labels of a pinned store's leaves that no person gave it, each with the aspect that has it (:data:`WRITTEN`).

    Of leaves that came from elsewhere, an export or a merge says it in its generation's summary.
    """
    assert store.pinned is not None
    rows = store.read("topic_labels").to_pylist() if "topic_labels" in store.pinned.versions else []
    found: dict[str, str] = dict(store.pinned.summary.get("written", {}))
    for aspect in reversed(WRITTEN):
        found |= {row["label"]: aspect for row in rows if row["aspect"] == aspect and row["status"] == "ok" and row["label"]}
    by_hand = set(held(rows).values())
    return {label: aspect for label, aspect in found.items() if label not in by_hand}


def weighed(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the terms of a row of ``topic_labels`` with their weights, 1 where it has none; a row without terms has its label."""
    words = [word for word in row["terms"] or [row["label"]] if word]
    try:
        weights = [float(weight) for weight in json.loads(row["detail"])["weights"]]
    except (ValueError, KeyError, TypeError):  # a detail that tells something else
        weights = []
    return list(zip(words, weights if len(weights) == len(words) else [1.0] * len(words), strict=True))


def label_row(topic: int, label: str) -> dict[str, Any]:
    """Return the row of ``topic_labels`` for a name that was set here."""
    return {"topic_id": topic, "aspect": ASPECT, "label": label, "terms": [], "status": "ok", "detail": HERE}


@dataclass(frozen=True)
class Carried:
    """Names that were set by hand, for tables that are made again."""

    names: dict[int, str]
    """By new topic id; the outliers keep theirs."""
    alike: dict[int, float]
    """Those of these topics that are made of other documents than what was named, and their similarity to it."""
    gone: list[str]
    """Names of the newest generation that no new topic has."""


def carried(store: Store, keys: Sequence[str], vectors: Float32) -> Carried:
    """Return the names that topics had, for tables that are made again.

    A topic is known by what it is made of (``topic_key``). The newest generation that has it says what it is called, so
    that names come back with a topic that was gone for a while. A topic of the newest generation whose documents have changed
    since hands its name, or that it has none, to its successor: of the new topics, the most similar one, if of the earlier topics it
    is the most similar one in turn, and at least by :data:`ALIKE`. Only finished generations are read: killed and started again, a
    run carries over the same.

    Parameters
    ----------
    keys : sequence of str
        ``topic_key`` of the new topics, in the order of their ids from 0.
    vectors : float32 (len(keys), d)
        Their reference vectors, of length 1. Without any (d = 0), topics of other documents have no successor.
    """
    position = {"": OUTLIER} | {key: topic for topic, key in enumerate(keys)}
    names: dict[int, str] = {}
    changed: list[dict[str, Any]] = []
    new = set(keys)
    known: set[str] = set()
    looked: set[tuple[int, int]] = set()
    for number, snapshot in enumerate(reversed(store.snapshots())):
        versions = snapshot.versions.get("topics", -1), snapshot.versions.get("topic_labels", -1)
        if versions in looked or min(versions) < 0:
            continue
        if len(looked) == _LOOK_BACK:
            break
        looked.add(versions)
        try:
            columns = ["topic_id", "topic_key"] if number else ["topic_id", "topic_key", "reference_vector"]
            rows = store.read("topics", columns, version=versions[0]).to_pylist()
            labels = store.read("topic_labels", version=versions[1]).to_pylist()
        except (OSError, DeltaError, StoreError):
            if number == 0:
                raise  # the newest generation's files are there: to go on would lose the names
            break  # its files were cleaned away
        set_here = held([row for row in labels if row["detail"] == HERE])
        for row in rows:
            topic, key = row["topic_id"], row["topic_key"]
            if topic in set_here and key not in known and key in position:
                names[position[key]] = set_here[topic]
        if number == 0:
            changed = [row | {"name": set_here.get(row["topic_id"])} for row in rows if row["topic_key"] not in position]
            new -= {row["topic_key"] for row in rows}
        known |= {row["topic_key"] for row in rows}
    heirs = _heirs(changed, sorted(position[key] for key in new), vectors)
    alike: dict[int, float] = {}
    gone: list[str] = []
    for place, row in enumerate(changed):
        if place not in heirs:
            gone += [row["name"]] if row["name"] else []
            continue
        topic, similarity = heirs[place]
        names.pop(topic, None)  # the newest generation has the last word: an earlier one may have known these documents by another name
        if row["name"]:
            names[topic], alike[topic] = row["name"], similarity
    return Carried(names, alike, sorted(gone))


def _heirs(changed: Sequence[Mapping[str, Any]], new: Sequence[int], vectors: Float32) -> dict[int, tuple[int, float]]:
    """Return the successors of earlier topics, by their place in ``changed``: one of the ``new`` topics, and their similarity."""
    before = np.array([row["reference_vector"] for row in changed], np.float32)
    after = vectors[list(new)]
    if 0 in before.shape or before.shape[1:] != after.shape[1:] or not len(new):
        return {}
    (there, similarity), (back, _) = nearest(before, after), nearest(after, before)
    found = np.flatnonzero((back[there] == np.arange(len(before))) & (similarity >= ALIKE))
    return {int(place): (new[there[place]], float(similarity[place])) for place in found}


def relabelled(site_topics: pa.Table, names: Sequence[str | None]) -> pa.Table:
    """Return leaves with new labels, in place; None leaves one as it is."""
    before = site_topics["label"].to_pylist()
    labels = pa.array([old if new is None else new for old, new in zip(before, names, strict=True)], pa.string())
    return site_topics.set_column(site_topics.schema.get_field_index("label"), "label", labels)


def _named_leaves(store: Store, topics: pa.Table, names: Mapping[int, str]) -> pa.Table:
    return relabelled(store.read("site_topics"), [names.get(topic) for topic in topic_of_leaves(store, topics)])


def _written(rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Return the names that topics have without anyone's hand."""
    found = {(row["aspect"], row["topic_id"]): row["label"] for row in rows if row["status"] == "ok" and row["label"]}
    return {topic: found[aspect, topic] for aspect in reversed(WRITTEN) for kind, topic in found if kind == aspect}


def _topic_id(topic: Any, topic_ids: Sequence[int]) -> int:
    try:
        number = None if isinstance(topic, bool) else int(operator.index(topic))  # NumPy's integers too
    except TypeError:
        number = None
    if number is None or number not in set(topic_ids):
        held = f"{topic_ids[0]} to {topic_ids[-1]}" if topic_ids else "none"
        raise RequestError(f"labels must name topics of this model by their ids ({held}). Got {topic!r} instead.")
    return number


def _checked(topic: int, label: Any) -> str:
    if not isinstance(label, str):
        raise RequestError(f"The name of topic {topic} must be a text. Got {type(label).__name__} instead. An empty one removes a name.")
    text = label.strip(" ")
    bad = next((c for c in text if commands(c)), None)
    if bad is not None:
        raise RequestError(
            f"The name of topic {topic} must be one line without control characters. Got U+{ord(bad):04X} in {label[:60]!r} instead. "
            "Take it out."
        )
    if len(text) > LONGEST:
        raise RequestError(f"The name of topic {topic} must have at most {LONGEST} characters. Got {len(text)} instead: {text[:60]!r}...")
    return text
