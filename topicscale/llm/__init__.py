"""Language models that name topics: prompts, backends, and what is done with their answers."""

from __future__ import annotations

from topicscale.config import LlmConfig
from topicscale.llm.backend import Backend, Batch


def open_local(config: LlmConfig, *, threads: int, device: str, batch: Batch) -> Backend:
    """Return the configuration's model, loaded in this process.

    Raises
    ------
    ModelError
        It cannot be found or loaded.
    """
    from topicscale.llm.models import backend

    kind = backend(config)
    if kind == "llama_cpp":
        from topicscale.llm.llama_cpp import LlamaCpp

        return LlamaCpp(config, threads=threads, device=device)
    if kind == "vllm":
        from topicscale.llm.vllm import Vllm

        return Vllm(config, threads=threads, device=device, batch=batch)
    from topicscale.llm.local import Local

    return Local(config, threads=threads, device=device, batch=batch)
