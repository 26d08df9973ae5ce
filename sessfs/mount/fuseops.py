"""The FUSE adapter: each handler translates, calls the layer below, and translates back.

The kernel caches names, attributes and pages for long, since this daemon alone changes the tree.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import trio
from pyfuse3 import FUSEError

from sessfs.local.reserved import is_reserved, is_view
from sessfs.mount.adapter import CACHE_TIMEOUT_S, IDENTITY_XATTR
from sessfs.mount.boundary import changing, handler, in_task
from sessfs.mount.fileops import FileOperations
from sessfs.mount.fusewire import BLOCK_BYTES, STATFS_OUT, pack_no_entry
from sessfs.types import ROOT_INO, Ino
from sessfs.vfs.namespace import NAME_MAX_BYTES, Owner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ModeT, XAttrNameT

    from sessfs.mount.fusewire import RequestContext, Wanted

KERNEL_TIMES_NS = 60 * 10**9


def _only_kernel_times(wanted: Wanted, now_ns: int, before_ns: int) -> bool:
    """True for the times that the kernel hands over with a file's pages, rather than what somebody set: both are one
    time, of this very moment, which a hot file can carry; or mtime is what it was *before*, and ctime says when another
    request came that was noted then.
    """
    if wanted.mtime_ns is None or abs(now_ns - wanted.mtime_ns) >= KERNEL_TIMES_NS:
        return False
    if wanted.mtime_ns not in (wanted.ctime_ns, before_ns):
        return False
    return wanted.size is wanted.mode is wanted.uid is wanted.gid is wanted.atime_ns is None


class SessionOperations(FileOperations):
    """The handlers, by the names and arguments that pyfuse3 gives them; attributes are answered packed.

    A handler that must wait says `await in_task()` first: until then it runs to its end at once, in the request loop.
    """

    # -- names

    @handler
    async def lookup(self, parent_inode: InodeT, name: FileNameT) -> bytes:
        """A missing name is answered by an entry without inode, which the kernel remembers."""
        await self._reach_to_look(Ino(parent_inode), name)
        inode = self._names.lookup(Ino(parent_inode), name)
        if inode is not None and inode.opens:
            self._recall_if_short(inode.ino)
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
                self._fileio.refusals.forget(Ino(ino))

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
        await self._admit(Ino(parent_inode), name)
        return self._entry(self._names.make_symlink(Ino(parent_inode), name, target, Owner(ctx.uid, ctx.gid)))

    @changing
    async def link(self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT) -> bytes:
        """One more name."""
        await self._claim(Ino(new_parent_inode), new_name)
        linked = self._names.link(Ino(inode), Ino(new_parent_inode), new_name)
        # The name may be that of a file which was unlinked for it.
        self._fileio.stand_in(linked)
        return self._entry(linked)

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
        """Rename; a file that takes another's name stands in for it."""
        await self._claim(Ino(parent_inode_old), name_old)
        await self._claim(Ino(parent_inode_new), name_new)
        for moved in self._renames.rename(Ino(parent_inode_old), name_old, Ino(parent_inode_new), name_new, flags):
            self._fileio.stand_in(moved)

    # -- attributes

    @handler
    async def getattr(self, inode: InodeT, *, of_open: bool) -> bytes:
        """Attributes. *of_open*: the kernel asks for an open file, as it does before each write(2) that `_recall` has
        it ask for. So while room is short this is where write(2) is refused, before it changes anything.
        """
        await self._reach(Ino(inode))
        node = self._names.get(Ino(inode))
        if of_open and self._space.is_short:
            self._refuse_write(node)
        if node.opens:
            self._recall_if_short(node.ino)
        return self._attributes(node)

    @changing
    async def setattr(self, inode: InodeT, wanted: Wanted, pid: int) -> bytes:
        """chmod, chown, truncate and utimens; set-id bits go as the kernel leaves it to us to see to."""
        await self._reach(Ino(inode))
        node = self._names.get(Ino(inode))
        if self.is_mender(pid):
            return self._shorten_for_kernel(node, wanted)
        is_noted = True
        if wanted.size is not None:
            if not stat.S_ISREG(node.mode):
                raise FUSEError(errno.EINVAL)
            # The kernel says what time it was, where the size changes; where not, there is none to note.
            is_noted = wanted.size != node.size
            await self._resize(node, wanted.size, is_timed=is_noted and wanted.mtime_ns is None)
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
        before_ns = node.mtime_ns
        if wanted.mtime_ns is not None:
            node.mtime_ns = wanted.mtime_ns
        now = self._clock_ns()
        if wanted.ctime_ns is not None or is_noted:
            node.ctime_ns = now if wanted.ctime_ns is None else wanted.ctime_ns
        is_carried = wanted.mtime_ns is not None and self._fileio.carry_times(node)
        self._inodes.touch(node, soft=is_carried and _only_kernel_times(wanted, now, before_ns))
        self._inodes.account(node.session, 0, 0, now)
        if self._space.is_short and node.opens:
            trio.lowlevel.current_trio_token().run_sync_soon(self._recall_if_short, node.ino)
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
        if inode == ROOT_INO and name == IDENTITY_XATTR:
            return self._identity()
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
