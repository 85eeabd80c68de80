"""Texts become the vectors that sentence-transformers would make, whatever their order, length and repetition."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from topicscale.config import EmbeddingConfig
from topicscale.embedding import Embedder, _slabs, best_cpu_dtype
from topicscale.errors import ModelError
from topicscale.models import resolve

TEXTS = [
    "fuel prices rise again",
    "a cat sat on the mat",
    "",
    "Übergröße 東京 🙂",
    "fuel prices rise again",
    "word " * 400,
    "short",
    "two words",
] + [f"story number {i} about " + "markets and oil " * (i % 7) for i in range(40)]


@pytest.fixture(scope="module")
def reference():
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(resolve("all-MiniLM-L6-v2").path), device="cpu")


@pytest.fixture(scope="module")
def exact():
    return Embedder(EmbeddingConfig(dtype="float32"), threads=1)


@pytest.fixture(scope="module")
def expected(reference):
    return reference.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)


def test_float32_vectors_are_those_of_sentence_transformers(exact, expected):
    result = exact.encode(TEXTS)
    assert result.vectors.dtype == np.float32
    assert result.vectors.shape == (len(TEXTS), exact.dimensions) == expected.shape
    np.testing.assert_allclose(result.vectors, expected, atol=1e-5)


def test_bfloat16_vectors_are_close(expected):
    vectors = Embedder(EmbeddingConfig(dtype="bfloat16"), threads=1).encode(TEXTS).vectors
    assert (vectors * expected).sum(1).mean() > 0.999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("vendor", "flags", "dtype"),
    [
        ("GenuineIntel", "avx2 avx512f avx512_bf16 amx_bf16 amx_tile", "bfloat16"),
        ("AuthenticAMD", "avx2 avx512f avx512_bf16", "bfloat16"),
        ("GenuineIntel", "avx2 avx512f avx512_bf16", "float32"),
        ("AuthenticAMD", "avx2", "float32"),
    ],
)
def test_bfloat16_is_for_processors_that_gain_by_it(vendor, flags, dtype):
    one = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: A: B\nflags\t\t: fpu {flags}\n"
    assert best_cpu_dtype(f"{one}\n{one}\n") == dtype
    assert best_cpu_dtype("Features : fp asimd\n") == best_cpu_dtype("") == "float32"


def test_long_texts_are_counted_each_time_they_occur(exact):
    assert exact.encode(["word " * 400, "short", "word " * 400]).truncated == 2
    assert exact.encode(["word " * 254]).truncated == 0  # with the two special tokens exactly the limit
    assert exact.encode(["word " * 255]).truncated == 1
    assert exact.encode(["word " * 254]).tokens == exact.max_tokens == 256


def test_max_tokens_shortens_texts(exact):
    short = Embedder(EmbeddingConfig(dtype="float32", max_tokens=6), threads=1).encode(["one two three four five six seven"])
    assert (short.truncated, short.tokens) == (1, 6)
    np.testing.assert_allclose(short.vectors, exact.encode(["one two three four"]).vectors, atol=1e-5)


def test_order_does_not_matter(exact):
    order = np.random.default_rng(0).permutation(len(TEXTS))
    np.testing.assert_array_equal(exact.encode([TEXTS[i] for i in order]).vectors, exact.encode(TEXTS).vectors[order])


def test_identical_texts_are_computed_once_with_one_vector(exact):
    result = exact.encode(["same text"] * 5)
    assert result.tokens == exact.encode(["same text"]).tokens
    assert (result.vectors == result.vectors[0]).all()


def test_no_texts_and_progress(exact):
    assert exact.encode([]).vectors.shape == (0, 384)
    seen: list[int] = []
    exact.encode(TEXTS, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == len(TEXTS)


def test_prompt_goes_before_every_text(exact):
    prompted = Embedder(EmbeddingConfig(dtype="float32", prompt="query: "), threads=1)
    np.testing.assert_allclose(prompted.encode(["oil"]).vectors, exact.encode(["query: oil"]).vectors, atol=1e-6)
    assert prompted.space != exact.space


def test_slabs_cover_all_texts_in_order():
    slabs = list(_slabs([1] * 9000 + [3_000_000] * 3))
    assert [i for slab in slabs for i in slab] == list(range(9003))
    assert len(slabs) == 4


@pytest.mark.parametrize("mode", ["cls_token", "max_tokens", "mean_sqrt_len_tokens"])
def test_every_pooling_is_the_models_own(tmp_path: Path, mode: str):
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "model"
    shutil.copytree(resolve("all-MiniLM-L6-v2").path, folder)
    pooling = folder / "1_Pooling" / "config.json"
    settings = {k: False if k.startswith("pooling_mode") else v for k, v in json.loads(pooling.read_text()).items()}
    pooling.write_text(json.dumps(settings | {f"pooling_mode_{mode}": True}))
    wanted = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    got = Embedder(EmbeddingConfig(model=str(folder), dtype="float32"), threads=1).encode(TEXTS)
    np.testing.assert_allclose(got.vectors, wanted, atol=1e-5)
    assert got.truncated == 1


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="the extra onnx is not installed")
@pytest.mark.parametrize(("dtype", "cosine"), [("float32", 0.99999), ("int8", 0.98)])
def test_onnx(expected, monkeypatch, tmp_path, dtype, cosine):
    monkeypatch.setenv("HOME", str(tmp_path))
    # on processors also where the worker has a GPU
    vectors = Embedder(EmbeddingConfig(backend="onnx", dtype=dtype), threads=1, device="cuda").encode(TEXTS).vectors
    assert (vectors * expected).sum(1).mean() > cosine


def test_a_static_model_has_no_limit_and_takes_none(tmp_path: Path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "oil": 1, "gas": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    reference = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)])
    reference.save(str(tmp_path / "static"))
    texts = ["oil gas", "gas", "oil oil oil"]
    found = Embedder(EmbeddingConfig(model=str(tmp_path / "static"), dtype="float32"), threads=1).encode(texts).vectors
    np.testing.assert_allclose(found, reference.encode(texts, normalize_embeddings=True), atol=1e-6)
    with pytest.raises(ModelError, match="a static model"):
        Embedder(EmbeddingConfig(model=str(tmp_path / "static"), max_tokens=9), threads=1)
