"""Input of any format as one data frame whose bytes are still what the file held.

A reader that decodes replaces bytes that are not valid UTF-8, silently. So csv is read as ISO-8859-1, where every byte
is a character, and turned back into bytes; json lines and text are read as lines, whose bytes Spark leaves alone. What is in
another encoding is decoded, and what cannot be decoded shows by the character that stands for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from topicscale.config import InputConfig
from topicscale.errors import InputError
from topicscale.inputs import InputPlan, check_columns, is_remote, with_folders
from topicscale.sniff import Column as InputColumn
from topicscale.sniff import is_utf8
from topicscale.storage import address, spelt

SOURCE, RAW, BAD, LOST, LATE = "_source", "_raw", "_bad", "_lost", "_late"
_CORRUPT = "_topicscale_corrupt"
_SEEN = "\x1f"


@dataclass(frozen=True)
class Loss:
    """A way in which a column can fail to hold what a row says."""

    column: str
    """The input's name of it."""
    what: str
    """What became of the value, for people."""


@dataclass(frozen=True)
class Rows:
    """The input: ``frame`` has the columns ``c0``, ``c1``, ... (the input's, in its order), then :data:`SOURCE` (the file's path),
    :data:`RAW` (what the row looked like, bounded) and :data:`BAD` (why the reader could not take it apart, or null).

    Json lines alone have :data:`LOST` (array<boolean>: whether each of ``losses`` happened to the row) and :data:`LATE`
    (array<string>: the row's keys that are no column, in bytes that may not be UTF-8)."""

    frame: DataFrame
    names: tuple[str, ...]
    plan: InputPlan
    checked: bool
    """Columns are bytes that must be checked to be UTF-8; otherwise the reader decoded them."""
    raw_chars: int
    losses: tuple[Loss, ...] = ()

    def column(self, name: str) -> Column:
        """Return the input's column of that name."""
        return F.col(f"c{self.names.index(name)}")


def read(spark: SparkSession, plan: InputPlan, config: InputConfig, *, raw_chars: int = 1000) -> Rows:
    """Return the rows of the input.

    Raises
    ------
    InputError
        A remote input lacks a column, or holds nothing that can be read.
    """
    paths = [_escape(spelt(path)) if address(path) else path if is_remote(path) else f"file://{_escape(path)}" for path in plan.paths]
    utf8 = is_utf8(plan.options)
    if not utf8:
        # all of Java's encodings, not seven of them; and a row that cannot be decoded is no reason to fail
        spark.conf.set("spark.sql.legacy.javaCharsets", "true")
        spark.conf.set("spark.sql.legacy.codingErrorAction", "true")
    losses: tuple[Loss, ...] = ()
    if plan.format in ("csv", "tsv"):
        frame, columns = _csv(spark, plan, paths, utf8)
    elif plan.format == "jsonl":
        frame, columns, losses = _jsonl(spark, plan, paths, utf8, config)
    elif plan.format == "text":
        frame, columns = _text(spark, plan, paths, utf8)
    else:
        frame, columns = _columnar(spark, plan, paths)
    if not plan.columns:
        check_columns(columns, config, plan.format)
        plan = replace(plan, columns=tuple(columns))
    of_files = len(columns)
    columns = with_folders(columns, plan.folders)
    for i in range(of_files, len(columns)):
        frame = frame.withColumn(f"c{i}", _of_folder(columns[i].name))
    frame = frame.withColumn(RAW, F.make_valid_utf8(F.substring(F.col(RAW), 1, raw_chars))).withColumn(SOURCE, _readable(F.col(SOURCE)))
    return Rows(frame, tuple(column.name for column in columns), plan, utf8, raw_chars, losses)


def _csv(spark: SparkSession, plan: InputPlan, paths: list[str], utf8: bool) -> tuple[DataFrame, list[InputColumn]]:
    options = dict(plan.options)
    options.pop("columnNameOfCorruptRecord", None)
    columns = list(plan.columns)
    if not columns:
        names = spark.read.options(**{**options, "inferSchema": "false"}).csv(paths).columns
        columns = [InputColumn(name, "string") for name in names]
    if utf8:
        options["encoding"] = "ISO-8859-1"
        options["sep"] = options["sep"].encode().decode("latin-1")
    schema = T.StructType([T.StructField(f"c{i}", T.StringType()) for i in range(len(columns))] + [T.StructField(_CORRUPT, T.StringType())])
    # the header's names are known and checked, so each file's first line is skipped whatever it says
    options |= {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": _CORRUPT, "enforceSchema": "true", "inferSchema": "false"}
    frame = spark.read.schema(schema).options(**options).csv(paths)
    fields = [f"c{i}" for i in range(len(columns))]
    whole = F.coalesce(F.col(_CORRUPT), F.concat_ws(plan.options.get("sep", ","), *fields))
    parts = [_bytes(F.col(name)).alias(name) if utf8 else F.col(name) for name in fields]
    if plan.options.get("header") != "true" and parts:
        parts[0] = F.regexp_replace(parts[0], "^\ufeff", "").alias(fields[0])
    raw = _bytes(whole) if utf8 else whole
    return frame.select(
        *parts,
        F.col("_metadata.file_path").alias(SOURCE),
        raw.alias(RAW),
        F.when(F.col(_CORRUPT).isNotNull(), F.lit("bad_row")).alias(BAD),
    ), columns


def with_late(plan: InputPlan, keys: Iterable[str]) -> InputPlan:
    """Return the plan with these keys of json lines as columns too."""
    return replace(plan, columns=(*plan.columns, *(InputColumn(key, "late") for key in keys)))


def _jsonl(
    spark: SparkSession, plan: InputPlan, paths: list[str], utf8: bool, config: InputConfig
) -> tuple[DataFrame, list[InputColumn], tuple[Loss, ...]]:
    lines = _lines(spark, plan, paths, utf8)
    lines = (
        lines.withColumn("value", F.regexp_replace(F.col("value"), "^\ufeff", "")).where(F.col("value").rlike("\\S")) if not utf8 else lines
    )
    if utf8:
        # only a line that begins with the mark is rebuilt: replacing works on characters, and would lose invalid bytes
        marked = F.substring(F.col("value"), 1, 1) == F.lit("\ufeff")
        lines = lines.withColumn("value", F.when(marked, F.substring(F.col("value"), 2, 2**31 - 2)).otherwise(F.col("value")))
        lines = lines.where(F.length(F.trim(F.col("value"))) > 0)
    columns = list(plan.columns)
    if not columns:
        # another encoding than UTF-8 is refused without lineSep
        read = spark.read.options(samplingRatio=1.0, mode="PERMISSIVE", encoding=plan.options["encoding"], lineSep="\n")
        found = read.json(paths).schema.fields
        columns = [InputColumn(field.name, kind_of(field.dataType)) for field in found if field.name != "_corrupt_record"]
        if not columns:
            raise InputError(f"Input {plan.paths[0]!r} must hold one JSON object a line.")
    # as text, whatever it is: a value of another type than the first rows' would make the whole row corrupt
    vectors = {config.embedding_column: T.ArrayType(T.DoubleType())}
    schema = T.StructType(
        [T.StructField(c.name, vectors.get(c.name, T.StringType())) for c in columns] + [T.StructField(_CORRUPT, T.StringType())]
    )
    options = {"mode": "PERMISSIVE", "columnNameOfCorruptRecord": _CORRUPT}
    parsed = lines.withColumn("_row", F.from_json(F.col("value"), schema, options))
    corrupt = F.col("_row").isNull() | F.col("_row").getField(_CORRUPT).isNotNull() | ~F.ltrim(F.col("value")).startswith("{")
    kinds = {"number": "double", "boolean": "boolean"}
    verbatim = {*config.text_column, config.id_column}  # an id of 17 digits is not the double nearest to it
    parts = []
    losses: list[Loss] = []
    lost: list[Column] = []
    for i, c in enumerate(columns):
        value = told = F.col("_row").getField(c.name)
        if c.kind in kinds and c.name not in verbatim:
            value = told.try_cast(kinds[c.kind])
            losses.append(Loss(c.name, f"null instead of a value that is no {c.kind}"))
            lost.append(told.isNotNull() & value.isNull())
            if c.kind == "number":
                losses.append(Loss(c.name, "rounded, having more digits than a number keeps"))
                whole = (F.length(told) > 15) & told.rlike("^-?[0-9]+$")
                lost.append(whole & ~told.try_cast("decimal(38,0)").eqNullSafe(value.try_cast("decimal(38,0)")))
        elif c.kind == "number" and c.name == config.id_column:
            # pandas writes whole numbers with a point where one is missing
            written = F.coalesce(as_written(told.try_cast("double"), T.DoubleType()), told)
            value = F.when(told.rlike("^-?[0-9]+$"), told).otherwise(written)
        parts.append(value.alias(f"c{i}"))
    bad = F.when(corrupt, F.lit("bad_row"))
    for name in config.text_column:
        # objects and arrays arrive as their JSON text; only what looks like one is parsed again, to see which it was
        text = F.col("_row").getField(name)
        if (path := _variant_path(name)) is not None:
            kind = F.schema_of_variant(F.try_variant_get(F.try_parse_json(F.col("value")), path, "variant"))
            bad = bad.when(text.rlike(r"^[\[{]") & (kind != "STRING"), "not_text")
        # the JSON parser replaces what it cannot decode: the line still shows it
        bad = bad.when(~F.is_valid_utf8(F.col("value")) & F.contains(text, F.lit("\ufffd")), "undecodable")
    late = F.array_except(F.json_object_keys(F.col("value")), F.array(*[F.lit(c.name) for c in columns]))
    flags = F.array(*lost).cast("array<boolean>").alias(LOST)
    return parsed.select(*parts, SOURCE, F.col("value").alias(RAW), bad.alias(BAD), flags, late.alias(LATE)), columns, tuple(losses)


def _variant_path(name: str) -> str | None:
    """Return the path of a key in a variant; None for a key with both kinds of quotes, which no path can hold: it knows no escapes."""
    quote = next((quote for quote in "\"'" if quote not in name), None)
    return None if quote is None else f"$[{quote}{name}{quote}]"


def _text(spark: SparkSession, plan: InputPlan, paths: list[str], utf8: bool) -> tuple[DataFrame, list[InputColumn]]:
    lines = _lines(spark, plan, paths, utf8)
    marked = F.substring(F.col("value"), 1, 1) == F.lit("\ufeff")
    value = F.when(marked, F.substring(F.col("value"), 2, 2**31 - 2)).otherwise(F.col("value"))
    return lines.select(
        value.alias("c0"),
        SOURCE,
        F.col("value").alias(RAW),
        F.lit(None).cast("string").alias(BAD),
    ), [InputColumn("text", "string")]


def _columnar(spark: SparkSession, plan: InputPlan, paths: list[str]) -> tuple[DataFrame, list[InputColumn]]:
    if plan.format == "parquet":
        # pandas writes times in nanoseconds, which Spark has no type for and otherwise refuses
        spark.conf.set("spark.sql.legacy.parquet.nanosAsLong", "true")
        frame = spark.read.options(**{"mergeSchema": "true", **plan.options}).parquet(*paths)
    else:
        options = dict(plan.options) | ({} if plan.version is None else {"versionAsOf": str(plan.version)})
        frame = spark.read.format("delta").options(**options).load(spelt(plan.paths[0]))
    fields = frame.schema.fields
    told = {column.name: column.kind for column in plan.columns}
    nanos = {field.name for field in fields if isinstance(field.dataType, T.LongType) and told.get(field.name) == "time"}
    columns = [InputColumn(field.name, "time" if field.name in nanos else kind_of(field.dataType)) for field in fields]
    parts = []
    for i, field in enumerate(fields):
        value = frame[_quoted(field.name)]
        micros = F.round((value - F.pmod(value, F.lit(1000))) / 1000).cast("long")
        parts.append((F.timestamp_micros(micros) if field.name in nanos else value).alias(f"c{i}"))
    shown = [
        F.coalesce(frame[_quoted(f.name)].cast("string"), F.lit(""))
        for f in fields
        if kind_of(f.dataType) in ("string", "number", "boolean", "time")
    ]
    return frame.select(
        *parts,
        F.col("_metadata.file_path").alias(SOURCE),
        F.concat_ws(_SEEN, *[F.substring(part, 1, 1000) for part in shown]).alias(RAW),
        F.lit(None).cast("string").alias(BAD),
    ), columns


def as_written(value: Column, kind: T.DataType) -> Column:
    """Return a value as text, a number as people write it: of JSON lines all are doubles, and the year 2020 is no 2020.0."""
    if not isinstance(kind, T.FractionalType):
        return value.cast("string")
    whole = value == F.floor(value)
    if not isinstance(kind, T.DecimalType):
        whole = whole & (F.abs(value) < 2.0**63)
    return F.when(whole, F.floor(value).cast("string")).otherwise(value.cast("string"))


def kind_of(kind: T.DataType) -> str:
    """Return a Spark type's kind, in the words of :class:`topicscale.sniff.Column`."""
    if isinstance(kind, T.StringType | T.CharType | T.VarcharType):
        return "string"
    if isinstance(kind, T.NumericType):
        return "number"
    if isinstance(kind, T.BooleanType):
        return "boolean"
    if isinstance(kind, T.BinaryType):
        return "binary"
    if isinstance(kind, T.NullType):
        return "unknown"
    if isinstance(kind, T.ArrayType):
        return "vector" if isinstance(kind.elementType, T.NumericType) else "nested"
    if isinstance(kind, T.StructType | T.MapType | T.VariantType):
        return "nested"
    return "time"


def _lines(spark: SparkSession, plan: InputPlan, paths: list[str], utf8: bool) -> DataFrame:
    """Return the lines of files as ``value``, with their :data:`SOURCE`: bytes as they are, or decoded from another encoding."""
    options = {key: option for key, option in plan.options.items() if key != "encoding"}  # what Spark would make of it is not said
    value = F.col("value") if utf8 else F.decode(F.col("value").cast("binary"), plan.options["encoding"])
    return spark.read.options(**options).text(paths).select(value.alias("value"), F.col("_metadata.file_path").alias(SOURCE))


def _of_folder(name: str) -> Column:
    """Return what the folder of a row's file says of a column (``01`` in a folder ``month=01``), null where none does."""

    def decoded(text: Column) -> Column:
        return F.coalesce(F.try_url_decode(F.replace(text, F.lit("+"), F.lit("%2B"))), text)

    # once as an address of a file, once as writers keep values apart from names of folders
    value = decoded(F.regexp_extract(decoded(F.col(SOURCE)), f".*/{re.escape(name)}=([^/]*)/", 1))
    return F.when(~value.isin("", "__HIVE_DEFAULT_PARTITION__"), value)


def _bytes(column: Column) -> Column:
    return F.encode(column, "ISO-8859-1").cast("string")


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _escape(path: str) -> str:
    return "".join("\\" + character if character in "{}[]*?\\" else character for character in path)


def _readable(path: Column) -> Column:
    return F.regexp_replace(F.regexp_replace(path, "^file:/+", "/"), "^s3a://", "s3://")
