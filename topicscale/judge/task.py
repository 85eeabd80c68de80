"""Tasks as they are written on the command line (see ``FORMS``): what to judge by, and on which data.

Columns are a header's names, or ``_c0``, ``_c1`` ... in a file without a header.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from topicscale.algorithms import check as check_clustering
from topicscale.algorithms import check_device
from topicscale.config import Config
from topicscale.errors import InputError, RequestError
from topicscale.finetune.recipe import COLUMNS, Kind
from topicscale.judge.classification import check, classification
from topicscale.judge.clustering import clustering
from topicscale.judge.retrieval import retrieval
from topicscale.judge.sts import sts
from topicscale.judge.topics import chosen, topics
from topicscale.represent.view import Encode

MEASURES: dict[str, tuple[str, ...]] = {
    "sts": ("spearman", "pearson"),
    "classification": ("accuracy", "f1"),
    "clustering": ("nmi", "v_measure"),
    "retrieval": ("mrr", "recall_at_1"),
    "topics": ("npmi", "diversity", "outlier_share", "nmi"),
}
"""What a model can be chosen by, and what a table shows: the chief measure of each kind of task first."""
LOWER = frozenset({"outlier_share"})
"""Measures of which less is better."""
_KINDS: dict[str, Kind] = {
    "sts": "scored",
    "classification": "classes",
    "clustering": "classes",
    "retrieval": "pairs",
    "topics": "classes",
}
_ANY = 2.0**20
"""Scores are of no larger magnitude."""
FORMS = {
    "sts": "sts=PATH[:sentence1,sentence2,score]",
    "classification": "classification=TRAIN,TEST[:text,label]",
    "clustering": "clustering=PATH[:text,label]",
    "retrieval": "retrieval=PATH[:anchor,positive]",
    "topics": "topics=PATH[:text[,label]]",
}
"""How tasks are written. ``topics`` alone stands for a store's documents."""


@dataclass(frozen=True)
class Task:
    """A task that was asked for."""

    kind: str
    paths: tuple[str, ...] = ()
    """Its files; none for the documents of a store."""
    columns: tuple[str, ...] = ()
    """The file's columns, in the order of the kind's own; none where they are to be found by their usual names."""

    @property
    def stem(self) -> str:
        """What tells it from others of its kind."""
        return Path(self.paths[-1]).stem if self.paths else "store"


@dataclass(frozen=True)
class Corpus:
    """Documents of a store: at most as many as are judged by."""

    texts: tuple[str, ...]
    documents: int
    """How many the store holds."""
    config: Config
    """The store's."""
    labels: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Ready:
    """A task whose data are read and checked."""

    name: str
    kind: str
    run: Callable[[Encode], dict[str, float]]
    rows: int
    """Rows it is judged by (of the test file, where there are two)."""
    dropped: int = 0
    """Rows of its files that could not be used."""
    without: tuple[str, ...] = ()
    """Measures of its kind that need what its data lack."""

    @property
    def chief(self) -> str:
        """The name of its chief measure: ``sts.spearman``."""
        return f"{self.name}.{MEASURES[self.kind][0]}"

    @property
    def measures(self) -> list[str]:
        """What a model can be chosen by."""
        return [name for name in MEASURES[self.kind] if name not in self.without]


def parse(text: str) -> Task:
    """Return the task that ``text`` describes.

    Raises
    ------
    RequestError
        There is no such kind, or it has too few or too many files or columns.
    """
    kind, equals, rest = text.strip().partition("=")
    if kind not in MEASURES:
        near = difflib.get_close_matches(kind, MEASURES, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(MEASURES)}."
        raise RequestError(f"--task must begin with the kind of a task. Got {text!r} instead. {hint}")
    if not rest:
        if kind == "topics" and not equals:
            return Task(kind)
        raise RequestError(f"--task {kind} must name its file: {FORMS[kind]}. Got {text!r} instead.")
    files, columns = _split(rest)
    paths = tuple(path.strip() for path in files.split(",")) if kind == "classification" else (files.strip(),)
    enough = {0, len(COLUMNS[_KINDS[kind]])} | ({1} if kind == "topics" else set())
    if not all(paths) or not all(columns) or len(paths) != (2 if kind == "classification" else 1) or len(columns) not in enough:
        raise RequestError(f"--task {kind} must be written {FORMS[kind]}. Got {text!r} instead.")
    return Task(kind, paths, columns)


def names(tasks: Sequence[Task]) -> list[str]:
    """Return a name for each task: its kind, or kind and file where there are several of the kind.

    Raises
    ------
    RequestError
        A task is asked for twice.
    """
    kinds = [task.kind for task in tasks]
    found = [kind if kinds.count(kind) == 1 else f"{kind}:{task.stem}" for kind, task in zip(kinds, tasks, strict=True)]
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"Each --task must be another one. Got {twice!r} twice instead: give files names that differ.")
    return found


def load(tasks: Sequence[Task], *, corpus: Corpus | None = None, config: Config | None = None) -> list[Ready]:
    """Return the tasks with their data, in their order, after checking all of them.

    Parameters
    ----------
    corpus : Corpus, optional
        What ``topics`` without a file is judged on.
    config : Config, optional
        Clustering and term settings of ``topics=PATH``; the corpus's, or the defaults.

    Raises
    ------
    InputError
        A file or column is missing, or holds nothing to judge by.
    ConfigError, MissingDependency, ResourceError
        A task needs a package that is not installed, or the clustering of ``topics`` cannot be done here.
    RequestError
        ``topics`` is asked for without a store.
    """
    settings = config or (corpus.config if corpus is not None else Config())
    if any(task.kind == "classification" for task in tasks):
        check()
    return [_load(name, task, corpus, settings) for name, task in zip(names(tasks), tasks, strict=True)]


def _load(name: str, task: Task, corpus: Corpus | None, config: Config) -> Ready:
    if not task.paths:
        if corpus is None:
            raise RequestError("--task topics must have a store (--store), or name a file: topics=PATH[:text[,label]].")
        return _topics(name, corpus.texts, corpus.config, corpus.labels, documents=corpus.documents, dropped=0)
    tables, dropped = zip(*[_read(path, task) for path in task.paths], strict=True)
    lists = [{column: table[column].to_pylist() for column in table.column_names} for table in tables]
    own, rows, lost = lists[-1], tables[-1].num_rows, sum(dropped)
    where = f"{task.paths[-1]!r} of --task {task.kind}"
    if task.kind == "sts":
        if len(set(own["score"])) < 2:
            raise InputError(f"{where} must hold scores that differ. Got {rows} rows of one score instead.")
        return Ready(name, task.kind, lambda encode: sts(encode, own["sentence1"], own["sentence2"], own["score"]), rows, lost)
    if task.kind == "retrieval":
        if len(set(own["positive"])) < 2:
            raise InputError(f"{where} must hold at least two distinct positives. Got {len(set(own['positive']))} instead.")
        return Ready(name, task.kind, lambda encode: retrieval(encode, own["anchor"], own["positive"]), rows, lost)
    if task.kind == "topics":
        order = chosen(own["text"])
        labels = tuple(own["label"][row] for row in order) if "label" in own else None
        texts = tuple(own["text"][row] for row in order)
        return _topics(name, texts, config, labels, documents=rows, dropped=lost)
    for path, table in zip(task.paths, lists, strict=True):
        if len(set(table["label"])) < 2:
            raise InputError(f"{path!r} of --task {task.kind} must hold at least two labels. Got {len(set(table['label']))} instead.")
    if task.kind == "clustering":
        return Ready(name, task.kind, lambda encode: clustering(encode, own["text"], own["label"]), rows, lost)
    first = lists[0]
    return Ready(
        name,
        task.kind,
        lambda encode: classification(encode, (first["text"], first["label"]), (own["text"], own["label"])),
        rows,
        lost,
    )


def _topics(name: str, texts: Sequence[str], config: Config, labels: Any, *, documents: int, dropped: int) -> Ready:
    if not texts:
        raise InputError("--task topics must have documents. Got none instead.")
    import torch

    check_clustering(config.cluster)
    check_device(config.cluster, torch.cuda.device_count())
    return Ready(
        name,
        "topics",
        lambda encode: topics(encode, texts, config, labels=labels, documents=documents),
        len(texts),
        dropped,
        without=() if labels is not None else ("nmi",),
    )


def texts_of(text: str) -> list[str]:
    """Return the texts that ``PATH[:COLUMN]`` names; without a column, of the one that is called text, sentence or document.

    Raises
    ------
    InputError
        The file or column is missing.
    """
    path, columns = _split(text)
    found: list[str] = _table(path, {"text": columns[0]} if columns else {}, "texts")[0]["text"].to_pylist()
    return found


def _split(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the path and the columns of ``PATH[:COLUMNS]``."""
    head, colon, tail = text.rpartition(":")
    if colon and "/" not in tail:
        return head, tuple(column.strip() for column in tail.split(","))
    return text, ()


def _read(path: str, task: Task) -> tuple[pa.Table, int]:
    """Return a file's columns under the names of the kind, and how many rows were left out."""
    kind: Kind = "texts" if task.kind == "topics" and len(task.columns) < 2 else _KINDS[task.kind]
    return _table(path, dict(zip(COLUMNS[_KINDS[task.kind]], task.columns, strict=False)), kind)


def _table(path: str, columns: Mapping[str, str], kind: Kind) -> tuple[pa.Table, int]:
    from topicscale.finetune.data import read

    headerless = bool(columns) and all(re.fullmatch(r"_c\d+", column) for column in columns.values())
    reader = {"header": False} if headerless else {}
    # any scale will do: the measures are the same after a change of unit, and one by a power of two is exact
    found = read([path], columns, reader=reader, score_range=(-_ANY, _ANY) if kind == "scored" else None, kinds=[kind])
    return found.table, sum(found.dropped.values())
