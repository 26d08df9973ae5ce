"""The base of the FUSE adapter: translating inodes, and reaching for what only the remote has."""

from __future__ import annotations

import errno
import os
from collections import Counter
from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes, FUSEError, Operations

from sessfs.local.reserved import is_reserved
from sessfs.mount.boundary import faults_from_environment
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyfuse3 import FlagT, RequestContext

    from sessfs.local.inodes import Inode
    from sessfs.sessions.lastuse import LastUse
    from sessfs.sync.restore import SessionDirectory
    from sessfs.vfs.volume import Volume

CACHE_TIMEOUT_S = 86_400.0
BLOCK_BYTES = 4096
SECTOR_BYTES = 512


class Adapter(Operations):
    """What the handlers share: the volume's parts, and the translation of inodes into attributes."""

    enable_writeback_cache = True
    supports_dot_lookup = True

    def __init__(
        self, volume: Volume, clock_ns: Callable[[], int], sessions: SessionDirectory | None, last_use: LastUse
    ) -> None:
        super().__init__()
        self._last_use = last_use
        self._volume = volume
        self._sessions = sessions
        self._inodes = volume.inodes
        self._names = volume.namespace
        self._renames = volume.renames
        self._xattrs = volume.xattrs
        self._fileio = volume.fileio
        self._committer = volume.committer
        self._space = volume.space
        self._clock_ns = clock_ns
        self.requests: Counter[str] = Counter()
        """Requests served so far, by kind."""
        self.faults = faults_from_environment()

    def read_only_reason(self) -> str | None:
        """Why nothing may be changed, None while it may."""
        return self._volume.read_only_reason

    async def _reach(self, ino: Ino, name: bytes | None = None) -> None:
        """Have what the remote knows of an inode, or of a name in a directory, here before it is looked at."""
        if self._sessions is None:
            return
        if ino in self._sessions.stubs:
            await self._sessions.load(ino)
        if ino == ROOT_INO and name is not None and not is_reserved(name):
            await self._sessions.find(name)
            dentry = self._inodes.find_dentry(ROOT_INO, name)
            if dentry is not None and dentry.ino in self._sessions.stubs:
                await self._sessions.load(dentry.ino)

    async def _claim(self, parent: Ino, name: bytes) -> None:
        """`_reach`, for what changes what the name stands for: EPERM for names that are the product's own."""
        if parent == ROOT_INO and is_reserved(name):
            raise FUSEError(errno.EPERM)
        await self._reach(parent, name)

    # -- opening

    def _ask_quota(self, inode: Inode, flags: FlagT, ctx: RequestContext) -> bool:
        """EDQUOT, or whether the file is to be written without the kernel's page cache."""
        quota, access = self._fileio.quota, flags & os.O_ACCMODE
        if quota is None:
            return False
        return quota.open(inode, writes=access != os.O_RDONLY, reads=access != os.O_WRONLY, pid=ctx.pid)

    def _note_open(self, inode: Inode, flags: FlagT, ctx: RequestContext) -> None:
        self._inodes.note_open(inode)
        self._last_use.opened(inode.session, ctx.pid)
        if ctx.uid != 0 and flags & os.O_ACCMODE != os.O_RDONLY:
            inode.user_writes = True

    # -- translating

    def _attributes(self, inode: Inode) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode.ino
        entry.entry_timeout = entry.attr_timeout = CACHE_TIMEOUT_S
        entry.st_mode = inode.mode
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid
        entry.st_gid = inode.gid
        entry.st_rdev = inode.rdev
        entry.st_size = inode.size
        entry.st_blksize = BLOCK_BYTES
        entry.st_blocks = -(-self._fileio.allocated_bytes(inode) // SECTOR_BYTES)
        entry.st_atime_ns = inode.atime_ns
        entry.st_mtime_ns = inode.mtime_ns
        entry.st_ctime_ns = inode.ctime_ns
        if self._sessions is not None and inode.ino in self._sessions.stubs:
            entry.attr_timeout = 0
        if self._sessions is not None and inode.ino in self._sessions.unverified:
            # The next look at it must come here, and may find another inode.
            entry.attr_timeout = entry.entry_timeout = 0
        return entry

    def _entry(self, inode: Inode) -> EntryAttributes:
        """Attributes in answer to a request that makes the kernel hold one more reference."""
        attributes = self._attributes(inode)
        self._inodes.remember(inode.ino)
        return attributes
