"""An object store in a bucket of S3 or of something compatible; the only importer of botocore.

What is sent is what every compatible store understands: signature version 4 with the SHA-256 of the whole body, a
plain body with its length, no checksum trailers, and Content-MD5 where a checksum must be (DeleteObjects).
"""

from __future__ import annotations

import base64
import calendar
import hashlib
import os
import re
import time
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

import trio
from botocore.config import Config
from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError
from botocore.session import Session

from sessfs.errors import RemoteCorrupt, RemoteError, RemoteMissing, RemoteUnavailable, RemoteUnsuitable
from sessfs.remote.admission import Admission, ByteBudget
from sessfs.remote.objectstore import (
    LIST_PAGE,
    Blob,
    Capabilities,
    Entry,
    Meter,
    ObjectStore,
    StoreStatistics,
    check_key,
    check_range,
)
from sessfs.remote.s3errors import (
    CAUGHT,
    CLOCK_OFF,
    CREDENTIALS_EXPIRED,
    CREDENTIALS_ROTATED,
    error_code,
    map_error,
    response_header,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sessfs.remote.retrying import Health

T = TypeVar("T")

_ASK_AGAIN = CREDENTIALS_EXPIRED | CREDENTIALS_ROTATED
SKEW_S = 60.0  # stores allow 15 minutes; what is less than this needs no correction
EXPECT_BYTES = 1 << 20  # smaller bodies are sent without first waiting for "100 Continue", a round trip
SMALL_BYTES = 16 << 10  # from bodies up to this is learned what the store's etags are: its MD5 takes 30 us
WHOLE_READ_BYTES = 1 << 20  # booked against the memory bound for a read whose length is not known before

# By the host of the endpoint: the name for people, and where the region stands in the host, if it does.
_HOSTS = (
    (re.compile(r"(\.(?P<region>[a-z]{2}-[a-z-]+-\d))?(\.vpce)?\.amazonaws\.com(\.cn)?$"), "AWS S3", None),
    (re.compile(r"\.r2\.cloudflarestorage\.com$"), "Cloudflare R2", "auto"),
    (re.compile(r"^s3\.(?P<region>[a-z0-9-]+)\.backblazeb2\.com$"), "Backblaze B2", None),
    (re.compile(r"\.supabase\.(co|red|com)$"), "Supabase Storage", None),
    (re.compile(r"^storage\.googleapis\.com$"), "Google Cloud Storage", "auto"),
)


class _Cursor(NamedTuple):
    """Where a listing goes on: after a key, the last that was seen, and by the store's own *token* if it gave one."""

    after: str
    token: str | None = None


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where the bucket is and how hard it may be used; credentials come from the usual chain of AWS."""

    bucket: str
    prefix: str = ""
    """Put before every key with a `/`; empty for the whole bucket."""
    endpoint_url: str | None = None
    region: str | None = None
    addressing: str = "auto"
    """"path", "virtual", or "auto": virtual for AWS, path for all others."""
    connections: int = 16
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    """The longest silence of the store while a request is answered."""
    upload_bytes: int = 64 << 20
    """Bound on the bytes of bodies being sent at once; a larger single body goes alone."""
    download_bytes: int = 64 << 20
    """Likewise for bodies being read."""


class ClockOffset:
    """How many seconds to add to this machine's clock when signing; read by the threads that sign."""

    def __init__(self) -> None:
        self.seconds = 0.0


class _ShiftedContext(dict[str, Any]):
    """The context of one request, in which the signer's timestamp is moved by the offset.

    botocore has no setting for a clock that is off (boto3 issue 1252); its signer keeps the time it signs with in this
    one entry, writes it before all use, and takes the X-Amz-Date header and the scope from it.
    """

    def __init__(self, context: dict[str, Any], offset_s: float) -> None:
        super().__init__(context)
        self._offset_s = offset_s

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "timestamp":
            signed_s = calendar.timegm(time.strptime(value, "%Y%m%dT%H%M%SZ")) + self._offset_s
            value = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(signed_s))
        super().__setitem__(key, value)


def make_client(settings: S3Settings, offset: ClockOffset) -> Any:
    """A new client, with credentials as the chain gives them now. Blocks, up to seconds: call it in a thread."""
    session = Session()
    client = _build(session, settings, _addressing(settings, settings.endpoint_url))
    if settings.endpoint_url is None and _addressing(settings, client.meta.endpoint_url) == "path":
        # Only now is it known that AWS_ENDPOINT_URL or the config file names another endpoint.
        client.close()
        client = _build(session, settings, "path")

    def before_sign(request: Any, operation_name: str, **_: Any) -> None:
        if operation_name == "DeleteObjects":
            _use_content_md5(request)
        if operation_name == "PutObject" and _size(request.data) < EXPECT_BYTES:
            del request.headers["Expect"]
        if offset.seconds:
            request.context = _ShiftedContext(request.context, offset.seconds)

    client.meta.events.register("before-sign.s3", before_sign)
    return client


def _size(body: BinaryIO) -> int:
    """Bytes in a seekable body that stands at its start. (BytesIO.getbuffer would copy all of them.)"""
    size = body.seek(0, os.SEEK_END)
    body.seek(0)
    return size


def _addressing(settings: S3Settings, endpoint_url: str | None) -> str:
    """The style for botocore, whose "auto" is virtual wherever DNS and TLS allow it."""
    if settings.addressing != "auto" or endpoint_url is None:
        return settings.addressing
    return "auto" if endpoint_name(endpoint_url) == "AWS S3" else "path"


def _build(session: Session, settings: S3Settings, addressing: str) -> Any:
    config = Config(
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.read_timeout_s,
        max_pool_connections=settings.connections,
        retries={"total_max_attempts": 1, "mode": "standard"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        signature_version="s3v4",
        tcp_keepalive=True,
        s3=cast("Any", {"addressing_style": addressing, "payload_signing_enabled": True}),
    )
    region = settings.region or session.get_config_variable("region") or guess_region(settings.endpoint_url)
    return session.create_client("s3", endpoint_url=settings.endpoint_url, region_name=region, config=config)


def _use_content_md5(request: Any) -> None:
    """DeleteObjects must carry a checksum: some stores insist on MD5, others refuse the newer ones; all know MD5."""
    for name in [name for name in request.headers if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-"))]:
        del request.headers[name]
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def endpoint_name(endpoint_url: str) -> str:
    """What the endpoint is called, by its host: server headers lie (rclone says AmazonS3)."""
    host = urlsplit(endpoint_url).hostname or endpoint_url
    return next((name for pattern, name, _ in _HOSTS if pattern.search(host)), host)


def guess_region(endpoint_url: str | None) -> str:
    """The region to sign for when none is set: as the host says, else us-east-1, which most accept."""
    host = urlsplit(endpoint_url or "").hostname or ""
    for pattern, _, region in _HOSTS:
        if match := pattern.search(host):
            return region or match.groupdict().get("region") or "us-east-1"
    return "us-east-1"


def _list_versions(arguments: dict[str, Any], client: Any) -> Any:
    return client.list_object_versions(**arguments)


def _delete_object(arguments: dict[str, Any], client: Any) -> None:
    client.delete_object(**arguments)


async def open_s3(settings: S3Settings, health: Health, now_s: Callable[[], float] = time.time) -> S3Store:
    """Make the client, in a thread, and the store around it. No request is sent to the bucket.

    Raises RemoteDenied or RemoteUnsuitable when settings or credentials can't be used.
    """
    offset = ClockOffset()
    try:
        client = await trio.to_thread.run_sync(make_client, settings, offset)
    except CAUGHT as exc:
        raise map_error(exc, "open", f"s3://{settings.bucket}") from exc
    return S3Store(settings, client, offset, health, now_s)


class S3Store(ObjectStore):
    """Objects in a bucket, through one client that all worker threads share; see `open_s3`.

    A request occupies one of `connections` threads until it is over, also when the task that waits for it is
    cancelled; bodies on their way are bounded in bytes. No request is repeated here. After an error that new
    credentials may cure, the next request first asks the credential chain again; after one that says that the clock is
    off, requests are signed with the store's time, and *health* says by how much.
    """

    def __init__(
        self,
        settings: S3Settings,
        client: Any,
        offset: ClockOffset,
        health: Health,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._prefix = settings.prefix.strip("/") + "/" if settings.prefix.strip("/") else ""
        self._location = f"s3://{settings.bucket}/{self._prefix}".rstrip("/")
        self._client = client
        self._offset = offset
        self._health = health
        self._now_s = now_s
        self._credentials_stale = False
        self._rebuilding = trio.Lock()
        self._threads = trio.CapacityLimiter(settings.connections)
        self._uploads = ByteBudget(settings.upload_bytes)
        self._downloads = ByteBudget(settings.download_bytes)
        self._meter = Meter()
        self._delete_batch: bool | None = None
        self._md5_etags: bool | None = None

    async def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        """As ObjectStore, by one GetObject."""
        check_range(start, length)
        first = start or 0
        arguments = self._object(key)
        if first or length is not None:
            arguments["Range"] = f"bytes={first}-" + ("" if length is None else str(first + length - 1))

        def work(client: Any) -> tuple[Any, bytes]:
            answer = client.get_object(**arguments)
            with closing(answer["Body"]) as stream:
                return answer, stream.read()

        admission = Admission(self._threads, self._downloads, length or WHOLE_READ_BYTES)
        answer, body = await self._call("get", key, work, admission)
        if "Range" in arguments:
            body = self._in_range(key, answer.get("ContentRange"), body, first, length)
        self._meter.received(len(body))
        return Blob(body, self._etag(answer, "get", key))

    async def put(self, key: str, body: bytes) -> str:
        """As ObjectStore, by one PutObject."""
        return await self._put("put", key, body, {})

    async def put_if(self, key: str, body: bytes, etag: str | None) -> str:
        """As ObjectStore, by one PutObject with If-None-Match or If-Match."""
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": f'"{etag}"'}
        return await self._put("put_if", key, body, condition)

    async def list_page(self, prefix: str, start_after: str = "", limit: int = LIST_PAGE) -> list[Entry]:
        """As ObjectStore, by one ListObjectsV2 unless the store gives fewer than asked for."""
        if limit < 1:
            raise ValueError(f"a page of {limit} entries can't be asked for")
        found: list[Entry] = []
        cursor: _Cursor | None = _Cursor(start_after)
        while cursor is not None and len(found) < limit:
            cursor = await self._list_some(prefix, cursor, limit - len(found), found)
        return found

    async def delete(self, keys: Sequence[str]) -> None:
        """As ObjectStore, by DeleteObjects for each thousand keys, or singly where that is refused."""
        for key in keys:
            check_key(key)
        for first in range(0, len(keys), LIST_PAGE):
            batch = keys[first : first + LIST_PAGE]
            if self._delete_batch is False or len(batch) == 1:
                await self._delete_singly(batch)
                continue
            try:
                await self._delete_together(batch)
            except RemoteUnsuitable:
                await self._delete_singly(batch)
                # Only now is it sure that it was the form of the request that this endpoint does not take.
                self._delete_batch = False
            else:
                self._delete_batch = True

    def capabilities(self) -> Capabilities:
        """What the client knows, and whether a batch was deleted so far."""
        addressing = self._client.meta.config.s3["addressing_style"]
        return Capabilities(
            endpoint=endpoint_name(self._client.meta.endpoint_url),
            location=self._location,
            addressing="virtual" if addressing == "auto" else addressing,
            checksum="sha256",
            conditional_writes=None,
            delete_batch=self._delete_batch,
            md5_etags=self._md5_etags,
        )

    def statistics(self) -> StoreStatistics:
        """Counts since it was opened; each request of a deletion by single keys counts."""
        return self._meter.statistics()

    async def aclose(self) -> None:
        """Close idle connections; those in use close when their request is over."""
        self._client.close()
        await trio.lowlevel.checkpoint()

    def _object(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._settings.bucket, "Key": self._prefix + check_key(key)}

    def _etag(self, answer: Any, op: str, key: str) -> str:
        etag = str(answer.get("ETag", "")).removeprefix("W/").strip('"')
        if not etag:
            raise RemoteUnsuitable(f"{op} of {self._location}/{key} was answered without an ETag; use another endpoint")
        return etag

    def _in_range(self, key: str, content_range: str | None, body: bytes, first: int, length: int | None) -> bytes:
        """Check that *body* is the range asked for; a store that ignored Range sent everything, which is cut here."""
        if content_range is None:
            body = body[first:] if length is None else body[first : first + length]
        elif not content_range.startswith(f"bytes {first}-{first + len(body) - 1}/"):
            raise RemoteCorrupt(
                f"get of {self._location}/{key} from {first}: the store sent {len(body)} bytes as {content_range!r}; "
                "check the proxy or the endpoint"
            )
        if not body or (length is not None and len(body) != length):
            raise RemoteCorrupt(
                f"{self._location}/{key} ends {(length or 1) - len(body)} bytes too early; run `sessfs fsck --remote`"
            )
        return body

    async def _put(self, kind: str, key: str, body: bytes, condition: dict[str, str]) -> str:
        arguments = {**self._object(key), **condition, "Body": body}
        admission = Admission(self._threads, self._uploads, len(body))
        answer = await self._call(kind, key, lambda client: client.put_object(**arguments), admission)
        self._meter.sent(len(body))
        etag = self._etag(answer, kind, key)
        if len(body) <= SMALL_BYTES:
            self._md5_etags = etag.lower() == hashlib.md5(body, usedforsecurity=False).hexdigest()
        return etag

    async def _list_some(self, prefix: str, cursor: _Cursor, limit: int, found: list[Entry]) -> _Cursor | None:
        """Append one answer's entries to *found*, which may be none though more follow; returns where to go on, None at
        the end of the listing.
        """
        after = cursor.after
        arguments: dict[str, Any] = {
            "Bucket": self._settings.bucket,
            "Prefix": self._prefix + prefix,
            "MaxKeys": min(limit, LIST_PAGE),
        }
        if cursor.token is not None:
            arguments["ContinuationToken"] = cursor.token
        elif self._prefix + after:
            # Also for the first page: the marker of the prefix as a folder, made by some console, is none of our keys.
            arguments["StartAfter"] = self._prefix + after
        answer = await self._call("list", prefix, lambda client: client.list_objects_v2(**arguments))
        more = answer.get("IsTruncated")
        items = answer.get("Contents", [])
        token: str | None = answer.get("NextContinuationToken") or None
        # An empty or foreign document also parses: only one that says whether it is whole is a listing, and one that is
        # not has to say how to go on. Some stores look at so many deleted keys for each page that it may be empty.
        if more is None or (more and not items and token in (None, cursor.token)):
            raise RemoteUnavailable(f"list of {self._location}/{prefix}* got no listing; it will be tried again")
        last = after
        for item in items:
            key: str = item["Key"].removeprefix(self._prefix)
            if not item["Key"].startswith(arguments["Prefix"]) or key.encode() <= last.encode():
                raise RemoteUnsuitable(
                    f"list of {self._location}/{prefix}* after {after!r} gave {item['Key']!r}: "
                    "this endpoint does not list in order, so sessfs can't use it"
                )
            last = key
            if not key.endswith("/"):  # else the marker of a folder below
                found.append(Entry(key, item["Size"], self._etag(item, "list", key), item["LastModified"].timestamp()))
        return _Cursor(last, token) if more else None

    async def delete_old_versions(self, wanted: Callable[[str], bool]) -> int:
        """As ObjectStore."""
        bucket = self._settings.bucket
        versioning = await self._call("versions", "", lambda client: client.get_bucket_versioning(Bucket=bucket))
        if "Status" not in versioning:
            return 0
        count = 0
        arguments: dict[str, Any] = {"Bucket": bucket, "Prefix": self._prefix}
        while True:
            answer = await self._call("versions", "", partial(_list_versions, dict(arguments)))
            for item in (*answer.get("Versions", []), *answer.get("DeleteMarkers", [])):
                is_marker = "Size" not in item
                if (is_marker or not item["IsLatest"]) and wanted(item["Key"].removeprefix(self._prefix)):
                    old = {"Bucket": bucket, "Key": item["Key"], "VersionId": item["VersionId"]}
                    await self._call("delete", item["Key"], partial(_delete_object, old))
                    count += 1
            if not answer.get("IsTruncated"):
                return count
            arguments |= {"KeyMarker": answer["NextKeyMarker"], "VersionIdMarker": answer["NextVersionIdMarker"]}

    async def _delete_together(self, keys: Sequence[str]) -> None:
        listed = {"Objects": [{"Key": self._prefix + key} for key in keys], "Quiet": True}
        answer = await self._call(
            "delete", keys[0], lambda client: client.delete_objects(Bucket=self._settings.bucket, Delete=listed)
        )
        for error in answer.get("Errors", []):
            if error.get("Code") != "NoSuchKey":
                status = 403 if error.get("Code") == "AccessDenied" else 500
                answered: Any = {"Error": error, "ResponseMetadata": {"HTTPStatusCode": status}}
                refused = ClientError(answered, "DeleteObjects")
                raise map_error(refused, "delete", f"s3://{self._settings.bucket}/{error.get('Key')}")

    async def _delete_singly(self, keys: Sequence[str]) -> None:
        for key in keys:
            arguments = self._object(key)
            try:
                await self._call("delete", key, partial(_delete_object, arguments))
            except RemoteMissing:
                continue

    async def _call(self, kind: str, key: str, work: Callable[[Any], T], admission: Admission | None = None) -> T:
        """Run *work* with the client in a thread; raises our errors only."""
        limiter = cast("trio.CapacityLimiter", admission or Admission(self._threads, self._downloads, 0))
        what = f"{self._location}/{key}"
        try:
            if self._credentials_stale:
                await self._rebuild()
            with self._meter.request(kind):
                try:
                    return await trio.to_thread.run_sync(work, self._client, limiter=limiter, abandon_on_cancel=True)
                except CAUGHT as exc:
                    raise self._react(exc, map_error(exc, kind, what)) from exc
        except CAUGHT as exc:
            raise map_error(exc, "open", what) from exc

    async def _rebuild(self) -> None:
        """Ask the credential chain again, and use a client with what it says."""
        async with self._rebuilding:
            if self._credentials_stale:
                old = self._client
                self._client = await trio.to_thread.run_sync(make_client, self._settings, self._offset)
                self._credentials_stale = False
                old.close()

    def _react(self, exc: Exception, error: RemoteError) -> RemoteError:
        """Note what the next request should do differently, and return the error to raise."""
        code = error_code(exc)
        if isinstance(exc, NoCredentialsError | PartialCredentialsError) or code in _ASK_AGAIN:
            self._credentials_stale = True
        date = response_header(exc, "date")
        if code not in CLOCK_OFF or date is None:
            return error
        off_s = parsedate_to_datetime(date).timestamp() - self._now_s()
        if abs(off_s) < SKEW_S:
            # The clock was set meanwhile: what was off is our correction.
            self._offset.seconds = 0.0
            self._health.note("clock", "")
            return RemoteUnavailable(f"{error}; the clock was set since; it will be tried again")
        self._offset.seconds = off_s
        where = "behind" if off_s > 0 else "ahead of"
        text = f"this machine's clock is off by {abs(off_s):.0f} s, {where} the store's: set it"
        self._health.note("clock", f"{text} (until then requests are signed with the store's time)")
        return RemoteUnavailable(f"{error}; {text}; it will be tried again with the store's time")
