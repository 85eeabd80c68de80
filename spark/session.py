"""Start and stop Spark: a local session with Delta by default, a cluster's, or a remote one over Spark Connect.

Nothing else in this package touches what Spark Connect lacks (RDDs, the Spark context, the JVM); the context appears
here only because a classic session must be given the process it runs in.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING

from spark.jars import archive, check, jar_folder, packages
from topicscale.config import SparkConfig, option_text
from topicscale.errors import ResourceError
from topicscale.storage import hadoop_settings

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

SECRET = "_SPARK_AUTH_SECRET"
"""The variable that holds a cluster's secret (``spark.authenticate.secret``): Spark's own name, which its executors are given."""
JAVA_VERSIONS = (17, 21)
"""Java releases that this Spark runs on."""

_LOCALES = "-Djava.locale.providers=CLDR,SPI"
_JAVA_HINT = "Install one with: sudo apt-get install -y openjdk-17-jre-headless (or set JAVA_HOME to an installed one)."


def start(
    config: SparkConfig,
    *,
    jars: Path | None = None,
    app_name: str = "topicscale",
    brief: bool = False,
    record_classes: bool = False,
    timeout: float = 300.0,
    say: Callable[[str], None] = lambda _: None,
    remote: Iterable[str] = (),
) -> SparkSession:
    """Return a running session, with Delta, that ``config`` describes; where this process runs Spark already, a further one in it.

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
    timeout
        Seconds that work may wait for an executor of a cluster; then it is cancelled. Spark itself would wait for ever.
    say
        Called with a line for people while work waits.
    remote
        Kinds of object stores (s3, gs, abfss) that it must reach, by the settings that :func:`topicscale.storage.use` was given.

    Raises
    ------
    ResourceError
        Java or a kind's jars are missing, Java is too old, the server or master does not answer, or the JVM ended while starting.
    """
    if config.remote or config.connects:
        return _connect(config, app_name, timeout, remote)
    # in this process a second session would share the first one's JVM and ignore most of its settings
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    theirs = running()
    if theirs is not None:
        if (kind := _lacking(theirs, remote)) is not None:
            raise ResourceError(
                f"The Spark that this process runs lacks {kind}. Stop it first (spark.stop()), or start it with what "
                "`python -m spark.jars --list` names in spark.jars, spark.sql.extensions=io.delta.sql.DeltaSparkSessionExtension and "
                "spark.sql.catalog.spark_catalog=org.apache.spark.sql.delta.catalog.DeltaCatalog."
            )
        if not hasattr(theirs, "newSession"):  # one of Connect
            return theirs
        # settings of its own: times are read in UTC, and what reading needs is not left behind
        ours = theirs.newSession()
        for key, value in theirs.conf.getAll.items():
            if ours.conf.get(key, None) != value:  # what was set on theirs: where data are, and by which keys they are had
                with contextlib.suppress(Exception):  # of what only a new JVM could have
                    ours.conf.set(key, value)
        for key in _OWN:
            ours.conf.set(key, _SESSION[key])
        return ours
    if "PYSPARK_GATEWAY_PORT" in os.environ:
        session = _submitted(config, app_name, tuple(remote))
        _watch(session.sparkContext, timeout, say)
        return session
    if (config.where or "").startswith("spark://"):
        _knock(config.where or "", 7077, "Spark master")
    if SparkContext._gateway is not None and SparkContext._active_spark_context is None:
        SparkContext._gateway.shutdown()  # of a session that was stopped: a context would begin in its JVM, which lacks Delta
        SparkContext._gateway = SparkContext._jvm = None
    check(remote)
    _own_home(say)
    settings = _settings(
        config, jars=jars or jar_folder(), app_name=app_name, brief=brief, record_classes=record_classes, remote=tuple(remote)
    )
    conf = SparkConf(loadDefaults=False).setAll(list(settings.items()))
    log = tempfile.TemporaryFile()  # noqa: SIM115  the JVM writes to it for as long as it lives
    try:
        # the JVM's own streams go to a file: what it says at start-up belongs in an error message, not on a console
        with _alone() if _is_local(config) else contextlib.nullcontext():
            gateway = launch_gateway(conf, popen_kwargs={"stdout": log, "stderr": log})
        if SECRET in os.environ and not _is_local(config):
            # now, and not before: the gateway puts what it is given on a command line
            conf.set("spark.authenticate", "true").set("spark.authenticate.secret", os.environ[SECRET])
        context = SparkContext(conf=conf, gateway=gateway)
        # the server that collects accumulators prints a traceback when the JVM ends before it does, as all of a group do at a SIGTERM
        context._accumulatorServer.handle_error = lambda *_: None
    except Exception as error:
        raise ResourceError(_why(error, log)) from error
    _watch(context, timeout, say)
    return SparkSession(context)


def running() -> SparkSession | None:
    """Return the session that this process runs, whichever thread began it: Spark alone tells of the calling thread's."""
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    if (active := SparkSession.getActiveSession()) is not None:
        return active
    context = SparkContext._active_spark_context
    return None if context is None else SparkSession(context)  # that context's default one


def activate(spark: SparkSession) -> None:
    """Make a classic session the active one again: frames that are made of rows make their own active."""
    if spark.getActiveSession() is not spark and hasattr(spark, "newSession"):
        spark._jvm.SparkSession.setActiveSession(spark._jsparkSession)
        type(spark)._activeSession = spark


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
    found = re.search(r'version "((\d+)[^"]*)"', shown.stderr + shown.stdout)
    release = int(found[2]) if found else 0
    if release < JAVA_VERSIONS[0]:
        raise ResourceError(f"Spark needs Java {wanted}. Got {found[1] if found else 'an unknown version'!r} instead. {_JAVA_HINT}")
    return release


def _own_home(say: Callable[[str], None]) -> None:
    """Let the Spark start that came with pyspark, where SPARK_HOME names another version's.

    pyspark would start that one, whose JVM understands neither this pyspark nor Delta's jars.
    """
    import pyspark

    if pyspark.__version__ != (wanted := version("pyspark")):
        raise ResourceError(
            f"topicscale needs pyspark {wanted}, and Python takes {pyspark.__version__} from {Path(pyspark.__file__).parent}. "
            "Take that folder out of PYTHONPATH."
        )
    home = os.environ.get("SPARK_HOME")
    if home and not any(Path(home, "jars").glob(f"spark-core_*-{pyspark.__version__}.jar")):
        os.environ["SPARK_HOME"] = str(Path(pyspark.__file__).parent)
        say(f"SPARK_HOME is not used: there is no Spark {pyspark.__version__} in {home}. The one that came with pyspark is started.")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep what the environment says of other Sparks from one of this machine that is started within.

    These are a cluster's defaults, options for pyspark's shell, and the address of a network. A JVM also spells file names in the
    locale's characters, where Python takes UTF-8.
    """
    with tempfile.TemporaryDirectory() as empty:
        ours = {"SPARK_CONF_DIR": empty, "PYSPARK_SUBMIT_ARGS": "pyspark-shell", "SPARK_LOCAL_IP": "127.0.0.1"}
        if "utf" not in (os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or "").lower():
            ours["LC_ALL"] = "C.UTF-8"
        theirs = {name: os.environ.get(name) for name in ours}
        os.environ.update(ours)
        try:
            yield
        finally:
            for name, value in theirs.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def said(error: BaseException) -> str | None:
    """Return in a line what an error of Spark says, and None for another's. Its JVM is asked, so it must not have been stopped."""
    if type(error).__module__.partition(".")[0] not in ("py4j", "pyspark"):
        return None
    text = ""
    with contextlib.suppress(Exception):  # the JVM died, and has taken it along
        cause = getattr(error, "java_exception", None)
        while cause is not None and cause.getCause() is not None:
            cause = cause.getCause()
        text = str(error) if cause is None else cause.toString()
    return " ".join(text.split("\n\nJVM stacktrace")[0].split("\n\tat ")[0].split())[:1000] or type(error).__name__


def _connect(config: SparkConfig, app_name: str, timeout: float, kinds: Collection[str] = ()) -> SparkSession:
    from pyspark.sql import SparkSession

    remote = config.where
    assert remote is not None
    if config.connects:
        _knock(remote, 15002, "Spark Connect server")
    builder = SparkSession.builder.remote(remote).appName(app_name)
    for key, value in config.conf.items():
        builder = builder.config(key, option_text(value))

    def connected() -> SparkSession:
        session = builder.create() if config.connects else builder.getOrCreate()
        session.conf.set("spark.sql.session.timeZone", "UTC")  # the first call that needs an answer
        for key, value in _places(kinds).items():
            session.conf.set(key, value)  # a session's settings are its file systems' too
        return session

    try:
        return _within(timeout, connected)
    except Exception as error:
        raise ResourceError(f"The Spark Connect server at {_shown(remote)!r} does not answer: {_first_line(error)}") from error


def _places(kinds: Collection[str]) -> dict[str, str]:
    """Return where a server's session finds object stores. Where credentials come from is the server's own business."""
    settings = {key.removeprefix("spark.hadoop."): value for key, value in hadoop_settings(tuple(kinds)).items()}
    told = ["fs.s3a.endpoint", "fs.s3a.endpoint.region", "fs.s3a.connection.ssl.enabled", "fs.gs.storage.root.url"]
    if "fs.s3a.endpoint" in settings:
        told.append("fs.s3a.path.style.access")
    return {key: settings[key] for key in told if key in settings}


def _shown(address: str) -> str:
    """Return an address without its parameters, of which one may be a token."""
    return address.partition(";")[0]


def _within(seconds: float, call: Callable[[], SparkSession]) -> SparkSession:
    """Return what a call returns, or raise TimeoutError: the client tries for ever to agree on a certificate that does not fit."""
    ended: queue.Queue[tuple[SparkSession | None, Exception | None]] = queue.Queue()

    def run() -> None:
        try:
            ended.put((call(), None))
        except Exception as error:
            ended.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = ended.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s; is its certificate made for this name?") from None
    if error is not None:
        raise error
    assert value is not None
    return value


def _knock(addresses: str, port: int, what: str) -> None:
    """Raise ResourceError unless one of scheme://host:port,host:port listens: Spark's clients try again for minutes before they say so."""
    scheme, _, hosts = addresses.partition("://")
    error: Exception | None = None
    for one in hosts.split(","):
        try:
            address = urllib.parse.urlsplit(f"{scheme}://{one}")
            with socket.create_connection((address.hostname or "", address.port or port), timeout=20):
                return
        except (OSError, ValueError) as found:
            error = found
    raise ResourceError(f"The {what} at {_shown(addresses)!r} does not answer: {error}")


_SESSION = {
    "spark.log.level": "ERROR",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.sql.warehouse.dir": f"file://{tempfile.gettempdir()}/topicscale-warehouse",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.adaptive.enabled": "true",
    # per-file minima of ids and texts help no reader of ours, and would put texts into the log
    "spark.databricks.delta.stats.collect": "false",
}
"""What every session has, wherever it runs."""
_OWN = ("spark.sql.session.timeZone", "spark.sql.adaptive.enabled", "spark.databricks.delta.stats.collect")
"""Those of them that can differ among the sessions of one JVM."""
_CLASSES = {
    None: _SESSION["spark.sql.extensions"],
    "s3": "org.apache.hadoop.fs.s3a.S3AFileSystem",
    "gs": "org.apache.hadoop.fs.gs.GoogleHadoopFileSystem",
    "abfss": "org.apache.hadoop.fs.azurebfs.SecureAzureBlobFileSystem",
}
"""What is in Delta's jars, and in those that reach a kind of object store."""


def _submitted(config: SparkConfig, app_name: str, remote: tuple[str, ...]) -> SparkSession:
    """Return a session in the JVM that spark-submit started, on the master it was given."""
    from pyspark import SparkConf
    from pyspark.sql import SparkSession

    conf = SparkConf()
    for key, value in (_SESSION | {"spark.app.name": app_name, **hadoop_settings(remote)}).items():
        conf.setIfMissing(key, value)
    conf.setAll(list(_plain(config.conf).items()))
    started = SparkSession.builder.config(conf=conf).getOrCreate()
    if (kind := _lacking(started, remote)) is not None:
        listed = " ".join(("--list", *remote))
        raise ResourceError(f'spark-submit must be given {kind}: --jars "$(python -m spark.jars {listed})"')
    return started


def _lacking(spark: SparkSession, remote: Iterable[str]) -> str | None:
    """Return which jars a session of this process lacks."""
    jvm = getattr(spark, "_jvm", None)
    for kind in (None, *remote):
        if jvm is not None and not jvm.org.apache.spark.util.Utils.classIsLoadable(_CLASSES[kind]):
            return f"the jars that reach {kind}" if kind else "Delta's jars"
    return None


def _is_local(config: SparkConfig) -> bool:
    return (config.where or "local").startswith("local")


def _watch(context: SparkContext, timeout: float, say: Callable[[str], None]) -> None:
    if not context.master.startswith("local"):
        threading.Thread(target=_attend, args=(context, timeout, say), daemon=True).start()


def _attend(context: SparkContext, timeout: float, say: Callable[[str], None]) -> None:
    """Tell of work that waits for executors, and cancel it when it has waited too long."""
    master = context.master
    since = told = time.monotonic()
    while True:
        time.sleep(1)
        try:
            scala = context._jsc.sc()
            jobs = list(context.statusTracker().getActiveJobsIds())
            executors = scala.getExecutorMemoryStatus().size() - 1  # the driver is counted too
        except Exception:  # the session has ended, or its JVM has
            return
        now = time.monotonic()
        if executors or not jobs:
            since = told = now
        elif now - since > timeout:
            for job in jobs:
                scala.cancelJob(job, f"{master} gave no executor within {timeout:g} s. Add workers, or ask for less (spark.conf).")
        elif now - told > 10:
            told = now
            say(f"Spark's work waits for an executor of {master} ({now - since:.0f} s of at most {timeout:g}).")


def _settings(
    config: SparkConfig, *, jars: Path, app_name: str, brief: bool, record_classes: bool, remote: tuple[str, ...] = ()
) -> dict[str, str]:
    master = config.where or "local[*]"
    local = _is_local(config)
    found = sorted(jars.glob("*.jar")) if jars.is_dir() else []
    found += [jar for kind in remote for jar in sorted((jars / kind).glob("*.jar"))]
    java = [_LOCALES, "-Xlog:disable", "-Xlog:all=off"]
    settings = _SESSION | {
        "spark.app.name": app_name,
        "spark.master": master,
        "spark.submit.deployMode": "client",
        "spark.driver.memory": config.driver_memory,
    }
    if local:
        settings |= {
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.host": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.sql.shuffle.partitions": "8",
            "spark.databricks.delta.snapshotPartitions": "2",
        }
        # the parallel collector grows its heap to the limit and keeps it, beside the embedding; held to what is used, it takes
        # half the memory in the same time (100,000 documents: 0.7 in place of 1.3 GiB)
        parallel = ["-XX:+UseParallelGC", "-XX:MinHeapFreeRatio=10", "-XX:MaxHeapFreeRatio=30"]
        java += ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"] if brief else parallel
        if any("GC" in os.environ.get(name, "") for name in ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")):
            java = [option for option in java if not option.endswith("GC")]  # a JVM that is told two does not start
        # Spark splits these at blanks, but for those in quotes
        java.append(f'"-Djava.io.tmpdir={tempfile.gettempdir()}"')
        classes = archive(jars)
        if record_classes:
            java += [f'"-XX:ArchiveClassesAtExit={classes}"']
        elif found and classes.exists():
            java += [f'"-XX:SharedArchiveFile={classes}"', "-Xshare:auto"]
    if found and local:
        # on the class path, not in spark.jars: those are copied at every start, and cannot hold locale providers
        settings["spark.driver.extraClassPath"] = ":".join(map(str, found))
    elif found:
        settings["spark.jars"] = ",".join(map(str, found))
        # locale providers are found on the class path alone; executors have the folder where all machines have one image
        providers = ":".join(str(jar) for jar in found if "localespi" in jar.name)
        settings |= {f"spark.{side}.extraClassPath": providers for side in ("driver", "executor")}
        settings["spark.executor.extraJavaOptions"] = _LOCALES
    else:
        settings["spark.jars.packages"] = ",".join(packages())
        java += _proxies()
    settings["spark.driver.extraJavaOptions"] = " ".join(java)
    return settings | hadoop_settings(remote) | _plain(config.conf)


def _proxies() -> list[str]:
    """Return how the JVM is told of the environment's proxies, which it does not look for. Not their passwords: every user of the
    machine sees a process's arguments.
    """
    options = []
    found = urllib.request.getproxies_environment()
    for scheme in ("http", "https"):
        url = found.get(scheme, found.get("all", ""))
        parts = urllib.parse.urlsplit(url if "://" in url else f"//{url}")
        if parts.hostname and not parts.scheme.startswith("socks"):
            options += [f"-D{scheme}.proxyHost={parts.hostname}", f"-D{scheme}.proxyPort={parts.port or 80}"]
    if options and (without := [name.strip() for name in found.get("no", "").split(",") if name.strip()]):
        options.append(f"-Dhttp.nonProxyHosts={'|'.join(f'*{name}' if name.startswith('.') else name for name in without)}")
    return options


def _plain(conf: Mapping[str, object]) -> dict[str, str]:
    return {str(key): option_text(value) for key, value in conf.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _why(error: Exception, log: IO[bytes]) -> str:
    check_java()  # its message is the better one
    log.seek(0)
    said = [line for line in log.read().decode(errors="replace").splitlines() if "Exception" in line or "Error" in line or "error" in line]
    return f"Spark did not start: {(said or [_first_line(error)])[0].strip()}"
