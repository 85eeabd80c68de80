"""SetFit: pairs from class labels, and the two losses over them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from tests.topicscale.recipes import TEXTS, examples, falls, fit
from topicscale.errors import ConfigError, InputError
from topicscale.finetune import base as bases
from topicscale.finetune.recipes import recipe
from topicscale.finetune.recipes.setfit import class_contrast


def classes(rows: list[tuple[str, str]]) -> pa.Table:
    return pa.table({"text": [text for text, _ in rows], "label": [label for _, label in rows]})


ROWS = [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("b2", "b"), ("c1", "c")]


def test_each_text_begins_twenty_pairs_of_each_kind():
    table = examples("setfit", classes(ROWS)).to_pydict()
    counts = Counter(zip(table["anchor"], table["label"], strict=True))
    assert counts == {**{(text, 1.0): 20 for text, label in ROWS if label != "c"}, **{(text, 0.0): 20 for text, _ in ROWS}}
    for first, second, label in zip(table["anchor"], table["positive"], table["label"], strict=True):
        assert first != second
        assert (first[0] == second[0]) == bool(label)
    seen = {(first, second) for first, second in zip(table["anchor"], table["positive"], strict=True)}
    assert len(seen) == 6 + 2 + 6 * 6 - 9 - 4 - 1  # every pair of two different texts turns up


def test_pairs_are_a_function_of_seed_and_set():
    first = examples("setfit", classes(ROWS))
    assert first.equals(examples("setfit", classes([*ROWS[::-1], ROWS[0]])))
    assert not first.equals(examples("setfit", classes(ROWS), seed=2))


def test_pairs_per_class():
    table = examples("setfit", classes(ROWS), pairs_per_class=5).to_pydict()
    counts = Counter((first[0], label) for first, label in zip(table["anchor"], table["label"], strict=True))
    assert counts == {("a", 1.0): 5, ("a", 0.0): 5, ("b", 1.0): 5, ("b", 0.0): 5, ("c", 0.0): 5}


def test_mnr_takes_positive_pairs_and_the_class_as_label():
    table = examples("setfit", classes(ROWS), loss="mnr")
    assert table.schema.field("label").type == pa.int64()
    rows = table.to_pydict()
    assert rows["anchor"] == ["a1", "a2", "a3", "b1", "b2"]
    assert rows["label"] == [0, 0, 0, 1, 1]
    assert all(first[0] == second[0] and first != second for first, second in zip(rows["anchor"], rows["positive"], strict=True))


def test_a_text_with_two_labels_is_not_its_own_negative():
    table = examples("setfit", classes([("x", "a"), ("y", "a"), ("x", "b"), ("z", "b")])).to_pydict()
    assert all(first != second for first, second in zip(table["anchor"], table["positive"], strict=True))


def test_too_few_classes_or_texts_are_refused():
    with pytest.raises(InputError, match=r"two classes\. Got 1"):
        examples("setfit", classes([("a1", "a"), ("a2", "a")]))
    with pytest.raises(InputError, match="two different texts"):
        examples("setfit", classes([("a1", "a"), ("b1", "b"), ("a1", "a")]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "softmax"}, r"cosine, mnr\. Got 'softmax'"),
        ({"iterations": 0}, r"at least 1, or left out\. Got 0"),
        ({"iterations": 2, "pairs_per_class": 2}, "Got both"),
        ({"scale": 10}, "scale of the recipe setfit must be left out with loss: cosine"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        recipe("setfit").check(None, recipe("setfit").with_defaults(options))


def test_class_contrast_by_hand():
    loss = class_contrast(torch.nn.Identity(), 2.0, similarity="dot", workers=1)
    anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    positives = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    # scores, doubled: rows [2, 1, 0], [0, 1, 2], [2, 1, 0]; the first and third are of one class, and no negatives of each other
    expected = [math.log1p(math.exp(1 - 2)), math.log(math.exp(0) + math.exp(1) + math.exp(2)) - 1, math.log(math.exp(1) + 1)]
    got = loss.contrast(anchors, positives, torch.tensor([7, 3, 7]))
    assert got.item() == pytest.approx(sum(expected) / 3, abs=1e-6)
    assert loss.contrast(anchors, positives, torch.tensor([1, 1, 1])).item() == 0.0


def test_class_contrast_equals_plain_mnr_where_all_classes_differ():
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    torch.manual_seed(0)
    anchors, positives = torch.randn(5, 4), torch.randn(5, 4)
    plain = MultipleNegativesRankingLoss(torch.nn.Identity()).compute_loss_from_embeddings([anchors, positives], None)  # type: ignore[arg-type]
    ours = class_contrast(torch.nn.Identity(), None, similarity="cosine", workers=1).contrast(anchors, positives, torch.arange(5))
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)


def test_cosine_loss_refuses_dot_product():
    model, one = bases.build(bases.inspect("all-MiniLM-L6-v2"), layers=1), recipe("setfit")
    with pytest.raises(ConfigError, match=r"must be cosine.*Set loss: mnr"):
        one.loss(model, one.with_defaults({}), base="", similarity="dot", workers=1)


@pytest.mark.parametrize("options", [{"iterations": 1}, {"loss": "mnr"}])
def test_setfit_trains(tmp_path: Path, options: dict[str, Any]):
    table = examples("setfit", classes([(text, " ".join(text.split()[:2])) for text in TEXTS]), **options)
    assert len(table) == (16 if "loss" in options else 32)
    assert falls(fit(tmp_path, "setfit", table, options=options, learning_rate=1e-4))
