"""The base of the FUSE adapter: translating inodes, and reaching for what only the remote has."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from typing import TYPE_CHECKING

from pyfuse3 import FUSEError

from sessfs.local.reserved import is_reserved
from sessfs.mount import preflight
from sessfs.mount.boundary import faults_from_environment, in_task
from sessfs.mount.fusewire import pack_attributes, pack_entry
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyfuse3 import FlagT

    from sessfs.local.inodes import Inode
    from sessfs.mount.fusewire import RequestContext
    from sessfs.sessions.lastuse import LastUse
    from sessfs.sync.restore import SessionDirectory
    from sessfs.vfs.volume import Volume

CACHE_TIMEOUT_S = 86_400
IDENTITY_XATTR = preflight.IDENTITY_XATTR.encode()
"""Of the mount's root, and in no list: which daemon serves it, and where its state directory is by now."""


class Adapter:
    """What the handlers share: the volume's parts, and the translation of inodes into attributes."""

    def __init__(
        self, volume: Volume, clock_ns: Callable[[], int], sessions: SessionDirectory | None, last_use: LastUse
    ) -> None:
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

    def _identity(self) -> bytes:
        """What `preflight` asks for by IDENTITY_XATTR."""
        where = self._volume.state.where()
        return json.dumps({"pid": os.getpid(), "state_dir": None if where is None else str(where)}).encode()

    def now_ns(self) -> int:
        """The time, in ns since 1970."""
        return self._clock_ns()

    async def _reach(self, ino: Ino, name: bytes | None = None) -> None:
        """Have what the remote knows of an inode, or of a name in a directory, here before it is looked at."""
        if self._sessions is None:
            return
        if ino in self._sessions.stubs:
            await in_task()
            await self._sessions.load(ino)
        if ino == ROOT_INO and name is not None and not is_reserved(name):
            await in_task()
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

    def _note_open(self, inode: Inode, ctx: RequestContext) -> None:
        self._inodes.note_open(inode)
        self._last_use.opened(inode.session, ctx.pid)

    # -- translating

    def _attributes(self, inode: Inode) -> bytes:
        """fuse_attr_out."""
        return pack_attributes(inode, self._fileio.allocated_bytes(inode), self._timeouts(inode.ino)[1])

    def _found(self, inode: Inode) -> bytes:
        """fuse_entry_out."""
        return pack_entry(inode, self._fileio.allocated_bytes(inode), *self._timeouts(inode.ino))

    def _timeouts(self, ino: Ino) -> tuple[int, int]:
        """How long the kernel may keep a name that leads to *ino*, and its attributes, in seconds."""
        if self._sessions is None:
            return CACHE_TIMEOUT_S, CACHE_TIMEOUT_S
        if ino in self._sessions.unverified:
            # The next look at it must come here, and may find another inode.
            return 0, 0
        return CACHE_TIMEOUT_S, 0 if ino in self._sessions.stubs else CACHE_TIMEOUT_S

    def _entry(self, inode: Inode) -> bytes:
        """fuse_entry_out in answer to a request that makes the kernel hold one more reference."""
        entry = self._found(inode)
        self._inodes.remember(inode.ino)
        return entry
