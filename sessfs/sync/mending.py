"""What has to be published again because the remote's copy is damaged and the one here is sound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from sessfs.types import Ino

if TYPE_CHECKING:
    from collections.abc import Collection, Set

    from sessfs.local.changes import Changes
    from sessfs.local.chunkstore import ChunkReader, References
    from sessfs.local.inodes import Inodes
    from sessfs.local.places import Places
    from sessfs.sync.upload import Upload
    from sessfs.types import ChunkId

SLICE = 500


class Mender:
    """Finds sessions to publish whole. The request loop alone."""

    def __init__(
        self, inodes: Inodes, changes: Changes, references: References, reader: ChunkReader, places: Places
    ) -> None:
        self._inodes = inodes
        self._changes = changes
        self._references = references
        self._reader = reader
        self._places = places

    def is_placed(self, cid: ChunkId) -> bool:
        """True when the chunk need not be uploaded: the remote has it, or has it damaged and nobody here has it."""
        return self._places.is_sound(cid) or (self._places.has(cid) and not self._is_sound_here(cid))

    def _is_sound_here(self, cid: ChunkId) -> bool:
        return cid not in self._places.damage.here and self._reader.has(cid)

    async def note_news(self) -> None:
        """If damage was found in the remote since this was called last: sessions that have a sound copy here of what is
        damaged there count as changed, whole.
        """
        if not self._places.damage.is_news:
            return
        self._places.damage.is_news = False
        await self.note_sessions({cid for cid in self._places.iter_bad() if self._is_sound_here(cid)})

    async def note_uploaded(self, upload: Upload, full: Collection[Ino]) -> bool:
        """For the batch of the outbox: that nobody has looked at the segments, and which sessions have manifests that
        name a damaged place of what is in them, but for *full*, which are published whole with it. Whether any have.
        """
        for ref, unseen in upload.uploaded:
            self._places.note_unseen(ref, unseen)
        return await self.note_sessions({cid for cid in upload.placed if self._places.has(cid)}, full)

    async def note_sessions(self, ids: Set[ChunkId], but_for: Collection[Ino] = ()) -> bool:
        """Sessions with files that have any of *ids* count as changed, whole, but for those in *but_for*. Whether there
        are any.
        """
        found: set[Ino] = set()
        after = Ino(0)
        while ids:
            recipes = self._references.recipes_after(after, SLICE)
            if not recipes:
                break
            after = recipes[-1][0]
            for ino, recipe in recipes:
                if not ids.isdisjoint(recipe.iter_chunks()):
                    inode = self._inodes.find(ino)
                    if inode is not None:
                        found.add(inode.session)
            await trio.lowlevel.checkpoint()
        found.difference_update(but_for)
        for session in found:
            self._changes.note_whole(session)
        return bool(found)

    def note_all(self) -> None:
        """Every session that was published counts as changed, whole: manifests in the remote are damaged."""
        for session, published in list(self._places.iter_published()):
            if not published.stub:
                self._changes.note_whole(session)
