"""Cropping: two spans of one document are a positive pair."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from topicscale.errors import ConfigError
from topicscale.finetune import in_batch, words
from topicscale.finetune.in_batch import check_number
from topicscale.finetune.recipe import Defaults, Kind, Recipe, Tools


class Crop(Recipe):
    """Independent cropping (Izacard et al., Unsupervised dense information retrieval with contrastive learning, TMLR 2022, "Contriever").

    Two spans of a document are drawn independently (they may overlap), a tenth of each one's words is deleted, and the spans of the
    batch's other documents are the negatives, at temperature .05. Each pass draws other spans.

    Needs texts alone, of any architecture; the longer the documents, the more two spans differ. When it helps: the paper's model
    does better than BM25 on 11 of 15 BEIR data sets (recall at 100) without a label.

    Spans have between ``min_share`` and ``max_share`` of the document's words, .1 to .5 as in the authors' training script, which cuts
    chunks of 256 tokens. Of a short document that would be a word or two, so that the shortest span has at least ``words`` words, and
    the longest may have twice as many: of 10 words, between 4 and 8 are taken. A document of ``words`` words or fewer is taken whole,
    and then dropout and deletion alone tell the two apart, as in SimCSE.

    Mean pooling and deletion are the paper's. Its batches of 2,048 and queue of 131,072 negatives are not: batch size 64, learning
    rate 2e-5 and 10 % warm-up are those of sentence-transformers' examples for in-batch negatives.
    """

    name = "crop"
    kinds = ("texts",)
    defaults = Defaults(epochs=1, batch_size=64, learning_rate=2e-5, warmup=0.1, weight_decay=0.01, pooling="mean")
    options = {"min_share": 0.1, "max_share": 0.5, "words": 4, "deletion": 0.1, "scale": None}  # noqa: RUF012 (declared a ClassVar)
    fresh = True
    no_duplicates = True

    def check(self, base: Any, options: Mapping[str, Any]) -> None:
        """Raise ConfigError where an option is out of range."""
        check_number(self.name, options, "min_share", above=0.0, most=1.0)
        check_number(self.name, options, "max_share", above=0.0, most=1.0)
        check_number(self.name, options, "words", least=1, whole=True)
        check_number(self.name, options, "deletion", least=0.0, below=1.0)
        in_batch.check_scale(self.name, options)
        if (low := options["min_share"]) > (high := options["max_share"]):
            raise ConfigError(f"The option min_share of the recipe crop must be at most max_share, {high}. Got {low} instead.")

    def examples(self, data: pa.Table, kind: Kind, options: Mapping[str, Any], *, base: str, seed: int, tools: Tools) -> pa.Table:
        """Return (anchor, positive), a row for each different text; the spans depend on the seed and the text alone."""
        texts = dict.fromkeys(data["text"].to_pylist())
        pairs = [_spans(text, options, words.draw(seed, text)) for text in texts]
        anchors, positives = zip(*pairs, strict=True) if pairs else ((), ())
        return pa.table({"anchor": pa.array(anchors, pa.string()), "positive": pa.array(positives, pa.string())})

    def loss(self, model: Any, options: Mapping[str, Any], *, base: str, similarity: str, workers: int) -> Any:
        """Return multiple negatives ranking loss."""
        return in_batch.loss(model, options["scale"], similarity=similarity, workers=workers)


def _spans(text: str, options: Mapping[str, Any], draw: random.Random) -> tuple[str, str]:
    parts = words.split(text)
    low, high = lengths(len(parts), options["min_share"], options["max_share"], options["words"])
    spans = []
    for _ in range(2):
        length = draw.randint(low, high)
        start = draw.randint(0, len(parts) - length)
        spans.append(words.delete(parts[start : start + length], options["deletion"], draw))
    return spans[0], spans[1]


def lengths(number: int, min_share: float, max_share: float, fewest: int) -> tuple[int, int]:
    """Return the fewest and the most words of a span of a document of ``number`` words (at least 1)."""
    low = min(number, max(round(min_share * number), fewest))
    return low, min(number, max(round(max_share * number), 2 * fewest, low))


RECIPES: dict[str, Recipe] = {"crop": Crop()}
