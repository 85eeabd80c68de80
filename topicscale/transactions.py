"""All ``txn`` actions of a Delta table at once.

delta-rs tells one application's version at a time, and reads the log for it. A table of the store has an application for each
of its units, tens of thousands of them, and is asked for all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.fs import DeltaStorageHandler

_LOG = "_delta_log"
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\..*parquet$")  # one file, or parts of one


@dataclass(frozen=True)
class Transactions:
    """The last ``txn`` version of every application, at one version of a table."""

    at: int = -1
    versions: Mapping[str, int] = field(default_factory=dict)

    def to(self, handle: DeltaTable) -> Transactions:
        """Return those at the handle's version, which is reached through the commits since, or from a checkpoint."""
        version = handle.version()
        if version == self.at:
            return self
        files = pa_fs.PyFileSystem(DeltaStorageHandler.from_table(handle._table, handle._storage_options, {}))
        start = self if 0 <= self.at < version else _checkpointed(files, version)
        found = dict(start.versions)
        for number in range(start.at + 1, version + 1):
            with files.open_input_stream(f"{_LOG}/{number:020d}.json") as stream:
                lines = stream.read().split(b"\n")
            for line in lines:
                if line.startswith(b'{"txn"'):
                    action = json.loads(line)["txn"]
                    found[action["appId"]] = action["version"]
        return Transactions(version, found)


def _checkpointed(files: pa_fs.FileSystem, version: int) -> Transactions:
    """Return those of the newest checkpoint that is no newer than a version; of before the first commit where there is none."""
    parts: dict[int, list[str]] = {}
    for info in files.get_file_info(pa_fs.FileSelector(_LOG)):
        if (name := _CHECKPOINT.match(info.base_name)) and int(name[1]) <= version:
            parts.setdefault(int(name[1]), []).append(info.path)
    if not parts:
        return Transactions()
    at = max(parts)
    found: dict[str, int] = {}
    for path in parts[at]:
        with files.open_input_file(path) as file:
            read = pq.ParquetFile(file).read(columns=["txn.appId", "txn.version"])
        # a checkpoint without any has no such column
        for actions in read["txn"].drop_null().chunks if "txn" in read.column_names else []:
            found |= dict(zip(actions.field("appId").to_pylist(), actions.field("version").to_pylist(), strict=True))
    return Transactions(at, found)
