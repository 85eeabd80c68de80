"""Workers that lend recipes their models, train, and embed for judges: one pool for all of a fine-tuning's steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.engines import Engines
from jobs.progress import Ui
from ray_actors import runtime
from ray_actors.finetune import Tutor, train_together, watched
from ray_actors.pool import Pool, Unit
from ray_actors.runtime import Layout
from topicscale.config import Config, fingerprint
from topicscale.errors import JobFailed
from topicscale.finetune.training import Training

CHUNK = 2048
"""Texts that a worker embeds in one call."""
SLOW_CHUNK = 64
"""Texts that a worker generates for, or pairs that it scores 16 times as many of, in one call: what a kill may lose."""


@dataclass
class Tutors:
    """:class:`topicscale.finetune.recipe.Tools` over a pool of workers, started when first asked, which also train.

    What is slow to make (queries, scores) is kept chunk by chunk in ``work``.
    """

    config: Config
    engines: Engines
    work: Path
    ui: Ui
    base: Path
    """The model that is trained. It and what steps make of it embed as ``config.embedding`` says, other models as they do by default."""
    _pool: Pool | None = field(default=None, init=False)

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def gpus(self) -> float:
        """Return the GPUs of the cluster."""
        self.engines.release()
        held = runtime.held(self.config.ray)
        return held.actors * held.gpus

    def embed(self, model: str, texts: Sequence[str]) -> Any:
        """See the protocol."""
        how: dict[str, Any] = {}
        if Path(model) == self.base or Path(model).is_relative_to(self.work):
            how = {"prompt": self.config.embedding.prompt, "max_tokens": self.config.embedding.max_tokens}
        parts = self._map("embed", texts, CHUNK, lambda some: {"model": model, "texts": some, **how}, keep=False)
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

    def generate(self, model: str, texts: Sequence[str], *, queries: int, seed: int, options: Mapping[str, Any]) -> list[list[str]]:
        """See the protocol."""
        parts = self._map(
            "generate",
            texts,
            SLOW_CHUNK,
            lambda some: {"model": model, "texts": some, "queries": queries, "seed": seed, "options": dict(options)},
            keep=True,
        )
        return [found for part in parts for found in part]

    def score(self, model: str, pairs: Sequence[tuple[str, str]], *, logits: bool = False) -> Any:
        """See the protocol."""
        parts = self._map("score", pairs, SLOW_CHUNK * 16, lambda some: {"model": model, "pairs": some, "logits": logits}, keep=True)
        return np.concatenate([np.asarray(part, np.float32) for part in parts]) if parts else np.zeros(0, np.float32)

    def cross_encoder(self, base: str, examples: pa.Table, options: Mapping[str, Any]) -> str:
        """See the protocol."""
        (found,) = self._map(
            "cross_encoder", [None], 1, lambda _: {"base": base, "examples": examples, "options": dict(options)}, keep=False
        )
        return str(found)

    def _map(
        self, tool: str, items: Sequence[Any], chunk: int, arguments: Callable[[list[Any]], dict[str, Any]], *, keep: bool
    ) -> list[Any]:
        folder = self.work / "answers"
        chunks = [list(items[i : i + chunk]) for i in range(0, len(items), chunk)]
        asked = [arguments(some) for some in chunks]
        names = [fingerprint(tool, one) if keep else str(i) for i, one in enumerate(asked)]
        answers: dict[str, Any] = {}
        if keep:
            folder.mkdir(parents=True, exist_ok=True)
            answers = {name: json.loads(file.read_text()) for name in names if (file := folder / f"{name}.json").exists()}
        pending = {name: one for name, one in zip(names, asked, strict=True) if name not in answers}
        if pending:
            self.engines.release()
            pool = self._started(runtime.held(self.config.ray))
            sizes = dict(zip(names, map(len, chunks), strict=True))
            units = (Unit(name, {"work": str(self.work), "tool": tool, "arguments": one}) for name, one in pending.items())
            with self.ui.stage(tool, sum(sizes[name] for name in pending), unit="texts") as bar:
                for outcome in pool.run("use", units):
                    if outcome.error is not None:
                        raise JobFailed(f"{tool}: {outcome.error}")
                    answers[outcome.key] = outcome.value
                    if keep:
                        _keep(folder / f"{outcome.key}.json", outcome.value)
                    bar.advance(sizes[outcome.key])
        return [answers[name] for name in names]

    def train(self, training: Training, work: Path, *, workers: int, progress: Callable[[int, int, float | None], None]) -> Layout:
        """Train in ``work`` and return what on: one worker of the pool, or a group of processes by Ray Train.

        Raises
        ------
        JobFailed
            The workers died too often, or training failed. Called again, it goes on from the last checkpoint.
        """
        self.engines.release()
        layout = runtime.divided(self.config.ray, workers)
        work.mkdir(parents=True, exist_ok=True)
        with watched(work, progress):
            if workers == 1 and training.deepspeed is None:
                self._started(layout).call("train", training=training, work=str(work))
            else:
                self.close()  # its processors are wanted
                train_together(training, work, layout=layout, attempts=self.config.ray.attempts, timeout=self.config.ray.timeout)
        return layout

    def _started(self, layout: Layout) -> Pool:
        if self._pool is not None and self._pool.layout != layout:
            self.close()
        if self._pool is None:
            self._pool = self.engines.workers(layout, Tutor)
        return self._pool


def _keep(file: Path, value: Any) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(value.tolist() if isinstance(value, np.ndarray) else value))
    part.replace(file)
