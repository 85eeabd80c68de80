"""``topicscale evaluate --model``: several embedding models by several tasks. Starts no engine."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from topicscale import registry
from topicscale.cluster import Float32
from topicscale.config import Config, EmbeddingConfig
from topicscale.embedding import Embedder
from topicscale.errors import ModelError, RequestError
from topicscale.judge.rank import Row, ranked, table
from topicscale.judge.task import Corpus, Ready, Task, load, parse
from topicscale.judge.topics import chosen
from topicscale.models import ResolvedModel, check, in_place, resolve
from topicscale.represent.view import Encode
from topicscale.store import Store


def judge(
    models: Sequence[str],
    tasks: Sequence[str],
    *,
    store: str | None = None,
    labels: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Return every model's measures, from the best model to the worst by mean rank.

    All of the request is checked before a model is loaded. Vectors are computed in float32, so that ranks do not depend on what
    the processor is fast at.

    Parameters
    ----------
    models : sequence of str
        Packaged names, folders, hub ids, or models that the store has published.
    tasks : sequence of str
        As :func:`topicscale.judge.task.parse` reads them; with a store and none, ``topics``.
    store : str, optional
        Its documents, and its clustering and term settings, are what ``topics`` is judged with. All tasks' texts are embedded behind
        its prompt, and truncated as its documents are.
    labels : str, optional
        A kept column of the store's documents, for the NMI of ``topics``.
    progress : callable, optional
        Called with a line of text now and then.

    Raises
    ------
    RequestError, ModelError, InputError, MissingDependency
        A model, a task, a file, a column or a package is missing.
    StoreError
        The store has no finished run, or no documents.
    """
    asked = [parse(text) for text in (tasks or (["topics"] if store is not None else []))]
    if not asked:
        raise RequestError("--task must be given at least once, or --store: there is nothing to judge by.")
    if len(set(models)) < len(models):
        raise RequestError(f"--model must name each model once. Got {', '.join(models)} instead.")
    if labels is not None and store is None:
        raise RequestError("--labels is a column of the store's documents. Add --store, or name the column in the task.")
    found = {name: find(name, store) for name in models}
    for model in found.values():
        check(EmbeddingConfig(model=str(model.path)))
    if labels is not None and not any(task.kind == "topics" and not task.paths for task in asked):
        raise RequestError("--labels is for topics on the store's documents. Add --task topics.")
    ready = prepared(asked, store, labels=labels)
    how, scores = (EmbeddingConfig() if store is None else _configuration(store).embedding), {}
    for name, model in found.items():
        scores[name] = measure(
            encoder(model, how), ready, progress=None if progress is None else lambda said, name=name: progress(f"{name}: {said}")
        )
    rows = ranked(scores)
    return {
        "tasks": [{"task": task.name, "rows": task.rows, "dropped": task.dropped, "chief": task.chief} for task in ready],
        "models": [
            {"model": row.model, "revision": found[row.model].revision, "rank": row.rank, "ranks": row.ranks, "scores": dict(row.scores)}
            for row in rows
        ],
    }


def prepared(tasks: Sequence[Task], store: str | None, *, labels: str | None = None) -> list[Ready]:
    """Return the tasks with their data, ``topics`` with the documents and the settings of the store.

    Raises
    ------
    RequestError, InputError, ConfigError, MissingDependency, ResourceError, StoreError
        As :func:`topicscale.judge.task.load` and :func:`corpus` do.
    """
    own = store is not None and any(task.kind == "topics" and not task.paths for task in tasks)
    if store is None or not any(task.kind == "topics" for task in tasks):
        return load(tasks)
    return load(tasks, corpus=corpus(store, labels=labels)) if own else load(tasks, config=_configuration(store))


def describe(found: dict[str, Any]) -> str:
    """Return the ranking as text for a terminal."""
    rows = [Row(row["model"], row["rank"], row["ranks"], row["scores"]) for row in found["models"]]
    lines = [table(rows), ""]
    for task in found["tasks"]:
        lost = f", {task['dropped']:,} left out" if task["dropped"] else ""
        lines.append(f"{task['task']}: {task['rows']:,} rows{lost}; ranked by {task['chief']}")
    for row in rows:
        topics = {task: scores for task, scores in row.scores.items() if "topics" in scores}
        for task, scores in topics.items():
            of = f"; NMI over {scores['labelled']:,.0f} of {scores['documents']:,.0f} documents" if "labelled" in scores else ""
            lines.append(f"{task} of {row.model}: {scores['topics']:,.0f} topics{of}")
    return "\n".join(lines)


def find(name: str, store: str | None) -> ResolvedModel:
    """Return the model of this name: published in the store, packaged, a folder, or of the hub.

    Raises
    ------
    ModelError
        There is none.
    """
    if store is not None and (folder := registry.weights(Store(store), name)) is not None:
        return dataclasses.replace(resolve(str(folder)), name=name)
    return resolve(name)


def encoder(model: ResolvedModel, how: EmbeddingConfig | None = None) -> Encode:
    """Return a function from texts to a model's unit vectors, float32, loading the model; with a store's prompt and limit of tokens."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = dataclasses.replace(in_place(str(model.path), how or EmbeddingConfig()), backend="torch", dtype="float32")
    embedder = Embedder(config, threads=len(os.sched_getaffinity(0)), device=device)

    def encode(texts: Sequence[str]) -> Float32:
        vectors = embedder.encode(texts).vectors
        if not np.isfinite(vectors).all():
            raise ModelError(
                f"The model {model.name!r} gives vectors that are not finite: its training diverged, or its weights are damaged."
            )
        return vectors

    return encode


def measure(encode: Encode, ready: Sequence[Ready], *, progress: Callable[[str], None] | None = None) -> dict[str, dict[str, float]]:
    """Return a model's measures by task."""
    found: dict[str, dict[str, float]] = {}
    for task in ready:
        began = time.monotonic()
        found[task.name] = task.run(encode)
        if progress is not None:
            name = task.chief.rpartition(".")[2]
            progress(f"{task.chief} {found[task.name][name]:.4f} ({time.monotonic() - began:.0f} s)")
    return found


def corpus(store: str, *, labels: str | None = None) -> Corpus:
    """Return the documents of a store that models are judged by: those of the least hashes of their ids, at most 8,000.

    Raises
    ------
    RequestError
        ``labels`` is no kept column, or holds no labels.
    StoreError
        There is no finished run, or no documents.
    """
    from jobs.evaluate import check_labels

    source = Store(store)
    snapshot = source.pin()
    source.check_documents()
    check_labels(source, labels)
    total, ids = 0, list[str]()
    for batch in source.read_batches("documents", ["doc_id"]):
        total += batch.num_rows
        ids += batch.column(0).to_pylist()
        ids = [ids[row] for row in chosen(ids)]  # the least of the least are those of all: memory is that of a batch
    wanted = {doc_id: place for place, doc_id in enumerate(ids)}
    texts: list[str] = [""] * len(ids)
    known: list[Any] = [None] * len(ids)
    for batch in source.read_batches("documents", ["doc_id", "text"] if labels is None else ["doc_id", "text", labels]):
        columns = [batch.column(i).to_pylist() for i in range(batch.num_columns)]
        for doc_id, text, *label in zip(*columns, strict=True):
            if doc_id in wanted:
                texts[wanted[doc_id]] = text
                known[wanted[doc_id]] = label[0] if label else None
    if labels is not None and all(label is None or label != label for label in known):
        raise RequestError(
            f"--labels must be a column that holds labels. {labels!r} holds none in the {len(ids):,} documents by which models are judged."
        )
    return Corpus(tuple(texts), total, Config.from_dict(snapshot.configuration), tuple(known) if labels is not None else None)


def _configuration(store: str) -> Config:
    return Config.from_dict(Store(store).pin().configuration)
