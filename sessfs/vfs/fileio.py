"""A file's bytes: read, write and truncate over the hot file and the recipe below it.

Content below `Inode.size` lies in the recipe's chunks where the inode is *cold*, in the hot file everywhere else. The
length of a hot file is always the inode's size. The first write to a cold extent brings that extent into the hot file,
not the whole file; cold ranges therefore always lie on extent boundaries. What a hot file holds in place of content
that was durable before must reach the disk before the metadata that says so: such inodes are *ordered*.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from sessfs.errors import PosixError, SessfsError, StoreCorrupt, StoreFull
from sessfs.vfs.contents import Contents
from sessfs.vfs.ranges import split
from sessfs.vfs.refusals import Refusals

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from sessfs.format.chunk import Buffer
    from sessfs.format.recipe import Extent
    from sessfs.local.chunkstore import References
    from sessfs.local.hotfiles import HotFiles
    from sessfs.local.inodes import Inode, Inodes
    from sessfs.types import ChunkId, Ino
    from sessfs.vfs.quota import Quota

T = TypeVar("T")
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
        StoreCorrupt when that can't be. Those in *ahead* come with them if they can. May be cancelled at any moment.
        """


class Waiting(Protocol):
    """See remote.patience.Patience."""

    async def persist(self, session: Ino, attempt: Callable[[], Awaitable[T]]) -> T:
        """What *attempt* returns, however long the remote does not answer."""


class RoomLeft(Protocol):
    """How much may still be written."""

    def take(self, n_bytes: int, *, cached: bool) -> None:
        """*n_bytes* are about to be written, by a program that waits, or, if *cached*, by the kernel out of its page
        cache. Raises StoreFull where there is no room for them.
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
        """When set, whoever needs room is refused with this text; what the kernel has taken already is let in for as
        long as `room` has some left.
        """
        self.room: RoomLeft | None = None
        self.refusals = Refusals()
        self.quota: Quota | None = None
        """Asked before a file grows; None while nothing is limited."""
        self.patience: Waiting | None = None
        """How to wait while the remote does not answer; None: not at all."""

    # -- reading

    async def read(self, inode: Inode, offset: int, length: int) -> bytes:
        """The bytes of [offset, offset + length) that lie below the file's size. Raises StoreCorrupt or RemoteError
        when a chunk of the range is damaged or gone; other ranges stay readable. Waits while that is not known.
        """
        while True:
            parts: list[Buffer] = []
            missing = self.try_read(inode, offset, length, parts)
            if not missing:
                return b"".join(parts)
            ahead = self._ahead(inode, min(offset + length, inode.size))
            await self._bring(inode, missing, ahead)

    async def _bring(self, inode: Inode, ids: Collection[ChunkId], ahead: Collection[ChunkId] = ()) -> None:
        if self.patience is None:
            await self._chunks.fetch(ids, ahead)
        else:
            await self.patience.persist(inode.session, lambda: self._chunks.fetch(ids, ahead))

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

    async def write(self, inode: Inode, offset: int, content: bytes | memoryview, *, cached: bool = False) -> int:
        """Write all of *content*; returns its length. Acknowledged means: survives the application, and the daemon
        once the next commit has named its hot file; durable only after fsync. Raises StoreFull, or PosixError EDQUOT
        or EFBIG (nothing changed). If *cached*, the bytes come out of the kernel's page cache: the kernel has the
        times, and whoever wrote them was told that all is well, so they are let in as long as any room is left; the
        caller notes in `refusals` what is not.
        """
        end = offset + len(content)
        if end > max(inode.size, FILE_MAX_BYTES):
            raise PosixError(errno.EFBIG, f"a file has {FILE_MAX_BYTES >> 40} TiB at most")
        if end > inode.size:
            self._require_growth(inode, offset, end)
        self._require_room(inode, offset, end, cached=cached)
        await self._unshare(inode)
        while missing := self._hydrate_edges(inode, offset, end):
            await self._fetch(inode, missing)
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
        self.refusals.written(inode, offset, end)
        self.note_change(inode, max(end, inode.size), soft=True, is_timed=not cached)
        return len(content)

    def _require_growth(self, inode: Inode, start: int, end: int) -> None:
        """Raises PosixError unless the file may get bytes from *start*, which may lie behind its end, to *end*."""
        self.refusals.check_growth(inode, start)
        if self.quota is not None:
            self.quota.grow(inode, start, end)

    def _require_room(self, inode: Inode, start: int, end: int, *, cached: bool) -> None:
        if self.room is None:
            return
        try:
            self.room.take(end - start, cached=cached)
        except StoreFull:
            if not self._is_in_place(inode, start, end):
                raise

    def _is_in_place(self, inode: Inode, start: int, end: int) -> bool:
        """Whether the bytes of [start, end) have their room on the disk already, and need no more of it."""
        if not inode.hot_no or end > inode.size or self.retirement.is_frozen(inode.hot_no):
            return False
        if any(part.inside for part in split(start, end, inode.cold)):
            return False
        return self._hot.is_filled(inode.ino, inode.hot_no, start, end)

    def _touched(self, inode: Inode, start: int, end: int) -> list[Extent]:
        """The cold extents that hold any byte of [start, end), in order."""
        spans = [part for part in split(start, end, inode.cold) if part.inside] if inode.cold else []
        if not spans:
            return []
        recipe = self._inodes.load_recipe(inode)
        return [extent for part in spans for extent in recipe.overlapping(part.start, part.end)]

    async def _fetch(self, inode: Inode, missing: Collection[ChunkId]) -> None:
        # A handler that came here without a task is given up where it first waits, which a nursery would not survive.
        await trio.lowlevel.checkpoint()
        await self._bring(inode, missing)

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

    async def truncate(self, inode: Inode, size: int, *, is_timed: bool = True) -> None:
        """Set the size: what is cut off is gone, what is added reads as zeros. *is_timed* as for `note_change`. Raises
        StoreFull, or PosixError EDQUOT or EFBIG, for growth only.
        """
        if size > inode.size:
            if self.full_reason is not None:
                raise StoreFull(self.full_reason)
            if size > FILE_MAX_BYTES:
                raise PosixError(errno.EFBIG, f"a file has {FILE_MAX_BYTES >> 40} TiB at most")
            self._require_growth(inode, size, size)
        elif self.quota is not None:
            self.quota.shrunk(inode)
        await self.set_size(inode, size, is_timed=is_timed)
        self.refusals.cut(inode, size)

    async def set_size(self, inode: Inode, size: int, *, is_timed: bool = True) -> None:
        """As `truncate`, asking nobody. Raises StoreFull."""
        if size == 0:
            return self._clear(inode, is_timed=is_timed)
        await self._unshare(inode)
        while missing := self._cut_cold(inode, size):
            await self._fetch(inode, missing)
            await self._unshare(inode)
        self.ensure_hot(inode)
        self._hot.truncate(inode.ino, inode.hot_no, size)
        self.note_change(inode, size, is_timed=is_timed)

    def _clear(self, inode: Inode, *, is_timed: bool) -> None:
        had_content = inode.size > 0
        self.discard(inode)
        inode.cold = []
        self.note_change(inode, 0, is_timed=is_timed)
        if had_content:
            self.replacing.begin(inode, at_once=False)

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
