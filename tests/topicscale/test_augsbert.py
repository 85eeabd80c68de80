"""Augmented SBERT: which pairs are scored, what becomes of them, and the whole of it with real models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from topicscale.errors import ConfigError
from topicscale.finetune.recipes import recipe
from topicscale.finetune.tools import LocalTools
from topicscale.models import resolve

MINILM = str(resolve("all-MiniLM-L6-v2").path)
GOLD = {
    "sentence1": [f"first {i // 2}" for i in range(40)] + ["first 0"],
    "sentence2": [f"second {i}" for i in range(40)] + ["second 0"],
    "score": [i / 40 for i in range(40)] + [0.9],
}
AUGSBERT = recipe("augsbert")


class Scripted:
    """Scores by the length of the texts, vectors by their number; remembers what it was asked."""

    def __init__(self) -> None:
        self.bases: list[str] = []
        self.trained: list[tuple[pa.Table, dict[str, Any]]] = []
        self.searched: list[str] = []

    def embed(self, model: str, texts: Sequence[str]) -> np.ndarray:
        self.searched.append(model)
        angles = np.array([int(text.split()[1]) + text.startswith("second") * 0.5 for text in texts]) / 30
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    def score(self, model: str, pairs: Sequence[tuple[str, str]], *, logits: bool = False) -> np.ndarray:
        assert (model, logits) == ("trained", False)
        return np.array([len(one + two) / 100 for one, two in pairs], np.float32)

    def cross_encoder(self, base: str, examples: pa.Table, options: Mapping[str, Any]) -> str:
        self.bases.append(base)
        self.trained.append((examples, dict(options)))
        return "trained"


def made(tools: Any, data: Mapping[str, list[Any]] = GOLD, *, base: str = MINILM, seed: int = 42, **options: Any) -> list[dict[str, Any]]:
    settings = AUGSBERT.with_defaults(options)
    AUGSBERT.check(None, settings)
    return AUGSBERT.examples(pa.table(dict(data)), "scored", settings, base=base, seed=seed, tools=tools).to_pylist()


def test_random_pairs_are_ten_a_sentence_and_none_of_them_gold():
    tools = Scripted()
    rows = made(tools)
    gold, silver = rows[:40], rows[40:]
    assert [row["label"] for row in gold] == GOLD["score"][:40]  # the first of the pair that is there twice
    assert len(silver) == 20 * 10
    first = [row["sentence1"] for row in silver]
    assert {first.count(sentence) for sentence in first} == {10}
    assert {(row["sentence1"], row["sentence2"]) for row in silver}.isdisjoint(zip(GOLD["sentence1"], GOLD["sentence2"], strict=True))
    assert len({(row["sentence1"], row["sentence2"]) for row in rows}) == len(rows)
    assert all(row["label"] == pytest.approx(len(row["sentence1"] + row["sentence2"]) / 100) for row in silver)
    assert tools.searched == []
    assert rows == made(Scripted())
    assert rows != made(Scripted(), seed=1)


def test_the_cross_encoder_is_trained_on_gold_alone():
    tools = Scripted()
    made(tools, seed=7, cross_encoder={"epochs": 2})
    ((examples, options),) = tools.trained
    assert examples.num_rows == 40
    assert options == {"seed": 7, "epochs": 2}
    assert tools.bases == [MINILM]
    made(tools, cross_encoder_base="all-MiniLM-L6-v2")
    assert tools.bases[1] == "all-MiniLM-L6-v2"


def test_a_decoder_is_no_base_for_a_cross_encoder(tmp_path: Path):
    tools = Scripted()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    made(tools, base=str(tmp_path))
    assert tools.bases == ["all-MiniLM-L6-v2"]


def test_semantic_pairs_are_each_sentences_nearest():
    tools = Scripted()
    rows = made(tools, sampling="semantic", per_sentence=4)
    texts = list(dict.fromkeys(text for pair in zip(GOLD["sentence1"], GOLD["sentence2"], strict=True) for text in pair))
    similarities = tools.embed("", texts) @ tools.embed("", texts).T
    np.fill_diagonal(similarities, -2)
    wanted = {frozenset((texts[i], texts[j])) for i, row in enumerate(similarities) for j in np.argsort(-row, kind="stable")[:4]}
    wanted -= {frozenset(pair) for pair in zip(GOLD["sentence1"], GOLD["sentence2"], strict=True)}
    assert {frozenset((row["sentence1"], row["sentence2"])) for row in rows[40:]} == wanted
    assert len(rows) == 40 + len(wanted)
    assert tools.searched[0] == "all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sampling": "bm25"}, "random or semantic"),
        ({"per_sentence": 0}, "from 1"),
        ({"cross_encoder": {"epoch": 1}}, "no option 'epoch'"),
        ({"retriever": "other"}, "must be left out with sampling: random"),
    ],
)
def test_options_are_checked_before_work(options: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        AUGSBERT.check(None, AUGSBERT.with_defaults(options))


def test_the_whole_of_it_with_a_real_cross_encoder(tmp_path: Path):
    acts = ["plays the guitar", "slices an onion", "rides a horse", "sleeps on a sofa"]
    data = {
        "sentence1": [f"a {who} {act}" for who in ("man", "woman", "child") for act in acts for _ in range(2)],
        "sentence2": [f"someone {acts[(i + other) % 4]}" for _ in range(3) for i in range(4) for other in (0, 1)],
        "score": [1.0, 0.0] * 12,
    }
    tools = LocalTools(1, "cpu", tmp_path)
    rows = made(tools, data, per_sentence=2, cross_encoder={"max_steps": 3}, sampling="random")
    silver = rows[24:]
    # two of the four second sentences are gold with each first one: two are left
    assert len(silver) == 12 * 2
    assert all(0 < row["label"] < 1 for row in silver)
    (folder,) = tmp_path.iterdir()
    scores = tools.score(str(folder), [(row["sentence1"], row["sentence2"]) for row in silver])
    assert [row["label"] for row in silver] == pytest.approx(scores.tolist())


def test_its_loss_is_the_squared_error_of_the_cosine():
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(MINILM, device="cpu").eval()
    import torch

    loss = AUGSBERT.loss(model, AUGSBERT.with_defaults({}), base=MINILM, similarity="cosine", workers=1)
    ones, others = ["a cat", "the sea"], ["a small cat", "a bank"]
    vectors = [model.encode(texts, convert_to_tensor=True) for texts in (ones, others)]
    expected = ((torch.nn.functional.cosine_similarity(*vectors) - torch.tensor([0.8, 0.1])) ** 2).mean()
    value = loss([model.tokenize(ones), model.tokenize(others)], torch.tensor([0.8, 0.1]))
    assert float(value.detach()) == pytest.approx(float(expected), abs=1e-6)
