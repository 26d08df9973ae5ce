"""Conditional writes for endpoints that have none, where the operator vouches that one node at a time writes."""

from __future__ import annotations

import trio

from sessfs.errors import RemoteConflict, RemoteMissing
from sessfs.remote.objectstore import Forwarding, ObjectStore


class SingleNodeStore(Forwarding):
    """Passes conditional writes on, until `stand_in` was called: from then on it reads, compares and writes.

    Between reading and writing another node could write, and a write that was given up may land late: neither is
    noticed then. So it is safe with one node only.
    """

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self._stands_in = False
        self._writing = trio.Lock()

    def stand_in(self) -> None:
        """The endpoint was found to have no conditional writes."""
        self._stands_in = True

    async def put_if(self, key: str, body: bytes, etag: str | None) -> str:
        """As ObjectStore, as far as nobody else writes."""
        if not self._stands_in:
            return await self._inner.put_if(key, body, etag)
        async with self._writing:
            try:
                current = (await self._inner.get(key)).etag
            except RemoteMissing:
                current = None
            if current != etag:
                raise RemoteConflict(f"{key} has etag {current}, not {etag}; read it again")
            return await self._inner.put(key, body)
