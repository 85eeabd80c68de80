"""A real cluster on one machine: Ray nodes and Spark workers, each with an address of its own on loopback (127.x.x.x).

Ray asks for a token and Spark for a secret, as on any cluster. A node's processes carry its name in their environment, so
that it can be killed or halted whole, and that a cluster ends with the tests that started it, even killed ones.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from spark.session import SECRET

LIMIT = 240.0
"""Seconds within which a node is up, on a busy machine."""
STORE_BYTES = 100_000_000
"""Ray's shared memory a node."""
ROOT = Path(__file__).parents[1]
MARK = "TEST_CLUSTER_NODE"


def free_port() -> int:
    """Return a port that is free at all addresses: Ray's processes listen on all of them, whatever address a node has."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


@dataclass
class Cluster:
    """A Ray head without processors and a Spark master; workers are added. A context manager."""

    folder: Path = field(init=False)
    """For logs; with a short name, as Ray puts sockets into it."""
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    secret: str = field(default_factory=lambda: secrets.token_hex(32))
    net: str = field(default_factory=lambda: f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(255)}")
    """The network of its machines: two clusters on one machine would want the same ports."""

    @property
    def host(self) -> str:
        """The address of the head and the master."""
        return f"{self.net}.2"

    def __enter__(self) -> Cluster:
        self.folder = Path(tempfile.mkdtemp(prefix="cluster-"))
        reap = [sys.executable, "-m", "tests.cluster", str(self.folder)]
        self._reaper = subprocess.Popen(reap, stdin=subprocess.PIPE, cwd=ROOT, start_new_session=True)
        self.gcs, self.dashboard, self.spark_port = (free_port() for _ in range(3))
        (conf := self.folder / "spark.conf").touch(mode=0o600)
        conf.write_text(f"spark.authenticate true\nspark.authenticate.secret {self.secret}\n")
        try:
            options = f"--head --port={self.gcs} --dashboard-host={self.host} --dashboard-port={self.dashboard}"
            self._ray("head", self.host, f"{options} --num-cpus=0")
            self._spark("master", f"master.Master --host {self.host} --port {self.spark_port} --webui-port 0", self.host)
            until = time.monotonic() + LIMIT
            while not (_listens(self.host, self.dashboard) and _listens(self.host, self.spark_port)):
                assert time.monotonic() < until, self.said("head") + self.said("master")
                time.sleep(0.2)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._reaper.stdin is not None
        self._reaper.stdin.close()
        self._reaper.wait()

    @property
    def ray(self) -> str:
        """The address of the job API."""
        return f"http://{self.host}:{self.dashboard}"

    @property
    def spark(self) -> str:
        """The address of the Spark master."""
        return f"spark://{self.host}:{self.spark_port}"

    @property
    def client(self) -> dict[str, str]:
        """The environment of who may use the cluster."""
        named = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return named | {"RAY_AUTH_TOKEN": self.token, "RAY_AUTH_MODE": "token"}

    def add_ray(self, number: int, *, cpus: int = 1) -> str:
        """Start a worker machine and return its name, when it has joined."""
        name = f"ray{number}"
        self._ray(name, f"{self.net}.{10 + number}", f"--address={self.host}:{self.gcs} --num-cpus={cpus}")
        return name

    def add_spark(self, number: int) -> str:
        """Start a Spark worker of one processor and return its name."""
        name, host = f"spark{number}", f"{self.net}.{30 + number}"
        work = self.folder / name
        self._spark(name, f"worker.Worker {self.spark} --host {host} --cores 1 --memory 1g --webui-port 0 --work-dir {work}", host)
        return name

    def _machine(self, name: str, host: str) -> dict[str, str]:
        """The environment of a machine of the cluster."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        python = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        beside = {"PATH": path, "PYTHONPATH": python, "SPARK_LOCAL_IP": host, "RAY_USAGE_STATS_ENABLED": "0"}
        beside |= {"RAY_agent_register_timeout_ms": f"{LIMIT * 1000:.0f}"}  # on a busy machine
        # else one number for the machine, which a second cluster on it cannot have
        beside |= {f"{part}_METRIC_PORT": str(free_port()) for part in ("DASHBOARD", "AUTOSCALER")}
        return self.client | beside | {SECRET: self.secret, MARK: f"{self.folder}:{name}"}

    def _ray(self, name: str, host: str, options: str) -> None:
        command = [str(Path(sys.executable).parent / "ray"), "start", f"--node-ip-address={host}", *options.split()]
        command += [f"--temp-dir={self.folder / name}", f"--object-store-memory={STORE_BYTES}", "--disable-usage-stats"]
        command += [f"--dashboard-agent-listen-port={free_port()}"]  # else one number on the machine
        while self._start(name, command, host).wait(LIMIT):
            # a node gives itself 30 s to start, which a busy machine may not have for it
            assert "timed out during startup" in self.said(name), self.said(name)
            self.kill(name)

    def _spark(self, name: str, options: str, host: str) -> None:
        import pyspark

        main, *rest = options.split()
        command = [str(Path(pyspark.__file__).parent / "bin" / "spark-class"), f"org.apache.spark.deploy.{main}", *rest]
        self._start(name, [*command, "--properties-file", str(self.folder / "spark.conf")], host)

    def _start(self, name: str, command: list[str], host: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._machine(name, host),
                start_new_session=True,
            )

    def said(self, name: str) -> str:
        """Return the log of a node's first process."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def processes(self, name: str) -> list[psutil.Process]:
        """Return all processes of a node."""
        return _marked(f"{self.folder}:{name}")

    def kill(self, name: str) -> None:
        """End a node as a power cut does."""
        self._signal(name, signal.SIGKILL)

    def halt(self, name: str) -> None:
        """Stop a node's processes without ending them."""
        self._signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a halted node go on."""
        self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: signal.Signals) -> None:
        for process in self.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK, "").startswith(mark):
                found.append(process)
    return found


def _reap(folder: Path) -> None:
    """Wait for the end of who started a cluster, however it comes, and end the cluster."""
    sys.stdin.read()
    for process in _marked(f"{folder}:"):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def _listens(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


if __name__ == "__main__":
    _reap(Path(sys.argv[1]))
