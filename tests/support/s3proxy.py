"""A proxy before an S3 server: it counts every request and its bytes, and on demand answers wrongly or not at all.

It runs in threads of the test's process and listens on all addresses, so that other network namespaces reach it.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection"})
_POLL_S = 0.05


class Mood(Enum):
    """What happens to each request."""

    HONEST = "honest"
    ERROR_500 = "500"
    DENIED = "403"
    RESET = "reset"
    SILENT = "silent"
    """No answer, until the mood changes; then the connection is closed."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came: *key* below the bucket, *n_bytes* of its body, *at_s* by time.monotonic."""

    method: str
    key: str
    n_bytes: int
    at_s: float
    query: str


@dataclass(slots=True)
class Proxy:
    """A running proxy. Tests may set `mood` at any time; `only` limits it to the requests for which it is true."""

    upstream: tuple[str, int]
    port: int = 0
    mood: Mood = Mood.HONEST
    only: Callable[[Request], bool] | None = None
    seen: list[Request] = field(default_factory=list)

    def url(self, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}"

    def mark(self) -> int:
        """Where `since` may start later."""
        return len(self.seen)

    def since(self, mark: int = 0, method: str | None = None) -> list[Request]:
        """The requests that came since *mark*."""
        return [one for one in self.seen[mark:] if method in (None, one.method)]

    def mood_for(self, request: Request) -> Mood:
        return self.mood if self.only is None or self.only(request) else Mood.HONEST


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave in two writes; Nagle's algorithm would hold the second back for 40 ms.
    disable_nagle_algorithm = True
    proxy: Proxy

    def log_message(self, format: str, *args: object) -> None:
        """Tests look at `seen` instead."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        key = unquote(url.path).lstrip("/").partition("/")[2]
        request = Request(self.command, key, len(body), time.monotonic(), url.query)
        self.proxy.seen.append(request)
        mood = self.proxy.mood_for(request)
        if mood is Mood.SILENT:
            while self.proxy.mood_for(request) is Mood.SILENT:
                time.sleep(_POLL_S)
            self.close_connection = True
        elif mood is Mood.RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif mood is Mood.HONEST:
            self._forward(body)
        else:
            self._refuse(mood)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _refuse(self, mood: Mood) -> None:
        status, code = (500, "InternalError") if mood is Mood.ERROR_500 else (403, "AccessDenied")
        text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>as told by a test</Message></Error>'.encode()
        self._answer(status, [("Content-Type", "application/xml")], text)

    def _forward(self, body: bytes) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        upstream = http.client.HTTPConnection(*self.proxy.upstream, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            # The server is away: so is the proxy.
            self.close_connection = True
            return
        finally:
            upstream.close()
        kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in (*_HOP, "content-length", "server", "date")]
        self._answer(answer.status, kept, content)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        with contextlib.suppress(OSError):
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no error of the proxy's."""


@contextlib.contextmanager
def proxied(upstream_url: str) -> Iterator[Proxy]:
    """Run a proxy before *upstream_url* on a free port."""
    parts = urlsplit(upstream_url)
    assert parts.hostname is not None
    assert parts.port is not None
    proxy = Proxy((parts.hostname, parts.port))
    server = _Server(("0.0.0.0", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    proxy.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.mood = Mood.HONEST
        server.shutdown()
        server.server_close()
        thread.join()
