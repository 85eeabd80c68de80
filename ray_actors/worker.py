"""The worker: a process that keeps a loaded model and does one unit of work at a time.

It keeps only what is expensive to make. All else arrives as an argument and leaves as a value, or as data files that
the driver commits.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from topicscale.config import EmbeddingConfig, StorageConfig
from topicscale.errors import ResourceError
from topicscale.storage import use


def limit_threads(threads: int) -> None:
    """Tell every library of this process how many processors it may use."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"


def try_gpu() -> None:
    """Compute on the GPU once: Ray counts GPUs that torch, whose build or driver may be another, cannot use.

    Raises
    ------
    ResourceError
        It cannot.
    """
    import torch

    try:
        torch.ones(1, device="cuda").add(1).item()
    except (RuntimeError, AssertionError) as error:  # no driver or an old one, no kernel for this GPU; a build without CUDA
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ResourceError(
            f"torch {torch.__version__} cannot use the GPU of this machine: {reason} Update its driver, install a torch made for it, or "
            "use processors: ray.gpus_per_actor=0 (of a language model, llm.gpus_per_actor=0), or CUDA_VISIBLE_DEVICES= in the environment."
        ) from error


class Worker:
    """One of a pool's processes.

    Parameters
    ----------
    threads : int
        Processors it may use. Set once here for every library, so that two workers never fight over cores.
    device : str
        ``cpu`` or ``cuda``.
    storage : StorageConfig, optional
        How object stores are reached.

    Raises
    ------
    ResourceError
        It was given a GPU and cannot use it.
    """

    def __init__(self, threads: int, device: str, storage: StorageConfig | None = None) -> None:
        limit_threads(threads)
        if device == "cuda":
            try_gpu()
        if storage is not None:
            use(storage)
        self._threads, self._device = threads, device
        self._embedder: tuple[EmbeddingConfig, Any] | None = None
        self._loading = threading.Lock()
        self._done = 0

    def ready(self) -> bool:
        """Answer when the process runs."""
        return True

    def progress(self) -> int:
        """Return the rows done so far in the unit under way."""
        return self._done

    def forget(self) -> None:
        """Let go of what a job left, so that the next finds nothing of it."""
        from ray_actors.parts import forget_handles

        forget_handles()
        with self._loading:
            self._embedder = None

    def load_model(self, config: EmbeddingConfig) -> None:
        """Load an embedding model ahead of its first unit."""
        self._model(config)

    def load_clustering(self) -> None:
        """Import what clustering needs ahead of its first unit."""
        from topicscale import cluster  # noqa: F401

    def embed(self, **unit: Any) -> Any:
        """See :func:`ray_actors.embed.embed`."""
        from ray_actors.embed import embed

        self._done = 0
        return embed(lambda: self._model(unit["config"]), self._count, **unit)

    def encode(self, *, config: EmbeddingConfig, texts: list[str]) -> Any:
        """See :func:`ray_actors.embed.encode`."""
        from ray_actors.embed import encode

        return encode(self._model(config), texts)

    def embed_texts(self, *, config: EmbeddingConfig, texts: list[str]) -> Any:
        """Return the vectors of many texts, float32 (n, d), embedded together."""
        return self._model(config).encode(texts).vectors

    def cluster(self, **unit: Any) -> Any:
        """See :func:`ray_actors.cluster.cluster`."""
        from ray_actors.cluster import cluster

        self._done = 0
        return cluster(threads=self._threads, **unit)

    def sample(self, **unit: Any) -> Any:
        """See :func:`ray_actors.sample.sample`."""
        from ray_actors.sample import sample

        return sample(**unit)

    def calibrate(self, **unit: Any) -> Any:
        """See :func:`ray_actors.cluster.calibrate`."""
        from ray_actors.cluster import calibrate

        return calibrate(threads=self._threads, **unit)

    def apply(self, **unit: Any) -> Any:
        """See :func:`ray_actors.refine.apply`."""
        import ray

        from ray_actors.refine import apply

        # references inside a list are not resolved by Ray
        return apply(**unit | {"arguments": tuple(ray.get(unit["arguments"]))})

    def assign(self, **unit: Any) -> Any:
        """See :func:`ray_actors.refine.assign`."""
        from ray_actors.refine import assign

        self._done = 0
        return assign(**unit)

    def summarise(self, **unit: Any) -> Any:
        """See :func:`ray_actors.refine.summarise`."""
        from ray_actors.refine import summarise

        return summarise(**unit)

    def nearest(self, **unit: Any) -> Any:
        """See :func:`ray_actors.refine.nearest`."""
        from ray_actors.refine import nearest

        return nearest(**unit)

    def vectors(self, **unit: Any) -> Any:
        """See :func:`ray_actors.refine.vectors`."""
        from ray_actors.refine import vectors

        return vectors(**unit)

    def texts(self, **unit: Any) -> Any:
        """See :func:`ray_actors.refine.texts`."""
        from ray_actors.refine import texts

        return texts(**unit)

    def layout(self, **unit: Any) -> Any:
        """See :func:`ray_actors.sample.layout`."""
        from ray_actors.sample import layout

        return layout(threads=self._threads, **unit)

    def _count(self, rows: int) -> None:
        self._done = rows

    def _model(self, config: EmbeddingConfig) -> Any:
        # the first unit may come while `load_model` is still at it, in the other thread
        with self._loading:
            if self._embedder is None or self._embedder[0] != config:
                from topicscale.embedding import Embedder

                self._embedder = (config, Embedder(config, threads=self._threads, device=self._device))
            return self._embedder[1]
