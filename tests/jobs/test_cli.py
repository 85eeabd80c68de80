"""The command line as a user types it, as far as it goes without an engine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import topicscale
from topicscale.store import Store
from topicscale.texts import printable

ROOT = Path(__file__).parents[2]


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "jobs.cli", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.fixture
def tickets(tmp_path) -> Path:
    path = tmp_path / "tickets.csv"
    path.write_text("id,text,desk\n1,printer on fire,a\n2,cannot log in,b\n")
    return path


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["--text-column", "txt"], "text"),
        (["--set", "topics.min_siz=3"], "topics.min_size"),
        (["--set", "cluster.algorithm=evok"], "evoc"),
        (["--set", "embedding.model=./no/such/model"], "no/such/model"),
        (["--set", "embedding.dtype=int8"], "onnx"),
        (["--set", "ray.actors=500"], "500"),
        (["--topics", "some"], "--topics"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--partition-column", "site"], "site"),
        (["--id-column", "key"], "key"),
        (["--keep", "desk,nope"], "nope"),
        (["--set", "cluster.algorithm=cuml_hdbscan"], "topicscale[gpu]"),
    ],
)
def test_bad_requests_exit_with_2_and_start_nothing(options, hint, tickets, tmp_path) -> None:
    done = topicscale("run", "--input", str(tickets), "--store", str(tmp_path / "store"), *options)
    assert done.returncode == 2
    assert hint in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


def test_input_that_is_not_there_or_empty(tmp_path) -> None:
    done = topicscale("run", "--input", str(tmp_path / "none-*.csv"), "--store", str(tmp_path / "store"))
    assert (done.returncode, "none-*.csv" in done.stderr) == (2, True)
    (tmp_path / "from-10:30.csv").write_text("text\nprinter on fire\n")
    done = topicscale("run", "--input", str(tmp_path), "--store", str(tmp_path / "store"))
    assert (done.returncode, "has a colon in its name" in done.stderr) == (2, True)
    (tmp_path / "empty.csv").write_text("")
    done = topicscale("run", "--input", str(tmp_path / "empty.csv"), "--store", str(tmp_path / "store"))
    assert (done.returncode, "empty" in done.stderr) == (2, True)


def test_an_error_commands_no_terminal(tmp_path) -> None:
    done = topicscale("status", "--store", str(tmp_path / "\x9b2Jnews\u202e"))
    assert (done.returncode, "\ufffd2Jnews\ufffd" in done.stderr) == (2, True)
    assert not {"\x9b", "\u202e"} & set(done.stderr)
    assert printable("\x1b[36mray\x1b[0m 10%\r20%\r\n\x1b]0;mine\x07") == "ray 10%\n20%\n\ufffd]0;mine\ufffd"


def test_dry_run_prints_the_plan(tickets, tmp_path) -> None:
    done = topicscale("run", "--input", str(tickets), "--store", str(tmp_path / "store"), "--dry-run")
    assert done.returncode == 0
    assert "Nothing was started" in done.stdout
    assert not (tmp_path / "store").exists()
    request = ["run", "--input", str(tickets), "--store", str(tmp_path / "store")]
    plan = json.loads(topicscale(*request, "--dry-run", "--json").stdout)
    assert plan["input"]["format"] == "csv"
    assert plan["partitions"] == 1
    long = topicscale(*request, "--dry-run", "--json", "--set", "partition.target_characters=10")
    assert json.loads(long.stdout)["partitions"] == math.ceil(plan["input"]["characters_estimated"] / 10) > 1


def test_a_missing_java_is_told_before_anything_starts(tickets, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    request = ["run", "--input", str(tickets), "--store", str(tmp_path / "store"), "--dry-run"]
    done = topicscale(*request)
    assert (done.returncode, "Spark needs Java" in done.stderr, "apt-get install" in done.stderr) == (2, True, True)
    assert topicscale(*request, "--set", "spark.remote=sc://spark.example:15002").returncode == 0  # it has a Java of its own


@pytest.mark.parametrize("command", [["status"], ["topics"], ["report", "--output", "r.html"], ["evaluate"]])
def test_commands_without_a_store_say_so(command, tmp_path) -> None:
    done = topicscale(command[0], "--store", str(tmp_path / "nowhere"), *command[1:])
    assert done.returncode == 2
    assert "no topicscale store" in done.stderr


@pytest.mark.parametrize("command", [["topics"], ["evaluate"]])
def test_commands_on_a_store_without_a_run_say_so(command, tmp_path) -> None:
    Store(tmp_path / "store", create=True)
    done = topicscale(*command, "--store", str(tmp_path / "store"))
    assert done.returncode == 2
    assert "no finished run" in done.stderr


@pytest.mark.parametrize("arguments", [["report", "--output", "s3://b/r.html"], ["forget", "--ids", "s3://b/ids.txt"]])
def test_files_of_this_machine_are_no_addresses(arguments, tmp_path) -> None:
    Store(tmp_path / "store", create=True)
    done = topicscale(*arguments, "--store", str(tmp_path / "store"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "must be a file of this machine" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "--store"),
        (["--task", "sts=a.csv"], "--model"),
        (["--model", "all-MiniLM-L6-v2"], "--task"),
        (["--model", "all-MiniLM-L6-v2", "--task", "stss=a.csv"], "'sts'"),
        (["--model", "all-MiniLM-L6-v2", "--task", "clustering=nowhere.csv"], "nowhere.csv"),
        (["--model", "all-MiniLM-L6-v2", "--task", "clustering={tickets}:text,team"], "team"),
        (["--model", "./no/such/model", "--task", "clustering={tickets}:text,desk"], "no/such/model"),
        (["--model", "all-MiniLM-L6-v2", "--task", "topics"], "--store"),
        (["--model", "all-MiniLM-L6-v2", "--task", "topics={tickets}", "--labels", "desk"], "--labels"),
        (["--model", "all-MiniLM-L6-v2", "--store", "nowhere/"], "no topicscale store"),
    ],
)
def test_what_models_cannot_be_judged_by(arguments, hint, tickets) -> None:
    done = topicscale("evaluate", *(argument.format(tickets=tickets) for argument in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert hint in done.stderr
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ([], "--store"),
        (["--store", "nowhere/"], "--topics-only"),
        (["--model", "all-MiniLM-L6-v2", "--topics-only"], "--topics-only"),
        (["--model", "all-MiniLM-L6-v2", "--min-document-frequency", "20"], "--min-document-frequency"),
        (["--store", "nowhere/", "--topics-only", "--formats", "bf16"], "--formats"),
        (["--model", "all-MiniLM-L6-v2", "--formats", "fp32,gguf"], "gguf"),
        (["--model", "./no/such/model"], "no/such/model"),
        (["--model", "all-MiniLM-L6-v2", "--reference", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_what_cannot_be_exported(arguments, hint, tmp_path) -> None:
    done = topicscale("export", "--output", str(tmp_path / "out"), *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert hint in done.stderr
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_recipe_and_a_file_with_steps_are_not_both_taken(tmp_path) -> None:
    done = topicscale("finetune", "--recipe", "gpl", "--config", "gpl", "--store", str(tmp_path), "--output", "tickets")
    assert done.returncode == 2
    assert "--recipe must be left out where the configuration has finetune.steps" in done.stderr


def test_status_of_a_store_without_a_run(tmp_path) -> None:
    Store(tmp_path / "store", create=True)
    done = topicscale("status", "--store", str(tmp_path / "store"))
    assert done.returncode == 0
    assert "no run has finished" in done.stdout


def test_help_names_every_command_and_the_exit_codes() -> None:
    done = process("--help")
    assert done.returncode == 0
    for word in ("run", "status", "topics", "report", "evaluate", "Exit codes"):
        assert word in done.stdout
    assert "examples:" in topicscale("run", "--help").stdout


def test_errors_as_json(tickets, tmp_path) -> None:
    done = process("run", "--input", str(tickets), "--store", str(tmp_path / "store"), "--text-column", "txt", "--json")
    error = json.loads(done.stderr.splitlines()[-1])
    assert (error["kind"], error["exit_code"]) == ("InputError", 2)
