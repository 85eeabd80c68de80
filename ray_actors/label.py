"""The worker that holds a language model and answers prompts."""

from __future__ import annotations

from threading import Lock
from typing import Any

from ray_actors.worker import Worker
from topicscale.config import LlmConfig
from topicscale.llm.backend import Answer, Ask, Backend, Batch


class Labeller(Worker):
    """One of a pool's processes (see :class:`ray_actors.pool.Pool`). It embeds labels too, where its model already is."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._llm: tuple[LlmConfig, Batch, Any] | None = None
        self._llm_loading = Lock()

    def load_llm(self, config: LlmConfig, batch: Batch) -> None:
        """Load the language model ahead of its first unit."""
        self._language_model(config, batch)

    def complete(self, *, config: LlmConfig, batch: Batch, asks: list[Ask]) -> list[Answer]:
        """Return the answers to some asks, in order."""
        return self._language_model(config, batch).complete(asks)

    def _language_model(self, config: LlmConfig, batch: Batch) -> Backend:
        with self._llm_loading:
            if self._llm is None or self._llm[:2] != (config, batch):
                from topicscale.llm import open_local

                self._llm = (config, batch, open_local(config, threads=self._threads, device=self._device, batch=batch))
            return self._llm[2]


def gpu_memory() -> int:
    """Return the bytes of this process's GPU."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)
