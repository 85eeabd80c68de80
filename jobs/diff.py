"""`topicscale diff`: what changed between two generations of a store, or between two stores. Starts no engine."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from deltalake.exceptions import DeltaError

from topicscale.diff import KINDS, MIN_CHANGE, compare
from topicscale.errors import RequestError, StoreError
from topicscale.overlap import SHARED, Flows, Side, count, hashes
from topicscale.store import Snapshot, Store, is_store
from topicscale.tables import OUTLIER

HELD = 8_000_000
"""Documents held in memory at a time: about 350 MB. Twice as many are read twice."""
PROBED = 5000
"""About how many documents are looked at to tell whether equal ids mean equal documents."""
TOPICS = ["topic_id", "topic_key", "size", "reference_vector", "label", "keywords"]
WORDS, LISTED = 5, 10
"""Keywords shown of a topic, and ids that changed hands, on a terminal."""


@dataclass(frozen=True)
class _End:
    """One side as it is stored."""

    store: Store
    snapshot: Snapshot
    side: Side
    spaces: frozenset[str]
    model: str


def parse(target: str) -> tuple[str, int | None]:
    """Return the store and the generation (None: the newest) of ``STORE[@GENERATION]``.

    A path may hold an ``@``: only digits after the last one are a generation, and a store of the whole name comes first
    (``mail@2`` is that store if there is one, and ``mail@2@1`` its first generation).

    Raises
    ------
    RequestError
        What follows the last ``@`` of a store that exists is no number.
    """
    store, at, generation = target.rpartition("@")
    if not at or not store or _is_store(target):
        return target, None
    if re.fullmatch(r"[0-9]+", generation):
        return store, int(generation)
    if _is_store(store):
        raise RequestError(f"The generation after @ must be a number. Got {generation!r} in {target!r} instead: for example {store}@1.")
    return target, None


def diff(before: str, after: str, *, min_change: float = MIN_CHANGE) -> dict[str, Any]:
    """Return what changed from one side to the other.

    Parameters
    ----------
    before, after : str
        ``STORE`` or ``STORE@GENERATION``.
    min_change : float, default=.1
        A topic has grown when its size and its share of all documents are both larger by this fraction.

    Raises
    ------
    RequestError
        An option is wrong, or the sides share neither documents nor an embedding space.
    StoreError
        A store or a generation is not there.
    """
    if not (math.isfinite(min_change) and min_change >= 0):
        raise RequestError(f"--min-change must be a number from 0 up. Got {min_change} instead.")
    one, other = _open(before), _open(after)
    try:
        flows, ids_differ = _flows(one, other)
    except DeltaError as error:
        raise _removed(error) from error
    one_space = len(one.spaces | other.spaces) == 1 and _same_width(one.side, other.side)
    if flows is None and not one_space and len(one.side.ids) and len(other.side.ids):
        raise RequestError(
            f"The two sides must share documents or an embedding model. Fewer than {SHARED:.0%} of the documents of the smaller side are "
            f"on both, and {_title(one)} has vectors of {_vectors(one)}, {_title(other)} of {_vectors(other)}. "
            "Compare stores of one model, or run one of them again with the other's: --set embedding.model=..."
        )
    found = compare(one.side, other.side, flows, min_change=min_change, one_space=one_space or flows is None)
    counts = Counter(change.kind for change in found.changes)
    return {
        "from": _about(one),
        "to": _about(other),
        "matched_by": "vectors" if flows is None else "documents",
        "same_ids_other_texts": ids_differ,
        "shared_documents": found.shared,
        "new_documents": None if flows is None else other.side.documents - flows.total,
        "removed_documents": None if flows is None else one.side.documents - flows.total,
        "reassigned_documents": found.reassigned,
        "min_change": min_change,
        "changed": found.changed,
        "counts": {kind: counts[kind] for kind in KINDS},
        "changes": [
            {
                "kind": change.kind,
                "before": [_topic(one.side, topic) for topic in change.before],
                "after": [_topic(other.side, topic) for topic in change.after],
                "size_before": change.size_before,
                "size_after": change.size_after,
                "share_before": round(change.share_before, 6),
                "share_after": round(change.share_after, 6),
                "overlap": None if change.overlap is None else round(change.overlap, 6),
                "similarity": change.similarity,
                "renamed": change.renamed,
                "keywords_gained": list(change.keywords_gained),
                "keywords_lost": list(change.keywords_lost),
                "flows": [{"from": flow.before, "to": flow.after, "documents": flow.documents} for flow in change.flows],
            }
            for change in found.changes
        ],
        "outliers": dataclasses.asdict(found.outliers),
        "moved_ids": [{"topic_id": m.topic_id, "now": list(m.now), "was": list(m.was)} for m in found.moved],
    }


def describe(found: dict[str, Any]) -> str:
    """Return the changes as text for a terminal. Topics that stayed the same are counted, not listed."""
    lines = [_headline(name, found[name]) for name in ("from", "to")]
    if found["matched_by"] == "documents":
        lines.append(
            f"Topics matched by {found['shared_documents']:,} documents on both sides; {found['new_documents']:,} are new, "
            f"{found['removed_documents']:,} removed, {found['reassigned_documents']:,} in another topic."
        )
    else:
        why = "the same ids name other texts" if found["same_ids_other_texts"] else "too few documents are on both sides"
        lines.append(f"Topics matched by similarity of their reference vectors: {why}.")
    if not found["changed"]:
        return "\n".join([*lines, "", f"Nothing changed: {found['to']['topics']:,} topics, {found['to']['documents']:,} documents."])
    lines += ["", ", ".join(f"{number:,} {kind}" for kind, number in found["counts"].items())]
    rows = [_row(change) for kind in KINDS[:-1] for change in found["changes"] if change["kind"] == kind]
    if rows:
        titles = ("change", "topic", "documents", "share", "keywords")
        widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(4)]
        lines.append("")
        lines += ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in [titles, *rows]]
    outliers = found["outliers"]
    told = f"Outliers: {outliers['before']:,} -> {outliers['after']:,}"
    if outliers["stayed"] is not None:
        told += f"; {outliers['left']:,} found a topic, {outliers['joined']:,} lost theirs, {outliers['new']:,} are new"
    lines += ["", told + "."]
    if found["moved_ids"]:
        lines.append("Ids that mean another topic now (ids stay through `update`, not through a run of its own):")
        for moved in found["moved_ids"][:LISTED]:
            was = f"is what was {_ids(moved['was'])}" if moved["was"] else "is new"
            now = f"is {_ids(moved['now'])}" if moved["now"] else "is gone"
            lines.append(f"  {moved['topic_id']}: {was}; what it was {now}")
        if len(found["moved_ids"]) > LISTED:
            lines.append(f"  and {len(found['moved_ids']) - LISTED:,} more (--json lists them)")
    return "\n".join(lines)


def _open(target: str) -> _End:
    uri, generation = parse(target)
    store = Store(uri)
    snapshot = store.pin(generation)
    try:
        topics = store.read("topics", TOPICS)
        sites = store.read("site_topics", ["embedding_space", "embedding_model"]) if "site_topics" in snapshot.versions else None
    except DeltaError as error:
        raise _removed(error) from error
    spaces, models = (
        sorted({str(value) for value in (sites[column].to_pylist() if sites is not None else []) if value})
        for column in ("embedding_space", "embedding_model")
    )
    spaces = spaces or [str(snapshot.summary.get("space", ""))]
    models = models or [str(snapshot.summary.get("model", "unknown"))]
    return _End(store, snapshot, Side.of(topics), frozenset(spaces), " and ".join(models))


def _flows(one: _End, other: _End) -> tuple[Flows | None, bool]:
    """Return the flows of shared documents, None when too few are shared, and whether that is since equal ids mean other documents."""
    smaller = min(one.side.documents, other.side.documents)
    if not all("assignments" in end.snapshot.versions for end in (one, other)) or not smaller:
        return None, False
    sides = [lambda end=end: end.store.read_batches("assignments", ["doc_id", "topic_id"]) for end in (one, other)]
    flows = count(*sides, passes=max(1, math.ceil(one.side.documents / HELD)))
    if flows.total < max(SHARED * smaller, 1):
        return None, False
    return (flows, False) if _same_texts(one, other) else (None, True)


def _same_texts(one: _End, other: _End) -> bool:
    """Return whether equal ids mean equal documents: row numbers as ids are the same in any two files."""
    if not all("documents" in end.snapshot.versions for end in (one, other)):
        return True  # nothing says otherwise
    every = max(1, min(one.side.documents, other.side.documents) // PROBED)
    texts: list[dict[int, str]] = []
    for end in (one, other):
        probed: dict[int, str] = {}
        for batch in end.store.read_batches("documents", ["doc_id", "text_hash"]):
            ids = hashes(batch.column("doc_id"))
            here = ids % every == 0
            kept = batch.column("text_hash").filter(pa.array(here)).to_pylist()
            probed.update(zip(ids[here].tolist(), kept, strict=True))
        texts.append(probed)
    both = texts[0].keys() & texts[1].keys()
    return not both or sum(texts[0][key] == texts[1][key] for key in both) >= SHARED * len(both)


def _same_width(one: Side, other: Side) -> bool:
    return bool(one.vectors.shape[1] == other.vectors.shape[1] > 0)


def _is_store(path: str) -> bool:
    try:
        return is_store(path)
    except (RequestError, OSError):
        return False


def _removed(error: Exception) -> StoreError:
    return StoreError(
        "Files of an older generation were removed (by `forget`, a vacuum, or Delta's own clearing of logs older than a month). "
        f"Name a newer one. What was missing: {error}"
    )


def _about(end: _End) -> dict[str, Any]:
    return {
        "store": end.store.uri,
        "generation": end.snapshot.generation,
        "at": None if end.snapshot.at is None else end.snapshot.at.isoformat(),
        "documents": end.side.documents,
        "topics": len(end.side.ids),
        "outliers": end.side.outliers,
        "embedding_model": end.model,
    }


def _title(end: _End) -> str:
    return f"generation {end.snapshot.generation} of {end.store.uri!r}"


def _vectors(end: _End) -> str:
    width = end.side.vectors.shape[1]
    return f"{end.model} ({width} dimensions, space {', '.join(sorted(end.spaces))[:40] or 'unknown'})"


def _topic(side: Side, topic: int) -> dict[str, Any]:
    i = int(side.ids.searchsorted(topic))
    return {"topic_id": topic, "label": side.labels[i], "size": int(side.sizes[i]), "keywords": list(side.keywords[i])}


def _headline(name: str, about: dict[str, Any]) -> str:
    share = about["outliers"] / max(about["documents"], 1)
    day = about["at"][:10] if about["at"] else "at an unknown time"
    return (
        f"{name:<5} {about['store']} generation {about['generation']}, {day}: "
        f"{about['documents']:,} documents, {about['topics']:,} topics, {share:.1%} outliers"
    )


def _row(change: dict[str, Any]) -> tuple[str, str, str, str, str]:
    before, after = ([topic["topic_id"] for topic in change[side]] for side in ("before", "after"))
    ids = str(before[0]) if before == after else f"{_ids(before) if before else ''} -> {_ids(after) if after else ''}".strip()
    size, later = change["size_before"], change["size_after"]
    sizes = f"{size:,} -> {later:,}"
    if size and later and change["kind"] in ("grown", "shrunk"):
        sizes += f" ({(later - size) / size:+.0%})"
    return change["kind"], ids, sizes, f"{change['share_before']:.1%} -> {change['share_after']:.1%}", _words(change)


def _words(change: dict[str, Any]) -> str:
    topics = change["after"] or change["before"]
    told = " | ".join(", ".join(topic["keywords"][:WORDS]) or topic["label"] or "-" for topic in topics[:3])
    gained, lost = change["keywords_gained"][:WORDS], change["keywords_lost"][:WORDS]
    if change["kind"] in ("grown", "shrunk", "renamed") and (gained or lost):
        told += f"  ({' '.join([*(f'+{word}' for word in gained), *(f'-{word}' for word in lost)])})"
    if change["renamed"] and change["before"][0]["label"] != change["after"][0]["label"]:
        told += f"  [{change['before'][0]['label']} -> {change['after'][0]['label']}]"
    if change["kind"] in ("found", "gone") and change["flows"]:
        total = max(change["size_before"], change["size_after"], 1)
        way = "from" if change["kind"] == "found" else "to"
        places = (f"{_place(flow[way])} {flow['documents'] / total:.0%}" for flow in change["flows"])
        told += f"  ({way} {', '.join(places)})"
    return told


def _place(topic: int | str) -> str:
    return "outliers" if topic == OUTLIER else f"topic {topic}" if isinstance(topic, int) else f"{topic} documents"


def _ids(topics: list[int]) -> str:
    return ", ".join(str(topic) for topic in topics)
