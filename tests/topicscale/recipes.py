"""Shared by the tests of recipes: a recipe's examples, and a short real training of the packaged model's first two layers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake

from topicscale.finetune import base as bases
from topicscale.finetune import training
from topicscale.finetune.recipes import recipe
from topicscale.models import resolve

MINILM = resolve("all-MiniLM-L6-v2")
TEXTS = [
    f"{what} {how} {when}"
    for what in ("my new card", "the bank transfer", "a card payment", "the exchange rate")
    for how in ("has not arrived", "was declined twice")
    for when in ("since yesterday", "in the big shop")
]
"""Sixteen texts of seven to nine words."""


def examples(name: str, data: pa.Table, *, seed: int = 1, **options: Any) -> pa.Table:
    one = recipe(name)
    return one.examples(data, one.kinds[0], one.with_defaults(options), base=str(MINILM.path), seed=seed, tools=None)  # type: ignore[arg-type]


def texts(values: Sequence[str]) -> pa.Table:
    return pa.table({"text": pa.array(values, pa.string())})


def fit(folder: Path, name: str, table: pa.Table, *, options: dict[str, Any], batch: int = 16, **settings: Any) -> list[float]:
    """Train the last of two layers, check that weights of the saved model changed, and return the losses."""
    write_deltalake(folder / "examples", table)
    part = training.Part(name, options, str(folder / "examples"), 0)
    whole = {"learning_rate": 1e-3, "warmup": 0.0, "scheduler": "constant", "layers": 2, "freeze": 1, "max_tokens": 16, **settings}
    asked = training.Training("all-MiniLM-L6-v2", (part,), batch_size=batch, max_steps=10, **whole)
    training.train(asked, folder / "work", device="cpu", threads=1)
    trained, before = weights(str(folder / "work" / "model")), weights("all-MiniLM-L6-v2", layers=2)
    assert set(trained) == set(before)
    changed = {key for key in before if not trained[key].equal(before[key])}
    assert changed
    assert all(".layer.1." in key for key in changed)
    return [loss for _, loss in json.loads((folder / "work" / "losses.json").read_text())]


def weights(name: str, **settings: Any) -> dict[str, Any]:
    return dict(bases.build(bases.inspect(name), **settings).state_dict())


def falls(losses: list[float]) -> bool:
    """Whether the last three losses are below the first three, and all are numbers."""
    return all(loss == loss and loss < float("inf") for loss in losses) and sum(losses[-3:]) < sum(losses[:3])
