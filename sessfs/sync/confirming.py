"""Putting segments so that a store which damages them is noticed: by the checksum it names, or by reading them back."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import trio

from sessfs.errors import RemoteCorrupt, RemoteMissing

if TYPE_CHECKING:
    from sessfs.remote.objectstore import ObjectStore

READ_BACK_EVERY = 16
"""Where the store's etags are no checksums, the first segment is read back at once, and one in so many after that."""


class ConfirmedPuts:
    """Puts objects that are new. One per run of the daemon, since the first objects are looked at harder."""

    def __init__(self, store: ObjectStore, read_back_every: int = READ_BACK_EVERY) -> None:
        """With *read_back_every* 1 every object is read back, whatever its etag says."""
        self._store = store
        self._every = read_back_every
        self._count = 0

    async def put(self, key: str, body: bytes) -> bool:
        """Put the object. True: the store has it for sure, as it was sent, by its checksum or since it was read back;
        False: nothing speaks against it. Raises RemoteCorrupt when the store has something else; RemoteError.
        """
        etag = await self._store.put(key, body)
        digest = await trio.to_thread.run_sync(_md5, body)
        is_sample = self._count % self._every == 0
        self._count += 1
        is_checksum = etag.lower() == digest
        if self._every == 1 or (not is_checksum and (is_sample or self._store.capabilities().md5_etags)):
            # An etag that is no checksum, though others of this store were, may come of encryption at rest: only what
            # can be read says whether that is so.
            await self._read_back(key, body)
            return True
        return is_checksum

    async def _read_back(self, key: str, body: bytes) -> None:
        try:
            there = (await self._store.get(key)).body
        except RemoteMissing as exc:
            what = f"it is not there ({exc})"
        else:
            if there == body:
                return
            what = f"it has {len(there)} bytes" if len(there) != len(body) else "other bytes are there"
        where = self._store.capabilities()
        raise RemoteCorrupt(
            f"{where.endpoint} at {where.location} does not keep what is sent: {key} was put with {len(body)} bytes, "
            f"and {what}; it stays here and will be sent again: look at the proxy or the endpoint"
        )


def _md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()
