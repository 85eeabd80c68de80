"""One export on its way: what a store holds, what left it before, and so what leaves now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from topicscale import export as core
from topicscale.config import fingerprint
from topicscale.differencing import Members, alone, changed, settle, too_close
from topicscale.errors import RequestError, StoreError
from topicscale.labels import written
from topicscale.ledger import Entry, Ledger
from topicscale.store import Snapshot, Store
from topicscale.tables import LOGS, TABLES

UNTOLD = "not told"
"""How many documents an export left out, where that is not known under its K."""


class Outgoing:
    """One export on its way. The store is pinned, and its lock held.

    Parameters
    ----------
    leaves : Table
        The store's ``site_topics``.
    minimum : int
        K.
    site : str
        The name that leaves.
    """

    def __init__(self, source: Store, snapshot: Snapshot, ledger: Ledger, leaves: pa.Table, minimum: int, site: str) -> None:
        self.source, self.snapshot, self.ledger, self.leaves = source, snapshot, ledger, leaves
        self.minimum, self.site = minimum, site
        held = _held(source, ledger, given=snapshot.given_vectors)
        self.documents = Members(held.documents, held.texts, np.zeros(len(held.documents), np.int64))
        self.members = self._members(held)

    def _members(self, held: Members) -> Members:
        """Return which documents each leaf sums; leaves whose documents are not known for sure have none."""
        topics, counts = np.unique(held.leaves, return_counts=True)
        sizes = dict(zip(topics.tolist(), counts.tolist(), strict=True))
        terms = self.source.read_batches("topic_terms", ["topic_id", "term", "count", "documents"])
        try:
            found = core.topics_of(self.leaves, sizes, terms)
        except ValueError as error:
            raise StoreError(f"The tables of {self.source.uri!r} do not fit together: {error} Run the job again.") from error
        leaf = {topic: row for row, topic in enumerate(found) if topic is not None}
        rows = np.array([leaf.get(topic, -1) for topic in topics.tolist()], np.int64)[np.searchsorted(topics, held.leaves)]
        known = rows >= 0
        return replace(held.taken(known), leaves=rows[known])

    def make(self) -> tuple[Entry, dict[str, Any]]:
        """Write the export into the ledger and return its entry, and what is told of it."""
        earlier = next((e for e in reversed(self.ledger.entries) if changed(e.documents(), self.documents) < self.minimum), None)
        if earlier is not None:
            return self._again(earlier)
        sizes = self.leaves["size"].to_pylist()
        candidates = [leaf for leaf in np.unique(self.members.leaves).tolist() if sizes[leaf] >= self.minimum]
        new = _renumbered(self.members, candidates)
        history = _History(self.ledger.entries)
        stale = settle(new, history, self.minimum, leaves=len(candidates))
        fresh = [leaf for i, leaf in enumerate(candidates) if i not in stale.withheld]
        if not fresh and self.ledger.entries:
            return self._again(self.ledger.entries[-1])
        parts, own = [self.leaves.take(fresh)], _renumbered(self.members, fresh)
        keys = core.content_keys(parts[0])
        again: list[tuple[int, int]] = []
        for index, leaf in stale.instead:
            entry = self.ledger.entries[index]
            old = _leaves_of(entry)
            key = entry.keys[leaf]
            if key in keys or not self._comparable(old) or self._size(old, key) < self.minimum:
                continue
            together = self._given_again(own, len(fresh), [*again, (index, leaf)], history)
            if alone(together, leaves=len(keys) + 1).min() < self.minimum:
                continue  # it says again what is said already
            again.append((index, leaf))
            keys.append(key)
        again = self._apart(own, len(fresh), again, history)
        inside = self._given_again(own, len(fresh), again, history)
        keys = keys[: len(fresh)] + [self.ledger.entries[index].keys[leaf] for index, leaf in again]
        for (index, _), key in zip(again, keys[len(fresh) :], strict=True):
            old = _leaves_of(self.ledger.entries[index])
            parts.append(old.filter(pa.array([k == key for k in core.content_keys(old)])))
        released = self._finish(pa.concat_tables(parts))
        if not topic_sizes(released):
            raise RequestError(f"No topic of {self.source.uri!r} can be told apart from the others by its terms, so nothing may leave.")
        told = core.pilots(self.source.read("pilots"), released, self.minimum)
        suppressed = core.coarse(len(np.setdiff1d(self.documents.documents, inside.documents)), self.minimum)
        summary = self._summary(released, suppressed, [self.ledger.entries[index] for index, _ in again])
        self._write(released, told, summary, generation=self.snapshot.generation)
        entry = self._record(released, keys, inside, self.documents, self.snapshot.generation)
        removed = bool(len(np.setdiff1d(inside.documents, self.documents.documents)))
        return entry, self._found(entry, released, suppressed, held_back=len(again), answered=None, holds_removed=removed)

    @staticmethod
    def _given_again(own: Members, number: int, again: Sequence[tuple[int, int]], history: Sequence[Members]) -> Members:
        """Return the documents of the own leaves and of the old ones (release, leaf) that are given again, numbered in this order."""
        return _together([own, *(_renumbered(history[i], [leaf], first=number + n) for n, (i, leaf) in enumerate(again))])

    def _apart(self, own: Members, number: int, again: list[tuple[int, int]], history: Sequence[Members]) -> list[tuple[int, int]]:
        """Return those old leaves that, given again beside the own ones, set no small group apart from any earlier export."""
        while again:
            together = self._given_again(own, number, again, history)
            for earlier in history:
                if close := too_close(together, earlier, self.minimum, leaves=number + len(again)):
                    # the own leaves alone are far enough from each: what comes too close does so by what is given again
                    given = {leaf - number for leaf in close if leaf >= number} or set(range(len(again)))
                    again = [one for n, one in enumerate(again) if n not in given]
                    break
            else:
                break
        return again

    def _again(self, earlier: Entry) -> tuple[Entry, dict[str, Any]]:
        """Answer with an earlier export: its leaves under today's names and K. What is the same to the row is not made anew."""
        old = _leaves_of(earlier)
        if not self._comparable(old):
            raise RequestError(
                f"Too few documents changed since export {earlier.number} of this store, and the embedding model or the term settings are "
                "others: both exports together would tell of single documents. Wait for more documents, or "
                "export under the earlier settings."
            )
        own = core.content_keys(self.leaves)
        present = dict(zip(own, self.leaves["label"].to_pylist(), strict=True))
        keys = core.content_keys(old)
        # the same leaves to the bit: then only names may have changed
        same = set(keys) == {key for key, size in zip(own, self.leaves["size"].to_pylist(), strict=True) if size >= earlier.minimum}
        names = [present.get(key, label) for key, label in zip(keys, old["label"].to_pylist(), strict=True)]
        generation = self.snapshot.generation if same else earlier.generation
        relabelled = old.set_column(old.schema.get_field_index("label"), "label", pa.array(names, pa.string()))
        released = self._finish(relabelled, generation=generation)
        if not any(size >= self.minimum for size in topic_sizes(released)):
            raise RequestError(
                f"Every topic of export {earlier.number}, since which fewer than {self.minimum} documents changed, has fewer documents "
                "than that. Nothing may leave."
            )
        store = Store(earlier.store)
        before = store.pin(exports=True)
        suppressed = str(before.summary["export"]["suppressed"]) if self.minimum == earlier.minimum else UNTOLD
        members = earlier.members()
        removed = bool(len(np.setdiff1d(members.documents, self.documents.documents)))
        told: dict[str, Any] = {"held_back": 0, "answered": earlier.number, "holds_removed": removed}
        summary = self._summary(released, suppressed, [earlier])
        alike = released.equals(old) and summary["written"] == before.summary.get("written", {})
        if (generation, self.minimum, self.site) == (earlier.generation, earlier.minimum, earlier.site) and alike:
            return earlier, self._found(earlier, released, suppressed, **told)
        left = set(core.content_keys(released))
        kept = [leaf for leaf, key in enumerate(earlier.keys) if key in left]
        pilots = core.pilots(store.read("pilots"), released, self.minimum)
        self._write(released, pilots, summary, generation=generation)
        # what it was made from are the earlier one's documents: otherwise few a day would never become K
        entry = self._record(released, [earlier.keys[i] for i in kept], _renumbered(members, kept), earlier.documents(), generation)
        return entry, self._found(entry, released, suppressed, **told)

    def _comparable(self, old: pa.Table) -> bool:
        return all(set(old[c].to_pylist()) <= set(self.leaves[c].to_pylist()) for c in ("embedding_space", "vocabulary"))

    @staticmethod
    def _size(leaves: pa.Table, key: str) -> int:
        sizes: dict[str, int] = dict(zip(core.content_keys(leaves), leaves["size"].to_pylist(), strict=True))
        return sizes[key]

    def _finish(self, leaves: pa.Table, *, generation: int | None = None) -> pa.Table:
        """Return the rows that leave."""
        released = core.release(leaves, self.minimum)

        def documents_with(words: Sequence[str]) -> dict[str, tuple[int, int]]:
            return core.count_words(self.source.read_batches("documents", ["text"]), words)

        told = core.labels(released, self.leaves, self.minimum, documents_with)
        released = released.set_column(released.schema.get_field_index("label"), "label", pa.array(told, pa.string()))
        number = self.snapshot.generation if generation is None else generation
        return core.named(released, site=self.site, site_id=self.source.site_id, generation=number).cast(released.schema)

    def _summary(self, released: pa.Table, suppressed: str, again: Sequence[Entry]) -> dict[str, Any]:
        """Return what an export tells of itself; ``again``: the exports of which leaves are given again, with the labels that they had."""
        sizes = topic_sizes(released)
        total = sum(released["size"].to_pylist())
        told: dict[str, str] = {}
        for entry in again:
            told |= Store(entry.store).pin(exports=True).summary.get("written", {})
        today = set(self.leaves["label"].to_pylist())
        told = {label: aspect for label, aspect in told.items() if label not in today} | written(self.source)
        labels = set(released["label"].to_pylist())
        return {
            "documents": total,
            "partitions": 0,
            "topics": len(sizes),
            "outliers": total - sum(sizes),
            "space": released["embedding_space"][0].as_py(),
            "model": released["embedding_model"][0].as_py(),
            # what a person named has more weight in a merge
            "written": {label: aspect for label, aspect in sorted(told.items()) if label in labels},
            "export": {"min_documents": int(released["min_documents"][0].as_py()), "suppressed": suppressed},
        }

    def _write(self, released: pa.Table, pilots: pa.Table, summary: Mapping[str, Any], *, generation: int) -> None:
        """Write the store that leaves into the ledger's partial folder."""
        out = Store(self.ledger.begin(), create=True, site_id=self.source.site_id)
        fp = fingerprint("export", generation)
        out.replace("site_topics", released, stage="export", unit_fingerprint=fp)
        told = core.named(pilots, site=self.site, site_id=self.source.site_id, generation=generation)
        out.replace("pilots", told, stage="export", unit_fingerprint=fp)
        row = {
            "generation": generation,
            "versions": json.dumps({table: out.version(table) for table in TABLES if table not in LOGS and out.has(table)}),
            "configuration": json.dumps(core.configuration(self.snapshot.configuration, released)),
            "summary": json.dumps(summary),
            "at": datetime.now(UTC),
        }
        rows = pa.Table.from_pylist([row], schema=TABLES["generations"].schema)
        out.replace("generations", rows, stage="generation", unit_fingerprint=fp)
        for log in sorted(out.path.glob("*/_delta_log/*.json")):
            _plain(log)

    def _record(self, released: pa.Table, keys: Sequence[str], members: Members, documents: Members, generation: int) -> Entry:
        assert set(core.content_keys(released)) == set(keys), "the ledger must name exactly what leaves"
        return self.ledger.record(
            documents=documents, members=members, keys=keys, generation=generation, minimum=self.minimum, site=self.site
        )

    def _found(
        self, entry: Entry, released: pa.Table, suppressed: str, *, held_back: int, answered: int | None, holds_removed: bool
    ) -> dict[str, Any]:
        present = dict(zip(core.content_keys(self.leaves), self.leaves["label"].to_pylist(), strict=True))
        wanted = [present.get(key, "") for key in core.content_keys(released)]
        kept = released["label"].to_pylist()
        return {
            "site": self.site,
            "site_id": self.source.site_id,
            "export": entry.number,
            "generation": released["generation"][0].as_py(),
            "min_documents": int(released["min_documents"][0].as_py()),
            "topics": len(topic_sizes(released)),
            "documents": sum(released["size"].to_pylist()),
            "terms": sum(len(terms) for terms in released["term_counts"].to_pylist()),
            "suppressed": suppressed,
            "labels": sum(bool(label) for label in kept),
            "labels_left_out": sum(bool(label) and not k for label, k in zip(wanted, kept, strict=True)),
            "held_back": held_back,
            "answered_with": answered,
            "holds_removed": holds_removed,
        }


class _History(Sequence[Members]):
    """The members of earlier exports, read when they are asked for: all at once, memory would grow with their number."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries
        self._held: tuple[int, Members] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: Any) -> Any:
        if self._held is None or self._held[0] != index:
            self._held = index, self._entries[index].members()
        return self._held[1]


def own_leaves(source: Store) -> pa.Table:
    """Return the leaves of a store's own documents.

    Raises
    ------
    RequestError
        It holds none, or others'.
    """
    leaves = source.read("site_topics")
    if leaves.num_rows == 0:
        raise RequestError(f"The store {source.uri!r} holds no topics, so nothing may leave.")
    if any(leaves["site_id"].to_pylist()) or not source.has("documents"):
        raise RequestError(
            f"Only the topics of a store's own documents can be exported. {source.uri!r} holds topics that came from elsewhere "
            "(a merge, an export or an import). Export where the documents are."
        )
    return leaves


def _leaves_of(entry: Entry) -> pa.Table:
    store = Store(entry.store)
    store.pin(exports=True)
    return store.read("site_topics")


def topic_sizes(leaves: pa.Table) -> list[int]:
    """Return the sizes of topics without the outliers."""
    return [s for s, key in zip(leaves["size"].to_pylist(), leaves["topic_key"].to_pylist(), strict=True) if key != core.OUTLIERS]


def _held(source: Store, ledger: Ledger, *, given: bool) -> Members:
    """Return every assigned document with its topic, by keyed hashes: 24 bytes a document, whatever the texts.

    ``given``: vectors came with the documents, in their column ``embedding``. Those have a hash of their own.
    """
    ids, topics = [], []
    for batch in source.read_batches("assignments", ["doc_id", "topic_id"]):
        ids.append(ledger.hashes(batch.column("doc_id").to_pylist()))
        topics.append(batch.column("topic_id").to_numpy(zero_copy_only=False).astype(np.int64))
    known, texts, vectors = [], [], []
    for batch in source.read_batches("documents", ["doc_id", "text_hash", *(["embedding"] if given else [])]):
        known.append(ledger.hashes(batch.column("doc_id").to_pylist()))
        told = batch.column("text_hash").to_pylist()
        texts.append(ledger.hashes(told))
        if given:
            digests = _digests(batch.column("embedding"))
            vectors.append(ledger.hashes(f"{text} {vector}" for text, vector in zip(told, digests, strict=True)))
    if not ids or not known:
        raise RequestError(f"The store {source.uri!r} holds no documents, so it cannot be told what may leave.")
    document, all_known, all_texts = np.concatenate(ids), np.concatenate(known), np.concatenate(texts)
    order = np.argsort(all_known, kind="stable")
    place = np.minimum(np.searchsorted(all_known[order], document), len(order) - 1)
    if not (all_known[order][place] == document).all():
        raise StoreError(f"The tables of {source.uri!r} do not fit together: a document with a topic has no text. Run the job again.")
    all_vectors = np.concatenate(vectors)[order][place] if given else None
    return Members(document, all_texts[order][place], np.concatenate(topics), all_vectors)


def _digests(vectors: pa.ListArray) -> list[str]:
    values, ends = vectors.values.to_numpy(zero_copy_only=False), vectors.offsets.to_numpy()
    return [hashlib.sha256(values[a:b].tobytes()).hexdigest() for a, b in pairwise(ends)]


def _renumbered(members: Members, leaves: Sequence[int], *, first: int = 0) -> Members:
    """Return the rows of some leaves, ascending, numbered from ``first`` on."""
    rows = members.of(leaves)
    return replace(rows, leaves=np.searchsorted(np.asarray(leaves, np.int64), rows.leaves) + first)


def _together(parts: Sequence[Members]) -> Members:
    documents, texts, leaves = (np.concatenate([getattr(part, name) for part in parts]) for name in ("documents", "texts", "leaves"))
    vectors = [part.vectors for part in parts if part.vectors is not None]
    return Members(documents, texts, leaves, np.concatenate(vectors) if len(vectors) == len(parts) else None)


def _plain(log: Path) -> None:
    """Leave out of a commit what Delta notes for the curious: it names the folder that a table was made in."""
    actions = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    for action in actions:
        if "commitInfo" in action:
            action["commitInfo"] = {key: action["commitInfo"][key] for key in ("timestamp", "operation") if key in action["commitInfo"]}
    log.write_text("".join(json.dumps(action) + "\n" for action in actions), encoding="utf-8")
