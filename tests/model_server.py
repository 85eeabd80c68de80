"""A server on loopback that speaks as an OpenAI-compatible one does, and says what a test tells it to."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Say = Callable[[str], "str | int"]
"""From the prompt (its last message) to what is answered, or to a status code."""


class Recorder:
    """What a server was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.prompts: list[str] = []
        self.headers: list[dict[str, str]] = []


@contextlib.contextmanager
def serving(say: Say) -> Iterator[Recorder]:
    """Run a server for the time of a with block."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": "test-model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][-1]["content"]
            with lock:
                recorder.prompts.append(prompt)
                recorder.headers.append(dict(self.headers))
                said = say(prompt)
            if isinstance(said, int):
                self._send(said, {"error": {"message": "as the test wants it"}})
                return
            usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(said.split())}
            self._send(200, {"choices": [{"message": {"content": said}, "finish_reason": "stop"}], "usage": usage})

        def _send(self, status: int, content: object) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    recorder = Recorder(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
