"""What sessfs asks of an object store: the protocol, what it gives back, and the counting and limiting around it.

A key is a `str` relative to the prefix of the remote: parts separated by `/`, none of them empty, `.` or `..`, each of
at most PART_MAX_BYTES in UTF-8, KEY_MAX_BYTES in all; and no key is another key plus `/…`: then stores that keep
objects as files (MinIO, rclone, a directory) can hold them too. Listings are in the order of the keys' UTF-8 bytes.
An etag is opaque, without quotes, and changes with every write of other bytes.

Errors, of every method: RemoteUnavailable (it is unknown whether it happened; the same call may be made again),
RemoteDenied (a person must act: credentials, bucket, rights), RemoteUnsuitable (the endpoint can't do that). Only an
answer that the key is not there is RemoteMissing; no failure ever looks like an absent object or an empty listing.
A cancelled write may still take effect afterwards.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import trio

from sessfs.errors import RemoteError, RemoteUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence

KEY_MAX_BYTES = 900  # S3 allows 1,024 with the prefix of the remote
PART_MAX_BYTES = 255  # a file name
LIST_PAGE = 1000  # what S3 gives in one answer


class RemoteBusy(RemoteUnavailable):
    """The store answered that it is overloaded (503 SlowDown, 429); it may say how long to stay away."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes of one object, and the etag of the object they were read from."""

    body: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a listing; *size* in bytes, *mtime_s* in seconds since 1970 by the store's own clock."""

    key: str
    size: int
    etag: str
    mtime_s: float


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What is known of an endpoint; None means not tried yet."""

    endpoint: str
    """For people: "AWS S3", "Cloudflare R2", "directory", or the host."""
    location: str
    """The remote as the operator knows it: s3://bucket/prefix or file:///dir."""
    addressing: str
    """"path", "virtual", or "none" for a directory."""
    checksum: str
    """How a body is protected on its way: "sha256" (signed payload) or "none"."""
    conditional_writes: bool | None
    """put_if really is compare-and-swap; False where the endpoint refuses or, worse, ignores the condition."""
    delete_batch: bool | None
    """One request deletes many keys."""
    md5_etags: bool | None = None
    """The etag of what is put is the MD5 of its bytes, as far as small objects show."""


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Counts since the store was opened."""

    requests: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Requests sent, by kind: get, put, put_if, list, delete."""
    errors: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Failed requests by the name of the error class; an answer of "not there" or "conflict" counts as well."""
    bytes_up: int = 0
    """Body bytes of acknowledged writes."""
    bytes_down: int = 0
    """Body bytes of answered reads."""
    in_flight: int = 0
    """Requests waiting for an answer now."""
    retries: int = 0
    """Requests made again after a failure."""


class ObjectStore(Protocol):
    """An object store, as sessfs uses it. All methods may be called concurrently, from trio tasks of one run."""

    async def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        """Read an object, or its bytes [start, start + length); without *length* to the end.

        *length*, if given, is at least 1. Raises RemoteMissing, and RemoteCorrupt if the object ends before the range
        does, or where it starts (what is asked for was written before, so it is damage).
        """

    async def put(self, key: str, body: bytes) -> str:
        """Write an object, whatever was there; on return it is durable and whole. Returns its etag. Idempotent."""

    async def put_if(self, key: str, body: bytes, etag: str | None) -> str:
        """Write an object only if it is absent (*etag* None) or still has *etag*; returns the new etag.

        Raises RemoteConflict, and then nothing was written. Callers make *body* unique (who writes, and a counter):
        that is how a writer whose answer got lost recognises its own write. Where `capabilities` does not say
        conditional_writes, the condition may be ignored.
        """

    async def list_page(self, prefix: str, start_after: str = "", limit: int = LIST_PAGE) -> list[Entry]:
        """The first *limit* (at least 1) keys that begin with *prefix* and are greater than *start_after*, in order.

        Fewer than *limit* means that there are no more.
        """

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete these keys; those that are not there are fine. On an error some may be deleted. Idempotent."""

    async def delete_old_versions(self, wanted: Callable[[str], bool]) -> int:
        """Where the store keeps what was deleted or replaced: delete that of keys that are *wanted*, but for what is
        current; and of any key what a writer that has died was about to put. How many versions went. Raises
        RemoteUnsuitable or RemoteDenied when it can't be known, or be done.
        """
        return 0

    def capabilities(self) -> Capabilities:
        """What is known of the endpoint without asking it."""

    def statistics(self) -> StoreStatistics:
        """Counts since the store was opened."""

    async def aclose(self) -> None:
        """Give connections back. No method may be called afterwards; calling this again does nothing."""


async def iter_keys(store: ObjectStore, prefix: str, page: int = LIST_PAGE) -> AsyncGenerator[Entry, None]:
    """Yield every entry under *prefix*, in order, one page in memory at a time.

    An error ends the iteration by raising it: a listing that ends without an exception is complete. Entries written
    or deleted meanwhile may or may not be seen.
    """
    start_after = ""
    while True:
        entries = await store.list_page(prefix, start_after, page)
        for entry in entries:
            yield entry
        if len(entries) < page:
            return
        start_after = entries[-1].key


def check_key(key: str) -> str:
    """Return *key*, or raise ValueError: a key that is not of the form above is a bug of the caller."""
    parts = key.split("/")
    too_long = len(key.encode()) > KEY_MAX_BYTES or any(len(part.encode()) > PART_MAX_BYTES for part in parts)
    if too_long or "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"not a usable object key: {key!r}")
    return key


def check_range(start: int | None, length: int | None) -> None:
    """Raise ValueError for a range that can't be asked for."""
    if (start is not None and start < 0) or (length is not None and length < 1):
        raise ValueError(f"not a usable range: start {start}, length {length}")


class Meter:
    """Counts requests; one per store, used in trio's thread only."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._bytes_up = 0
        self._bytes_down = 0
        self._in_flight = 0

    @contextmanager
    def request(self, kind: str) -> Iterator[None]:
        """Count one request of *kind* and how it ends."""
        self._requests[kind] += 1
        self._in_flight += 1
        try:
            yield
        except RemoteError as exc:
            self._errors[type(exc).__name__] += 1
            raise
        finally:
            self._in_flight -= 1

    def sent(self, n_bytes: int) -> None:
        """Count the body of an acknowledged write."""
        self._bytes_up += n_bytes

    def received(self, n_bytes: int) -> None:
        """Count the body of an answered read."""
        self._bytes_down += n_bytes

    def statistics(self) -> StoreStatistics:
        """A snapshot of the counts."""
        return StoreStatistics(
            requests=MappingProxyType(dict(self._requests)),
            errors=MappingProxyType(dict(self._errors)),
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
            in_flight=self._in_flight,
        )


class Forwarding(ObjectStore):
    """A wrapper that changes nothing; the others override what they change."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner

    async def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        """Pass on."""
        return await self._inner.get(key, start, length)

    async def put(self, key: str, body: bytes) -> str:
        """Pass on."""
        return await self._inner.put(key, body)

    async def put_if(self, key: str, body: bytes, etag: str | None) -> str:
        """Pass on."""
        return await self._inner.put_if(key, body, etag)

    async def list_page(self, prefix: str, start_after: str = "", limit: int = LIST_PAGE) -> list[Entry]:
        """Pass on."""
        return await self._inner.list_page(prefix, start_after, limit)

    async def delete(self, keys: Sequence[str]) -> None:
        """Pass on."""
        await self._inner.delete(keys)

    async def delete_old_versions(self, wanted: Callable[[str], bool]) -> int:
        """Pass on."""
        return await self._inner.delete_old_versions(wanted)

    def capabilities(self) -> Capabilities:
        """Pass on."""
        return self._inner.capabilities()

    def statistics(self) -> StoreStatistics:
        """Pass on."""
        return self._inner.statistics()

    async def aclose(self) -> None:
        """Pass on."""
        await self._inner.aclose()


class ByteRate:
    """At most so many bytes per second on average: each body is paid for by waiting before the next one.

    A body leaves at the speed of the line once its turn has come; the average over several holds. Debt does not
    expire, but unused time gives no credit, so there is no burst after a pause.
    """

    def __init__(self, bytes_per_s: float | None, clock: Callable[[], float] = trio.current_time) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._free_at_s = 0.0

    def charge(self, n_bytes: int) -> float:
        """Book *n_bytes* and return the time, by the clock, at which they may be sent."""
        now_s = self._clock()
        if self._bytes_per_s is None:
            return now_s
        turn_s = max(now_s, self._free_at_s)
        self._free_at_s = turn_s + n_bytes / self._bytes_per_s
        return turn_s


class Limited(Forwarding):
    """Bounds requests at once, uploads among them (so that reads always find room), and the rate of uploads.

    Conditional writes are small and hold a node's place (heartbeat, lease): they count towards the rate but never
    wait for it, or a low --upload-limit would let a node look dead behind its own segment.
    """

    def __init__(
        self,
        inner: ObjectStore,
        *,
        requests: int = 16,
        uploads: int = 8,
        upload_limit: float | None = None,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """*upload_limit* in bytes per second, None for no limit; *uploads* less than *requests*."""
        super().__init__(inner)
        if not 0 < uploads < requests:
            raise ValueError(f"uploads ({uploads}) must be at least 1 and less than requests ({requests})")
        self._requests = trio.CapacityLimiter(requests)
        self._uploads = trio.CapacityLimiter(uploads)
        self._rate = ByteRate(upload_limit, clock)
        self._clock = clock

    async def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        """As ObjectStore, once there is room among all requests."""
        async with self._requests:
            return await self._inner.get(key, start, length)

    async def put(self, key: str, body: bytes) -> str:
        """As ObjectStore, once there is room among the uploads and the rate allows it."""
        async with self._uploads:
            await trio.sleep(max(0.0, self._rate.charge(len(body)) - self._clock()))
            async with self._requests:
                return await self._inner.put(key, body)

    async def put_if(self, key: str, body: bytes, etag: str | None) -> str:
        """As ObjectStore, once there is room among all requests, whatever the rate."""
        self._rate.charge(len(body))
        async with self._requests:
            return await self._inner.put_if(key, body, etag)

    async def list_page(self, prefix: str, start_after: str = "", limit: int = LIST_PAGE) -> list[Entry]:
        """As ObjectStore, once there is room among all requests."""
        async with self._requests:
            return await self._inner.list_page(prefix, start_after, limit)

    async def delete(self, keys: Sequence[str]) -> None:
        """As ObjectStore, once there is room among all requests."""
        async with self._requests:
            await self._inner.delete(keys)
