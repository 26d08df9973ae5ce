"""The base of the FUSE adapter: translating inodes, and reaching for what only the remote has."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections import Counter
from typing import TYPE_CHECKING

import trio
from pyfuse3 import FUSEError

from sessfs.chrome import starts_with
from sessfs.errors import RemoteError, SessfsError, StoreCorrupt
from sessfs.local.reserved import is_reserved
from sessfs.mount import preflight
from sessfs.mount.boundary import faults_from_environment, in_task
from sessfs.mount.directories import Directories
from sessfs.mount.fusewire import pack_attributes, pack_entry
from sessfs.remote.patience import ANSWERS
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyfuse3 import FlagT

    from sessfs.local.inodes import Inode, Inodes
    from sessfs.mount.fusewire import RequestContext
    from sessfs.sessions.lastuse import LastUse
    from sessfs.sessions.starting import Starts
    from sessfs.sync.restore import SessionDirectory
    from sessfs.vfs.volume import Volume

log = logging.getLogger(__name__)
LOOKS = 20_000
CACHE_TIMEOUT_S = 86_400
LOOK_S = 2.0
"""So long a look at a session's name waits for what is in it."""
IDENTITY_XATTR = preflight.IDENTITY_XATTR.encode()
"""Of the mount's root, and in no list: which daemon serves it, and where its state directory is by now."""


def find_path(inodes: Inodes, inode: Inode) -> bytes | None:
    """A path of the inode below its session; None when it has none, or is not among the first LOOKS entries."""
    looks = LOOKS
    left: list[tuple[Ino, bytes]] = [(inode.session, b"")]
    while left:
        directory, path = left.pop()
        for name, dentry in inodes.iter_dentries(directory):
            looks -= 1
            if dentry.ino == inode.ino:
                return path + name
            if looks <= 0:
                return None
            if stat.S_ISDIR(dentry.kind) and directory != ROOT_INO:
                left.append((dentry.ino, path + name + b"/"))
    return None


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
        self._dirs = Directories(self._inodes, self._found, lambda ino: self._names.get(ino).parent)
        self.requests: Counter[str] = Counter()
        """Requests served so far, by kind."""
        self.faults = faults_from_environment()
        self._told: dict[Ino, int] = {}
        """Files of which the log says that writes are lost, with the error number."""

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

    # -- writes that the kernel had taken

    def note_read_only(self, ino: int) -> None:
        """A write of the file was refused because nothing may be changed."""
        inode = self._inodes.find(Ino(ino))
        if inode is not None:
            self._tell_lost(inode, errno.EROFS, str(self.read_only_reason()))

    def _note_lost(self, inode: Inode, offset: int, length: int, exc: Exception) -> None:
        """Pages of the kernel's cache can't be written. Who wrote them learns it by fsync or close, if at all, and who
        unmounts that there were some: the log says which.
        """
        number = exc.errno if isinstance(exc, SessfsError | OSError) and exc.errno else errno.EIO
        self._tell_lost(inode, number, f"{length} bytes at {offset}: {exc}")

    def _tell_lost(self, inode: Inode, number: int, why: str) -> None:
        """Once for each file and error, until it is closed."""
        if self._told.get(inode.ino) != number:
            self._told[inode.ino] = number
            log.error("%s: a write that was taken is lost, %s (said once until it is closed)", self._show(inode), why)

    def _show(self, inode: Inode) -> str:
        """The file as a person would name it: session and path, as far as they are found soon."""
        session = self._inodes.find_session_name(inode.session)
        where = (session or b".").decode(errors="replace")
        path = find_path(self._inodes, inode)
        return f"{where}/{path.decode(errors='replace')}" if path else f"inode {inode.ino} of session {where}"

    async def _admit(self, parent: Ino, name: bytes) -> None:
        """EHOSTDOWN for the lock of a Chrome that may not start."""
        if self._starts is not None and starts_with(name):
            await in_task()
            await self._starts.admit(self._names.get(parent).session)

    def _suspect(self, inode: Inode, exc: SessfsError | OSError) -> None:
        """The file's bytes were needed, and that was raised: if they are damaged or gone, its session is suspect."""
        if isinstance(exc, StoreCorrupt | RemoteError) or (isinstance(exc, OSError) and exc.errno == errno.EIO):
            self._note_suspect(inode.session, f"inode {inode.ino}: {exc}")

    async def _resize(self, node: Inode, size: int, *, is_timed: bool) -> None:
        try:
            if not self._fileio.can_truncate(node, size):
                await in_task()
            await self._fileio.truncate(node, size, is_timed=is_timed)
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
