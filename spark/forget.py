"""Documents out of the tables that Spark writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from spark import ingest, terms
from spark.tables import from_rows, load, replace_rows, replace_table
from spark.words import has_dictionaries, is_unspaced
from topicscale.config import Config
from topicscale.tables import TABLES

IDS = pa.schema({"doc_id": pa.string()})


def remove_documents(spark: SparkSession, config: Config, *, store_uri: str, ids: Sequence[str], partitions: Sequence[str]) -> int:
    """Remove documents from ``documents``, what tells of them from ``quarantine``, and their part of ``partitions``.

    Returns
    -------
    int
        Rows removed from quarantine.

    Notes
    -----
    A repeated call finds nothing left to remove.
    """
    gone = from_rows(spark, [(doc_id,) for doc_id in ids], IDS)
    touched = F.col("partition_id").isin(list(partitions))
    kept = load(spark, store_uri, "documents").where(touched).join(F.broadcast(gone), "doc_id", "left_anti")
    kept = kept.select(*load(spark, store_uri, "documents").columns)
    listed = ", ".join(f"'{pid}'" for pid in partitions)  # a slug and hexadecimal digits: nothing to be quoted
    if partitions:
        replace_rows(kept, store_uri, "documents", where=f"partition_id IN ({listed})")
        vectors = ["embedding"] if config.input.embedding_column else []
        measured = ingest.measure(spark, store_uri, vectors=vectors, where=touched)
        held = load(spark, store_uri, "partitions")
        values = {row["partition_id"]: row["value"] for row in held.select("partition_id", "value").collect()}
        told = [(pid, values.get(pid), rows, chars, digest) for pid, rows, chars, digest in measured]
        fresh = held.where(~touched).unionByName(from_rows(spark, told, TABLES["partitions"].schema))
        replace_table(fresh.coalesce(1), store_uri, "partitions")
    return _clean_quarantine(spark, store_uri, gone)


def _clean_quarantine(spark: SparkSession, store_uri: str, gone: DataFrame) -> int:
    rows = load(spark, store_uri, "quarantine")
    count = rows.join(F.broadcast(gone), "doc_id").count()
    if count:
        replace_table(rows.join(F.broadcast(gone), "doc_id", "left_anti").select(*rows.columns), store_uri, "quarantine")
    return count


def remove_terms(
    spark: SparkSession,
    config: Config,
    *,
    store_uri: str,
    ids: Sequence[str],
    versions: Mapping[str, int],
    classes: int,
    cores: Sequence[float] | NDArray[np.float32],
    txn: Mapping[str, tuple[str, int]],
) -> None:
    """Replace ``topic_terms`` with its counts less those of some documents, weighted anew; where that is not exact, count all again.

    Parameters
    ----------
    versions : mapping
        Of ``documents``, ``assignments`` and ``topic_terms`` as they were with the documents.
    """
    gone = from_rows(spark, [(doc_id,) for doc_id in ids], IDS)
    documents = load(spark, store_uri, "documents", version=versions["documents"]).join(F.broadcast(gone), "doc_id")
    # a term may have become too rare, which sums cannot tell; or a Java with other dictionaries has divided the texts into other words
    if config.terms.min_df > 1 or not documents.where(is_unspaced(F.col("text"))).isEmpty():
        terms.count_terms(spark, config.terms, store_uri=store_uri, cores=cores, txn=txn)
        return
    assignments = load(spark, store_uri, "assignments", version=versions["assignments"])
    counted = terms.counts(terms.with_topics(spark, documents, assignments, cores), config.terms, dictionaries=has_dictionaries(spark))
    less = counted.select("topic_id", "term", *((-F.col(name)).alias(name) for name in terms.COUNTED[2:]))
    held = load(spark, store_uri, "topic_terms", version=versions["topic_terms"]).select(*terms.COUNTED)
    terms.write_terms(spark, config.terms, [held, less], store_uri=store_uri, classes=classes, txn=txn)
