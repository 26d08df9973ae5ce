"""A file's bytes: read, write and truncate over the hot file and the recipe below it.

Content below `Inode.size` lies in the recipe's chunks where the inode is *cold*, in the hot file everywhere else. The
length of a hot file is always the inode's size. The first write to a cold extent brings that extent into the hot file,
not the whole file; cold ranges therefore always lie on extent boundaries. What a hot file holds in place of content
that was durable before must reach the disk before the metadata that says so: such inodes are *ordered*.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Protocol

import trio

from sessfs.errors import PosixError, SessfsError, StoreCorrupt, StoreFull
from sessfs.vfs.contents import Contents
from sessfs.vfs.ranges import split

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sessfs.format.chunk import Buffer
    from sessfs.format.recipe import Extent
    from sessfs.local.chunkstore import References
    from sessfs.local.hotfiles import HotFiles
    from sessfs.local.inodes import Inode, Inodes
    from sessfs.types import ChunkId, Ino
    from sessfs.vfs.quota import Quota

READ_AHEAD_BYTES = 2 << 20
"""Who waits for one chunk of a file will want the next: what follows comes with it, mostly in the same request."""
COPY_MAX_BYTES = 32 << 20
"""A frozen hot file of up to this size is copied for a writer, which takes some ten ms; for a larger one it waits."""
FILE_MAX_BYTES = 16 << 40
"""As on ext4. Each 4 GiB of a hole are an extent in memory, and other filesystems take holes of eight million TiB."""
SUID_SGID = stat.S_ISUID | stat.S_ISGID


class ChunkSource(Protocol):
    """Where chunks come from."""

    def find(self, cid: ChunkId) -> Buffer | None:
        """The verified chunk if it is here, without waiting; raises StoreCorrupt if what is here is not it."""

    def is_here(self, cid: ChunkId) -> bool:
        """True when the chunk is stored here, for all that is known: costs a look-up. `find` alone sees damage."""

    def note_read(self, session: Ino, cid: ChunkId) -> None:
        """A file of *session* is read, and the chunk is needed for it."""

    async def fetch(self, ids: Collection[ChunkId], ahead: Collection[ChunkId] = ()) -> None:
        """Bring the chunks here, so that `find` has *ids* until the caller waits again; raises RemoteError or
        StoreCorrupt when that can't be. Those in *ahead* come with them if they can.
        """


class FileIO(Contents):
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
        super().__init__(inodes, hot, references, clock_ns, monotonic_s)
        self._chunks = chunks
        self.full_reason: str | None = None
        """When set, writes that need room answer ENOSPC with this text."""
        self.quota: Quota | None = None
        """Asked before a file grows; None while nothing is limited."""

    # -- reading

    async def read(self, inode: Inode, offset: int, length: int) -> bytes:
        """The bytes of [offset, offset + length) that lie below the file's size. Raises StoreCorrupt or RemoteError
        when a chunk of the range can't be had; other ranges stay readable.
        """
        while True:
            parts: list[Buffer] = []
            missing = self.try_read(inode, offset, length, parts)
            if not missing:
                return b"".join(parts)
            ahead = self._ahead(inode, min(offset + length, inode.size))
            await self._chunks.fetch(missing, ahead)

    def try_read(self, inode: Inode, offset: int, length: int, parts: list[Buffer]) -> list[ChunkId]:
        """Append to *parts* what `read` returns, in pieces, if it can be had without waiting; the chunks that are
        missing, if any are: then what was appended is of no use. The pieces are valid until the next read of any file.
        """
        end = min(offset + length, inode.size)
        if end <= offset:
            return []
        if not inode.cold and inode.hot_no:
            parts.append(self._hot.view(inode.ino, inode.hot_no, end - offset, offset))
            return []
        return self._gather(inode, offset, end, parts)

    def _read_hot(self, inode: Inode, start: int, end: int) -> bytes:
        if not inode.hot_no:
            return bytes(end - start)
        return self._hot.pread(inode.ino, inode.hot_no, end - start, start)

    def _gather(self, inode: Inode, start: int, end: int, parts: list[Buffer]) -> list[ChunkId]:
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
                    parts.append(memoryview(chunk)[low - extent.start : high - extent.start])
        return missing

    def _ahead(self, inode: Inode, start: int) -> list[ChunkId]:
        """The chunks of the bytes from *start* on that are likely to be asked for next, and not here."""
        ahead = self._inodes.load_recipe(inode).overlapping(start, min(start + READ_AHEAD_BYTES, inode.size))
        return [e.chunk for e in ahead if not e.is_hole and not self._chunks.is_here(e.chunk)]

    def _find(self, inode: Inode, extent: Extent) -> Buffer | None:
        try:
            chunk = self._chunks.find(extent.chunk)
        except StoreCorrupt as exc:
            raise StoreCorrupt(f"inode {inode.ino}, bytes {extent.start} to {extent.end}: {exc}") from exc
        if chunk is not None and len(chunk) != extent.end - extent.start:
            raise StoreCorrupt(f"inode {inode.ino}: chunk {extent.chunk.hex()} has {len(chunk)} bytes")
        return chunk

    # -- writing

    def can_write(self, inode: Inode, offset: int, length: int) -> bool:
        """True when a write of that range, now, will not have to wait. Raises StoreCorrupt as the write would."""
        if self._must_wait(inode):
            return False
        # It takes a look at the chunk itself: a damaged one has to be fetched, too.
        return all(self._find(inode, extent) is not None for extent in self._edges(inode, offset, offset + length))

    def can_truncate(self, inode: Inode, size: int) -> bool:
        """True when cutting or extending to *size*, now, will not have to wait. Raises as `can_write`."""
        if size == 0:
            return True
        if self._must_wait(inode):
            return False
        divided = self._divided(inode, size)
        return divided is None or divided.is_hole or self._find(inode, divided) is not None

    def _must_wait(self, inode: Inode) -> bool:
        return (
            self.retirement.is_frozen(inode.hot_no)
            and self._hot.allocated_bytes(inode.ino, inode.hot_no) > COPY_MAX_BYTES
        )

    async def write(self, inode: Inode, offset: int, content: bytes | memoryview) -> int:
        """Write all of *content*; returns its length. Acknowledged means: survives the application, and the daemon
        once the next commit has named its hot file; durable only after fsync. Raises StoreFull, or PosixError EDQUOT
        or EFBIG (nothing changed).
        """
        end = offset + len(content)
        self._require_room(inode, end)
        if self.quota is not None and end > inode.size:
            self.quota.grow(inode, end - inode.size)
        await self._unshare(inode)
        while missing := self._hydrate_edges(inode, offset, end):
            await self._fetch(missing)
            await self._unshare(inode)
        self.ensure_hot(inode)
        touched = self._touched(inode, offset, end)
        try:
            self._hot.pwrite(inode.ino, inode.hot_no, content, offset)
        except SessfsError:
            self._keep_old(inode, touched)
            raise
        if touched:
            self.make_hot(inode, touched[0].start, touched[-1].end)
        self.note_change(inode, max(end, inode.size), soft=True)
        return len(content)

    def _require_room(self, inode: Inode, end: int) -> None:
        if self.full_reason is not None:
            raise StoreFull(self.full_reason)
        if end > max(inode.size, FILE_MAX_BYTES):
            raise PosixError(errno.EFBIG, f"a file has {FILE_MAX_BYTES >> 40} TiB at most")

    def _touched(self, inode: Inode, start: int, end: int) -> list[Extent]:
        """The cold extents that hold any byte of [start, end), in order."""
        spans = [part for part in split(start, end, inode.cold) if part.inside] if inode.cold else []
        if not spans:
            return []
        recipe = self._inodes.load_recipe(inode)
        return [extent for part in spans for extent in recipe.overlapping(part.start, part.end)]

    async def _fetch(self, missing: Collection[ChunkId]) -> None:
        # A handler that came here without a task is given up where it first waits, which a nursery would not survive.
        await trio.lowlevel.checkpoint()
        await self._chunks.fetch(missing)

    def _edges(self, inode: Inode, start: int, end: int) -> list[Extent]:
        """The cold extents that [start, end) covers in part, but for holes."""
        touched = self._touched(inode, start, end)
        return [e for e in (*touched[:1], *touched[-1:]) if not e.is_hole and (e.start < start or e.end > end)]

    def _hydrate_edges(self, inode: Inode, start: int, end: int) -> list[ChunkId]:
        """Bring the cold extents that [start, end) covers in part into the hot file; all of them stay cold.

        Returns the chunks that must be fetched first, having changed nothing; else an empty list.
        """
        plain: dict[int, Buffer] = {}
        missing: list[ChunkId] = []
        for extent in self._edges(inode, start, end):
            chunk = self._find(inode, extent)
            if chunk is None:
                missing.append(extent.chunk)
            else:
                plain[extent.start] = chunk
        if missing or not plain:
            return missing
        self.ensure_hot(inode)
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
                self.make_hot(inode, extent.start, extent.end)

    async def truncate(self, inode: Inode, size: int) -> None:
        """Set the size: what is cut off is gone, what is added reads as zeros. Raises StoreFull, or PosixError EDQUOT
        or EFBIG, for growth only.
        """
        if size > inode.size:
            self._require_room(inode, size)
        if self.quota is not None:
            if size > inode.size:
                self.quota.grow(inode, size - inode.size)
            else:
                self.quota.shrunk(inode)
        if size == 0:
            self._clear(inode)
            return
        await self._unshare(inode)
        while missing := self._cut_cold(inode, size):
            await self._fetch(missing)
            await self._unshare(inode)
        self.ensure_hot(inode)
        self._hot.truncate(inode.ino, inode.hot_no, size)
        self.note_change(inode, size)

    def _clear(self, inode: Inode) -> None:
        self.discard(inode)
        inode.cold = []
        self.note_change(inode, 0)

    def _cut_cold(self, inode: Inode, size: int) -> list[ChunkId]:
        """Take the extents at and after *size* out of the cold ranges; the one that *size* divides becomes hot."""
        start = size
        divided = self._divided(inode, size)
        if divided is not None:
            missing = self._hydrate_edges(inode, divided.start + 1, divided.end)
            if missing:
                return missing
            start = divided.start
        if inode.cold and inode.cold[-1][1] > size:
            self.make_hot(inode, start, inode.cold[-1][1])
        return []

    def _divided(self, inode: Inode, size: int) -> Extent | None:
        """The cold extent that has bytes on both sides of *size* (above 0)."""
        for extent in self._touched(inode, size - 1, size):
            if extent.end > size:
                return extent
        return None

    # -- snapshots

    def freeze(self, inode: Inode) -> int:
        """From now until it is thawed the inode's hot file keeps its bytes: a write first gives the inode a copy of its
        own, or waits where copying would take longer. Returns the ticket for `retirement.thaw`.
        """
        return self.retirement.freeze(inode.hot_no)

    async def _unshare(self, inode: Inode) -> None:
        while self.retirement.is_frozen(inode.hot_no):
            if self._must_wait(inode):
                await self.retirement.wait_thawed(inode.hot_no)
                continue
            number = self._inodes.allocate_number()
            self._hot.copy(inode.ino, inode.hot_no, number)
            self.retirement.retire(inode.ino, inode.hot_no)
            self.replace_hot(inode, number)
