"""The FUSE adapter: each handler translates, calls the layer below, and translates back.

The kernel caches names, attributes and pages for long, since this daemon alone changes the tree. A file handle is the
inode's number: nothing is kept per open but the count.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

from sessfs.chrome import wants_direct_io
from sessfs.local.reserved import is_reserved, is_view
from sessfs.mount.adapter import BLOCK_BYTES, CACHE_TIMEOUT_S, Adapter
from sessfs.mount.boundary import changing, handler, unanswered
from sessfs.types import ROOT_INO, Ino
from sessfs.vfs.namespace import NAME_MAX_BYTES, Owner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from pyfuse3 import (
        FileHandleT,
        FileNameT,
        FlagT,
        InodeT,
        ModeT,
        ReaddirToken,
        RequestContext,
        SetattrFields,
        StatvfsData,
        XAttrNameT,
    )

    from sessfs.sessions.lastuse import LastUse
    from sessfs.sync.restore import SessionDirectory
    from sessfs.vfs.volume import Volume

KERNEL_TIMES_NS = 60 * 10**9


class _DirHandle:
    """One open directory: the names as they were when it was opened or rewound."""

    __slots__ = ("ino", "names", "pages")

    def __init__(self, ino: Ino) -> None:
        self.ino = ino
        self.names: list[bytes] = []
        self.pages: AsyncIterator[list[bytes]] | None = None


def _only_kernel_times(fields: SetattrFields, attr: EntryAttributes, now_ns: int) -> bool:
    """True for the times that the kernel hands over with a file's pages, rather than what somebody set: those are of
    this very moment.
    """
    others = fields.update_size or fields.update_mode or fields.update_uid or fields.update_gid or fields.update_atime
    return fields.update_mtime and not others and abs(now_ns - attr.st_mtime_ns) < KERNEL_TIMES_NS


class SessionOperations(Adapter):
    """pyfuse3's handlers over a Volume."""

    def __init__(
        self, volume: Volume, clock_ns: Callable[[], int], sessions: SessionDirectory | None, last_use: LastUse
    ) -> None:
        super().__init__(volume, clock_ns, sessions, last_use)
        self._dirs: dict[int, _DirHandle] = {}
        self._next_dir = 1

    # -- names

    @handler
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> EntryAttributes:
        """A missing name is answered by an entry without inode, which the kernel remembers."""
        await self._reach(Ino(parent_inode), name)
        inode = self._names.lookup(Ino(parent_inode), name)
        if inode is None or (parent_inode == ROOT_INO and is_reserved(name) and not is_view(name)):
            entry = EntryAttributes()
            entry.st_ino = 0
            entry.entry_timeout = CACHE_TIMEOUT_S
            return entry
        return self._entry(inode)

    @unanswered
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """What can't be freed now is freed as an orphan at the next start."""
        for ino, count in inode_list:
            self._names.forget(Ino(ino), count)

    @changing
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Files of every type but directories and symlinks."""
        await self._claim(Ino(parent_inode), name)
        return self._entry(self._names.make(Ino(parent_inode), name, mode, Owner(ctx.uid, ctx.gid), rdev))

    @changing
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        """A directory."""
        await self._claim(Ino(parent_inode), name)
        mode_bits = stat.S_IFDIR | stat.S_IMODE(mode)
        return self._entry(self._names.make(Ino(parent_inode), name, mode_bits, Owner(ctx.uid, ctx.gid)))

    @changing
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """A symlink."""
        await self._claim(Ino(parent_inode), name)
        return self._entry(self._names.make_symlink(Ino(parent_inode), name, target, Owner(ctx.uid, ctx.gid)))

    @changing
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """One more name."""
        await self._claim(Ino(new_parent_inode), new_name)
        return self._entry(self._names.link(Ino(inode), Ino(new_parent_inode), new_name))

    @handler
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> bytes:
        """The symlink's target."""
        return self._names.read_link(Ino(inode))

    @changing
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove a name."""
        await self._claim(Ino(parent_inode), name)
        self._names.unlink(Ino(parent_inode), name)

    @changing
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
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
        ctx: RequestContext,
    ) -> None:
        """Rename; the data of a file that takes another's name is flushed before the next commit."""
        await self._claim(Ino(parent_inode_old), name_old)
        await self._claim(Ino(parent_inode_new), name_new)
        moved = self._renames.rename(Ino(parent_inode_old), name_old, Ino(parent_inode_new), name_new, flags)
        if moved is not None:
            self._fileio.order(moved)

    # -- attributes

    @handler
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """Attributes."""
        await self._reach(Ino(inode))
        return self._attributes(self._names.get(Ino(inode)))

    @changing
    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        """chmod, chown, truncate and utimens; set-id bits go as the kernel leaves it to us to see to."""
        await self._reach(Ino(inode))
        node = self._names.get(Ino(inode))
        if fields.update_size:
            if not stat.S_ISREG(node.mode):
                raise FUSEError(errno.EINVAL)
            await self._fileio.truncate(node, attr.st_size)
            if ctx.uid != 0:
                self._fileio.drop_privileges(node)
        if fields.update_mode:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(attr.st_mode)
        if fields.update_uid or fields.update_gid:
            if fields.update_uid:
                node.uid = attr.st_uid
            if fields.update_gid:
                node.gid = attr.st_gid
            if not stat.S_ISDIR(node.mode) and not fields.update_mode:
                self._fileio.drop_privileges(node)
        if fields.update_atime:
            node.atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            node.mtime_ns = attr.st_mtime_ns
        now = self._clock_ns()
        node.ctime_ns = attr.st_ctime_ns if fields.update_ctime else now
        self._inodes.touch(node, soft=_only_kernel_times(fields, attr, now))
        self._inodes.account(node.session, 0, 0, now)
        return self._attributes(node)

    @changing
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext) -> None:
        """Set an xattr."""
        await self._reach(Ino(inode))
        self._xattrs.set(Ino(inode), name, value)

    @handler
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """An xattr's value."""
        await self._reach(Ino(inode))
        return self._xattrs.get(Ino(inode), name)

    @handler
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[bytes]:
        """Names of the xattrs."""
        await self._reach(Ino(inode))
        return self._xattrs.names(Ino(inode))

    @changing
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Remove an xattr."""
        await self._reach(Ino(inode))
        self._xattrs.remove(Ino(inode), name)

    @handler
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """The room that is really left: the smaller of the cache bound's and the disk's."""
        room = self._space.room()
        stats = pyfuse3.StatvfsData()
        stats.f_bsize = stats.f_frsize = BLOCK_BYTES
        stats.f_blocks = room.total_bytes // BLOCK_BYTES
        stats.f_bfree = stats.f_bavail = room.free_bytes // BLOCK_BYTES
        stats.f_files = stats.f_ffree = stats.f_favail = 1 << 32
        stats.f_namemax = NAME_MAX_BYTES
        return stats

    # -- files

    @changing
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Create and open."""
        await self._claim(Ino(parent_inode), name)
        mode_bits = stat.S_IFREG | stat.S_IMODE(mode)
        inode = self._names.make(Ino(parent_inode), name, mode_bits, Owner(ctx.uid, ctx.gid))
        self._note_open(inode, flags, ctx)
        info = FileInfo(fh=inode.ino, direct_io=wants_direct_io(name), keep_cache=True)
        return info, self._entry(inode)

    @handler
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open; O_TRUNC arrives here."""
        node = self._names.get(Ino(inode))
        direct = self._ask_quota(node, flags, ctx)
        if flags & os.O_TRUNC:
            if self.read_only_reason() is not None:
                raise FUSEError(errno.EROFS)
            await self._fileio.truncate(node, 0)
            if ctx.uid != 0:
                self._fileio.drop_privileges(node)
        self._note_open(node, flags, ctx)
        return FileInfo(fh=node.ino, keep_cache=True, direct_io=direct)

    @handler
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Bytes of the file, fewer only at its end."""
        return await self._fileio.read(self._names.get(Ino(fh)), off, size)

    @changing
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write all of *buf*."""
        return await self._fileio.write(self._names.get(Ino(fh)), off, buf)

    async def flush(self, fh: FileHandleT) -> None:
        """Nothing is kept for close; ENOSYS keeps the kernel from asking again."""
        raise FUSEError(errno.ENOSYS)

    @handler
    async def release(self, fh: FileHandleT) -> None:
        """One open less; an inode without names goes with its last."""
        node = self._names.get(Ino(fh))
        self._inodes.note_closed(node)
        if node.opens == 0:
            node.user_writes = False
            if self._fileio.quota is not None:
                self._fileio.quota.closed(node)
        if node.nlink == 0 and node.opens == 0 and not self._inodes.is_known(node.ino):
            self._names.reclaim(node)

    @handler
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Data and metadata of the file, and everything acknowledged before, are durable on return."""
        await self._committer.sync_file(self._names.get(Ino(fh)))

    # -- directories

    @handler
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Open a directory."""
        await self._reach(Ino(inode))
        number = self._next_dir
        self._next_dir += 1
        self._dirs[number] = _DirHandle(Ino(inode))
        return number

    @handler
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """Entries from *start_id*: the position in the names as they were at the last rewind, `.` and `..` first."""
        directory = self._dirs[fh]
        if start_id == 0:
            if directory.ino == ROOT_INO and self._sessions is not None:
                await self._sessions.load_root()
            directory.names = [b".", b"..", *self._names.list_names(directory.ino)]
            if directory.ino == ROOT_INO and self._sessions is not None:
                directory.pages = self._sessions.iter_pages()
        position = start_id
        while position < len(directory.names) or await self._turn_page(directory):
            name = directory.names[position]
            inode = self._names.lookup(directory.ino, name)
            position += 1
            if inode is None or (directory.ino == ROOT_INO and is_reserved(name)):
                continue
            if not pyfuse3.readdir_reply(token, name, self._attributes(inode), position):
                return
            if position > 2:
                self._inodes.remember(inode.ino)

    async def _turn_page(self, directory: _DirHandle) -> bool:
        """Take in the next names that only the remote has; False when there are no more."""
        while directory.pages is not None:
            page = await anext(directory.pages, None)
            if page is None:
                directory.pages = None
            elif page:
                directory.names.extend(page)
                return True
        return False

    @handler
    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        self._dirs.pop(fh, None)

    @handler
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Everything acknowledged before is durable on return."""
        if self._committer.is_dirty or self._committer.is_busy:
            await self._committer.commit()
