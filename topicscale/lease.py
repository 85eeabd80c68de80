"""A lock in an object store, where no kernel lets go of it when its holder dies.

Who holds it is the one row of a Delta table: a commit is the one thing that every object store does for one writer
alone, and that delta-rs needs of it anyway. The holder writes a small file again and again, its beat. A lock whose beat is
gone or older than :data:`LEASE` is free, and so is one whose process has ended on this machine. Ages are told by the
object store's clock alone.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from topicscale import storage
from topicscale.errors import StoreError, StoreLocked
from topicscale.files import File, Folder, said

LEASE = 60.0
"""Seconds without a beat after which a lock may be taken over."""
BEAT = 10.0
"""Seconds between two beats."""
_HELD: list[Lease] = []
"""What this process holds."""
_SCHEMA = pa.schema([("token", pa.string()), ("holder", pa.string()), ("machine", pa.string()), ("process", pa.int64())])


def check(uri: str) -> None:
    """Raise StoreError when this process held a folder in an object store, and no longer does; called before whatever commits to it."""
    for held in list(_HELD):
        if held.uri == uri:
            held.check()


class Lease:
    """A lock that this process holds."""

    def __init__(self, files: Folder, name: str, holder: str, what: str) -> None:
        self._files, self._name, self._what = files, name, what
        self.uri = files.uri
        self._options = storage.delta_options(files.uri)
        self._row = {"token": uuid.uuid4().hex, "holder": holder, "machine": _machine(), "process": os.getpid()}
        self._last = 0.0
        self._doubted = False
        self._taken: str | None = None
        self._ended = threading.Event()
        self._renewing = threading.Lock()

    def take(self) -> None:
        """Take the lock.

        Raises
        ------
        StoreLocked
            Another run holds it.
        """
        uri = f"{self._files.uri}/{self._name}"
        try:
            if not DeltaTable.is_deltatable(uri, self._options):
                with contextlib.suppress(CommitFailedError):  # another makes it this very moment
                    DeltaTable.create(uri, schema=_SCHEMA, mode="ignore", storage_options=self._options)
            self._claim()
        except (OSError, DeltaError) as error:
            self._files.remove(self._beat(self._row))
            raise StoreError(f"The lock {uri} cannot be taken: {said(error)}") from error
        except StoreLocked:
            self._files.remove(self._beat(self._row))
            raise
        threading.Thread(target=self._keep, daemon=True).start()

    def release(self) -> None:
        """Let go of the lock. Where the object store does not answer, it is free when its time is over."""
        self._ended.set()
        with self._renewing, contextlib.suppress(StoreError):
            self._files.remove(self._beat(self._row))

    def check(self) -> None:
        """Raise StoreError when the lock was taken over, since beats did not arrive for too long, or may have been."""
        if self._in_doubt():
            try:
                self._renew()
            except (OSError, DeltaError) as error:
                raise StoreError(f"{self._what} may have been taken over, and the object store does not say: {said(error)}") from error
        if self._taken is not None:
            raise StoreError(
                f"{self._what} was taken over: this run gave no sign of life for {LEASE:.0f} s. What is finished is kept. {self._taken}"
            )

    def _claim(self, *, again: bool = False) -> None:
        """Write a beat, then the row, unless another holds the lock or writes its row meanwhile.

        ``again``: the lock was held before. Another's row says that others have changed what it guards since, even if they are gone.
        """
        now = self._write_beat()
        table = DeltaTable(f"{self._files.uri}/{self._name}", storage_options=self._options)
        rows = table.to_pyarrow_table().to_pylist()
        held = rows[0] if rows else None
        if again and (held is None or held["token"] != self._row["token"]):
            self._files.remove(self._beat(self._row))
            raise StoreLocked(f"{self._what} was held by {held['holder'] if held else 'another run'} meanwhile.")
        if held is not None and held["token"] != self._row["token"]:
            beat = self._files.find(self._beat(held))
            if beat is not None and not _over(held, beat, now):
                age = max(0.0, (now.changed - beat.changed) / 1e9)
                raise StoreLocked(
                    f"{self._what} is in use by {held['holder']}; its last sign of life is {age:.0f} s old. Wait for it to end, or stop it "
                    f"first. If its machine is gone, the store is free {LEASE:.0f} s after that sign."
                )
        try:
            write_deltalake(
                table,
                pa.Table.from_pylist([self._row], schema=_SCHEMA),
                mode="overwrite",
                commit_properties=CommitProperties(max_commit_retries=0),
            )
        except DeltaError as error:
            raise StoreLocked(f"{self._what} was taken by another run this very moment. Wait for it to end. ({said(error)})") from error
        self._doubted = False
        if held is not None and held["token"] != self._row["token"]:
            self._files.remove(self._beat(held))

    def _in_doubt(self) -> bool:
        """Return whether another may have taken the lock over, until a commit of ours shows that none did."""
        self._doubted = self._doubted or _now() - self._last > LEASE
        return self._doubted

    def _beat(self, row: dict[str, Any]) -> str:
        return f"{self._name}/_beats/{row['token']}"

    def _write_beat(self) -> File:
        began = _now()
        self._files.write(self._beat(self._row), b"1")
        self._in_doubt()  # a beat that arrives late says nothing of the time before it
        self._last = began
        found = self._files.find(self._beat(self._row))
        if found is None:
            raise StoreError(f"{self._what} loses what is written to it: a file that was just written is not there.")
        return found

    def _keep(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(StoreError, OSError, DeltaError):  # the next one may arrive
                self._renew()

    def _renew(self) -> None:
        with self._renewing:
            if self._ended.is_set() or self._taken is not None:
                return
            if not self._in_doubt():
                self._write_beat()
                return
            try:
                self._claim(again=True)  # by a new commit: who takes it over at this moment would lose, or we do
            except StoreLocked as error:
                self._taken = str(error)


@contextlib.contextmanager
def lease(files: Folder, name: str, holder: str, what: str) -> Iterator[Lease]:
    """Hold the lock ``name`` of a folder in an object store.

    Raises
    ------
    StoreLocked
        Another run holds it; the message names it.
    """
    held = Lease(files, name, holder, what)
    held.take()
    _HELD.append(held)
    try:
        yield held
    finally:
        _HELD.remove(held)
        held.release()


def _over(held: dict[str, Any], beat: File, now: File) -> bool:
    """Return whether whoever holds a lock is gone."""
    if held["machine"] == _machine() and not psutil.pid_exists(held["process"]):
        return True
    return (now.changed - beat.changed) / 1e9 > LEASE


def _now() -> float:
    """Return seconds that pass while the machine sleeps, too: others' leases do."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _machine() -> str:
    """Return what tells this machine, and this container on it, from others: process numbers mean the same in it."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{uuid.getnode()}"
