"""The jars Spark needs besides its own: fetched once at set-up (``python -m spark.jars``), found offline afterwards.

Those that reach object stores are fetched when asked for (``python -m spark.jars s3``), into a folder each.

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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from topicscale.errors import ResourceError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_AWS = "2.35.4"
"""What hadoop-aws was built with."""
_STORES = {
    # the parts of the SDK that S3A uses: the bundle that hadoop-aws names holds every service of AWS, 686 MB for 12
    "s3": [
        "org.apache.hadoop:hadoop-aws",
        *(f"software.amazon.awssdk:{part}:{_AWS}" for part in ("s3", "s3-transfer-manager", "sts", "apache-client", "netty-nio-client")),
    ],
    "gs": ["org.apache.hadoop:hadoop-gcp"],
    "abfss": ["org.apache.hadoop:hadoop-azure"],
}
_LEFT_OUT = ("software.amazon.awssdk:bundle",)
_LIST = "packages.txt"


def jar_folder() -> Path:
    """Return the folder inside this Python environment that holds the jars once they are fetched."""
    return Path(sys.prefix) / "share" / "topicscale" / "jars"


def archive(folder: Path) -> Path:
    """Return where the class archive that goes with a folder of jars lies; the file may not exist."""
    return folder / "classes.jsa"


def packages(kind: str | None = None) -> list[str]:
    """Return the Maven coordinates of the jars, for the installed versions of Spark and Delta; or of those for a kind of object store."""
    if kind is not None:
        hadoop = _version("hadoop-client-api")
        return [f"{name}:{hadoop}" if ":" not in name.partition(":")[2] else name for name in _STORES[kind]]
    spark = ".".join(importlib.metadata.version("pyspark").split(".")[:2])
    delta = importlib.metadata.version("delta-spark")
    return [f"io.delta:delta-spark_{spark}_2.13:{delta}", "com.ibm.icu:icu4j-localespi:77.1"]


def check(kinds: Iterable[str]) -> None:
    """Raise ResourceError unless the jars for these kinds of object stores were fetched."""
    for kind in kinds:
        if not _complete(jar_folder() / kind, kind):
            raise ResourceError(
                f"Spark reaches {kind}:// with jars that are not here yet. Fetch them once with: {sys.executable} -m spark.jars {kind}"
            )


def fetch_jars(target: Path | None = None, *, kind: str | None = None) -> list[Path]:
    """Return the jars in ``target``, fetched through Spark's own resolver where the folder lacks them.

    What Spark ships itself is not fetched a second time: two versions of a library on one class path is the classic
    way to break it.

    Parameters
    ----------
    target : Path, optional
        This environment's folder by default.
    kind : str, optional
        Those that reach a kind of object store (s3, gs, abfss), instead of Delta's.

    Raises
    ------
    ResourceError
        The jars cannot be resolved, or Java is missing.
    """
    from spark.session import start, stop
    from topicscale.config import SparkConfig

    target = target or (jar_folder() if kind is None else jar_folder() / kind)
    if _complete(target, kind):
        return sorted(target.glob("*.jar"))
    with tempfile.TemporaryDirectory() as scratch:
        excluded = [*(f"*:{name}" for name in _shipped()), *_LEFT_OUT]
        conf = {
            "spark.jars.ivy": scratch,
            "spark.jars.excludes": ",".join(excluded),
            "spark.jars.packages": ",".join(packages(kind)),
        }
        nowhere = Path(scratch) / "none"
        # Delta's classes are on the session's own loader only, which is enough to fetch them
        stop(start(SparkConfig(master="local[1]", conf=conf), jars=nowhere))
        fetched = sorted((Path(scratch) / "jars").glob("*.jar"))
        target.mkdir(parents=True, exist_ok=True)
        for old in (*target.glob("*.jar"), target / _LIST, archive(target)):
            old.unlink(missing_ok=True)
        for jar in fetched:
            shutil.copy(jar, target / jar.name)
    (target / _LIST).write_text("\n".join(packages(kind)) + "\n")
    return sorted(target.glob("*.jar"))


def _complete(folder: Path, kind: str | None) -> bool:
    wanted = folder / _LIST
    return wanted.exists() and wanted.read_text().split() == packages(kind)


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
    (scratch / "input.csv").write_text("text,kind\nred apples,a\ngreen apples,a\n,b\nold cars,b\n新しい車,b\nnew cars,b\n", "utf-8")
    config = Config.from_dict({"input": {"paths": [str(scratch / "input.csv")]}})
    for version in (1, 2):
        ingest(session, config, store_uri=store, txn=dict.fromkeys(("documents", "quarantine", "partitions"), ("set-up", version)))
    documents = load(session, store, "documents")
    topics = documents.select(
        "doc_id", "partition_id", F.length("text_hash").alias("topic_id"), F.lit(1.0).cast("float").alias("probability")
    )
    topics.write.format("delta").partitionBy("partition_id").save(table_uri(store, "assignments"))
    count_terms(session, config.terms, store_uri=store, cores=[0.0], versions={"documents": 1, "assignments": 0})
    vectors = documents.select(
        "doc_id", "partition_id", "text_hash", F.lit("space").alias("space"), F.array(F.lit(1.0).cast("float")).alias("vector")
    )
    vectors.write.format("delta").partitionBy("partition_id").save(table_uri(store, "embeddings"))
    vectors_to_reuse(session, store_uri=store, space="space", target=str(scratch / "vectors"))


def _shipped() -> list[str]:
    import pyspark

    return sorted({jar.name.rsplit("-", 1)[0] for jar in (Path(pyspark.__file__).parent / "jars").glob("*.jar")})


def _version(name: str) -> str:
    """Return the version of a jar that Spark ships."""
    import pyspark

    (jar,) = (Path(pyspark.__file__).parent / "jars").glob(f"{name}-[0-9]*.jar")
    return jar.stem.removeprefix(f"{name}-")


def main(kinds: Sequence[str]) -> None:
    """Fetch the jars that are named, Delta's without a name; ``--list`` prints Delta's and those, as spark-submit's --jars takes them."""
    listing, kinds = list(kinds[:1]) == ["--list"], [kind for kind in kinds if kind != "--list"]
    if unknown := sorted(set(kinds) - set(_STORES)):
        raise SystemExit(f"Usage: python -m spark.jars [--list] [{'|'.join(_STORES)}]. Got {unknown[0]!r} instead.")
    if listing:
        print(",".join(str(jar) for kind in (None, *kinds) for jar in fetch_jars(kind=kind)))
        return
    for kind in kinds or (None,):
        for jar in fetch_jars(kind=kind):
            print(jar.name)
    if not kinds:
        print(make_archive().name)


if __name__ == "__main__":
    main(sys.argv[1:])
