"""A bounded pool of workers: as many units in flight as there are workers, failures told apart by class alone."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ray_actors.runtime import Layout
from ray_actors.worker import Worker
from topicscale.errors import JobFailed, ResourceError

POLL = 0.5
"""Seconds between looks at the workers' progress."""
TELL = 10.0
"""Seconds between messages about workers that are waited for."""
LOOK = 15.0
"""Seconds between looks at whether the cluster has grown."""
BORN = 10.0
"""Seconds that a worker which is being started is given to answer before it is ended."""
LATE = 30.0
"""Seconds, at least, after which a unit may be given to a second worker."""


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


@dataclass(frozen=True)
class Flight:
    """A unit under way."""

    actor: Any
    unit: Unit
    attempt: int
    began: float


class Pool:
    """Workers of one size, started at once and used for every stage, so that start-up is paid once.

    A worker that dies is replaced and its unit tried again, ``attempts`` times in all: a unit that kills every worker
    it meets (out of memory, say) ends as failed and the stage goes on. Work goes on with the workers there are while
    others wait for a place. A unit that holds up the end of a stage is given to an idle worker too, and the first answer
    counts: its machine may be slow, or hang.

    Parameters
    ----------
    attempts : int
        Times that a unit is tried when its worker dies.
    timeout : float
        Seconds to be without any worker.
    room : callable, optional
        Returns how many more workers the cluster has a place for, given how many there are; asked now and then, so that machines
        that join it are used.
    say : callable, optional
        Called with a line for people when workers are waited for, died or came.
    **arguments
        The worker's own, beside ``threads`` and ``device``.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        attempts: int,
        timeout: float,
        worker: type = Worker,
        room: Callable[[int], int] | None = None,
        say: Callable[[str], None] = lambda _: None,
        **arguments: Any,
    ) -> None:
        self.layout, self._attempts, self._timeout, self._worker = layout, attempts, timeout, worker
        self._room, self.say, self._arguments = room, say, arguments
        self._running: list[Any] = []
        self._moved = 0.0
        """When a worker came or was asked for."""
        self._starting: dict[Any, Any] = {}
        """Actors that have not answered yet, by the reference of their first answer."""
        self._at_work = 0
        """Runs that have not ended."""
        self._stillborn = ""
        """Why the last one died that never answered."""
        for _ in range(layout.actors):
            self._spawn()
        self._alone = self._told = self._looked = time.monotonic()
        """Since when there is no worker; when it was said last that some are waited for; when room was looked for."""

    def _spawn(self) -> None:
        import ray

        device = "cuda" if self.layout.gpus else "cpu"
        # the second thread answers `progress` while the first works
        actor = ray.remote(num_cpus=self.layout.cpus, num_gpus=self.layout.gpus, max_concurrency=2)(self._worker)
        started = actor.remote(threads=self.layout.cpus, device=device, **self._arguments)
        self._starting[started.ready.remote()] = started
        self._moved = time.monotonic()

    def _drop(self, actor: Any) -> None:
        """End a worker and start another in its place."""
        import ray

        if actor in self._running:  # one that never ran does not begin the time of waiting anew
            self._running.remove(actor)
            if not self._running:
                self._alone = time.monotonic()
        with contextlib.suppress(Exception):
            ray.kill(actor)
        self._spawn()

    def _bury(self, idle: list[Any]) -> None:
        """Drop idle workers that are dead: a machine that is lost takes several, and a unit would meet them one by one."""
        import ray

        asked = {actor.ready.remote(): actor for actor in idle}
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=POLL) if asked else ([], [])
        for reference in done:
            try:
                ray.get(reference)
            except ray.exceptions.RayError:
                idle.remove(asked[reference])
                self._drop(asked[reference])

    def _arrived(self, reference: Any) -> Any | None:
        """Return the worker that answered for the first time, None if it died instead.

        Raises
        ------
        ResourceError
            It cannot be made there at all, and so would no other.
        """
        import ray

        actor = self._starting.pop(reference)
        self._moved = time.monotonic()
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            if "creation task" in str(error):
                said = _last_line(error)
                _, refused, reason = said.partition(f"{ResourceError.__name__}: ")
                if refused:  # the worker itself knows what to do
                    raise ResourceError(reason) from error
                raise ResourceError(
                    f"A worker could not be made: {said}. Every machine of the cluster needs the same Python and the same "
                    "topicscale (an image, or `topicscale submit --working-dir`)."
                ) from error
            self._stillborn = _last_line(error)
            self.say(f"A worker died before it could begin: {self._stillborn}")
            self._drop(actor)
            return None
        self._running.append(actor)
        return actor

    def wait(self) -> None:
        """Wait until a worker runs. Others join when the cluster has a place for them.

        Raises
        ------
        ResourceError
            There was none in time.
        """
        import ray

        if not self._running:
            self._alone = time.monotonic()  # until now nobody waited
        while not self._running:
            done, _ = ray.wait(list(self._starting), num_returns=1, timeout=POLL)
            for reference in done:
                self._arrived(reference)
            self._patience()

    def _patience(self) -> None:
        """Say what is waited for, and raise ResourceError when there was no worker for too long."""
        import ray

        now = time.monotonic()
        hopeless = not self._running and now - self._alone > self._timeout
        said = self._told > self._moved and bool(self._running)  # once is enough while others work
        if not self._starting or not (hopeless or (not said and now - max(self._told, self._moved) > TELL)):
            return
        self._told = now
        free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU", "memory")}
        wanted = Layout(len(self._starting), self.layout.cpus, self.layout.gpus)
        if hopeless:
            why = f" The last one died: {self._stillborn}" if self._stillborn else ""
            raise ResourceError(
                f"{wanted} did not start within {self._timeout:g} s. Free in the cluster: {free}.{why} Lower ray.actors or "
                "ray.cpus_per_actor, add machines, or raise ray.timeout. What is finished is kept: run the same command again to go on."
            )
        until = f"{now - self._alone:.0f} s of at most {self._timeout:g}" if not self._running else f"{len(self._running)} at work"
        self.say(f"Waiting for {wanted} ({until}). Free in the cluster: {free}.")

    def _grow(self) -> None:
        """Start workers on machines that joined the cluster."""
        if self._room is None or self._starting or time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        more = self._room(len(self._running))
        for _ in range(more):
            self._spawn()
        if more > 0:
            self.say(f"The cluster has grown: {Layout(more, self.layout.cpus, self.layout.gpus)} more.")

    def warm(self, method: str, **arguments: Any) -> None:
        """Call a method on every worker and do not wait: loads what the next stage needs while others work."""
        for actor in [*self._running, *self._starting.values()]:
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
            There was no worker for too long.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        self.wait()
        self._at_work += 1  # a run that is given up stays counted: its units may be under way
        fresh = iter(units)  # taken one by one: how much there is to do may depend on what was done
        again: deque[tuple[Unit, int]] = deque()
        idle = list(self._running)
        flying: dict[Any, Flight] = {}
        ended = False
        longest = 0.0

        def send(unit: Unit, attempt: int) -> None:
            actor = idle.pop()
            flying[getattr(actor, method).remote(**unit.arguments)] = Flight(actor, unit, attempt, time.monotonic())

        while again or flying or not ended:
            while idle and (again or not ended):
                unit, attempt = again.popleft() if again else (next(fresh, None), 1)
                if unit is None:
                    ended = True
                    break
                send(unit, attempt)
            if not flying and not again and ended:
                break
            if idle and longest:  # nothing is left to begin
                late = _late(flying.values(), longest)
                if late is not None:
                    self.say(f"{late.unit.key} takes long: another worker does it too.")
                    send(late.unit, late.attempt)
            done, _ = ray.wait([*flying, *self._starting], num_returns=1, timeout=POLL)
            if not done and progress is not None:
                progress(self._progress([flight.actor for flight in flying.values()]))
            for reference in done:
                if reference in self._starting:
                    if (actor := self._arrived(reference)) is not None:
                        idle.append(actor)  # should it have died again, its next unit says so
                    continue
                if reference not in flying:
                    continue  # another copy of its unit ended in this very round
                flight = flying.pop(reference)
                copies = [other for other, beside in flying.items() if beside.unit.key == flight.unit.key]
                seconds = time.monotonic() - flight.began
                try:
                    outcome = Outcome(flight.unit.key, ray.get(reference), seconds=seconds, attempts=flight.attempt)
                    idle.append(flight.actor)
                    longest = max(longest, seconds)
                except RayTaskError as error:
                    cause = error.cause if isinstance(error.cause, Exception) else error
                    said = f"{type(cause).__name__}: {_last_line(cause)}"
                    outcome = Outcome(flight.unit.key, None, said, str(error), seconds, flight.attempt)
                    idle.append(flight.actor)
                except RayError as error:  # the worker died, its node did, or it ran out of memory
                    self.say(f"A worker died at {flight.unit.key}: {_last_line(error)}")
                    self._drop(flight.actor)
                    self._bury(idle)
                    if copies:
                        continue
                    if flight.attempt < self._attempts:
                        again.append((flight.unit, flight.attempt + 1))
                        continue
                    said = f"the worker died {flight.attempt} times: {_last_line(error)}"
                    outcome = Outcome(flight.unit.key, None, said, str(error), seconds, flight.attempt)
                for other in copies:
                    self._drop(flying.pop(other).actor)
                yield outcome
            self._patience()
            self._grow()
        self._at_work -= 1

    def rest(self) -> bool:
        """Let workers forget all that a job gave them, and return whether they all did, having nothing under way."""
        import ray

        if self._at_work or self._starting:
            return False
        asked = [actor.forget.remote() for actor in self._running]
        done, _ = ray.wait(asked, num_returns=len(asked), timeout=BORN) if asked else ([], [])
        with contextlib.suppress(ray.exceptions.RayError):
            return len(ray.get(done)) == len(self._running) > 0
        return False

    def close(self) -> None:
        """End the workers: the cluster may outlive the job."""
        import ray

        if self._starting:
            # Ray (2.60) keeps a worker's processors taken for ever when it is killed between its lease and its creation
            with contextlib.suppress(Exception):
                ray.wait(list(self._starting), num_returns=len(self._starting), timeout=BORN)
        for actor in [*self._running, *self._starting.values()]:
            with contextlib.suppress(Exception):  # a cluster that is gone has no workers to end
                ray.kill(actor)
        self._running, self._starting = [], {}

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


def _late(flights: Iterable[Flight], longest: float) -> Flight | None:
    """Return the oldest flight that takes much longer than the longest unit that ended, and has no second worker yet."""
    flying = list(flights)
    keys = Counter(flight.unit.key for flight in flying)
    oldest = min((flight for flight in flying if keys[flight.unit.key] == 1), key=lambda flight: flight.began, default=None)
    late = oldest is not None and time.monotonic() - oldest.began > max(LATE, 3 * longest)
    return oldest if late else None


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1][:600] if lines else type(error).__name__
