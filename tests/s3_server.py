"""An S3 server on loopback, a process of its own (moto's), and a proxy in front of it that can fail or be slow."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow.fs as pafs
import pytest

from topicscale import storage
from topicscale.config import StorageConfig

BUCKET = "corpora"
SECRET = "wJalrXUtnFEMI-not-a-real-key"
CONTROL = "/-control"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Yield the address of a server that has the bucket :data:`BUCKET`. The environment must hold :data:`ENVIRONMENT`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, "the S3 server ended: is moto[server] installed?"
            assert time.monotonic() < until, "the S3 server does not answer"
            time.sleep(0.1)
        system = pafs.S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True)
        system.create_dir(BUCKET)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def reached() -> Iterator[str]:
    """Yield the address of a server, which this process reaches object stores by as long as it runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with server() as address:
            before = storage.settings()
            storage.use(StorageConfig(endpoint=address))
            try:
                yield address
            finally:
                storage.use(before)


class Proxy:
    """Passes requests on to a server, or fails, or waits first: a process of its own, as an engine may wait for it with this one's lock."""

    def __init__(self, behind: str) -> None:
        command = [sys.executable, "-m", "tests.s3_server", behind.removeprefix("http://")]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._port = int(self._process.stdout.readline())
        self.address = f"http://127.0.0.1:{self._port}"

    def set(self, *, failing: float = 0.0, delay: float = 0.0) -> None:
        """Answer 503 for so many seconds from now on, and wait so many before each answer."""
        self._tell({"failing": failing, "delay": delay})

    def refused(self) -> int:
        """Return how many requests were answered with 503."""
        return int(self._tell({})["refused"])

    def _tell(self, what: dict[str, float]) -> dict[str, float]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("POST", CONTROL, body=json.dumps(what))
            told: dict[str, float] = json.loads(connection.getresponse().read())
            return told
        finally:
            connection.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    behind = ""
    until = 0.0
    delay = 0.0
    refused = 0

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _pass(self) -> None:
        body = self._body()
        if self.path == CONTROL:
            self._control(json.loads(body))
            return
        time.sleep(self.server.delay)
        if time.monotonic() < self.server.until:
            self.server.refused += 1
            self._answer(
                503, {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>"
            )
            return
        connection = http.client.HTTPConnection(self.server.behind, timeout=60)
        try:
            connection.request(
                self.command,
                self.path,
                body=body,
                headers={k: v for k, v in self.headers.items() if k.lower() not in ("expect", "connection", "transfer-encoding")},
            )
            answer = connection.getresponse()
            self._answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _control(self, told: dict[str, float]) -> None:
        if told:
            self.server.until, self.server.delay = time.monotonic() + told["failing"], told["delay"]
        self._answer(200, {}, json.dumps({"refused": self.server.refused}).encode())

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    proxy = _Server(("127.0.0.1", 0), _Handler)
    proxy.behind = sys.argv[1]
    print(proxy.server_port, flush=True)
    proxy.serve_forever()
