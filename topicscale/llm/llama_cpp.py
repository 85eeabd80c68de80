"""GGUF files through llama.cpp: the fastest way on a machine without a GPU, where its package was built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from topicscale.config import LlmConfig
from topicscale.errors import MissingDependency, ModelError
from topicscale.llm.backend import Answer, Ask
from topicscale.llm.clean import announces
from topicscale.llm.models import CONTEXT, resolve
from topicscale.llm.prompts import load, prompt


class LlamaCpp:
    """A loaded model (see :class:`topicscale.llm.backend.Backend`). What prompts begin with alike is computed once, by llama.cpp itself.

    Raises
    ------
    MissingDependency
        llama-cpp-python is not installed.
    ModelError
        The file cannot be loaded.
    """

    def __init__(self, config: LlmConfig, *, threads: int, device: str) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise MissingDependency("llama-cpp-python", "llama-cpp", "llm.backend=llama_cpp") from error
        try:
            self._model: Any = llama_cpp.Llama(
                model_path=str(resolve(config.model).path),
                n_ctx=CONTEXT,
                n_threads=threads,
                n_threads_batch=threads,
                n_gpu_layers=-1 if device == "cuda" else 0,
                seed=config.seed,
                verbose=False,
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise ModelError(f"The language model {config.model!r} cannot be loaded by llama.cpp: {str(error)[:300]}") from error
        self._config, self._template = config, load(config)
        self._tokenizer = _Tokenizer(self._model)
        self._limit = int(self._model.n_ctx()) - config.max_new_tokens

    def complete(self, asks: Sequence[Ask]) -> list[Answer]:
        """Return an answer for each, in order."""
        return [self._answer(ask) for ask in asks]

    def prompt(self, ask: Ask) -> str:
        """Return the text that the model reads, up to where its answer begins.

        Raises
        ------
        ModelError
            It does not fit the model's context, however much is left out.
        """
        count = lambda text: len(self._tokenizer.encode(text))  # noqa: E731
        return prompt(ask, self._template, self._config.template, self._tokenizer, count=count, limit=self._limit)

    def _answer(self, ask: Ask) -> Answer:
        try:
            # tokens, not text: given text, llama.cpp would put a second beginning-of-text before the template's own
            tokens = self._tokenizer.encode(self.prompt(ask))
            found = self._model.create_completion(
                tokens,
                max_tokens=self._config.max_new_tokens,
                temperature=self._config.temperature,
                # as transformers does, whose defaults here are none of these
                top_k=0,
                top_p=1.0,
                min_p=0.0,
                repeat_penalty=self._config.repetition_penalty,
                seed=self._config.seed,
                stopping_criteria=lambda ids, _: self._first_line(ids[len(tokens) :]),
            )
        except (ModelError, ValueError, RuntimeError) as error:
            return Answer(None, str(error).splitlines()[0][:300])
        usage = found.get("usage", {})
        return Answer(found["choices"][0]["text"], None, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))

    def _first_line(self, written: Sequence[int]) -> bool:
        """Return whether a line that says something was written: nothing after it is used."""
        lines, ended, _ = self._tokenizer.decode([int(token) for token in written]).rpartition("\n")
        return bool(ended) and not announces(lines)


class _Tokenizer:
    """What prompts need of a tokenizer, in the words of transformers."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.chat_template = model.metadata.get("tokenizer.chat_template")

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(self._model.tokenize(text.encode(), add_bos=add_special_tokens, special=True))

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(self._model.detokenize(list(tokens), special=not skip_special_tokens).decode(errors="replace"))

    def apply_chat_template(
        self, messages: Sequence[Any], tokenize: bool = False, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        last, first = self._piece(self._model.token_eos()), self._piece(self._model.token_bos())
        formatter: Any = Jinja2ChatFormatter(self.chat_template, eos_token=last, bos_token=first)
        return str(formatter(messages=list(messages), **variables).prompt)

    def _piece(self, token: int) -> str:
        return str(self._model._model.token_get_text(token)) if token >= 0 else ""
