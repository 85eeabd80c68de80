"""Documents given to the Python API, put where the job can read them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from topicscale.config import InputConfig
from topicscale.errors import InputError
from topicscale.files import Folder
from topicscale.store import exclusive

ID, VECTOR = "topicscale_position", "topicscale_vector"
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
def staged(documents: Any, embeddings: Any, config: InputConfig, store: str) -> Iterator[tuple[InputConfig, int | None]]:
    """Yield the input configuration that reads ``documents``, and their number if their ids are their positions.

    Sequences and frames are written to a temporary Parquet file; paths are read where they are.

    Raises
    ------
    InputError
        The documents are of a type that cannot be read, or embeddings do not fit them.
    StoreLocked
        Another process fits the same documents into the same store.
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
    folder = Path(tempfile.mkdtemp(prefix="topicscale-input-"))
    named = folder
    try:
        if hasattr(documents, "write") and hasattr(documents, "schema"):  # a Spark data frame, classic or Connect
            if embeddings is not None:
                raise InputError("embeddings cannot be given with a Spark data frame. Name its column: input.embedding_column.")
            documents.write.parquet(f"file://{folder / 'input'}")  # where Hadoop is set up, a plain path is one of its own
            yield dataclasses.replace(config, paths=(str(folder / "input"),), format="auto"), None
            return
        if config.id_column is not None:
            raise InputError(
                f"input.id_column={config.id_column} cannot be used of documents in memory: their ids are their positions. Leave it out, "
                "or give a Spark data frame or the path of a file."
            )
        table = _table(documents, config)
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
                raise InputError(
                    f"embeddings must have one row per document. Got {len(vectors)} rows for {table.num_rows} documents instead."
                )
            offsets = np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int64)
            table = table.append_column(
                VECTOR, pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(vectors.ravel())).cast(pa.list_(pa.float32()))
            )
            changes["embedding_column"] = VECTOR
        _write(table, folder / "input.parquet")
        # a name made of the content, so that a job knows the same documents when it sees them again; and of the store, which one
        # process at a time writes to
        digest = hashlib.sha256(Folder(store).uri.encode())
        with (folder / "input.parquet").open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
        os.utime(folder / "input.parquet", (0, 0))
        held = folder.with_name(f"topicscale-input-{os.getuid()}-{digest.hexdigest()[:32]}")
        lock = held.with_suffix(".lock")
        with exclusive(lock, "fit_transform", f"The store {store!r}"):
            named = held
            shutil.rmtree(named, ignore_errors=True)  # of a process that was killed
            folder.replace(named)
            changes["paths"] = (str(named / "input.parquet"),)
            try:
                yield dataclasses.replace(config, **changes), table.num_rows
            finally:
                lock.unlink(missing_ok=True)
    finally:
        shutil.rmtree(named, ignore_errors=True)


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
    if isinstance(documents, (pd.DataFrame, pa.Table, pa.RecordBatch)):
        raise InputError("documents must be a text or a list of texts. Got a table instead: give its column of texts.")
    texts = _texts(documents)
    if None in texts:
        raise InputError(f"documents must be a text or a list of texts. Document {texts.index(None)} is missing.")
    return texts


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


def _write(table: pa.Table, path: Path) -> None:
    try:
        pq.write_table(table, path)
    except pa.ArrowException as error:  # what Parquet has no type for
        raise InputError(_column_at_fault(error)) from error


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
        f"Documents must be a list of strings, pandas or Arrow data, a Spark data frame, or a path. Got {type(documents).__name__} instead."
    )
