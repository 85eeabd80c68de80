"""What a base is, and how it is made ready for training and taken apart again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from topicscale.config import EmbeddingConfig
from topicscale.embedding import Embedder
from topicscale.errors import ConfigError, ModelError
from topicscale.finetune.base import build, check, finish, inspect
from topicscale.models import PACKAGED

MINILM = next(iter(PACKAGED))
TEXTS = ["A man is playing a guitar.", "rain", "Where is my card? It has not arrived yet."]


@pytest.fixture(scope="module")
def minilm():
    return inspect(MINILM)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A plain language model of two layers, without a padding token."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30522,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(inspect(MINILM).path)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("pad_token", "mask_token"):
        settings.pop(key, None)
    settings["eos_token"] = "[SEP]"
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**vocabulary, "padding": None}))
    return inspect(str(folder))


def test_an_embedding_model(minilm):
    assert (minilm.model_type, minilm.layers, minilm.dimensions, minilm.positions, minilm.pooling) == ("bert", 6, 384, 512, "mean")
    assert (minilm.mask_token, minilm.cross_attention, minilm.causal) == (True, True, False)


def test_what_it_puts_before_every_text(minilm, tmp_path: Path):
    assert minilm.prompt == ""
    model = build(minilm, layers=1)
    model.prompts, model.default_prompt_name = {"query": "query: ", "passage": "passage: "}, "passage"
    model.save_pretrained(str(tmp_path / "m"), create_model_card=False)
    assert inspect(str(tmp_path / "m")).prompt == "passage: "


def test_a_plain_language_model(llama):
    assert (llama.model_type, llama.layers, llama.dimensions, llama.positions, llama.pooling) == ("llama", 2, 32, 64, None)
    assert (llama.mask_token, llama.cross_attention, llama.causal) == (False, False, True)


@pytest.mark.parametrize(
    ("kind", "mask", "cross", "causal"),
    [
        ("roberta", True, True, False),
        ("xlm-roberta", True, True, False),
        ("electra", True, True, False),
        ("mpnet", True, False, False),
        ("distilbert", True, False, False),
        ("modernbert", True, False, False),
        ("gpt2", False, True, True),
        ("qwen3", False, False, True),
    ],
)
def test_architectures(tmp_path: Path, kind: str, mask: bool, cross: bool, causal: bool):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "num_hidden_layers": 2, "hidden_size": 8}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": "<mask>"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    base = inspect(str(tmp_path))
    assert (base.mask_token, base.cross_attention, base.causal) == (mask, cross, causal)


def test_inspecting_loads_no_torch():
    code = f"import sys; from topicscale.finetune.base import inspect, check; check(inspect({MINILM!r}), layers=2); "
    subprocess.run([sys.executable, "-c", code + "assert not {'torch', 'transformers'} & set(sys.modules)"], check=True, timeout=120)


def test_untouched_it_is_the_base(minilm, tmp_path: Path):
    finish(build(minilm)).save_pretrained(str(tmp_path / "m"), create_model_card=False)
    vectors = [
        Embedder(EmbeddingConfig(model=name, dtype="float32"), threads=1).encode(TEXTS).vectors for name in (MINILM, str(tmp_path / "m"))
    ]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


def test_what_is_saved_takes_the_fast_path(minilm, tmp_path: Path):
    import torch

    from topicscale.bert import load

    finish(build(minilm, layers=1, pooling="cls", max_tokens=20)).save_pretrained(str(tmp_path / "m"), create_model_card=False)
    found = load(tmp_path / "m", dtype=torch.float32, device="cpu")
    assert found is not None
    assert found[2] == 20


def test_first_layers_frozen_layers_dropout_and_length(minilm):
    from torch.nn import Dropout

    model = build(minilm, layers=3, freeze=2, dropout=0.3, max_tokens=16)
    encoder = model[0].auto_model
    assert len(encoder.encoder.layer) == encoder.config.num_hidden_layers == 3
    assert [all(p.requires_grad for p in layer.parameters()) for layer in encoder.encoder.layer] == [False, False, True]
    assert not any(p.requires_grad for p in encoder.embeddings.parameters())
    assert {part.p for part in encoder.modules() if isinstance(part, Dropout)} == {0.3}
    assert model.tokenize(["word " * 100])["input_ids"].shape[1] == 16
    assert all(p.requires_grad for p in finish(model).parameters())


def test_pooling_and_dot_product(minilm):
    cls = build(minilm, pooling="cls", similarity="dot")
    assert [type(part).__name__ for part in cls] == ["Transformer", "Pooling"]
    assert cls.similarity_fn_name == "dot"
    first = cls[0].auto_model(**cls.tokenize(TEXTS[:1])).last_hidden_state[0, 0].detach().numpy()
    np.testing.assert_allclose(cls.encode(TEXTS[0]), first, atol=1e-5)


def test_a_language_model_becomes_an_embedding_model(llama, tmp_path: Path):
    import torch

    model = build(llama)
    assert model.dtype == torch.float32
    assert model.tokenizer.pad_token == "[SEP]"
    together, apart = model.encode(TEXTS), np.stack([model.encode(text) for text in TEXTS])
    np.testing.assert_allclose(together, apart, atol=1e-5)
    finish(model).save_pretrained(str(tmp_path / "m"), create_model_card=False)
    found = Embedder(EmbeddingConfig(model=str(tmp_path / "m"), dtype="float32"), threads=1).encode(TEXTS).vectors
    np.testing.assert_allclose(found, together / np.linalg.norm(together, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    "more", [{}, {"lora_alpha": "3e1"}, {"use_dora": True}, {"target_modules": ["query", "value"], "lora_dropout": 0.1}]
)
def test_low_rank_additions_are_merged(minilm, tmp_path: Path, more):
    import torch

    pytest.importorskip("peft")
    model = build(minilm, layers=1, lora={"r": 4, **more})
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    before = model.eval().encode(TEXTS)
    finish(model).save_pretrained(str(tmp_path / "m"), create_model_card=False)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    after = Embedder(EmbeddingConfig(model=str(tmp_path / "m"), dtype="float32"), threads=1).encode(TEXTS).vectors
    np.testing.assert_allclose(before, after, atol=1e-5)
    assert np.abs(before - build(minilm, layers=1).encode(TEXTS)).max() > 0.01


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"layers": 7}, ModelError, "6 layers"),
        ({"layers": 0}, ModelError, "from 1"),
        ({"freeze": 6}, ModelError, "from 0 to 5"),
        ({"layers": 2, "freeze": 2}, ModelError, "of 2 layers one must be trained"),
        ({"max_tokens": 1000}, ModelError, "512 positions"),
        ({"pooling": "sum"}, ConfigError, "mean, max or cls"),
        ({"lora": {"rank": 4}}, ConfigError, "'rank'"),
        ({"lora": {"r": 4}, "freeze": 1}, ConfigError, "must be 0 with finetune.lora"),
    ],
)
def test_contradictions(minilm, settings, error, said):
    with pytest.raises(error, match=said):
        check(minilm, **settings)


def test_the_first_token_of_a_causal_model_sees_nothing(llama):
    with pytest.raises(ModelError, match="Use mean"):
        check(llama, pooling="cls")


def test_no_transformer(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}]))
    with pytest.raises(ModelError, match="StaticEmbedding"):
        inspect(str(tmp_path))
