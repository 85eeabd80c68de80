"""Vectors that can be used again when only the partitions changed."""

from __future__ import annotations

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from spark.tables import load, table_uri


def vectors_to_reuse(
    spark: SparkSession,
    *,
    store_uri: str,
    documents_version: int | None = None,
    embeddings_version: int | None = None,
    space: str,
    target: str,
) -> int:
    """Write, for every partition of ``documents``, the vectors that ``embeddings`` already holds for its texts.

    The files under ``target`` are plain parquet with the columns ``text_hash`` and ``vector``, one folder
    ``partition_id=...`` a partition; a text that occurs several times is there once. Only vectors of the given
    embedding space are taken, and of several for one text the one of the smallest ``doc_id``. What ``target`` held
    before is replaced, so the call can be repeated.

    Returns
    -------
    int
        Number of vectors written.
    """
    documents = load(spark, store_uri, "documents", version=documents_version).select("partition_id", "text_hash").distinct()
    known = (
        load(spark, store_uri, "embeddings", version=embeddings_version)
        .where(F.col("space") == space)
        .groupBy("text_hash")
        .agg(F.min_by("vector", "doc_id").alias("vector"))
    )
    found = documents.join(known, "text_hash").select("partition_id", "text_hash", "vector")
    address = table_uri(*target.rstrip("/").rsplit("/", 1))
    found.repartition("partition_id").write.mode("overwrite").partitionBy("partition_id").parquet(address)
    schema = "text_hash string, vector array<float>, partition_id string"
    return spark.read.schema(schema).parquet(address).count()
