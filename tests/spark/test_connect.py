"""The same code over Spark Connect: ingest and term counts against a local server, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("grpc", reason="needs the extra 'connect'")

_JOB = """
import json, sys
from pathlib import Path

from pyspark.sql import functions as F

from spark.ingest import ingest
from spark.jars import jar_folder
from spark.session import start, stop
from spark.tables import load, table_uri
from spark.terms import count_terms
from topicscale.config import Config

jars = ":".join(map(str, sorted(jar_folder().glob("*.jar"))))
conf = {
    "spark.driver.extraClassPath": jars,
    "spark.driver.extraJavaOptions": "-Djava.locale.providers=CLDR,SPI",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.connect.grpc.binding.address": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.log.level": "ERROR",
    "spark.sql.shuffle.partitions": "2",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
path, store = sys.argv[1:]
config = Config.from_dict({"input": {"paths": [path]}, "spark": {"remote": "local[1]", "conf": conf}})
spark = start(config.spark)
kind = type(spark).__module__
result = ingest(spark, config, store_uri=store, txn={"documents": ("ingest", 1)})
documents = load(spark, store, "documents")
topics = documents.select("doc_id", "partition_id", F.lit(0).alias("topic_id"), F.lit(0.5).cast("float").alias("probability"))
topics.write.format("delta").save(table_uri(store, "assignments"))
terms = count_terms(spark, config.terms, store_uri=store, cores=[0.2], versions={"documents": 0, "assignments": 0})
rows = sorted(row["term"] for row in load(spark, store, "topic_terms").collect())
stop(spark)
print(json.dumps([kind, result.documents, result.quarantined, terms.rows, rows]))
"""


def test_ingest_and_term_counts_run_over_connect(tmp_path):
    path = tmp_path / "docs.csv"
    path.write_bytes("text\nred apples\ngreen apples\n今天天气\n".encode() + b"broken \xff\n")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _JOB, str(path), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=root,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kind, documents, quarantined, rows, terms = json.loads(done.stdout.splitlines()[-1])
    assert kind.startswith("pyspark.sql.connect")
    assert (documents, quarantined) == (3, {"undecodable": 1})
    assert (rows, terms) == (5, ["apples", "green", "red", "今天", "天气"])
