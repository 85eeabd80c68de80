"""Documents given to the Python API, put where the job can read them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from topicscale.config import InputConfig
from topicscale.errors import InputError, StoreError
from topicscale.store import LOCK, WORK, Store

ID, VECTOR = "topicscale_position", "topicscale_vector"
_BLOCK = 2**28
"""Numbers of one array of vectors: a list's place in it is 32 bits wide."""
_WHOLE = 'Replace it: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'


def unit_rows(embeddings: Any) -> npt.NDArray[np.float32]:
    """Return vectors as float32 unit rows (n, d); rows that have unit length to float32 precision stay as they are.

    Raises
    ------
    InputError
        Not a matrix of finite numbers, or a row is zero.
    """
    try:
        matrix = np.ascontiguousarray(embeddings, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"embeddings must be a matrix of numbers. {error}") from error
    if matrix.ndim != 2:
        raise InputError(f"embeddings must have two dimensions. Got shape {matrix.shape} instead.")
    if not np.isfinite(matrix).all():
        raise InputError("embeddings must be finite. Got NaN or infinity in some row instead.")
    length = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    if (length == 0).any():
        raise InputError(f"embeddings must not be zero. Row {int(np.flatnonzero(length == 0)[0])} is.")
    # stored vectors come back as they were: dividing again could move a last bit, and with it a tie
    off = np.abs(length - 1.0) > 1e-6
    if off.any():
        matrix = matrix.copy()
        matrix[off] = (matrix[off] / length[off, None]).astype(np.float32)
    return matrix


@contextlib.contextmanager
def staged(
    documents: Any, embeddings: Any, config: InputConfig, store: str, *, write: Callable[[Any, str], int] | None = None
) -> Iterator[tuple[InputConfig, int | None]]:
    """Yield the input configuration that reads ``documents``, and their number if their ids are their positions.

    Sequences and frames are written below the store's own folder, which all machines reach, and removed at the end; paths are
    read where they are.

    Parameters
    ----------
    write : callable, optional
        Writes a Spark data frame to an address and returns its number of rows; needed for such a frame alone.

    Raises
    ------
    InputError
        The documents are of a type that cannot be read, or embeddings do not fit them.
    StoreLocked
        Another process fits the same documents into the same store.
    StoreError
        The store cannot be made.
    """
    if config.id_column == ID:  # of a fit of other documents, which were in memory
        config = dataclasses.replace(config, id_column=None, format="auto")
    if config.embedding_column == VECTOR:
        config = dataclasses.replace(config, embedding_column=None)
    paths = _paths(documents)
    if paths is not None:
        if embeddings is not None:
            raise InputError("embeddings cannot be given with a path. Name the column that holds them: input.embedding_column.")
        yield dataclasses.replace(config, paths=tuple(paths)), None
        return
    if hasattr(documents, "write") and hasattr(documents, "schema"):  # a Spark data frame, classic or Connect
        if embeddings is not None:
            raise InputError("embeddings cannot be given with a Spark data frame. Name its column: input.embedding_column.")
        assert write is not None
        with _spark_frame(documents, Store(store, create=True), write) as path:
            yield dataclasses.replace(config, paths=(path,), format="auto"), None
        return
    if config.id_column is not None:
        raise InputError(
            f"input.id_column={config.id_column} cannot be used of documents in memory: their ids are their positions. Leave it out, "
            "or give a Spark data frame or the path of a file."
        )
    table = _table(_arrow(documents), config)
    if table.num_rows == 0:
        raise InputError("documents must hold at least one text. Got none instead.")
    changes: dict[str, Any] = {"format": "parquet", "id_column": ID}
    if len(config.text_column) == 1 and config.text_column[0] not in table.column_names and table.num_columns == 1:
        changes["text_column"] = (table.column_names[0],)
    # padded, so that the order of ids is the order of positions
    table = table.append_column(ID, pa.array([f"{i:012d}" for i in range(table.num_rows)], pa.string()))
    if embeddings is not None:
        vectors = unit_rows(embeddings)
        if len(vectors) != table.num_rows:
            raise InputError(f"embeddings must have one row per document. Got {len(vectors)} rows for {table.num_rows} documents instead.")
        table = table.append_column(VECTOR, _lists(vectors))
        changes["embedding_column"] = VECTOR
    with _parquet(table, store) as path:
        yield dataclasses.replace(config, paths=(path,), **changes), table.num_rows


@contextlib.contextmanager
def _place(target: Store, name: str) -> Iterator[None]:
    """Hold a folder of the store for documents, and remove it afterwards; those that fits have left that were killed go, too."""
    with target.held(f"{name}/{LOCK}", "fit_transform"):
        try:
            # by their files, since an object store may keep folders of which nothing is left
            for other in {file.name.split("/")[1] for file in target.files.files(WORK, deep=True)}:
                if other.startswith("input-") and f"{WORK}/{other}" != name:
                    # what another fit has, or removes at this moment, is its own
                    with contextlib.suppress(StoreError, OSError), target.held(f"{WORK}/{other}/{LOCK}", "fit_transform"):
                        target.files.clear(f"{WORK}/{other}")
            yield
        finally:
            target.files.clear(name)


@contextlib.contextmanager
def _spark_frame(frame: Any, target: Store, write: Callable[[Any, str], int]) -> Iterator[str]:
    """Yield the folder that a Spark data frame's rows were written to."""
    files, name = target.files, f"{WORK}/input-{uuid.uuid4().hex}"
    rows = f"{name}/rows"
    with _place(target, name):
        wanted = write(frame, f"{files.uri}/{rows}")
        # each executor has written its rows to what goes by that path on its own machine
        there = sum(pq.read_metadata(files.open(f.name)).num_rows for f in files.files(rows) if f.name.endswith(".parquet"))
        if there != wanted:
            raise InputError(
                f"The store must be in a folder that this machine and all of Spark's share. Of {wanted:,} rows of the data frame "
                f"{there:,} can be seen in {files.uri!r}. Name another store (docs/clusters.md)."
            )
        yield f"{files.uri}/{rows}"


@contextlib.contextmanager
def _parquet(table: pa.Table, store: str) -> Iterator[str]:
    """Yield the file that a table was written to."""
    with tempfile.TemporaryFile() as made:
        try:
            pq.write_table(table, made)
        except pa.ArrowException as error:  # what Parquet has no type for
            raise InputError(_column_at_fault(error)) from error
        made.seek(0)
        # a name made of the content, so that a job knows the same documents when it sees them again
        name = f"{WORK}/input-{hashlib.file_digest(made, 'sha256').hexdigest()[:32]}"
        made.seek(0)
        target = Store(store, create=True)
        files, file = target.files, f"{name}/input.parquet"
        with _place(target, name):
            with files.sink(file) as sink:
                shutil.copyfileobj(made, sink, 2**20)
            if files.path is not None:
                os.utime(files.path / file, (0, 0))
            yield f"{files.uri}/{file}"


def _lists(vectors: npt.NDArray[np.float32], *, block: int = _BLOCK) -> pa.ChunkedArray:
    """Return the rows of a matrix as lists, in arrays of at most ``block`` numbers, or of one row."""
    rows, kind = max(1, block // vectors.shape[1]), pa.list_(pa.float32())
    parts = [vectors[start : start + rows] for start in range(0, len(vectors), rows)]
    return pa.chunked_array([pa.FixedSizeListArray.from_arrays(pa.array(p.ravel()), p.shape[1]).cast(kind) for p in parts], kind)


def _paths(documents: Any) -> list[str] | None:
    if isinstance(documents, (str, Path)):
        return [str(documents)]
    if isinstance(documents, (list, tuple)) and documents and all(isinstance(one, Path) for one in documents):
        return [str(one) for one in documents]
    return None


def texts_of(documents: Any) -> list[str]:
    """Return documents that are to be given topics at once, as a list.

    Raises
    ------
    InputError
        They are neither a text nor texts.
    """
    if isinstance(documents, str):
        return [documents]
    documents = _arrow(documents)
    if isinstance(documents, (pd.DataFrame, pa.Table, pa.RecordBatch)):
        raise InputError("documents must be a text or a list of texts. Got a table instead: give its column of texts.")
    texts = _texts(documents)
    if None in texts:
        raise InputError(f"documents must be a text or a list of texts. Document {texts.index(None)} is missing.")
    return texts


def _arrow(documents: Any) -> Any:
    """Return what hands its data on by Arrow's protocol (polars, DuckDB) as a table or an array of pyarrow's, and others as they are."""
    if not hasattr(documents, "__arrow_c_stream__") or isinstance(documents, (pa.Table, pa.ChunkedArray, pd.DataFrame, pd.Series)):
        return documents
    try:
        found = pa.chunked_array(documents)
    except pa.ArrowException as error:
        raise InputError(_column_at_fault(error)) from error
    return pa.Table.from_struct_array(found) if pa.types.is_struct(found.type) else found


def _table(documents: Any, config: InputConfig) -> pa.Table:
    if isinstance(documents, pa.RecordBatch):
        return pa.Table.from_batches([documents])
    if isinstance(documents, pa.Table):
        return documents
    if isinstance(documents, pd.DataFrame):
        try:
            return pa.Table.from_pandas(documents, preserve_index=False)
        except UnicodeEncodeError as error:
            raise InputError(f"The data frame holds half a character (a lone surrogate): {error.object[:60]!r}. {_WHOLE}") from error
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            # values of several types, two columns of one name
            raise InputError(_column_at_fault(error)) from error
    return pa.table({config.text_column[0]: pa.array(_texts(documents), pa.string())})


def _column_at_fault(error: Exception) -> str:
    said = " ".join(" ".join(map(str, error.args)).split())[:300]
    return f"The data frame has a column that cannot be stored: {said}. Make it one type, or leave it out."


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(documents: Any) -> list[Any]:
    """Return texts, None for one that is missing."""
    if isinstance(documents, pd.Series):
        documents = documents.astype(object).where(documents.notna(), None)
    elif isinstance(documents, (pd.Index, pd.api.extensions.ExtensionArray)):
        return _texts(pd.Series(documents))
    if isinstance(documents, (pa.Array, pa.ChunkedArray)):
        documents = documents.to_pylist()
    if isinstance(documents, (Sequence, np.ndarray, pd.Series)):
        texts = list(documents)
        wrong = next((i for i, text in enumerate(texts) if text is not None and not isinstance(text, str)), None)
        if wrong is not None:
            raise InputError(f"Documents must be strings. Document {wrong} is a {type(texts[wrong]).__name__}: {texts[wrong]!r}")
        half = next((i for i, text in enumerate(texts) if text is not None and not _is_unicode(text)), None)
        if half is not None:
            raise InputError(
                f"Documents must be Unicode. Document {half} holds half a character (a lone surrogate): {texts[half][:60]!r}. {_WHOLE}"
            )
        return texts
    raise InputError(
        "Documents must be a list of strings, pandas, polars or Arrow data, a Spark data frame, or a path. "
        f"Got {type(documents).__name__} instead."
    )
