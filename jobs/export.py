"""``topicscale export``: what a site may send away. Starts no engine.

What leaves, and what a recipient can learn from it, is told in docs/federation.md.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from topicscale import lease
from topicscale.errors import RequestError
from topicscale.ledger import Ledger, at_hand
from topicscale.outgoing import UNTOLD, Outgoing, own_leaves, topic_sizes
from topicscale.store import MARKER, Store, local_path

MIN_DOCUMENTS = 10
"""K, unless it is given."""


def export(store: str | Path, output: str | Path, *, min_documents: int = MIN_DOCUMENTS, site: str | None = None) -> dict[str, Any]:
    """Write a store's topics, and nothing of its documents, into a new store that ``topicscale merge`` reads.

    Parameters
    ----------
    output : str
        A new or empty folder.
    min_documents : int
        K: a term leaves with a topic if K of the topic's documents hold it, a topic if it has K documents.
    site : str, optional
        The name to go by; the store folder's by default.

    Returns
    -------
    dict
        What left. ``answered_with`` is the number of an earlier export whose content was given again, since fewer than K
        documents changed since; ``held_back`` counts topics whose older state was given again for the same reason. Both
        are for the site's own eyes: the output does not tell.

    Raises
    ------
    RequestError
        K is under 2 or under that of an earlier export; the output is not empty; the store has no documents of its own
        or every topic is under K; the model or term settings changed and fewer than K documents did.
    StoreError
        There is no finished run, the store is in use, or the record of earlier exports is damaged.
    """
    if min_documents < 2:
        raise RequestError(
            f"--min-document-frequency must be at least 2. Got {min_documents} instead: a term in one document tells of that document."
        )
    source, target = Store(store), local_path(str(output))
    name = source.name if site is None else site.strip()
    if not name:
        raise RequestError("--site must be a name. Got an empty one instead.")
    _check_vacant(target, source.files.path)
    with source.lock("export"), at_hand(source.files) as (folder, keep):
        snapshot = source.pin(exports=True)  # refused below, with what to do
        leaves = own_leaves(source)
        if not any(size >= min_documents for size in topic_sizes(leaves)):
            raise RequestError(
                f"Every topic of {source.uri!r} has fewer than {min_documents} documents, so nothing may leave. "
                "Run with a larger topics.min_size, or on more documents."
            )
        ledger = Ledger(folder)
        floor = max((entry.minimum for entry in ledger.entries), default=0)
        if min_documents < floor:
            raise RequestError(
                f"--min-document-frequency must be at least {floor}, that of an earlier export of this store. Got {min_documents} "
                "instead: what was promised then would not hold for both together."
            )
        making = Outgoing(source, snapshot, ledger, leaves, min_documents, name)
        entry, found = making.make()
        keep()
        lease.check(source.uri)
        _send(entry.store, target, source.site_id)
    return {"output": str(target), **found}


def describe(found: Mapping[str, Any]) -> str:
    """Return what left as text for a terminal."""
    k = found["min_documents"]
    lines = [
        f"{found['topics']:,} topics of {found['documents']:,} documents, {found['terms']:,} term counts (each of {k:,} documents or more) "
        f"-> {found['output']} (export {found['export']} of {found['site']}, generation {found['generation']})"
    ]
    if found["suppressed"] != UNTOLD:
        lines.append(f"Not in it: {found['suppressed']} documents, whose topics are under {k:,}.")
    if found["labels_left_out"]:
        lines.append(f"Left out: {found['labels_left_out']:,} labels with a word that few documents hold.")
    if found["answered_with"] is not None:
        lines.append(f"Too few documents changed since export {found['answered_with']}: its topics were given again, not today's.")
    if found["held_back"]:
        lines.append(f"{found['held_back']:,} topics changed by fewer than {k:,} documents and were given as they were exported before.")
    if found["holds_removed"]:
        lines.append("Among what was given again are sums over documents that the store no longer holds.")
    lines.append("What a recipient can learn from this: docs/federation.md. The record of it stays in the store's folder _exports.")
    return "\n".join(lines)


def _check_vacant(target: Path, source: Path | None) -> None:
    if source is not None and (target == source or target in source.parents or source in target.parents):
        raise RequestError(f"--output must be a folder outside the store. Got {str(target)!r} instead.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RequestError(f"--output must be a new or empty folder. {str(target)!r} is not empty. Name another.")


def _send(made: Path, target: Path, site_id: str) -> None:
    """Copy a recorded export to where it leaves from: under another name, its marker last, then renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # one name for one store, whose lock is held: what a killed export left is overwritten
    partial = target.parent / f".{target.name}.{site_id[:8]}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(made, partial, ignore=shutil.ignore_patterns(MARKER))
        shutil.copy2(made / MARKER, partial / MARKER)
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
