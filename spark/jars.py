"""The jars Spark needs besides its own: fetched once at set-up (``python -m spark.jars``), found offline afterwards.

Delta is what tables are written with. The ICU locale provider gives Java's word iterator, and so Spark's
``sentences`` function, dictionaries for Chinese, Japanese, Thai, Lao, Khmer and Burmese.

At the end of set-up one small session writes a table, and the JVM leaves an archive of the classes it loaded: later
sessions map that file and start in about half the time (class data sharing, JEP 350).
"""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def jar_folder() -> Path:
    """Return the folder inside this Python environment that holds the jars once they are fetched."""
    return Path(sys.prefix) / "share" / "topicscale" / "jars"


def archive(folder: Path) -> Path:
    """Return where the class archive that goes with a folder of jars lies; the file may not exist."""
    return folder / "classes.jsa"


def packages() -> list[str]:
    """Return the Maven coordinates of the jars, for the installed versions of Spark and Delta."""
    spark = ".".join(importlib.metadata.version("pyspark").split(".")[:2])
    delta = importlib.metadata.version("delta-spark")
    return [f"io.delta:delta-spark_{spark}_2.13:{delta}", "com.ibm.icu:icu4j-localespi:77.1"]


def fetch_jars(target: Path | None = None) -> list[Path]:
    """Return the jars in ``target``, fetched through Spark's own resolver where the folder lacks them.

    What Spark ships itself is not fetched a second time: two versions of a library on one class path is the classic
    way to break it.

    Raises
    ------
    ResourceError
        The jars cannot be resolved, or Java is missing.
    """
    from spark.session import start, stop
    from topicscale.config import SparkConfig

    target = target or jar_folder()
    wanted = target / "packages.txt"
    if wanted.exists() and wanted.read_text().split() == packages():
        return sorted(target.glob("*.jar"))
    with tempfile.TemporaryDirectory() as scratch:
        conf = {
            "spark.jars.ivy": scratch,
            "spark.jars.excludes": ",".join(f"*:{name}" for name in _shipped()),
            "spark.jars.packages": ",".join(packages()),
        }
        nowhere = Path(scratch) / "none"
        # Delta's classes are on the session's own loader only, which is enough to fetch them
        stop(start(SparkConfig(master="local[1]", conf=conf), jars=nowhere))
        fetched = sorted((Path(scratch) / "jars").glob("*.jar"))
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
        for jar in fetched:
            shutil.copy(jar, target / jar.name)
    wanted.write_text("\n".join(packages()) + "\n")
    return sorted(target.glob("*.jar"))


def make_archive(folder: Path | None = None) -> Path:
    """Return the class archive, made by one small session that does on six documents what a job does."""
    from spark.session import start, stop
    from topicscale.config import SparkConfig

    folder = folder or jar_folder()
    made = archive(folder)
    if made.exists():
        return made
    # the archive is bound to the class path and collector of the session that makes it: let `start` choose both
    session = start(SparkConfig(), jars=folder, brief=True, record_classes=True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            _rehearse(session, Path(scratch))
    finally:
        stop(session)
    return made


def _rehearse(session: SparkSession, scratch: Path) -> None:
    """Do on six documents what a job does, so that the classes it needs are loaded."""
    from pyspark.sql import functions as F

    from spark.ingest import ingest
    from spark.reuse import vectors_to_reuse
    from spark.tables import load, table_uri
    from spark.terms import count_terms
    from topicscale.config import Config

    store = str(scratch / "store")
    (scratch / "input.csv").write_text("text,kind\nred apples,a\ngreen apples,a\n,b\nold cars,b\n新しい車,b\nnew cars,b\n")
    config = Config.from_dict({"input": {"paths": [str(scratch / "input.csv")]}})
    for version in (1, 2):
        ingest(session, config, store_uri=store, txn=dict.fromkeys(("documents", "quarantine", "partitions"), ("set-up", version)))
    documents = load(session, store, "documents")
    topics = documents.select("doc_id", "partition_id", F.length("text_hash").alias("topic_id"))
    topics.write.format("delta").partitionBy("partition_id").save(table_uri(store, "assignments"))
    count_terms(session, config.terms, store_uri=store, versions={"documents": 1, "assignments": 0})
    vectors = documents.select(
        "doc_id", "partition_id", "text_hash", F.lit("space").alias("space"), F.array(F.lit(1.0).cast("float")).alias("vector")
    )
    vectors.write.format("delta").partitionBy("partition_id").save(table_uri(store, "embeddings"))
    vectors_to_reuse(session, store_uri=store, space="space", target=str(scratch / "vectors"))


def _shipped() -> list[str]:
    import pyspark

    return sorted({jar.name.rsplit("-", 1)[0] for jar in (Path(pyspark.__file__).parent / "jars").glob("*.jar")})


if __name__ == "__main__":
    if sys.argv[1:] == ["--list"]:  # as spark-submit's --jars takes them
        print(",".join(map(str, fetch_jars())))
    else:
        for jar in fetch_jars():
            print(jar.name)
        print(make_archive().name)
