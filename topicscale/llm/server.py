"""A language model behind an OpenAI-compatible server: vLLM, TGI, Ollama, llama.cpp's server, or a hosted one.

What the server sends is hostile until proven otherwise: replies are bounded in size and in time, redirects are not followed, and its
messages reach an error as one short line from which every piece of the key is struck. No proxy is used, whatever the environment says:
prompts hold documents, and go to ``llm.url`` and nowhere else.
"""

from __future__ import annotations

import contextlib
import difflib
import email.utils
import http.client
import ipaddress
import json
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies_environment

from topicscale.config import LlmConfig
from topicscale.errors import ModelError
from topicscale.llm.backend import Answer, Ask

MAX_REPLY = 4_000_000
"""Bytes of a reply that are read at most."""
BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses after which the same request may succeed."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds between two attempts: drawn from 0 to a bound that doubles from the first to the longest (full jitter)."""
CONNECT_SECONDS = 10.0
"""Longest wait for a connection."""
CHECK_SECONDS = 30.0
"""Longest wait for the list of models."""

_CLOSED = "the backend was closed"
_T = TypeVar("_T")


class Server:
    """A server's address as a backend. The key is read from the environment at each call, and is kept nowhere.

    Each attempt may take ``config.timeout`` seconds, the connection's making included (looking up a host's name is the system's to
    bound), and each wait at most the longer of :data:`LONGEST_WAIT` and ``config.timeout``: with ``config.attempts`` that bounds a request.
    """

    def __init__(
        self, config: LlmConfig, messages: Callable[[Ask], list[tuple[str, str]]], *, sleep: Callable[[float], object] | None = None
    ) -> None:
        """Make a backend; nothing is sent yet.

        Parameters
        ----------
        messages
            Turns an ask into (role, text) pairs. Called in the thread that calls :meth:`complete`.
        sleep
            Waits a number of seconds between attempts; None waits until then or until :meth:`close`.

        Raises
        ------
        ModelError
            ``config.url`` is no base address.
        """
        self._config = config
        self._messages = messages
        self._address = _address(config.url)
        self._url = self._address.geturl()
        self._tls = ssl.create_default_context() if self._address.scheme == "https" else None
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        self._random = random.Random()
        self._lock = threading.Lock()
        self._busy: set[_Line] = set()
        self._idle: list[_Line] = []

    def check(self) -> None:
        """Ask the server for its models, so that a wrong address, key or name is said before work is done.

        A server that does not list its models (status 404 or 405) is taken as it is.

        Raises
        ------
        ModelError
            The server cannot be reached, refuses the key, does not offer ``config.model``, or the key cannot be sent to it.
        """
        key = self._key()
        try:
            seconds = min(self._config.timeout, CHECK_SECONDS)
            reply = self._persist(lambda: self._send("GET", "/models", None, key, seconds), unreachable=False)
        except _Failure as failure:
            if failure.status in (404, 405):
                return
            if failure.status is None:
                said = f"The language model's server at {self._url} gave no answer: {failure}. Start it, or correct llm.url."
            else:
                said = f"The language model's server at {self._url} did not list its models: {failure}."
            raise ModelError(said) from None
        names = _offered(reply.body)
        if names is None:
            kind = _safe(reply.kind, key, 60) or "no type"
            raise ModelError(
                f"{self._url}/models is no list of models ({kind}). llm.url must be the base of an OpenAI-compatible server, such as "
                "http://localhost:8000/v1."
            )
        model = self._config.model
        # as Ollama and Gemini list what they also answer to by a shorter name
        if not {model, f"{model}:latest", f"models/{model}"} & set(names):
            near = difflib.get_close_matches(model, [name[:200] for name in names[:1000]], n=5, cutoff=0.0)
            listed = ", ".join(_safe(name, key, 80) for name in near) or "none"
            more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
            raise ModelError(f"The server at {self._url} has no model {model!r}. It offers: {listed}{more}. Set llm.model to one of them.")

    def complete(self, asks: Sequence[Ask]) -> list[Answer]:
        """Return an answer for each, in order, with at most ``config.concurrency`` requests under way.

        An interrupt closes the backend: requests under way are cut, and no more are begun.

        Raises
        ------
        ModelError
            The key cannot be sent: nothing was.
        """
        key = self._key()
        conversations = [self._messages(ask) for ask in asks]  # before any request: a fault in one costs no others
        if not conversations:
            return []
        threads = ThreadPoolExecutor(min(self._config.concurrency, len(conversations)), thread_name_prefix="llm-server")
        try:
            answers = [threads.submit(self._answer, conversation, key) for conversation in conversations]
            return [answer.result() for answer in answers]
        except BaseException:
            self.close()
            raise
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """End all connections, for good. Requests under way become answers with an error."""
        self._closed.set()
        with self._lock:
            idle, self._idle = self._idle, []
            for line in self._busy:
                line.cut()
        for line in idle:
            line.connection.close()

    def _key(self) -> str | None:
        name = self._config.api_key_env
        key = os.environ.get(name)
        if not key:
            return None
        if not all("!" <= character <= "~" for character in key):
            raise ModelError(
                f"The key in the environment variable {name} holds a space, a line end or another character that no key has. "
                "Set the variable to the key alone."
            )
        host = self._address.hostname or ""
        if self._address.scheme == "http" and not _near(host):
            raise ModelError(
                f"The key in the environment variable {name} would travel unencrypted to {host}. Give an https:// address as llm.url, "
                "or, for a server that needs no key, an unset variable's name as llm.api_key_env."
            )
        return key

    def _answer(self, conversation: list[tuple[str, str]], key: str | None) -> Answer:
        config = self._config
        wanted: dict[str, Any] = {
            "model": config.model,
            "messages": [{"role": role, "content": text} for role, text in conversation],
            "temperature": config.temperature,
            "max_tokens": config.max_new_tokens,
            "seed": config.seed,
        }
        if config.repetition_penalty != 1:  # vLLM's word: a stricter server refuses what it does not know
            wanted["repetition_penalty"] = config.repetition_penalty
        wanted |= config.request
        body = json.dumps({name: value for name, value in wanted.items() if value is not None}).encode()
        try:
            return self._persist(lambda: _read(self._send("POST", "/chat/completions", body, key, config.timeout), key))
        except _Failure as failure:
            return Answer(None, error=str(failure))

    def _persist(self, send: Callable[[], _T], *, unreachable: bool = True) -> _T:
        """Return what ``send`` returns, at the latest of ``config.attempts`` attempts; ``unreachable``: also where nothing answered."""
        attempt = 1
        while True:
            if self._closed.is_set():
                raise _Failure(_CLOSED)
            try:
                return send()
            except _Failure as failure:
                if not failure.again or (failure.status is None and not unreachable):
                    raise
                if attempt >= self._config.attempts:
                    tried = f", at the last of {attempt} attempts" if attempt > 1 else ""
                    raise _Failure(f"{failure}{tried}", status=failure.status) from None
                wait = self._random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempt - 1, 10)))
                if failure.after is not None:  # on top: those who were told the same time do not come back at the same moment
                    wait = min(failure.after + wait, self._config.timeout)
            self._sleep(wait)
            attempt += 1

    def _send(self, method: str, path: str, body: bytes | None, key: str | None, seconds: float) -> _Reply:
        """Return a reply of status 200 to 299.

        Raises
        ------
        _Failure
            There is none.
        """
        headers = {"Accept": "application/json", "User-Agent": "topicscale"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        request = _Request(method, self._address.path + path, body, headers, time.monotonic() + seconds)
        try:
            try:
                reply = self._exchange(request, fresh=False)
            except _Dropped:
                reply = self._exchange(request, fresh=True)
        except ssl.SSLCertVerificationError as error:
            raise _Failure(f"its certificate cannot be verified ({_safe(error.verify_message, key, 100)})") from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a number of the protocol that is none
            if self._closed.is_set():
                raise _Failure(_CLOSED) from None
            if isinstance(error, TimeoutError) or request.left() <= 0:
                raise _Failure(f"no whole answer within {seconds:g} s", again=True) from None
            raise _Failure(_why(error, key), again=True) from None
        if not 200 <= reply.status < 300:
            raise self._refusal(reply, key)
        if len(reply.body) > MAX_REPLY:
            raise _Failure(f"the answer is longer than {MAX_REPLY:,} bytes", status=reply.status)
        return reply

    def _exchange(self, request: _Request, *, fresh: bool) -> _Reply:
        with self._lock:
            line = self._idle.pop() if self._idle and not fresh else self._line()
            self._busy.add(line)
        keep = False
        try:
            reply, keep = self._talk(line, request)
            return reply
        finally:
            with self._lock:
                self._busy.discard(line)
                keep = keep and not self._closed.is_set()
                if keep:
                    self._idle.append(line)
            if not keep:
                line.connection.close()

    def _line(self) -> _Line:
        host, port = self._address.hostname or "", self._address.port
        if self._tls is not None:
            return _Line(http.client.HTTPSConnection(host, port, context=self._tls))
        return _Line(http.client.HTTPConnection(host, port))

    def _talk(self, line: _Line, request: _Request) -> tuple[_Reply, bool]:
        """Return the reply, and whether the connection can be used again."""
        connection, used = line.connection, line.socket is not None
        if line.socket is None:
            connection.timeout = min(max(request.left(), 0.001), CONNECT_SECONDS)
            try:
                connection.connect()
            except TimeoutError:
                raise _Failure(f"no connection within {connection.timeout:.3g} s", again=True) from None
            line.socket = connection.sock
        # a socket's own timeout begins anew with every byte
        watchdog = threading.Timer(max(request.left(), 0), line.cut)
        watchdog.daemon = True
        watchdog.start()
        try:
            line.socket.settimeout(max(request.left(), 0.001))
            if self._closed.is_set():
                raise ConnectionAbortedError
            try:
                connection.request(request.method, request.target, request.body, request.headers)
                response = connection.getresponse()
            except (ConnectionError, ssl.SSLEOFError):
                if used and not self._closed.is_set() and request.left() > 0:
                    raise _Dropped from None
                raise
            with contextlib.closing(response):
                content = bytearray()
                # read1, as read trusts the server's word on how much there is to hold
                while len(content) <= MAX_REPLY and (piece := response.read1(65_536)):
                    content += piece
                if request.left() <= 0:
                    raise TimeoutError
                complete = len(content) <= MAX_REPLY
                if complete and response.length:
                    raise http.client.IncompleteRead(bytes(content), response.length)
                kind, location = response.headers.get("Content-Type", ""), response.headers.get("Location", "")
                reply = _Reply(response.status, bytes(content), kind, response.headers.get("Retry-After"), location)
                return reply, complete and not response.will_close
        finally:
            watchdog.cancel()

    def _refusal(self, reply: _Reply, key: str | None) -> _Failure:
        status = reply.status
        phrase = http.client.responses.get(status)
        said = f"status {status}" + (f" ({phrase})" if phrase else "")
        if 300 <= status < 400:
            host = _safe(_host(reply.location), key, 100) or "another path of its own"
            said += f": it points to {host}, and redirects are not followed; give the final address as llm.url"
            return _Failure(said, status=status)
        if words := _safe(_message(reply.body), key, 200):
            said += f": {words}"
        if status in (401, 403):
            name = self._config.api_key_env
            said += f"; the key is taken from the environment variable {name}, which is {'not set' if key is None else 'set'}"
        elif status == 404:
            said += f"; is llm.url right ({self._url}), and llm.model?"
        return _Failure(said, status=status, again=status in BUSY, after=_seconds(reply.after))


class _Line:
    """A connection, and the socket under it, which the connection forgets where the server is going to close."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self.connection = connection
        self.socket: socket.socket | None = None

    def cut(self) -> None:
        """Wake whoever waits for the other side, from any thread."""
        if self.socket is not None:
            with contextlib.suppress(OSError):
                # an SSLSocket's own shutdown takes its state away from under the thread that reads
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)


class _Request(NamedTuple):
    method: str
    target: str
    body: bytes | None
    headers: dict[str, str]
    deadline: float

    def left(self) -> float:
        return self.deadline - time.monotonic()


class _Reply(NamedTuple):
    status: int
    body: bytes
    kind: str
    after: str | None
    location: str


class _Failure(Exception):
    """Why a request got no answer; ``again``: the next attempt may; ``after``: in this many seconds."""

    def __init__(self, said: str, *, status: int | None = None, again: bool = False, after: float | None = None) -> None:
        super().__init__(said)
        self.status = status
        self.again = again
        self.after = after


class _Dropped(Exception):
    """An idle connection had been closed by the other side."""


def _address(url: str | None) -> SplitResult:
    rule = "llm.url must be the base address of a server, such as http://localhost:8000/v1."
    try:
        parts = urlsplit((url or "").rstrip("/").removesuffix("/chat/completions").rstrip("/"))
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ModelError(f"{rule} What it holds is none.") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ModelError(f"{rule} A user, a password or a query has no place in it; what it holds is not shown.")
    path = parts.path
    if not whole or not path.isascii() or not path.isprintable() or " " in path:
        raise ModelError(f"{rule} Got {url!r} instead.")
    return parts


def _near(host: str) -> bool:
    """Return whether what is sent to a host stays within the machine or its private network."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # to those who connect, 134744072 and 0x08080808 are addresses too, and some letters beyond ASCII are dots
        single = re.fullmatch(r"[a-z0-9_-]+", host) and not re.fullmatch(r"0x[0-9a-f]*|[0-9]+", host)
        return bool(single) or host.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_private)


def _host(location: str) -> str:
    try:
        return urlsplit(location).hostname or ""
    except ValueError:
        return "an address that is none"


def _why(error: Exception, key: str | None) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "the answer was cut short"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed before an answer"
    if isinstance(error, OSError) and error.strerror:
        proxied = getproxies_environment().keys() & {"http", "https", "all"}
        beside = "; proxies of the environment are not used" if proxied else ""
        return f"the connection failed ({_safe(error.strerror, key, 100)}{beside})"
    return f"no answer that can be read ({_safe(f'{type(error).__name__}: {error}', key, 100)})"


def _safe(text: str, key: str | None, limit: int) -> str:
    """Return the beginning of a foreign text as one line, without the words that hold a piece of the key."""
    words = "".join(character if character.isprintable() else " " for character in text[:2000]).split()
    if key is not None:
        size = min(8, len(key))
        pieces = {key[at : at + size].lower() for at in range(len(key) - size + 1)}  # a host's name comes in lower case
        words = ["***" if any(piece in word.lower() for piece in pieces) else word for word in words]
    line = " ".join(words)
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _seconds(after: str | None) -> float | None:
    """Return what a Retry-After header asks for, from now on; None where it asks for nothing that is understood."""
    if after is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", after.strip()):
        return float(after)
    try:
        when = email.utils.parsedate_to_datetime(after)
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _message(body: bytes) -> str:
    """Return what a reply of any of the known shapes says went wrong; empty where it is a page."""
    found = _parsed(body)
    if found is None:
        text = body[:2000].decode(errors="replace").strip()
        return "" if text.startswith(("<", "{", "[")) else text
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    if isinstance(found, str):
        return found
    with contextlib.suppress(RecursionError):  # what could just be read need not be shallow enough to be written
        return json.dumps(found)
    return ""


def _offered(body: bytes) -> list[str] | None:
    found = _parsed(body)
    if isinstance(found, dict) and "data" in found:
        found = found["data"] or []
    if not isinstance(found, list):
        return None
    return [item["id"] for item in found if isinstance(item, dict) and isinstance(item.get("id"), str)]


def _read(reply: _Reply, key: str | None) -> Answer:
    found = _parsed(reply.body)
    if found is None:
        kind = _safe(reply.kind, key, 60) or "no type"
        raise _Failure(f"the answer is not the JSON it should be ({kind})", status=reply.status, again=True)
    choices = found.get("choices") if isinstance(found, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        said = _safe(_message(reply.body), key, 200)
        raise _Failure(f"the answer holds no choices: {said}", status=reply.status, again=True)
    usage = found.get("usage")
    read, written = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    reason, message = choices[0].get("finish_reason"), choices[0].get("message")
    if reason == "content_filter":
        return Answer(None, error="refused by the server's filter", read=read, written=written)
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str):
        why = f" (it ended with {_safe(reason, key, 40)!r})" if isinstance(reason, str) else ""
        return Answer(None, error=f"the answer holds no text{why}", read=read, written=written)
    if key is not None and len(key) >= 8 and key in text:
        return Answer(None, error="the answer repeats the server's key", read=read, written=written)
    if not text.strip():  # no label, and to be asked again once it is seen why: nothing is kept of it
        why = "" if reason != "length" else ": its thoughts took all of llm.max_new_tokens, which should be larger"
        return Answer(None, error=f"the answer was no label: it is empty{why}", read=read, written=written)
    return Answer(text, read=read, written=written)


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else 0
