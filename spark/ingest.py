"""The input into ``documents``, ``quarantine`` and ``partitions``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from spark.cleaning import CONTENT, REASON, Clean, clean
from spark.partitioning import MAX_VALUES, Partitioner, by_column, by_hash, check_values, short_hash
from spark.reading import LATE, LOST, RAW, SOURCE, read, with_late
from spark.tables import from_rows, load, replace_table
from topicscale.config import Config, fingerprint
from topicscale.errors import InputError, JobFailed
from topicscale.inputs import InputPlan, inspect
from topicscale.tables import QUARANTINE_REASONS, TABLES

Txn = Mapping[str, tuple[str, int]]
"""Table -> the transaction application id and version that make its write repeatable."""

MOST_LATE = 100
"""Columns that are made of keys which a file's head did not show. Where keys are data, there is no end of them."""


@dataclass(frozen=True)
class PartitionInfo:
    """One row of ``partitions``."""

    partition_id: str
    value: str | None
    """The value of ``partition.column`` that the partition came from."""
    rows: int
    chars: int
    digest: str
    """Of the partition's (doc_id, text_hash) pairs, and vectors, whatever their order (32 hexadecimal digits)."""


@dataclass(frozen=True)
class IngestResult:
    """What became of the input. ``input_rows`` = ``documents`` + the sum of ``quarantined``, always."""

    input_rows: int
    documents: int
    quarantined: dict[str, int]
    partitions: tuple[PartitionInfo, ...]
    renamed: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    """Input column -> what was done to its values, and in how many documents where not in all."""


@dataclass
class Counts:
    """What one pass over the input tells."""

    faults: dict[str | None, int] = field(default_factory=dict)
    """Rows by reason; None: documents."""
    values: dict[str | None, int] = field(default_factory=dict)
    """Documents by value of the partition column."""
    characters: dict[str | None, int] = field(default_factory=dict)
    """Characters of their texts, likewise."""
    losses: list[int] = field(default_factory=list)
    """Documents that each of ``Clean.losses`` happened to."""
    late: int = 0
    """Documents with keys that are no column yet."""


def ingest(
    spark: SparkSession,
    config: Config,
    *,
    store_uri: str,
    plan: InputPlan | None = None,
    txn: Txn | None = None,
) -> IngestResult:
    """Write the three tables from the input, and return what became of it.

    Each table is replaced as a whole, in one commit that carries the caller's transaction id and version, so that a
    repeated call changes nothing and a killed one is repaired by the next.

    Raises
    ------
    InputError
        The input lacks a column, or a column has too many values to partition by.
    JobFailed
        No document is left, or rows went missing between reading and writing (the input changed meanwhile).
    """
    plan = plan or inspect(config.input)
    column = config.partition.column
    cleaned, counts = survey(spark, config, plan)
    faults, values, by_id = counts.faults, counts.values, config.input.id_column is not None
    good = faults.pop(None, 0)
    total = good + sum(faults.values())
    if not total:
        raise InputError(f"The input holds no rows: {', '.join(plan.paths[:5])}.")
    if column is not None:
        check_values(len(values), column)
        partitioner = by_column(config.partition, counts=values, characters=counts.characters)
    else:
        partitioner = by_hash(config.partition, documents=good, characters=sum(counts.characters.values()))

    vectors = ["embedding"] if config.input.embedding_column else []
    documents = identify(cleaned.frame, partitioner, by_id=by_id, duplicates="duplicate_id" in faults)
    documents = documents.select("doc_id", "partition_id", "text", "text_hash", *cleaned.kept, *vectors)
    rejected = refused(spark, cleaned.frame, faults)
    with ThreadPoolExecutor(2) as pool:  # much of a commit is waiting
        writes = [
            pool.submit(replace_table, frame, store_uri, name, txn=txn)
            for frame, name in ((documents, "documents"), (rejected, "quarantine"))
        ]
        for write in writes:
            write.result()

    partitions = summarise(spark, store_uri, partitioner, values, vectors=vectors)
    written = sum(partition.rows for partition in partitions)
    if written != good:  # before the last table, which is what makes ingest count as done
        raise JobFailed(f"The input changed while it was read: {good} documents were counted and {written} written. Run the job again.")
    told = [(p.partition_id, p.value, p.rows, p.chars, p.digest) for p in partitions]
    frame = from_rows(spark, told, TABLES["partitions"].schema)
    replace_table(frame.coalesce(1), store_uri, "partitions", txn=txn)
    return IngestResult(total, good, dict(sorted(faults.items())), partitions, cleaned.renamed, cleaned.changed)


def survey(spark: SparkSession, config: Config, plan: InputPlan, *, held: Collection[str] | None = None) -> tuple[Clean, Counts]:
    """Return the rows of the input, and what one pass over them tells; ``held``: see :func:`spark.cleaning.clean`.

    Raises
    ------
    InputError
        The input lacks a column.
    """
    column, by_id = config.partition.column, config.input.id_column is not None
    rows = read(spark, plan, config.input)
    if column is not None and column not in rows.names:
        raise InputError(f"partition.column names {column!r}, which the input lacks. Its columns: {', '.join(rows.names)}.")
    cleaned = clean(rows, config.input, dimension=plan.dimension, partition_column=column, held=held)
    counts = count(cleaned, by_value=column is not None, by_id=by_id)
    told = _lost(cleaned, counts)
    if counts.late:
        keys, notes = _late_keys(cleaned.frame, rows.names)
        rows = read(spark, with_late(rows.plan, keys), config.input)
        cleaned = clean(rows, config.input, dimension=plan.dimension, partition_column=column, held=held)
        told |= notes
    return replace(cleaned, changed=cleaned.changed | told), counts


def count(cleaned: Clean, *, by_value: bool, by_id: bool) -> Counts:
    frame = cleaned.frame
    value = F.when(F.col(REASON).isNull(), F.col("_value"))
    aggregates = [F.count("*").alias("rows")] + ([F.count_distinct("_id").alias("ids")] if by_id and not by_value else [])
    aggregates += [F.sum("_chars").alias("chars")]
    aggregates += [F.count_if(F.col(LOST)[i]).alias(f"lost{i}") for i in range(len(cleaned.losses))]
    aggregates += [F.count_if(F.size(LATE) > 0).alias("late")] if cleaned.late else []
    groups = frame.groupBy(REASON, value.alias("_value")) if by_value else frame.groupBy(REASON)
    counts = Counts(losses=[0] * len(cleaned.losses))
    faults, values = counts.faults, counts.values
    duplicates = 0
    for row in groups.agg(*aggregates).limit(MAX_VALUES + len(QUARANTINE_REASONS) + 1).collect():
        reason, rows = row[REASON], row["rows"]
        faults[reason] = faults.get(reason, 0) + rows
        if reason is None:
            values[row["_value"] if by_value else None] = rows
            counts.characters[row["_value"] if by_value else None] = row["chars"]
            duplicates += rows - row["ids"] if by_id and not by_value else 0
            counts.losses = [known + row[f"lost{i}"] for i, known in enumerate(counts.losses)]
            counts.late += row["late"] if cleaned.late else 0
    if by_id and by_value:
        ids = frame.where(F.col(REASON).isNull()).agg(F.count_distinct("_id")).collect()[0][0]
        duplicates = faults.get(None, 0) - ids
    if duplicates:
        faults["duplicate_id"], faults[None] = duplicates, faults[None] - duplicates
    return counts


def _lost(cleaned: Clean, counts: Counts) -> dict[str, str]:
    """Return column -> in how many documents its value was not what the row says, and what it became."""
    told: dict[str, str] = {}
    for loss, rows in zip(cleaned.losses, counts.losses, strict=True):
        if rows:
            before = f"{told[loss.column]}; " if loss.column in told else ""
            told[loss.column] = f"{before}{loss.what} in {rows:,} documents"
    return told


def _late_keys(frame: DataFrame, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the keys that become columns too, in name order, and what to tell of them.

    A pass of its own, over the keys alone, since only few inputs need it and their number has no bound.
    """
    keys = frame.where(F.col(REASON).isNull()).select(F.explode(F.array_distinct(LATE)).alias("key"))
    keys = keys.groupBy(F.make_valid_utf8("key").alias("key")).agg(F.count("*").alias("rows"))
    found = keys.orderBy(F.desc("rows"), "key").limit(MOST_LATE + 1).collect()
    taken, kept, told = {name.lower() for name in names}, [], {}
    for key, rows in found[:MOST_LATE]:
        if key.lower() in taken or not 0 < len(key) <= 200 or "\ufffd" in key:
            told[key[:200]] = f"lost: a key of {rows:,} documents that cannot be a column beside the others"
        else:
            taken.add(key.lower())
            kept.append(key)
            told[key] = f"kept as text: {rows:,} documents have it, and none of the rows that tell the columns"
    if len(found) > MOST_LATE:
        told["(other keys)"] = (
            f"lost: more than {MOST_LATE} keys that none of the rows that tell the columns have; name columns by input.keep"
        )
    return sorted(kept), told


def identify(frame: DataFrame, partitioner: Partitioner, *, by_id: bool, duplicates: bool) -> DataFrame:
    """Return the documents with ``doc_id`` and ``partition_id``, each partition's rows together.

    Without an id column the id is the digest of the row's content; of identical rows, which are of one partition since
    they are of one text and one value, the k-th gets the digest of content and k.
    """
    frame = frame.where(F.col(REASON).isNull())
    if by_id:
        frame = _ranked(frame).where(F.col("_rank") == 1) if duplicates else frame
        frame = frame.withColumn("doc_id", F.col("_id"))
    frame = frame.withColumn("partition_id", partitioner.id(F.col("text_hash"), F.col("_value"))).repartition("partition_id")
    if not by_id:
        k = F.row_number().over(Window.partitionBy("partition_id", CONTENT).orderBy(CONTENT))
        frame = frame.withColumn("_k", k)
        again = F.sha2(F.concat(F.col(CONTENT), F.lit("#"), F.col("_k").cast("string")), 256)
        frame = frame.withColumn("doc_id", F.substring(F.when(F.col("_k") == 1, F.col(CONTENT)).otherwise(again), 1, 32))
    return frame


def _ranked(frame: DataFrame) -> DataFrame:
    """Return documents with the rank of each among those of its id: by content, so that the first is the same in any order of input."""
    return frame.withColumn("_rank", F.row_number().over(Window.partitionBy("_id").orderBy(CONTENT)))


def refused(spark: SparkSession, frame: DataFrame, faults: Mapping[str | None, int]) -> DataFrame:
    """Return the rows of ``quarantine``."""
    columns = [F.col(SOURCE).alias("source"), F.col(REASON).alias("reason"), F.col(RAW).alias("raw"), F.col("_id").alias("doc_id")]
    if not faults:
        return from_rows(spark, [], TABLES["quarantine"].schema)
    rejected = frame.where(F.col(REASON).isNotNull())
    if "duplicate_id" in faults:
        again = (
            _ranked(frame.where(F.col(REASON).isNull())).where(F.col("_rank") > 1).withColumn(REASON, F.lit("duplicate_id")).drop("_rank")
        )
        rejected = rejected.unionByName(again)
    return rejected.select(*columns)


def summarise(
    spark: SparkSession,
    store_uri: str,
    partitioner: Partitioner,
    values: Mapping[str | None, int],
    *,
    vectors: list[str],
    where: Column | None = None,
) -> tuple[PartitionInfo, ...]:
    """Return what was written, partition by partition (of rows that fulfil a condition), read from the table itself."""
    named = {short_hash(value): value for value in values}

    def value_of(partition_id: str) -> str | None:
        return None if partitioner.number else named.get(partitioner.short(partition_id))

    return tuple(PartitionInfo(pid, value_of(pid), *told) for pid, *told in measure(spark, store_uri, vectors=vectors, where=where))


def measure(spark: SparkSession, store_uri: str, *, vectors: list[str], where: Column | None = None) -> list[tuple[str, int, int, str]]:
    """Return id, rows, characters and digest of each partition of ``documents``."""
    key = ["doc_id", "text_hash", *vectors]
    one, other = F.xxhash64(*key), F.xxhash64(F.lit("other"), *key)
    documents = load(spark, store_uri, "documents")
    rows = (
        (documents if where is None else documents.where(where))
        .groupBy("partition_id")
        .agg(
            F.count("*").alias("rows"),
            F.sum(F.length("text")).alias("chars"),
            F.bit_xor(one).alias("one"),
            F.bit_xor(other).alias("other"),
            F.sum(F.shiftrightunsigned(one, 32)).alias("sum"),  # 32 bits a row: no overflow below two thousand million rows
        )
        .orderBy("partition_id")
        .collect()
    )
    return [(r["partition_id"], r["rows"], r["chars"], fingerprint(r["rows"], r["one"], r["other"], r["sum"])) for r in rows]
