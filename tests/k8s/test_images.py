"""The images' install steps, run in a clean folder: there is no Docker engine to build them with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from tests.k8s.dockerfile import build, instructions
from tests.k8s.rendering import K8S, ROOT

# the packages that set-up has just installed, instead of gigabytes once more
CACHED = {"UV_NO_CACHE": "0", "UV_COMPILE_BYTECODE": "0", "UV_SYSTEM_CERTS": "true", "UV_NATIVE_TLS": "true"}
IMAGES = ["ray", "spark"]


@pytest.fixture
def root(tmp_path):
    """A clean folder, removed at once: it grows to gigabytes."""
    yield tmp_path / "root"
    shutil.rmtree(tmp_path / "root", ignore_errors=True)


@pytest.mark.skipif(not shutil.which("python3.11"), reason="needs python3.11 on the path, as the images have it")
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ray_s_image_installs_by_hashes_and_runs_the_job(root) -> None:
    environment, left_out = build("ray", root, CACHED)
    assert [step.split()[0] for step in left_out] == ["useradd"]
    venv = root / "opt" / "topicscale"
    assert environment["PATH"].startswith(f"{venv}/bin:")
    for command in (
        ["topicscale", "run", "--help"],
        ["python", "-m", "jobs.run", "--help"],
        ["ray", "--version"],
        ["ray", "stop", "--help"],
    ):
        done = subprocess.run(
            [venv / "bin" / command[0], *command[1:]], cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, (command, done.stderr[-2000:])
    # what is imported is what was installed, and neither this checkout nor its environment
    code = "import jobs, ray, torch, pyspark; print(*[m.__file__ for m in (jobs, ray, torch, pyspark)], sep='\\n')"
    done = subprocess.run(
        [venv / "bin" / "python", "-c", code], cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert all(line.startswith(str(venv)) for line in done.stdout.split()), done.stdout


@pytest.mark.skipif(not shutil.which("python3.11"), reason="needs python3.11 on the path, as the images have it")
@pytest.mark.timeout(1800)
def test_spark_s_image_installs_by_hashes_and_has_what_the_operator_calls(root) -> None:
    environment, left_out = build("spark", root, CACHED)
    assert sorted(step.split()[0] for step in left_out) == ["apt-get", "useradd"]
    venv = root / "opt" / "topicscale"
    installed = subprocess.run(
        [venv / "bin" / "uv", "pip", "freeze", "--python", venv / "bin" / "python"], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert {line.partition("==")[0] for line in installed.split()} - {"pip", "setuptools"} == {
        "uv",
        "pyspark",
        "py4j",
        "delta-spark",
        "pyyaml",
    }
    jars = {path.name for path in (venv / "share" / "topicscale" / "jars").glob("*.jar")}
    assert any("delta-spark" in jar for jar in jars)
    assert any("icu4j-localespi" in jar for jar in jars)
    assert list((venv / "share" / "topicscale" / "jars" / "s3").glob("*hadoop-aws*.jar"))
    for script in ("sbin/start-connect-server.sh", "sbin/stop-connect-server.sh", "bin/spark-submit"):
        assert os.access(f"{environment['SPARK_HOME']}/{script}", os.X_OK), script
    path = f"{environment['PATH']}:{os.environ['PATH']}"  # Java is this machine's
    command = [venv / "bin" / "entrypoint.sh", "spark-submit", "--version"]
    done = subprocess.run(command, env=environment | {"PATH": path}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "4.2.0" in done.stderr


@pytest.mark.parametrize("image", IMAGES)
def test_images_are_pinned_and_run_as_nobody_in_particular(image) -> None:
    found = instructions(image)
    installs = [rest for word, rest in found if word == "RUN" and re.search(r"pip.* install", rest)]
    assert installs
    for step in installs:
        assert "--require-hashes" in step or "--no-index" in step, step
    assert [rest for word, rest in found if word == "USER"] == ["10001:10001"]
    assert not [rest for word, rest in found if word == "ADD"]
    for word, rest in found:
        assert word != "FROM" or rest.split()[0] == "${BASE}"  # no registry's address
        assert word not in ("ENV", "ARG") or not re.search(r"TOKEN|SECRET|PASSWORD|AWS_", rest)


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_in_the_repository_and_sent_to_the_build(image) -> None:
    sent = (K8S / "images" / f"{image}.Dockerfile.dockerignore").read_text().split()
    assert sent[0] == "*"
    for word, rest in instructions(image):
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in sent or (source.endswith(".sh") and "!k8s/images/*.sh" in sent), source


@pytest.mark.parametrize(("packages", "expected"), [("pyspark|pyyaml", {"pyspark", "pyyaml"}), (".*", None)])
def test_packages_are_chosen_from_the_hashed_requirements(tmp_path, packages, expected) -> None:
    text = (ROOT / "requirements.txt").read_text()
    (step,) = [rest for word, rest in instructions("spark") if word == "RUN" and "chosen.txt" in rest]
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    command = step.partition("&&")[0]
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env=os.environ | {"PACKAGES": packages}, timeout=60, check=True)
    chosen = (tmp_path / "chosen.txt").read_text()
    names = set(re.findall(r"^([\w.-]+)==", chosen, re.MULTILINE))
    assert names == (expected or set(re.findall(r"^([\w.-]+)==", text, re.MULTILINE)))
    assert chosen.count("--hash=") >= len(names)
