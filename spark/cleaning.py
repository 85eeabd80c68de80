"""Rows into documents: the text, its faults, the id, and the columns that are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark.reading import BAD, LATE, LOST, RAW, SOURCE, Loss, Rows, kind_of
from topicscale.config import InputConfig
from topicscale.inputs import text_columns

REASON, CONTENT = "_reason", "_content"
RESERVED = ("doc_id", "partition_id", "text", "text_hash", "embedding")
RESERVED += (
    "_id",
    "_value",
    "_k",
    "_rank",
    REASON,
    CONTENT,
    SOURCE,
    RAW,
    BAD,
    LOST,
    LATE,
    "_chars",
    "_metadata",
    "_change_type",
    "_commit_version",
    "_commit_timestamp",
)
_GAP = "\x1f"
# at least one character that is neither space, control, nor one of the marks that show nothing
_VISIBLE = r"(?U)[^\s\p{Cntrl}\u200b-\u200f\u2060\ufeff\ufffd]"


@dataclass(frozen=True)
class Clean:
    """Rows with ``text``, ``text_hash``, ``_chars`` (the text's length), the kept columns, :data:`CONTENT` (a digest of the whole row,
    64 hexadecimal digits), ``_id`` (the id column as text, null without one), ``_value`` (the partition column as text, likewise),
    :data:`REASON` (null for a document), and the reader's source and raw columns."""

    frame: DataFrame
    kept: tuple[str, ...]
    renamed: dict[str, str] = field(default_factory=dict)
    """Input column -> its name in ``documents``, where they differ."""
    changed: dict[str, str] = field(default_factory=dict)
    """Input column -> what was done to its values (a cast), or that it was left out and why."""
    losses: tuple[Loss, ...] = ()
    """What can have happened to values of the kept columns; whether it did, row by row, is in the frame's array :data:`LOST`."""
    late: bool = False
    """The frame also has the reader's :data:`LATE`: every column is to be kept, and rows may have others."""


def clean(rows: Rows, config: InputConfig, *, dimension: int | None, partition_column: str | None = None) -> Clean:
    """Return every row, with the text joined and normalised and the first fault found in it.

    The reasons are those of :data:`topicscale.tables.QUARANTINE_REASONS`, ``duplicate_id`` aside: that one takes a
    shuffle, and ids.
    """
    frame, names = rows.frame, rows.names
    kinds = {c.name: c.kind for c in rows.plan.columns}
    texts = text_columns(config, rows.plan.format)
    parts = [rows.column(name).cast("string") for name in texts]
    text = parts[0] if len(parts) == 1 else F.concat_ws("\n\n", *[F.when(part.rlike(_VISIBLE), part) for part in parts])
    valid = reduce(lambda a, b: a & b, [F.coalesce(F.is_valid_utf8(part), F.lit(True)) for part in parts])
    if not rows.checked:
        valid = valid & F.coalesce(~F.contains(text, F.lit("\ufffd")), F.lit(True))
    reason = F.when(F.col(BAD).isNotNull(), F.col(BAD)).when(~valid, "undecodable")
    reason = reason.when(~F.coalesce(text.rlike(_VISIBLE), F.lit(False)), "empty").when(F.length(text) > config.max_chars, "too_long")
    identity = F.lit(None).cast("string")
    if config.id_column is not None:
        identity = F.make_valid_utf8(rows.column(config.id_column).cast("string"))
        reason = reason.when(F.coalesce(F.trim(identity), F.lit("")) == "", "missing_id")
    vector: Column | None = None
    if config.embedding_column is not None:
        vector = rows.column(config.embedding_column).cast("array<float>")
        reason = reason.when(~_usable(vector, dimension), "bad_vector")

    kept, columns, renamed, changed = [], [], {}, {}
    types = {name: frame.schema[f"c{i}"].dataType for i, name in enumerate(names)}
    wanted = config.keep if config.keep is not None else [n for n in names if n not in (*texts, config.id_column, config.embedding_column)]
    for name in wanted:
        kind = kinds.get(name, kind_of(types[name]))  # a file beyond the inspected ones may have more columns
        if config.keep is None and kind in ("nested", "vector", "binary"):
            changed[name] = f"left out: {kind} values are kept only when input.keep names the column"
            continue
        value, cast = _storable(rows.column(name), types[name])
        if cast:
            changed[name] = cast
        label = _label(name, kept)
        if label != name:
            renamed[name] = label
        kept.append(label)
        columns.append(value.alias(label))
    if vector is not None:
        columns.append(vector.alias("embedding"))
    losses = [i for i, loss in enumerate(rows.losses) if loss.column in wanted]
    late = config.keep is None and rows.plan.format == "jsonl"
    notes = [F.array(*[F.col(LOST)[i] for i in losses]).alias(LOST)] if losses else []
    content = [_content(rows.column(name), types[name], late=name if kinds.get(name) == "late" else None) for name in names]
    division = F.lit(None).cast("string")
    if partition_column is not None:
        division = _bounded(_spelt(rows.column(partition_column), types[partition_column]))
    cleaned = frame.select(
        F.make_valid_utf8(text).alias("text"),
        F.substring(F.sha2(text, 256), 1, 32).alias("text_hash"),
        F.length(text).alias("_chars"),
        *columns,
        identity.alias("_id"),
        division.alias("_value"),
        F.sha2(F.concat_ws(_GAP, *content), 256).alias(CONTENT),
        reason.alias(REASON),
        SOURCE,
        RAW,
        *notes,
        *([LATE] if late else []),
    )
    return Clean(cleaned, tuple(kept), renamed, changed, tuple(rows.losses[i] for i in losses), late)


def _spelt(value: Column, kind: T.DataType) -> Column:
    """Return a number as people write it: of JSON lines all are doubles, and the year 2020 is no 2020.0."""
    if not isinstance(kind, T.DoubleType):
        return value
    whole = (value == F.floor(value)) & (F.abs(value) < 2**53)
    return F.when(whole, value.cast("bigint").cast("string")).otherwise(value.cast("string"))


def _bounded(value: Column) -> Column:
    return F.make_valid_utf8(F.substring(value.cast("string"), 1, 1000))


def _usable(vector: Column, dimension: int | None) -> Column:
    finite = F.forall(vector, lambda x: x.isNotNull() & ~F.isnan(x) & (F.abs(x) < F.lit(float("inf"))))
    usable = (F.size(vector) > 0) & finite & F.exists(vector, lambda x: x != 0)
    if dimension is not None:
        usable = usable & (F.size(vector) == dimension)
    return F.coalesce(vector.isNotNull() & usable, F.lit(False))


def _storable(value: Column, kind: T.DataType) -> tuple[Column, str]:
    """Return the value as a type that Delta's writers and readers share, and what was done."""
    if isinstance(kind, T.StringType):
        return F.make_valid_utf8(value), ""
    if isinstance(kind, T.NumericType | T.BooleanType | T.DateType | T.TimestampType):
        return value, ""
    if isinstance(kind, T.TimestampNTZType):
        return value.cast("timestamp"), "cast to timestamp, taken as UTC"
    if isinstance(kind, T.BinaryType):
        return F.base64(value), "stored as base64 text"
    if kind_of(kind) in ("nested", "vector"):
        return F.to_json(value), "stored as JSON text"
    return value.cast("string"), "stored as text" if not isinstance(kind, T.NullType) else ""


def _label(name: str, taken: list[str]) -> str:
    """Return a name that Delta takes, that Spark takes for a name (``a.b`` is a field of ``a``), and that no other column of the
    table has, whatever its case."""
    label = re.sub(r"[ ,;{}()\n\t=.`\x00-\x1f]+", "_", name) if name.strip(" ,;{}()\n\t=.`") else "column"
    if label.lower() in RESERVED:
        label = f"{label.strip('_')}_input"
    used, base, k = {other.lower() for other in taken} | set(RESERVED), label, 2
    while label.lower() in used:
        label, k = f"{base}_{k}", k + 1
    return label


def _content(value: Column, kind: T.DataType, *, late: str | None = None) -> Column:
    """Return a column's part of the row's content: its length, then its text, so that no two rows read alike.

    A late column adds nothing to the rows that lack it: their ids are those they would have without the others' key.
    """
    if late is not None:
        return F.when(value.isNotNull(), F.concat(F.lit(f"{len(late)}:{late}="), F.length(value).cast("string"), F.lit(":"), value))
    if isinstance(kind, T.BinaryType):
        text = F.hex(value)
    elif kind_of(kind) == "vector":
        text = F.hex(F.xxhash64(value))
    elif kind_of(kind) == "nested":
        text = F.to_json(value)
    else:
        text = value.cast("string")
    return F.coalesce(F.concat(F.length(text).cast("string"), F.lit(":"), text), F.lit("-"))
