"""A small S3 server over real HTTP that is as strict as the strictest stores, and fails as told.

Strict: it answers 501 to checksum headers and trailers, wants Content-MD5 with DeleteObjects, checks the body's
SHA-256, the access key and the time of the signature. It runs in threads of the test's process.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.support.s3servers import KEY_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_SKEW_S = 900.0
BUCKET = "bucket"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer instead of the right one; *effect*: the request is carried out all the same."""

    status: int
    code: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    effect: bool = False
    body: bytes | None = None
    """Instead of S3's XML."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is reset, before or after the effect."""

    effect: bool = False


@dataclass(frozen=True, slots=True)
class Truncated:
    """The right answer, but the connection ends after half of its body."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Silence for so many seconds, then the connection is closed."""

    seconds: float
    effect: bool = False


Misbehaviour = Reply | Reset | Truncated | Stall


@dataclass(slots=True)
class Seen:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    at_s: float


@dataclass(slots=True)
class Stub:
    """The state of the server; tests may change it at any time."""

    objects: dict[str, bytes] = field(default_factory=dict)
    plan: deque[Misbehaviour | None] = field(default_factory=deque)
    """For the next requests, one each; None is an honest answer."""
    seen: list[Seen] = field(default_factory=list)
    known_keys: dict[str, str] = field(default_factory=lambda: {KEY_ID: ""})
    """Access key ids, and the error code for requests signed with it, empty for none."""
    bucket_exists: bool = True
    clock_ahead_s: float = 0.0
    """How far the server's clock is ahead of this machine's."""
    ranges: bool = True
    delete_batch: bool = True
    pages: tuple[int, ...] = ()
    """For each listing: so many keys on its pages, one after the other, as long as there are more; then as asked for. A
    page may be empty. Pages are told apart by tokens alone, which say nothing to others.
    """
    tokens: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Token → the key to go on after, and the number of the page."""
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    stalls: threading.Event = field(default_factory=threading.Event)
    """Set once a request has been stalled."""
    ends: threading.Event = field(default_factory=threading.Event)
    """Set when the test is over: nothing stalls any longer."""

    def now_s(self) -> float:
        return time.time() + self.clock_ahead_s

    def count(self, method: str) -> int:
        return sum(seen.method == method for seen in self.seen)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: Stub

    def log_message(self, format: str, *args: object) -> None:
        """Tests look at `seen` instead."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(self.stub.now_s() if timestamp is None else timestamp, usegmt=True)

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.stub.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.stub.seen.append(Seen(self.command, self.path, headers, time.monotonic()))
            misbehaviour = self.stub.plan.popleft() if self.stub.plan else None
            happens = misbehaviour is None or isinstance(misbehaviour, Truncated) or misbehaviour.effect
            answer = (self._refusal(headers, body) or self._answer(headers, body)) if happens else Reply(200)
        self._send(misbehaviour, answer)

    do_GET = do_PUT = do_POST = do_DELETE = _serve

    def _send(self, misbehaviour: Misbehaviour | None, answer: Reply) -> None:
        if isinstance(misbehaviour, Reset):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if isinstance(misbehaviour, Stall):
            self.stub.stalls.set()
            self.stub.ends.wait(misbehaviour.seconds)
            self.close_connection = True
            return
        if isinstance(misbehaviour, Reply):
            answer = misbehaviour
        body = self._xml_error(answer) if answer.body is None else answer.body
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if isinstance(misbehaviour, Truncated):
            body = body[: len(body) // 2]
            self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def _xml_error(self, answer: Reply) -> bytes:
        if not answer.code:
            return b""
        return f'<?xml version="1.0"?><Error><Code>{answer.code}</Code><Message>stub</Message></Error>'.encode()

    def _refusal(self, headers: dict[str, str], body: bytes) -> Reply | None:
        for name in headers:
            if name.startswith(("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer")):
                return Reply(501, "NotImplemented")
        if "aws-chunked" in headers.get("content-encoding", "") or "transfer-encoding" in headers:
            return Reply(501, "NotImplemented")
        if headers.get("x-amz-content-sha256") != hashlib.sha256(body).hexdigest():
            return Reply(400, "XAmzContentSHA256Mismatch")
        signer = re.search(r"Credential=([^/]+)/", headers.get("authorization", ""))
        refused = self.stub.known_keys.get(signer[1], "InvalidAccessKeyId") if signer else "AccessDenied"
        if refused:
            return Reply(403, refused)
        signed = time.strptime(headers["x-amz-date"] + "UTC", "%Y%m%dT%H%M%SZ%Z")
        if abs(time.mktime(signed) - time.timezone - self.stub.now_s()) > MAX_SKEW_S:
            return Reply(403, "RequestTimeTooSkewed")
        if unquote(urlsplit(self.path).path).split("/")[1] != BUCKET or not self.stub.bucket_exists:
            return Reply(404, "NoSuchBucket")
        return None

    def _answer(self, headers: dict[str, str], body: bytes) -> Reply:
        url = urlsplit(self.path)
        key = unquote(url.path).removeprefix(f"/{BUCKET}").removeprefix("/")
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        if self.command == "PUT":
            return self._put(key, headers, body)
        if self.command == "DELETE":
            self.stub.objects.pop(key, None)
            return Reply(204, body=b"")
        if self.command == "POST":
            return self._delete_batch(headers, body)
        return self._get(key, headers) if key else self._list(query)

    def _put(self, key: str, headers: dict[str, str], body: bytes) -> Reply:
        there = self.stub.objects.get(key)
        if "if-none-match" in headers and there is not None:
            return Reply(412, "PreconditionFailed")
        if "if-match" in headers and there is None:
            return Reply(404, "NoSuchKey")
        if "if-match" in headers and there is not None and headers["if-match"] != _etag(there):
            return Reply(412, "PreconditionFailed")
        self.stub.objects[key] = body
        return Reply(200, headers=(("ETag", _etag(body)),), body=b"")

    def _get(self, key: str, headers: dict[str, str]) -> Reply:
        body = self.stub.objects.get(key)
        if body is None:
            return Reply(404, "NoSuchKey")
        if "range" not in headers or not self.stub.ranges:
            return Reply(200, headers=(("ETag", _etag(body)),), body=body)
        first, last = headers["range"].removeprefix("bytes=").split("-")
        part = body[int(first) : int(last) + 1 if last else None]
        if not part:
            return Reply(416, "InvalidRange")
        place = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
        return Reply(206, headers=(("ETag", _etag(body)), ("Content-Range", place)), body=part)

    def _list(self, query: dict[str, str]) -> Reply:
        prefix, after = query.get("prefix", ""), query.get("start-after", "")
        limit, page, token = int(query.get("max-keys", "1000")), 0, query.get("continuation-token")
        if token is not None:
            if token not in self.stub.tokens:
                return Reply(400, "InvalidArgument")
            after, page = self.stub.tokens[token]
        if page < len(self.stub.pages):
            limit = min(limit, self.stub.pages[page])
        keys = sorted(key for key in self.stub.objects if key.startswith(prefix) and key > after)
        rows = "".join(
            f"<Contents><Key>{escape(quote(key))}</Key><Size>{len(self.stub.objects[key])}</Size>"
            f"<ETag>{escape(_etag(self.stub.objects[key]))}</ETag>"
            "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys[:limit]
        )
        more = str(len(keys) > limit).lower()
        text = f"<ListBucketResult><IsTruncated>{more}</IsTruncated><EncodingType>url</EncodingType>{rows}"
        if self.stub.pages and len(keys) > limit:
            following = f"token {len(self.stub.tokens)} +/="
            self.stub.tokens[following] = (keys[limit - 1] if limit else after, page + 1)
            text += f"<NextContinuationToken>{following}</NextContinuationToken>"
        return Reply(200, body=f'<?xml version="1.0"?>{text}</ListBucketResult>'.encode())

    def _delete_batch(self, headers: dict[str, str], body: bytes) -> Reply:
        digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        if not self.stub.delete_batch:
            return Reply(501, "NotImplemented")
        if headers.get("content-md5") != digest:
            return Reply(400, "MissingContentMD5")
        for key in re.findall(r"<Key>([^<]+)</Key>", body.decode()):
            self.stub.objects.pop(key, None)
        return Reply(200, body=b'<?xml version="1.0"?><DeleteResult></DeleteResult>')


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


@contextlib.contextmanager
def serving_stub() -> Iterator[Stub]:
    """Run a stub on a free port; `url` says where."""
    stub = Stub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stub": stub}))
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.ends.set()
        server.shutdown()
        server.server_close()
        thread.join()
