"""`topicscale submit` and `topicscale jobs`: commands sent to a Ray cluster through its job API, followed, listed and stopped.

The job is ``python -m jobs.cli COMMAND ...`` on the cluster's head. It finds Ray by RAY_ADDRESS, which Ray sets, and Spark
by SPARK_REMOTE or MASTER, which are set here: where a job runs is no part of its configuration. Secrets are not sent, since
the job API shows what it is sent: they come from the environment of the cluster's own machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from jobs.arguments import version
from ray_actors import runtime
from topicscale.config import SECRET
from topicscale.errors import JobFailed, MissingDependency, RequestError, ResourceError

LOOK = 5.0
"""Seconds between looks at a job that is followed."""
LOST = 60.0
"""Seconds without an answer after which a cluster counts as gone."""
START = 180.0
"""Seconds that a head may take from its first answer to its first job."""
ANSWER = 30.0
"""Seconds that one answer may take."""
STOPPED = 130


@dataclass(frozen=True)
class Submission:
    """A command for a cluster."""

    command: Sequence[str]
    """As after ``topicscale``: the command's name and its options."""
    store: str | None = None
    """For the list of jobs."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files of this machine that go with the job, by the option of ``command`` that names them (--config, --storage)."""
    spark: str | None = None
    """A Spark master, or a Spark Connect address (sc://...); None runs Spark inside the job's driver."""
    working_dir: str | None = None
    """A folder of this machine that goes with the job: a checkout, where the cluster has no topicscale of its own."""
    image: str | None = None
    """A container image to run the job in."""
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    """More of Ray's runtime environment (pip, py_modules, env_vars, ...)."""
    job_id: str | None = None
    """Made up without."""


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    job: str
    status: str
    exit_code: int
    message: str


def address_of(given: str | None) -> str:
    """Return the address of a cluster's job API.

    Raises
    ------
    RequestError
        There is none, or it is another kind of address.
    """
    named = os.environ.get("RAY_ADDRESS", "")  # Ray's own commands take it for either kind of address
    found = given or os.environ.get("RAY_API_SERVER_ADDRESS") or (named if named.startswith("http") else "")
    if "://" not in found and found not in ("", "auto"):
        found = f"http://{found}"
    parts = urllib.parse.urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        got = repr(given) if given else "none"
        raise RequestError(
            f"--ray must be the address of a Ray head's job API, such as http://head:8265 (its dashboard's port). Got {got} instead."
        )
    if parts.username or parts.password:
        raise RequestError("--ray must hold no user and no password. Give the cluster's token by the variable RAY_AUTH_TOKEN.")
    return found.rstrip("/")


def runtime_env(file: str | None) -> dict[str, Any]:
    """Return Ray's runtime environment from a YAML file.

    Raises
    ------
    RequestError
        It cannot be read, is no mapping, or holds what belongs elsewhere.
    """
    if file is None:
        return {}
    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RequestError(f"--runtime-env {file!r} cannot be read: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("env_vars", {}), dict):
        raise RequestError(f"--runtime-env must be a YAML mapping, as Ray describes runtime environments. {file!r} is none.")
    for key, option in [("working_dir", "--working-dir"), ("image_uri", "--image")]:
        if key in found:
            raise RequestError(f"--runtime-env must not hold {key}: give it by {option}.")
    if secret := [name for name in found.get("env_vars", {}) if SECRET.search(name)]:
        raise RequestError(
            f"--runtime-env must hold no secrets: Ray's job API shows it to whoever asks. Got the variable {secret[0]!r} instead; set it "
            "in the environment of the cluster's machines."
        )
    return found


def submit(asked: Submission, address: str, *, say: Callable[[str], None] = lambda _: None) -> str:
    """Send a command to a cluster and return the job's id. It runs whether or not it is followed.

    Raises
    ------
    RequestError
        A folder is missing, or the cluster refuses the request.
    ResourceError
        The cluster does not answer, or refuses the token.
    """
    job = asked.job_id or f"topicscale-{asked.command[0]}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    with _folder(asked) as (folder, command):
        environment = dict(asked.runtime_env)
        environment["env_vars"] = {str(k): str(v) for k, v in environment.get("env_vars", {}).items()} | _variables(asked.spark)
        if folder is not None:
            environment["working_dir"] = folder
        if asked.image is not None:
            environment["image_uri"] = asked.image
        client = _client(address)
        request = {
            "entrypoint": shlex.join(["python", "-m", "jobs.cli", *command]),
            "submission_id": job,
            "runtime_env": environment,
            "metadata": {"topicscale": version(), "command": asked.command[0], "store": asked.store or ""},
        }
        with _answering(address):
            began = time.monotonic()
            while True:
                try:
                    client.submit_job(**request)
                    return job
                except RuntimeError as error:
                    # a head takes jobs some seconds after it answers
                    if "No available agent" not in str(error) or time.monotonic() - began > START:
                        raise
                    say(f"The cluster at {address} takes no jobs yet ({time.monotonic() - began:.0f} s of at most {START:.0f}).")
                    time.sleep(1)


def follow(job: str, address: str, *, write: Callable[[str], None], say: Callable[[str], None]) -> Ended:
    """Write a job's log as it grows, and return how it ended.

    Raises
    ------
    RequestError
        There is no such job.
    JobFailed
        The cluster has not answered for a minute, or knows the job no longer: its head is gone, and with it the job.
    """
    client = _client(address)
    with _answering(address):
        client.get_job_info(job)
    return asyncio.run(_follow(client, job, address, write, say))


async def _follow(client: Any, job: str, address: str, write: Callable[[str], None], say: Callable[[str], None]) -> Ended:
    shown = 0

    async def tail() -> None:
        nonlocal shown
        while True:
            at = 0
            with contextlib.suppress(Exception):  # whether the job goes on is asked apart
                async for text in client.tail_job_logs(job):
                    new = text[max(0, shown - at) :]  # after a lost connection the log comes from its beginning
                    at += len(text)
                    shown = max(shown, at)
                    if new:
                        write(new)
            await asyncio.sleep(1)

    reading = asyncio.create_task(tail())
    try:
        info = await _ended(client, job, address, say)
        before = -1
        while before < shown:  # what was said last may still be on its way
            before = shown
            await asyncio.sleep(2)
    finally:
        reading.cancel()
    return _outcome(job, info)


async def _ended(client: Any, job: str, address: str, say: Callable[[str], None]) -> Any:
    """Return what the cluster says of a job once it has ended."""
    heard = began = time.monotonic()
    while True:
        try:
            info = await asyncio.to_thread(client.get_job_info, job)
            heard = time.monotonic()
        except Exception as error:
            if "does not exist" in str(error):
                raise JobFailed(f"The cluster at {address} no longer knows {job}: its head was started anew. {_AGAIN}") from error
            if time.monotonic() - heard > LOST:
                raise JobFailed(
                    f"The cluster at {address} has not answered for {LOST:.0f} s: its head is gone, and {job} with it, or the way to it "
                    f"is. {_AGAIN}"
                ) from error
            say(f"The cluster at {address} does not answer ({time.monotonic() - heard:.0f} s of at most {LOST:.0f}).")
        else:
            if info.status.is_terminal():
                return info
            if info.status == "PENDING" and time.monotonic() - began > 2 * LOOK:
                say(f"{job} has not begun after {time.monotonic() - began:.0f} s: {info.message}")
        await asyncio.sleep(LOOK if time.monotonic() - began > LOOK else 1)


_AGAIN = "What is finished is kept in the store: submit the same command again to go on."


def jobs(address: str) -> list[dict[str, Any]]:
    """Return topicscale's jobs on a cluster, the newest first."""
    client = _client(address)
    with _answering(address):
        found = [info for info in client.list_jobs() if info.submission_id and "topicscale" in (info.metadata or {})]
    found.sort(key=lambda info: info.start_time or 0, reverse=True)
    return [
        {
            "job": info.submission_id,
            "command": info.metadata.get("command", "?"),
            "store": info.metadata.get("store", "?"),
            "status": str(info.status.value),
            "began": _time(info.start_time),
            "seconds": round(((info.end_time or time.time() * 1000) - info.start_time) / 1000) if info.start_time else None,
            "exit_code": _outcome(info.submission_id, info).exit_code if info.status.is_terminal() else None,
        }
        for info in found
    ]


def logs(job: str, address: str) -> str:
    """Return what a job has said so far."""
    client = _client(address)
    with _answering(address):
        return str(client.get_job_logs(job))


def stop(job: str, address: str) -> Ended:
    """Stop a job, and return how it ended. Its store is left resumable.

    Raises
    ------
    JobFailed
        It has not ended within a minute.
    """
    client = _client(address)
    with _answering(address):
        client.stop_job(job)
        began = time.monotonic()
        while not (info := client.get_job_info(job)).status.is_terminal():
            if time.monotonic() - began > LOST:
                raise JobFailed(f"{job} has not ended within {LOST:.0f} s. Ask again: topicscale jobs stop {job} --ray {address}")
            time.sleep(1)
    return _outcome(job, info)


def describe(found: Sequence[Mapping[str, Any]]) -> str:
    """Return a list of jobs as text for a terminal."""
    if not found:
        return "No jobs of topicscale."
    keys = ("job", "command", "status", "began", "seconds", "store")
    rows = [keys, *(tuple("" if row[key] is None else str(row[key]) for key in keys) for row in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(keys))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


@contextlib.contextmanager
def _folder(asked: Submission) -> Iterator[tuple[str | None, list[str]]]:
    """Yield the folder that goes with the job, and the command as it reads there."""
    command = list(asked.command)
    if asked.working_dir is not None:
        folder = Path(asked.working_dir).resolve()
        if not folder.is_dir():
            raise RequestError(f"--working-dir must be a folder. Got {asked.working_dir!r} instead.")
        for option, file in asked.files.items():
            path = Path(file).resolve()
            if not path.is_relative_to(folder):
                raise RequestError(f"{option} must be inside --working-dir, which is what is sent. Got {file!r} instead.")
            command = _named(command, option, str(path.relative_to(folder)))
        yield str(folder), command
    elif asked.files:
        with tempfile.TemporaryDirectory() as temporary:
            for option, file in asked.files.items():
                name = f"{option.removeprefix('--')}.yaml"
                shutil.copy(file, Path(temporary) / name)
                command = _named(command, option, name)
            yield temporary, command
    else:
        yield None, command


def _named(command: list[str], option: str, value: str) -> list[str]:
    """Return a command with another value for an option."""
    found: list[str] = []
    parts = iter(command)
    for part in parts:
        if part == option:
            next(parts)
        elif not part.startswith(f"{option}="):
            found.append(part)
    return [*found, option, value]


def _variables(spark: str | None) -> dict[str, str]:
    # Ray would build an environment a worker under `uv run`; numba and Ray's print: see ray_actors.runtime
    ours = {"PYTHONUNBUFFERED": "1", "RAY_TQDM_PATCH_PRINT": "0"}
    if spark is None:
        return ours
    return ours | {"SPARK_REMOTE" if spark.startswith("sc://") else "MASTER": spark}


def _client(address: str) -> Any:
    runtime.authenticate()
    if address.startswith("http://") and os.environ.get("RAY_AUTH_MODE") == "token" and not _here(address):
        _warn(f"The token goes to {address} unencrypted. Use https, or a tunnel (kubectl port-forward, ssh -L).")
    if _here(address):  # a proxy cannot reach it, and is not to be told the token
        others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ["no_proxy"] = ",".join(filter(None, (others, urllib.parse.urlsplit(address).hostname)))
    try:
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.WARNING)

        class Client(JobSubmissionClient):  # type: ignore[misc,valid-type]
            """Ray's, whose requests would wait for ever for a machine that is gone."""

            def _do_request(self, *arguments: Any, **options: Any) -> Any:
                return super()._do_request(*arguments, **{"timeout": ANSWER} | options)

        with _answering(address):
            return Client(address)
    except ImportError as error:
        raise MissingDependency(error.name or "ray[default]", "cluster", "Ray's job API") from error


@cache
def _warn(message: str) -> None:
    # once a process, which may ask more than once
    logging.getLogger(__name__).warning(message)


@contextlib.contextmanager
def _answering(address: str) -> Iterator[None]:
    try:
        yield
    except (RequestError, ResourceError, JobFailed, ImportError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:500] or type(error).__name__
        if "uthentication" in type(error).__name__:
            raise ResourceError(
                f"The cluster at {address} refuses this client: {said.partition('. ')[0]}. Set RAY_AUTH_TOKEN to the cluster's token."
            ) from error
        if isinstance(error, (ConnectionError, OSError)):
            raise ResourceError(f"The cluster at {address} cannot be reached: {said}") from error
        raise RequestError(f"The cluster at {address} refuses the request: {said}") from error


def _outcome(job: str, info: Any) -> Ended:
    status = str(info.status.value)
    code = info.driver_exit_code
    # a process that was killed has none of its own: a signal, or by way of a shell 128 and the signal
    exit_code = {"SUCCEEDED": 0, "STOPPED": STOPPED}.get(status, code if code and 0 < code < 128 else 1)
    return Ended(job, status, exit_code, (info.message or "").partition(", last available logs")[0])


def _here(address: str) -> bool:
    host = urllib.parse.urlsplit(address).hostname or ""
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _time(milliseconds: int | None) -> str | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if milliseconds else None
