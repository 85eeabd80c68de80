"""The packaged language model in this process, in 4 bits: the code path that Llama 2 takes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from topicscale.config import LlmConfig
from topicscale.errors import ModelError
from topicscale.llm.backend import Answer, Ask, Batch
from topicscale.llm.local import Local
from topicscale.llm.memory import size
from topicscale.llm.models import PACKAGED, backend, check, folder, identity, resolve

NAME = next(iter(PACKAGED))
ASKS = [
    Ask(("My card was declined at the shop.", "Why is my card payment not going through?"), ("card", "payment", "declined", "shop")),
    Ask(("The rocket launched a satellite into orbit.",), ("rocket", "launch", "orbit", "satellite", "moon")),
    Ask(("The striker scored in the last minute of the match, and the stadium went wild.",) * 3, ("match", "goal", "striker", "league")),
]


@pytest.fixture(scope="module")
def four_bits() -> Local:
    return Local(LlmConfig(max_new_tokens=24), threads=2, device="cpu", batch=Batch(1))


def test_weights_are_held_in_four_bits(four_bits) -> None:
    whole = Local(LlmConfig(quantization="none"), threads=2, device="cpu", batch=Batch(1))
    sixteen = 2 * sum(parameter.numel() for parameter in whole._model.parameters())
    assert four_bits.memory < 0.7 * sixteen


@pytest.fixture(scope="module")
def exact() -> Local:
    """The model in float32, where the order of sums changes no word."""
    return Local(LlmConfig(quantization="none", dtype="float32", max_new_tokens=12), threads=2, device="cpu", batch=Batch(1))


def test_answers_are_those_of_the_whole_prompt(exact) -> None:
    """Reusing what every prompt begins with changes no word."""
    tokenizer, model = exact._tokenizer, exact._model
    assert len(exact._prefix) > 100
    for ask, answer in zip(ASKS, exact.complete(ASKS), strict=True):
        inputs = tokenizer(exact.prompt(ask), add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            whole = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        text = tokenizer.decode(whole[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer.text is not None
        assert answer.text.strip()
        assert text.lstrip().startswith(answer.text.strip())
        assert answer.read == inputs["input_ids"].shape[1]


def test_padding_changes_no_word(exact) -> None:
    """Prompts of different length, answered together, get the answers they get alone."""
    alone = [answer.text for answer in exact.complete(ASKS)]
    exact._batch = Batch(len(ASKS))
    assert [answer.text for answer in exact.complete(ASKS)] == alone
    exact._batch = Batch(1)


def test_prompts_are_answered_together_as_far_as_there_is_room(exact) -> None:
    """A pass holds no more prompts and no more tokens, padding and answers included, than it may; a longer prompt goes alone."""
    tokens = {i: [0] * length for i, length in enumerate((10, 20, 30, 40, 400))}
    new = exact._config.max_new_tokens
    passes = {
        Batch(2): [[0, 1], [2, 3], [4]],
        Batch(9, 3 * (30 + new)): [[0, 1, 2], [3], [4]],
        Batch(9, 3 * (30 + new) - 1): [[0, 1], [2, 3], [4]],
        Batch(9, 1): [[0], [1], [2], [3], [4]],
        Batch(9): [[0, 1, 2, 3, 4]],
    }
    for batch, expected in passes.items():
        exact._batch = batch
        assert list(exact._together(list(tokens), tokens)) == expected
    exact._batch = Batch(1)


def test_an_answer_ends_with_its_first_line() -> None:
    config = LlmConfig(prompt="[KEYWORDS]: write a long poem of many lines about this.", max_new_tokens=120)
    (answer,) = Local(config, threads=2, device="cpu", batch=Batch(1)).complete(ASKS[:1])
    assert answer.text is not None
    assert len([line for line in answer.text.splitlines() if line.strip()]) <= 1


def test_an_announcement_is_not_taken_for_the_answer(exact, monkeypatch) -> None:
    """What a chat model puts before a label on a line of its own is followed by the label."""
    said = {False: "Sure! Here is a label:\n", True: "Sure! Here is a label:\n\nCard payments"}
    asked = []

    def generate(prompts, *, whole=False):
        asked.append(whole)
        return [Answer(said[whole])] * len(prompts)

    monkeypatch.setattr(exact, "_generate", generate)
    assert exact.complete(ASKS[:1]) == [Answer(said[True])]
    assert asked == [False, True]
    said[False] = "Card payments\n"
    assert exact.complete(ASKS[:1]) == [Answer(said[False])]


def test_a_gguf_file_is_unpacked_once() -> None:
    model = resolve(NAME)
    assert model.gguf
    unpacked = folder(model)
    assert "quantization_config" not in json.loads((unpacked / "config.json").read_text())
    assert folder(model) == unpacked


def test_wrong_models_are_refused(tmp_path) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder(resolve(NAME)), model)
    check(LlmConfig(model=str(model)))
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "architectures": ["BertModel"]}))
    with pytest.raises(ModelError, match="BertModel"):
        resolve(str(model))
    (model / "config.json").write_text(
        json.dumps({**settings, "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True})
    )
    with pytest.raises(ModelError, match="an encoder and a decoder"):
        check(LlmConfig(model=str(model)))
    resolve(str(model))  # to make queries it will do
    (model / "config.json").write_text(json.dumps({**settings, "model_type": "of-next-year"}))
    with pytest.raises(ModelError, match="of-next-year"):
        size(resolve(str(model)), LlmConfig(model=str(model)))
    (model / "config.json").write_text(json.dumps({**settings, "auto_map": {"AutoModelForCausalLM": "mine.Model"}}))
    with pytest.raises(ModelError, match="code of its own"):
        resolve(str(model))
    (model / "config.json").write_text(json.dumps(settings))
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled"):
        resolve(str(model))
    with pytest.raises(ModelError, match=r"missing\.gguf"):
        resolve(str(tmp_path / "missing.gguf"))


def test_what_a_number_type_left_open_means_is_part_of_the_model() -> None:
    """vLLM goes by the weights, transformers takes bfloat16."""
    told = {name: [identity(LlmConfig(backend=name, dtype=dtype)) for dtype in ("auto", "bfloat16")] for name in ("vllm", "transformers")}
    assert told["transformers"][0] == told["transformers"][1]
    assert told["vllm"][0] != told["vllm"][1]


def test_the_backend_follows_the_configuration() -> None:
    assert backend(LlmConfig()) == "transformers"
    assert backend(LlmConfig(url="http://localhost:1/v1")) == "server"
    assert backend(LlmConfig(backend="llama_cpp")) == "llama_cpp"
