"""Multiple negatives ranking: what it makes of each kind of data, and its loss against sentence-transformers' and by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from topicscale.errors import ConfigError, InputError
from topicscale.finetune.recipes import recipe
from topicscale.models import resolve

MINILM = str(resolve("all-MiniLM-L6-v2").path)
torch.set_num_threads(1)


class Fixed:
    """Vectors by hash of a text; nothing else is to be asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, model: str, texts: Sequence[str]) -> np.ndarray:
        self.asked.append(model)
        vectors = np.stack([np.random.default_rng(list(text.encode())).normal(size=6) for text in texts]).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def made(name: str, data: dict[str, list[Any]], kind: str, tools: Any = None, **options: Any) -> list[dict[str, Any]]:
    found = recipe(name)
    settings = found.with_defaults(options)
    found.check(None, settings)
    return found.examples(pa.table(data), kind, settings, base="base", seed=42, tools=tools or Fixed()).to_pylist()


PAIRS = {"anchor": [f"question {i}" for i in range(20)], "positive": [f"answer {i}" for i in range(20)]}
CLASSES = {"text": [f"text {i}" for i in range(20)], "label": [f"class {i % 4}" for i in range(16)] + ["alone", "x", "x", "x"]}


def test_pairs_as_they_are_each_once():
    data = {key: [*values, values[0], "same"] for key, values in PAIRS.items()}
    assert made("mnr", data, "pairs") == [{"anchor": a, "positive": p} for a, p in zip(*PAIRS.values(), strict=True)]


def test_given_negatives_and_a_random_one_where_there_is_none():
    rows = made("mnr", {**PAIRS, "negative": ["wrong 0", "question 1", *[None] * 18]}, "pairs")
    texts = {*PAIRS["anchor"], *PAIRS["positive"], "wrong 0"}
    assert rows[0]["negative"] == "wrong 0"
    assert all(row["negative"] in texts - {row["anchor"], row["positive"]} for row in rows)
    assert rows == made("mnr", {**PAIRS, "negative": ["wrong 0", "question 1", *[None] * 18]}, "pairs")


def test_nli_takes_entailment_and_its_contradictions():
    rows = {
        "sentence1": ["a", "a", "a", "b", "b", "c"],
        "sentence2": ["a yes", "a no", "a maybe", "b yes", "b maybe", "c no"],
        "label": ["entailment", "contradiction", "neutral", "entailment", "neutral", "contradiction"],
    }
    found = made("mnr", rows, "nli")
    assert [(row["anchor"], row["positive"]) for row in found] == [("a", "a yes"), ("b", "b yes")]
    assert found[0]["negative"] == "a no"
    assert found[1]["negative"] in {"a", "a yes", "a no"}
    plain = made("mnr", {key: [value for i, value in enumerate(values) if i not in (1, 5)] for key, values in rows.items()}, "nli")
    assert [set(row) for row in plain] == [{"anchor", "positive"}] * 2


@pytest.mark.parametrize("partners", [1, 2])
def test_classes_pair_each_text_within_its_class(partners: int):
    label = dict(zip(*CLASSES.values(), strict=True))
    rows = made("mnr", CLASSES, "classes", partners=partners)
    assert all(label[row["anchor"]] == label[row["positive"]] and row["anchor"] != row["positive"] for row in rows)
    anchors = [row["anchor"] for row in rows]
    assert {anchors.count(text) for text in CLASSES["text"] if label[text] != "alone"} == {partners}
    assert "text 16" not in anchors  # the only one of its class
    assert len({(label[row["anchor"]], row["label"]) for row in rows}) == 5


def test_hard_negatives_are_the_bases_nearest_of_another_class():
    tools = Fixed()
    label = dict(zip(*CLASSES.values(), strict=True))
    rows = made("mnr-hard", CLASSES, "classes", tools, relative=None)
    assert tools.asked == ["base"]
    candidates = [text for text in CLASSES["text"] if label[text] != "alone"]
    for row in rows:
        others = [text for text in candidates if label[text] != label[row["anchor"]]]
        similarities = tools.embed("", others) @ tools.embed("", [row["anchor"]])[0]
        assert row["negative"] == others[int(similarities.argmax())]
        assert row["label"][1] != row["label"][0]
    several = made("mnr-hard", PAIRS, "pairs", tools, number=3, relative=None, retriever="other")
    assert tools.asked[-1] == "other"
    assert all(len(set(row.values())) == 5 for row in several)


def test_given_negatives_are_among_those_that_are_mined():
    tools = Fixed()
    rows = made("mnr-hard", {**PAIRS, "negative": [f"wrong {i}" for i in range(20)]}, "pairs", tools, relative=None)
    candidates = [*PAIRS["anchor"], *PAIRS["positive"], *(f"wrong {i}" for i in range(20))]
    for row in rows:
        others = [text for text in candidates if text not in (row["anchor"], row["positive"])]
        similarities = tools.embed("", others) @ tools.embed("", [row["anchor"]])[0]
        assert row["negative"] == others[int(similarities.argmax())]
    assert any(row["negative"].startswith("wrong") for row in rows)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"negatives": "hardest"}, "semi-hard"),
        ({"scale": 0}, "more than 0"),
        ({"scale": "2e1x"}, "must be a number"),
        ({"relative": "95%"}, "relative"),
        ({"number": 0}, "from 1"),
        ({"scael": 3}, "Did you mean 'scale'"),
        ({"number": 5}, "number of the recipe mnr must be left out with negatives: given"),
        ({"retriever": "other"}, "retriever of the recipe mnr must be left out with negatives: given"),
        ({"negatives": "easy", "margin": 0.1}, "margin of the recipe mnr must be left out with negatives: easy"),
        ({"negatives": "semi-hard", "relative": 0.9}, "relative of the recipe mnr must be left out with negatives: semi-hard"),
    ],
)
def test_options_are_checked(options: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        made("mnr", PAIRS, "pairs", **options)


def test_nothing_to_train_on():
    with pytest.raises(InputError, match="two different texts"):
        made("mnr", {"anchor": ["a"], "positive": ["a"]}, "pairs")
    with pytest.raises(InputError, match="class with two texts"):
        made("mnr", {"text": ["a", "b"], "label": ["1", "2"]}, "classes")
    with pytest.raises(InputError, match="No pair has a negative"):
        made("mnr-hard", {"anchor": ["a"], "positive": ["b"]}, "pairs")


@pytest.fixture(scope="module")
def model() -> Any:
    from sentence_transformers import SentenceTransformer

    config = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return SentenceTransformer(MINILM, device="cpu", config_kwargs=config).train()


TEXTS = [
    ["how do I pay", "where is my card", "who sees my data", "can I leave", "is there a fee", "what is a token"],
    ["payment is by card or transfer", "it comes within a week", "nobody but you", "at the end of a month", "none", "a part of a word"],
    ["the office is closed", "by tram", "a blue one", "in the north", "seven", "on Sundays"],
]


def run(model: Any, name: str, columns: int, labels: Any = None, **options: Any) -> tuple[float, list[torch.Tensor]]:
    found = recipe(name)
    loss = found.loss(model, found.with_defaults(options), base=MINILM, similarity="cosine", workers=1)
    model.zero_grad()
    value = loss([model.tokenize(texts) for texts in TEXTS[:columns]], labels)
    value.backward()
    return float(value.detach()), [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("classes", [None, [0, 0, 1, 2, 1, 0]])
def test_cached_is_the_same_loss_with_the_same_gradients(model: Any, symmetric: bool, classes: list[int] | None):
    labels = None if classes is None else torch.tensor(classes)
    plain, gradients = run(model, "mnr", 2, labels, symmetric=symmetric)
    cached, again = run(model, "cached-mnr", 2, labels, symmetric=symmetric, mini_batch_size=4)
    assert cached == pytest.approx(plain, abs=1e-5)
    assert len(again) == len(gradients) > 90
    assert max(float((a - b).abs().max()) for a, b in zip(gradients, again, strict=True)) < 1e-4


def test_loss_by_hand_leaves_out_texts_of_the_same_class(model: Any):
    with torch.no_grad():
        anchors, positives, negatives = (model.encode(texts, convert_to_tensor=True) for texts in TEXTS)
    classes = [[0, 3], [0, 1], [1, 0], [2, 2], [1, 3], [3, 1]]
    similarities = (20 * anchors @ torch.cat([positives, negatives]).T).double()
    of_docs = [row[0] for row in classes] + [row[1] for row in classes]
    expected = 0.0
    for i, row in enumerate(classes):
        kept = [j for j in range(12) if j == i or of_docs[j] != row[0]]
        expected += float(torch.logsumexp(similarities[i, kept], 0) - similarities[i, i]) / 6
    for name in ("mnr", "cached-mnr"):
        assert run(model, name, 3, torch.tensor(classes))[0] == pytest.approx(expected, abs=1e-4)
    everything = float((torch.logsumexp(similarities, 1) - similarities.diagonal()).mean())
    assert run(model, "mnr", 3)[0] == pytest.approx(everything, abs=1e-4)
    assert run(model, "mnr", 3, torch.arange(6))[0] == pytest.approx(everything, abs=1e-4)


def test_dot_product_has_scale_one_and_several_workers_gather(model: Any):
    from sentence_transformers.util import dot_score

    found = recipe("mnr")
    loss = found.loss(model, found.with_defaults({}), base=MINILM, similarity="dot", workers=2)
    assert (loss.scale, loss.similarity_fct, loss.gather_across_devices) == (1.0, dot_score, True)
    assert found.no_duplicates
