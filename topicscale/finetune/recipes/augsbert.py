"""Augmented SBERT: a cross-encoder, trained on the labelled pairs, labels many more for the embedding model.

Source: Thakur et al., Augmented SBERT: Data Augmentation Method for Improving Bi-Encoders for Pairwise Sentence Scoring Tasks, NAACL
2021, section 3.1; random pairs, 10 a sentence: Alammar and Grootendorst, Hands-On Large Language Models, 2024, "Creating Text
Embedding Models".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa

from topicscale.errors import ConfigError, InputError
from topicscale.finetune.in_batch import check_unread
from topicscale.finetune.mining import mine, top
from topicscale.finetune.recipe import Defaults, Kind, Recipe, Tools

PER_SENTENCE = {"random": 10, "semantic": 3}
"""Pairs for each sentence: the book's, and ``top_k`` of the authors' code."""
PACKAGED = "all-MiniLM-L6-v2"


class AugSbert(Recipe):
    """Scored pairs (gold), and as many more as are sampled and scored by a cross-encoder (silver); then regression on the cosine.

    Options
    -------
    cross_encoder_base : str, optional
        Encoder that the cross-encoder is made of. None is the model that this step starts from, or all-MiniLM-L6-v2 where that one is no
        encoder.
    cross_encoder : mapping
        How it is trained: see :data:`topicscale.finetune.crossencoder.OPTIONS`.
    sampling : {"random", "semantic"}
        Random: each first sentence with random second sentences of other pairs. Semantic: each sentence with those most like it, which
        gives more pairs that are alike (the paper's section 3.1: most random pairs are not, and the model learns little of them).
    per_sentence : int, optional
        Pairs for each sentence; None is 10 for random and 3 for semantic.
    retriever : str
        Embedding model that the semantic search uses.
    """

    name = "augsbert"
    kinds: ClassVar[tuple[Kind, ...]] = ("scored",)
    defaults = Defaults(epochs=1, batch_size=16, learning_rate=2e-5, warmup=0.1)
    options: ClassVar[Mapping[str, Any]] = {
        "cross_encoder_base": None,
        "cross_encoder": {},
        "sampling": "random",
        "per_sentence": None,
        "retriever": PACKAGED,
    }

    def depends(self, options: Mapping[str, Any]) -> list[str]:
        """Return the revisions of the models that it names."""
        from topicscale.models import resolve

        return [resolve(name).revision for name in (options["cross_encoder_base"], options["retriever"]) if name is not None]

    def check(self, base: Any, options: Mapping[str, Any]) -> None:
        """Raise ConfigError where an option is out of its range, ModelError where a model cannot be found."""
        from topicscale.finetune.crossencoder import settings, transformer
        from topicscale.models import resolve

        if options["sampling"] not in PER_SENTENCE:
            raise ConfigError(f"sampling of the recipe augsbert must be random or semantic. Got {options['sampling']!r} instead.")
        number = options["per_sentence"]
        if number is not None and (not isinstance(number, int) or number < 1):
            raise ConfigError(f"per_sentence of the recipe augsbert must be a number from 1. Got {number!r} instead.")
        settings(options["cross_encoder"])
        if options["cross_encoder_base"] is not None:
            transformer(options["cross_encoder_base"])
        if options["sampling"] == "semantic":
            resolve(options["retriever"])
        else:
            check_unread(self, options, ("retriever",), "with sampling: random")

    def examples(self, data: pa.Table, kind: Kind, options: Mapping[str, Any], *, base: str, seed: int, tools: Tools) -> pa.Table:
        """Return sentence1, sentence2 and ``label``, float64 in [0, 1]: gold, then silver. A pair that is gold is never silver."""
        gold: dict[tuple[str, str], float] = {}
        for one, two, score in zip(*(data[name].to_pylist() for name in ("sentence1", "sentence2", "score")), strict=True):
            gold.setdefault((one, two), score)
        if not gold:
            raise InputError("The recipe augsbert needs scored pairs. Got none.")
        names = ("sentence1", "sentence2", "score")
        examples = pa.table(dict(zip(names, ([a for a, _ in gold], [b for _, b in gold], list(gold.values())), strict=True)))
        model = tools.cross_encoder(cross_encoder_base(base, options), examples, {"seed": seed, **options["cross_encoder"]})
        pairs = candidates(list(gold), options, seed=seed, tools=tools)
        scores = tools.score(model, pairs).tolist() if pairs else []
        every = [*gold, *pairs]
        label = pa.array([*gold.values(), *scores], pa.float64())
        return pa.table({"sentence1": [a for a, _ in every], "sentence2": [b for _, b in every], "label": label})

    def loss(self, model: Any, options: Mapping[str, Any], *, base: str, similarity: str, workers: int) -> Any:
        """Return the mean squared error of the cosine, with either similarity: scores lie in [0, 1], and dot products do not."""
        from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

        return CosineSimilarityLoss(model)


def cross_encoder_base(base: str, options: Mapping[str, Any]) -> str:
    """Return what a cross-encoder is made of: what the options name, else the base if it is an encoder, else a packaged one."""
    from topicscale.finetune.crossencoder import is_encoder

    if options["cross_encoder_base"] is not None:
        return str(options["cross_encoder_base"])
    return base if is_encoder(base) else PACKAGED


def candidates(gold: list[tuple[str, str]], options: Mapping[str, Any], *, seed: int, tools: Tools) -> list[tuple[str, str]]:
    """Return the pairs to be scored: each once, in one order of its texts, none of them gold, none of a text with itself."""
    number = options["per_sentence"] or PER_SENTENCE[options["sampling"]]
    if options["sampling"] == "random":
        corpus = list(dict.fromkeys(two for _, two in gold))
        firsts, seconds = [one for one, _ in gold], [two for _, two in gold]
        drawn = mine(firsts, seconds, corpus, lambda texts: tools.embed(PACKAGED, texts), mode="easy", number=number, seed=seed).tolist()
        place = {one: row for row, one in reversed(list(enumerate(firsts)))}  # a sentence of several pairs draws once
        found = [(one, corpus[other]) for one, row in sorted(place.items(), key=lambda item: item[1]) for other in drawn[row] if other >= 0]
    else:
        corpus = list(dict.fromkeys(text for pair in gold for text in pair))
        vectors = tools.embed(options["retriever"], corpus)
        rows, _ = top(vectors, vectors, number, excluded=[[i] for i in range(len(corpus))])
        found = [(text, corpus[other]) for text, near in zip(corpus, rows.tolist(), strict=True) for other in near if other >= 0]
    known = {frozenset(pair) for pair in gold}
    new: dict[frozenset[str], tuple[str, str]] = {}
    for pair in found:
        if frozenset(pair) not in known:
            new.setdefault(frozenset(pair), pair)
    return list(new.values())


RECIPES: dict[str, Recipe] = {"augsbert": AugSbert()}
