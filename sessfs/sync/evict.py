"""Eviction: when the local cache is nearly full, chunks that the remote has make room, least recently used first."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import trio

from sessfs.errors import LocalStoreError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from sessfs.local.chunkstore import ChunkReader
    from sessfs.local.places import Places
    from sessfs.types import ChunkId

log = logging.getLogger(__name__)
TICK_S = 1.0
START_SHARE = 0.9
STOP_SHARE = 0.8
BATCH_BYTES = 16 << 20


class ChunkEvicter(Protocol):
    """Removes chunks from the local store."""

    async def evict(self, ids: Sequence[ChunkId]) -> None:
        """See Sealer: what has lost its place since it was looked at stays."""


async def evict_when_full(
    reader: ChunkReader,
    places: Places,
    evicter: ChunkEvicter,
    used_bytes: Callable[[], int],
    full_bytes: Callable[[], int],
    look: Callable[[Collection[ChunkId]], Awaitable[None]],
) -> None:
    """Keep the cache well below *full_bytes*, where writers begin to be refused, for ever, as far as what is in it was
    uploaded; started once, in the daemon's nursery. *look* is awaited with chunks that are to be evicted, and sees to
    it that the remote has them.
    """
    while True:
        await trio.sleep(TICK_S)
        used, full = used_bytes(), full_bytes()
        if used < full * START_SHARE:
            continue
        try:
            freed = await _evict(reader, places, evicter, used - int(full * STOP_SHARE), look)
        except LocalStoreError as exc:
            log.warning("eviction failed, will be tried again: %s", exc)
            continue
        if freed:
            log.info("evicted %d bytes of %d", freed, used)


async def _evict(
    reader: ChunkReader,
    places: Places,
    evicter: ChunkEvicter,
    wanted_bytes: int,
    look: Callable[[Collection[ChunkId]], Awaitable[None]],
) -> int:
    freed = 0
    can_look = True
    batch: list[ChunkId] = []
    for frame, length in reader.least_used():
        if freed >= wanted_bytes:
            break
        ids = reader.chunks_of(frame)
        if not ids or not all(places.is_sound(cid) for cid in ids):
            continue
        if not all(places.may_evict(cid) for cid in ids):
            if can_look:
                try:
                    await look(ids)
                except RemoteError as exc:
                    log.warning("only what the remote is known to have can be evicted: %s", exc)
                    can_look = False
            if not all(places.may_evict(cid) for cid in ids):
                continue
        batch.extend(ids)
        freed += length
        if length and freed // BATCH_BYTES != (freed - length) // BATCH_BYTES:
            await evicter.evict(batch)
            batch = []
        await trio.lowlevel.checkpoint()
    if batch:
        await evicter.evict(batch)
    return freed
