"""GGUF files through llama.cpp, where its package was built: `pip install llama-cpp-python`."""

from __future__ import annotations

import pytest

from topicscale.config import LlmConfig
from topicscale.errors import ModelError
from topicscale.llm.backend import Ask, Batch
from topicscale.llm.local import Local
from topicscale.llm.models import CONTEXT

pytest.importorskip("llama_cpp", reason="llama-cpp-python, which is built from source, is not installed")

ASKS = [
    Ask(("My card was declined at the shop.", "Why is my card payment not going through?"), ("card", "payment", "declined", "shop")),
    Ask(("The rocket launched a satellite into orbit.",), ("rocket", "launch", "orbit", "satellite", "moon")),
]


@pytest.fixture(scope="module")
def model():
    from topicscale.llm.llama_cpp import LlamaCpp

    return LlamaCpp(LlmConfig(backend="llama_cpp", max_new_tokens=40), threads=2, device="cpu")


def test_it_reads_the_prompt_that_transformers_reads(model) -> None:
    """Token for token: the template, its marks, and no second beginning-of-text."""
    local = Local(LlmConfig(quantization="none", max_new_tokens=40), threads=2, device="cpu", batch=Batch(1))
    for ask in ASKS:
        expected = local._tokens(local.prompt(ask))
        assert model._tokenizer.encode(model.prompt(ask)) == expected
        (answer,) = model.complete([ask])
        assert answer.read == len(expected)


def test_answers_are_one_line_and_the_same_again(model) -> None:
    first = model.complete(ASKS)
    for answer in first:
        assert answer.error is None
        assert answer.text is not None
        assert answer.text.strip()
        assert len([line for line in answer.text.splitlines() if line.strip()]) == 1
        assert 0 < answer.written <= 40
    assert [answer.text for answer in model.complete(list(reversed(ASKS)))] == [answer.text for answer in reversed(first)]


def test_documents_longer_than_the_context_are_shortened() -> None:
    from topicscale.llm.llama_cpp import LlamaCpp

    model = LlamaCpp(LlmConfig(backend="llama_cpp", max_new_tokens=8, doc_length=None), threads=2, device="cpu")
    (answer,) = model.complete([Ask(("card payment declined again and again " * 4000,) * 3, ("card", "payment"))])
    assert answer.error is None
    assert 1000 < answer.read <= CONTEXT - 8


def test_a_damaged_file_is_refused(tmp_path) -> None:
    from topicscale.llm.llama_cpp import LlamaCpp

    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match="cannot be loaded by llama"):
        LlamaCpp(LlmConfig(backend="llama_cpp", model=str(tmp_path / "broken.gguf")), threads=2, device="cpu")
