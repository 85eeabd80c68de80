"""Classification as MTEB defines it: how well a linear classifier on few examples tells a text's class from its vector.

mteb's own task and evaluator do the work; texts and labels are given to them in place of what they would fetch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from topicscale.errors import MissingDependency
from topicscale.represent.view import Encode


def check() -> None:
    """Raise MissingDependency where mteb is not installed."""
    import importlib.util

    for package in ("mteb", "datasets"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependency(package, "mteb", "--task classification=...")


def classification(
    encode: Encode, train: tuple[Sequence[str], Sequence[str]], test: tuple[Sequence[str], Sequence[str]], *, seed: int = 42
) -> dict[str, float]:
    """Return how well classes are told on ``test`` by classifiers fitted on few texts of ``train``.

    Ten experiments, each with 8 texts of every class drawn anew from ``train`` (MTEB's ``Banking77Classification``): logistic
    regression of at most 100 iterations on their vectors, judged on all of ``test``.

    Parameters
    ----------
    encode : callable
        Return the texts' unit vectors, float32 (n, d).
    train, test : (texts, labels)
    seed : int
        Of the drawing; 42 is MTEB's.

    Returns
    -------
    dict
        ``accuracy`` and ``f1`` (mean over classes): means of the experiments; ``stderr``: the standard error of ``accuracy`` over
        them, so that of drawing the examples alone; ``experiments``, ``documents`` (of ``test``), ``labels``.

    Raises
    ------
    MissingDependency
        mteb is not installed.
    ValueError
        Texts and labels differ in length, or there are fewer than two classes in ``train``.

    Notes
    -----
    Source: Muennighoff, Tazi, Magne and Reimers, "MTEB", EACL 2023. Which examples are drawn depends on the order of rows, so that
    other copies of one data set agree within ``stderr`` rather than to the last digit.
    """
    check()
    for texts, labels in (train, test):
        if len(texts) != len(labels):
            raise ValueError(f"Texts and labels must have the same length. Got {len(texts)} and {len(labels)} instead.")
    judged = {str(label) for label in test[1]}
    # those of test first: mteb takes two that it meets there for 0 and 1
    names = [*sorted(judged), *sorted({str(label) for label in train[1]} - judged)]
    if len({str(label) for label in train[1]}) < 2:
        raise ValueError(f"train must hold at least two classes. Got {sorted(set(train[1]))} instead.")
    with _own_random_state():
        from datasets import Dataset, DatasetDict
        from mteb.tasks.classification.eng.banking77_classification import Banking77Classification

        task = Banking77Classification(seed=seed)
        number = {name: i for i, name in enumerate(names)}

        def split(texts: Sequence[str], labels: Sequence[str]) -> Any:
            return Dataset.from_dict({"text": list(texts), "label": [number[str(label)] for label in labels]})

        task.dataset, task.data_loaded = DatasetDict(train=split(*train), test=split(*test)), True
        encoder: Any = _Encoder(encode)
        found: Any = task.evaluate(encoder, split="test", encode_kwargs={})["default"]
    each = np.array([one["accuracy"] for one in found["scores_per_experiment"]])
    return {
        "accuracy": float(found["accuracy"]),
        "f1": float(found["f1"]),
        "stderr": float(each.std(ddof=1) / np.sqrt(len(each))),
        "experiments": float(len(each)),
        "documents": float(len(test[0])),
        "labels": float(len(names)),
    }


class _Encoder:
    """``encode`` as mteb's ``EncoderProtocol`` has it."""

    mteb_model_meta = None

    def __init__(self, encode: Encode) -> None:
        self._encode = encode

    def encode(self, inputs: Any, **_: Any) -> Any:
        return self._encode([text for batch in inputs for text in batch["text"]])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        return np.asarray(embeddings1) @ np.asarray(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        return np.einsum("ij,ij->i", np.asarray(embeddings1), np.asarray(embeddings2))


@contextlib.contextmanager
def _own_random_state() -> Iterator[None]:
    """Leave the generators of Python, NumPy and torch as they were: mteb seeds all of them."""
    import random

    import torch

    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
