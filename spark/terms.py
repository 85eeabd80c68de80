"""Term counts of every topic, and their c-TF-IDF weights, into ``topic_terms``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from spark.tables import from_rows, load, replace_table
from spark.words import has_dictionaries, ngrams, without, words
from topicscale.config import TermsConfig
from topicscale.terms import stop_words

COUNTED = ("topic_id", "term", "count", "documents", "core_count")
"""The columns of ``topic_terms`` that add up."""


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
    cores: Sequence[float] | NDArray[np.float32],
    versions: Mapping[str, int] | None = None,
    txn: Mapping[str, tuple[str, int]] | None = None,
) -> TermCounts:
    """Replace ``topic_terms`` with the counts and weights of every term of every topic.

    ``documents`` and ``assignments`` are read at the given versions (the newest without). Outliers (topic -1) are a
    class like the others. One commit replaces the table, under the caller's transaction id and version, so that a
    repeated call changes nothing. The weights are those of :mod:`topicscale.ctfidf`.

    Parameters
    ----------
    cores : float (topics,)
        The probability from which on a document is of its topic's core, by topic id.
    """
    versions = versions or {}
    documents = load(spark, store_uri, "documents", version=versions.get("documents"))
    assignments = load(spark, store_uri, "assignments", version=versions.get("assignments"))
    topics = [row["topic_id"] for row in assignments.select("topic_id").distinct().collect()]
    counted = counts(with_topics(spark, documents, assignments, cores), config, dictionaries=has_dictionaries(spark))
    counted = counted.persist(StorageLevel.MEMORY_AND_DISK)
    try:
        return _replace(spark, config, counted, store_uri=store_uri, classes=len(topics), txn=txn)
    finally:
        counted.unpersist()


def with_topics(
    spark: SparkSession, documents: DataFrame, assignments: DataFrame, cores: Sequence[float] | NDArray[np.float32]
) -> DataFrame:
    """Return ``topic_id``, ``text`` and ``core`` (whether it is of its topic's core) of the documents that are assigned."""
    schema = pa.schema({"topic_id": pa.int32(), "least": pa.float32()})
    least = from_rows(spark, [(topic, float(core)) for topic, core in enumerate(cores)], schema)
    assigned = assignments.select("doc_id", "partition_id", "topic_id", "probability").join(F.broadcast(least), "topic_id", "left")
    # outliers have no core: all of them tell what outliers are like
    assigned = assigned.withColumn("core", F.coalesce(F.col("probability") >= F.col("least"), F.lit(True)))
    joined = documents.select("doc_id", "partition_id", "text").join(assigned, ["partition_id", "doc_id"])
    return joined.select("topic_id", "text", "core")


def add_terms(
    spark: SparkSession,
    config: TermsConfig,
    *,
    store_uri: str,
    partitions: Sequence[str],
    versions: Mapping[str, int],
    classes: int,
    cores: Sequence[float] | NDArray[np.float32],
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
        whole = {table: version for table, version in versions.items() if table != "topic_terms"}
        return count_terms(spark, config, store_uri=store_uri, cores=cores, versions=whole, txn=txn)
    documents, assignments = (
        load(spark, store_uri, name, version=versions[name]).where(F.col("partition_id").isin(list(partitions)))
        for name in ("documents", "assignments")
    )
    joined = with_topics(spark, documents, assignments, cores)
    new = counts(joined, config, dictionaries=has_dictionaries(spark)).select(*COUNTED)
    held = load(spark, store_uri, "topic_terms", version=versions["topic_terms"]).select(*COUNTED)
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
    """Replace ``topic_terms`` with the sum of parts (:data:`COUNTED`), weighted anew.

    Parameters
    ----------
    classes : int
        Topics that have documents, outliers among them.
    """
    union = parts[0]
    for part in parts[1:]:
        union = union.unionByName(part)
    per_topic = union.groupBy("topic_id", "term").agg(*(F.sum(name).alias(name) for name in COUNTED[2:]))
    per_topic = per_topic.where(F.col("count") > 0)
    counted = per_topic.join(_frequencies(per_topic), "term").persist(StorageLevel.MEMORY_AND_DISK)
    try:
        return _replace(spark, config, counted, store_uri=store_uri, classes=classes, txn=txn)
    finally:
        counted.unpersist()


def _frequencies(per_topic: DataFrame, *more: Column) -> DataFrame:
    """Return each term's counts over all topics."""
    both = F.sum("count").alias("frequency"), F.sum("core_count").alias("core_frequency")
    return per_topic.groupBy("term").agg(*both, *more)


def _replace(
    spark: SparkSession,
    config: TermsConfig,
    counted: DataFrame,
    *,
    store_uri: str,
    classes: int,
    txn: Mapping[str, tuple[str, int]] | None,
) -> TermCounts:
    """Write what was counted, with its weights."""
    sums = counted.groupBy("topic_id").agg(F.sum("count").alias("total"), F.sum("core_count").alias("core_total"))
    totals = {row["topic_id"]: (row["total"], row["core_total"]) for row in sums.collect()}
    replace_table(weigh(spark, counted, totals, classes=classes, config=config), store_uri, "topic_terms", txn=txn)
    return TermCounts(counted.count(), classes, sum(total for total, _ in totals.values()))


def counts(frame: DataFrame, config: TermsConfig, *, dictionaries: bool) -> DataFrame:
    """Return :data:`COUNTED`, and ``frequency`` and ``core_frequency`` (the term's counts over all topics).

    ``frame`` is as :func:`with_topics` returns it. Stop words go before n-grams are built, as in scikit-learn; n-grams stay
    within a document; a term in fewer than ``min_df`` documents of the corpus is dropped.
    """
    tokens = without(words(F.col("text"), dictionaries=dictionaries, lowercase=config.lowercase), stop_words(config.stop_words))
    terms = frame.select(
        "topic_id", F.col("core").cast("long").alias("core"), F.array_sort(ngrams(tokens, config.ngram_range)).alias("terms")
    )
    # sorted, a term's first occurrence in its document is the one that differs from its neighbour: no shuffle by document
    shifted = F.concat(F.array(F.lit(None).cast("string")), F.slice("terms", 1, F.greatest(F.size("terms") - 1, F.lit(0))))
    # explode_outer: for plain explode the optimizer adds a filter that splits every text into words a second time
    pairs = terms.select(
        "topic_id", "core", F.explode_outer(F.arrays_zip(F.col("terms").alias("term"), shifted.alias("before"))).alias("pair")
    )
    first: Column = (~F.col("pair.term").eqNullSafe(F.col("pair.before"))).cast("long")
    found = pairs.select("topic_id", "core", "pair.term", first.alias("first")).where(F.col("term").isNotNull())
    per_topic = found.groupBy("topic_id", "term").agg(
        F.count("*").alias("count"), F.sum("first").alias("documents"), F.sum("core").alias("core_count")
    )
    per_term = _frequencies(per_topic, F.sum("documents").alias("df")).where(F.col("df") >= config.min_df).drop("df")
    return per_topic.join(per_term, "term").select(*COUNTED, "frequency", "core_frequency")


def weigh(
    spark: SparkSession, counted: DataFrame, totals: Mapping[int, tuple[int, int]], *, classes: int, config: TermsConfig
) -> DataFrame:
    """Return the rows of ``topic_terms``: ``counted`` with the weights of each row, of all documents and of cores alone.

    Parameters
    ----------
    totals : mapping
        Topic id -> its terms, and those of its core.
    """

    def weight(kind: str, terms: int) -> Column:
        average = terms // max(1, classes)
        # a term, or a whole topic, that no core holds has a count of 0 and hence no weight
        frequency = F.greatest(F.col(f"{kind}frequency"), F.lit(1)).cast("double")
        ratio = (average - frequency + 0.5) / (frequency + 0.5) if config.bm25_weighting else average / frequency
        share = F.col(f"{kind}count") / F.greatest(F.col(f"{kind}total"), F.lit(1))
        return ((F.sqrt(share) if config.reduce_frequent_words else share) * F.log(ratio + 1.0)).alias(f"{kind}weight")

    whole, core = (sum(numbers) for numbers in zip(*totals.values(), strict=True)) if totals else (0, 0)
    rows = [(topic, *numbers) for topic, numbers in sorted(totals.items())]
    sizes = from_rows(spark, rows, pa.schema({"topic_id": pa.int32(), "total": pa.int64(), "core_total": pa.int64()}))
    joined = counted.join(F.broadcast(sizes), "topic_id")
    return joined.select("topic_id", "term", "count", "documents", weight("", whole), "core_count", weight("core_", core))
