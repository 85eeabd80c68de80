"""The store: a folder of Delta tables, written in units that can be repeated and read at pinned versions.

Delivery contract
-----------------
A *unit of work* is one (stage, partition). What a unit writes is committed to its table in one Delta transaction that

* replaces the rows the unit wrote before (never appends to them), and
* carries a ``txn`` action under the unit's application id, whose version says what was written:
  ``(counter << 40) | (first 40 bits of the unit's fingerprint)``. The counter grows by one with every write, so the
  version always grows, as Delta asks; the low bits tell whether the rows are those of a given fingerprint.

So "is this unit done?" is answered by the table itself, atomically with its data, and a crash between two writes
cannot leave a log that says otherwise. A -> B -> A writes three times, as it must. The chance that a changed unit is
taken for unchanged is 2^-40. When a unit's rows are removed its ``txn`` is set to :data:`ABSENT`.

Readers start from the newest row of ``generations``, which names one version of every table and is committed last.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.transaction import AddAction

from topicscale import lease, storage
from topicscale.config import fingerprint
from topicscale.errors import RequestError, StoreError, StoreLocked, StoreVersionError
from topicscale.files import Folder, said
from topicscale.tables import CONTRACT_VERSION, LOGS, PARTITION, TABLES
from topicscale.transactions import Transactions

MARKER = "_topicscale.json"
LOCK = "_lock"
PENDING = "_forget.json"
"""Ids of documents that are being removed: while it is there, only `forget` may write."""
WORK = "_work"
"""Folder of what a run that was killed goes on from."""
WEIGHTS = "weights"
"""Folder of the weights of models trained on the store: ``weights/<revision>/<name>``."""
TRAINING = "_finetune"
"""Folder of trainings under way. It holds texts."""
WHOLE = "*"
"""The partition of a unit that writes a whole table."""
ABSENT = fingerprint("absent")
"""The fingerprint of a unit whose rows were removed."""
_BITS = 40
_PROPERTIES = {"delta.checkpointInterval": "50", "delta.dataSkippingNumIndexedCols": "0"}  # statistics of text are of no use
_MASK = (1 << _BITS) - 1
_MISREAD = r"%[0-9A-Fa-f]{2}|[\[\]^|\\\x00-\x1f]"
"""What delta-rs decodes, or cannot have in an address."""


@dataclass(frozen=True)
class PartFile:
    """A data file written for a unit and not yet committed."""

    path: str
    """Relative to the table."""
    size: int
    """Bytes."""
    rows: int


@dataclass(frozen=True)
class UnitWrite:
    """What a finished unit wants committed to one table."""

    stage: str
    partition_id: str
    fingerprint: str
    files: tuple[PartFile, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """One generation: the versions of all tables that belong together."""

    generation: int
    versions: Mapping[str, int]
    configuration: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    at: datetime | None = None

    @property
    def given_vectors(self) -> bool:
        """Whether vectors came with the documents."""
        return (self.configuration.get("input") or {}).get("embedding_column") is not None


def unit_id(stage: str, partition_id: str = WHOLE) -> str:
    """Return the Delta application id of a unit."""
    return f"topicscale/{stage}/{partition_id}"


def next_version(previous: int | None, unit_fingerprint: str) -> int:
    """Return the ``txn`` version that follows ``previous`` and says that ``unit_fingerprint`` was written."""
    counter = 0 if previous is None else (previous >> _BITS) + 1
    return (counter << _BITS) | (int(unit_fingerprint[:10], 16) & _MASK)


def says(version: int | None, unit_fingerprint: str) -> bool:
    """Return whether a ``txn`` version says that ``unit_fingerprint`` was written last."""
    return version is not None and (version & _MASK) == (int(unit_fingerprint[:10], 16) & _MASK)


def agree(one: int | None, other: int | None) -> bool:
    """Return whether two versions stand for the same fingerprint, however often it was written."""
    return mark(one) == mark(other)


def mark(version: int | None) -> int | None:
    """Return what a ``txn`` version tells of its fingerprint, the same however often that was written; None for none."""
    return None if version is None else version & _MASK


def local_path(uri: str) -> Path:
    """Return the local path that a URI names.

    Raises
    ------
    RequestError
        The URI names no local path.
    """
    path = storage.local_path(uri)
    if path is None:
        raise RequestError(f"This must be a folder of this machine. Got {uri!r} instead.")
    return path


def is_store(uri: str | Path) -> bool:
    """Return whether there is a store at a URI."""
    return Folder(uri).exists(MARKER)


def check_vacant(uri: str | Path) -> None:
    """Raise StoreError unless a store can be made at a URI: nothing is there, or an empty folder, or one whose making was cut short."""
    files = Folder(uri)
    _check_address(files)
    if files.find() is not None:
        raise StoreError(f"A store must be a folder. {files.uri!r} is a file.")
    if not all(_begun(files, name) for name in files.listing()):
        raise StoreError(f"The folder {files.uri!r} is not empty and is no topicscale store. Name a new or empty folder.")


def _begun(files: Folder, name: str) -> bool:
    """Return whether what is in a folder is of a store whose making was cut short, and not somebody's own of the same name."""
    if name.startswith(Path(MARKER).stem):
        return True
    if files.find(name) is not None:
        return name == LOCK
    if name != LOCK and (name not in TABLES or TABLES[name].writer != "delta-rs"):  # Spark writes into stores that are made
        return False
    inside = Folder(f"{files.uri}/{name}").listing()
    return not inside or "_delta_log" in inside


def _check_address(files: Folder) -> None:
    """Raise StoreError for an address that one of Delta's libraries takes for another than the rest do, or for none."""
    if (odd := re.search(_MISREAD if files.path is not None else f"{_MISREAD}|[?#]", files.uri)) is not None:
        raise StoreError(
            f"The address of a store must hold no {odd.group()!r}, by which a table would be written in one place and read in another. "
            f"Got {files.uri!r} instead. Rename the folder, or name another."
        )


class Store:
    """A store at a URI. Opening one reads nothing but its marker file.

    Parameters
    ----------
    uri : str
        A local path, a ``file://`` URI, or a folder of an object store (``s3://bucket/folder``, ``gs://``, ``abfss://``), which is
        reached by the settings given to :func:`topicscale.storage.use`.
    create : bool, default=False
        Make the store, with every table that delta-rs writes, if there is none.
    site_id : str, optional
        The id of a store that is made; random without.

    Attributes
    ----------
    files : topicscale.files.Folder
        What lies beside the tables.
    site_id : str
        What tells this store's topics from other stores' after merging: random, made with the store, copied with it, and
        carried by what the store exports.

    Raises
    ------
    StoreError
        There is no store at ``uri`` (and ``create`` is false), the folder holds something else, its address has what Delta's libraries
        read in different ways (``%20``, ``[``), or the object store does not answer.
    StoreVersionError
        The store was written under another table contract.
    """

    def __init__(self, uri: str | Path, *, create: bool = False, site_id: str | None = None) -> None:
        self.files = Folder(uri)
        self.uri, self.name = self.files.uri, self.files.name
        _check_address(self.files)
        self._options = storage.delta_options(self.uri)
        content = self.files.read(MARKER)
        if content is None:
            if not create:
                raise StoreError(
                    f"There is no topicscale store at {self.uri!r}. Make one with: topicscale run --input ... --store {self.uri}"
                )
            content = self._create(uuid.uuid4().hex if site_id is None else site_id)
        try:
            marks = json.loads(content)
            contract = marks["contract"]
            self.site_id = str(marks.get("id", ""))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"The marker file {self.uri}/{MARKER} is damaged: {error}") from error
        if contract != CONTRACT_VERSION:
            raise StoreVersionError(
                f"The store at {self.uri!r} has table contract {contract}; this version of topicscale reads and writes contract "
                f"{CONTRACT_VERSION}. Use the topicscale version that wrote it, or run into a new store."
            )
        self._pinned: Snapshot | None = None
        self._units: dict[str, Transactions] = {}

    def _create(self, site_id: str) -> bytes:
        check_vacant(self.uri)
        try:
            if self.files.path is not None:
                self.files.path.mkdir(parents=True, exist_ok=True)
            for spec in TABLES.values():
                if spec.writer == "delta-rs":
                    self._make(spec.name, spec.schema, [PARTITION] if spec.partitioned else None)
            # last, so that a store without it is one whose making was cut short, and is made again
            content = json.dumps({"contract": CONTRACT_VERSION, "id": site_id}).encode()
            self.files.write(MARKER, content)
            return content
        except (OSError, DeltaError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            raise StoreError(f"The store {self.uri!r} cannot be made: {why or said(error)}") from error

    def _make(self, name: str, schema: pa.Schema, partition_by: list[str] | None = None) -> None:
        DeltaTable.create(
            self.table_path(name),
            schema=schema,
            mode="ignore",
            partition_by=partition_by,
            configuration=_PROPERTIES,
            storage_options=self._options,
        )

    @property
    def path(self) -> Path:
        """The store's folder on this machine.

        Raises
        ------
        RequestError
            It is in an object store.
        """
        return local_path(self.uri)

    # -- tables --------------------------------------------------------------------------------------------------

    def table_path(self, name: str) -> str:
        """Return the path of one table."""
        return f"{self.uri}/{TABLES[name].name}"

    def table(self, name: str, *, version: int | None = None) -> DeltaTable:
        """Return a delta-rs handle on a table at a version (None: the newest).

        Raises
        ------
        StoreError
            The table was not written yet, the object store does not answer, or this run no longer holds the store.
        """
        lease.check(self.uri)
        try:
            return DeltaTable(self.table_path(name), version=version, storage_options=self._options)
        except TableNotFoundError:
            raise StoreError(f"The store {self.uri!r} has no table {name!r} yet. Run `topicscale status --store {self.uri}`.") from None
        except (OSError, DeltaError) as error:
            if self.files.path is not None:
                raise
            raise StoreError(f"The table {self.table_path(name)} cannot be read: {said(error)}") from error

    def has(self, name: str) -> bool:
        """Return whether a table was written."""
        return DeltaTable.is_deltatable(self.table_path(name), self._options)

    def version(self, name: str) -> int | None:
        """Return the newest version of a table, None if it was never written."""
        return self.table(name).version() if self.has(name) else None

    def read(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        *,
        partitions: Sequence[str] | None = None,
        version: int | None = None,
    ) -> pa.Table:
        """Return rows of a table at the pinned generation (see :meth:`pin`), at ``version``, or the newest.

        Parameters
        ----------
        columns : sequence of str, optional
            All columns by default.
        partitions : sequence of str, optional
            Only rows of these partitions (partitioned tables only).

        Raises
        ------
        StoreError
            There is no such table, or the pinned generation's files are gone.
        """
        handle = self.table(name, version=self._version(name, version))
        only = None if partitions is None else [(PARTITION, "in", list(partitions))]
        with self._there(version):
            return handle.to_pyarrow_dataset(file_pruning_predicate=only).to_table(columns=list(columns) if columns is not None else None)

    def select(self, name: str, columns: Sequence[str], rows: Any) -> pa.Table:
        """Return the rows that fulfil a pyarrow expression, at the pinned generation or the newest version."""
        version = self._pinned.versions.get(name) if self._pinned is not None else None
        with self._there():
            return self.table(name, version=version).to_pyarrow_dataset().to_table(columns=list(columns), filter=rows)

    def read_batches(self, name: str, columns: Sequence[str] | None = None, *, version: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield what :meth:`read` returns batch by batch, so that a reader's memory does not grow with the corpus."""
        dataset = self.table(name, version=self._version(name, version)).to_pyarrow_dataset()
        with self._there(version):
            # read-ahead is what makes a scanner's memory grow
            yield from dataset.scanner(
                columns=list(columns) if columns is not None else None, batch_readahead=2, fragment_readahead=1
            ).to_batches()

    @contextlib.contextmanager
    def _there(self, version: int | None = None) -> Iterator[None]:
        """Say of files that are missing whose they were: while a generation is open, `forget` or a vacuum may delete it."""
        try:
            yield
        except FileNotFoundError as error:
            if self._pinned is None or version is not None:
                raise
            raise StoreError(
                f"Files of generation {self._pinned.generation} of {self.uri!r} were removed, as `forget` removes those of older "
                "generations. Load the newest one."
            ) from error

    def _version(self, name: str, version: int | None) -> int | None:
        """Return the version to read: the one given, else the pinned generation's, else None for the newest."""
        if version is not None or self._pinned is None:
            return version
        if name not in self._pinned.versions and name not in LOGS:
            raise StoreError(f"Generation {self._pinned.generation} of {self.uri!r} has no table {name!r}.")
        return self._pinned.versions.get(name)

    # -- units ---------------------------------------------------------------------------------------------------

    def unit_version(self, name: str, stage: str, partition_id: str = WHOLE, *, handle: DeltaTable | None = None) -> int | None:
        """Return the ``txn`` version of a unit in a table, None if it never wrote."""
        if handle is None:
            if not self.has(name):
                return None
            handle = self.table(name)
        return handle.transaction_version(unit_id(stage, partition_id))

    def unit_versions(self, name: str, *, version: int | None = None, handle: DeltaTable | None = None) -> Mapping[str, int]:
        """Return the ``txn`` version of every unit in a table, by :func:`unit_id`: what tells of many units at once."""
        known = self._units.get(name, Transactions())
        found = known.to(self.table(name, version=version) if handle is None else handle)
        if found.at > known.at:
            self._units[name] = found
        return found.versions

    def done(self, name: str, stage: str, fingerprints: Mapping[str, str]) -> set[str]:
        """Return the partitions of ``fingerprints`` (partition -> fingerprint) whose rows in ``name`` are those."""
        if not self.has(name):
            return set()
        versions = self.unit_versions(name)
        return {pid for pid, fp in fingerprints.items() if says(versions.get(unit_id(stage, pid)), fp)}

    def commit(self, name: str, writes: Sequence[UnitWrite]) -> None:
        """Replace the rows of many units of one table in one transaction.

        Idempotent: the files of the same partitions committed before are removed in the same transaction, so that a
        repetition leaves the same rows.
        """
        if not writes:
            return
        handle = self.table(name)
        now = int(time.time() * 1000)
        adds = [
            AddAction(file.path, file.size, {PARTITION: write.partition_id}, now, True, json.dumps({"numRecords": file.rows}))
            for write in writes
            for file in write.files
        ]
        versions = self.unit_versions(name, handle=handle)
        transactions = []
        for write in writes:
            app = unit_id(write.stage, write.partition_id)
            transactions.append(Transaction(app, next_version(versions.get(app), write.fingerprint)))
        handle.create_write_transaction(
            adds,  # type: ignore[arg-type]
            mode="overwrite",
            schema=handle.schema(),
            partition_by=[PARTITION],
            partition_filters=[(PARTITION, "in", sorted({write.partition_id for write in writes}))],
            commit_properties=CommitProperties(app_transactions=transactions),
        )

    def retain(self, name: str, stage: str, partitions: Iterable[str]) -> None:
        """Remove the rows of partitions that the plan no longer holds."""
        handle = self.table(name)
        gone = sorted({row[PARTITION] for row in handle.partitions()} - set(partitions))
        if gone:
            self.commit(name, [UnitWrite(stage, pid, ABSENT) for pid in gone])

    def replace(self, name: str, rows: pa.Table, *, stage: str, unit_fingerprint: str) -> None:
        """Replace all rows of an unpartitioned table, as one unit. Idempotent for the same fingerprint."""
        handle = self.table(name)
        app = unit_id(stage)
        version = next_version(handle.transaction_version(app), unit_fingerprint)
        write_deltalake(
            handle,
            rows.cast(TABLES[name].schema),
            mode="overwrite",
            commit_properties=CommitProperties(app_transactions=[Transaction(app, version)]),
        )

    def amend(self, name: str, rows: pa.Table, *, stage: str, version: int | None = None) -> int:
        """Replace all rows of an unpartitioned table, let it count as what the stage wrote, and return the table's new version.

        A rerun finds nothing to redo.

        Parameters
        ----------
        version : int, optional
            The version that the rows were made of (default: the newest). Where a run that never finished has written
            since, the rows count as those of this version, so that the run writes its own again.
        """
        handle = self.table(name)
        app = unit_id(stage)
        previous = handle.transaction_version(app)
        counted = previous if version is None else self.table(name, version=version).transaction_version(app)
        if previous is None or counted is None:
            following = next_version(previous, ABSENT)
        else:
            following = (((previous >> _BITS) + 1) << _BITS) | (counted & _MASK)
        properties = CommitProperties(app_transactions=[Transaction(app, following)])
        write_deltalake(handle, rows.cast(TABLES[name].schema), mode="overwrite", commit_properties=properties)
        return self.table(name).version()

    def create_table(self, name: str, *, schema: pa.Schema | None = None) -> None:
        """Make a table where there is none yet: one that Spark writes elsewhere, or that an older store lacks.

        Parameters
        ----------
        schema : Schema, optional
            Where it has columns beside those of the contract.
        """
        self._make(name, schema or TABLES[name].schema, [PARTITION] if TABLES[name].partitioned else None)

    def append(self, name: str, rows: pa.Table) -> None:
        """Append to a log table (``runs``, ``answers``)."""
        write_deltalake(self.table(name), rows.cast(TABLES[name].schema), mode="append")

    # -- generations ---------------------------------------------------------------------------------------------

    def snapshots(self) -> list[Snapshot]:
        """Return all generations, oldest first."""
        rows = self.read("generations").sort_by("generation").to_pylist()
        return [
            Snapshot(
                row["generation"],
                json.loads(row["versions"]),
                self._here(json.loads(row["configuration"])),
                json.loads(row["summary"]),
                row["at"],
            )
            for row in rows
        ]

    def _here(self, configuration: dict[str, Any]) -> dict[str, Any]:
        """Return a configuration whose embedding model, where it is one of this store's own, is found although the store was moved."""
        embedding = configuration.get("embedding", {})
        parts = Path(str(embedding.get("model", ""))).parts
        if len(parts) > 3 and parts[-3] == WEIGHTS and self.files.path is not None and not Path(*parts).is_dir():
            here = self.path.joinpath(*parts[-3:])
            if here.is_dir():
                return {**configuration, "embedding": {**embedding, "model": str(here)}}
        return configuration

    def publish(
        self,
        *,
        configuration: Mapping[str, Any],
        summary: Mapping[str, Any],
        unit_fingerprint: str | None = None,
        versions: Mapping[str, int] | None = None,
        held: Collection[str] = (),
    ) -> Snapshot:
        """Commit a generation that names the present version of every table, or those given. Idempotent for the same fingerprint.

        Without a fingerprint the generation counts as the one before it, amended: a rerun finds nothing to redo.

        Parameters
        ----------
        held : collection of str
            Tables that stay as the generation before has them: others write them, and may have been killed before they published.
        """
        handle = self.table("generations")
        app = unit_id("generation")
        previous = handle.transaction_version(app)
        if unit_fingerprint is not None and says(previous, unit_fingerprint):
            return self.snapshots()[-1]
        if unit_fingerprint is not None:
            version = next_version(previous, unit_fingerprint)
        else:
            version = previous + (1 << _BITS) if previous is not None else next_version(None, ABSENT)
        snapshots = self.snapshots()
        if versions is None:
            versions = {name: v for name in TABLES if name not in LOGS and (v := self.version(name)) is not None}
            versions |= {name: v for snapshot in snapshots[-1:] for name, v in snapshot.versions.items() if name in held}
        number = max((s.generation for s in snapshots), default=0) + 1
        at = datetime.now(UTC)
        row = {
            "generation": number,
            "versions": json.dumps(dict(versions)),
            "configuration": json.dumps(configuration),
            "summary": json.dumps(summary),
            "at": at,
        }
        write_deltalake(
            handle,
            pa.Table.from_pylist([row], schema=TABLES["generations"].schema),
            mode="append",
            commit_properties=CommitProperties(app_transactions=[Transaction(app, version)]),
        )
        return Snapshot(number, versions, configuration, summary, at)

    def forget_history(self) -> None:
        """Keep the newest generation alone, and remove every file that it does not name. Only that generation can be read after."""
        newest = self.read("generations").sort_by("generation").slice(max(len(self.snapshots()) - 1, 0))
        write_deltalake(self.table("generations"), newest, mode="overwrite")
        for name in TABLES:
            if self.has(name):
                self.table(name).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False, full=True)
        self.files.clear(WORK)
        if self.files.path is not None:
            for folder in (self.files.path / TRAINING).glob("*/"):  # lock files stay: their holders would hold nothing
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def without_trainings(self, run_id: str) -> Iterator[None]:
        """Hold every training's lock while the block runs: a training has texts of its own, and would write them again.

        Raises
        ------
        StoreLocked
            One is under way.
        """
        with contextlib.ExitStack() as held:
            locks = (self.files.path / TRAINING).glob("*.lock") if self.files.path is not None else ()  # none trains on an object store
            for lock in sorted(locks):
                held.enter_context(exclusive(lock, run_id, f"The training of {lock.stem!r}, which holds texts of this store,"))
            yield

    def pin(self, generation: int | None = None, *, exports: bool = False) -> Snapshot:
        """Make this object read one generation (None: the newest) and return it.

        Parameters
        ----------
        exports : bool, default=False
            Take what ``export`` wrote, too: sums of topics, and none of what else a store holds.

        Raises
        ------
        StoreError
            There is no such generation, or none yet; or it is an export.
        """
        snapshots = self.snapshots()
        if not snapshots:
            raise StoreError(f"The store {self.uri!r} holds no finished run yet. See `topicscale status --store {self.uri}`.")
        if "export" in snapshots[-1].summary and not exports:
            raise StoreError(
                f"{self.uri!r} is an export of a store: sums of its topics, for a merge. Merge it first, alone or with others: "
                f"topicscale merge --inputs {self.uri} --store MERGED"
            )
        if generation is None:
            self._pinned = snapshots[-1]
            return self._pinned
        for snapshot in snapshots:
            if snapshot.generation == generation:
                self._pinned = snapshot
                return snapshot
        known = ", ".join(str(s.generation) for s in snapshots)
        raise StoreError(f"The store {self.uri!r} has no generation {generation}. It has {known}.")

    @property
    def pinned(self) -> Snapshot | None:
        """The generation that this object reads; None while it reads the newest version of every table."""
        return self._pinned

    def check_documents(self) -> None:
        """Raise StoreError when the pinned generation holds topics without the documents they were found in."""
        pinned = self._pinned if self._pinned is not None else self.pin()
        if "documents" not in pinned.versions:
            merged = bool(pinned.summary.get("merged"))
            raise StoreError(
                f"The store {self.uri!r} holds {'merged topics' if merged else 'topics'} and no documents. What is about documents is "
                f"in {'the stores of the sites' if merged else 'the store'} that the topics came from."
            )

    # -- the lock ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, run_id: str, *, forgetting: bool = False) -> Iterator[None]:
        """Hold the store against other runs.

        On this machine the kernel lets go of it when the process dies, however it dies; in an object store it is a lease
        (see :mod:`topicscale.lease`).

        Raises
        ------
        StoreLocked
            Another run holds it; the message names it.
        """
        with self.held(LOCK, run_id):
            if self.files.exists(PENDING) and not forgetting:
                raise StoreError(
                    f"Documents are being removed from {self.uri!r}, and that was cut short. Finish it first, with the same ids or any: "
                    f"topicscale forget --ids FILE --store {self.uri}"
                )
            yield

    @contextlib.contextmanager
    def held(self, name: str, run_id: str) -> Iterator[None]:
        """Hold a lock of the store by its name, as :meth:`lock` does."""
        what = f"The store {self.uri!r}"
        if self.files.path is not None:
            (self.files.path / name).parent.mkdir(parents=True, exist_ok=True)
            with exclusive(self.files.path / name, run_id, what):
                yield
            return
        with lease.lease(self.files, name, holder(run_id), what):
            yield


def holder(run_id: str) -> str:
    """Return how whoever holds a lock is told of."""
    return f"run {run_id} (process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC)"


@contextlib.contextmanager
def exclusive(path: Path, run_id: str, what: str) -> Iterator[None]:
    """Hold a lock file that names its holder; the kernel lets go of it when the process dies.

    Raises
    ------
    StoreLocked
        Another run holds it.
    """
    handle = path.open("a+")
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise StoreLocked(
                f"{what} is in use by {handle.read().strip() or 'another run'}. Wait for it to end, or stop it first."
            ) from None
        handle.seek(0)
        handle.truncate()
        handle.write(holder(run_id))
        handle.flush()
        yield
    finally:
        handle.close()


def write_part(store_uri: str, name: str, partition_id: str, rows: pa.Table, *, schema: pa.Schema | None = None) -> tuple[PartFile, ...]:
    """Write one partition's rows as a data file, to be committed by the driver.

    Runs on workers. Nothing sees the file until :meth:`Store.commit`; one that is never committed is an orphan that
    vacuum removes.

    Parameters
    ----------
    rows : pyarrow.Table
        Columns of the table's schema; ``partition_id`` itself is left out of the file, as Delta has it.
    schema : Schema, optional
        Where the table has columns beside those of the contract.

    Returns
    -------
    tuple of PartFile
        Empty when there are no rows.
    """
    if rows.num_rows == 0:
        return ()
    schema = pa.schema([f for f in schema or TABLES[name].schema if f.name != PARTITION])
    relative = f"{PARTITION}={partition_id}/part-{uuid.uuid4().hex}.parquet"
    files = Folder(store_uri)
    # vectors do not compress; a dictionary over them costs time and gains nothing
    strings = [f.name for f in schema if pa.types.is_string(f.type)]
    with files.sink(f"{name}/{relative}") as sink:
        pq.write_table(rows.select(schema.names).cast(schema), sink, compression="zstd", compression_level=1, use_dictionary=strings)
        size = sink.tell()
    return (PartFile(relative, size, rows.num_rows),)
