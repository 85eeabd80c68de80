"""Starting and ending Spark: quietly, on loopback, and never outliving the job."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyspark
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from spark import session
from spark.jars import packages
from topicscale.config import SparkConfig
from topicscale.errors import ResourceError

ROOT = Path(__file__).parents[2]


def _python(code, **kwargs):
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def test_the_jvm_dies_with_a_killed_driver_and_says_nothing():
    code = (
        "import os, time\nfrom spark import session\nfrom topicscale.config import SparkConfig\n"
        "s = session.start(SparkConfig(master='local[1]'), brief=True)\nprint(s.range(3).count(), flush=True)\ntime.sleep(600)"
    )
    with _python(code) as driver:
        assert driver.stdout.readline().strip() == "3"
        jvms = [p for p in psutil.Process(driver.pid).children(recursive=True) if p.name() == "java"]
        assert jvms
        listening = [c.laddr.ip for p in jvms for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        driver.kill()
        assert driver.stderr.read() == ""
    gone, alive = psutil.wait_procs(jvms, timeout=60)
    assert not alive
    assert len(gone) == len(jvms)
    assert all(ip.removeprefix("::ffff:") in ("127.0.0.1", "::1") for ip in listening)


def test_stop_ends_the_jvm():
    code = (
        "import psutil\nfrom spark import session\nfrom topicscale.config import SparkConfig\n"
        "s = session.start(SparkConfig(master='local[1]'), brief=True)\nsession.stop(s)\n"
        "print([p.name() for p in psutil.Process().children(recursive=True)])"
    )
    out, _ = _python(code).communicate(timeout=240)
    assert out.strip() == "[]"


def test_a_missing_java_is_answered_with_the_command_to_type(monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ResourceError, match="apt-get install"):
        session.check_java()


def test_an_old_java_is_named(monkeypatch, tmp_path):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(ResourceError, match=r"Got '11\.0\.2' instead"):
        session.check_java()


def test_the_user_has_the_last_word_on_settings():
    config = SparkConfig(conf={"spark.sql.shuffle.partitions": 3, "spark.ui.enabled": True})
    settings = session._settings(config, jars=Path("nowhere"), app_name="x", brief=False, record_classes=False)
    assert (settings["spark.sql.shuffle.partitions"], settings["spark.ui.enabled"]) == ("3", "true")
    assert settings["spark.jars.packages"].split(",") == packages()


def test_the_jvm_fetches_jars_through_the_proxy_of_the_environment(monkeypatch):
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)
    assert session._proxies() == []
    monkeypatch.setenv("https_proxy", "http://anna:secret@proxy.corp:3128/")
    monkeypatch.setenv("no_proxy", "localhost, .corp")
    assert session._proxies() == ["-Dhttps.proxyHost=proxy.corp", "-Dhttps.proxyPort=3128", "-Dhttp.nonProxyHosts=localhost|*.corp"]
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    monkeypatch.setenv("HTTP_PROXY", "proxy.corp")
    assert session._proxies()[:2] == ["-Dhttp.proxyHost=proxy.corp", "-Dhttp.proxyPort=80"]
    settings = session._settings(SparkConfig(), jars=Path("nowhere"), app_name="x", brief=True, record_classes=False)
    assert "-Dhttps.proxyHost=proxy.corp" in settings["spark.driver.extraJavaOptions"]
    assert "secret" not in str(settings)


def test_the_spark_that_came_with_pyspark_is_started(monkeypatch, tmp_path):
    said: list[str] = []
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))  # where another version lies, on many engineers' machines
    session._own_home(said.append)
    assert os.environ["SPARK_HOME"] == str(Path(pyspark.__file__).parent)
    assert "SPARK_HOME is not used" in said.pop()
    session._own_home(said.append)
    assert not said, "it is there now"


def test_a_spark_of_this_process_must_know_delta_and_may_have_been_stopped():
    code = (
        "from pyspark.sql import SparkSession\nfrom spark import session\nfrom topicscale.config import SparkConfig\n"
        "from topicscale.errors import ResourceError\nplain = SparkSession.builder.master('local[1]').getOrCreate()\n"
        "try:\n    session.start(SparkConfig())\nexcept ResourceError as error:\n    print(error)\n"
        "plain.stop()\nours = session.start(SparkConfig(), brief=True)\nprint(session._lacking(ours, ()))\nsession.stop(ours)"
    )
    out, err = _python(code).communicate(timeout=120)
    refused, lacking = out.splitlines()
    assert "lacks Delta's jars. Stop it first" in refused, err
    assert lacking == "None"


def test_a_session_of_ones_own_keeps_its_settings_and_is_found_by_every_thread(spark):
    spark.conf.set("spark.sql.session.timeZone", "Asia/Tokyo")
    try:
        with ThreadPoolExecutor(1) as other:
            ours = other.submit(session.start, SparkConfig()).result()
        moment = ours.sql("SELECT CAST(TIMESTAMP_NTZ'2024-05-01 00:00:00' AS TIMESTAMP) AS at").select(F.unix_timestamp("at")).first()[0]
        assert moment == 1714521600, "midnight in UTC"
        assert spark.conf.get("spark.sql.session.timeZone") == "Asia/Tokyo"
        assert ours.sparkContext is spark.sparkContext
        spark.conf.set("fs.s3a.endpoint", "http://127.0.0.1:9")  # told when their session ran already
        assert session.start(SparkConfig()).conf.get("fs.s3a.endpoint") == "http://127.0.0.1:9"
        ours.createDataFrame([(1,)], "a int")
        assert SparkSession.getActiveSession() is ours
        session.activate(spark)
        assert SparkSession.getActiveSession() is spark
    finally:
        spark.conf.unset("fs.s3a.endpoint")
        spark.conf.set("spark.sql.session.timeZone", "UTC")


def test_a_session_of_connect_is_taken_as_it_is(monkeypatch):
    theirs = SimpleNamespace()
    monkeypatch.setattr(session, "running", lambda: theirs)
    assert session.start(SparkConfig()) is theirs


def test_another_pyspark_on_the_path_is_named(monkeypatch):
    monkeypatch.setattr(pyspark, "__version__", "3.5.1")
    with pytest.raises(ResourceError, match=r"takes 3\.5\.1 from .* out of PYTHONPATH"):
        session._own_home(print)


def test_an_address_is_said_without_its_token(monkeypatch):
    monkeypatch.setenv("SPARK_REMOTE", "sc://127.0.0.1:9/;use_ssl=true;token=not-for-logs")
    with pytest.raises(ResourceError, match="does not answer") as told:
        session.start(SparkConfig())
    assert "not-for-logs" not in str(told.value)


def test_a_server_that_does_not_answer_is_named():
    pytest.importorskip("grpc", reason="needs the extra 'connect'")
    started = time.monotonic()
    with pytest.raises(ResourceError, match="does not answer"):
        session.start(SparkConfig(remote="sc://127.0.0.1:1"))
    assert time.monotonic() - started < 60
