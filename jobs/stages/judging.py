"""What a trained model and its base are judged by, and the verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.judge import corpus
from jobs.stages.examples import Data, digest_of
from jobs.stages.tutors import Tutors
from topicscale.config import Config, InputConfig, fingerprint
from topicscale.errors import PoisonedInput, RequestError
from topicscale.finetune.recipe import NLI, Kind
from topicscale.inputs import inspect, listed
from topicscale.judge.clustering import clustering
from topicscale.judge.rank import Verdict, better, which
from topicscale.judge.retrieval import retrieval
from topicscale.judge.sts import sts
from topicscale.judge.task import Ready, Task, load, parse
from topicscale.represent.view import Encode
from topicscale.store import Store

FEWEST = 20
"""Rows that must have been held out for a judge to be made of them."""


@dataclass(frozen=True)
class Judges:
    """Tasks whose data are read and checked."""

    ready: list[Ready]
    measure: str
    """What decides."""
    digest: str
    """Of what they judge with."""

    @property
    def names(self) -> list[str]:
        """The tasks."""
        return [f"{task.name} ({task.rows:,} rows)" for task in self.ready]


def collect(config: Config, data: Data, *, store: Store | None) -> Judges:
    """Return the judges that ``finetune.judges`` names; without any, those that the data allow.

    These are the rows that were held out of labelled data, which judge first, and the topics of the store's documents.

    Raises
    ------
    RequestError
        There is nothing to judge by, or the measure is none that the judges have.
    """
    tuned = config.finetune
    tasks = [parse(text) for text in tuned.judges]
    own = _corpus(store) if not tasks or any(not task.paths for task in tasks) else None
    if tasks:
        _check_apart(tasks, data)
        ready = load(tasks, corpus=own, config=None if own is not None else config)
    else:
        ready = _all_held(data)
        if own is not None:
            ready += load([parse("topics")], corpus=own)
    if not ready and data.held_rows:
        raise RequestError(
            f"{data.held_rows} rows were held out, which make no judge: it takes {FEWEST} of them (of nli {FEWEST} of entailment) whose "
            f"scores, labels or positives differ. Raise finetune.held_out ({tuned.held_out:g}), or name other rows with --judge (for "
            "example sts=pairs.tsv)."
        )
    if not ready:
        raise RequestError(
            "There is nothing to judge the model by: no row was held out, and no store is named. Add --judge (for example "
            "sts=pairs.tsv, topics=texts.csv:body) with rows that are not trained on, or --store."
        )
    measure = tuned.measure or ready[0].chief
    which({task.name: dict.fromkeys(task.measures, 0.0) for task in ready}, measure)
    files = [_content(path) for task in tasks for path in listed(task.paths)]
    texts = "" if own is None else hashlib.sha256("\0".join(own.texts).encode("utf-8", "replace")).hexdigest()
    return Judges(ready, measure, fingerprint(list(tuned.judges), files, texts, data.digest, tuned.held_out, tuned.seed))


def _check_apart(tasks: Sequence[Task], data: Data) -> None:
    """Raise RequestError where a judge is made of what is trained on, labels included: any overfit would be published."""
    trained = _files(data.labelled)
    for task in tasks:
        judging = () if task.kind == "topics" else task.paths[-1:]  # a classification's first file is what its classifier learns from
        for path in judging:
            if not trained.isdisjoint(_files([path])):
                raise RequestError(
                    f"--judge must not name what is trained on. Got {path!r}, which is an input, instead: leave --judge out, and a part of "
                    "it is held out."
                )


def _files(paths: Sequence[str]) -> set[Path]:
    return {Path(path).resolve() for path in listed(paths)}


def _content(path: str) -> str:
    """Return a digest of a file, or of a Delta table's id and version."""
    if Path(path).is_dir():
        return inspect(InputConfig(paths=(path,), text_column=())).fingerprint
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def measure(judges: Judges, models: Mapping[str, str], tutors: Tutors) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return what every model is measured at, by its key and the task; None where its vectors are not finite (training diverged)."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for key, model in models.items():
        try:
            found[key] = {task.name: dict(task.run(_encode(tutors, model))) for task in judges.ready}
        except PoisonedInput:
            found[key] = {task.name: dict.fromkeys(task.measures) for task in judges.ready}
    return found


def verdict(judges: Judges, measures: Mapping[str, Any], *, margin: float) -> Verdict:
    """Return whether the model is better than its base by the measure that decides."""
    before, after = measures["base"], measures["model"]
    if any(value is None for values in after.values() for value in values.values()):
        return Verdict(False, "Its vectors are not finite: training diverged. Use a lower learning rate.")
    return better(before, after, judges.measure, margin)


def _encode(tutors: Tutors, model: str) -> Encode:
    def encode(texts: Sequence[str]) -> Any:
        vectors = tutors.embed(model, texts)
        if not np.isfinite(vectors).all():
            raise PoisonedInput("The model gives vectors that are not finite.")
        return vectors

    return encode


def _corpus(store: Store | None) -> Any:
    snapshots = store.snapshots() if store is not None else []
    if store is None or not snapshots or "documents" not in snapshots[-1].versions:
        return None
    return corpus(store.uri)


def _all_held(data: Data) -> list[Ready]:
    """Return a judge for each table that was held out; the same rows, read for two steps, judge once."""
    found: list[Ready] = []
    seen: set[str] = set()
    for table, kind in data.held:
        content = digest_of(table)
        task = _held(table, kind) if content not in seen else None
        seen.add(content)
        if task is not None:
            alike = sum(other.kind == task.kind for other in found)
            found.append(replace(task, name=f"{task.name}-{alike + 1}") if alike else task)
    return found


def _held(table: pa.Table, kind: Kind) -> Ready | None:
    """Return the judge that held-out rows of a kind make, None where they are too few or alike."""
    held = {name: table[name].to_pylist() for name in table.column_names}
    if kind == "nli":
        entailed = [row for row in zip(held["sentence1"], held["sentence2"], held["label"], strict=True) if row[2] == NLI[0]]
        held = {"anchor": [row[0] for row in entailed], "positive": [row[1] for row in entailed]}
        kind = "pairs"
    rows = len(next(iter(held.values())))
    if rows < FEWEST:
        return None
    if kind == "scored":
        if len(set(held["score"])) < 2:
            return None
        return Ready("sts:held-out", "sts", lambda encode: sts(encode, held["sentence1"], held["sentence2"], held["score"]), rows)
    if kind == "pairs":
        if len(set(held["positive"])) < 2:
            return None
        return Ready("retrieval:held-out", "retrieval", lambda encode: retrieval(encode, held["anchor"], held["positive"]), rows)
    if len(set(held["label"])) < 2:
        return None
    return Ready("clustering:held-out", "clustering", lambda encode: clustering(encode, held["text"], held["label"]), rows)
