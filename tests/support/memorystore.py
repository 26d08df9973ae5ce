"""An object store in memory: the protocol in its plainest form, and the base of fault tests."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import trio

from sessfs.errors import RemoteConflict, RemoteCorrupt, RemoteMissing, RemoteUnsuitable
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

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class MemoryStore(ObjectStore):
    """*conditions*: "kept"; "ignored", as rclone does: overwrite in silence; "refused", as Backblaze B2 does: 501;
    "kept if there", as MinIO did until August 2025: If-Match on an absent key writes.

    `objects` (key to bytes) is the content, for tests to look at and to damage.
    """

    def __init__(self, conditions: str = "kept", now_s: Callable[[], float] = time.time) -> None:
        self.objects: dict[str, bytes] = {}
        self._mtimes_s: dict[str, float] = {}
        self._conditions = conditions
        self._now_s = now_s
        self._meter = Meter()

    async def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        check_range(start, length)
        with self._meter.request("get"):
            await trio.lowlevel.checkpoint()
            body = self.objects.get(check_key(key))
            if body is None:
                raise RemoteMissing(f"no {key}")
            first = start or 0
            end = len(body) if length is None else first + length
            if end > len(body) or (first and first >= len(body)):
                raise RemoteCorrupt(f"{key} has {len(body)} bytes, not {end}")
        self._meter.received(end - first)
        return Blob(body[first:end], self.etag(key))

    async def put(self, key: str, body: bytes) -> str:
        with self._meter.request("put"):
            await trio.lowlevel.checkpoint()
            return self._put(key, body)

    async def put_if(self, key: str, body: bytes, etag: str | None) -> str:
        with self._meter.request("put_if"):
            await trio.lowlevel.checkpoint()
            if self._conditions == "refused":
                raise RemoteUnsuitable("501 NotImplemented")
            current = self.etag(key) if key in self.objects else None
            checked = self._conditions == "kept" or (self._conditions == "kept if there" and current is not None)
            if checked and current != etag:
                raise RemoteConflict(f"{key} has etag {current}, not {etag}")
            return self._put(key, body)

    async def list_page(self, prefix: str, start_after: str = "", limit: int = LIST_PAGE) -> list[Entry]:
        if limit < 1:
            raise ValueError(f"a page of {limit} entries")
        with self._meter.request("list"):
            await trio.lowlevel.checkpoint()
            keys = sorted(key for key in self.objects if key.startswith(prefix) and key > start_after)
            return [Entry(key, len(self.objects[key]), self.etag(key), self._mtimes_s[key]) for key in keys[:limit]]

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            check_key(key)
        with self._meter.request("delete"):
            await trio.lowlevel.checkpoint()
            for key in keys:
                self.objects.pop(key, None)

    def capabilities(self) -> Capabilities:
        return Capabilities("memory", "memory:", "none", "none", conditional_writes=None, delete_batch=None)

    def statistics(self) -> StoreStatistics:
        return self._meter.statistics()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    def etag(self, key: str) -> str:
        """The etag of the object at *key*; like S3's, of its bytes alone."""
        return hashlib.blake2b(self.objects[key], digest_size=16).hexdigest()

    def set_age(self, key: str, age_s: float) -> None:
        """Make the object at *key* so many seconds old."""
        self._mtimes_s[key] = self._now_s() - age_s

    def _put(self, key: str, body: bytes) -> str:
        self.objects[check_key(key)] = bytes(body)
        self._mtimes_s[key] = self._now_s()
        self._meter.sent(len(body))
        return self.etag(key)
