"""A bounded pool of workers: as many units in flight as there are workers, failures told apart by class alone."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ray_actors.runtime import Layout
from ray_actors.worker import Worker
from topicscale.errors import JobFailed, ResourceError

POLL = 0.5
"""Seconds between looks at the workers' progress."""


@dataclass(frozen=True)
class Unit:
    """One call of a worker's method."""

    key: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a unit ended: with a value, or with the reason why not."""

    key: str
    value: Any = None
    error: str | None = None
    """One line."""
    trace: str | None = None
    """All that is known of the error."""
    seconds: float = 0.0
    attempts: int = 1


class Pool:
    """Workers of one size, started at once and used for every stage, so that start-up is paid once.

    A worker that dies is replaced and its unit tried again, ``attempts`` times in all: a unit that kills every worker
    it meets (out of memory, say) ends as failed and the stage goes on. ``arguments`` are the worker's own, beside ``threads``
    and ``device``.
    """

    def __init__(self, layout: Layout, *, attempts: int, timeout: float, worker: type = Worker, **arguments: Any) -> None:
        self.layout, self._attempts, self._timeout, self._worker = layout, attempts, timeout, worker
        self._arguments = arguments
        self._actors = [self._spawn() for _ in range(layout.actors)]
        self._ready = False

    def _spawn(self) -> Any:
        import ray

        device = "cuda" if self.layout.gpus else "cpu"
        # the second thread answers `progress` while the first works
        actor = ray.remote(num_cpus=self.layout.cpus, num_gpus=self.layout.gpus, max_concurrency=2)(self._worker)
        return actor.remote(threads=self.layout.cpus, device=device, **self._arguments)

    def wait(self) -> None:
        """Wait until every worker runs.

        Raises
        ------
        ResourceError
            The cluster did not give what was asked for in time.
        """
        if self._ready:
            return
        import ray

        pending = [actor.ready.remote() for actor in self._actors]
        done, _ = ray.wait(pending, num_returns=len(pending), timeout=self._timeout)
        if len(done) < len(pending):
            free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU", "memory")}
            raise ResourceError(
                f"{len(pending) - len(done)} of {self.layout} did not start within {self._timeout:g} s. Free in the cluster: {free}. "
                "Lower ray.actors or ray.cpus_per_actor, or raise ray.timeout."
            )
        ray.get(done)
        self._ready = True

    def warm(self, method: str, **arguments: Any) -> None:
        """Call a method on every worker and do not wait: loads what the next stage needs while others work."""
        for actor in self._actors:
            getattr(actor, method).remote(**arguments)

    def run(self, method: str, units: Iterable[Unit], *, progress: Callable[[int], None] | None = None) -> Iterator[Outcome]:
        """Call ``method`` for each unit and yield outcomes as they end, in no particular order.

        Parameters
        ----------
        progress : callable, optional
            Called now and then with the rows done so far by the units under way.

        Raises
        ------
        ResourceError
            A worker died and the cluster has no place for another within the time limit.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        self.wait()
        fresh = iter(units)  # taken one by one: how much there is to do may depend on what was done
        again: deque[tuple[Unit, int]] = deque()
        idle = list(self._actors)
        starting: dict[Any, tuple[Any, float]] = {}
        flying: dict[Any, tuple[Any, Unit, int, float]] = {}
        ended = False
        while again or flying or not ended:
            while idle and (again or not ended):
                unit, attempt = again.popleft() if again else (next(fresh, None), 1)
                if unit is None:
                    ended = True
                    break
                actor = idle.pop()
                flying[getattr(actor, method).remote(**unit.arguments)] = (actor, unit, attempt, time.monotonic())
            if not flying and not starting:
                continue
            done, _ = ray.wait([*flying, *starting], num_returns=1, timeout=POLL)
            if not done and progress is not None:
                progress(self._progress([actor for actor, *_ in flying.values()]))
            for reference in done:
                if reference in starting:
                    actor, _ = starting.pop(reference)
                    idle.append(actor)  # should it have died again, its next unit says so
                    continue
                actor, unit, attempt, began = flying.pop(reference)
                seconds = time.monotonic() - began
                try:
                    yield Outcome(unit.key, ray.get(reference), seconds=seconds, attempts=attempt)
                    idle.append(actor)
                except RayTaskError as error:
                    cause = error.cause if isinstance(error.cause, Exception) else error
                    yield Outcome(unit.key, None, f"{type(cause).__name__}: {_last_line(cause)}", str(error), seconds, attempt)
                    idle.append(actor)
                except RayError as error:  # the worker died, its node did, or it ran out of memory
                    self._actors.remove(actor)
                    with contextlib.suppress(Exception):
                        ray.kill(actor)
                    actor = self._spawn()
                    self._actors.append(actor)
                    starting[actor.ready.remote()] = (actor, time.monotonic())
                    if attempt < self._attempts:
                        again.append((unit, attempt + 1))
                    else:
                        yield Outcome(unit.key, None, f"the worker died {attempt} times: {_last_line(error)}", str(error), seconds, attempt)
            for _, began in starting.values():
                if time.monotonic() - began > self._timeout:
                    raise ResourceError(
                        f"A worker died, and none of {self.layout.cpus} CPUs could be started in its place within {self._timeout:g} s. "
                        "What is finished is kept: run the same command again to go on."
                    )

    def close(self) -> None:
        """End the workers: the cluster may outlive the job."""
        import ray

        for actor in self._actors:
            with contextlib.suppress(Exception):  # a cluster that is gone has no workers to end
                ray.kill(actor)
        self._actors = []

    def call(self, method: str, **arguments: Any) -> Any:
        """Run one unit and return its value.

        Raises
        ------
        JobFailed
            The unit failed.
        """
        (outcome,) = self.run(method, [Unit(method, arguments)])
        if outcome.error is not None:
            raise JobFailed(f"{method}: {outcome.error}")
        return outcome.value

    def _progress(self, actors: list[Any]) -> int:
        import ray

        done, _ = ray.wait([actor.progress.remote() for actor in actors], num_returns=len(actors), timeout=POLL)
        total = 0
        for reference in done:
            try:
                total += ray.get(reference)
            except ray.exceptions.RayError:  # it is dying; the unit's own reference says so
                continue
        return total


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
