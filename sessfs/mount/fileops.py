"""The handlers of open files: creating, opening, reading, writing, syncing, closing.

The kernel's page cache takes a write(2) before the daemon sees it, so a refusal is best given before that. While room
is short, the kernel is made to ask for an open file's attributes before each write(2), and gets the error then
(`_recall`). What it had taken by then is let in, out of the room that `Space` keeps ahead. What has to be refused all
the same, at a limit, on a disk that others fill or that fails, is noted (`vfs/refusals`), and the kernel made to let go
of it (`mending`). For that it shortens the file, and drops with the rest what was written since: each descriptor that
was open then is told so by its next fsync.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pyfuse3
import trio
from pyfuse3 import FUSEError

from sessfs.chrome import wants_direct_io
from sessfs.errors import PosixError, SessfsError
from sessfs.mount.adapter import Adapter
from sessfs.mount.boundary import changing, handler, in_task
from sessfs.mount.flushers import Flush
from sessfs.mount.fusewire import FileInfo
from sessfs.mount.syscalls import kernel_version
from sessfs.types import Ino
from sessfs.vfs.fileio import SUID_SGID
from sessfs.vfs.namespace import Owner
from sessfs.vfs.refusals import error_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ModeT

    from sessfs.format.chunk import Buffer
    from sessfs.local.inodes import Inode
    from sessfs.mount.fusewire import RequestContext, Wanted
    from sessfs.sessions.lastuse import LastUse
    from sessfs.sessions.starting import Starts
    from sessfs.sync.restore import SessionDirectory
    from sessfs.vfs.volume import Volume

CAN_MAP_DIRECT = (6, 6)
"""From this Linux on, what is opened with direct I/O can be mapped shared, and what is mapped is seen by who reads
it.
"""


def recall_attributes(ino: Ino) -> None:
    """Have the kernel take what it knows of the inode's attributes for out of date. Of an inode that somebody has open,
    this never waits. Reading goes on without asking; write(2) and stat(2) ask.
    """
    try:
        pyfuse3.invalidate_inode(pyfuse3.InodeT(ino), attr_only=True)
    except OSError:
        # It knows nothing of it.
        return


class FileOperations(Adapter):
    """A file handle is the number of the open; what is kept of one is its inode."""

    def __init__(
        self,
        volume: Volume,
        clock_ns: Callable[[], int],
        sessions: SessionDirectory | None,
        last_use: LastUse,
        recall: Callable[[Ino], None] = recall_attributes,
        *,
        starts: Starts | None = None,
        note_suspect: Callable[[Ino, str], None] = lambda session, why: None,
    ) -> None:
        """*recall* as `recall_attributes`; all else as `Adapter`."""
        super().__init__(volume, clock_ns, sessions, last_use, starts=starts, note_suspect=note_suspect)
        self._recall = recall
        self._files: dict[int, Ino] = {}
        self._next_file = 1
        self._owed: dict[int, int] = {}
        """Open files whose next fsync fails, and with which errno."""
        self._can_map_direct = kernel_version() >= CAN_MAP_DIRECT
        self._space.became_short = self._recall_all
        self.is_mender: Callable[[int], bool] = lambda pid: False
        """Whether a request of that process is one of those by which the kernel is made to let go of refused writes."""

    def _open(self, inode: Inode, ctx: RequestContext, *, direct: bool) -> FileInfo:
        self._note_open(inode, ctx)
        number = self._next_file
        self._next_file += 1
        self._files[number] = inode.ino
        return FileInfo(fh=number, direct_io=direct, keep_cache=True)

    def _node(self, fh: FileHandleT) -> Inode:
        return self._names.get(self._files[fh])

    # -- while room is short

    def _recall_all(self) -> None:
        for ino in set(self._files.values()):
            self._recall(ino)

    def _recall_if_short(self, ino: Ino) -> None:
        """Called by handlers of requests that the kernel takes as news of the attributes, or that come before writes.
        An answer that is on its way when the kernel is told does not count for it.
        """
        if self._space.is_short:
            self._recall(ino)

    def _refuse_write(self, inode: Inode) -> None:
        """Raises PosixError ENOSPC. The attributes stay out of date, so the next write(2) asks again."""
        self._recall(inode.ino)
        raise PosixError(errno.ENOSPC, self._fileio.full_reason or "")

    # -- what was refused late

    async def _give_up(self, inode: Inode, start: int, content: memoryview | bytes, exc: Exception) -> None:
        """The kernel takes *content* for written; it is refused because of *exc*."""
        size, fileio = inode.size, self._fileio
        end = fileio.refusals.kept_end(inode, start, start + len(content))
        if end < size:
            if not fileio.can_truncate(inode, end):
                await in_task()
            await fileio.set_size(inode, end)
        have: list[Buffer] = []
        if fileio.try_read(inode, start, len(content), have):
            # What must be fetched is not compared.
            have = []
        number = exc.errno if isinstance(exc, SessfsError | OSError) and exc.errno else errno.EIO
        fileio.refusals.add(inode, start, content, b"".join(have), size, number)

    def _shorten_for_kernel(self, inode: Inode, wanted: Wanted) -> bytes:
        """The kernel is about to make the file end where it ends here. Raises PosixError EAGAIN where it would not."""
        if wanted.size is not None:
            refused = self._fileio.refusals.find(inode.ino)
            if refused is None or wanted.size != inode.size:
                raise PosixError(errno.EAGAIN)
            owed = {fh: refused.errno for fh, ino in self._files.items() if ino == inode.ino}
            self._owed.update(owed)
        return self._attributes(inode)

    # -- handlers

    @changing
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> bytes:
        """Create and open: fuse_entry_out and fuse_open_out."""
        await self._claim(Ino(parent_inode), name)
        mode_bits = stat.S_IFREG | stat.S_IMODE(mode)
        inode = self._names.make(Ino(parent_inode), name, mode_bits, Owner(ctx.uid, ctx.gid))
        short = self._space.is_short
        if short:
            # Once the kernel knows the inode.
            trio.lowlevel.current_trio_token().run_sync_soon(self._recall_if_short, inode.ino)
        # Nobody has the file in the page cache.
        direct = wants_direct_io(name) or (short and (flags & os.O_ACCMODE == os.O_WRONLY or self._can_map_direct))
        return self._entry(inode) + self._open(inode, ctx, direct=direct).pack()

    @handler
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext, *, kills_set_id: bool) -> FileInfo:
        """Open; O_TRUNC arrives here, and *kills_set_id* says what it does to the mode."""
        node = self._names.get(Ino(inode))
        if self.is_mender(ctx.pid):
            return self._open(node, ctx, direct=True)
        direct = self._ask_quota(node, flags, ctx)
        had_content = False
        if flags & os.O_TRUNC:
            if self.read_only_reason() is not None:
                raise FUSEError(errno.EROFS)
            # The kernel notes the time itself, and sends it.
            had_content = node.size > 0
            await self._fileio.truncate(node, 0, is_timed=False)
            if kills_set_id:
                self._fileio.drop_privileges(node)
        self._recall_if_short(node.ino)
        # Not where it is read as well: direct reads may not see what others' writes left in the page cache.
        direct = direct or (self._space.is_short and flags & os.O_ACCMODE == os.O_WRONLY)
        info = self._open(node, ctx, direct=direct)
        if had_content:
            self._fileio.stand_in(node)
        return info

    @handler
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes | list[Buffer]:
        """Bytes of the file, maybe in pieces; fewer only at its end."""
        node = self._node(fh)
        if self._fileio.refusals:
            self._fileio.refusals.check_read(node, off, off + size)
        parts: list[Buffer] = []
        try:
            if not self._fileio.try_read(node, off, size, parts):
                return parts
            await in_task(node.session)
            return await self._fileio.read(node, off, size)
        except (SessfsError, OSError) as exc:
            self._suspect(node, exc)
            raise

    @changing
    async def write(
        self, fh: FileHandleT, off: int, buf: bytes | memoryview, pid: int, *, cached: bool, kills_set_id: bool
    ) -> int:
        """Write all of *buf*, which comes out of the kernel's page cache if it is *cached*; *kills_set_id* says that
        who writes may not keep set-user-id and set-group-id bits.
        """
        node = self._node(fh)
        if not cached and self.is_mender(pid):
            raise PosixError(errno.EAGAIN)
        self._recall_if_short(node.ino)
        try:
            if not self._fileio.can_write(node, off, len(buf)):
                await in_task()
            written = await self._fileio.write(node, off, buf, cached=cached)
        except Exception as exc:
            if isinstance(exc, SessfsError | OSError):
                self._suspect(node, exc)
            if cached:
                self._note_lost(node, off, len(buf), exc)
                await self._give_up(node, off, buf, exc)
            raise
        if kills_set_id and node.mode & SUID_SGID:
            self._fileio.drop_privileges(node)
        return written

    @handler
    async def release(self, fh: FileHandleT) -> None:
        """One open less; an inode without names goes with its last."""
        node = self._node(fh)
        del self._files[fh]
        self._owed.pop(fh, None)
        self._inodes.note_closed(node)
        self._fileio.note_handed_over(node)
        if node.opens == 0:
            self._told.pop(node.ino, None)
            self._fileio.refusals.closed(node)
            if self._fileio.quota is not None:
                self._fileio.quota.closed(node)
        if node.nlink == 0 and node.opens == 0 and not self._inodes.is_known(node.ino):
            self._names.reclaim(node)

    @handler
    async def fsync(self, fh: FileHandleT, *, data_only: bool) -> Flush | None:
        """The file's data, its times unless *data_only*, and everything acknowledged before, are durable on return."""
        node = self._node(fh)
        self._fileio.note_handed_over(node)
        if self._fileio.refusals or self._owed:
            self._check_sync(fh, node)
        self._recall_if_short(node.ino)
        self._fileio.refusals.synced(node.ino)
        if not self._committer.needs_sync(node, data_only=data_only):
            return None
        if not self._committer.needs_commit:
            return Flush(*self._committer.start_flush(node, data_only=data_only))
        await in_task()
        await self._committer.sync_file(node, data_only=data_only)
        return None

    def _check_sync(self, fh: FileHandleT, inode: Inode) -> None:
        self._fileio.refusals.check_sync(inode)
        number = self._owed.pop(fh, None)
        if number is not None:
            raise error_of(number, "what was written to the file after a refused write was dropped with that")
