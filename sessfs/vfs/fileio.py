"""A file's bytes: read, write and truncate over the hot file and the recipe below it.

Content below `Inode.size` lies in the recipe's chunks where the inode is *cold*, in the hot file everywhere else. The
length of a hot file is always the inode's size. The first write to a cold extent brings that extent into the hot file,
not the whole file; cold ranges therefore always lie on extent boundaries. What a hot file holds in place of content
that was durable before must reach the disk before the metadata that says so: such inodes are *ordered*.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Protocol

from sessfs.errors import RemoteCorrupt, SessfsError, StoreCorrupt, StoreFull
from sessfs.vfs.ranges import split, subtract, total
from sessfs.vfs.retirement import Retirement

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sessfs.format.recipe import Extent
    from sessfs.local.chunkstore import References
    from sessfs.local.hotfiles import HotFiles
    from sessfs.local.inodes import Inode, Inodes
    from sessfs.types import ChunkId, Ino

READ_AHEAD_BYTES = 2 << 20
"""Who waits for one chunk of a file will want the next: what follows comes with it, mostly in the same request."""
COPY_MAX_BYTES = 32 << 20
"""A frozen hot file of up to this size is copied for a writer, which takes some ten ms; for a larger one it waits."""
SUID_SGID = stat.S_ISUID | stat.S_ISGID


class ChunkSource(Protocol):
    """Where chunks come from."""

    def find(self, cid: ChunkId) -> bytes | None:
        """The verified chunk if it is here, without waiting; raises StoreCorrupt if what is here is not it."""

    def is_here(self, cid: ChunkId) -> bool:
        """True when `find` would have the chunk; costs a look-up."""

    def note_read(self, session: Ino, cid: ChunkId) -> None:
        """A file of *session* is read, and the chunk is needed for it."""

    async def fetch(self, ids: Collection[ChunkId]) -> None:
        """Bring the chunks here, so that `find` has them; raises RemoteError or StoreCorrupt when that can't be."""


class FileIO:
    """Byte ranges of files. Called by the request loop alone; only a missing chunk makes it wait."""

    def __init__(
        self,
        inodes: Inodes,
        hot: HotFiles,
        chunks: ChunkSource,
        references: References,
        clock_ns: Callable[[], int],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._monotonic_s = monotonic_s
        self._inodes = inodes
        self._hot = hot
        self._chunks = chunks
        self._references = references
        self._clock_ns = clock_ns
        self._ordered: dict[Ino, Inode] = {}
        self.full_reason: str | None = None
        """When set, writes that need room answer ENOSPC with this text."""
        self.hot_inodes: dict[Ino, Inode] = {}
        """Every inode that has a hot file, in the order of its last change."""
        self.retirement = Retirement()

    # -- reading

    async def read(self, inode: Inode, offset: int, length: int) -> bytes:
        """The bytes of [offset, offset + length) that lie below the file's size. Raises StoreCorrupt or RemoteError
        when a chunk of the range can't be had; other ranges stay readable.
        """
        while True:
            end = min(offset + length, inode.size)
            if end <= offset:
                return b""
            if not inode.cold:
                return self._read_hot(inode, offset, end)
            parts: list[bytes] = []
            missing = self._gather(inode, offset, end, parts)
            if not missing:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            ahead = self._ahead(inode, end)
            try:
                await self._chunks.fetch([*missing, *ahead])
            except (StoreCorrupt, RemoteCorrupt):
                if not ahead:
                    raise
                # It may be what was not asked for that is damaged.
                await self._chunks.fetch(missing)

    def _read_hot(self, inode: Inode, start: int, end: int) -> bytes:
        if not inode.hot_no:
            return bytes(end - start)
        return self._hot.pread(inode.ino, inode.hot_no, end - start, start)

    def _gather(self, inode: Inode, start: int, end: int, parts: list[bytes]) -> list[ChunkId]:
        missing: list[ChunkId] = []
        for part in split(start, end, inode.cold):
            if not part.inside:
                parts.append(self._read_hot(inode, part.start, part.end))
                continue
            for extent in self._inodes.load_recipe(inode).overlapping(part.start, part.end):
                low, high = max(extent.start, part.start), min(extent.end, part.end)
                if extent.is_hole:
                    parts.append(bytes(high - low))
                    continue
                self._chunks.note_read(inode.session, extent.chunk)
                chunk = self._find(inode, extent)
                if chunk is None:
                    missing.append(extent.chunk)
                else:
                    parts.append(chunk[low - extent.start : high - extent.start])
        return missing

    def _ahead(self, inode: Inode, start: int) -> list[ChunkId]:
        """The chunks of the bytes from *start* on that are likely to be asked for next, and not here."""
        ahead = self._inodes.load_recipe(inode).overlapping(start, min(start + READ_AHEAD_BYTES, inode.size))
        return [e.chunk for e in ahead if not e.is_hole and not self._chunks.is_here(e.chunk)]

    def _find(self, inode: Inode, extent: Extent) -> bytes | None:
        try:
            chunk = self._chunks.find(extent.chunk)
        except StoreCorrupt as exc:
            raise StoreCorrupt(f"inode {inode.ino}, bytes {extent.start} to {extent.end}: {exc}") from exc
        if chunk is not None and len(chunk) != extent.end - extent.start:
            raise StoreCorrupt(f"inode {inode.ino}: chunk {extent.chunk.hex()} has {len(chunk)} bytes")
        return chunk

    # -- writing

    async def write(self, inode: Inode, offset: int, content: bytes) -> int:
        """Write all of *content*; returns its length. Acknowledged means: survives the application, and the daemon
        once the next commit has named its hot file; durable only after fsync. Raises StoreFull (nothing changed).
        """
        end = offset + len(content)
        self._require_room()
        await self._unshare(inode)
        while missing := self._hydrate_edges(inode, offset, end):
            await self._chunks.fetch(missing)
            await self._unshare(inode)
        self._ensure_hot(inode)
        touched = self._touched(inode, offset, end)
        try:
            self._hot.pwrite(inode.ino, inode.hot_no, content, offset)
        except SessfsError:
            self._keep_old(inode, touched)
            raise
        if touched:
            self._make_hot(inode, touched[0].start, touched[-1].end)
        if inode.mode & SUID_SGID and inode.user_writes:
            self.drop_privileges(inode)
        self._changed(inode, max(end, inode.size), soft=True)
        return len(content)

    def _require_room(self) -> None:
        if self.full_reason is not None:
            raise StoreFull(self.full_reason)

    def _touched(self, inode: Inode, start: int, end: int) -> list[Extent]:
        """The cold extents that hold any byte of [start, end), in order."""
        spans = [part for part in split(start, end, inode.cold) if part.inside] if inode.cold else []
        if not spans:
            return []
        recipe = self._inodes.load_recipe(inode)
        return [extent for part in spans for extent in recipe.overlapping(part.start, part.end)]

    def _hydrate_edges(self, inode: Inode, start: int, end: int) -> list[ChunkId]:
        """Bring the cold extents that [start, end) covers in part into the hot file; all of them stay cold.

        Returns the chunks that must be fetched first, having changed nothing; else an empty list.
        """
        touched = self._touched(inode, start, end)
        edges = [e for e in (*touched[:1], *touched[-1:]) if not e.is_hole and (e.start < start or e.end > end)]
        plain: dict[int, bytes] = {}
        missing: list[ChunkId] = []
        for extent in edges:
            chunk = self._find(inode, extent)
            if chunk is None:
                missing.append(extent.chunk)
            else:
                plain[extent.start] = chunk
        if missing or not plain:
            return missing
        self._ensure_hot(inode)
        for at, chunk in plain.items():
            self._hot.pwrite(inode.ino, inode.hot_no, chunk, at)
        return []

    def _keep_old(self, inode: Inode, touched: list[Extent]) -> None:
        """A write failed half-way: chunks stay what is read, whatever the hot file has in their place. A hole becomes
        hot, since what of it was not written is still zeros there.
        """
        self._hot.truncate(inode.ino, inode.hot_no, inode.size)
        inode.version += 1
        inode.unsynced = True
        self._inodes.touch(inode)
        for extent in touched:
            if extent.is_hole:
                self._make_hot(inode, extent.start, extent.end)

    def _make_hot(self, inode: Inode, start: int, end: int) -> None:
        inode.cold = subtract(inode.cold, start, end)
        inode.version += 1
        inode.unsynced = True
        self.order(inode)
        self._inodes.touch(inode)
        if not inode.cold:
            self._drop_recipe(inode)

    def _drop_recipe(self, inode: Inode) -> None:
        recipe = self._inodes.load_recipe(inode)
        self._references.remove(recipe.iter_chunks())
        self._inodes.store_recipe(inode, None)

    def _ensure_hot(self, inode: Inode) -> None:
        if not inode.hot_no:
            number = self._inodes.allocate_number()
            self._hot.create(inode.ino, number, inode.size)
            inode.hot_no = number
            self._inodes.touch(inode)
        inode.changed_s = self._monotonic_s()
        self.hot_inodes.pop(inode.ino, None)
        self.hot_inodes[inode.ino] = inode

    def _changed(self, inode: Inode, size: int, *, soft: bool = False) -> None:
        now = self._clock_ns()
        delta = size - inode.size
        inode.size = size
        inode.mtime_ns = inode.ctime_ns = now
        inode.version += 1
        inode.unsynced = True
        self._inodes.touch(inode, soft=soft)
        self._inodes.account(inode.session, 0, delta if inode.nlink else 0, now)

    def drop_privileges(self, inode: Inode) -> None:
        """Clear set-user-id, and set-group-id where the group may execute, as a write or truncate by a user does."""
        inode.mode &= ~stat.S_ISUID
        if inode.mode & stat.S_IXGRP:
            inode.mode &= ~stat.S_ISGID
        self._inodes.touch(inode)

    async def truncate(self, inode: Inode, size: int) -> None:
        """Set the size: what is cut off is gone, what is added reads as zeros. Raises StoreFull for growth only."""
        if size > inode.size:
            self._require_room()
        if size == 0:
            self._clear(inode)
            return
        await self._unshare(inode)
        while missing := self._cut_cold(inode, size):
            await self._chunks.fetch(missing)
            await self._unshare(inode)
        self._ensure_hot(inode)
        self._hot.truncate(inode.ino, inode.hot_no, size)
        self._changed(inode, size)

    def _clear(self, inode: Inode) -> None:
        self.discard(inode)
        inode.cold = []
        self._changed(inode, 0)

    def _cut_cold(self, inode: Inode, size: int) -> list[ChunkId]:
        """Take the extents at and after *size* out of the cold ranges; the one that *size* divides becomes hot."""
        start = size
        if any(low < size <= high for low, high in inode.cold):
            extent = next(self._inodes.load_recipe(inode).overlapping(size - 1, size))
            if extent.end > size:
                missing = self._hydrate_edges(inode, extent.start + 1, extent.end)
                if missing:
                    return missing
                start = extent.start
        if inode.cold and inode.cold[-1][1] > size:
            self._make_hot(inode, start, inode.cold[-1][1])
        return []

    # -- giving up content

    def discard(self, inode: Inode) -> None:
        """Give up all content: references go with the next batch, the hot file once that batch is durable."""
        if inode.cold:
            self._drop_recipe(inode)
            inode.cold = []
        if inode.hot_no:
            self.retire_hot(inode)

    def retire_hot(self, inode: Inode) -> None:
        """The inode no longer needs its hot file; the file goes when the next batch is durable."""
        self.retirement.retire(inode.ino, inode.hot_no)
        inode.hot_no = 0
        inode.unsynced = inode.ordered = False
        self._ordered.pop(inode.ino, None)
        self.hot_inodes.pop(inode.ino, None)

    # -- durability

    def order(self, inode: Inode) -> None:
        """The next commit flushes the inode's hot file first."""
        if inode.unsynced and inode.hot_no:
            inode.ordered = True
            self._ordered[inode.ino] = inode

    def take_ordered(self) -> list[Inode]:
        """At a cut: the inodes whose hot files must be flushed before the batch; they count as flushed from here on,
        so a commit that fails must `restore_ordered` them.
        """
        ordered = [inode for inode in self._ordered.values() if inode.hot_no]
        self._ordered.clear()
        for inode in ordered:
            inode.ordered = inode.unsynced = False
        return ordered

    def restore_ordered(self, inodes: list[Inode]) -> None:
        """Their flush did not happen."""
        for inode in inodes:
            inode.unsynced = True
            self.order(inode)

    # -- snapshots

    def freeze(self, inode: Inode) -> None:
        """From now until it is thawed the inode's hot file keeps its bytes: a write first gives the inode a copy of its
        own, or waits where copying would take longer.
        """
        self.retirement.freeze(inode.hot_no)

    async def _unshare(self, inode: Inode) -> None:
        while self.retirement.is_frozen(inode.hot_no):
            if self._hot.allocated_bytes(inode.ino, inode.hot_no) > COPY_MAX_BYTES:
                await self.retirement.wait_thawed(inode.hot_no)
                continue
            number = self._inodes.allocate_number()
            self._hot.copy(inode.ino, inode.hot_no, number)
            self.retirement.retire(inode.ino, inode.hot_no)
            inode.hot_no = number
            # The copy stands in for bytes that may be durable in the original.
            inode.unsynced = True
            self.order(inode)
            self._inodes.touch(inode)

    # -- at start

    def adopt(self, inode: Inode) -> None:
        """An inode whose hot file was there when the volume was opened: counts as just changed."""
        inode.changed_s = self._monotonic_s()
        inode.unsynced = True
        self.hot_inodes[inode.ino] = inode

    def take_length(self, inode: Inode, length: int) -> None:
        """The hot file, after a crash, has *length* bytes, and so has the file. Sealed content that reaches beyond is
        given up; the extent that the end divides was brought into the hot file before that was cut.
        """
        if inode.nlink:
            self._inodes.account(inode.session, 0, length - inode.size, inode.mtime_ns)
        inode.size = length
        if inode.cold and inode.cold[-1][1] > length:
            whole = [extent.end for extent in self._inodes.load_recipe(inode) if extent.end <= length]
            inode.cold = subtract(inode.cold, whole[-1] if whole else 0, inode.cold[-1][1])
            if not inode.cold:
                self._drop_recipe(inode)
        self._inodes.touch(inode)

    def adopt_hot_files(self) -> None:
        """Adopt every hot file of a state that was closed cleanly."""
        for ino, number, _ in self._hot.iter_files():
            inode = self._inodes.find(ino)
            if inode is not None and inode.hot_no == number:
                self.adopt(inode)

    # -- measures

    def allocated_bytes(self, inode: Inode) -> int:
        """Bytes of content that are not holes, as `du` counts them (a hot file by what it takes on its disk)."""
        if not inode.hot_no:
            return inode.allocated
        return self._hot.allocated_bytes(inode.ino, inode.hot_no) + total(inode.cold)

    def hot_bytes(self) -> int:
        """Bytes of disk that all hot files take."""
        return sum(self._hot.allocated_bytes(i.ino, i.hot_no) for i in self.hot_inodes.values())
