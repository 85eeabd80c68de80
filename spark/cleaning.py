"""Rows into documents: the text, its faults, the id, and the columns that are kept."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark.reading import BAD, LATE, LOST, RAW, SOURCE, Loss, Rows, as_written, kind_of
from topicscale.config import InputConfig
from topicscale.inputs import text_columns
from topicscale.texts import VISIBLE

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
_VISIBLE = f"(?U){VISIBLE}"


@dataclass(frozen=True)
class Clean:
    """Rows with ``text``, ``text_hash``, ``_chars`` (the text's length), the kept columns, :data:`CONTENT` (a digest of what is stored of
    the row, 64 hexadecimal digits), ``_id`` (the id column as text, null without one), ``_value`` (the partition column as text, likewise),
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


def clean(
    rows: Rows, config: InputConfig, *, dimension: int | None, partition_column: str | None = None, held: Collection[str] | None = None
) -> Clean:
    """Return every row, with the text joined and normalised and the first fault found in it.

    Its content is what is stored of it; of a row that is to be added, what the columns there are (``held``) store of it.

    The reasons are those of :data:`topicscale.tables.QUARANTINE_REASONS`, ``duplicate_id`` aside: that one takes a
    shuffle, and ids.
    """
    frame, names = rows.frame, rows.names
    kinds = {c.name: c.kind for c in rows.plan.columns}
    types = {name: frame.schema[f"c{i}"].dataType for i, name in enumerate(names)}
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
        identity = F.make_valid_utf8(as_written(rows.column(config.id_column), types[config.id_column]))
        reason = reason.when(F.coalesce(F.trim(identity), F.lit("")) == "", "missing_id")
    vector: Column | None = None
    if config.embedding_column is not None:
        vector = rows.column(config.embedding_column).cast("array<float>")
        reason = reason.when(~_usable(vector, dimension), "bad_vector")

    kept, columns, renamed, changed = [], [], {}, {}
    content = {"text": F.sha2(text, 256)}
    wanted = config.keep if config.keep is not None else [n for n in names if n not in (*texts, config.id_column, config.embedding_column)]
    for name in wanted:
        kind = kinds.get(name, kind_of(types[name]))  # a file beyond the inspected ones may have more columns
        if config.keep is None and kind in ("nested", "vector", "binary"):
            changed[name] = f"left out: {kind} values are kept only when input.keep names the column"
            continue
        value, cast = _storable(rows.column(name), types[name])
        if cast:
            changed[name] = cast
        if kind == "late":
            changed[name] = "kept as text: none of the rows that tell the columns has it"
        label = _label(name, kept)
        if label != name:
            renamed[name] = label
        kept.append(label)
        columns.append(value.alias(label))
        content[label] = as_written(value, types[name])
    if vector is not None:
        columns.append(vector.alias("embedding"))
        content["embedding"] = F.hex(F.xxhash64(vector))
    losses = [i for i, loss in enumerate(rows.losses) if loss.column in wanted]
    late = config.keep is None and rows.plan.format == "jsonl"
    notes = [F.array(*[F.col(LOST)[i] for i in losses]).alias(LOST)] if losses else []
    division = F.lit(None).cast("string")
    if partition_column is not None:
        division = F.make_valid_utf8(F.substring(as_written(rows.column(partition_column), types[partition_column]), 1, 1000))
        content["partition_id"] = division
    if held is not None:
        content = {name: value for name, value in content.items() if name in held}
    cleaned = frame.select(
        F.make_valid_utf8(text).alias("text"),
        F.substring(F.sha2(text, 256), 1, 32).alias("text_hash"),
        F.length(text).alias("_chars"),
        *columns,
        identity.alias("_id"),
        division.alias("_value"),
        F.sha2(F.concat_ws("", *[_part(name, content[name]) for name in sorted(content)]), 256).alias(CONTENT),
        reason.alias(REASON),
        SOURCE,
        RAW,
        *notes,
        *([LATE] if late else []),
    )
    return Clean(cleaned, tuple(kept), renamed, changed, tuple(rows.losses[i] for i in losses), late)


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


def _part(name: str, text: Column) -> Column:
    """Return a column's part of a row's content, with lengths, so that no two rows read alike; of a null, null, which adds nothing.

    So a row's id is the same whatever columns other rows have.
    """
    return F.concat(F.lit(f"{len(name)}:{name}="), F.length(text).cast("string"), F.lit(":"), text)
