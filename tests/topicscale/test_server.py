"""A server can fail in every way there is: each is one answer's error, and none holds the key."""

from __future__ import annotations

import email.utils
import json
import shutil
import signal
import ssl
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from topicscale.config import LlmConfig, load
from topicscale.errors import ConfigError, ModelError
from topicscale.llm.backend import Answer, Ask
from topicscale.llm.server import MAX_REPLY, Server

KEY = "sk-Zq8vR2mN7xKp4LwT"
VARIABLE = "A_SERVERS_KEY"

Behaviour = Callable[["Handler", int], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Scripted

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        own = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with own.lock:
            number = len(own.requests)
            sent = json.loads(body) if body else {}
            own.requests.append((self.path, dict(self.headers), sent, self.client_address))
            self.asked = sent["messages"][-1]["content"] if sent else ""
            own.under_way += 1
            own.most_under_way = max(own.most_under_way, own.under_way)
        try:
            own.behave(self, number)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with own.lock:
                own.under_way -= 1

    def send(self, status: int, content: Any, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with self.server.lock:  # what counts is the time until the answer is sent: after it, the next request may come at once
            self.server.under_way -= 1
        try:
            self.wfile.write(body)
        finally:
            with self.server.lock:
                self.server.under_way += 1

    def raw(self, data: bytes) -> None:
        self.wfile.write(data)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


class Scripted(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behave: Behaviour = lambda handler, number: handler.send(200, said("fine"))
        self.requests: list[tuple[str, dict[str, str], Any, Any]] = []
        self.context: ssl.SSLContext | None = None
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def get_request(self) -> Any:
        accepted, address = super().get_request()
        if self.context is not None:
            accepted = self.context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        return accepted, address

    def handle_error(self, *_: Any) -> None:
        pass


@pytest.fixture
def served() -> Iterator[Scripted]:
    with Scripted() as scripted:
        thread = threading.Thread(target=lambda: scripted.serve_forever(poll_interval=0.02))
        thread.start()
        yield scripted
        scripted.over.set()
        scripted.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def said(text: Any, **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | more]}


def messages(ask: Ask) -> list[tuple[str, str]]:
    return [("system", "You name topics."), ("user", " ".join(ask.keywords))]


def backend(url: str, *, sleep: Callable[[float], object] | None = lambda seconds: None, **settings: Any) -> Server:
    given: dict[str, Any] = {"model": "tiny", "backend": "server", "url": url, "api_key_env": VARIABLE, "timeout": 20.0, "attempts": 3}
    return Server(LlmConfig(**(given | settings)), messages, sleep=sleep)


def asks(number: int) -> list[Ask]:
    return [Ask((), (f"word{i}",)) for i in range(number)]


def one(served: Scripted, behave: Behaviour, **settings: Any) -> Answer:
    served.behave = behave
    server = backend(served.url, **settings)
    (answer,) = server.complete(asks(1))
    server.close()
    assert KEY not in repr(answer)
    assert (answer.text is None) == (answer.error is not None)
    assert answer.error is None or (answer.error.isprintable() and len(answer.error) < 500)
    return answer


def test_what_is_sent(served: Scripted):
    server = backend(served.url + "/", temperature=0.5, max_new_tokens=7, seed=3)
    assert server.complete(asks(1)) == [Answer("fine")]
    (path, headers, body, _) = served.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "You name topics."}, {"role": "user", "content": "word0"}],
        "temperature": 0.5,
        "max_tokens": 7,
        "seed": 3,
    }


def test_what_only_some_servers_know_is_sent_only_when_asked_for(served: Scripted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE)
    assert backend(served.url + "/chat/completions", repetition_penalty=1.2).complete(asks(1)) == [Answer("fine")]
    path, headers, body, _ = served.requests[0]
    assert path == "/v1/chat/completions"
    assert body["repetition_penalty"] == 1.2
    assert "Authorization" not in headers


def test_what_a_server_wants_otherwise_is_sent_so(served: Scripted):
    wanted = {"max_tokens": None, "max_completion_tokens": 200, "seed": None, "reasoning_effort": "low"}
    assert backend(served.url, request=wanted).complete(asks(1)) == [Answer("fine")]
    body = served.requests[0][2]
    assert (body["max_completion_tokens"], body["reasoning_effort"]) == (200, "low")
    assert not {"max_tokens", "seed"} & set(body)
    for refused in ({"messages": []}, {"api_key": "x"}):
        with pytest.raises(ConfigError, match=r"llm\.request"):
            load(values={"llm": {"request": refused}})


def test_tokens_are_counted(served: Scripted):
    usage = {"prompt_tokens": 120, "completion_tokens": 5}
    assert one(served, lambda h, n: h.send(200, said("a\nb") | {"usage": usage})) == Answer("a\nb", read=120, written=5)
    wrong = {"prompt_tokens": "many", "completion_tokens": -1}
    assert one(served, lambda h, n: h.send(200, said("x") | {"usage": wrong})) == Answer("x")
    assert one(served, lambda h, n: h.send(200, said("x") | {"usage": None})) == Answer("x")


def test_order_and_bounded_concurrency(served: Scripted):
    def behave(handler: Handler, number: int) -> None:
        asked = handler.asked
        time.sleep(0.002 * (number % 5))
        handler.send(200, said(asked))

    served.behave = behave
    server = backend(served.url, concurrency=3)
    assert [a.text for a in server.complete(asks(40))] == [f"word{i}" for i in range(40)]
    assert 1 <= served.most_under_way <= 3
    assert len({address for *_, address in served.requests}) <= 3  # connections are kept
    assert server.complete([]) == []
    server.close()


def test_as_many_at_once_as_allowed(served: Scripted):
    together = threading.Barrier(4, timeout=30)

    def behave(handler: Handler, number: int) -> None:
        together.wait()
        handler.send(200, said("fine"))

    served.behave = behave
    assert all(a.text == "fine" for a in backend(served.url, concurrency=4).complete(asks(8)))
    assert served.most_under_way == 4


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_a_busy_server_is_asked_again(served: Scripted, status: int):
    answer = one(served, lambda h, n: h.send(200, said("fine")) if n == 2 else h.send(status, {"error": {"message": "busy"}}))
    assert answer == Answer("fine")
    assert len(served.requests) == 3


def test_attempts_are_bounded_and_counted(served: Scripted):
    answer = one(served, lambda h, n: h.send(503, {"error": {"message": "loading\x1b[31m\nmodel"}}))
    assert answer.error == "status 503 (Service Unavailable): loading [31m model, at the last of 3 attempts"
    assert len(served.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 418])
def test_a_refusal_is_final(served: Scripted, status: int):
    answer = one(served, lambda h, n: h.send(status, {"error": {"message": f"no: {KEY} " + "x" * 5000}}))
    assert f"status {status}" in answer.error
    assert "no: ***" in answer.error
    assert len(served.requests) == 1
    assert (VARIABLE in answer.error) == (status in (401, 403))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": "plain"}', "plain"),
        (b'{"detail": [{"loc": ["body"]}]}', "body"),
        (b'{"message": "m"}', ": m"),
        (b"just text", "just text"),
        (b"<html>page</html>", "status 400 (Bad Request)"),
        (b"", "status 400 (Bad Request)"),
        (b"\xff\xfe\x00", "status 400"),
        (b"[" * 100_000, "status 400"),
        *((b"[" * depth + b"]" * depth, "status 400") for depth in (300, 500, 900, 960)),
    ],
)
def test_messages_of_every_shape(served: Scripted, body: bytes, expected: str):
    answer = one(served, lambda h, n: h.send(400, body))
    assert expected in answer.error
    assert "html" not in answer.error


def test_the_time_to_wait_is_the_servers(served: Scripted):
    waits: list[float] = []
    answer = one(served, lambda h, n: h.send(429, {}, Retry_After="7") if n == 0 else h.send(200, said("fine")), sleep=waits.append)
    assert answer.text == "fine"
    assert len(waits) == 1
    assert 7 <= waits[0] <= 8


def test_the_time_to_wait_as_a_date(served: Scripted):
    waits: list[float] = []
    date = email.utils.formatdate(time.time() + 1000, usegmt=True)
    one(served, lambda h, n: h.send(429, {}, Retry_After=date) if n == 0 else h.send(200, said("fine")), sleep=waits.append, timeout=600)
    assert waits[0] == 600  # as long as a request may take, and no longer


@pytest.mark.parametrize("after", ["soon", "-5", "nan", "1e9", "Mon, 99 Foo 2020 00:00:00 GMT", "Mon, 01 Jan 0000 00:00:00 GMT", ""])
def test_a_time_that_is_none_is_no_time(served: Scripted, after: str):
    waits: list[float] = []
    one(served, lambda h, n: h.send(503, {}, Retry_After=after), sleep=waits.append, attempts=4)
    assert len(waits) == 3
    assert all(wait <= bound for wait, bound in zip(waits, (0.5, 1, 2), strict=True))


def test_waits_grow_to_a_bound(served: Scripted):
    waits: list[float] = []
    one(served, lambda h, n: h.send(503, {}), sleep=waits.append, attempts=40)
    assert len(waits) == 39
    assert max(waits) <= 30
    assert max(waits) > 2
    assert len(set(waits)) == 39


def chunked(*chunks: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks)


WHOLE = json.dumps(said("fine")).encode()


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{'choices", "not the JSON"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 14\r\n\r\n<html>x</html>",
            "not the JSON it should be (text/html)",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n" + WHOLE, "cut short"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + WHOLE[:-5], "not the JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "not the JSON"),
        (chunked(WHOLE), "cut short"),
        (chunked(WHOLE)[:-20], "cut short"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "cut short"),
        (b"", "closed before an answer"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\n" + b"".join(b"H%d: 1\r\n" % i for i in range(200)) + b"\r\n", "more than 100 headers"),
        (b"HTTP/1.1 200 OK\r\nH: " + b"x" * 100_000 + b"\r\n\r\n", "LineTooLong"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "no choices"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull", "not the JSON"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"choices": []}', "no choices"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"error":"later"', "not the JSON"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"error":"later"}', "no choices: later"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000, "not the JSON"),
    ],
)
def test_a_broken_reply_is_tried_again(served: Scripted, reply: bytes, expected: str):
    answer = one(served, lambda h, n: h.raw(reply))
    assert expected in answer.error
    assert len(served.requests) == 3
    served.requests.clear()
    assert one(served, lambda h, n: h.send(200, said("fine")) if n else h.raw(reply)) == Answer("fine")


def test_bodies_that_end_in_other_ways_are_whole(served: Scripted):
    assert one(served, lambda h, n: h.raw(chunked(WHOLE[:9], WHOLE[9:]) + b"0\r\n\r\n")) == Answer("fine")
    assert one(served, lambda h, n: h.raw(b"HTTP/1.1 200 OK\r\n\r\n" + WHOLE)) == Answer("fine")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (said(None), "no text (it ended with 'stop')"),
        (said([{"type": "text", "text": "x"}]), "no text"),
        (said(5, finish_reason=None), "no text"),
        ({"choices": [{"message": None}]}, "no text"),
        ({"choices": [{}]}, "no text"),
        (said(""), "the answer was no label: it is empty"),
        (said(" \n", finish_reason="length"), "llm.max_new_tokens, which should be larger"),
        (said("something", finish_reason="content_filter"), "refused by the server's filter"),
        (said(None, finish_reason="content_filter"), "refused by the server's filter"),
        (said(f"my key is {KEY}!"), "repeats the server's key"),
    ],
)
def test_an_answer_without_a_text_is_final(served: Scripted, content: Any, expected: str):
    answer = one(served, lambda h, n: h.send(200, content | {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}))
    assert expected in answer.error
    assert (answer.read, answer.written) == (3, 2)
    assert len(served.requests) == 1


@pytest.mark.parametrize(
    "head", [b"Content-Length: %d" % (MAX_REPLY + 10), b"Content-Length: 1000000000000", b"X: y", b"Transfer-Encoding: chunked"]
)
def test_a_huge_reply_is_not_read(served: Scripted, head: bytes):
    def behave(handler: Handler, number: int) -> None:
        handler.close_connection = True
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + (b"-1\r\n" if b"chunked" in head else b""))
        for _ in range(MAX_REPLY // 100_000 + 1):
            handler.wfile.write(b" " * 100_000)
        served.over.wait(30)

    answer = one(served, behave)
    assert "longer than 4,000,000 bytes" in answer.error
    assert len(served.requests) == 1


def hang(data: bytes) -> Behaviour:
    def behave(handler: Handler, number: int) -> None:
        handler.raw(data)
        handler.server.over.wait(60)

    return behave


def drip(data: bytes) -> Behaviour:
    def behave(handler: Handler, number: int) -> None:
        handler.raw(data)
        while not handler.server.over.wait(0.05):
            handler.wfile.write(b" ")

    return behave


@pytest.mark.parametrize(
    "behave",
    [
        hang(b""),
        hang(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n"),
        hang(b"HTTP/1.1 200 OK\r\nContent-Le"),
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"),
        drip(b"HTTP/1.1 200 OK\r\n\r\n" + WHOLE),
        drip(b"HTTP/1.1 200 OK\r\nSlow: "),
    ],
)
def test_a_slow_server_has_its_time_and_no_more(served: Scripted, behave: Behaviour):
    begun = time.monotonic()
    answer = one(served, behave, timeout=0.3, attempts=2)
    assert answer.error.startswith("no ")
    assert answer.error.endswith(" s, at the last of 2 attempts")
    assert len(served.requests) <= 2
    assert time.monotonic() - begun < 60


def test_one_failure_costs_no_other_answer(served: Scripted):
    def behave(handler: Handler, number: int) -> None:
        asked = handler.asked
        if asked == "word3":
            handler.send(400, {"error": {"message": "too long"}})
        elif asked == "word5":
            handler.raw(b"")
        else:
            handler.send(200, said(asked))

    served.behave = behave
    answers = backend(served.url).complete(asks(9))
    assert [a.text for a in answers] == [None if i in (3, 5) else f"word{i}" for i in range(9)]
    assert "too long" in answers[3].error


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (f"https://elsewhere.example:444/v1?key={KEY}", "points to elsewhere.example,"),
        ("/v2/chat/completions", "another path of its own"),
        (f"https://{KEY}.example/", "points to ***,"),
        ("http://[", "an address that is none"),
    ],
)
@pytest.mark.parametrize("status", [301, 307])
def test_redirects_are_not_followed(served: Scripted, status: int, location: str, expected: str):
    answer = one(served, lambda h, n: h.send(status, b"", Location=location))
    assert expected in answer.error
    assert KEY.lower() not in answer.error.lower()
    assert len(served.requests) == 1


def test_a_dropped_idle_connection_is_no_failure(served: Scripted):
    def behave(handler: Handler, number: int) -> None:
        handler.send(200, said("fine"))
        if number == 0:
            handler.close_connection = True  # unannounced, as when a server tires of an idle connection

    served.behave = behave
    server = backend(served.url, attempts=1)
    for _ in range(3):
        assert server.complete(asks(1)) == [Answer("fine")]
    assert [address for *_, address in served.requests][1] == [address for *_, address in served.requests][2]


def test_a_connection_dropped_twice_is_a_failure(served: Scripted):
    served.behave = lambda h, n: h.send(200, said("fine")) if n == 0 else h.raw(b"")
    server = backend(served.url, attempts=1)
    assert server.complete(asks(1)) == [Answer("fine")]
    assert server.complete(asks(1))[0].error == "the connection was closed before an answer"
    assert len(served.requests) == 3


def test_nobody_listens(served: Scripted):
    waits: list[float] = []
    served.shutdown()
    served.server_close()
    server = backend(served.url, sleep=waits.append)
    (answer,) = server.complete(asks(1))
    assert "Connection refused" in answer.error
    assert len(waits) == 2
    with pytest.raises(ModelError, match=r"gave no answer: .*refused.* Start it, or correct llm\.url") as caught:
        server.check()
    assert served.url in str(caught.value)
    assert len(waits) == 2


@pytest.fixture
def certified(served: Scripted, tmp_path: Path) -> Path:
    """Make ``served`` speak TLS, and return its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    secret, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(secret), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, secret)
    served.context = context
    served.url = served.url.replace("http:", "https:")
    return certificate


def test_a_certificate_nobody_vouches_for_is_refused(served: Scripted, certified: Path):
    server = backend(served.url)
    (answer,) = server.complete(asks(1))
    assert "certificate cannot be verified" in answer.error
    assert "attempts" not in answer.error
    with pytest.raises(ModelError, match="certificate cannot be verified"):
        server.check()
    assert served.requests == []


def test_encrypted(served: Scripted, certified: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certified))
    assert one(served, lambda h, n: h.send(200, said("fine"))) == Answer("fine")
    slow = one(served, drip(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"), timeout=1.0, attempts=1)
    assert slow.error.startswith("no ")
    assert "within" in slow.error
    entered = threading.Event()

    def behave(handler: Handler, number: int) -> None:
        entered.set()
        served.over.wait(60)

    served.behave = behave
    server = backend(served.url, timeout=600)
    threading.Thread(target=lambda: (entered.wait(60), server.close())).start()
    assert server.complete(asks(1)) == [Answer(None, error="the backend was closed")]


def test_no_proxy_is_used(served: Scripted, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert one(served, lambda h, n: h.send(200, said("fine"))) == Answer("fine")


def test_closing_ends_what_is_under_way(served: Scripted):
    entered = threading.Event()

    def behave(handler: Handler, number: int) -> None:
        entered.set()
        served.over.wait(60)

    served.behave = behave
    server = backend(served.url, sleep=None, concurrency=2, timeout=600)
    closer = threading.Thread(target=lambda: (entered.wait(60), server.close()))
    closer.start()
    answers = server.complete(asks(5))
    closer.join()
    assert {a.error for a in answers} == {"the backend was closed"}
    assert len(served.requests) <= 2
    assert server.complete(asks(1)) == [Answer(None, error="the backend was closed")]


def test_closing_ends_a_wait(served: Scripted):
    def behave(handler: Handler, number: int) -> None:
        handler.send(429, {}, Retry_After="500")
        threading.Timer(0.05, server.close).start()

    served.behave = behave
    server = backend(served.url, sleep=None, timeout=600)
    assert server.complete(asks(1))[0].error == "the backend was closed"
    assert len(served.requests) == 1


def test_an_interrupt_stops_everything(served: Scripted):
    main = threading.main_thread().ident

    def behave(handler: Handler, number: int) -> None:
        if number == 4:
            signal.pthread_kill(main, signal.SIGINT)
        if number >= 4:
            served.over.wait(60)
        handler.send(200, said("fine"))

    served.behave = behave
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    server = backend(served.url, concurrency=2, timeout=600)
    try:
        with pytest.raises(KeyboardInterrupt):
            server.complete(asks(100))
    finally:
        signal.signal(signal.SIGINT, before)
    for thread in threading.enumerate():
        if thread.name.startswith("llm-server"):
            thread.join(timeout=30)
            assert not thread.is_alive()
    assert len(served.requests) <= 6


def models(*names: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}


@pytest.mark.parametrize("listed", [models("other", "tiny"), models("tiny:latest"), models("models/tiny"), models("tiny")["data"]])
def test_a_listed_model_is_accepted(served: Scripted, listed: Any):
    served.behave = lambda h, n: h.send(200, listed)
    backend(served.url).check()
    path, headers, *_ = served.requests[0]
    assert path == "/v1/models"
    assert headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("status", [404, 405])
def test_a_server_that_lists_no_models_is_accepted(served: Scripted, status: int):
    served.behave = lambda h, n: h.send(status, b"")
    backend(served.url).check()


@pytest.mark.parametrize(
    ("status", "content", "expected"),
    [
        (200, models("tiny-7b", *(f"m{i}" for i in range(9))), r"has no model 'tiny'. It offers: tiny-7b, .* and 5 more\. Set llm\.model"),
        (200, models(), "It offers: none"),
        (200, {"object": "list", "data": None}, "It offers: none"),
        (200, models(f"a\n\x1b{KEY}"), r"It offers: a \*\*\*\."),
        (200, {"status": "ok"}, "no list of models"),
        (200, b"<html></html>", "no list of models"),
        (
            401,
            {"error": {"message": f"Incorrect API key provided: {KEY[:9]}****{KEY[-4:]}"}},
            rf"status 401 .*variable {VARIABLE}, which is set",
        ),
        (403, {}, rf"status 403 .*variable {VARIABLE}, which is set"),
        (400, {}, "did not list its models: status 400"),
        (302, b"", "redirects are not followed"),
        (500, {}, "at the last of 3 attempts"),
    ],
)
def test_check_says_what_is_wrong(served: Scripted, status: int, content: Any, expected: str):
    served.behave = lambda h, n: h.send(status, content)
    server = backend(served.url)
    with pytest.raises(ModelError, match=expected) as caught:
        server.check()
    told = "".join(traceback.format_exception(caught.value)) + repr(server) + repr(vars(server))
    assert KEY not in told
    assert KEY[:9] not in told
    assert str(caught.value).isprintable()


def test_check_tells_that_no_key_is_set(served: Scripted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE)
    served.behave = lambda h, n: h.send(401, {})
    with pytest.raises(ModelError, match=rf"{VARIABLE}, which is not set"):
        backend(served.url).check()


@pytest.mark.parametrize("call", [Server.check, lambda server: server.complete(asks(1))])
@pytest.mark.parametrize("value", [KEY + "\n", KEY + "\r\nX-Evil: 1", f" {KEY}", KEY + "\x7f", KEY + "é"])
def test_a_key_that_is_none_is_refused_unseen(served: Scripted, monkeypatch: pytest.MonkeyPatch, value: str, call: Any):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ModelError, match=VARIABLE) as caught:
        call(backend(served.url))
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert served.requests == []


@pytest.mark.parametrize("value", [KEY, "gsk_abcdef0123456789", "hf_AbCdEf", "AIzaSyABC", ""])
def test_a_key_in_place_of_its_variables_name_is_not_shown(value: str):
    with pytest.raises(ConfigError, match=r"llm\.api_key_env must be the name") as caught:
        load(values={"llm": {"api_key_env": value}})
    assert not value or value not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "host",
    [
        "api.example.com",
        "8.8.8.8",
        "134744072",
        "0x08080808",
        "010.8.8.8",
        "[2001:4860:4860::8888]",
        "[::ffff:8.8.8.8]",
        "localhost.example",
        "api。example。com",
    ],
)
def test_no_key_travels_unencrypted(host: str):
    with pytest.raises(ModelError, match=r"unencrypted to .*https://") as caught:
        backend(f"http://{host}/v1").check()
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:1/v1",
        "http://gpu.localhost/v1",
        "http://vllm:8000/v1",
        "http://127.8.8.8/v1",
        "http://10.1.2.3/v1",
        "http://192.168.1.9/v1",
        "http://[::1]:8000/v1",
        "http://[fd00::1]/v1",
        "http://[::ffff:10.0.0.1]/v1",
        "https://api.example.com/v1",
    ],
)
def test_where_a_key_may_go(url: str):
    assert backend(url)._key() == KEY


def test_without_a_key_any_address_may_be_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "")
    assert backend("http://api.example.com/v1")._key() is None
    assert backend("http://api.example.com/v1", api_key_env="")._key() is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (None, True),
        ("localhost:8000", True),
        ("ftp://host/v1", True),
        ("http://", True),
        ("http:///v1", True),
        ("http://host/a b", True),
        ("http://host/é", True),
        ("http://host:99999/v1", False),
        ("http://[::1/v1", False),
        (f"http://user:{KEY}@host/v1", False),
        (f"https://host/v1?key={KEY}", False),
        (f"https://host/v1#{KEY}", False),
    ],
)
def test_an_address_that_is_none(url: str | None, shown: bool):
    with pytest.raises(ModelError, match=r"llm\.url must be the base address") as caught:
        backend(url)  # type: ignore[arg-type]
    assert (repr(url) in str(caught.value)) == shown
    assert KEY not in "".join(traceback.format_exception(caught.value))
