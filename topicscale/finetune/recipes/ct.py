"""Contrastive tension: two copies of a model must agree on what is the same text."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from topicscale.errors import ConfigError, InputError
from topicscale.finetune import in_batch
from topicscale.finetune.recipe import Defaults, Kind, Recipe, Tools

NEGATIVES = ("sampled", "in-batch")


class ContrastiveTension(Recipe):
    """Contrastive tension (Carlsson, Gyllensten, Gogoulou, Ylipää Hellqvist, Sahlgren, ICLR 2021).

    The model and a copy of it are trained apart: the copy embeds the first text of a pair, the model the second, and their dot product
    says by logistic loss whether the texts are the same. For each positive pair, a text with itself, there are K = 7 negative ones,
    the text with another. The model is kept, the copy thrown away. ``negatives: in-batch`` takes the batch's other texts as negatives
    instead, with a trained scale (``ContrastiveTensionLossInBatchNegatives``); sentence-transformers' documentation reports 78.5
    against 75.7 Spearman on STSB for it. Its example has batches of 128 and a learning rate of 5e-5.

    Needs texts alone, of any architecture, twice the memory of other recipes, and one process: the copy's weights are outside what
    DDP averages. When it helps: the paper shows that language models' last layers are biased to what they were trained on, and
    undoes that. A base that scales its embeddings to length 1 (all-MiniLM-L6-v2) keeps dot products in [-1, 1], so that sampled
    negatives cannot bring the logistic loss below .31 a pair: take in-batch there.

    Defaults are those of sentence-transformers' example (``train_stsb_ct.py``), which has the paper's ratio and batches: batch 16,
    learning rate 1e-5, no warm-up, no weight decay, mean pooling. RMSprop there; the trainer's AdamW here.
    """

    name = "ct"
    kinds = ("texts",)
    defaults = Defaults(epochs=1, batch_size=16, learning_rate=1e-5, warmup=0.0, weight_decay=0.0, pooling="mean")
    options = {"negatives": "sampled", "k": 7, "scale": None}  # noqa: RUF012 (declared a ClassVar in Recipe)
    parallel = False
    own_weights = True
    fresh = True

    def unique(self, options: Mapping[str, Any]) -> bool:
        """Return whether the batch's other texts are the negatives."""
        return bool(options["negatives"] == "in-batch")

    def check(self, base: Any, options: Mapping[str, Any]) -> None:
        """Raise ConfigError where ``negatives``, ``k`` or ``scale`` is wrong."""
        if options["negatives"] not in NEGATIVES:
            raise ConfigError(
                f"The option negatives of the recipe ct must be one of {', '.join(NEGATIVES)}. Got {options['negatives']!r} instead."
            )
        in_batch.check_number(self.name, options, "k", least=1, whole=True)
        in_batch.check_scale(self.name, options)
        mode = options["negatives"]
        in_batch.check_unread(self, options, ("scale",) if mode == "sampled" else ("k",), f"with negatives: {mode}")

    def examples(self, data: pa.Table, kind: Kind, options: Mapping[str, Any], *, base: str, seed: int, tools: Tools) -> pa.Table:
        """Return (first, second, label), as many rows as there are different texts; (text,) for in-batch negatives.

        The texts are shuffled by seed and taken in groups of 1 + k: the group's first text is paired with itself (label 1) and with
        each of the others (label 0). So a pass costs as much as other recipes', and other texts come first in the next one. A batch
        need not hold whole groups: the loss is a sum over pairs, none of which sees another.

        Raises
        ------
        InputError
            There are fewer than two different texts.
        """
        texts = list(dict.fromkeys(data["text"].to_pylist()))
        if len(texts) < 2:
            raise InputError(f"The recipe ct needs at least two different texts. Got {len(texts)} instead.")
        if options["negatives"] == "in-batch":
            return pa.table({"text": pa.array(texts, pa.string())})
        random.Random(seed).shuffle(texts)
        size = 1 + options["k"]
        first = [texts[place - place % size] for place in range(len(texts))]
        label = [float(place % size == 0) for place in range(len(texts))]
        return pa.table(
            {"first": pa.array(first, pa.string()), "second": pa.array(texts, pa.string()), "label": pa.array(label, pa.float32())}
        )

    def loss(self, model: Any, options: Mapping[str, Any], *, base: str, similarity: str, workers: int) -> Any:
        """Return the loss of the option ``negatives``. That of sampled ones compares by dot product, whatever ``similarity`` is."""
        from sentence_transformers.sentence_transformer import losses

        if options["negatives"] == "sampled":
            return losses.ContrastiveTensionLoss(model)
        compare, scale = in_batch.function(similarity), in_batch.scale_of(options["scale"], similarity)
        return losses.ContrastiveTensionLossInBatchNegatives(model, scale=scale, similarity_fct=compare).to(model.device)


RECIPES: dict[str, Recipe] = {"ct": ContrastiveTension()}
