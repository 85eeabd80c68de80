"""After publishing: further descriptions of every topic, a language model's labels among them (Ray)."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.job import Job
from jobs.stages import asking, naming
from ray_actors.pool import Unit
from ray_actors.refine import Nearest, by_partition, nearer
from topicscale import labels
from topicscale.config import Config
from topicscale.errors import RequestError
from topicscale.represent import steps
from topicscale.represent.mmr import mmr
from topicscale.represent.steps import LLM, Step, parse
from topicscale.represent.view import Float32, View
from topicscale.store import Snapshot, Store
from topicscale.tables import OUTLIER
from topicscale.terms import KEYWORDS, top_terms

LONGEST, CHARACTERS = 20_000, 40
"""Characters of a document that steps see: at most, and for each unit of ``llm.doc_length``."""
TERMS = 100
"""Terms of a topic that steps choose from, where none of them asks for more."""
ALONE: dict[str, Any] = {"keybert": "keybert", "mmr": "mmr", "llm": "llm"}
"""What `topicscale label` makes where the configuration names no aspects."""


@dataclass(frozen=True)
class Outcome:
    """What became of the topics' descriptions."""

    snapshot: Snapshot
    aspects: list[str]
    topics: int
    """Topics that were described."""
    labelled: int = 0
    """Topics that a language model named."""
    fallback: dict[int, str] | None = None
    """Topic -> why it has its keywords for a name."""
    measures: dict[str, float] | None = None
    """Mean reciprocal ranks (see :mod:`topicscale.llm.retrieve`)."""


def check(config: Config, aspects: Mapping[str, Sequence[Step]]) -> None:
    """Raise what can be known to fail before anything is started."""
    steps.check(aspects)
    if any(step.type == "keybert" for chain in aspects.values() for step in chain) and not asking.comparable(config):
        raise RequestError(
            "keybert compares words with the documents' vectors, which came with the documents (input.embedding_column): by which model is "
            "not known. Take mmr or llm."
        )
    if _asks_model(aspects):
        asking.check(config.llm)


def configured(job: Job, base: Snapshot, published: str) -> Snapshot:
    """Make the aspects that the configuration names, and return the generation that has them.

    Parameters
    ----------
    published : str
        Fingerprint of all that describes the topics so far.
    """
    aspects = parse(job.config.represent.aspects)
    if not aspects:
        return base
    fp = job.print_of("represent", published, *parts_of(job.config))
    if base.summary.get("represented") == fp:
        return base
    return represent(job, base, aspects=aspects, summary={"represented": fp}).snapshot


def parts_of(config: Config) -> tuple[Any, ...]:
    """Return what aspects add to the fingerprint of a generation: nothing where there are none."""
    aspects = parse(config.represent.aspects)
    return (config.represent, config.llm if _asks_model(aspects) else None) if aspects else ()


def _asks_model(aspects: Mapping[str, Sequence[Step]]) -> bool:
    return any(step.type == LLM for chain in aspects.values() for step in chain)


def represent(
    job: Job,
    base: Snapshot,
    *,
    aspects: Mapping[str, Sequence[Step]],
    only: Collection[int] | None = None,
    missing: bool = False,
    summary: Mapping[str, Any] | None = None,
) -> Outcome:
    """Describe the topics of a generation and return the one that has the descriptions; what is there already makes no new one.

    Parameters
    ----------
    aspects : mapping
        See :func:`topicscale.represent.steps.parse`.
    only : collection of int, optional
        Describe these topics alone.
    missing : bool, default=False
        Leave out topics that have the aspect already.
    summary : mapping, optional
        Added to the summary of the generation.

    Raises
    ------
    RequestError
        A topic is unknown.
    JobFailed
        No topic could be described, or documents could not be read.
    """
    began = time.monotonic()
    store = Store(job.store.uri)
    store.pin(base.generation)
    rows = store.read("topics").sort_by("topic_id").to_pylist()
    held = store.read("topic_labels").to_pylist()
    there = {(row["topic_id"], row["aspect"]) for row in held if row["status"] == "ok"}
    known = [row["topic_id"] for row in rows if row["topic_id"] != OUTLIER]
    if unknown := sorted(set(only or ()) - set(known)):
        ids = f"0 to {max(known)}" if known else "none: all its documents are outliers"
        raise RequestError(f"--topics must name topics of this store ({ids}). Got {unknown[0]} instead.")
    among = set(known) if only is None else set(only)
    wanted = {aspect: [t for t in known if t in among and not (missing and (t, aspect) in there)] for aspect in aspects}
    topics = sorted({topic for chosen in wanted.values() for topic in chosen})
    if not topics:
        return Outcome(base, list(aspects), 0)
    asked = (step.parameters.get(key, 0) for chain in aspects.values() for step in chain for key in ("nr_candidate_words", "top_n_words"))
    described = set(topics)
    views = _views(job, base, store, [row for row in rows if row["topic_id"] in described], terms=max(TERMS, *asked))

    told: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    passing = False
    for aspect, chain in aspects.items():
        if not wanted[aspect]:
            continue
        chosen = [views[topic] for topic in wanted[aspect]]
        # the others compare words with words alone: any model's vectors do
        dimensions = len(rows[0]["reference_vector"]) if any(step.type == "keybert" for step in chain) else 0

        def encode(texts: Sequence[str], dimensions: int = dimensions) -> Float32:
            return asking.embed_texts(job, job.engines.pool, texts, dimensions=dimensions)

        words = steps.describe(chosen, chain, encode, top_n_words=job.config.terms.top_n_words)
        if _asks_model({aspect: chain}):
            fixed = _fixed(held, known, wanted[aspect], aspect)
            before = {r["topic_id"]: r["label"] for r in held if r["aspect"] == aspect and r["status"] == "ok"}
            found = naming.name_topics(job, chosen, [[word for word, _ in terms] for terms in words], rows=rows, taken=fixed, before=before)
            told += [{**row, "aspect": aspect} for row in found.rows]
            passing = passing or naming.passing(found.fallback)
            # of several, what became of the one that names the topics is told
            if not result or aspect == "llm":
                result = {"labelled": found.labelled, "fallback": found.fallback, "measures": found.measures}
        else:
            told += [_row(view.topic_id, aspect, [word for word, _ in terms]) for view, terms in zip(chosen, words, strict=True)]
        job.ui.log("stage", f"represent: {aspect} for {len(chosen):,} topics", stage="represent", aspect=aspect)
    if passing:
        summary = None  # to be tried again by the next run
    made = {(row["topic_id"], row["aspect"]) for row in told}
    order = lambda row: (row["topic_id"], row["aspect"])  # noqa: E731
    after = sorted([row for row in held if (row["topic_id"], row["aspect"]) not in made] + told, key=order)
    snapshot = base
    if after != sorted(held, key=order) or summary:
        old, new = labels.names(held), labels.names(after)
        changed = {topic for topic in (*old, *new) if old.get(topic) != new.get(topic)}
        snapshot = labels.rewrite(store, base, after, changed, summary=summary)
        job.whole("represent", job.print_of("represent", snapshot.generation), rows=len(topics), seconds=time.monotonic() - began)
    return Outcome(snapshot, list(aspects), len(topics), **result)


def aspects_of(config: Config, wanted: str | None = None) -> dict[str, tuple[Step, ...]]:
    """Return the aspects of the configuration (see ``ALONE`` where it has none), or the one that is wanted.

    Raises
    ------
    RequestError
        There is none of that name.
    """
    aspects = parse(config.represent.aspects or ALONE)
    if wanted is None:
        return aspects
    if wanted not in aspects and wanted in (*ALONE, "pos"):
        return parse({wanted: wanted})
    if wanted not in aspects:
        raise RequestError(
            f"--aspect must be one of {', '.join({**aspects, **ALONE, 'pos': 0})}. Got {wanted!r} instead. Others are given with: "
            f"--set represent.aspects='{{{wanted}: [...]}}'"
        )
    return {wanted: aspects[wanted]}


def _row(topic: int, aspect: str, words: list[str]) -> dict[str, Any]:
    return {"topic_id": topic, "aspect": aspect, "label": "", "terms": words, "status": "ok", "detail": ""}


def _fixed(held: list[dict[str, Any]], known: list[int], chosen: list[int], aspect: str) -> dict[int, str]:
    """Return the labels that stay whatever the model says: given by hand or in advance, and those of topics that are not asked about."""
    here, asked = set(known), set(chosen)
    fixed = {row["topic_id"]: row["label"] for row in held if row["aspect"] == "zeroshot" and row["topic_id"] in here}
    fixed = {**{r["topic_id"]: r["label"] for r in held if r["aspect"] == aspect and r["topic_id"] not in asked}, **fixed}
    return {**fixed, **labels.held(held)}


def _views(job: Job, base: Snapshot, store: Store, rows: list[dict[str, Any]], *, terms: int) -> dict[int, View]:
    """Return what steps see of topics: terms, and documents where the store has any, the nearest that are not too much alike."""
    counted = "topic_terms" in base.versions
    best = top_terms(store.read_batches("topic_terms", KEYWORDS), terms) if counted else {}
    texts, vectors, ids = _documents(job, base, [row["topic_id"] for row in rows]) if "documents" in base.versions else ({}, {}, {})
    views = {}
    for row in rows:
        topic = row["topic_id"]
        centre = np.asarray(row["reference_vector"], np.float32)  # empty where topics of two embedding models were merged
        mine = [doc for doc in ids.get(topic, []) if doc in texts and doc in vectors]
        matrix = np.stack([vectors[doc] for doc in mine]) if mine else np.zeros((0, len(centre)), np.float32)
        order = mmr(centre, matrix, len(mine), job.config.represent.diversity) if mine else []
        known = best.get(topic) or [(word, 1.0) for word in row["keywords"] or []]
        documents = tuple(texts[mine[i]] for i in order)
        views[topic] = View(topic, tuple(known), documents, matrix[order], centre if len(centre) else None)
    return views


def _documents(job: Job, base: Snapshot, topics: list[int]) -> tuple[dict[str, str], dict[str, Float32], dict[int, list[str]]]:
    """Return texts and vectors by id, and each topic's nearest documents."""
    store, versions = job.store.uri, base.versions
    partitions = sorted({row["partition_id"] for row in job.store.table("assignments", version=versions["assignments"]).partitions()})
    wanted = job.config.represent.candidate_documents
    at = {"embeddings_version": versions["embeddings"], "assignments_version": versions["assignments"]}
    number = max(topics) + 1
    groups = job.groups(partitions, dict.fromkeys(partitions, 1))
    units = [
        Unit(k, {"number": number, "representatives": wanted, "store_uri": store, "partition_ids": g, **at}) for k, g in groups.items()
    ]
    best: list[list[Nearest]] = [[] for _ in topics]
    for _, found in job.each("nearest", units, stage="represent"):
        best = nearer(best, [found[topic] for topic in topics], wanted)
    of = by_partition(best)
    # the driver holds them for all topics at once
    longest = min(LONGEST, (job.config.llm.doc_length or LONGEST) * CHARACTERS)
    read = {"store_uri": store, "documents_version": versions["documents"], "columns": ["text"], "characters": longest}
    texts: dict[str, str] = {}
    for _, found in job.each("texts", [Unit(p, {"partition_id": p, "doc_ids": ids, **read}) for p, ids in of], stage="represent"):
        texts |= {doc_id: row["text"] for doc_id, row in found.items()}
    vectors: dict[str, Float32] = {}
    read = {"store_uri": store, "embeddings_version": versions["embeddings"]}
    for _, found in job.each("vectors", [Unit(p, {"partition_id": p, "doc_ids": ids, **read}) for p, ids in of], stage="represent"):
        vectors |= found
    return texts, vectors, {topic: [candidate[1] for candidate in candidates] for topic, candidates in zip(topics, best, strict=True)}
