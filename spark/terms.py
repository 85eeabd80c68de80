"""Term counts of every topic, and their c-TF-IDF weights, into ``topic_terms``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from spark.tables import load, replace_table
from spark.words import has_dictionaries, ngrams, stop_words, without, words
from topicscale.config import TermsConfig


@dataclass(frozen=True)
class TermCounts:
    """What was counted."""

    rows: int
    """Rows of ``topic_terms``."""
    topics: int
    """Classes, the outliers' among them."""
    terms: int
    """Counted occurrences."""


def count_terms(
    spark: SparkSession,
    config: TermsConfig,
    *,
    store_uri: str,
    versions: Mapping[str, int] | None = None,
    txn: Mapping[str, tuple[str, int]] | None = None,
) -> TermCounts:
    """Replace ``topic_terms`` with the counts and weights of every term of every topic.

    ``documents`` and ``assignments`` are read at the given versions (the newest without). Outliers (topic -1) are a
    class like the others. One commit replaces the table, under the caller's transaction id and version, so that a
    repeated call changes nothing. The weights are those of :mod:`topicscale.ctfidf`.
    """
    versions = versions or {}
    documents = load(spark, store_uri, "documents", version=versions.get("documents")).select("doc_id", "partition_id", "text")
    assignments = load(spark, store_uri, "assignments", version=versions.get("assignments")).select("doc_id", "partition_id", "topic_id")
    topics = [row["topic_id"] for row in assignments.select("topic_id").distinct().collect()]
    counted = counts(documents.join(assignments, ["partition_id", "doc_id"]), config, dictionaries=has_dictionaries(spark))
    counted = counted.persist(StorageLevel.MEMORY_AND_DISK)
    try:
        totals = {row["topic_id"]: row["total"] for row in counted.groupBy("topic_id").agg(F.sum("count").alias("total")).collect()}
        result = weigh(spark, counted, totals, classes=len(topics), config=config)
        replace_table(result, store_uri, "topic_terms", txn=txn)
        rows = counted.count()
    finally:
        counted.unpersist()
    return TermCounts(rows, len(topics), sum(totals.values()))


def add_terms(
    spark: SparkSession,
    config: TermsConfig,
    *,
    store_uri: str,
    partitions: Sequence[str],
    versions: Mapping[str, int],
    classes: int,
    txn: Mapping[str, tuple[str, int]],
) -> TermCounts:
    """Replace ``topic_terms`` with the counts it had, and those of the documents of some partitions, weighted anew.

    Exact where every term is counted (``min_df`` of 1); otherwise the corpus is counted again as a whole, since a term
    that was too rare before is in no sum.

    Parameters
    ----------
    versions : mapping
        Of ``documents`` and ``assignments``, which hold the partitions, and of ``topic_terms``, which is added to.
    """
    if config.min_df > 1:
        return count_terms(spark, config, store_uri=store_uri, versions={k: v for k, v in versions.items() if k != "topic_terms"}, txn=txn)
    documents, assignments = (
        load(spark, store_uri, name, version=versions[name]).where(F.col("partition_id").isin(list(partitions)))
        for name in ("documents", "assignments")
    )
    joined = documents.select("doc_id", "partition_id", "text").join(
        assignments.select("doc_id", "partition_id", "topic_id"), ["partition_id", "doc_id"]
    )
    new = counts(joined, config, dictionaries=has_dictionaries(spark)).drop("frequency")
    held = load(spark, store_uri, "topic_terms", version=versions["topic_terms"]).drop("weight")
    return write_terms(spark, config, [held, new], store_uri=store_uri, classes=classes, txn=txn)


def write_terms(
    spark: SparkSession,
    config: TermsConfig,
    parts: Sequence[DataFrame],
    *,
    store_uri: str,
    classes: int,
    txn: Mapping[str, tuple[str, int]],
) -> TermCounts:
    """Replace ``topic_terms`` with the sum of parts (``topic_id``, ``term``, ``count``, ``documents``), weighted anew.

    Parameters
    ----------
    classes : int
        Topics that have documents, outliers among them.
    """
    union = parts[0]
    for part in parts[1:]:
        union = union.unionByName(part)
    per_topic = union.groupBy("topic_id", "term").agg(F.sum("count").alias("count"), F.sum("documents").alias("documents"))
    per_topic = per_topic.where(F.col("count") > 0)
    frequency = per_topic.groupBy("term").agg(F.sum("count").alias("frequency"))
    counted = per_topic.join(frequency, "term").persist(StorageLevel.MEMORY_AND_DISK)
    try:
        totals = {row["topic_id"]: row["total"] for row in counted.groupBy("topic_id").agg(F.sum("count").alias("total")).collect()}
        replace_table(weigh(spark, counted, totals, classes=classes, config=config), store_uri, "topic_terms", txn=txn)
        rows = counted.count()
    finally:
        counted.unpersist()
    return TermCounts(rows, len(totals), sum(totals.values()))


def counts(frame: DataFrame, config: TermsConfig, *, dictionaries: bool) -> DataFrame:
    """Return ``topic_id``, ``term``, ``count``, ``documents`` and ``frequency`` (the term's count over all topics).

    ``frame`` has ``topic_id`` and ``text``. Stop words go before n-grams are built, as in scikit-learn; n-grams stay
    within a document; a term in fewer than ``min_df`` documents of the corpus is dropped.
    """
    tokens = without(words(F.col("text"), dictionaries=dictionaries, lowercase=config.lowercase), stop_words(config.stop_words))
    terms = frame.select("topic_id", F.array_sort(ngrams(tokens, config.ngram_range)).alias("terms"))
    # sorted, a term's first occurrence in its document is the one that differs from its neighbour: no shuffle by document
    shifted = F.concat(F.array(F.lit(None).cast("string")), F.slice("terms", 1, F.greatest(F.size("terms") - 1, F.lit(0))))
    # explode_outer: for plain explode the optimizer adds a filter that splits every text into words a second time
    pairs = terms.select("topic_id", F.explode_outer(F.arrays_zip(F.col("terms").alias("term"), shifted.alias("before"))).alias("pair"))
    first: Column = (~F.col("pair.term").eqNullSafe(F.col("pair.before"))).cast("long")
    per_topic = pairs.select("topic_id", "pair.term", first.alias("first")).where(F.col("term").isNotNull()).groupBy("topic_id", "term")
    per_topic = per_topic.agg(F.count("*").alias("count"), F.sum("first").alias("documents"))
    per_term = per_topic.groupBy("term").agg(F.sum("count").alias("frequency"), F.sum("documents").alias("df"))
    return per_topic.join(per_term.where(F.col("df") >= config.min_df).drop("df"), "term").select(
        "topic_id", "term", "count", "documents", "frequency"
    )


def weigh(spark: SparkSession, counted: DataFrame, totals: Mapping[int, int], *, classes: int, config: TermsConfig) -> DataFrame:
    """Return the rows of ``topic_terms``: ``counted`` with the weight of each row."""
    average = sum(totals.values()) // max(1, classes)
    frequency = F.col("frequency").cast("double")
    ratio = (average - frequency + 0.5) / (frequency + 0.5) if config.bm25_weighting else average / frequency
    idf = F.log(ratio + 1.0)
    share = F.col("count") / F.col("total")
    share = F.sqrt(share) if config.reduce_frequent_words else share
    sizes = spark.createDataFrame(sorted(totals.items()), "topic_id int, total bigint")
    return counted.join(F.broadcast(sizes), "topic_id").select("topic_id", "term", "count", "documents", (share * idf).alias("weight"))
