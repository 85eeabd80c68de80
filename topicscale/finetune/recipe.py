"""What a recipe is: the data it needs, the examples it makes of them, and the loss.

A recipe is told apart from how it is run. It takes a table and gives a table, and what is expensive on the way (embedding,
generating, scoring) it asks of :class:`Tools`, which one process or a pool of Ray workers can be.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from topicscale.config import FinetuneConfig
from topicscale.errors import ConfigError

Float32 = npt.NDArray[np.float32]

Kind = Literal["texts", "pairs", "scored", "nli", "classes"]
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "texts": ("text",),
    "pairs": ("anchor", "positive"),
    "scored": ("sentence1", "sentence2", "score"),
    "nli": ("sentence1", "sentence2", "label"),
    "classes": ("text", "label"),
}
"""Columns of each kind of data, under the names that recipes know them by. ``score`` is float64 in [0, 1]; an nli ``label`` is one of
:data:`NLI`; a class ``label`` is a string; all others are strings, stripped, and never empty. ``pairs`` may have a third column,
``negative``, null where a pair has none."""
NLI = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True)
class Defaults:
    """A recipe's settings where none are given, from its paper or its authors' code."""

    epochs: float = 1
    batch_size: int = 32
    """Examples a step, over all workers together."""
    learning_rate: float = 2e-5
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.0
    scheduler: str = "linear"
    """``transformers``' name of the schedule."""
    pooling: Literal["mean", "max", "cls"] | None = None
    """None keeps the base's."""


class Tools(Protocol):
    """What recipes ask of models. Texts in, arrays or texts out, in order; equal calls give equal answers."""

    def embed(self, model: str, texts: Sequence[str]) -> Float32:
        """Return unit vectors, float32 (n, d), of an embedding model (name, folder or hub id)."""
        ...

    def generate(self, model: str, texts: Sequence[str], *, queries: int, seed: int, options: Mapping[str, Any]) -> list[list[str]]:
        """Return for each text up to ``queries`` questions that it answers."""
        ...

    def score(self, model: str, pairs: Sequence[tuple[str, str]], *, logits: bool = False) -> Float32:
        """Return a cross-encoder's score of each pair, float32 (n,): in [0, 1], or as it comes (``logits``)."""
        ...

    def cross_encoder(self, base: str, examples: pa.Table, options: Mapping[str, Any]) -> str:
        """Train a cross-encoder on scored pairs (sentence1, sentence2, score) and return its folder. The same call trains once."""
        ...


class Recipe(ABC):
    """One way to train. Instances hold no state: a recipe is a name for its class's constants and methods."""

    name: ClassVar[str]
    kinds: ClassVar[tuple[Kind, ...]]
    """Data it can train on, preferred first. ``texts`` are the documents of a store where no input is named."""
    defaults: ClassVar[Defaults] = Defaults()
    options: ClassVar[Mapping[str, Any]] = {}
    """Its own options and their defaults; any other is refused."""
    parallel: ClassVar[bool] = True
    """Whether several workers can train it together (DDP)."""
    own_weights: ClassVar[bool] = False
    """Whether the loss has weights of its own that are trained (a classifier, a decoder)."""
    cached: ClassVar[bool] = False
    """Whether a step goes back through the model several times (GradCache)."""
    fresh: ClassVar[bool] = False
    """Whether each pass over the data has other examples (noise, crops): ``examples`` is then called once a pass."""
    no_duplicates: ClassVar[bool] = False
    """Whether a text may not occur twice in a batch (it would be its own negative)."""

    def unique(self, options: Mapping[str, Any]) -> bool:
        """Return ``no_duplicates``, where it depends on an option."""
        return self.no_duplicates

    def with_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return this recipe's options with defaults filled in.

        Raises
        ------
        ConfigError
            There is no such option.
        """
        for key in given:
            if key not in self.options:
                near = difflib.get_close_matches(key, self.options, 1)
                known = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(self.options) or 'none'}."
                raise ConfigError(f"The recipe {self.name} has no option {key!r}. {known}")
        return {**self.options, **given}

    def check(self, base: Any, options: Mapping[str, Any]) -> None:  # noqa: B027 (most bases fit most recipes)
        """Raise ModelError or ConfigError where the base (:class:`topicscale.finetune.base.Base`) or an option does not fit."""

    def check_settings(self, base: Any, settings: FinetuneConfig, options: Mapping[str, Any]) -> None:  # noqa: B027
        """Raise ModelError or ConfigError where a setting of the whole training does not fit."""

    def depends(self, options: Mapping[str, Any]) -> list[str]:
        """Return what stands for the content of other data and models that the options name: where it differs, nothing is gone on with."""
        return []

    @abstractmethod
    def examples(self, data: pa.Table, kind: Kind, options: Mapping[str, Any], *, base: str, seed: int, tools: Tools) -> pa.Table:
        """Return what is trained on: the loss's text columns in its order, then ``label`` if it takes one.

        Deterministic: the same arguments give the same table. Rows need no order: they are shuffled by seed in training.

        Parameters
        ----------
        data : pyarrow.Table
            The columns of ``kind`` (see :data:`COLUMNS`).
        base : str
            The folder of the model that this step starts from.
        """

    @abstractmethod
    def loss(self, model: Any, options: Mapping[str, Any], *, base: str, similarity: str, workers: int) -> Any:
        """Return the loss, a ``torch.nn.Module`` as sentence-transformers' trainer takes it.

        Parameters
        ----------
        model : sentence_transformers.SentenceTransformer
        similarity : {"cosine", "dot"}
        workers : int
            Processes that train together.
        """
