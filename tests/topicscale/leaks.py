"""Look for words in every byte that a folder holds, compressed or not."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq


def everything(folder: Path) -> bytes:
    """Return all names, all raw bytes, and what is in parquet files: values of all row groups, statistics, metadata."""
    found: list[bytes] = []
    for path in sorted(folder.rglob("*")):
        found.append(str(path.relative_to(folder)).encode())
        if not path.is_file():
            continue
        found.append(path.read_bytes())
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            found.append(json.dumps(file.read().to_pylist(), ensure_ascii=False, default=str).encode())
            found.append(str(file.schema_arrow.metadata).encode() + str(file.metadata.metadata).encode())
            for group in range(file.metadata.num_row_groups):
                for column in range(file.metadata.num_columns):
                    found.append(str(file.metadata.row_group(group).column(column).to_dict()).encode())
    return b"\n".join(found)


def leaked(folder: Path, words: Iterable[str]) -> list[str]:
    """Return which of the words are found anywhere in a folder."""
    content = everything(folder)
    return [word for word in words if word.encode() in content]
