"""What does a server look like through a network that fails in every way that networks do?

A proxy on the loopback, in front of a real server or of none, whose ``fault`` can be changed at any moment:

| fault | what a client sees |
|---|---|
| ``none`` | the real server |
| ``refused`` | no connection |
| ``401``, ``500``, ``429`` | an error in JSON; the last asks to come back in a second |
| ``hanging`` | a connection, and never an answer while the fault lasts |
| ``dying`` | the beginning of an answer |
| ``unanswered`` | no answer, although the real server did what was asked |
| ``garbage`` | status 200 with the page of a hotel's network |
| ``mixed`` | one of these after the other, the real server in between |

``python -m torture.faulty_server hanging [http://127.0.0.1:5000]`` serves until it is interrupted.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import itertools
import json
import socketserver
import sys
import threading
from collections import Counter
from types import TracebackType
from typing import Literal, Self, get_args
from urllib.parse import urlsplit

__all__ = ["Fault", "FaultyServer"]

Fault = Literal["none", "refused", "401", "500", "429", "hanging", "dying", "unanswered", "garbage", "mixed"]

_Answer = tuple[int, list[tuple[str, str]], bytes]

_MIXED: tuple[Fault, ...] = ("none", "500", "none", "429", "none", "dying", "none", "unanswered", "none", "garbage")
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "host"}


class FaultyServer:
    """A proxy that fails on demand; use it in a ``with`` block.

    Attributes:
        url: Where it listens; the same for its whole life.
        seen: How many requests met each fault.
    """

    def __init__(self, upstream: str = "", fault: Fault = "none") -> None:
        self.seen: Counter[Fault] = Counter()
        self._upstream = urlsplit(upstream).netloc
        self._fault: Fault = "none"
        self._mixed = itertools.cycle(_MIXED)
        self._changed = threading.Condition()
        self._server: _Listener | None = None
        self._port = 0
        self._listen()
        self.url = f"http://127.0.0.1:{self._port}"
        self.fault = fault

    @property
    def fault(self) -> Fault:
        """How it fails now."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        with self._changed:
            self._fault = fault
            self._changed.notify_all()
        if fault == "refused":
            self._leave()
        elif self._server is None:
            self._listen()

    def wait_until_met(self, fault: Fault, timeout: float) -> bool:
        """Wait until a request has met the fault; False if none has in ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self.seen[fault] > 0, timeout)

    def _listen(self) -> None:
        self._server = _Listener(("127.0.0.1", self._port), _Handler)
        self._server.owner = self
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _leave(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def next_fault(self) -> Fault:
        """What becomes of the request that just came in."""
        with self._changed:
            fault = next(self._mixed) if self._fault == "mixed" else self._fault
            self.seen[fault] += 1
            self._changed.notify_all()
        return fault

    def hang(self) -> None:
        """Return when the fault is another one."""
        with self._changed:
            self._changed.wait_for(lambda: self._fault != "hanging")

    def ask_upstream(self, method: str, path: str, headers: dict[str, str], body: bytes) -> _Answer:
        """What the real server answers: status, headers, content."""
        with contextlib.closing(http.client.HTTPConnection(self._upstream, timeout=60)) as connection:
            connection.request(method, path, body=body, headers=headers | {"Host": self._upstream})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.fault = "none"
        self._leave()


class _Listener(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    owner: FaultyServer

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has left is no news here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Listener

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match self.server.owner.next_fault():
            case "401":
                self._send(401, json.dumps({"error_code": "UNAUTHENTICATED", "message": "planted"}).encode())
            case "500":
                self._send(500, json.dumps({"error_code": "INTERNAL_ERROR", "message": "planted"}).encode())
            case "429":
                message = {"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "planted"}
                self._send(429, json.dumps(message).encode(), {"Retry-After": "1"})
            case "hanging":
                self.server.owner.hang()
            case "dying":
                self.wfile.write(
                    b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"r'
                )
            case "unanswered":
                self._ask(body)
            case "garbage":
                self._send(200, b"<html>Welcome to our hotel!</html>", {"Content-Type": "text/html"})
            case _:
                self._pass_on(self._ask(body))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _answer  # noqa: N815 - the names that http.server calls

    def _ask(self, body: bytes) -> _Answer:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        return self.server.owner.ask_upstream(self.command, self.path, headers, body)

    def _pass_on(self, answer: _Answer) -> None:
        status, headers, content = answer
        self._send(status, content, {name: value for name, value in headers if name.lower() not in _HOP_BY_HOP})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the signature of http.server
        """Nobody reads it."""


def main() -> None:
    """Serve the fault named by the first argument, in front of the server named by the second."""
    known: dict[str, Fault] = {fault: fault for fault in get_args(Fault)}
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        raise SystemExit(f"give one of {', '.join(known)}")
    with FaultyServer(sys.argv[2] if len(sys.argv) > 2 else "", known[sys.argv[1]]) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
