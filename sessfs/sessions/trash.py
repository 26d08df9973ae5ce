"""The trash: removed sessions that rest under names of the product's own until they are restored, or go for good.

A session in the trash is a session like any other: it is published, and another machine finds it. Its name before and
the time of its removal are xattrs of its root.
"""

from __future__ import annotations

import errno
import logging
import stat
import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sessfs.errors import MountBusy, PosixError, UsageError
from sessfs.local.reserved import TRASH_PREFIX
from sessfs.sessions.names import check_name
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.sync.restore import SessionDirectory
    from sessfs.vfs.volume import Volume

log = logging.getLogger(__name__)
NAME_XATTR = b"trusted.sessfs.trash-name"
TIME_XATTR = b"trusted.sessfs.trash-time"
TIME = struct.Struct("<q")


class Mover(Protocol):
    """What of `Lives` the trash needs."""

    async def locate(self, name: bytes) -> Ino:
        """See Lives."""

    def check_unused(self, name: bytes) -> None:
        """See Lives."""

    def rename(self, old: bytes, new: bytes) -> None:
        """See Lives."""

    async def remove(self, name: bytes) -> None:
        """See Lives."""

    async def settled(self) -> None:
        """See Lives."""


class Trashed(NamedTuple):
    """One session in the trash: its name there, its name before, when it was removed (ns since 1970, 0 for unknown)."""

    entry: bytes
    name: bytes
    removed_ns: int
    session: Ino


class Trash:
    """The request loop alone."""

    def __init__(
        self,
        volume: Volume,
        lives: Mover,
        *,
        clock_ns: Callable[[], int],
        remote: SessionDirectory | None,
    ) -> None:
        self._volume = volume
        self._inodes = volume.inodes
        self._lives = lives
        self._clock_ns = clock_ns
        self._remote = remote

    def put(self, name: bytes) -> bytes:
        """Move the session, which is here, to the trash; its name there. Synchronous; durable with the next commit.
        Raises MountBusy while a file of it is open, PosixError ENOENT.
        """
        self._lives.check_unused(name)
        now_ns = self._clock_ns()
        entry = self._free_entry(now_ns)
        dentry = self._inodes.find_dentry(ROOT_INO, name)
        assert dentry is not None
        self._inodes.set_xattr(dentry.ino, NAME_XATTR, name)
        self._inodes.set_xattr(dentry.ino, TIME_XATTR, TIME.pack(now_ns))
        self._inodes.touch(self._inodes.get(dentry.ino))
        self._lives.rename(name, entry)
        return entry

    def _free_entry(self, now_ns: int) -> bytes:
        while self._inodes.find_dentry(ROOT_INO, entry := TRASH_PREFIX + b"%016x" % now_ns) is not None:
            now_ns += 1
        return entry

    async def entries(self) -> list[Trashed]:
        """What is in the trash, removed longest ago first. Raises RemoteError."""
        if self._remote is not None:
            await self._remote.list_all()
        found = []
        for entry in list(self._inodes.iter_names_with(ROOT_INO, TRASH_PREFIX)):
            dentry = self._inodes.find_dentry(ROOT_INO, entry)
            if dentry is None or not stat.S_ISDIR(dentry.kind):
                continue
            if self._remote is not None:
                await self._remote.load(dentry.ino)
            name = self._inodes.find_xattr(dentry.ino, NAME_XATTR) or entry
            time = self._inodes.find_xattr(dentry.ino, TIME_XATTR)
            removed_ns = TIME.unpack(time)[0] if time is not None and len(time) == TIME.size else 0
            found.append(Trashed(entry, name, removed_ns, dentry.ino))
        return sorted(found, key=lambda one: (one.removed_ns, one.entry))

    async def restore(self, wanted: bytes, as_name: bytes | None = None) -> bytes:
        """Give a session back, durable on return: of those with the name *wanted*, or that name in the trash, the one
        removed last. Its name from then on is returned. Raises UsageError when there is none or the name is taken,
        PosixError EDQUOT, RemoteError.
        """
        matching = [one for one in await self.entries() if wanted in (one.name, one.entry)]
        if not matching:
            raise _not_in_trash(wanted)
        one = matching[-1]
        name = one.name if as_name is None else as_name
        check_name(name, "give another by --as")
        try:
            await self._lives.locate(name)
        except PosixError as exc:
            if exc.errno != errno.ENOENT:
                raise
        if self._inodes.find_dentry(ROOT_INO, name) is not None:
            raise UsageError(f"there is a {_show(name)} already: restore it under another name by --as")
        if self._volume.namespace.quota is not None:
            self._volume.namespace.quota.add_session()
        for key in (NAME_XATTR, TIME_XATTR):
            self._inodes.delete_xattr(one.session, key)
        self._inodes.touch(self._inodes.get(one.session))
        self._lives.rename(one.entry, name)
        await self._lives.settled()
        return name

    async def purge(self, before_ns: int | None = None, wanted: bytes | None = None) -> list[Trashed]:
        """Remove for good what was removed before *before_ns*, or what has the name *wanted*; all of it with neither.
        Returns what is gone; what is still in use stays. Raises UsageError for an empty name and for one that is not in
        the trash, RemoteError.
        """
        if wanted == b"":
            raise UsageError("an empty name is that of no session: to empty the whole trash, give none at all")
        entries = await self.entries()
        if wanted is not None:
            entries = [one for one in entries if wanted in (one.name, one.entry)]
            if not entries:
                raise _not_in_trash(wanted)
        gone = []
        for one in entries:
            if before_ns is not None and not 0 < one.removed_ns < before_ns:
                continue
            try:
                await self._lives.remove(one.entry)
            except (MountBusy, PosixError) as exc:
                log.info("%s stays in the trash: %s", _show(one.name), exc)
                continue
            gone.append(one)
        return gone


def _not_in_trash(wanted: bytes) -> UsageError:
    return UsageError(f"there is no {_show(wanted)} in the trash: `sessfs trash list MOUNTPOINT` says what is")


def _show(name: bytes) -> str:
    return name.decode(errors="replace")
