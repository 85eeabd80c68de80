"""Spark and Ray, started when first needed and side by side: their start-up is most of a small job's overhead.

A job stops what it started. Within :func:`session` the next job of the process takes it over.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ray_actors import runtime
from ray_actors.pool import Pool
from ray_actors.runtime import Layout
from ray_actors.worker import Worker
from topicscale import storage
from topicscale.config import Config
from topicscale.errors import ResourceError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


BRIEF = 50_000
"""Up to this many rows the JVM's compiler stops early: start-up is then most of Spark's time."""


class Session:
    """What the jobs of this process left running on this machine."""

    def __init__(self) -> None:
        self._pool: tuple[Any, Pool] | None = None
        self._spark: tuple[Any, bool, SparkSession] | None = None
        self._ray: threading.Event | None = None

    def release(self) -> None:
        """Let go of the workers' processors and memory; Spark and Ray run on."""
        held, self._pool = self._pool, None
        if held is not None:
            held[1].close()

    def take(self, size: Any) -> Pool | None:
        """Return the workers that were left, if they are of that size; others are ended."""
        held, self._pool = self._pool, None
        if held is not None and held[0] != size:
            held[1].close()
            return None
        return held[1] if held is not None else None

    def leave(self, size: Any, pool: Pool) -> None:
        """Keep workers for the next job, unless their work was cut short."""
        self.release()
        if pool.rest():
            self._pool = size, pool
        else:
            pool.close()

    def leave_ray(self, ended: threading.Event) -> None:
        """Keep Ray; ``ended`` lets the thread go that it ends with."""
        self._ray = ended

    def leave_spark(self, how: Any, brief: bool, spark: SparkSession) -> None:
        """Keep Spark."""
        self._spark = how, brief, spark

    def spark(self, how: Any, brief: bool) -> SparkSession | None:
        """Return the Spark that was left; one that does not suit is ended."""
        if self._spark is not None and (self._spark[0] != how or (self._spark[1] and not brief) or not _alive(self._spark[2])):
            self._end_spark()
        return self._spark[2] if self._spark is not None else None

    def _end_spark(self) -> None:
        held, self._spark = self._spark, None
        if held is not None:
            from spark import session as shell

            with contextlib.suppress(Exception):
                shell.stop(held[2])

    def close(self) -> None:
        """Stop everything."""
        with contextlib.suppress(Exception):
            self.release()
        if self._ray is not None:
            with contextlib.suppress(Exception):
                runtime.stop()
            self._ray.set()
        self._end_spark()


_session: Session | None = None


@contextlib.contextmanager
def session() -> Iterator[Session]:
    """Keep Spark, Ray and its workers between the jobs of this process, so that only the first waits for them.

    For notebooks and programs that fit, update or label more than once on one machine. Processors and memory of the workers
    are held until the block ends, or until :meth:`Session.release`. Engines of a cluster are left after each job, as ever.

    Examples
    --------
    >>> from topicscale import TopicModel, session
    >>> with session():  # doctest: +SKIP
    ...     models = [TopicModel(min_topic_size=size).fit(docs) for size in (10, 20, 40)]
    """
    global _session
    if _session is not None:  # the outer one's
        yield _session
        return
    _session = mine = Session()
    try:
        yield mine
    finally:
        _session = None
        mine.close()


_jobs = threading.RLock()
_under_way = ""


@contextlib.contextmanager
def alone(uri: str) -> Iterator[None]:
    """Hold the engines of this process for a job: those of one that another thread began would be ended with this one's.

    Parameters
    ----------
    uri : str
        What the job writes.

    Raises
    ------
    ResourceError
        A job of another thread is under way.
    """
    global _under_way
    if not _jobs.acquire(blocking=False):
        raise ResourceError(
            f"Another job runs in this process ({_under_way}), and Spark and Ray are one for all of a process's threads. Wait for "
            "it to end, or start this one in a process of its own."
        )
    outer, _under_way = _under_way, uri
    try:
        yield
    finally:
        _under_way = outer
        _jobs.release()


def write_frame(frame: Any, uri: str) -> int:
    """Write a Spark data frame of the caller's: see :func:`spark.tables.write_frame`."""
    from spark import tables

    return tables.write_frame(frame, uri)


class Engines:
    """Both engines of one job.

    Parameters
    ----------
    rows : int, optional
        Documents that are read, where that is known: small jobs start Spark another way.
    say : callable, optional
        Called with a line for people, from any thread, when workers are waited for, died or came.
    remote : sequence of str
        Kinds of object stores that Spark must reach.
    """

    def __init__(
        self, config: Config, *, rows: int | None = None, say: Callable[[str], None] = lambda _: None, remote: Sequence[str] = ()
    ) -> None:
        self._config, self._say, self._remote = config, say, remote
        self._brief = rows is not None and rows <= BRIEF
        self._spark: SparkSession | None = None
        self._our_spark = self._our_ray = False
        self._theirs: SparkSession | None = None
        self._pool: Pool | None = None
        self._layout: Layout | None = None
        self._starting: threading.Thread | None = None
        self._started, self._ended = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self.seconds: dict[str, float] = {}

    @property
    def spark(self) -> SparkSession:
        """The Spark session."""
        if self._spark is None:
            from spark import session

            if _session is not None and (kept := _session.spark(self._how, self._brief)) is not None:
                self._spark = kept
                return kept
            began = time.monotonic()
            self._theirs = session.running()
            self._our_spark = self._theirs is None
            self._spark = session.start(
                self._config.spark, brief=self._brief, remote=self._remote, timeout=self._config.ray.timeout, say=self._say
            )
            self.seconds["spark"] = time.monotonic() - began
        return self._spark

    @property
    def pool(self) -> Pool:
        """The Ray workers."""
        self._wait()
        if self._pool is None:  # it was released
            assert self._layout is not None
            self._pool = self.workers(self._layout, grows=True)
        self._pool.wait()
        return self._pool

    def workers(self, layout: Layout, worker: type = Worker, *, grows: bool = False) -> Pool:
        """Return workers of a size and kind, for the caller to close.

        Parameters
        ----------
        grows : bool
            Machines that join the cluster are used, unless the configuration says how many workers there are to be.
        """
        ray = self._config.ray
        room = partial(runtime.room, ray, layout) if grows and ray.where is not None and ray.actors is None else None
        return Pool(layout, attempts=ray.attempts, timeout=ray.timeout, worker=worker, room=room, say=self._say, storage=storage.settings())

    def release(self) -> None:
        """Leave Ray running without workers, so that others can have their processors and memory. The next use starts new ones."""
        self._wait()
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _wait(self) -> None:
        self.begin()
        self._started.wait()
        if self._error is not None:
            raise self._error
        runtime.keep_signals()

    def begin(self, **warm: Any) -> None:
        """Start Ray in the background; ``warm`` maps worker methods to the arguments to call them with at once."""
        if self._starting is None:
            self._starting = threading.Thread(target=self._start_ray, args=(warm,), daemon=True)
            self._starting.start()

    def _start_ray(self, warm: dict[str, dict[str, Any]]) -> None:
        began = time.monotonic()
        try:
            self._layout, self._our_ray = runtime.start(self._config.ray)
            if runtime.is_open(self._config.ray):
                self._say(
                    "The Ray cluster asks for no token: whoever reaches it can run programs on it. Set RAY_AUTH_MODE=token on its machines."
                )
            kept = _session.take(self._size) if _session is not None else None
            self._pool = self.workers(self._layout, grows=True) if kept is None else kept
            self._pool.say = self._say
            for method, arguments in warm.items():
                self._pool.warm(method, **arguments)
        except BaseException as error:
            self._error = error
        self.seconds["ray"] = time.monotonic() - began
        self._started.set()
        # Ray's processes ask the kernel to be ended with the thread that made them, so this one stays
        self._ended.wait()

    def close(self) -> None:
        """Stop what was started here, or leave it to the session; engines that this process ran before are left running."""
        if self._starting is not None:
            self._started.wait()
            here = _session if self._config.ray.where is None else None
            # the job's own error, if there is one, is worth more than that of an engine that died with it
            with contextlib.suppress(Exception):
                if self._pool is not None:
                    here.leave(self._size, self._pool) if here is not None else self._pool.close()
            if here is not None and self._our_ray:
                here.leave_ray(self._ended)
            else:
                with contextlib.suppress(Exception):
                    if self._our_ray:
                        runtime.stop()
                self._ended.set()
                self._starting.join()
        if self._theirs is not None:
            from spark import session

            with contextlib.suppress(Exception):
                session.activate(self._theirs)
        if self._spark is not None and self._our_spark:
            from spark import session

            if _session is not None and self._config.spark.where is None:
                _session.leave_spark(self._how, self._brief, self._spark)
                return
            with contextlib.suppress(Exception):
                session.stop(self._spark)

    @property
    def _size(self) -> Any:
        """What workers of another job must share to be taken over."""
        import ray

        config = self._config.ray
        return self._layout, config.attempts, config.timeout, storage.settings(), ray.get_runtime_context().get_node_id()

    @property
    def _how(self) -> Any:
        """What Spark of another job must share to be taken over."""
        return self._config.spark, tuple(sorted(self._remote)), storage.settings() if self._remote else None


def _alive(spark: SparkSession) -> bool:
    try:
        return not spark.sparkContext._jsc.sc().isStopped()  # type: ignore[union-attr]
    except Exception:
        return False
