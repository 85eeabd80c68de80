"""The state of one run: its store, configuration, engines, log, and the loop that drives a stage's units."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.engines import Engines, alone
from jobs.progress import Ui
from ray_actors.parts import Done
from ray_actors.pool import Outcome, Unit
from topicscale import storage
from topicscale.config import Config, fingerprint
from topicscale.errors import JobFailed
from topicscale.store import WORK, Store, UnitWrite
from topicscale.tables import TABLES

CODE = dict.fromkeys(
    (
        "ingest",
        "embed",
        "zeroshot",
        "cluster",
        "calibrate",
        "refine",
        "assign",
        "terms",
        "map",
        "publish",
        "represent",
        "batch",
        "add",
        "forget",
    ),
    1,
) | {"ingest": 2, "calibrate": 2, "map": 2}
"""Raised when a stage's code makes other rows of the same input, so that old results are not taken for new ones."""
FLUSH_UNITS, FLUSH_SECONDS, FLUSH_SHARE = 64, 3.0, 0.05
"""Finished units are committed together once there are so many, or the oldest waited so long. Where commits are slow (many partitions, a
far store) it waits longer, so that they take no more than this share of the time."""
GROUPS = 16
"""Where partitions' results are added up, a worker adds those of a group of partitions before the driver does: so many groups a worker."""


@dataclass(frozen=True)
class Partition:
    """One partition of the corpus, as ingest left it."""

    partition_id: str
    value: str | None
    rows: int
    digest: str


def new_run_id() -> str:
    """Return what a run goes by: when it began, and what tells it from another of that second."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"


@contextlib.contextmanager
def opened(
    store: Store, config: Config, run_id: str, ui: Ui, *, rows: int | None = None, adds: bool = False, reads: Sequence[str] = ()
) -> Iterator[Job]:
    """Yield a job on a store; however it ends, its log is written and its engines are stopped.

    Parameters
    ----------
    rows : int, optional
        Documents that are read, where that is known: small jobs start Spark another way.
    adds : bool
        See :class:`Job`.
    reads : sequence of str
        Paths of the input, where there is any.

    Raises
    ------
    ResourceError
        Another thread of this process runs a job.
    """
    remote = storage.schemes([store.uri, *reads])
    engines = Engines(config, rows=rows, say=partial(ui.log, "warning"), remote=remote)
    job = Job(store, config, run_id, ui, engines, adds=adds)
    with alone(store.uri):
        try:
            yield job
        except KeyboardInterrupt:
            ui.log("warning", f"Interrupted. What is finished is kept: run the same command again to go on. (store {store.uri})")
            raise
        except Exception as error:
            from spark.session import said

            if why := said(error):
                raise JobFailed(f"Spark failed: {why}. What is finished is kept: run the same command again to go on.") from error
            raise
        finally:
            try:
                job.flush()
            finally:
                engines.close()


@dataclass
class Job:
    """One run."""

    store: Store
    config: Config
    run_id: str
    ui: Ui
    engines: Engines
    adds: bool = False
    """Units are added beside what the tables hold; otherwise partitions that the plan no longer has are removed."""
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    """stage -> partition -> why."""
    worked: set[str] = field(default_factory=set)
    """Stages that had something to do."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""
    _records: list[dict[str, Any]] = field(default_factory=list)
    _log: threading.Lock = field(default_factory=threading.Lock)
    """Two stages may end at once (see ``publish``)."""

    def print_of(self, stage: str, *parts: Any) -> str:
        """Return the fingerprint of a stage's unit."""
        return fingerprint(stage, CODE[stage], *parts)

    def record(
        self, stage: str, partition_id: str | None, unit_fingerprint: str, status: str, *, rows: int, seconds: float, detail: Any = None
    ) -> None:
        """Put a unit on the log; written with the next flush."""
        row = {
            "run_id": self.run_id,
            "stage": stage,
            "partition_id": partition_id,
            "fingerprint": unit_fingerprint,
            "status": status,
            "rows": rows,
            "seconds": round(seconds, 3),
            "at": datetime.now(UTC),
            "detail": detail if isinstance(detail, str) or detail is None else json.dumps(detail),
        }
        with self._log:
            self._records.append(row)

    def flush(self) -> None:
        """Write the log."""
        with self._log:
            rows, self._records = self._records, []
            if rows:
                self.store.append("runs", pa.Table.from_pylist(rows, schema=TABLES["runs"].schema))

    def fail(self, stage: str, unit_fingerprint: str, outcome: Outcome) -> None:
        """Note a unit that cannot be done; the stage goes on without it. The log keeps the whole traceback."""
        partition_id, error = outcome.key, str(outcome.error)
        self.failed.setdefault(stage, {})[partition_id] = error
        detail = f"{error}\n{outcome.trace}" if outcome.trace else error
        self.record(stage, partition_id, unit_fingerprint, "failed", rows=0, seconds=outcome.seconds, detail=detail)
        self.ui.log("error", f"{stage}: partition {partition_id} failed: {error}", stage=stage, partition_id=partition_id)

    def run_units(
        self,
        stage: str,
        method: str,
        *,
        tables: Sequence[str],
        fingerprints: Mapping[str, str],
        rows: Mapping[str, int],
        prepare: Callable[[list[str]], Callable[[str], dict[str, Any]]],
    ) -> list[str]:
        """Do a stage's unfinished units and return the partitions that are done, sorted.

        Parameters
        ----------
        method : str
            The workers' method.
        tables : sequence of str
            What a unit writes. It is done when all of them say so.
        fingerprints, rows : mapping
            By partition: what its unit would write, and how large it is.
        prepare : callable
            Given the pending partitions (there is at least one), returns what gives a unit's arguments.
        """
        began = time.monotonic()
        done = set(fingerprints)
        for table in tables:
            done &= self.store.done(table, stage, fingerprints)
        pending = sorted(set(fingerprints) - done, key=lambda pid: (-rows[pid], pid))  # large ones first: no straggler at the end
        if pending:
            self.worked.add(stage)
            for pid in pending:  # or a store that is worked on again would look finished until each unit is done again
                self.record(stage, pid, fingerprints[pid], "pending", rows=0, seconds=0.0)
            self.flush()
            arguments = prepare(pending)
            done |= self._drive(stage, method, pending, tables, fingerprints, rows, arguments)
        for table in () if self.adds else tables:
            self.store.retain(table, stage, done)
        self.flush()
        self.timings[stage] = self.timings.get(stage, 0.0) + time.monotonic() - began
        if pending:
            self._say(stage, len(pending), len(fingerprints), sum(rows[pid] for pid in pending), time.monotonic() - began)
        return sorted(done)

    def _drive(
        self,
        stage: str,
        method: str,
        pending: list[str],
        tables: Sequence[str],
        fingerprints: Mapping[str, str],
        rows: Mapping[str, int],
        arguments: Callable[[str], dict[str, Any]],
    ) -> set[str]:
        finished: set[str] = set()
        buffer: list[tuple[str, Done]] = []
        oldest, patience = time.monotonic(), FLUSH_SECONDS

        def commit() -> None:
            nonlocal patience
            began = time.monotonic()
            for table in tables:
                self.store.commit(table, [UnitWrite(stage, pid, fingerprints[pid], done.files.get(table, ())) for pid, done in buffer])
            finished.update(pid for pid, _ in buffer)
            buffer.clear()
            self.flush()
            patience = max(FLUSH_SECONDS, (time.monotonic() - began) / FLUSH_SHARE)

        with self.ui.stage(stage, sum(rows[pid] for pid in pending)) as bar:
            try:
                for outcome in self.engines.pool.run(method, (Unit(pid, arguments(pid)) for pid in pending), progress=bar.partial):
                    if outcome.error is not None:
                        self.fail(stage, fingerprints[outcome.key], outcome)
                        continue
                    done = outcome.value
                    self.record(
                        stage, outcome.key, fingerprints[outcome.key], "done", rows=done.rows, seconds=outcome.seconds, detail=done.detail
                    )
                    if not buffer:
                        oldest = time.monotonic()
                    buffer.append((outcome.key, done))
                    bar.advance(rows[outcome.key])
                    if len(buffer) >= FLUSH_UNITS or time.monotonic() - oldest >= patience:
                        commit()
            finally:
                commit()  # also when interrupted: what is finished stays finished
        return finished

    def each(self, method: str, units: Iterable[Unit], *, stage: str) -> Iterator[tuple[str, Any]]:
        """Yield each unit's partition and value, in no particular order; none may fail.

        Raises
        ------
        JobFailed
            One did.
        """
        for outcome in self.engines.pool.run(method, units):
            if outcome.error is not None:
                raise JobFailed(f"{stage}: partition {outcome.key}: {outcome.error}")
            yield outcome.key, outcome.value

    def over(
        self, partitions: Iterable[str], rows: Mapping[str, int], embeddings_version: int, *, stage: str
    ) -> Callable[..., Iterable[Any]]:
        """Return the ``over`` that :func:`topicscale.refine.refine` maps its steps with."""
        groups = self.groups(partitions, rows)

        def over(step: Callable[..., Any] | str, *arguments: Any) -> Iterable[Any]:
            import ray

            name = step if isinstance(step, str) else step.__name__
            shared = [ray.put(value) for value in arguments]  # once, not once a partition
            units = [
                Unit(
                    key,
                    {
                        "step": name,
                        "arguments": shared,
                        "store_uri": self.store.uri,
                        "partition_ids": group,
                        "embeddings_version": embeddings_version,
                    },
                )
                for key, group in groups.items()
            ]
            with self.ui.stage(f"{stage}", sum(rows[pid] for group in groups.values() for pid in group)) as bar:
                for outcome in self.engines.pool.run("apply", units):
                    if outcome.error is not None:
                        # every later number depends on every partition, so there is nothing to go on with
                        raise JobFailed(f"{stage}: {name} failed on partition {outcome.key}: {outcome.error}")
                    bar.advance(sum(rows[pid] for pid in groups[outcome.key]))
                    yield outcome.value

        return over

    def groups(self, partitions: Iterable[str], rows: Mapping[str, int]) -> dict[str, list[str]]:
        """Return partitions in groups of about equal rows, at most :data:`GROUPS` a worker, by what to call each in a message."""
        keys = sorted(partitions, key=lambda pid: (-rows[pid], pid))
        number = min(len(keys), GROUPS * self.engines.pool.layout.actors)
        groups = [keys[start::number] for start in range(number)]
        return {group[0] + (f" or one of {len(group) - 1} others" if len(group) > 1 else ""): group for group in groups}

    def keep(self, name: str, **arrays: npt.NDArray[Any]) -> None:
        """Keep arrays in the store's work folder, in place of what a stage kept before: a run that is killed goes on from them.

        Parameters
        ----------
        name : str
            ``STAGE-FINGERPRINT.npz``.
        """
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        files = self.store.files
        for old in files.files(WORK):
            if old.name.startswith(f"{WORK}/{name.partition('-')[0]}-"):
                files.remove(old.name)
        files.write(f"{WORK}/{name}", content.getvalue())

    def kept(self, name: str) -> dict[str, npt.NDArray[Any]] | None:
        """Return the arrays that were kept under a name, None where there are none."""
        content = self.store.files.read(f"{WORK}/{name}")
        if content is None:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as data:
            return {key: data[key] for key in data.files}

    def whole(self, stage: str, unit_fingerprint: str, *, rows: int, seconds: float, detail: Any = None) -> None:
        """Note a stage that is one unit as done."""
        self.worked.add(stage)
        self.timings[stage] = self.timings.get(stage, 0.0) + seconds
        self.record(stage, None, unit_fingerprint, "done", rows=rows, seconds=seconds, detail=detail)
        self.flush()
        self.ui.log("stage", f"{stage}: done in {seconds:.1f} s", stage=stage, seconds=round(seconds, 3))

    def _say(self, stage: str, units: int, of: int, rows: int, seconds: float) -> None:
        skipped = f", {of - units:,} already done" if of > units else ""
        plural = "s" * (units != 1)
        text = f"{stage}: {rows:,} documents in {units:,} partition{plural}{skipped}, {seconds:.1f} s ({rows / max(seconds, 1e-9):,.0f}/s)"
        self.ui.log("stage", text, stage=stage, rows=rows, seconds=round(seconds, 3))
