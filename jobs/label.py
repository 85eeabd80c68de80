"""``topicscale label``: further descriptions of a store's topics, a language model's labels among them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.job import new_run_id, opened
from jobs.progress import Ui
from jobs.stages import represent as stage
from topicscale.config import Config, load
from topicscale.errors import RequestError, StoreError
from topicscale.store import Store

SECTIONS = ("represent", "llm", "ray", "spark")
"""Parts of the configuration that describing topics may change: the others say how the topics were made."""


def label(
    store: str | Path,
    *,
    aspect: str | None = None,
    topics: Collection[int] | None = None,
    only_unlabelled: bool = False,
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    ui: Ui | None = None,
    generation: int | None = None,
) -> dict[str, Any]:
    """Describe the topics of a store's newest generation, and return what became of them.

    Works on any store: one with documents, a merged one, an imported model (the last two have keywords alone to go by).
    Names that were given by hand stay. What is answered is kept at once: killed and started again, it goes on.

    Parameters
    ----------
    aspect : str, optional
        One aspect of ``represent.aspects``, or keybert, mmr, llm. None makes all of the configuration's, or these three.
    topics : collection of int, optional
        Only these.
    only_unlabelled : bool, default=False
        Leave out topics that have the aspect.
    file : str, optional
        A YAML file or preset with ``represent`` and ``llm``, over the store's own configuration.
    overrides : sequence of str
        ``llm.key=value`` and the like.
    values : mapping, optional
        The same as a mapping of sections.
    generation : int, optional
        The generation whose topics the ids mean; another one is refused.

    Raises
    ------
    RequestError
        A setting, topic or aspect is wrong, or the model cannot be had; nothing was started.
    StoreError
        The store holds no finished run, or is in use.
    JobFailed
        The model answered nothing at all.
    """
    ui = ui or Ui()
    began = time.monotonic()
    target = Store(store)
    base = target.pin()
    if generation not in (None, base.generation):
        raise StoreError(f"The store {target.uri!r} has moved on from generation {generation} to {base.generation}. Load it again.")
    config = configuration(base.configuration, file, overrides, values)
    aspects = stage.aspects_of(config, aspect)
    stage.check(config, aspects)
    run_id = new_run_id()
    target = Store(store)  # not pinned: what it writes to is the newest
    with target.lock(run_id), opened(target, config, run_id, ui, rows=0) as job:
        found = stage.represent(job, target.snapshots()[-1], aspects=aspects, only=topics, missing=only_unlabelled)
    return {
        "store": target.uri,
        "generation": found.snapshot.generation,
        "aspects": found.aspects,
        "topics": found.topics,
        "of": found.snapshot.summary["topics"],
        "labelled": found.labelled,
        "fallback": {str(topic): reason for topic, reason in sorted((found.fallback or {}).items())},
        "mean_reciprocal_rank": found.measures or {},
        "changed": found.snapshot.generation != base.generation,
        "seconds": round(time.monotonic() - began, 3),
    }


def configuration(
    held: Mapping[str, Any], file: str | Path | None, overrides: Sequence[str], values: Mapping[str, Any] | None = None
) -> Config:
    """Return a store's configuration with the parts changed that describing topics may change.

    Raises
    ------
    RequestError
        Another part is changed.
    """
    known = Config().to_dict()
    before = Config.from_dict({section: values for section, values in held.items() if section in known}).to_dict()
    config = load(base=before, file=file, values=values, overrides=overrides)
    for section, values in config.to_dict().items():
        changed = [key for key in values if values[key] != before[section][key]]
        if changed and section not in SECTIONS:
            raise RequestError(
                f"label can only change how topics are described ({', '.join(f'{s}.*' for s in SECTIONS)}). Got {section}.{changed[0]} "
                "instead. Give it to `topicscale run` or `update --refit`."
            )
    return config


def describe(found: Mapping[str, Any]) -> str:
    """Return what became of the topics, for people."""
    if not found["topics"] and not found["of"]:
        return f"Nothing to describe: all documents are outliers, the store has no topics -> {found['store']}"
    if not found["topics"]:
        return f"Nothing to describe: the topics have {', '.join(found['aspects'])} already -> {found['store']}"
    parts = [f"{found['topics']:,} topics described ({', '.join(found['aspects'])})"]
    if found["labelled"] or found["fallback"]:
        parts.append(f"{found['labelled']:,} named by the model, {len(found['fallback']):,} by their keywords")
    lines = [f"{'; '.join(parts)}, {found['seconds']:.0f} s -> {found['store']} (generation {found['generation']})"]
    if measures := found["mean_reciprocal_rank"]:
        lines.append(
            "How well labels find their own topic (mean reciprocal rank, 1 is best): "
            f"{measures['labels']:.3f}; first answers {measures['one_shot']:.3f}, three keywords {measures['keywords']:.3f}"
        )
    for reason in sorted(set(found["fallback"].values())):
        of = [topic for topic, why in found["fallback"].items() if why == reason]
        lines.append(f"Topics named by their keywords, {reason}: {', '.join(of[:20])}{' ...' if len(of) > 20 else ''}")
    return "\n".join(lines)
