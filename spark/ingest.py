"""The input into ``documents``, ``quarantine`` and ``partitions``."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from spark.cleaning import CONTENT, REASON, Clean, clean
from spark.partitioning import MAX_VALUES, Partitioner, by_column, by_hash, check_values, short_hash
from spark.reading import RAW, SOURCE, read
from spark.tables import load, replace_table
from topicscale.config import Config, fingerprint
from topicscale.errors import InputError, JobFailed
from topicscale.inputs import InputPlan, inspect
from topicscale.tables import QUARANTINE_REASONS

Txn = Mapping[str, tuple[str, int]]
"""Table -> the transaction application id and version that make its write repeatable."""

PARTITIONS_SCHEMA = "partition_id string, value string, rows bigint, chars bigint, digest string"


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
    rows = read(spark, plan, config.input)
    if column is not None and column not in rows.names:
        raise InputError(f"partition.column names {column!r}, which the input lacks. Its columns: {', '.join(rows.names)}.")
    cleaned = clean(rows, config.input, dimension=plan.dimension, partition_column=column)
    by_id = config.input.id_column is not None
    faults, values = count(cleaned, by_value=column is not None, by_id=by_id)
    good = faults.pop(None, 0)
    total = good + sum(faults.values())
    if not total:
        raise InputError(f"The input holds no rows: {', '.join(plan.paths[:5])}.")
    if column is not None:
        check_values(len(values), column)
        partitioner = by_column(config.partition, counts=values)
    else:
        partitioner = by_hash(config.partition, documents=good)

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
    frame = spark.createDataFrame([(p.partition_id, p.value, p.rows, p.chars, p.digest) for p in partitions], PARTITIONS_SCHEMA)
    replace_table(frame.coalesce(1), store_uri, "partitions", txn=txn)
    return IngestResult(total, good, dict(sorted(faults.items())), partitions, cleaned.renamed, cleaned.changed)


def count(cleaned: Clean, *, by_value: bool, by_id: bool) -> tuple[dict[str | None, int], dict[str | None, int]]:
    """Return rows by reason (None: documents), and documents by value of the partition column."""
    frame = cleaned.frame
    value = F.when(F.col(REASON).isNull(), F.col("_value"))
    aggregates = [F.count("*").alias("rows")] + ([F.count_distinct("_id").alias("ids")] if by_id and not by_value else [])
    groups = frame.groupBy(REASON, value.alias("_value")) if by_value else frame.groupBy(REASON)
    faults: dict[str | None, int] = {}
    values: dict[str | None, int] = {}
    duplicates = 0
    for row in groups.agg(*aggregates).limit(MAX_VALUES + len(QUARANTINE_REASONS) + 1).collect():
        reason, rows = row[REASON], row["rows"]
        faults[reason] = faults.get(reason, 0) + rows
        if reason is None:
            values[row["_value"] if by_value else None] = rows
            duplicates += rows - row["ids"] if by_id and not by_value else 0
    if by_id and by_value:
        ids = frame.where(F.col(REASON).isNull()).agg(F.count_distinct("_id")).collect()[0][0]
        duplicates = faults.get(None, 0) - ids
    if duplicates:
        faults["duplicate_id"], faults[None] = duplicates, faults[None] - duplicates
    return faults, values


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
    columns = [F.col(SOURCE).alias("source"), F.col(REASON).alias("reason"), F.col(RAW).alias("raw")]
    if not faults:
        return spark.createDataFrame([], "source string, reason string, raw string")
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
