"""vLLM inside a worker, where it is installed (Linux with a GPU). Configured from its documentation; not run by the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from topicscale.config import LlmConfig
from topicscale.errors import MissingDependency, ModelError
from topicscale.llm.backend import Answer, Ask
from topicscale.llm.models import CONTEXT, folder, resolve
from topicscale.llm.prompts import load, prompt


class Vllm:
    """A loaded model (see :class:`topicscale.llm.backend.Backend`). vLLM batches prompts and caches their common beginning itself.

    Raises
    ------
    MissingDependency
        vllm is not installed.
    ModelError
        The model cannot be loaded.
    """

    def __init__(self, config: LlmConfig) -> None:
        try:
            import vllm
        except ImportError as error:
            raise MissingDependency("vllm", "vllm", "llm.backend=vllm") from error
        try:
            self._model: Any = vllm.LLM(
                model=str(folder(resolve(config.model))),
                quantization="bitsandbytes" if config.quantization == "nf4" else None,
                max_model_len=CONTEXT,
                enable_prefix_caching=True,
                trust_remote_code=False,
                seed=config.seed,
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise ModelError(f"The language model {config.model!r} cannot be loaded by vLLM: {str(error).splitlines()[0][:300]}") from error
        self._sampling = vllm.SamplingParams(
            temperature=config.temperature,
            repetition_penalty=config.repetition_penalty,
            max_tokens=config.max_new_tokens,
            seed=config.seed,
        )
        self._config, self._template = config, load(config)
        self._tokenizer = self._model.get_tokenizer()

    def complete(self, asks: Sequence[Ask]) -> list[Answer]:
        """Return an answer for each, in order."""
        answers: list[Answer | None] = [None] * len(asks)
        texts: dict[int, str] = {}
        count = lambda text: len(self._tokenizer.encode(text))  # noqa: E731
        limit = CONTEXT - self._config.max_new_tokens
        for i, ask in enumerate(asks):
            try:
                texts[i] = prompt(ask, self._template, self._config.template, self._tokenizer, count=count, limit=limit)
            except ModelError as error:
                answers[i] = Answer(None, str(error))
        if texts:
            for i, output in zip(texts, self._model.generate(list(texts.values()), self._sampling, use_tqdm=False), strict=True):
                said = output.outputs[0]
                answers[i] = Answer(said.text, None, len(output.prompt_token_ids or ()), len(said.token_ids))
        return [answer if answer is not None else Answer(None, "no answer") for answer in answers]
