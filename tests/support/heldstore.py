"""A store some of whose calls wait until a test lets them go on: slow requests, suspended machines, lost networks."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

import trio

from sessfs.remote.objectstore import LIST_PAGE, Blob, Entry, Forwarding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sessfs.remote.objectstore import ObjectStore

T = TypeVar("T")


class Held:
    """One call that is to wait. *after*: it has its effect first, and its answer waits."""

    def __init__(self, method: str, keys: str, after: bool) -> None:
        self.method = method
        self.keys = keys
        self.after = after
        self.reached = trio.Event()
        self._released = trio.Event()

    async def wait(self) -> None:
        """Return once the test lets the call go on."""
        self.reached.set()
        await self._released.wait()

    def release(self) -> None:
        """Let the call go on."""
        self._released.set()


class HeldStore(Forwarding):
    """`hold` says which call waits; all others pass."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self._held: list[Held] = []

    def hold(self, method: str, keys: str, *, after: bool = False) -> Held:
        """The next call of *method* for a key like *keys*, both shell patterns, waits; of list_page: such a prefix."""
        held = Held(method, keys, after)
        self._held.append(held)
        return held

    def _take(self, method: str, *keys: str) -> Held | None:
        for held in self._held:
            if fnmatchcase(method, held.method) and any(fnmatchcase(key, held.keys) for key in keys):
                self._held.remove(held)
                return held
        return None

    async def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        return await self._call(self._take("get", key), lambda: self._inner.get(key, start, length))

    async def put(self, key: str, body: bytes) -> str:
        return await self._call(self._take("put", key), lambda: self._inner.put(key, body))

    async def put_if(self, key: str, body: bytes, etag: str | None) -> str:
        return await self._call(self._take("put_if", key), lambda: self._inner.put_if(key, body, etag))

    async def list_page(self, prefix: str, start_after: str = "", limit: int = LIST_PAGE) -> list[Entry]:
        held = self._take("list_page", prefix)
        return await self._call(held, lambda: self._inner.list_page(prefix, start_after, limit))

    async def delete(self, keys: Sequence[str]) -> None:
        await self._call(self._take("delete", *keys), lambda: self._inner.delete(keys))

    async def _call(self, held: Held | None, effect: Callable[[], Awaitable[T]]) -> T:
        if held is not None and not held.after:
            await held.wait()
        result = await effect()
        if held is not None and held.after:
            await held.wait()
        return result
