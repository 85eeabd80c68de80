"""Reading the head of one input file: its columns and their kinds, and how long a row is."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa

from topicscale import storage
from topicscale.errors import InputError
from topicscale.files import Folder

_HEAD = 1 << 20
"""Bytes (uncompressed) that are read of a file."""
_GROUPS = 20
"""Row groups of a parquet file that tell how long its texts are."""
_LONGEST = 1 << 26
"""Bytes that are read at most where the first line is longer than that."""


@dataclass(frozen=True)
class Column:
    """A column of the input."""

    name: str
    kind: str
    """string, number, boolean, time, vector (array of numbers), binary, nested, unknown (nulls only), or late (text: of a json key that no
    file's head shows)."""


@dataclass(frozen=True)
class Sample:
    """What the head of a file tells."""

    columns: tuple[Column, ...]
    rows: int
    """Rows seen; all rows of a parquet file."""
    bytes: int
    """Bytes on disk that those rows take."""
    dimensions: Mapping[str, int] = field(default_factory=dict)
    """Most common length of each vector column."""
    characters: Mapping[str, int] = field(default_factory=dict)
    """Characters that each column of texts has in these rows; of a parquet file, about the bytes that they take encoded."""
    types: Mapping[str, str] = field(default_factory=dict)
    """Of a parquet file, the types that its columns have for Spark, where that is known."""
    whole: bool = True
    """These are all of the file's rows."""


def sample_file(path: str, chosen: str, options: Mapping[str, str], *, head_bytes: int = _HEAD) -> Sample:
    """Return what the head of a file tells about it, no columns for a blank one; ``path`` is of this machine or of an object store.

    Raises
    ------
    InputError
        The file cannot be opened or decompressed, or is not of the format ``chosen``.
    """
    try:
        if chosen == "parquet":
            return _parquet(path)
        head, used, whole = _head(path, head_bytes)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise InputError(f"Input {path!r} cannot be read as {chosen}: {error}") from error
    text = head.decode("utf-8-sig" if is_utf8(options) else options["encoding"], errors="replace")
    if whole and not text.strip():
        return Sample((), 0, used)
    if chosen == "text":
        rows = max(1, text.count("\n") + (whole and not text.endswith("\n")))
        return Sample((Column("text", "string"),), rows, used, characters={"text": len(text)}, whole=whole)
    if chosen == "jsonl":
        return _jsonl(path, text, used, whole)
    return _csv(path, text, options, used, whole)


def is_utf8(options: Mapping[str, str]) -> bool:
    """Return whether files are read as UTF-8 by these options of the reader."""
    return options.get("encoding", "UTF-8").upper().replace("-", "") == "UTF8"


def arrow_columns(schema: pa.Schema) -> tuple[Column, ...]:
    """Return the columns of an Arrow schema with their kinds."""
    return tuple(Column(entry.name, _arrow_kind(entry.type)) for entry in schema)


def _spark_type(kind: pa.DataType) -> str | None:
    """Return what Spark reads a parquet column of a simple type as: it joins files whose columns have the same types alone."""
    if pa.types.is_dictionary(kind):
        return _spark_type(kind.value_type)
    if pa.types.is_integer(kind):
        number = kind.bit_width if pa.types.is_signed_integer(kind) else 2 * kind.bit_width  # unsigned ones take the next larger type
        return {8: "byte", 16: "short", 32: "int", 64: "long"}.get(number, "decimal")
    if pa.types.is_timestamp(kind):
        return "long" if kind.unit == "ns" else "timestamp" if kind.tz else "timestamp_ntz"
    if pa.types.is_date(kind):
        return "date"
    simple = _arrow_kind(kind)
    if simple in ("string", "boolean", "binary"):
        return simple
    return str(kind) if pa.types.is_floating(kind) else None


def _arrow_kind(kind: pa.DataType) -> str:
    types = pa.types
    if types.is_dictionary(kind):
        return _arrow_kind(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "string"
    if types.is_boolean(kind):
        return "boolean"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_duration(kind):
        return "number"
    if types.is_temporal(kind):
        return "time"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind) or types.is_binary_view(kind):
        return "binary"
    if types.is_null(kind):
        return "unknown"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        item = kind.value_type
        return "vector" if types.is_integer(item) or types.is_floating(item) else "nested"
    return "nested"


def _parquet(path: str) -> Sample:
    import pyarrow.parquet as pq

    with _opened(path) as (raw, size), pq.ParquetFile(raw) as file:
        columns = arrow_columns(file.schema_arrow)
        dimensions: dict[str, int] = {}
        vectors = [column.name for column in columns if column.kind == "vector"]
        if vectors and file.metadata.num_rows:
            for batch in file.iter_batches(batch_size=100, columns=vectors):
                for name in set(vectors) & set(batch.schema.names):
                    lengths = Counter(len(value) for value in batch.column(name).to_pylist() if value is not None)
                    if lengths:
                        dimensions[name] = lengths.most_common(1)[0][0]
                break
        characters: Counter[str] = Counter()
        texts = {column.name for column in columns if column.kind == "string"}
        groups = min(file.metadata.num_row_groups, _GROUPS)
        for group in map(file.metadata.row_group, range(groups)):
            for number in range(file.metadata.num_columns):
                if (name := file.schema.column(number).path) in texts:
                    characters[name] += group.column(number).total_uncompressed_size * file.metadata.num_row_groups // groups
        types = {entry.name: known for entry in file.schema_arrow if (known := _spark_type(entry.type))}
        return Sample(columns, file.metadata.num_rows, size, dimensions, characters, types)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[IO[bytes] | pa.NativeFile, int]]:
    """Yield a file and its size."""
    if storage.address(path) is None:
        with open(path, "rb") as local:
            yield local, os.path.getsize(path)
    else:
        with Folder(path).open() as remote:
            yield remote, remote.size()


def _head(path: str, number: int) -> tuple[bytes, int, bool]:
    """Return the first bytes, the bytes of the file that they take, and whether that was all of it."""
    kind = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}.get(path.rsplit(".", 1)[-1].lower())
    with _opened(path) as (raw, size):
        stream: IO[bytes] | pa.NativeFile = pa.CompressedInputStream(raw, kind) if kind else raw
        head = stream.read(number)
        # a first row of megabytes is one bad row, and no reason to refuse the file
        while b"\n" not in head and len(head) < _LONGEST and (further := stream.read(_HEAD)):
            head += further
        more = bool(stream.read(1))
        # a compressed stream is read ahead in blocks, so its position says little for a file of a few blocks
        used = size if not more else min(size, len(head) // 3) if kind else len(head)
    return head, used, not more


def _jsonl(path: str, text: str, used: int, whole: bool) -> Sample:
    if text.lstrip()[:1] == "[":
        raise InputError(f"Input {path!r} must hold one JSON object a line. It holds one array instead; write it with: jq -c '.[]'")
    lines = text.split("\n")  # not splitlines: a JSON string may hold U+2028 as it is
    if len(lines) > 1 and (not whole or not lines[-1]):
        lines = lines[:-1]
    kinds: dict[str, str] = {}
    lengths: dict[str, Counter[int]] = {}
    characters: Counter[str] = Counter()
    parsed = 0
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(row, dict):
            continue
        parsed += 1
        for key, value in row.items():
            kind = _json_kind(value)
            if isinstance(value, str):
                characters[key] += len(value)
            if kind == "vector":
                lengths.setdefault(key, Counter())[len(value)] += 1
            known = kinds.setdefault(key, kind)
            if known != kind and kind != "unknown":
                kinds[key] = kind if known == "unknown" else "string"  # objects among texts are single rows' faults
    if not parsed:
        raise InputError(f"Input {path!r} must hold one JSON object a line. Its first line is {lines[0][:80]!r}.")
    dimensions = {key: counts.most_common(1)[0][0] for key, counts in lengths.items()}
    columns = tuple(Column(key, kind) for key, kind in kinds.items())
    return Sample(columns, sum(bool(line.strip()) for line in lines), used, dimensions, characters, whole=whole)


def _json_kind(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    if isinstance(value, list) and value and all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in value):
        return "vector"
    return "nested"


def _csv(path: str, text: str, options: Mapping[str, str], used: int, whole: bool) -> Sample:
    quote = options.get("quote", '"')
    separator = options.get("sep", ",").replace("\\t", "\t")
    if not separator:
        raise InputError("input.options.sep must be at least one character. Got none instead.")
    if len(separator) != 1:
        rows = [line.split(separator) for line in text.splitlines()]
    else:
        csv.field_size_limit(2**31 - 1)
        doubled = options.get("escape") == quote
        try:
            reader = csv.reader(
                io.StringIO(text, newline=""),
                delimiter=separator,
                quotechar=quote or None,
                quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
                doublequote=doubled,
                escapechar=None if doubled or not quote else options.get("escape") or None,
            )
            rows = [row for row in reader if row]
        except (csv.Error, TypeError, ValueError) as error:  # the latter two of options of more than one character
            raise InputError(f"Input {path!r} cannot be read as csv: {error}") from error
    if not rows:
        raise InputError(f"Input {path!r} must begin with a row. Its first {used:,} bytes are blank instead.")
    header = options.get("header", "false").lower() == "true"
    counted = max(1, len(rows) - header - (not whole))
    names: list[str] = []
    for i, name in enumerate(rows[0] if header else [""] * len(rows[0])):
        label = name if name.strip() else f"_c{i}"
        names.append(label if label not in names else f"{label}_{i}")
    characters = dict.fromkeys(names, 0)
    for row in rows[int(header) :]:
        for name, value in zip(names, row, strict=False):
            characters[name] += len(value)
    return Sample(tuple(Column(name, "string") for name in names), counted, used, characters=characters, whole=whole)
