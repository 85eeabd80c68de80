"""Start and stop Spark: a local session with Delta by default, a cluster's, or a remote one over Spark Connect.

Nothing else in this package touches what Spark Connect lacks (RDDs, the Spark context, the JVM); the context appears
here only because a classic session must be given the process it runs in.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from spark.jars import archive, check, jar_folder, packages
from topicscale.config import SparkConfig
from topicscale.errors import ResourceError
from topicscale.storage import hadoop_settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

JAVA_VERSIONS = (17, 21)
"""Java releases that this Spark runs on."""

_JAVA_HINT = "Install one with: sudo apt-get install -y openjdk-17-jre-headless (or set JAVA_HOME to an installed one)."


def start(
    config: SparkConfig,
    *,
    jars: Path | None = None,
    app_name: str = "topicscale",
    brief: bool = False,
    record_classes: bool = False,
    remote: Iterable[str] = (),
) -> SparkSession:
    """Return a running session, with Delta, that ``config`` describes.

    Parameters
    ----------
    config
        ``remote`` connects to a Spark Connect server; otherwise a JVM is started for ``master`` (all processors of
        this machine, on loopback, without a web page, when None). ``conf`` has the last word on every setting.
    jars
        Folder with the jars that ``python -m spark.jars`` fetched; None takes the environment's. Without them Spark
        is told the packages' names and fetches them itself.
    brief
        The work ahead is small: stop the JVM's compiler early. Half the processor time of start-up and first writes,
        about twice the time per row.
    record_classes
        Leave an archive of the loaded classes beside the jars when the session stops (set-up does).
    remote
        Kinds of object stores (s3, gs, abfss) that it must reach, by the settings that :func:`topicscale.storage.use` was given.

    Raises
    ------
    ResourceError
        Java or a kind's jars are missing, Java is too old, the server does not answer, or the JVM ended while starting.
    """
    if config.remote:
        return _connect(config, app_name)
    # in this process a second session would share the first one's JVM and ignore most of its settings
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    running = SparkSession.getActiveSession()
    if running is not None:
        return running
    check(remote)
    settings = _settings(
        config, jars=jars or jar_folder(), app_name=app_name, brief=brief, record_classes=record_classes, remote=tuple(remote)
    )
    conf = SparkConf(loadDefaults=False).setAll(list(settings.items()))
    log = tempfile.TemporaryFile()  # noqa: SIM115  the JVM writes to it for as long as it lives
    try:
        # the JVM's own streams go to a file: what it says at start-up belongs in an error message, not on a console
        gateway = launch_gateway(conf, popen_kwargs={"stdout": log, "stderr": log})
        context = SparkContext(conf=conf, gateway=gateway)
    except Exception as error:
        raise ResourceError(_why(error, log)) from error
    return SparkSession(context)


def stop(spark: SparkSession) -> None:
    """End the session, and the JVM with its memory where this process started one."""
    gateway = None
    process: subprocess.Popen[bytes] | None = None
    if hasattr(spark, "_sc"):
        from pyspark import SparkContext

        gateway, SparkContext._gateway = SparkContext._gateway, None
        SparkContext._jvm = None
    process = getattr(gateway, "proc", None)
    try:
        spark.stop()
    except Exception:
        # a JVM that died cannot be asked to end, and the error that matters is the one that its death caused
        if process is None or process.poll() is None:
            raise
    if gateway is not None:
        gateway.shutdown()
    if process is not None and process.stdin is not None:
        process.stdin.close()  # the JVM ends when its input does; so it does when this process is killed
        try:
            process.wait(timeout=60)  # an archive of classes is written now
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def check_java() -> int:
    """Return the release of the Java that Spark would use.

    Raises
    ------
    ResourceError
        There is none, or it is not one that this Spark runs on. The message holds the command to type.
    """
    from topicscale.config import java_home

    home = java_home()
    command = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    wanted = " or ".join(map(str, JAVA_VERSIONS))
    if command is None or not Path(command).exists():
        raise ResourceError(f"Spark needs Java {wanted}, and there is no java {'in JAVA_HOME' if home else 'on the PATH'}. {_JAVA_HINT}")
    shown = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=60, check=False)
    quoted = (shown.stderr + shown.stdout).split('"')
    release = int(quoted[1].split(".")[0].split("-")[0]) if len(quoted) > 1 and quoted[1][:1].isdigit() else 0
    if release < JAVA_VERSIONS[0]:
        raise ResourceError(
            f"Spark needs Java {wanted}. Got {quoted[1] if len(quoted) > 1 else 'an unknown version'!r} instead. {_JAVA_HINT}"
        )
    return release


def _connect(config: SparkConfig, app_name: str) -> SparkSession:
    from pyspark.sql import SparkSession

    assert config.remote is not None
    if config.remote.startswith("sc://"):
        _knock(config.remote)
    builder = SparkSession.builder.remote(config.remote).appName(app_name)
    for key, value in config.conf.items():
        builder = builder.config(key, _text(value))
    try:
        session = builder.create() if config.remote.startswith("sc://") else builder.getOrCreate()
        session.version  # noqa: B018  the first call that needs an answer
        session.conf.set("spark.sql.session.timeZone", "UTC")
    except Exception as error:
        raise ResourceError(f"The Spark Connect server at {config.remote!r} does not answer: {_first_line(error)}") from error
    return session


def _knock(remote: str) -> None:
    """Raise ResourceError unless something listens there: the client itself tries again for ten minutes."""
    address = urllib.parse.urlsplit(remote)
    try:
        with socket.create_connection((address.hostname or "", address.port or 15002), timeout=20):
            pass
    except (OSError, ValueError) as error:
        raise ResourceError(f"The Spark Connect server at {remote!r} does not answer: {_first_line(error)}") from error


def _settings(
    config: SparkConfig, *, jars: Path, app_name: str, brief: bool, record_classes: bool, remote: tuple[str, ...] = ()
) -> dict[str, str]:
    local = config.master is None or config.master.startswith("local")
    found = sorted(jars.glob("*.jar")) if jars.is_dir() else []
    found += [jar for kind in remote for jar in sorted((jars / kind).glob("*.jar"))]
    java = ["-Djava.locale.providers=CLDR,SPI", "-Xlog:disable", "-Xlog:all=off"]
    settings = {
        "spark.app.name": app_name,
        "spark.master": config.master or "local[*]",
        "spark.submit.deployMode": "client",
        "spark.driver.memory": config.driver_memory,
        "spark.pyspark.python": sys.executable,
        "spark.log.level": "ERROR",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.warehouse.dir": str(Path(tempfile.gettempdir()) / "topicscale-warehouse"),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.adaptive.enabled": "true",
        # per-file minima of ids and texts help no reader of ours, and would put texts into the log
        "spark.databricks.delta.stats.collect": "false",
    }
    if local:
        settings |= {
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": "8",
            "spark.databricks.delta.snapshotPartitions": "2",
        }
        java += ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"] if brief else ["-XX:+UseParallelGC"]
        classes = archive(jars)
        if record_classes:
            java += [f"-XX:ArchiveClassesAtExit={classes}"]
        elif found and classes.exists():
            java += [f"-XX:SharedArchiveFile={classes}", "-Xshare:auto"]
    if found and local:
        # on the class path, not in spark.jars: those are copied at every start, and cannot hold locale providers
        settings["spark.driver.extraClassPath"] = ":".join(map(str, found))
    elif found:
        settings["spark.jars"] = ",".join(map(str, found))
    else:
        settings["spark.jars.packages"] = ",".join(packages())
    settings["spark.driver.extraJavaOptions"] = " ".join(java)
    return settings | hadoop_settings(remote) | _plain(config.conf)


def _plain(conf: Mapping[str, object]) -> dict[str, str]:
    return {str(key): _text(value) for key, value in conf.items()}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _why(error: Exception, log: IO[bytes]) -> str:
    check_java()  # its message is the better one
    log.seek(0)
    said = [line for line in log.read().decode(errors="replace").splitlines() if "Exception" in line or "Error" in line or "error" in line]
    return f"Spark did not start: {(said or [_first_line(error)])[0].strip()}"
