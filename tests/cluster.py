"""A real cluster on one machine: Ray nodes and Spark workers, each with an address of its own on loopback (127.0.0.x).

Ray asks for a token and Spark for a secret, as on any cluster. Every node is a process group, so that it can be killed
or halted whole.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from spark.session import SECRET

LIMIT = 240.0
"""Seconds within which a node is up, on a busy machine."""
STORE_BYTES = 100_000_000
"""Ray's shared memory a node."""


def free_port(host: str) -> int:
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])


@dataclass
class Cluster:
    """A Ray head without processors and a Spark master; workers are added. A context manager."""

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    secret: str = field(default_factory=lambda: secrets.token_hex(32))
    head: str = "127.0.0.2"
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Cluster:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.gcs, self.dashboard, self.spark_port = (free_port(self.head) for _ in range(3))
        (conf := self.folder / "spark.conf").touch(mode=0o600)
        conf.write_text(f"spark.authenticate true\nspark.authenticate.secret {self.secret}\n")
        self.start_head()
        self._spark("master", f"master.Master --host {self.head} --port {self.spark_port} --webui-port 0", self.head)
        until = time.monotonic() + LIMIT
        while not _listens(self.head, self.spark_port):
            assert time.monotonic() < until, self.said("master")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.nodes):
            self.kill(name)

    @property
    def ray(self) -> str:
        """The address of the job API."""
        return f"http://{self.head}:{self.dashboard}"

    @property
    def spark(self) -> str:
        """The address of the Spark master."""
        return f"spark://{self.head}:{self.spark_port}"

    @property
    def client(self) -> dict[str, str]:
        """The environment of who may use the cluster."""
        named = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return named | {"RAY_AUTH_TOKEN": self.token, "RAY_AUTH_MODE": "token"}

    def _machine(self, host: str) -> dict[str, str]:
        """The environment of a machine of the cluster."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        python = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        beside = {"PATH": path, "PYTHONPATH": python, "SPARK_LOCAL_IP": host, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TQDM_PATCH_PRINT": "0"}
        return self.client | beside | {SECRET: self.secret}

    def start_head(self) -> None:
        options = f"--head --port={self.gcs} --dashboard-host={self.head} --dashboard-port={self.dashboard} --num-cpus=0"
        self._ray("head", self.head, options)
        until = time.monotonic() + LIMIT
        while not (_listens(self.head, self.dashboard) and "Ray runtime started" in self.said("head")):
            assert time.monotonic() < until, self.said("head")
            time.sleep(0.2)

    def add_ray(self, number: int, *, cpus: int = 1) -> str:
        """Start a worker machine and return its name, when it has joined."""
        name = f"ray{number}"
        self._ray(name, f"127.0.0.{10 + number}", f"--address={self.head}:{self.gcs} --num-cpus={cpus}")
        until = time.monotonic() + LIMIT
        while "Ray runtime started" not in self.said(name):
            assert time.monotonic() < until, self.said(name)
            time.sleep(0.2)
        return name

    def add_spark(self, number: int) -> str:
        """Start a Spark worker of one processor and return its name."""
        name, host = f"spark{number}", f"127.0.0.{30 + number}"
        work = self.folder / name
        self._spark(name, f"worker.Worker {self.spark} --host {host} --cores 1 --memory 1g --webui-port 0 --work-dir {work}", host)
        return name

    def _ray(self, name: str, host: str, options: str) -> None:
        command = [str(Path(sys.executable).parent / "ray"), "start", f"--node-ip-address={host}", "--block", *options.split()]
        command += [f"--temp-dir={self.folder / name}", f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats"]
        self._start(name, command, host)

    def _spark(self, name: str, options: str, host: str) -> None:
        import pyspark

        home = Path(pyspark.__file__).parent
        main, *rest = options.split()
        command = [str(home / "bin" / "spark-class"), f"org.apache.spark.deploy.{main}", *rest]
        self._start(name, [*command, "--properties-file", str(self.folder / "spark.conf")], host)

    def _start(self, name: str, command: list[str], host: str) -> None:
        log = (self.folder / f"{name}.log").open("wb")
        self.nodes[name] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self._machine(host), start_new_session=True
        )

    def said(self, name: str) -> str:
        """Return the log of a node's first process."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def processes(self, name: str) -> list[psutil.Process]:
        """Return all processes of a node."""
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.nodes[name].pid)
            return [first, *first.children(recursive=True)]
        return []

    def kill(self, name: str) -> None:
        """End a node as a power cut does."""
        for process in self.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.nodes.pop(name).wait()

    def halt(self, name: str) -> None:
        """Stop a node's processes without ending them."""
        for process in self.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a halted node go on."""
        for process in self.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


def _listens(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False
