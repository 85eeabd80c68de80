"""Jobs on a real cluster of two Ray and two Spark workers: the tables of a local run, whatever is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from jobs import cli, submit
from tests import command, corpus
from tests.cluster import Cluster
from tests.jobs.compare import contents
from tests.jobs.test_faults import POINTS
from topicscale.errors import RequestError

pytest.importorskip("aiohttp", reason="needs the extra 'cluster'")

LIMIT = 540.0
OPTIONS = ["--id-column", "id", "--partitions", "4", "--min-topic-size", "5"]
# one processor a worker, here and there: results depend on the number of threads
OPTIONS += ["--set", "embedding.batch_tokens=256", "--set", "ray.cpus_per_actor=1"]
pytestmark = pytest.mark.timeout(900)


def topicscale(*arguments: str, env: dict[str, str] | None = None, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT, env=env
    )
    assert code is None or done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done


# for a small corpus: Spark's own defaults would make hundreds of tasks of it
SPARK = ["--set", "spark.conf={spark.sql.shuffle.partitions: 2, spark.databricks.delta.snapshotPartitions: 2, spark.executor.memory: 512m}"]


def submitted(cluster: Cluster, source: Path, store: Path, *more: str) -> list[str]:
    return [
        "submit",
        "run",
        "--input",
        str(source),
        "--store",
        str(store),
        *OPTIONS,
        *SPARK,
        "--ray",
        cluster.ray,
        "--spark",
        cluster.spark,
        *more,
    ]


@pytest.fixture(scope="module")
def cluster():
    with Cluster() as made:
        for number in (1, 2):
            made.add_ray(number)
            made.add_spark(number)
        yield made


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return corpus.write_csv(tmp_path_factory.mktemp("input") / "corpus.csv", corpus.rows())


@pytest.fixture(scope="module")
def local(source, tmp_path_factory, spark, ray_layout) -> dict[str, list[str]]:
    store = tmp_path_factory.mktemp("stores") / "local"
    assert cli.main(["run", "--input", str(source), "--store", str(store), *OPTIONS, "--quiet"]) == 0
    return contents(str(store))


def background(cluster, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Begin a command of which all that is said goes to a file."""
    with log.open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=cluster.client,
        )


def until(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_a_submitted_job_makes_the_tables_of_a_local_one_and_tells_no_secret(cluster, source, local, tmp_path) -> None:
    store, config = tmp_path / "store", tmp_path / "mine.yaml"
    config.write_text("topics: {rounds: 3}\n")
    lines: set[str] = set()
    log = tmp_path / "log"
    job = background(cluster, log, *submitted(cluster, source, store, "--config", str(config), "--job-id", "first"))
    while job.poll() is None:
        for process in psutil.process_iter(["cmdline"]):
            lines.add(" ".join(process.info["cmdline"] or []))
        time.sleep(2)
    said = log.read_text()
    assert job.returncode == 0, said[-3000:]
    assert "200 documents" in said
    assert "first: succeeded" in said
    assert contents(str(store)) == local

    again = topicscale(*submitted(cluster, source, store, "--config", str(config), "--json"), env=cluster.client)
    assert json.loads(again.stdout)["status"] == "SUCCEEDED"
    assert '"nothing_to_do": true' in again.stderr
    (newer, older) = json.loads(topicscale("jobs", "list", "--ray", cluster.ray, "--json", env=cluster.client).stdout)
    assert (older["job"], older["command"], older["store"], older["status"], older["exit_code"]) == (
        "first",
        "run",
        str(store),
        "SUCCEEDED",
        0,
    )
    assert newer["status"] == "SUCCEEDED"
    assert "200 documents" in topicscale("jobs", "logs", "first", "--ray", cluster.ray, env=cluster.client).stdout
    told = json.loads(topicscale("jobs", "logs", "first", "--json", "--ray", cluster.ray, env=cluster.client).stdout)
    assert (told["job"], "200 documents" in told["log"]) == ("first", True)

    topicscale("report", "--store", str(store), "--output", str(tmp_path / "report.html"))
    private = {cluster.folder / "spark.conf"}
    for secret in (cluster.token, cluster.secret):
        assert not [line for line in lines if secret in line], "a secret is on a command line"
        for folder in (cluster.folder, tmp_path):
            for path in folder.rglob("*"):
                if path.is_file() and path not in private:
                    assert secret.encode() not in path.read_bytes(), f"a secret is in {path}"


def test_a_wrong_request_is_answered_with_its_own_exit_code(cluster, tmp_path) -> None:
    done = topicscale(*submitted(cluster, tmp_path / "none.csv", tmp_path / "store"), env=cluster.client, code=2)
    assert "There is no input" in done.stdout


def test_without_the_token_a_client_gets_nothing(cluster, tmp_path) -> None:
    nobody = {key: value for key, value in cluster.client.items() if not key.startswith("RAY_")} | {"HOME": str(tmp_path)}
    for env, why in [(nobody, "Missing"), (nobody | {"RAY_AUTH_TOKEN": "0" * 64}, "Invalid")]:
        for asked in (["list"], ["logs", "first"], ["stop", "first"]):
            done = topicscale("jobs", *asked, "--ray", cluster.ray, env=env, code=2)
            assert why in done.stderr
            assert "RAY_AUTH_TOKEN" in done.stderr
            assert not done.stdout


@pytest.mark.slow
def test_a_job_can_be_stopped_and_gone_on_with(cluster, source, local, tmp_path) -> None:
    store = tmp_path / "store"
    topicscale(*submitted(cluster, source, store, "--no-wait", "--job-id", "halted"), env=cluster.client)
    until(lambda: POINTS["embedded"](store), "nothing was embedded")
    assert "halted: stopped" in topicscale("jobs", "stop", "halted", "--ray", cluster.ray, env=cluster.client).stdout
    topicscale(*submitted(cluster, source, store), env=cluster.client)
    assert contents(str(store)) == local


@pytest.mark.slow
def test_machines_may_die_while_others_join(cluster, source, local, tmp_path) -> None:
    """A Ray worker and a Spark worker are lost; another Ray worker comes."""
    store, log = tmp_path / "store", tmp_path / "log"
    job = background(cluster, log, *submitted(cluster, source, store))
    until(lambda: POINTS["ingest"](store), "nothing was read")
    cluster.kill("spark1")
    until(lambda: POINTS["embedding"](store), "nothing was embedded")
    cluster.kill("ray1")
    cluster.add_ray(1)
    assert job.wait(LIMIT) == 0, log.read_text()[-3000:]
    cluster.add_spark(1)
    assert contents(str(store)) == local


@pytest.mark.faults
@pytest.mark.parametrize("point", ["ingest", "embedding", "clustering", "assigned"])
@pytest.mark.parametrize("victim", ["ray1", "spark1", "driver", "slow"])
def test_matrix(victim, point, cluster, source, local, tmp_path) -> None:
    store = tmp_path / "store"
    job = f"{victim}-{point}"
    topicscale(*submitted(cluster, source, store, "--no-wait", "--job-id", job), env=cluster.client)
    until(lambda: POINTS[point](store), f"{point} was not reached")
    if victim == "driver":
        for process in cluster.processes("head"):
            if "jobs.cli" in " ".join(process.cmdline()):
                process.kill()
    elif victim == "slow":
        cluster.halt("ray1")
        time.sleep(20)
        cluster.resume("ray1")
    else:
        cluster.kill(victim)
    code = topicscale("jobs", "logs", job, "--follow", "--ray", cluster.ray, env=cluster.client, code=None).returncode
    if victim == "driver":
        assert code == 1
        topicscale(*submitted(cluster, source, store), env=cluster.client)
    else:
        assert code == 0
    if victim in ("ray1", "spark1"):
        getattr(cluster, f"add_{victim[:-1]}")(1)
    assert contents(str(store)) == local


@pytest.mark.faults
def test_a_lost_head_is_said_and_another_cluster_goes_on(source, local, tmp_path) -> None:
    store = tmp_path / "store"
    with Cluster() as cluster:
        cluster.add_ray(1)
        cluster.add_spark(1)
        log = tmp_path / "log"
        job = background(cluster, log, *submitted(cluster, source, store))
        until(lambda: POINTS["embedded"](store), "nothing was embedded")
        cluster.kill("head")
        assert job.wait(LIMIT) == 1
        assert "submit the same command again" in log.read_text()
    with Cluster() as cluster:
        cluster.add_ray(1)
        cluster.add_spark(1)
        topicscale(*submitted(cluster, source, store), env=cluster.client)
    assert contents(str(store)) == local


@pytest.mark.slow
def test_what_cannot_be_had_is_said_and_given_up(cluster, source, tmp_path) -> None:
    limits = ["--set", "ray.cpus_per_actor=9", "--set", "ray.actors=2", "--set", "ray.timeout=15"]
    done = topicscale(*submitted(cluster, source, tmp_path / "store", *limits), env=cluster.client, code=2)
    assert "Waiting for 2 workers of 9 CPUs" in done.stdout
    assert "did not start within 15 s" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "must be given a command"),
        (["jobs", "list"], "must be given a command"),
        (["run", "--input", "a.csv", "--store", "/s"], "--input must be an absolute path"),
        (["run", "--input", "/a.csv", "--store", "s"], "--store must be an absolute path"),
        (["merge", "--inputs", "north=n", "--store", "/s"], "--inputs must be an absolute path"),
        (["run", "--input", "/a.csv", "--store", "/s", "--set", "topics.min_size=0"], "topics.min_size must be"),
        (["run", "--input", "/a.csv", "--store", "/s", "--working-dir", "/nowhere"], "--working-dir must be a folder"),
        (["run", "--input", "/a.csv", "--store", "/s", "--ray", "ray://h:1"], "--ray must be the address"),
        (["run", "--input", "/a.csv", "--store", "/s", "--ray", "http://me:pw@h:1"], "no user and no password"),
        (["run", "--input", "/a.csv", "--store", "/s", "--spark", "sc://h:1/;token=t"], "--spark must hold no token"),
        (["run", "--input", "/a.csv", "--store", "/s", "--spark", "host:7077"], "--spark must be a Spark master"),
        (["label", "--store", "/s", "--set", "llm.api_key=t"], "llm.api_key"),
        (["label", "--store", "/s", "--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["report", "--store", "/s", "--output", "report.html"], "--output must be an absolute path"),
        (["report", "--store", "/s", "--output", "s3://b/report.html"], "a file of the cluster's machines"),
        (["diff", "--from", "s@1", "--to", "/s@2"], "--from must be an absolute path"),
        (["evaluate", "--model", "m", "--task", "sts=pairs.csv"], "--task must be an absolute path"),
        (["evaluate", "--model", "m", "--task", "classification=/a.csv,b.csv:x,y"], "--task must be an absolute path"),
        (["evaluate", "--model", "m", "--task", "sts=s3://b/pairs.csv"], "a file of the cluster's machines"),
        (["evaluate", "--model", "tests/", "--task", "sts=/pairs.csv"], "--model must be a name or an absolute path"),
        (["finetune", "--recipe", "mnr", "--input", "s3://b/p.csv", "--output", "/o"], "a file of the cluster's machines"),
        (
            ["finetune", "--recipe", "mnr", "--input", "/p.csv", "--base", "tests/", "--output", "/o"],
            "--base must be a name or an absolute",
        ),
        (["run", "--input", "/a.csv", "--store", "/s", "--set", "embedding.model=tests/"], "embedding.model must be a name or an absolute"),
        (["label", "--store", "/s", "--set", "llm.request={extra_body: {api_key: k}}"], "llm.request.extra_body.api_key"),
        (["run", "--store", "/s", "--set", "input.paths=[a.csv]"], "input.paths must be an absolute path"),
        (["benchmark", "--output", "/o.yaml", "--set", "input.paths=[a.csv]"], "input.paths must be an absolute path"),
        (["benchmark", "--output", "/o.yaml", "--folder", "tmp"], "--folder must be an absolute path"),
        (["plan", "--documents", "9", "--tokens", "9", "--spark-cores", "1", "--rates", "r.yaml"], "--rates must be an absolute path"),
        (
            ["finetune", "--output", "/o", "--set", "finetune.steps=[{recipe: mnr, input: pairs.csv}]"],
            "finetune.steps must be an absolute path",
        ),
        (["label", "--store", "/s", "--set", "llm.prompt=tests/command.py"], "llm.prompt must be a name or an absolute path"),
        (["label", "--store", "s3://me:hunter2@bucket/s"], "must hold no key"),
        (["label", "--store", "/s", "--set", "llm.url=https://h/v1?api_key=hunter2"], "llm.url must hold"),
        (["run", "--input", "/a.csv", "--store", "/s", "--ray", "http://127.0.0.1:9"], "cannot be reached"),
        (["label", "--store", "/s", "--set", "input.paths=[a.csv]"], "cannot be reached"),
    ],
)
def test_a_request_is_checked_before_anything_is_sent(arguments, message) -> None:
    given = arguments if "--ray" in arguments else [*arguments, "--ray", "http://127.0.0.1:9"]
    done = command.topicscale("submit", *given)
    assert (done.returncode, message in done.stderr, "hunter2" in done.stderr) == (2, True, False), done.stderr


def test_what_a_job_says_commands_no_terminal_and_is_no_part_of_the_json(monkeypatch) -> None:
    said = "one\ttwo\n\x1b]0;three\x07\n"
    monkeypatch.setattr(submit, "logs", lambda *_: said)
    monkeypatch.setattr(submit, "follow", lambda job, _, write, say: write(said) or submit.Ended(job, "SUCCEEDED", 0, ""))
    for more in ([], ["--follow"]):
        asked = ["jobs", "logs", "first", "--ray", "http://127.0.0.1:9", *more]
        assert command.topicscale(*asked).stdout == "one\ttwo\n\ufffd]0;three\ufffd\n"
    assert json.loads(command.topicscale(*asked[:-1], "--json").stdout) == {"job": "first", "log": said}
    followed = command.topicscale(*asked, "--json")
    assert json.loads(followed.stdout)["exit_code"] == 0
    assert "three" in followed.stderr


def test_files_of_this_machine_go_with_the_job(tmp_path) -> None:
    for name in ("mine.yaml", "store.yaml"):
        (tmp_path / name).write_text(f"# {name}\n")
    sent_with = ["label", "--config", str(tmp_path / "mine.yaml"), "--store", "/s", f"--storage={tmp_path / 'store.yaml'}"]
    files = {"--config": str(tmp_path / "mine.yaml"), "--storage": str(tmp_path / "store.yaml")}
    with submit._folder(submit.Submission(sent_with, files=files)) as (folder, sent):
        assert sent == ["label", "--store", "/s", "--config", "config.yaml", "--storage", "storage.yaml"]
        assert (Path(folder) / "storage.yaml").read_text() == "# store.yaml\n"
    with submit._folder(submit.Submission(sent_with, files=files, working_dir=str(tmp_path))) as (folder, sent):
        assert (folder, sent[-4:]) == (str(tmp_path), ["--config", "mine.yaml", "--storage", "store.yaml"])
    with (
        pytest.raises(RequestError, match="--config must be inside --working-dir"),
        submit._folder(submit.Submission(sent_with, files=files, working_dir=str(Path(__file__).parent))),
    ):
        pass


def test_a_runtime_environment_holds_no_secret(tmp_path) -> None:
    file = tmp_path / "env.yaml"
    file.write_text("env_vars: {AWS_SECRET_ACCESS_KEY: abc}\n")
    asked = ["submit", "run", "--input", "/a.csv", "--store", "/s", "--ray", "http://127.0.0.1:9", "--runtime-env", str(file)]
    done = command.topicscale(*asked)
    assert done.returncode == 2
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr
    assert "abc" not in done.stderr


def test_the_job_api_is_found_without_an_option(monkeypatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.1:8265")
    assert submit.address_of(None) == "http://10.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # a cluster's, which no job can be sent to
    with pytest.raises(RequestError, match="--ray"):
        submit.address_of(None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "10.0.0.2:8265")
    assert submit.address_of(None) == "http://10.0.0.2:8265"


@pytest.mark.slow
def test_spark_submit_runs_the_job(source, local, tmp_path) -> None:
    import pyspark

    from spark.jars import jar_folder

    jars = ",".join(map(str, sorted(jar_folder().glob("*.jar"))))
    program = Path(pyspark.__file__).parent / "bin" / "spark-submit"
    options = ["--master", "local[2]", "--jars", jars, "--conf", "spark.driver.bindAddress=127.0.0.1", "--conf", "spark.ui.enabled=false"]
    script = Path(__file__).parents[2] / "jobs" / "run.py"
    environment = os.environ | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}

    def run(*given: str) -> subprocess.CompletedProcess[str]:
        arguments = [str(program), *given, str(script), "--input", str(source), "--store", str(tmp_path / "store"), *OPTIONS]
        return subprocess.run(arguments, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT, env=environment)

    without = run(*options[:2], *options[4:])
    assert without.returncode == 2, without.stderr[-2000:]
    assert "must be given Delta's jars" in without.stdout  # where spark-submit puts all that the program says
    done = run(*options)
    assert done.returncode == 0, done.stdout[-3000:]
    assert contents(str(tmp_path / "store")) == local
