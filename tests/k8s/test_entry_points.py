"""What the manifests start is started here, with their own arguments and settings; addresses, folders and models of a hub are others."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from spark.jars import jar_folder
from tests import corpus
from tests.k8s.rendering import K8S, RAY_OVERLAYS, ROOT, one, renderers, secrets, templates

pytestmark = pytest.mark.skipif(not renderers(), reason="needs kustomize (make test installs it where there is Go) or kubectl")

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def spark_home() -> str:
    import pyspark

    return str(Path(pyspark.__file__).parent)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def arguments(overlay: str, given: list[str], tmp_path: Path, **changed: dict[str, object]) -> list[str]:
    """Return the job's arguments, with the overlay's configuration in a file, sections ``changed``, a small input and a store here."""
    data = one(overlay, "ConfigMap", "topicscale-job")["data"]
    config = yaml.safe_load(data["job.yaml"])
    tmp_path.mkdir(exist_ok=True)
    if "sample.csv" in data:
        (tmp_path / "input.csv").write_text(data["sample.csv"])
    else:
        corpus.write_csv(tmp_path / "input.csv", corpus.rows(each=8))
    config["input"] |= {"paths": [str(tmp_path / "input.csv")], "format": "csv"}
    if "address" not in config["ray"]:
        config["ray"] = {"actors": 1, "cpus_per_actor": 1}  # this machine is smaller than the manifest's
    # models of a hub are looked up there
    if "/" in config.get("embedding", {}).get("model", ""):
        config["embedding"]["model"] = "all-MiniLM-L6-v2"
    if "/" in config.get("llm", {}).get("model", ""):
        config["llm"]["model"] = "smollm2-135m-instruct"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config | changed))
    given = list(given)
    given[given.index("--config") + 1] = str(tmp_path / "job.yaml")
    given[given.index("--store") + 1] = str(tmp_path / "store")
    return given


def test_ray_jobs_entry_points_run_without_a_jvm(tmp_path) -> None:
    # at the same time: most of it is loading libraries
    started = {}
    for overlay in RAY_OVERLAYS:
        python, *rest = shlex.split(one(overlay, "RayJob")["spec"]["entrypoint"])
        assert python == "python"
        environment = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
        command = [sys.executable, *arguments(overlay, rest, tmp_path / overlay), "--dry-run"]
        started[overlay] = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    for overlay, process in started.items():
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, (overlay, err)
        plan = json.loads(out)
        assert plan["input"]["format"] == "csv", overlay
        assert plan["workers"] == "as many as auto holds", overlay


def test_the_spark_application_runs_under_spark_submit(tmp_path) -> None:
    spec = one("spark", "SparkApplication")["spec"]
    script = spec["mainApplicationFile"].replace("/opt/topicscale/app", str(ROOT))
    assert Path(script.removeprefix("local://")).exists()
    settings = {
        key: value
        for key, value in spec["sparkConf"].items()
        if not key.startswith(("spark.authenticate", "spark.network", "spark.kubernetes"))
    }
    settings |= {"spark.master": "local[1]"}  # a JVM that only starts Python
    (tmp_path / "spark.properties").write_text("".join(f"{key} {moved(value)}\n" for key, value in settings.items()))
    # as Spark on Kubernetes calls the driver's image
    command = [str(K8S / "images" / "entrypoint.sh"), "driver", "--properties-file", str(tmp_path / "spark.properties")]
    command += [
        "--class",
        "org.apache.spark.deploy.PythonRunner",
        script,
        *arguments("spark", spec["arguments"], tmp_path / "job"),
        "--dry-run",
    ]
    environment = os.environ | {
        "SPARK_HOME": spark_home(), "PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "SPARK_DRIVER_BIND_ADDRESS": "127.0.0.1",
    }  # fmt: skip
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert json.loads(done.stdout)["clustering"] == "none + evoc"


def test_an_executor_starts_and_asks_for_its_driver(tmp_path) -> None:
    conf = one("cpu", "SparkConnect")["spec"]["sparkConf"]
    (tmp_path / "token").write_bytes(secrets("topicscale")["topicscale-spark-token"]["token"])
    # what an executor must know before it can ask its driver, Spark hands to its JVM
    options = [conf["spark.executor.extraJavaOptions"], "-Dspark.rpc.numRetries=1", f"-Dspark.authenticate={conf['spark.authenticate']}"]
    options += [f"-Dspark.authenticate.secret.file={tmp_path / 'token'}", "-Dspark.network.crypto.enabled=true"]
    environment = os.environ | {f"SPARK_JAVA_OPT_{n}": option for n, option in enumerate(options)}
    environment |= {
        "SPARK_HOME": spark_home(),
        "SPARK_CLASSPATH": moved(conf["spark.executor.extraClassPath"]),
        "SPARK_EXECUTOR_MEMORY": "256m",
        "SPARK_EXECUTOR_CORES": "1",
        "SPARK_EXECUTOR_ID": "1",
        "SPARK_APPLICATION_ID": "spark-test",
        "SPARK_EXECUTOR_POD_IP": "127.0.0.1",
        "SPARK_EXECUTOR_POD_NAME": "executor-1",
        "SPARK_RESOURCE_PROFILE_ID": "0",
        "SPARK_DRIVER_URL": f"spark://CoarseGrainedScheduler@127.0.0.1:{free_port()}",
    }
    done = subprocess.run(
        [K8S / "images" / "entrypoint.sh", "executor"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode != 0
    assert "Connection refused" in done.stdout + done.stderr, (done.stdout + done.stderr)[-3000:]


def moved(value: str) -> str:
    return value.replace("/opt/topicscale/share/topicscale/jars", str(jar_folder()))


def test_the_submitter_waits_for_spark_and_probes_tell_whether_it_listens() -> None:
    (wait,) = templates(one("cpu", "RayJob"))["submitter"]["spec"]["initContainers"]
    server = templates(one("cpu", "SparkConnect"))["server"]["spec"]["containers"][0]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        here = [part.replace("topicscale-spark-server/15002", f"127.0.0.1/{port}") for part in (*wait["command"], *wait["args"])]
        assert subprocess.run(here, timeout=30, check=False).returncode == 0
        for probe in (server["startupProbe"], server["readinessProbe"]):
            command = [part.replace("/15003", f"/{port}") for part in probe["exec"]["command"]]
            assert subprocess.run(command, timeout=30, check=False).returncode == 0
    for probe in (server["startupProbe"], server["readinessProbe"]):
        command = [part.replace("/15003", f"/{port}") for part in probe["exec"]["command"]]
        assert subprocess.run(command, timeout=30, check=False, stderr=subprocess.DEVNULL).returncode != 0
    # nobody listens: it says so, and does not wait for ever (the waiting itself is taken out)
    here = [part.replace("sleep 5", "true") for part in here]
    done = subprocess.run(here, timeout=60, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "topicscale-spark-server:15002 must answer" in done.stdout


@pytest.mark.skipif(HAPROXY is None, reason="needs haproxy (make test installs it where apt can)")
@pytest.mark.timeout(900)
def test_the_dev_job_runs_over_tls_for_those_who_have_the_token(tmp_path) -> None:
    pytest.importorskip("grpc", reason="needs the extra 'connect'")
    made = secrets("topicscale", "localhost")
    token = made["topicscale-spark-token"]["token"].decode()
    spec = one("dev", "SparkConnect")["spec"]
    inner, outer = free_port(), free_port()
    # the certificate where the manifest's volume puts it
    volumes = {volume["name"]: volume for volume in spec["server"]["template"]["spec"]["volumes"]}
    for item in volumes["certificate"]["secret"]["items"]:
        (tmp_path / item["path"]).write_bytes(made["topicscale-spark-tls"][item["key"]])
    (tmp_path / "ca.crt").write_bytes(made["topicscale-spark-tls"]["ca.crt"])
    configured = one("dev", "ConfigMap", "topicscale-haproxy")["data"]["haproxy.cfg"]
    configured = (
        configured.replace("/etc/topicscale/tls", str(tmp_path)).replace(":15002", f"127.0.0.1:{outer}").replace(":15003", f":{inner}")
    )
    (tmp_path / "haproxy.cfg").write_text(configured)
    # files for the secret are for Kubernetes alone, says Spark
    settings = {
        key: value for key, value in spec["sparkConf"].items() if not key.startswith(("spark.authenticate", "spark.network.crypto"))
    }
    settings |= {"spark.connect.grpc.binding.port": str(inner), "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    command = [str(K8S / "images" / "start-connect-server.sh"), "--master", "local[1]", "--driver-memory", spec["server"]["memory"]]
    for key, value in settings.items():
        command += ["--conf", f"{key}={moved(value)}"]
    environment = os.environ | {"SPARK_HOME": spark_home(), "SPARK_CONNECT_AUTHENTICATE_TOKEN": token, "PYTHONPATH": str(ROOT)}
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    proxy = subprocess.Popen([HAPROXY, "-f", str(tmp_path / "haproxy.cfg")], stdout=log, stderr=log)
    try:
        wait_for(inner, server)
        job = templates(one("dev", "RayJob"))["head"]["spec"]["containers"][0]
        assert {"SPARK_CONNECT_AUTHENTICATE_TOKEN", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"} <= {variable["name"] for variable in job["env"]}
        client = {"PATH": str(Path(sys.executable).parent), "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}  # and no Java
        client |= {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(tmp_path / "ca.crt")}
        _, *given = shlex.split(one("dev", "RayJob")["spec"]["entrypoint"])
        remote = {"remote": f"sc://localhost:{outer}/;use_ssl=true"}

        def run(name: str, *, token: str | None) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, *arguments("dev", given, tmp_path / name, ray={"actors": 1, "cpus_per_actor": 1}, spark=remote)],
                env=client | ({"SPARK_CONNECT_AUTHENTICATE_TOKEN": token} if token else {}),
                cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
            )  # fmt: skip

        served = run("with", token=token)
        assert served.returncode == 0, served.stderr[-3000:]
        assert json.loads(served.stdout)["documents"] == 200
        for name, wrong in (("without", None), ("wrong", "0" * 64)):
            refused = run(name, token=wrong)
            assert refused.returncode == 2, refused.stderr[-2000:]
            assert "does not answer" in refused.stderr
            assert not list((tmp_path / name / "store").glob("documents/*.parquet"))
        said = (tmp_path / "server.log").read_text() + Path(f"/proc/{server.pid}/cmdline").read_text() + served.stderr
        assert token not in said
    finally:
        for process in (proxy, server):
            process.terminate()
            process.wait(timeout=60)
        log.close()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError(f"nothing listens on {port}")
