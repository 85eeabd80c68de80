"""Fine-tuning on Ray: a worker that lends its models to recipes and trains alone, and Ray Train over several workers."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray_actors.runtime import Layout
from ray_actors.worker import Worker, limit_threads
from topicscale.errors import JobFailed
from topicscale.finetune.training import Training

PROGRESS = "progress.json"
"""File of the working folder that says how far training is: {"step": ..., "steps": ..., "loss": ..., "seconds": since the first step}."""
POLL = 0.5
"""Seconds between looks at it."""
_START = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""The variable that says how many seconds Ray Train waits for room before it takes that for a failure."""


class Tutor(Worker):
    """One of a pool's processes (see :class:`ray_actors.pool.Pool`): embeds, generates and scores, with loaded models kept, and trains."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._tools: tuple[str, Any] | None = None

    def use(self, *, work: str, tool: str, arguments: dict[str, Any]) -> Any:
        """Call a method of :class:`topicscale.finetune.tools.LocalTools`."""
        from topicscale.finetune.tools import LocalTools

        if self._tools is None or self._tools[0] != work:
            self._tools = (work, LocalTools(threads=self._threads, device=self._device, work=Path(work)))
        return getattr(self._tools[1], tool)(**arguments)

    def train(self, *, training: Training, work: str) -> None:
        """Train in this process alone: see :func:`topicscale.finetune.training.train`."""
        self._tools = None  # their models' memory is wanted
        _run(training, Path(work), device=self._device, threads=self._threads, first=True)


def train_together(training: Training, work: Path, *, layout: Layout, attempts: int, timeout: float) -> None:
    """Train over ``layout.actors`` processes by Ray Train; ``work/model`` holds the model when this returns.

    A worker that dies ends its group, and a new one goes on from the last checkpoint in ``work``, ``attempts`` times in all. The driver
    may die too: called again with the same arguments, training goes on from there.

    Parameters
    ----------
    work : Path
        A folder that every node sees.
    timeout : float
        Seconds that the cluster has to find room for the processes, in ``attempts`` parts.

    Raises
    ------
    JobFailed
        The workers failed more often than that, or their code did; or the cluster has no room for them.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    device = "cuda" if layout.gpus else "cpu"
    trainer = TorchTrainer(
        _member,
        train_loop_config={"training": training, "work": str(work), "device": device, "threads": layout.cpus},
        scaling_config=ScalingConfig(
            num_workers=layout.actors,
            use_gpu=bool(layout.gpus),
            resources_per_worker={"CPU": layout.cpus} | ({"GPU": layout.gpus} if layout.gpus else {}),
        ),
        torch_config=TorchConfig(backend="nccl" if layout.gpus else "gloo"),
        run_config=RunConfig(
            name="train",
            storage_path=str(work / "ray"),
            failure_config=FailureConfig(max_failures=attempts - 1, controller_failure_limit=attempts - 1),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    os.environ[_START] = f"{timeout / attempts:g}"  # Ray Train has no argument for it
    try:
        trainer.fit()
    except KeyboardInterrupt:
        raise
    except Exception as error:
        if type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError":
            raise JobFailed(
                f"training: the cluster had no room for {layout} within {timeout:g} s (ray.timeout). "
                "`ray status` shows what is free. "
                "Wait for it, or ask for fewer: finetune.workers. What is finished is kept."
            ) from error
        raise JobFailed(f"training: {_cause(error)}") from error


@contextlib.contextmanager
def watched(work: Path, progress: Callable[[int, int, float | None], None]) -> Iterator[None]:
    """Call ``progress`` with (step, steps, loss) now and then, while the block trains in ``work``."""
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(work / PROGRESS, ended, progress), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _member(config: dict[str, Any]) -> None:
    """What each process of a group runs."""
    from ray.train import get_context

    limit_threads(config["threads"])
    first = get_context().get_world_rank() == 0
    _run(config["training"], Path(config["work"]), device=config["device"], threads=config["threads"], first=first)


def _run(training: Training, work: Path, *, device: str, threads: int, first: bool) -> None:
    from topicscale.finetune.training import train

    file = work / PROGRESS
    last, began = 0.0, 0.0

    def report(step: int, steps: int, loss: float | None) -> None:
        nonlocal last, began
        began = began or (time.monotonic() if loss is not None else 0.0)
        if first and (time.monotonic() - last >= POLL or step == steps):
            last = time.monotonic()
            part = file.with_suffix(f".{os.getpid()}")
            seconds = time.monotonic() - began if began else 0.0
            part.write_text(json.dumps({"step": step, "steps": steps, "loss": loss, "seconds": seconds}))
            part.replace(file)

    train(training, work, device=device, threads=threads, report=report)


def _watch(file: Path, ended: threading.Event, progress: Callable[[int, int, float | None], None]) -> None:
    over = False
    while not over:
        over = ended.wait(POLL)  # one look more after the end
        try:
            said = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        progress(said["step"], said["steps"], said["loss"])


def _cause(error: BaseException) -> str:
    """Return the worker's own words: Ray Train wraps them once for each process and once more."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        first = next(iter(failures.values()))
        lines = [line for line in str(first).strip().splitlines() if line.strip()]
        return lines[-1][:500] if lines else type(first).__name__
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:500]
