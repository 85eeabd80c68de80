"""GPL: questions written for unlabelled texts, negatives found for them, and margins by a cross-encoder to learn from.

Source: Wang, Thakur, Reimers and Gurevych, GPL: Generative Pseudo Labeling for Unsupervised Domain Adaptation of Dense Retrieval, NAACL
2022, section 3, and its code (UKPLab/gpl). MarginMSE: Hofstätter et al., Improving Efficient Neural Ranking Models with
Cross-Architecture Knowledge Distillation, 2020, equation 2.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from topicscale.config import FinetuneConfig, fingerprint
from topicscale.errors import ConfigError, InputError
from topicscale.finetune.in_batch import check_scale, check_unread
from topicscale.finetune.mining import top
from topicscale.finetune.recipe import Defaults, Kind, Recipe, Tools
from topicscale.finetune.recipes.augsbert import PACKAGED, cross_encoder_base

TRAINED_QUERIES = 250_000
"""Queries that the authors train on: their rule for ``queries: auto`` and for the number of passages."""
_DATA = ("input", "columns", "reader", "score_range")


class Gpl(Recipe):
    """Texts -> queries -> negatives -> margins of a cross-encoder -> MarginMSE.

    A query's margin is how much higher the cross-encoder scores the passage that it was written for than another one, as a difference of
    logits. With dot product, the model learns the margins as they come, as in the paper. A difference of cosines is at most 2, where
    margins of logits reach 20: with cosine they are divided by one number (the authors' code rescales them to a range that is given).
    By default it is the one by which margins have the base's own spread, as root mean squares over the examples, so that training
    changes which passage is nearer, not how far apart all are.

    Options
    -------
    generator : str
        Model that writes the queries: a causal language model or a T5 (see :mod:`topicscale.finetune.queries`).
    generation : mapping
        See :data:`topicscale.finetune.queries.OPTIONS`.
    queries : int or "auto"
        Queries for each text. Auto: 3, or for fewer than 83,334 texts as many as make 250,000 in all (the authors' rule).
    retrievers : list of str, optional
        Embedding models that find negatives. None is the base and all-MiniLM-L6-v2.
    negatives : int
        Texts that each retriever finds for a query.
    triples : int
        Examples for each query, each with another of these texts, drawn at random. (The authors draw about 18.)
    cross_encoder : str, optional
        Folder or hub id of the model that scores.
    cross_encoder_data : mapping, optional
        Scored pairs to train one on, where none is named: {input, columns, reader, score_range}, as a step's own input.
    cross_encoder_base : str, optional
        See :class:`topicscale.finetune.recipes.augsbert.AugSbert`.
    cross_encoder_options : mapping
        See :data:`topicscale.finetune.crossencoder.OPTIONS`.
    max_passages : int, optional
        Most texts that queries are written for and that negatives come from, chosen by a hash of seed and text; None takes all.
    scale : float, optional
        What margins are divided by. None: found from the base's cosines; with dot product it must be given, and 1 is the paper's.
    """

    name = "gpl"
    kinds: ClassVar[tuple[Kind, ...]] = ("texts",)
    # the authors warm up for 1,000 steps of 140,000: most runs are too short for that share
    defaults = Defaults(epochs=1, batch_size=32, learning_rate=2e-5, warmup=0.1, weight_decay=0.01)
    options: ClassVar[Mapping[str, Any]] = {
        "generator": "smollm2-135m-instruct",
        "generation": {},
        "queries": 3,
        "retrievers": None,
        "negatives": 50,
        "triples": 1,
        "cross_encoder": None,
        "cross_encoder_data": None,
        "cross_encoder_base": None,
        "cross_encoder_options": {},
        "max_passages": math.ceil(TRAINED_QUERIES / 3),
        "scale": None,
    }

    def depends(self, options: Mapping[str, Any]) -> list[str]:
        """Return the revisions of the models that it names, and a digest of the pairs that a cross-encoder is trained on."""
        from topicscale.llm.models import resolve as resolve_llm
        from topicscale.models import resolve

        names = [options["cross_encoder"], options["cross_encoder_base"], *(options["retrievers"] or ())]
        found = [resolve_llm(options["generator"]).revision, *(resolve(name).revision for name in names if name is not None)]
        data = options["cross_encoder_data"]
        return found if data is None else [*found, fingerprint(_scored(data).to_pylist())]

    def check(self, base: Any, options: Mapping[str, Any]) -> None:
        """Raise ConfigError where an option is out of its range or missing, ModelError where a model cannot be found."""
        from topicscale.finetune.crossencoder import check_scorer, settings, transformer
        from topicscale.finetune.queries import checked
        from topicscale.llm.models import resolve as resolve_llm
        from topicscale.models import resolve

        for option in ("queries", "negatives", "triples", "max_passages"):
            value = options[option]
            if (option, value) in (("queries", "auto"), ("max_passages", None)):
                continue
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{option} of the recipe gpl must be a number from 1. Got {value!r} instead.")
        check_scale(self.name, options)
        retrievers = options["retrievers"]
        if retrievers is not None and (isinstance(retrievers, str) or not isinstance(retrievers, Sequence)):
            raise ConfigError(f"retrievers of the recipe gpl must be a list of models. Got {retrievers!r} instead.")
        data = options["cross_encoder_data"]
        if (options["cross_encoder"] is None) == (data is None):
            raise ConfigError(
                "The recipe gpl needs one of cross_encoder (a model that scores pairs of texts) and cross_encoder_data (scored pairs to "
                f"train one on: {{input: pairs.csv}}). Got {'neither' if data is None else 'both'}."
            )
        if data is not None:
            if not isinstance(data, Mapping) or "input" not in data or (set(data) - set(_DATA)):
                raise ConfigError(f"cross_encoder_data of the recipe gpl must be a mapping of {', '.join(_DATA)}. Got {data!r} instead.")
            if options["cross_encoder_base"] is not None:
                transformer(options["cross_encoder_base"])
        else:
            check_unread(self, options, ("cross_encoder_base", "cross_encoder_options"), "with cross_encoder")
            check_scorer(options["cross_encoder"])
        settings(options["cross_encoder_options"])
        checked(options["generation"])
        resolve_llm(options["generator"])
        for retriever in options["retrievers"] or ():
            resolve(retriever)

    def check_settings(self, base: Any, settings: FinetuneConfig, options: Mapping[str, Any]) -> None:
        """Raise ConfigError for dot product without a scale, InputError where ``cross_encoder_data`` cannot be read."""
        if settings.similarity == "dot" and options["scale"] is None:
            raise ConfigError(
                "The recipe gpl needs scale with finetune.similarity=dot: 1 takes the margins as they come, as the paper does."
            )
        if options["cross_encoder_data"] is not None:
            _scored(options["cross_encoder_data"])

    def examples(self, data: pa.Table, kind: Kind, options: Mapping[str, Any], *, base: str, seed: int, tools: Tools) -> pa.Table:
        """Return query, positive, negative and ``label``: the margin, float64.

        Raises
        ------
        InputError
            There are no two different texts, no query could be written, or the cross-encoder's data are no scored pairs.
        ModelError
            A model cannot be loaded.
        """
        texts = _chosen(list(dict.fromkeys(data["text"].to_pylist())), options["max_passages"], seed)
        if len(texts) < 2:
            raise InputError(f"The recipe gpl needs two different texts at least. Got {len(texts)}.")
        scorer = options["cross_encoder"] or _trained(options, base=base, seed=seed, tools=tools)
        wanted = options["queries"] if options["queries"] != "auto" else max(3, math.ceil(TRAINED_QUERIES / len(texts)))
        written = tools.generate(options["generator"], texts, queries=wanted, seed=seed, options=options["generation"])
        asked = [(query, row) for row, queries in enumerate(written) for query in dict.fromkeys(queries) if query not in ("", texts[row])]
        if not asked:
            raise InputError(f"The generator {options['generator']!r} wrote no query for any of {len(texts)} texts. Name another one.")
        triples = _triples(asked, texts, options, base=base, seed=seed, tools=tools)
        if not triples:
            raise InputError(f"No query has a negative: each was written for all of the {len(texts)} texts.")
        pairs = list(dict.fromkeys((query, texts[row]) for query, *rows in triples for row in rows))
        scores = dict(zip(pairs, tools.score(scorer, pairs, logits=True).tolist(), strict=True))
        margins = np.array([scores[query, texts[right]] - scores[query, texts[wrong]] for query, right, wrong in triples])
        scale = options["scale"] or _scale(margins, triples, texts, base=base, tools=tools)
        return pa.table(
            {
                "query": [query for query, _, _ in triples],
                "positive": [texts[right] for _, right, _ in triples],
                "negative": [texts[wrong] for _, _, wrong in triples],
                "label": pa.array(margins / scale, pa.float64()),
            }
        )

    def loss(self, model: Any, options: Mapping[str, Any], *, base: str, similarity: str, workers: int) -> Any:
        """Return the mean squared error of margins.

        Raises
        ------
        ConfigError
            The similarity is dot product and no scale was given.
        """
        from sentence_transformers.sentence_transformer.losses import MarginMSELoss
        from sentence_transformers.util import pairwise_cos_sim, pairwise_dot_score

        if similarity == "dot" and options["scale"] is None:
            raise ConfigError(
                "The recipe gpl needs scale with finetune.similarity=dot: 1 takes the margins as they come, as the paper does."
            )
        return MarginMSELoss(model, similarity_fct=pairwise_cos_sim if similarity == "cosine" else pairwise_dot_score)


RECIPES: dict[str, Recipe] = {"gpl": Gpl()}


def _chosen(texts: list[str], most: int | None, seed: int) -> list[str]:
    if most is None or len(texts) <= most:
        return texts
    rank = sorted(range(len(texts)), key=lambda row: hashlib.sha256(f"{seed}\0{texts[row]}".encode("utf-8", "replace")).digest())
    return [texts[row] for row in sorted(rank[:most])]


def _trained(options: Mapping[str, Any], *, base: str, seed: int, tools: Tools) -> str:
    table = _scored(options["cross_encoder_data"])
    return tools.cross_encoder(cross_encoder_base(base, options), table, {"seed": seed, **options["cross_encoder_options"]})


def _scored(given: Mapping[str, Any]) -> pa.Table:
    from topicscale.finetune.data import read

    paths = [given["input"]] if isinstance(given["input"], str) else list(given["input"])
    return read(
        paths, given.get("columns") or {}, reader=given.get("reader"), score_range=given.get("score_range"), kinds=("scored",)
    ).table


def _triples(
    asked: list[tuple[str, int]], texts: list[str], options: Mapping[str, Any], *, base: str, seed: int, tools: Tools
) -> list[tuple[str, int, int]]:
    """Return (query, row of its text, row of a negative)."""
    queries = list(dict.fromkeys(query for query, _ in asked))
    at = {query: i for i, query in enumerate(queries)}
    # a query that was written for several texts is answered by all of them
    own: list[list[int]] = [[] for _ in queries]
    for query, row in asked:
        own[at[query]].append(row)
    found: list[dict[int, None]] = [{} for _ in queries]
    for model in dict.fromkeys(options["retrievers"] or (base, PACKAGED)):
        vectors = tools.embed(model, [*queries, *texts])
        rows, _ = top(vectors[: len(queries)], vectors[len(queries) :], options["negatives"], excluded=own)
        for candidates, near in zip(found, rows.tolist(), strict=True):
            candidates.update(dict.fromkeys(row for row in near if row >= 0))
    triples = []
    for i, (query, right) in enumerate(asked):
        pool = sorted(found[at[query]])
        drawn = np.random.default_rng([seed, i]).permutation(len(pool))[: options["triples"]]
        triples += [(query, right, pool[place]) for place in drawn]
    return triples


def _scale(margins: Any, triples: list[tuple[str, int, int]], texts: list[str], *, base: str, tools: Tools) -> float:
    """Return what margins are divided by so that their root mean square is that of the base's own margins of cosines."""
    queries = list(dict.fromkeys(query for query, _, _ in triples))
    at = {query: i for i, query in enumerate(queries)}
    vectors = tools.embed(base, [*queries, *texts])
    asked, passages = vectors[[at[query] for query, _, _ in triples]], vectors[len(queries) :]
    own = np.einsum("nd,nd->n", asked, passages[[right for _, right, _ in triples]] - passages[[wrong for *_, wrong in triples]])
    spread, given = float(np.sqrt(np.mean(own.astype(np.float64) ** 2))), float(np.sqrt(np.mean(margins**2)))
    return given / spread if given > 0 and spread > 0 else 1.0
