"""Pairs with a score: the cosine of the two vectors is to be the score.

Source: Reimers and Gurevych, Sentence-BERT, EMNLP 2019, section 3 (regression objective: mean squared error of the cosine) and section
4.2 (STS benchmark: batch 16, learning rate 2e-5, warm-up over 10 % of the steps, mean pooling; 4 epochs in the authors' code).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa

from topicscale.config import FinetuneConfig
from topicscale.errors import ConfigError
from topicscale.finetune.recipe import Defaults, Kind, Recipe, Tools


class Cosine(Recipe):
    """Mean squared error of the cosine, or CoSENT's ranking of pairs.

    Data: ``sentence1, sentence2, score`` (kind scored). Any architecture.

    Options
    -------
    loss : {"cosine", "cosent"}
        ``cosent`` asks for the order of the scores only (Su, CoSENT, 2022, scale 20; no publication but the author's blog). Its batch is
        compared with itself, on each worker apart.
    """

    name: ClassVar[str] = "cosine"
    kinds: ClassVar[tuple[Kind, ...]] = ("scored",)
    defaults: ClassVar[Defaults] = Defaults(epochs=4, batch_size=16, learning_rate=2e-5, warmup=0.1)
    options: ClassVar[Mapping[str, Any]] = {"loss": "cosine"}

    def check(self, base: Any, options: Mapping[str, Any]) -> None:
        """Raise ConfigError where ``loss`` is no loss."""
        if options["loss"] not in ("cosine", "cosent"):
            raise ConfigError(f"The option loss of the recipe cosine must be cosine or cosent. Got {options['loss']!r} instead.")

    def check_settings(self, base: Any, settings: FinetuneConfig, options: Mapping[str, Any]) -> None:
        """Raise ConfigError for cosine's loss with dot product."""
        if options["loss"] == "cosine" and settings.similarity == "dot":
            raise ConfigError("The recipe cosine with loss cosine needs finetune.similarity=cosine. Use loss: cosent with dot.")

    def examples(self, data: pa.Table, kind: Kind, options: Mapping[str, Any], *, base: str, seed: int, tools: Tools) -> pa.Table:
        """Return the pairs as they are; the score is the label."""
        return data.select(["sentence1", "sentence2", "score"]).rename_columns(["sentence1", "sentence2", "label"])

    def loss(self, model: Any, options: Mapping[str, Any], *, base: str, similarity: str, workers: int) -> Any:
        """Return CosineSimilarityLoss or CoSENTLoss; with ``similarity`` dot, CoSENT compares by dot product."""
        from sentence_transformers.sentence_transformer.losses import CoSENTLoss, CosineSimilarityLoss
        from sentence_transformers.util import pairwise_dot_score

        self.check(None, options)
        if options["loss"] == "cosine":
            if similarity == "dot":
                raise ConfigError("The recipe cosine with loss cosine needs finetune.similarity=cosine. Use loss: cosent with dot.")
            return CosineSimilarityLoss(model)
        if similarity == "dot":  # a dot product is of the order of a hundred, and needs no scale
            return CoSENTLoss(model, scale=1.0, similarity_fct=pairwise_dot_score)
        return CoSENTLoss(model)


RECIPES: dict[str, Recipe] = {"cosine": Cosine()}
