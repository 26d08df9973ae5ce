"""Bringing chunks here because the remote is not to be relied on for them any more: their places are forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sessfs.errors import RemoteCorrupt, StoreCorrupt
    from sessfs.local.places import Places
    from sessfs.sync.fetch import RemoteChunks
    from sessfs.types import ChunkId

BATCH_CHUNKS = 256
"""Few, so that they are not evicted again before their places are forgotten, even where the cache is full."""


class PlaceForgetter(Protocol):
    """Forgets places while nothing is being evicted."""

    async def forget_places(self, ids: Sequence[ChunkId]) -> list[ChunkId]:
        """See Sealer."""


async def bring_here(
    chunks: RemoteChunks, places: Places, forgetter: PlaceForgetter, ids: Collection[ChunkId]
) -> dict[ChunkId, StoreCorrupt | RemoteCorrupt]:
    """Have those of *ids* that are held in the local store, and no place of any of them, so that the next publishing
    uploads them. Returns which can't be had, and why: those keep their place, the others come all the same. Raises
    RemoteError when the remote can't be asked, LocalStoreError; what was brought by then stays.

    No publishing may be under way: it may rely on the places.
    """
    lost: dict[ChunkId, StoreCorrupt | RemoteCorrupt] = {}
    placed = sorted((place, cid) for cid in ids if (place := places.find(cid)) is not None)
    for first in range(0, len(placed), BATCH_CHUNKS):
        left = [cid for _, cid in placed[first : first + BATCH_CHUNKS]]
        while left:
            lost.update(await chunks.bring(left))
            left = await forgetter.forget_places([cid for cid in left if cid not in lost])
    return lost
