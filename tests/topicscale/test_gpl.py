"""GPL: queries, negatives, margins and their scale; then the whole of it with real models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.topicscale.tiny import t5
from topicscale import config
from topicscale.errors import ConfigError, InputError, ModelError
from topicscale.finetune.recipes import gpl, recipe
from topicscale.finetune.tools import LocalTools

GPL = recipe("gpl")
TEXTS = [f"text {i}" for i in range(30)]


class Scripted:
    """Vectors by hash, queries that name their text, scores by hash; remembers what it was asked."""

    def __init__(self, queries: Mapping[str, list[str]] | None = None) -> None:
        self.queries = queries
        self.embedded: list[tuple[str, int]] = []
        self.scored: list[tuple[str, str]] = []
        self.asked: list[tuple[list[str], int, dict[str, Any]]] = []

    def vectors(self, model: str, texts: Sequence[str]) -> np.ndarray:
        rows = np.stack([np.random.default_rng(list(f"{model} {text}".encode())).normal(size=5) for text in texts]).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed(self, model: str, texts: Sequence[str]) -> np.ndarray:
        self.embedded.append((model, len(texts)))
        return self.vectors(model, texts)

    def generate(self, model: str, texts: Sequence[str], *, queries: int, seed: int, options: Mapping[str, Any]) -> list[list[str]]:
        self.asked.append((list(texts), queries, dict(options)))
        if self.queries is not None:
            return [self.queries.get(text, []) for text in texts]
        return [[f"what {text} {i}?" for i in range(queries)] for text in texts]

    def logit(self, query: str, text: str) -> float:
        return float(np.float32(np.random.default_rng(list(f"{query}|{text}".encode())).normal() * 6))

    def score(self, model: str, pairs: Sequence[tuple[str, str]], *, logits: bool = False) -> np.ndarray:
        assert logits
        self.scored += pairs
        return np.array([self.logit(*pair) for pair in pairs], np.float32)


def made(tools: Any, texts: Sequence[str] = TEXTS, seed: int = 42, **options: Any) -> list[dict[str, Any]]:
    settings = GPL.with_defaults({"cross_encoder": "ce", **options})
    return GPL.examples(pa.table({"text": list(texts)}), "texts", settings, base="base", seed=seed, tools=tools).to_pylist()


def test_a_query_its_text_and_a_negative_that_a_retriever_found():
    tools = Scripted()
    rows = made(tools, retrievers=["r1", "r2"], negatives=4, triples=3, queries=2)
    assert len(rows) == len(TEXTS) * 2 * 3
    for row in rows:
        others = [text for text in TEXTS if text != row["positive"]]
        assert row["positive"] in row["query"]
        near = set()
        for model in ("r1", "r2"):
            similarities = tools.vectors(model, others) @ tools.vectors(model, [row["query"]])[0]
            near |= {others[i] for i in np.argsort(-similarities)[:4]}
        assert row["negative"] in near
    of_one = [row["negative"] for row in rows if row["query"] == rows[0]["query"]]
    assert len(set(of_one)) == 3
    assert rows == made(Scripted(), retrievers=["r1", "r2"], negatives=4, triples=3, queries=2)
    assert rows != made(Scripted(), retrievers=["r1", "r2"], negatives=4, triples=3, queries=2, seed=1)


def test_labels_are_margins_of_logits_divided_by_the_scale():
    tools = Scripted()
    for row in made(tools, scale=2.5):
        margin = tools.logit(row["query"], row["positive"]) - tools.logit(row["query"], row["negative"])
        assert row["label"] == pytest.approx(margin / 2.5, abs=1e-5)
    assert len(set(tools.scored)) == len(tools.scored)  # each pair is scored once


def test_found_scale_gives_margins_the_bases_own_spread():
    tools = Scripted()
    rows = made(tools)
    one, right, wrong = (tools.vectors("base", [row[name] for row in rows]) for name in ("query", "positive", "negative"))
    own = (one * (right - wrong)).sum(axis=1)
    label = np.array([row["label"] for row in rows])
    assert np.sqrt((label**2).mean()) == pytest.approx(np.sqrt((own**2).mean()), rel=1e-4)
    raw = np.array([row["label"] for row in made(Scripted(), scale=1)])
    assert np.allclose(raw / label, (raw / label)[0], rtol=1e-4)
    assert {model for model, _ in tools.embedded} == {"base", "all-MiniLM-L6-v2"}


def test_a_query_of_two_texts_has_neither_as_its_negative():
    tools = Scripted({"text 0": ["why?", "text 0", ""], "text 1": ["why?"], "text 2": []})
    rows = made(tools, TEXTS[:4], negatives=50, triples=9, scale=1)
    assert {(row["query"], row["positive"], row["negative"]) for row in rows} == {
        ("why?", positive, negative) for positive in ("text 0", "text 1") for negative in ("text 2", "text 3")
    }


def test_number_of_queries_and_of_passages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpl, "TRAINED_QUERIES", 45)
    tools = Scripted()
    made(tools, [*TEXTS, *TEXTS], queries="auto", max_passages=10, generation={"top_k": 5}, triples=1, scale=1, retrievers=["r"])
    ((texts, queries, options),) = tools.asked
    assert (len(texts), queries, options) == (10, 5, {"top_k": 5})
    assert set(texts) < set(TEXTS)
    assert texts == sorted(texts, key=TEXTS.index)
    other = Scripted()
    made(other, list(reversed(TEXTS)), max_passages=10)
    assert set(other.asked[0][0]) == set(texts)


def test_nothing_to_learn_from():
    with pytest.raises(InputError, match="two different texts"):
        made(Scripted(), ["a", "a"])
    with pytest.raises(InputError, match="wrote no query"):
        made(Scripted({}))
    with pytest.raises(InputError, match="No query has a negative"):
        made(Scripted({"text 0": ["why?"], "text 1": ["why?"]}), TEXTS[:2])


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({}, ConfigError, "neither"),
        ({"cross_encoder": "ce", "cross_encoder_data": {"input": "x"}}, ConfigError, "both"),
        ({"cross_encoder_data": {"inputs": "x"}}, ConfigError, "must be a mapping"),
        ({"cross_encoder": "./none", "queries": 0}, ConfigError, "queries"),
        ({"cross_encoder": "./none", "scale": 0}, ConfigError, "more than 0"),
        ({"cross_encoder": "all-MiniLM-L6-v2"}, ModelError, "is no cross-encoder, but a BertModel"),
        ({"cross_encoder_data": {"input": "x"}, "retrievers": "all-MiniLM-L6-v2"}, ConfigError, "must be a list of models"),
        ({"cross_encoder": "./none"}, ModelError, "no model folder"),
        ({"cross_encoder": "./none", "cross_encoder_options": {"epochs": 2}}, ConfigError, "must be left out with cross_encoder"),
        ({"cross_encoder_data": {"input": "x"}, "generation": {"beams": 2}}, ConfigError, "no option 'beams'"),
        ({"cross_encoder_data": {"input": "x"}, "generator": "./none"}, ModelError, "no model folder"),
        ({"cross_encoder_data": {"input": "x"}, "retrievers": ["./none"]}, ModelError, "no model folder"),
    ],
)
def test_options_are_checked_before_work(options: dict[str, Any], error: type[Exception], said: str):
    with pytest.raises(error, match=said):
        GPL.check(None, GPL.with_defaults(options))


def test_the_packaged_defaults_pass_the_check():
    GPL.check(None, GPL.with_defaults({"cross_encoder_data": {"input": "pairs.csv"}}))


def test_the_preset_is_the_paper():
    finetune = config.load(file="gpl").finetune
    (step,) = finetune.steps
    options = {key: value for key, value in step.items() if key in GPL.options}
    rest = set(step) - set(options) - {"recipe"}
    assert rest == {"batch_size", "learning_rate", "warmup", "max_steps"}
    assert step["max_steps"] * step["batch_size"] == pytest.approx(options["triples"] * 250_000, rel=0.01)
    assert finetune.similarity == "dot"
    assert options["scale"] == 1


def test_dot_product_needs_a_scale():
    import torch
    from sentence_transformers.util import pairwise_cos_sim, pairwise_dot_score

    model = torch.nn.Identity()
    with pytest.raises(ConfigError, match="needs scale"):
        GPL.loss(model, GPL.with_defaults({}), base="", similarity="dot", workers=1)
    assert GPL.loss(model, GPL.with_defaults({"scale": 1}), base="", similarity="dot", workers=1).similarity_fct is pairwise_dot_score
    assert GPL.loss(model, GPL.with_defaults({}), base="", similarity="cosine", workers=1).similarity_fct is pairwise_cos_sim


def test_the_whole_of_it_with_real_models(tmp_path: Path):
    pytest.importorskip("topicscale.finetune.data")
    pairs = tmp_path / "pairs.csv"
    lines = [f"the price of {a},the {b} price,{5 if a == b else 1}" for a in ("oil", "gold", "wheat") for b in ("oil", "gold", "wheat")]
    pairs.write_text("\n".join(["sentence1,sentence2,score", *lines]) + "\n")
    options = {
        "generator": str(t5(tmp_path / "t5")),
        "generation": {"max_new_tokens": 5},
        "queries": 2,
        "cross_encoder_data": {"input": str(pairs), "score_range": [0, 5]},
        "cross_encoder_options": {"max_steps": 2},
    }
    settings = GPL.with_defaults(options)
    GPL.check(None, settings)
    texts = pa.table({"text": ["the oil price is red", "a tram to the north", "the bank sent a card", "who is blue"]})
    tools = LocalTools(1, "cpu", tmp_path / "work")
    made = GPL.examples(texts, "texts", settings, base="all-MiniLM-L6-v2", seed=1, tools=tools)
    assert made.column_names == ["query", "positive", "negative", "label"]
    assert 4 <= made.num_rows <= 8
    assert set(made["positive"].to_pylist() + made["negative"].to_pylist()) <= set(texts["text"].to_pylist())
    assert max(map(abs, made["label"].to_pylist())) < 2
    again = LocalTools(1, "cpu", tmp_path / "work")
    assert made.equals(GPL.examples(texts, "texts", settings, base="all-MiniLM-L6-v2", seed=1, tools=again))
