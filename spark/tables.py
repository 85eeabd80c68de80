"""Reading and replacing the store's Delta tables from Spark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, DataFrameWriter, Observation, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema

from spark.session import said
from topicscale import lease
from topicscale.errors import InputError
from topicscale.storage import spelt
from topicscale.tables import TABLES


def table_uri(store_uri: str, name: str) -> str:
    """Return the address of a table, as Spark's file systems spell it."""
    return spelt(f"{store_uri.rstrip('/')}/{name}")


def load(spark: SparkSession, store_uri: str, name: str, *, version: int | None = None) -> DataFrame:
    """Return a table, at a pinned version when one is given."""
    reader = spark.read.format("delta")
    if version is not None:
        reader = reader.option("versionAsOf", version)
    return reader.load(table_uri(store_uri, name))


def from_rows(spark: SparkSession, rows: Iterable[Sequence[Any]], schema: pa.Schema) -> DataFrame:
    """Return a data frame of rows in hand.

    It goes to Spark as Arrow. Rows of Python objects would be read by Python workers, on whatever is called ``python3`` where the
    executors run, which may be another version than this one, or be missing.
    """
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
    # the types are said, since Spark Connect infers none where there are no rows
    return spark.createDataFrame(pa.Table.from_arrays(arrays, schema=schema), from_arrow_schema(schema))


def write_frame(frame: DataFrame, uri: str) -> int:
    """Write a data frame of the caller's to an address, as Parquet, and return its number of rows, which it is not computed twice for.

    Raises
    ------
    InputError
        It cannot be computed, or written there.
    """
    counted = Observation()
    try:
        frame.observe(counted, F.count(F.lit(1)).alias("rows")).write.parquet(spelt(uri))
    except Exception as error:
        if (why := said(error)) is None:
            raise
        raise InputError(f"The data frame cannot be written to {uri!r}: {why}") from error
    return int(counted.get["rows"])


def replace_table(frame: DataFrame, store_uri: str, name: str, *, txn: Mapping[str, tuple[str, int]] | None = None) -> None:
    """Replace a table's rows and schema in one commit.

    With ``txn`` the commit carries the table's (application id, version), and Delta skips it when that version or a
    later one is there already: repeating the call changes nothing.

    Raises
    ------
    StoreError
        This run no longer holds the store.
    """
    writer = frame.write.format("delta").mode("overwrite").option("overwriteSchema", "true")
    if TABLES[name].partitioned:
        writer = writer.partitionBy("partition_id")
    if txn is not None and name in txn:
        application, version = txn[name]
        writer = writer.option("txnAppId", application).option("txnVersion", version)
    _save(writer, store_uri, name)


def replace_rows(frame: DataFrame, store_uri: str, name: str, *, where: str) -> None:
    """Replace the rows of a table that fit an SQL condition, in one commit; all of the frame's must fit it.

    Raises
    ------
    StoreError
        This run no longer holds the store.
    """
    _save(frame.write.format("delta").mode("overwrite").option("replaceWhere", where), store_uri, name)


def _save(writer: DataFrameWriter, store_uri: str, name: str) -> None:
    lease.check(store_uri)
    writer.save(table_uri(store_uri, name))
