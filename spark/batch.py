"""New documents beside those a store holds: what `update` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from spark import ingest
from spark.partitioning import by_column, by_hash, check_values
from spark.reading import RAW, SOURCE, as_written
from spark.tables import from_rows, load, replace_rows, replace_table
from topicscale.config import Config
from topicscale.errors import JobFailed
from topicscale.inputs import InputPlan
from topicscale.tables import TABLES, batch_suffix

_PRESENT, _CLASH = "_present", "_clash"
_ABSENT = "not in this batch: null"


@dataclass(frozen=True)
class BatchResult:
    """What became of the input. ``input_rows`` = ``documents`` + ``already_present`` + the sum of ``quarantined``, always."""

    input_rows: int
    documents: int
    already_present: int
    quarantined: dict[str, int]
    partitions: tuple[ingest.PartitionInfo, ...]
    renamed: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)


def add(
    spark: SparkSession,
    config: Config,
    *,
    store_uri: str,
    plan: InputPlan,
    batch: int,
    versions: Mapping[str, int],
    unpublished: bool,
) -> BatchResult:
    """Write the documents of the input that the store does not hold, in partitions of their own, and return what became of all.

    A document is already there when its id is, with the same text; one whose id is there with another text goes to
    quarantine as ``duplicate_id``. Without an id column, it is there when all is there that the store would keep of it. What is
    written replaces what a killed attempt, at this batch or another, may have left.

    Parameters
    ----------
    versions : mapping
        Of ``documents`` and ``quarantine`` in the generation that this batch adds to.
    unpublished : bool
        ``quarantine`` has changed since.

    Raises
    ------
    JobFailed
        Too many rows are bad; nothing was written.
    """
    column = config.partition.column
    held = load(spark, store_uri, "documents", version=versions["documents"])
    cleaned, counts = ingest.survey(spark, config, plan, held=held.columns)
    faults, values, by_id = counts.faults, counts.values, config.input.id_column is not None
    good = faults.pop(None, 0)
    if column is not None:
        check_values(len(values), column)
        partitioner = by_column(config.partition, counts=values, characters=counts.characters)
    else:
        partitioner = by_hash(config.partition, documents=good, characters=sum(counts.characters.values()))
    known = held.select("doc_id", F.col("text_hash").alias("_held"))
    identified = ingest.identify(cleaned.frame, partitioner, by_id=by_id, duplicates="duplicate_id" in faults)
    compared = identified.join(known, "doc_id", "left").withColumn(_PRESENT, F.col("_held").isNotNull())
    compared = compared.withColumn(_CLASH, F.col(_PRESENT) & (F.col("_held") != F.col("text_hash"))).persist()
    try:
        seen = {(row[_PRESENT], row[_CLASH]): row["count"] for row in compared.groupBy(_PRESENT, _CLASH).count().collect()}
        new, present, clashes = seen.get((False, False), 0), seen.get((True, False), 0), seen.get((True, True), 0)
        refused = ingest.refused(spark, cleaned.frame, faults)
        if clashes:
            columns = [F.col(SOURCE).alias("source"), F.lit("duplicate_id").alias("reason"), F.col(RAW).alias("raw"), "doc_id"]
            refused = refused.unionByName(compared.where(_CLASH).select(*columns))
            faults["duplicate_id"] = faults.get("duplicate_id", 0) + clashes
        bad, total = sum(faults.values()), good + sum(faults.values()) - clashes
        if total and bad / total > config.input.max_quarantine:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(faults.items()))
            raise JobFailed(
                f"{bad:,} of {total:,} rows are bad ({reasons}), more than input.max_quarantine allows "
                f"({config.input.max_quarantine:.0%}), so nothing was added."
            )
        changed = dict(cleaned.changed)
        vectors = ["embedding"] if config.input.embedding_column else []
        fresh = compared.where(~F.col(_PRESENT)).withColumn("partition_id", F.concat("partition_id", F.lit(batch_suffix(batch))))
        fresh = _fitted(fresh, held, ["doc_id", "partition_id", "text", "text_hash", *cleaned.kept, *vectors], changed)
        if not by_id:
            unknown = "so that documents which the store holds with a value are not known again"
            changed |= {name: f"{what}, {unknown}" for name, what in changed.items() if what == _ABSENT}
        _replace(fresh, store_uri, "documents", batch)
        # after the documents: a batch that is killed is known by them
        if (new and bad) or unpublished:
            quarantine = load(spark, store_uri, "quarantine", version=versions["quarantine"])
            replace_table(quarantine.unionByName(refused) if new else quarantine, store_uri, "quarantine")
        partitions = ingest.summarise(
            spark, store_uri, partitioner, values, vectors=vectors, where=F.col("partition_id").endswith(batch_suffix(batch))
        )
        if (written := sum(p.rows for p in partitions)) != new:
            raise JobFailed(f"The input changed while it was read: {new} documents were counted and {written} written. Run it again.")
        told = [(p.partition_id, p.value, p.rows, p.chars, p.digest) for p in partitions]
        _replace(from_rows(spark, told, TABLES["partitions"].schema).coalesce(1), store_uri, "partitions", batch)
    finally:
        compared.unpersist()
    return BatchResult(total, new, present, dict(sorted(faults.items())), partitions, cleaned.renamed, changed)


def _fitted(frame: DataFrame, held: DataFrame, columns: list[str], changed: dict[str, str]) -> DataFrame:
    """Return the rows in the columns of ``documents``: one that the batch lacks is null, one that only the batch has is left out."""
    chosen, lost, losses = [], [], []
    theirs, kinds = dict(frame.dtypes), dict(held.dtypes)
    for name, kind in kinds.items():
        if name in columns and theirs[name] == kind:
            chosen.append(F.col(name))
        elif name in columns:
            given = frame.schema[name].dataType
            value = as_written(F.col(name), given).try_cast(kind)
            chosen.append(value.alias(name))
            lost.append(F.col(name).isNotNull() & value.isNull())
            losses.append((name, f"null in {{:,}} rows, whose values are no {kind}"))
            if not isinstance(given, T.StringType):  # a text has other ways to say the same
                again = as_written(value, held.schema[name].dataType).try_cast(given)
                lost.append(value.isNotNull() & ~again.eqNullSafe(F.col(name)))
                losses.append((name, f"changed in {{:,}} rows, to what a column of {kind} holds"))
        else:
            chosen.append(F.lit(None).cast(kind).alias(name))
            changed[name] = _ABSENT
    for name in columns:
        if name not in kinds:
            changed[name] = "left out: the store's documents have no such column"
    if lost:
        numbers = frame.agg(*map(F.count_if, lost)).collect()[0]
        for (name, what), number in zip(losses, numbers, strict=True):
            if number:
                before = f"{changed[name]}; " if name in changed else ""
                changed[name] = before + what.format(number)
    return frame.select(*chosen)


def _replace(frame: DataFrame, store_uri: str, name: str, batch: int) -> None:
    replace_rows(frame, store_uri, name, where=f"partition_id LIKE '%{batch_suffix(batch)}'")
