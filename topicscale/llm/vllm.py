"""vLLM inside a worker, where it is installed: on GPUs, or its build for processors."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from topicscale.config import LlmConfig
from topicscale.errors import MissingDependency, ModelError
from topicscale.llm.backend import Answer, Ask, Batch
from topicscale.llm.clean import announces
from topicscale.llm.memory import GPU_FIXED, GPU_SHARE, size
from topicscale.llm.models import folder, resolve
from topicscale.llm.prompts import load, prompt, token_ids

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else the model is in a process of its own, which keeps to itself why it did not load
    "VLLM_NO_USAGE_STATS": "1",  # else every start is reported to its makers
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else all workers of a machine take the same processors
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""How vLLM is used, where its variables say nothing else."""
BLOCK = 128
"""Tokens of a block of its cache, at most."""


class Vllm:
    """A loaded model (see :class:`topicscale.llm.backend.Backend`). vLLM batches prompts and caches their common beginning itself.

    Parameters
    ----------
    threads : int
        Processors it may use.
    device : str
        ``cpu`` or ``cuda``: all GPUs that this process sees.
    batch : Batch
        How much is answered at once. Its cache holds so much and no more, since a GPU may be shared.

    Raises
    ------
    MissingDependency
        vllm is not installed.
    ModelError
        The model cannot be loaded.
    """

    def __init__(self, config: LlmConfig, *, threads: int, device: str, batch: Batch) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import torch
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise MissingDependency("vllm", "vllm", "llm.backend=vllm") from error
        torch.set_num_threads(threads)
        model = resolve(config.model)
        of, where = size(model, config), folder(model)
        gpus = max(1, torch.cuda.device_count()) if device == "cuda" else 1
        try:
            share = GPU_SHARE
            if device == "cuda":  # only looked at: a start is refused where so much of a GPU is not free
                need = (of.need(batch, fixed=GPU_FIXED) - GPU_FIXED) / gpus + GPU_FIXED
                share = min(share, need / current_platform.get_device_total_memory())
            self._model: Any = vllm.LLM(
                model=str(where),
                tokenizer_mode="hf",
                dtype=config.dtype,  # auto: the weights' own, as not every GPU that vLLM knows has bfloat16
                quantization="bitsandbytes" if config.quantization == "nf4" else None,
                max_model_len=of.context,
                max_num_batched_tokens=of.context,
                max_num_seqs=batch.prompts,
                kv_cache_memory_bytes=math.ceil(_blocks(batch, of.context) * BLOCK * of.token / gpus),
                gpu_memory_utilization=share,
                tensor_parallel_size=gpus,
                enable_prefix_caching=True,
                enforce_eager=True,  # answers are one line: compiling takes longer than it spares, and graphs take memory
                trust_remote_code=False,
                use_tqdm_on_load=False,
                seed=config.seed,
            )
        except Exception as error:  # of whatever class: pydantic's, safetensors', a kernel's
            raise ModelError(f"The language model {config.model!r} cannot be loaded by vLLM: {_line(error)}") from error
        self._config, self._template = config, load(config)
        self._limit = of.context - config.max_new_tokens
        self._tokenizer: Any = self._model.get_tokenizer()

    def complete(self, asks: Sequence[Ask]) -> list[Answer]:
        """Return an answer for each, in order."""
        answers: dict[int, Answer] = {}
        tokens: dict[int, list[int]] = {}
        for i, ask in enumerate(asks):
            try:
                tokens[i] = self._tokens(self.prompt(ask))
            except ModelError as error:
                answers[i] = Answer(None, str(error))
        answers |= self._generate(tokens, stop=["\n"])
        # what begins with a line break, or with what announces a label, has said nothing before it
        short = {i: ids for i, ids in tokens.items() if answers[i].error is None and announces(answers[i].text or "")}
        answers |= self._generate(short, stop=[])
        return [answers[i] for i in range(len(asks))]

    def prompt(self, ask: Ask) -> str:
        """Return the text that the model reads, up to where its answer begins.

        Raises
        ------
        ModelError
            It does not fit the model's context, however much is left out.
        """
        count = lambda text: len(self._tokens(text))  # noqa: E731
        return prompt(ask, self._template, self._config.template, self._tokenizer, count=count, limit=self._limit)

    def _tokens(self, text: str) -> list[int]:
        # given text, vLLM would put a second first token before the one that a chat template writes
        return token_ids(text, self._tokenizer, self._config.template)

    def _generate(self, prompts: dict[int, list[int]], *, stop: list[str]) -> dict[int, Answer]:
        from vllm import SamplingParams

        if not prompts:
            return {}
        config = self._config
        settings = SamplingParams(
            temperature=config.temperature,
            repetition_penalty=config.repetition_penalty,
            max_tokens=config.max_new_tokens,
            seed=config.seed,
            stop=stop,
        )
        try:
            found = self._model.generate([{"prompt_token_ids": ids} for ids in prompts.values()], settings, use_tqdm=False)
        except (ValueError, RuntimeError) as error:
            return dict.fromkeys(prompts, Answer(None, _line(error)))
        return {
            i: Answer(one.outputs[0].text, None, len(prompts[i]), len(one.outputs[0].token_ids))
            for i, one in zip(prompts, found, strict=True)
        }


def _blocks(batch: Batch, context: int) -> int:
    """Return the blocks that hold so much: a prompt's last one may be almost empty, and one vLLM keeps for itself."""
    tokens = max(context, min(batch.tokens, batch.prompts * context))
    return math.ceil(tokens / BLOCK) + batch.prompts + 1


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
