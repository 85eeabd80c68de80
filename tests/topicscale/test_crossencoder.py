"""Cross-encoders score as sentence-transformers does, learn from scored pairs, and are trained once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from topicscale.errors import ConfigError, InputError, ModelError
from topicscale.finetune.crossencoder import CrossEncoder, is_encoder, train
from topicscale.finetune.tools import KEPT, LocalTools, Models
from topicscale.models import resolve

SUBJECTS = ["a man", "a woman", "a child", "the dog", "my friend"]
ACTS = ["plays the guitar", "slices an onion", "rides a horse", "sleeps on a sofa"]
ROWS = [(f"{s} {a}", f"{t} {b}", float(a == b)) for s in SUBJECTS for t in SUBJECTS[:2] for a in ACTS for b in (a, ACTS[ACTS.index(a) - 1])]
GOLD = pa.table({name: [row[i] for row in ROWS] for i, name in enumerate(("sentence1", "sentence2", "score"))})
PAIRS = [(one, two) for one, two, _ in ROWS[:20]] + [("a man", "a man " * 400), ROWS[0][:2], ("", "x")]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def trained(work: Path) -> Path:
    return train("all-MiniLM-L6-v2", GOLD, {"max_steps": 12, "learning_rate": 2e-4, "batch_size": 16}, work=work, threads=1)


def test_it_learns_and_holds_nothing_but_a_plain_model(trained: Path, work: Path):
    assert [folder.name for folder in work.iterdir()] == [trained.name]
    assert {file.name for file in trained.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    scores = CrossEncoder(str(trained), threads=1).score([(one, two) for one, two, _ in ROWS])
    right = np.array([label == 1 for *_, label in ROWS])
    assert scores.dtype == np.float32
    assert scores.min() >= 0
    assert scores.max() <= 1
    assert scores[right].mean() > scores[~right].mean() + 0.1


def test_the_same_call_trains_once_and_the_same_weights(trained: Path, work: Path, tmp_path: Path):
    options = {"max_steps": 12, "learning_rate": 2e-4, "batch_size": 16}
    before = (trained / "model.safetensors").stat().st_mtime_ns
    assert train("all-MiniLM-L6-v2", GOLD, options, work=work, threads=1) == trained
    assert (trained / "model.safetensors").stat().st_mtime_ns == before
    short, again = (
        train("all-MiniLM-L6-v2", GOLD, {"max_steps": 1, "seed": seed}, work=tmp_path / str(i), threads=1) for i, seed in enumerate((1, 1))
    )
    assert short.name == again.name != trained.name
    assert (short / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


def test_scores_are_sentence_transformers_own(trained: Path):
    from sentence_transformers import CrossEncoder as Reference
    from torch import nn

    reference = Reference(str(trained), device="cpu", max_length=512)
    exact = CrossEncoder(str(trained), threads=1, dtype="float32")
    logits = reference.predict(PAIRS, activation_fn=nn.Identity())
    assert np.allclose(exact.score(PAIRS, logits=True), logits, atol=1e-5)
    assert np.allclose(exact.score(PAIRS), reference.predict(PAIRS), atol=1e-5)
    assert np.allclose(CrossEncoder(str(trained), threads=1, dtype="bfloat16").score(PAIRS, logits=True), logits, atol=0.05)
    assert exact.score([]).shape == (0,)


def test_what_is_no_cross_encoder_is_refused(trained: Path, tmp_path: Path):
    with pytest.raises(ModelError, match="no weights for classifier"):
        CrossEncoder("all-MiniLM-L6-v2", threads=1)
    with pytest.raises(ModelError, match="no model folder"):
        CrossEncoder("./not/there", threads=1)
    shutil.copytree(trained, tmp_path / "own")
    settings = tmp_path / "own" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"auto_map": {"AutoModel": "own.Model"}}))
    with pytest.raises(ModelError, match="auto_map"):
        CrossEncoder(str(tmp_path / "own"), threads=1)


@pytest.mark.parametrize(
    ("table", "options", "error", "said"),
    [
        (GOLD, {"epoch": 1}, ConfigError, "no option 'epoch'"),
        (GOLD, {"batch_size": "many"}, ConfigError, "must be a number"),
        (GOLD.slice(0, 0), {}, InputError, "Got none"),
        (pa.table({"sentence1": ["a"], "sentence2": ["b"], "score": [4.2]}), {}, InputError, "between 0 and 1"),
    ],
)
def test_bad_input_is_refused(table: pa.Table, options: dict[str, Any], error: type[Exception], said: str, tmp_path: Path):
    with pytest.raises(error, match=said):
        train("all-MiniLM-L6-v2", table, options, work=tmp_path, threads=1)


def test_encoders_are_told_from_decoders(tmp_path: Path):
    assert is_encoder("all-MiniLM-L6-v2")
    shutil.copytree(resolve("all-MiniLM-L6-v2").path, tmp_path / "llama")
    settings = tmp_path / "llama" / "config.json"
    settings.write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaModel"]}))
    assert not is_encoder(str(tmp_path / "llama"))


def test_models_are_kept_by_their_weights(trained: Path, work: Path):
    tools = LocalTools(1, "cpu", work)
    first = tools.embed("all-MiniLM-L6-v2", ["a b", "c"])
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-3)
    assert np.array_equal(first, tools.embed(str(resolve("all-MiniLM-L6-v2").path), ["a b", "c"]))
    tools.score(str(trained), PAIRS)
    assert [kind for kind, _ in tools._kept] == ["embedding", "cross-encoder"]
    asked = tools.embed("all-MiniLM-L6-v2", ["a b", "c"], prompt="query: ", max_tokens=4)
    assert np.array_equal(asked, tools.embed("all-MiniLM-L6-v2", ["query: a b", "query: c"], max_tokens=4))
    assert not np.array_equal(asked, first)
    assert tools.cross_encoder("all-MiniLM-L6-v2", GOLD, {"max_steps": 12, "learning_rate": 2e-4, "batch_size": 16}) == str(trained)


def test_no_more_models_are_kept_than_fit():
    models = Models(threads=1)
    for number in range(KEPT + 2):
        assert models._loaded("kind", str(number), lambda number=number: number) == number
        models._loaded("kind", "0", lambda: pytest.fail("thrown out, though it was just used"))
    assert len(models._kept) == KEPT
    assert ("kind", "0") in models._kept
