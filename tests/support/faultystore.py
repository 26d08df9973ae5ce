"""A store that fails as told: before or after the effect of a method, once or until further notice."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

import trio

from sessfs.errors import RemoteDenied, RemoteError, RemoteUnavailable
from sessfs.remote.objectstore import LIST_PAGE, Blob, Entry, Forwarding, ObjectStore, RemoteBusy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")

METHODS = ("get", "put", "put_if", "list_page", "delete")


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one call.

    *error* is raised before the effect or after it; with neither error nor *stall*, *damage* changes the body that get
    answers with. *stall* waits for cancellation instead of raising. *keys* is a shell pattern for the key (of delete:
    the first; of list_page: the prefix).
    """

    error: RemoteError | None = None
    after: bool = False
    stall: bool = False
    damage: Callable[[bytes], bytes] | None = None
    keys: str = "*"


def timeout(*, after: bool = False, keys: str = "*") -> Fault:
    return Fault(RemoteUnavailable("read timed out"), after, keys=keys)


def error_500(*, after: bool = False, keys: str = "*") -> Fault:
    return Fault(RemoteUnavailable("500 InternalError"), after, keys=keys)


def slow_down(retry_after_s: float | None = None, *, after: bool = False, keys: str = "*") -> Fault:
    return Fault(RemoteBusy("503 SlowDown", retry_after_s), after, keys=keys)


def reset(*, after: bool = False, keys: str = "*") -> Fault:
    return Fault(RemoteUnavailable("connection reset by peer"), after, keys=keys)


def truncated(*, after: bool = True, keys: str = "*") -> Fault:
    """The answer ended too early; a write has happened."""
    return Fault(RemoteUnavailable("the body ended too early"), after, keys=keys)


def expired(*, after: bool = False, keys: str = "*") -> Fault:
    return Fault(RemoteUnavailable("403 ExpiredToken"), after, keys=keys)


def bucket_gone(*, after: bool = False, keys: str = "*") -> Fault:
    return Fault(RemoteDenied("404 NoSuchBucket: the bucket does not exist"), after, keys=keys)


PASSING = (timeout, error_500, slow_down, reset, truncated, expired)
"""Makers of every kind of fault that goes away by itself."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call that reached the store, whether or not it failed."""

    method: str
    key: str
    n_bytes: int = 0


class FaultyStore(Forwarding):
    """Takes faults in two ways: `plan` queues some for the next calls of a method, `always` holds until `heal`.

    `calls` is everything that was asked, in order.
    """

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.calls: list[Call] = []
        self._planned: defaultdict[str, deque[Fault | None]] = defaultdict(deque)
        self._standing: dict[str, Fault] = {}

    def plan(self, method: str, *faults: Fault | None) -> None:
        """The next calls of *method* meet these, one each; None lets one pass."""
        assert method in METHODS
        self._planned[method].extend(faults)

    def always(self, fault: Fault, *methods: str) -> None:
        """Every call of *methods* (all, if none is named) meets *fault* from now on."""
        for method in methods or METHODS:
            assert method in METHODS
            self._standing[method] = fault

    def heal(self) -> None:
        """No more faults."""
        self._standing.clear()
        self._planned.clear()

    def count(self, method: str) -> int:
        """How many calls of *method* came."""
        return sum(call.method == method for call in self.calls)

    async def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        fault = self._next("get", key)
        blob = await self._meet(fault, lambda: self._inner.get(key, start, length))
        if fault is not None and fault.damage is not None:
            return Blob(fault.damage(blob.body), blob.etag)
        return blob

    async def put(self, key: str, body: bytes) -> str:
        return await self._meet(self._next("put", key, len(body)), lambda: self._inner.put(key, body))

    async def put_if(self, key: str, body: bytes, etag: str | None) -> str:
        return await self._meet(self._next("put_if", key, len(body)), lambda: self._inner.put_if(key, body, etag))

    async def list_page(self, prefix: str, start_after: str = "", limit: int = LIST_PAGE) -> list[Entry]:
        return await self._meet(
            self._next("list_page", prefix), lambda: self._inner.list_page(prefix, start_after, limit)
        )

    async def delete(self, keys: Sequence[str]) -> None:
        await self._meet(self._next("delete", keys[0] if keys else ""), lambda: self._inner.delete(keys))

    def _next(self, method: str, key: str, n_bytes: int = 0) -> Fault | None:
        self.calls.append(Call(method, key, n_bytes))
        queue = self._planned[method]
        if queue and (queue[0] is None or fnmatchcase(key, queue[0].keys)):
            return queue.popleft()
        standing = self._standing.get(method)
        return standing if standing is not None and fnmatchcase(key, standing.keys) else None

    async def _meet(self, fault: Fault | None, effect: Callable[[], Awaitable[T]]) -> T:
        if fault is None:
            return await effect()
        if not fault.after:
            await self._fail(fault)
        try:
            result = await effect()
        except RemoteError:
            # A lost answer is lost, also when it was a refusal.
            if fault.after:
                await self._fail(fault)
            raise
        if fault.after:
            await self._fail(fault)
        return result

    async def _fail(self, fault: Fault) -> None:
        if fault.stall:
            await trio.sleep_forever()
        if fault.error is not None:
            raise fault.error
