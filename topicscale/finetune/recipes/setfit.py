"""SetFit: pairs of texts of the same class and of different classes."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from topicscale.config import FinetuneConfig
from topicscale.errors import ConfigError, InputError
from topicscale.finetune import in_batch
from topicscale.finetune.in_batch import check_number
from topicscale.finetune.recipe import Defaults, Kind, Recipe, Tools

LOSSES = ("cosine", "mnr")
ITERATIONS = {"cosine": 20, "mnr": 1}


class SetFit(Recipe):
    """Sentence transformer fine-tuning from class labels (Tunstall et al., arXiv:2209.11055, 2022), its first half.

    ``loss: cosine`` is the paper's: pairs of one class should have cosine 1, pairs of different classes 0 (mean squared error). Each text
    is the first of ``iterations`` positive and as many negative pairs, 20 as in the authors' code (``num_iterations``), or else
    ``pairs_per_class`` of each kind are drawn for each class, which is the paper's R. ``loss: mnr`` takes positive pairs alone and the
    batch's texts of other classes as negatives; those of the anchor's own class are left out of its softmax, so that a batch may hold
    many of one class. Each pass draws other pairs. The classification head of the paper is not trained: embeddings are what is wanted.

    Needs texts with classes, two classes or more, of which one has two different texts; any architecture. A class of one text has no
    positive pairs, and serves as negative. When it helps: where labels are few; the authors report that eight a class, on customer
    reviews, do about as well as RoBERTa-large fine-tuned on all 3,000. 20 iterations of n texts are 40 n pairs: with more than some hundred
    texts give ``pairs_per_class``, or take mnr, which makes n pairs a pass.

    Defaults are the authors' code's: batch 16, learning rate 2e-5, one pass, 10 % warm-up. For mnr larger batches hold more negatives.
    """

    name = "setfit"
    kinds = ("classes",)
    defaults = Defaults(epochs=1, batch_size=16, learning_rate=2e-5, warmup=0.1, weight_decay=0.01, pooling="mean")
    options = {"loss": "cosine", "iterations": None, "pairs_per_class": None, "scale": None}  # noqa: RUF012 (declared a ClassVar)
    fresh = True

    def check(self, base: Any, options: Mapping[str, Any]) -> None:
        """Raise ConfigError where an option is wrong."""
        if options["loss"] not in LOSSES:
            raise ConfigError(f"The option loss of the recipe setfit must be one of {', '.join(LOSSES)}. Got {options['loss']!r} instead.")
        check_number(self.name, options, "iterations", least=1, whole=True, optional=True)
        check_number(self.name, options, "pairs_per_class", least=1, whole=True, optional=True)
        in_batch.check_scale(self.name, options)
        if options["iterations"] is not None and options["pairs_per_class"] is not None:
            raise ConfigError("The recipe setfit takes one of the options iterations and pairs_per_class. Got both instead.")
        if options["loss"] == "cosine":
            in_batch.check_unread(self, options, ("scale",), "with loss: cosine")

    def check_settings(self, base: Any, settings: FinetuneConfig, options: Mapping[str, Any]) -> None:
        """Raise ConfigError for cosine's loss with dot product."""
        if options["loss"] == "cosine" and settings.similarity == "dot":
            raise ConfigError(
                "finetune.similarity must be cosine with the recipe setfit and loss: cosine. Got 'dot' instead. Set loss: mnr."
            )

    def examples(self, data: pa.Table, kind: Kind, options: Mapping[str, Any], *, base: str, seed: int, tools: Tools) -> pa.Table:
        """Return (anchor, positive, label), label 1.0 or 0.0 (float32); for mnr, label is the class's place in order (int64).

        Raises
        ------
        InputError
            There is one class, or none has two different texts.
        """
        classes: dict[str, list[str]] = {}
        for text, label in sorted(set(zip(data["text"].to_pylist(), data["label"].to_pylist(), strict=True)), key=lambda row: row[::-1]):
            classes.setdefault(label, []).append(text)
        if len(classes) < 2:
            raise InputError(f"The recipe setfit needs at least two classes. Got {len(classes)} instead.")
        if max(map(len, classes.values())) < 2:
            raise InputError("The recipe setfit needs a class of at least two different texts. Got one text of each class instead.")
        pairs = _Pairs(classes, random.Random(seed))
        rows: list[tuple[str, str, float]] = []
        for anchor, name in pairs.anchors(options):
            if (positive := pairs.positive(anchor, name)) is not None:
                rows.append((anchor, positive, pairs.order[name] if options["loss"] == "mnr" else 1.0))
            if options["loss"] == "cosine" and (negative := pairs.negative(anchor, name)) is not None:
                rows.append((anchor, negative, 0.0))
        anchors, others, labels = zip(*rows, strict=True)
        return pa.table(
            {
                "anchor": pa.array(anchors, pa.string()),
                "positive": pa.array(others, pa.string()),
                "label": pa.array(labels, pa.int64() if options["loss"] == "mnr" else pa.float32()),
            }
        )

    def loss(self, model: Any, options: Mapping[str, Any], *, base: str, similarity: str, workers: int) -> Any:
        """Return ``CosineSimilarityLoss``, or the class-aware multiple negatives ranking loss (:func:`class_contrast`).

        Raises
        ------
        ConfigError
            ``loss: cosine`` with dot product as similarity.
        """
        from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

        if options["loss"] == "mnr":
            return class_contrast(model, options["scale"], similarity=similarity, workers=workers)
        if similarity != "cosine":
            raise ConfigError(
                f"finetune.similarity must be cosine with the recipe setfit and loss: cosine. Got {similarity!r} instead. Set loss: mnr."
            )
        return CosineSimilarityLoss(model)


class _Pairs:
    """Draws pairs of texts by class."""

    def __init__(self, classes: Mapping[str, list[str]], draw: random.Random) -> None:
        self.classes, self.draw = classes, draw
        self.order = {name: place for place, name in enumerate(classes)}
        self.texts = [text for texts in classes.values() for text in texts]
        ends = itertools.accumulate(map(len, classes.values()), initial=0)
        self.start = dict(zip(classes, ends, strict=False))

    def anchors(self, options: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return (text, class) of each pair's first text."""
        if (number := options["pairs_per_class"]) is not None:
            return [(self.draw.choice(texts), name) for name, texts in self.classes.items() for _ in range(number)]
        rounds = options["iterations"] or ITERATIONS[options["loss"]]
        return [(text, name) for _ in range(rounds) for name, texts in self.classes.items() for text in texts]

    def positive(self, anchor: str, name: str) -> str | None:
        """Return another text of the class; None where there is none."""
        texts = self.classes[name]
        if len(texts) < 2:
            return None
        place = self.draw.randrange(len(texts) - 1)
        return texts[place + (place >= bisect.bisect_left(texts, anchor))]  # texts of a class are sorted

    def negative(self, anchor: str, name: str) -> str | None:
        """Return a text of another class; None where the one that is drawn is the anchor itself, labelled twice."""
        size = len(self.classes[name])
        place = self.draw.randrange(len(self.texts) - size)
        text = self.texts[place + (size if place >= self.start[name] else 0)]
        return None if text == anchor else text


def class_contrast(model: Any, scale: float | None, *, similarity: str, workers: int) -> Any:
    """Return multiple negatives ranking loss whose negatives are the batch's positives of other classes than the anchor's.

    For anchor i of class c, -log(exp(s_ii) / (exp(s_ii) + sum of exp(s_ij) over j of other classes)), with s the scaled similarity:
    :mod:`topicscale.finetune.in_batch` without false negatives. A batch of one class has loss 0.

    Parameters
    ----------
    model : sentence_transformers.SentenceTransformer
    scale : float or None
        None takes 20 for cosine, 1 for dot product.
    similarity : {"cosine", "dot"}
    workers : int
        Where it is more than 1, positives of all workers are negatives.
    """
    import torch
    from sentence_transformers.base.losses.merged_forward import embed_columns
    from sentence_transformers.util import all_gather, all_gather_with_grad, get_rank

    compare, factor = in_batch.function(similarity), in_batch.scale_of(scale, similarity)

    class ClassContrast(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model  # under this name the trainer puts the model that all workers train

        def forward(self, sentence_features: Any, labels: torch.Tensor) -> torch.Tensor:
            anchors, positives = embed_columns(self.model, sentence_features)
            return self.contrast(anchors, positives, labels.view(-1))

        def contrast(self, anchors: torch.Tensor, positives: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            """Return the loss of embeddings (n, d), (n, d) and classes (n,)."""
            offset, everyone = 0, labels
            if workers > 1:
                positives, everyone = all_gather_with_grad(positives), all_gather(labels)
                offset = get_rank() * len(labels)
            own = torch.arange(offset, offset + len(labels), device=labels.device)
            scores = compare(anchors, positives) * factor
            same = labels[:, None] == everyone[None, :]
            same[torch.arange(len(labels), device=labels.device), own] = False
            return torch.nn.functional.cross_entropy(scores.masked_fill(same, float("-inf")), own)

        def get_config_dict(self) -> dict[str, Any]:
            return {"scale": factor, "similarity": similarity}

    return ClassContrast()


RECIPES: dict[str, Recipe] = {"setfit": SetFit()}
