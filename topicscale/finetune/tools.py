"""The models that recipes ask things of, loaded when first asked and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from topicscale.config import EmbeddingConfig
from topicscale.embedding import Embedder
from topicscale.finetune.crossencoder import CrossEncoder, train
from topicscale.finetune.queries import Generator
from topicscale.llm.models import resolve as resolve_llm
from topicscale.models import embedding_space, resolve

Float32 = npt.NDArray[np.float32]
KEPT = 3
"""Models kept in memory; the one not used for the longest time goes first."""


class Models:
    """Embedding models, generators and cross-encoders, kept between calls by the digest of their weights and settings.

    Parameters
    ----------
    threads : int
        Processors to use.
    device : {"cpu", "cuda"}
    """

    def __init__(self, *, threads: int, device: str = "cpu") -> None:
        self.threads, self.device = threads, device
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def embed(self, model: str, texts: Sequence[str], *, prompt: str = "", max_tokens: int | None = None) -> Float32:
        """Return unit vectors, float32 (n, d). ModelError where the model cannot be found or loaded."""
        config = EmbeddingConfig(model=model, prompt=prompt, max_tokens=max_tokens)
        make = lambda: Embedder(config, threads=self.threads, device=self.device)  # noqa: E731
        found: Embedder = self._loaded("embedding", embedding_space(config), make)
        return found.encode(texts).vectors

    def generate(self, model: str, texts: Sequence[str], *, queries: int, seed: int, options: Mapping[str, Any]) -> list[list[str]]:
        """Return for each text up to ``queries`` questions (see :meth:`topicscale.finetune.queries.Generator.generate`)."""
        make = lambda: Generator(model, threads=self.threads, device=self.device)  # noqa: E731
        found: Generator = self._loaded("generator", resolve_llm(model).revision, make)
        return found.generate(texts, queries=queries, seed=seed, options=options)

    def score(self, model: str, pairs: Sequence[tuple[str, str]], *, logits: bool = False) -> Float32:
        """Return the score of each pair, float32 (n,) (see :meth:`topicscale.finetune.crossencoder.CrossEncoder.score`)."""
        make = lambda: CrossEncoder(model, threads=self.threads, device=self.device)  # noqa: E731
        found: CrossEncoder = self._loaded("cross-encoder", resolve(model).revision, make)
        return found.score(pairs, logits=logits)

    def _loaded(self, kind: str, digest: str, make: Callable[[], Any]) -> Any:
        key = kind, digest
        if key not in self._kept:
            while len(self._kept) >= KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]


class LocalTools(Models):
    """Everything in this process (see :class:`topicscale.finetune.recipe.Tools`).

    Parameters
    ----------
    work : pathlib.Path
        Folder for the cross-encoders that are trained.
    """

    def __init__(self, threads: int, device: str, work: Path) -> None:
        super().__init__(threads=threads, device=device)
        self.work = work

    def cross_encoder(self, base: str, examples: pa.Table, options: Mapping[str, Any]) -> str:
        """Train a cross-encoder and return its folder (see :func:`topicscale.finetune.crossencoder.train`)."""
        return str(train(base, examples, options, work=self.work, threads=self.threads, device=self.device))
