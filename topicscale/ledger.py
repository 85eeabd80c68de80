"""The record of what left a store: the folder ``_exports``, which never leaves itself.

Contract
--------
``_exports/<n>/`` holds one export: ``store/`` (the very files that left), ``documents.parquet`` (what the store held),
``members.parquet`` (which of it, or of earlier exports, each released leaf sums) and ``entry.json``. Documents are told by
64-bit hashes keyed with ``_exports/secret``, so that a table's old versions may be vacuumed and no text or id is kept. The
hashes are no secret from who holds the folder: with the secret, a guessed document can be looked up.

An entry is made under ``_exports/_partial``, forced to the disk and renamed, and only then are its files copied to where
they leave from. So a crash can leave an entry for what never left, which is harmless: the next export of the same
documents is answered with it. It cannot leave a copy outside without an entry. The store's lock is held all the while.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from topicscale import lease
from topicscale.differencing import Members, UInt64
from topicscale.errors import StoreError
from topicscale.files import Folder

FOLDER = "_exports"
_PARTIAL = "_partial"
_ENTRY = "entry.json"
_SECRET = "secret"


@dataclass(frozen=True)
class Entry:
    """One export that left, or may have."""

    number: int
    path: Path
    generation: int
    minimum: int
    """The K it was made with."""
    site: str
    keys: tuple[str, ...]
    """Content keys of its leaves, in the order ``members`` numbers them."""

    @property
    def store(self) -> Path:
        """The files that left."""
        return self.path / "store"

    def documents(self) -> Members:
        """Return what the store held, all in leaf 0."""
        rows = pq.read_table(self.path / "documents.parquet")
        return Members(rows["document"].to_numpy(), rows["text"].to_numpy(), np.zeros(rows.num_rows, np.int64))

    def members(self) -> Members:
        """Return which documents each leaf sums."""
        rows = pq.read_table(self.path / "members.parquet")
        vectors = rows["vector"].to_numpy() if "vector" in rows.column_names else None
        return Members(rows["document"].to_numpy(), rows["text"].to_numpy(), rows["leaf"].to_numpy(), vectors)


@contextlib.contextmanager
def at_hand(files: Folder) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Yield a folder of this machine that holds a store's ledger, and what puts back there what was recorded since.

    Of a store in an object store that is a copy, removed afterwards. The caller holds the store's lock, and lets nothing
    leave before it has put the record back, which is refused once the lock was lost: another export may have left since.
    """
    if files.path is not None:
        yield files.path, lambda: None
        return
    with tempfile.TemporaryDirectory(prefix="topicscale-ledger-") as scratch:
        there = {file.name for file in files.files(FOLDER, deep=True)}
        # of a record that was put back in part nothing has left: without its last file it is none
        whole = {name for name in there if "/".join([*name.split("/")[:2], _ENTRY]) in there}
        for name in sorted(there - whole - {f"{FOLDER}/{_SECRET}"}):
            files.remove(name)  # the next record of that number would be taken to hold it
        for name in sorted(whole | {f"{FOLDER}/{_SECRET}"} & there):
            target = Path(scratch) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files.read(name) or b"")

        def keep() -> None:
            made = [path.relative_to(scratch).as_posix() for path in Path(scratch, FOLDER).rglob("*") if path.is_file()]
            for name in sorted((name for name in made if name not in whole), key=lambda name: (name.endswith(f"/{_ENTRY}"), name)):
                lease.check(files.uri)
                files.write(name, (Path(scratch) / name).read_bytes())

        yield Path(scratch), keep


class Ledger:
    """The exports of one store. The caller holds the store's lock.

    Raises
    ------
    StoreError
        The folder is damaged: nothing may leave while it cannot be told what left.
    """

    def __init__(self, store: Path) -> None:
        self.path = store / FOLDER
        self.path.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(self.path / _PARTIAL, ignore_errors=True)  # of an export that was cut short before it was recorded
        self.entries = [
            self._entry(int(p.name)) for p in sorted(self.path.iterdir(), key=lambda p: (len(p.name), p.name)) if p.name.isdecimal()
        ]
        self._secret = self._read_secret()

    def _entry(self, number: int) -> Entry:
        path = self.path / str(number)
        try:
            told = json.loads((path / _ENTRY).read_text(encoding="utf-8"))
            return Entry(number, path, told["generation"], told["minimum"], told["site"], tuple(told["keys"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"The record of an export, {str(path)!r}, is damaged: {error}. Restore it from a backup.") from error

    def _read_secret(self) -> bytes:
        file = self.path / _SECRET
        if file.exists():
            secret = file.read_bytes()
            if len(secret) != 32:
                raise StoreError(f"The file {str(file)!r} must hold 32 bytes. Got {len(secret)} instead. Restore it from a backup.")
            return secret
        if self.entries:
            raise StoreError(f"The file {str(file)!r} is missing, and what left before cannot be compared. Restore it from a backup.")
        temporary = self.path / "secret.partial"
        temporary.unlink(missing_ok=True)
        secret = secrets.token_bytes(32)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(secret)
        _force(temporary)
        temporary.replace(file)
        _force(self.path)
        return secret

    def hashes(self, values: Iterable[str | None]) -> UInt64:
        """Return each value's keyed 64-bit hash."""
        digest = (hashlib.blake2b((v or "").encode(), digest_size=8, key=self._secret).digest() for v in values)
        return np.frombuffer(b"".join(digest), dtype="<u8").astype(np.uint64)

    def begin(self) -> Path:
        """Return the empty folder to write the next export's store into."""
        partial = self.path / _PARTIAL
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        return partial / "store"

    def record(self, *, documents: Members, members: Members, keys: Sequence[str], generation: int, minimum: int, site: str) -> Entry:
        """Make what was written since :meth:`begin` an entry, on the disk before this returns."""
        partial = self.path / _PARTIAL
        _write(partial / "documents.parquet", {"document": documents.documents, "text": documents.texts})
        vectors = {} if members.vectors is None else {"vector": members.vectors}
        _write(partial / "members.parquet", {"document": members.documents, "text": members.texts, "leaf": members.leaves, **vectors})
        number = max((entry.number for entry in self.entries), default=0) + 1
        told = {
            "generation": generation,
            "minimum": minimum,
            "site": site,
            "at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "keys": list(keys),
        }
        (partial / _ENTRY).write_text(json.dumps(told), encoding="utf-8")
        for folder, _, files in os.walk(partial):
            for file in files:
                _force(Path(folder) / file)
            _force(Path(folder))
        partial.rename(self.path / str(number))
        _force(self.path)
        entry = self._entry(number)
        self.entries.append(entry)
        return entry


def _write(path: Path, columns: Mapping[str, Any]) -> None:
    pq.write_table(pa.table(dict(columns)), path, compression="zstd", use_dictionary=False)


def _force(path: Path) -> None:
    """Have the kernel write a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
