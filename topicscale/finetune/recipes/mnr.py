"""Multiple negatives ranking: an anchor is to be more like its positive than like every other text of the batch.

Source: Henderson et al., Efficient Natural Language Response Suggestion for Smart Reply, 2017, section 4.4; scaled cosines as in
sentence-transformers. ``cached-mnr`` computes the same loss and the same gradients in memory for ``mini_batch_size`` texts (GradCache:
Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, RepL4NLP 2021), so that a batch may hold thousands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from topicscale.errors import ConfigError, InputError
from topicscale.finetune.in_batch import check_number, check_scale, check_unread
from topicscale.finetune.mining import MODES, RELATIVE, mine
from topicscale.finetune.recipe import Defaults, Kind, Recipe, Tools

NEGATIVES = ("given", *MODES)
_MINING: dict[str, tuple[str, ...]] = {
    "given": (),
    "easy": ("number",),
    "semi-hard": ("number", "margin", "retriever"),
    "hard": ("number", "margin", "max_similarity", "relative", "retriever"),
}
"""The options that each way to negatives reads; the last reads all."""


class Mnr(Recipe):
    """Pairs against the rest of their batch.

    =================  =====================================================================================================
    kind               pairs
    =================  =====================================================================================================
    pairs              (anchor, positive), and a negative where the data name one
    nli                sentence pairs of entailment; a contradiction of the same first sentence is a negative
    classes            each text with ``partners`` texts of its class; texts of one class are no negatives of one another
    =================  =====================================================================================================

    Options
    -------
    scale : float, optional
        Factor on similarities before the softmax; None is 20 for cosine (a temperature of .05) and 1 for dot product.
    symmetric : bool
        Also ask that a positive be more like its anchor than like the other anchors.
    negatives : {"given", "easy", "semi-hard", "hard"}
        Given: those that the data name; a pair without one, where others have one, gets a random text. Others: see
        :func:`topicscale.finetune.mining.mine`, over all texts of the data, negatives that these name among them.
    number : int
        Mined negatives a pair.
    margin, max_similarity, relative : float, optional
        Limits of mining: for hard all, for semi-hard ``margin``.
    retriever : str, optional
        Embedding model that both search with; None is the base.
    partners : int
        Pairs that each text of a class is the anchor of.
    mini_batch_size : int
        Texts that pass through the model at once (``cached-mnr``).
    """

    name = "mnr"
    kinds: ClassVar[tuple[Kind, ...]] = ("pairs", "nli", "classes")
    defaults = Defaults(epochs=1, batch_size=64, learning_rate=2e-5, warmup=0.1)
    options: ClassVar[Mapping[str, Any]] = {
        "scale": None,
        "symmetric": False,
        "negatives": "given",
        "number": 1,
        "margin": None,
        "max_similarity": None,
        "relative": RELATIVE,
        "retriever": None,
        "partners": 1,
    }
    no_duplicates = True

    def depends(self, options: Mapping[str, Any]) -> list[str]:
        """Return the revision of the retriever."""
        from topicscale.models import resolve

        return [resolve(options["retriever"]).revision] if options["retriever"] is not None else []

    def check(self, base: Any, options: Mapping[str, Any]) -> None:
        """Raise ConfigError where an option is out of its range."""
        if options["negatives"] not in NEGATIVES:
            raise ConfigError(
                f"negatives of the recipe {self.name} must be one of {', '.join(NEGATIVES)}. Got {options['negatives']!r} instead."
            )
        check_scale(self.name, options)
        check_number(self.name, options, "margin", least=0.0, most=2.0, optional=True)
        check_number(self.name, options, "max_similarity", least=-1.0, most=1.0, optional=True)
        check_number(self.name, options, "relative", above=0.0, most=1.0, optional=True)
        for option in ("number", "partners", "mini_batch_size"):
            if option in options and (not isinstance(options[option], int) or options[option] < 1):
                raise ConfigError(f"{option} of the recipe {self.name} must be a number from 1. Got {options[option]!r} instead.")
        mode = options["negatives"]
        check_unread(self, options, [key for key in _MINING["hard"] if key not in _MINING[mode]], f"with negatives: {mode}")

    def examples(self, data: pa.Table, kind: Kind, options: Mapping[str, Any], *, base: str, seed: int, tools: Tools) -> pa.Table:
        """Return anchor, positive, any negatives, and for classes ``label``: the class's number, int64, or with negatives a list of
        it and of theirs.

        Raises
        ------
        InputError
            The data hold no pair, or no pair has a negative.
        """
        given: list[str | None] = []
        classes: dict[str, str] = {}
        if kind == "classes":
            classes = dict(zip(data["text"].to_pylist(), data["label"].to_pylist(), strict=True))
            pairs = _partners(classes, options["partners"], seed)
        elif kind == "nli":
            pairs, given = _entailed(data)
        else:
            pairs = list(zip(data["anchor"].to_pylist(), data["positive"].to_pylist(), strict=True))
            given = data["negative"].to_pylist() if "negative" in data.column_names else []
        pairs, given = _distinct(pairs, given)
        if not pairs:
            raise InputError(f"The recipe {self.name} found no pair of two different texts in the data: {_NEEDS[kind]}.")
        anchors, positives = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        columns: dict[str, Any] = {"anchor": anchors, "positive": positives}
        corpus = list(dict.fromkeys([*anchors, *positives, *(text for text in given if text)]))
        if options["negatives"] != "given":
            columns |= self._mined(anchors, positives, corpus, classes, options, base, seed, tools)
        elif any(given):
            drawn = self._mined(anchors, positives, corpus, classes, {**options, "negatives": "easy"}, base, seed, tools)["negative"]
            columns["negative"] = [text or other for text, other in zip(given, drawn, strict=True)]
        if classes:
            number = {label: i for i, label in enumerate(sorted(set(classes.values())))}
            known = [[number.get(classes.get(text or "", ""), -1) for text in row] for row in zip(*list(columns.values())[1:], strict=True)]
            columns["label"] = (
                pa.array(known, pa.list_(pa.int64())) if len(columns) > 2 else pa.array([row[0] for row in known], pa.int64())
            )
        table = pa.table(columns)
        kept = np.all([[text is not None for text in table[name].to_pylist()] for name in table.column_names], axis=0)
        if not kept.any():
            raise InputError(f"No pair has a negative: every other text is coupled with it or too like it. Got {len(pairs)} pairs.")
        return table.filter(pa.array(kept))

    def _mined(
        self,
        anchors: list[str],
        positives: list[str],
        corpus: list[str],
        classes: Mapping[str, str],
        options: Mapping[str, Any],
        base: str,
        seed: int,
        tools: Tools,
    ) -> dict[str, list[str | None]]:
        model = options["retriever"] or base
        found = mine(
            anchors,
            positives,
            corpus,
            lambda texts: tools.embed(model, texts),
            mode=options["negatives"],
            number=options["number"],
            margin=options["margin"],
            max_similarity=options["max_similarity"],
            relative=options["relative"],
            groups=([classes[text] for text in anchors], [classes[text] for text in corpus]) if classes else None,
            seed=seed,
        )
        names = ["negative"] if options["number"] == 1 else [f"negative_{i + 1}" for i in range(options["number"])]
        return {name: [corpus[row] if row >= 0 else None for row in found[:, i].tolist()] for i, name in enumerate(names)}

    def loss(self, model: Any, options: Mapping[str, Any], *, base: str, similarity: str, workers: int) -> Any:
        """Return the loss; several workers rank each anchor against the texts of all."""
        from topicscale.finetune.ranking import Ranking

        return Ranking(model, **_settings(options, similarity, workers))


class MnrHard(Mnr):
    """Multiple negatives ranking with one mined hard negative a pair (see :class:`Mnr` for the options)."""

    name = "mnr-hard"
    options: ClassVar[Mapping[str, Any]] = {**Mnr.options, "negatives": "hard"}


class CachedMnr(Mnr):
    """Multiple negatives ranking over large batches in little memory, at about twice the time (see :class:`Mnr` for the options)."""

    name = "cached-mnr"
    defaults = Defaults(epochs=1, batch_size=1024, learning_rate=2e-5, warmup=0.1)
    options: ClassVar[Mapping[str, Any]] = {**Mnr.options, "mini_batch_size": 32}
    cached = True

    def loss(self, model: Any, options: Mapping[str, Any], *, base: str, similarity: str, workers: int) -> Any:
        """Return the loss; several workers rank each anchor against the texts of all."""
        from topicscale.finetune.ranking import CachedRanking

        return CachedRanking(model, mini_batch_size=options["mini_batch_size"], **_settings(options, similarity, workers))


RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (Mnr(), MnrHard(), CachedMnr())}
_NEEDS = {
    "pairs": "name columns whose texts differ",
    "nli": "it needs rows of entailment",
    "classes": "it needs a class with two texts",
}


def _settings(options: Mapping[str, Any], similarity: str, workers: int) -> dict[str, Any]:
    from sentence_transformers.util import cos_sim, dot_score

    symmetric = options["symmetric"]
    return {
        "scale": options["scale"] or (20.0 if similarity == "cosine" else 1.0),
        "similarity_fct": cos_sim if similarity == "cosine" else dot_score,
        "gather_across_devices": workers > 1,
        "directions": ("query_to_doc", "doc_to_query") if symmetric else ("query_to_doc",),
        "partition_mode": "per_direction" if symmetric else "joint",
    }


def _partners(classes: Mapping[str, str], number: int, seed: int) -> list[tuple[str, str]]:
    """Return pairs within classes: each text is the anchor, and the positive, of ``number`` pairs, where its class has as many others."""
    texts: dict[str, list[str]] = {}
    for text in sorted(classes):
        texts.setdefault(classes[text], []).append(text)
    pairs = []
    for i, label in enumerate(sorted(texts)):
        members = [texts[label][j] for j in np.random.default_rng([seed, i]).permutation(len(texts[label]))]
        for step in range(1, min(number, len(members) - 1) + 1):
            pairs += [(text, members[(place + step) % len(members)]) for place, text in enumerate(members)]
    return pairs


def _entailed(data: pa.Table) -> tuple[list[tuple[str, str]], list[str | None]]:
    """Return pairs of entailment, and for each a contradiction of the same first sentence where there is one."""
    rows = list(zip(*(data[name].to_pylist() for name in ("sentence1", "sentence2", "label")), strict=True))
    against: dict[str, list[str]] = {}
    for first, second, label in rows:
        if label == "contradiction":
            against.setdefault(first, []).append(second)
    pairs: list[tuple[str, str]] = []
    given: list[str | None] = []
    used: dict[str, int] = {}
    for first, second, label in rows:
        if label == "entailment":
            turn = used[first] = used.get(first, -1) + 1
            pairs.append((first, second))
            given.append(against[first][turn % len(against[first])] if first in against else None)
    return pairs, given


def _distinct(pairs: list[tuple[str, str]], given: list[str | None]) -> tuple[list[tuple[str, str]], list[str | None]]:
    """Return the pairs of two different texts, each once, with their negatives; a negative that is one of its pair's texts is none."""
    found: dict[tuple[str, str, str | None], None] = {}
    for pair, negative in zip(pairs, given or [None] * len(pairs), strict=True):
        if pair[0] != pair[1]:
            found[(*pair, negative if negative and negative not in pair else None)] = None
    return [(anchor, positive) for anchor, positive, _ in found], [negative for *_, negative in found] if given else []
