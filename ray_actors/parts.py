"""What every unit of work does with tables: read one partition at a pinned version, answer with data files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from deltalake import DeltaTable

from topicscale.storage import delta_options
from topicscale.store import PartFile
from topicscale.tables import PARTITION


@dataclass(frozen=True)
class Done:
    """What a unit answers with: files to commit, by table, and what the driver should know."""

    rows: int
    files: dict[str, tuple[PartFile, ...]] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)


@lru_cache(maxsize=8)
def _table(path: str, version: int) -> DeltaTable:
    # a handle holds the table's file list: reading it anew for each of thousands of partitions would cost more than the rows
    return DeltaTable(path, version=version, storage_options=delta_options(path))


def forget_handles() -> None:
    """Read tables anew: another store may have taken the place of one that was removed."""
    _table.cache_clear()


def read_partition(store_uri: str, name: str, partition_id: str, columns: Sequence[str], version: int) -> pa.Table:
    """Return the rows of one partition, sorted by ``doc_id``: the order that makes clustering repeatable."""
    handle = _table(f"{store_uri}/{name}", version)
    # the files first: a filter on rows alone would open every partition's to look
    rows = handle.to_pyarrow_dataset(file_pruning_predicate=[(PARTITION, "=", partition_id)]).to_table(columns=list(columns))
    return rows.sort_by("doc_id").combine_chunks() if "doc_id" in columns else rows


def to_matrix(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float32]:
    """Return a column of equally long lists as a float32 matrix (n, d).

    Raises
    ------
    ValueError
        The lists differ in length, or hold nulls.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # an empty chunked array stays chunked
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if len(array) == 0:
        return np.zeros((0, 0), np.float32)
    lengths = np.diff(array.offsets.to_numpy())
    if array.null_count or lengths.min() != lengths.max():
        raise ValueError(f"Vectors must all have one length. Got {lengths.min()} to {lengths.max()} numbers instead.")
    values = array.flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(values.reshape(len(array), -1), dtype=np.float32)


def to_list_array(matrix: npt.NDArray[np.floating[Any]]) -> pa.Array:
    """Return a matrix (n, d) as an Arrow array of n lists, without copying number by number."""
    n, d = matrix.shape
    kind = pa.float32() if matrix.dtype == np.float32 else pa.float64()
    if n * d >= 2**31:
        raise ValueError(f"A partition must hold fewer than 2^31 numbers. Got {n} rows of {d} instead.")
    offsets = np.arange(n + 1, dtype=np.int32) * np.int32(d)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(matrix).ravel(), kind))
