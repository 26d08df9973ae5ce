"""The base of the FUSE adapter: translating inodes, and reaching for what only the remote has."""

from __future__ import annotations

import errno
import os
from collections import Counter
from typing import TYPE_CHECKING

import trio
from pyfuse3 import FUSEError

from sessfs.chrome import starts_with
from sessfs.errors import RemoteError, SessfsError, StoreCorrupt
from sessfs.local.reserved import is_reserved
from sessfs.mount.boundary import faults_from_environment, in_task
from sessfs.mount.fusewire import pack_attributes, pack_entry
from sessfs.remote.patience import ANSWERS
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from pyfuse3 import FlagT

    from sessfs.local.inodes import Inode
    from sessfs.mount.fusewire import RequestContext
    from sessfs.sessions.lastuse import LastUse
    from sessfs.sessions.starting import Starts
    from sessfs.sync.restore import SessionDirectory
    from sessfs.vfs.volume import Volume

CACHE_TIMEOUT_S = 86_400
LOOK_S = 2.0
"""So long a look at a session's name waits for what is in it."""


class DirHandle:
    """One open directory: the names as they were when it was opened or rewound."""

    __slots__ = ("_pages", "_start", "ino", "names")

    def __init__(self, ino: Ino) -> None:
        self.ino = ino
        self.names: list[bytes] = []
        self._start: Callable[[], AsyncIterator[list[bytes]]] | None = None
        self._pages: AsyncIterator[list[bytes]] | None = None

    def go_on_with(self, start: Callable[[], AsyncIterator[list[bytes]]]) -> None:
        """After `names` come those of the pages that *start* begins to give."""
        self._start, self._pages = start, start()

    async def turn_page(self) -> bool:
        """Take in the next names that only the remote has; False when there are no more. Raises RemoteError."""
        while self._start is not None and self._pages is not None:
            await in_task()
            try:
                page = await anext(self._pages, None)
            except BaseException:
                # It is used up, and would seem to have no more: what comes after begins anew.
                self._pages = self._start()
                raise
            if page is None:
                self._pages = None
            elif page:
                self.names.extend(page)
                return True
        return False


class Adapter:
    """What the handlers share: the volume's parts, and the translation of inodes into attributes."""

    def __init__(
        self,
        volume: Volume,
        clock_ns: Callable[[], int],
        sessions: SessionDirectory | None,
        last_use: LastUse,
        *,
        starts: Starts | None = None,
        note_suspect: Callable[[Ino, str], None] = lambda session, why: None,
    ) -> None:
        """*starts* is asked whether a Chrome may start, None: it always may. *note_suspect* is told of each session of
        which something can't be read, with what and why.
        """
        self._starts = starts
        self._note_suspect = note_suspect
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
        self._dirs: dict[int, DirHandle] = {}
        self._next_dir = 1
        self.requests: Counter[str] = Counter()
        """Requests served so far, by kind."""
        self.faults = faults_from_environment()

    def read_only_reason(self) -> str | None:
        """Why nothing may be changed, None while it may."""
        return self._volume.read_only_reason

    def now_ns(self) -> int:
        """The time, in ns since 1970."""
        return self._clock_ns()

    async def _reach(self, ino: Ino, name: bytes | None = None) -> None:
        """Have what the remote knows of an inode, or of a name in a directory, here before it is looked at. What is in
        a session waits until the remote answers. Raises RemoteError for a name in the root, which can't: meanwhile the
        kernel keeps all others from making sessions, and after that from looking for them.
        """
        if self._sessions is None:
            return
        if ino in self._sessions.stubs:
            await in_task()
            await self._load_whenever(self._sessions, ino)
        if ino == ROOT_INO and name is not None and not is_reserved(name):
            await in_task()
            await self._sessions.find(name)
            dentry = self._inodes.find_dentry(ROOT_INO, name)
            if dentry is not None and dentry.ino in self._sessions.stubs:
                await self._sessions.load(dentry.ino)

    async def _load_whenever(self, sessions: SessionDirectory, session: Ino) -> None:
        """Load the session's tree, however long the remote does not answer."""
        if self._fileio.patience is None:
            await sessions.load(session)
        else:
            await self._fileio.patience.persist(session, lambda: sessions.load(session))

    async def _reach_to_look(self, ino: Ino, name: bytes) -> None:
        """`_reach`, for a look that is content with a session of which nothing but the name is here: if the remote does
        not answer soon, whoever goes on into it waits there, where nobody else has to.
        """
        if self._sessions is None or ino != ROOT_INO or is_reserved(name):
            await self._reach(ino, name)
            return
        await in_task()
        await self._sessions.find(name)
        dentry = self._inodes.find_dentry(ROOT_INO, name)
        if dentry is not None and dentry.ino in self._sessions.stubs:
            with trio.move_on_after(LOOK_S):
                try:
                    await self._sessions.load(dentry.ino)
                except RemoteError as exc:
                    if isinstance(exc, ANSWERS):
                        raise

    async def _claim(self, parent: Ino, name: bytes) -> None:
        """`_reach`, for what changes what the name stands for: EPERM for names that are the product's own."""
        if parent == ROOT_INO and is_reserved(name):
            raise FUSEError(errno.EPERM)
        await self._reach(parent, name)

    async def _admit(self, parent: Ino, name: bytes) -> None:
        """EHOSTDOWN for the lock of a Chrome that may not start."""
        if self._starts is not None and starts_with(name):
            await in_task()
            await self._starts.admit(self._names.get(parent).session)

    def _suspect(self, inode: Inode, exc: SessfsError | OSError) -> None:
        """The file's bytes were needed, and that was raised: if they are damaged or gone, its session is suspect."""
        if isinstance(exc, StoreCorrupt | RemoteError) or (isinstance(exc, OSError) and exc.errno == errno.EIO):
            self._note_suspect(inode.session, f"inode {inode.ino}: {exc}")

    async def _resize(self, node: Inode, size: int) -> None:
        try:
            if not self._fileio.can_truncate(node, size):
                await in_task()
            await self._fileio.truncate(node, size)
        except (SessfsError, OSError) as exc:
            self._suspect(node, exc)
            raise

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
