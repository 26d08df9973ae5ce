"""The FUSE adapter: each handler translates, calls the layer below, and translates back.

The kernel caches names, attributes and pages for long, since this daemon alone changes the tree. A file handle is the
inode's number: nothing is kept per open but the count.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from pyfuse3 import FUSEError

from sessfs.chrome import wants_direct_io
from sessfs.local.reserved import is_reserved, is_view
from sessfs.mount.adapter import CACHE_TIMEOUT_S, Adapter
from sessfs.mount.boundary import changing, handler, in_task
from sessfs.mount.directories import Directories
from sessfs.mount.flushers import Flush
from sessfs.mount.fusewire import BLOCK_BYTES, STATFS_OUT, FileInfo, pack_no_entry
from sessfs.types import ROOT_INO, Ino
from sessfs.vfs.fileio import SUID_SGID
from sessfs.vfs.namespace import NAME_MAX_BYTES, Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ModeT, XAttrNameT

    from sessfs.format.chunk import Buffer
    from sessfs.mount.fusewire import RequestContext, Wanted
    from sessfs.sessions.lastuse import LastUse
    from sessfs.sync.restore import SessionDirectory
    from sessfs.vfs.volume import Volume

KERNEL_TIMES_NS = 60 * 10**9


def _only_kernel_times(wanted: Wanted, now_ns: int) -> bool:
    """True for the times that the kernel hands over with a file's pages, rather than what somebody set: those are of
    this very moment.
    """
    if wanted.mtime_ns is None or abs(now_ns - wanted.mtime_ns) >= KERNEL_TIMES_NS:
        return False
    return wanted.size is wanted.mode is wanted.uid is wanted.gid is wanted.atime_ns is None


class SessionOperations(Adapter):
    """The handlers, by the names and arguments that pyfuse3 gives them; attributes are answered packed.

    A handler that must wait says `await in_task()` first: until then it runs to its end at once, in the request loop.
    """

    def __init__(
        self, volume: Volume, clock_ns: Callable[[], int], sessions: SessionDirectory | None, last_use: LastUse
    ) -> None:
        super().__init__(volume, clock_ns, sessions, last_use)
        self._dirs = Directories(self._inodes, self._found, lambda ino: self._names.get(ino).parent)

    # -- names

    @handler
    async def lookup(self, parent_inode: InodeT, name: FileNameT) -> bytes:
        """A missing name is answered by an entry without inode, which the kernel remembers."""
        await self._reach(Ino(parent_inode), name)
        inode = self._names.lookup(Ino(parent_inode), name)
        if inode is None or (parent_inode == ROOT_INO and is_reserved(name) and not is_view(name)):
            return pack_no_entry(CACHE_TIMEOUT_S)
        return self._entry(inode)

    @handler
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """What can't be freed now is freed as an orphan at the next start."""
        for ino, count in inode_list:
            self._names.forget(Ino(ino), count)
            if not self._inodes.is_known(Ino(ino)):
                self._dirs.forget(Ino(ino))

    @changing
    async def mknod(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext) -> bytes:
        """Files of every type but directories and symlinks."""
        await self._claim(Ino(parent_inode), name)
        return self._entry(self._names.make(Ino(parent_inode), name, mode, Owner(ctx.uid, ctx.gid), rdev))

    @changing
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> bytes:
        """A directory."""
        await self._claim(Ino(parent_inode), name)
        mode_bits = stat.S_IFDIR | stat.S_IMODE(mode)
        return self._entry(self._names.make(Ino(parent_inode), name, mode_bits, Owner(ctx.uid, ctx.gid)))

    @changing
    async def symlink(self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext) -> bytes:
        """A symlink."""
        await self._claim(Ino(parent_inode), name)
        return self._entry(self._names.make_symlink(Ino(parent_inode), name, target, Owner(ctx.uid, ctx.gid)))

    @changing
    async def link(self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT) -> bytes:
        """One more name."""
        await self._claim(Ino(new_parent_inode), new_name)
        return self._entry(self._names.link(Ino(inode), Ino(new_parent_inode), new_name))

    @handler
    async def readlink(self, inode: InodeT) -> bytes:
        """The symlink's target."""
        return self._names.read_link(Ino(inode))

    @changing
    async def unlink(self, parent_inode: InodeT, name: FileNameT) -> None:
        """Remove a name."""
        await self._claim(Ino(parent_inode), name)
        self._names.unlink(Ino(parent_inode), name)

    @changing
    async def rmdir(self, parent_inode: InodeT, name: FileNameT) -> None:
        """Remove an empty directory."""
        await self._claim(Ino(parent_inode), name)
        self._names.rmdir(Ino(parent_inode), name)

    @changing
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
    ) -> None:
        """Rename; the data of a file that takes another's name is flushed before the next commit."""
        await self._claim(Ino(parent_inode_old), name_old)
        await self._claim(Ino(parent_inode_new), name_new)
        moved = self._renames.rename(Ino(parent_inode_old), name_old, Ino(parent_inode_new), name_new, flags)
        if moved is not None:
            self._fileio.order(moved)

    # -- attributes

    @handler
    async def getattr(self, inode: InodeT) -> bytes:
        """Attributes."""
        await self._reach(Ino(inode))
        return self._attributes(self._names.get(Ino(inode)))

    @changing
    async def setattr(self, inode: InodeT, wanted: Wanted) -> bytes:
        """chmod, chown, truncate and utimens; set-id bits go as the kernel leaves it to us to see to."""
        await self._reach(Ino(inode))
        node = self._names.get(Ino(inode))
        if wanted.size is not None:
            if not stat.S_ISREG(node.mode):
                raise FUSEError(errno.EINVAL)
            if not self._fileio.can_truncate(node, wanted.size):
                await in_task()
            await self._fileio.truncate(node, wanted.size)
            if wanted.kills_set_id:
                self._fileio.drop_privileges(node)
        if wanted.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(wanted.mode)
        if wanted.uid is not None or wanted.gid is not None:
            node.uid = node.uid if wanted.uid is None else wanted.uid
            node.gid = node.gid if wanted.gid is None else wanted.gid
            if not stat.S_ISDIR(node.mode) and wanted.mode is None:
                self._fileio.drop_privileges(node)
        if wanted.atime_ns is not None:
            node.atime_ns = wanted.atime_ns
        if wanted.mtime_ns is not None:
            node.mtime_ns = wanted.mtime_ns
        now = self._clock_ns()
        node.ctime_ns = now if wanted.ctime_ns is None else wanted.ctime_ns
        self._inodes.touch(node, soft=_only_kernel_times(wanted, now))
        self._inodes.account(node.session, 0, 0, now)
        return self._attributes(node)

    @changing
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, flags: FlagT) -> None:
        """Set an xattr; *flags* as setxattr(2) has them."""
        await self._reach(Ino(inode))
        if flags:
            self._xattrs.require(Ino(inode), name, exists=flags == os.XATTR_REPLACE)
        self._xattrs.set(Ino(inode), name, value)

    @handler
    async def getxattr(self, inode: InodeT, name: XAttrNameT) -> bytes:
        """An xattr's value."""
        await self._reach(Ino(inode))
        return self._xattrs.get(Ino(inode), name)

    @handler
    async def listxattr(self, inode: InodeT) -> Sequence[bytes]:
        """Names of the xattrs."""
        await self._reach(Ino(inode))
        return self._xattrs.names(Ino(inode))

    @changing
    async def removexattr(self, inode: InodeT, name: XAttrNameT) -> None:
        """Remove an xattr."""
        await self._reach(Ino(inode))
        self._xattrs.remove(Ino(inode), name)

    @handler
    async def statfs(self) -> bytes:
        """The room that is really left: the smaller of the cache bound's and the disk's."""
        room = self._space.room()
        free = room.free_bytes // BLOCK_BYTES
        files = 1 << 32
        return STATFS_OUT.pack(
            room.total_bytes // BLOCK_BYTES, free, free, files, files, BLOCK_BYTES, NAME_MAX_BYTES, BLOCK_BYTES
        )

    # -- files

    @changing
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> bytes:
        """Create and open: fuse_entry_out and fuse_open_out."""
        await self._claim(Ino(parent_inode), name)
        mode_bits = stat.S_IFREG | stat.S_IMODE(mode)
        inode = self._names.make(Ino(parent_inode), name, mode_bits, Owner(ctx.uid, ctx.gid))
        self._note_open(inode, ctx)
        info = FileInfo(fh=inode.ino, direct_io=wants_direct_io(name), keep_cache=True)
        return self._entry(inode) + info.pack()

    @handler
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext, *, kills_set_id: bool) -> FileInfo:
        """Open; O_TRUNC arrives here, and *kills_set_id* says what it does to the mode."""
        node = self._names.get(Ino(inode))
        direct = self._ask_quota(node, flags, ctx)
        if flags & os.O_TRUNC:
            if self.read_only_reason() is not None:
                raise FUSEError(errno.EROFS)
            await self._fileio.truncate(node, 0)
            if kills_set_id:
                self._fileio.drop_privileges(node)
        self._note_open(node, ctx)
        return FileInfo(fh=node.ino, keep_cache=True, direct_io=direct)

    @handler
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes | list[Buffer]:
        """Bytes of the file, maybe in pieces; fewer only at its end."""
        node = self._names.get(Ino(fh))
        parts: list[Buffer] = []
        if not self._fileio.try_read(node, off, size, parts):
            return parts
        await in_task()
        return await self._fileio.read(node, off, size)

    @changing
    async def write(self, fh: FileHandleT, off: int, buf: bytes | memoryview, *, kills_set_id: bool) -> int:
        """Write all of *buf*; *kills_set_id* says that who writes may not keep set-user-id and set-group-id bits."""
        node = self._names.get(Ino(fh))
        if not self._fileio.can_write(node, off, len(buf)):
            await in_task()
        written = await self._fileio.write(node, off, buf)
        if kills_set_id and node.mode & SUID_SGID:
            self._fileio.drop_privileges(node)
        return written

    @handler
    async def release(self, fh: FileHandleT) -> None:
        """One open less; an inode without names goes with its last."""
        node = self._names.get(Ino(fh))
        self._inodes.note_closed(node)
        if node.opens == 0 and self._fileio.quota is not None:
            self._fileio.quota.closed(node)
        if node.nlink == 0 and node.opens == 0 and not self._inodes.is_known(node.ino):
            self._names.reclaim(node)

    @handler
    async def fsync(self, fh: FileHandleT) -> Flush | None:
        """Data and metadata of the file, and everything acknowledged before, are durable on return."""
        node = self._names.get(Ino(fh))
        if not self._committer.needs_sync(node):
            return None
        if not self._committer.needs_commit:
            return Flush(*self._committer.start_flush(node))
        await in_task()
        await self._committer.sync_file(node)
        return None

    # -- directories

    @handler
    async def opendir(self, inode: InodeT) -> bytes:
        """Open a directory."""
        await self._reach(Ino(inode))
        return self._dirs.open(Ino(inode))

    @handler
    async def readdir(self, fh: FileHandleT, start_id: int, size: int, *, plus: bool) -> bytes:
        """Entries after the position *start_id*, up to *size* bytes, if *plus* each with its attributes and as one more
        reference to it.
        """
        if self._sessions is not None and not self._sessions.is_listed and self._dirs.ino_of(fh) == ROOT_INO:
            # A name that comes late would be missed by handles that are past its position.
            await in_task()
            await self._sessions.load_root()
            await self._sessions.list_all()
        return self._dirs.read(fh, start_id, size, plus=plus)

    @handler
    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        self._dirs.close(fh)

    @handler
    async def fsyncdir(self, fh: FileHandleT) -> None:
        """Everything acknowledged before is durable on return."""
        if self._committer.is_dirty or self._committer.is_busy:
            await in_task()
            await self._committer.commit()
