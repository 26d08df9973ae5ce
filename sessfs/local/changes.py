"""What changed in each session since it was last published: which inodes, which names, and since when.

Kept in memory while the volume is open; that a session has changes at all is also in the table `dirty` of `meta/`, in
the same batch as the first of them, so that after a crash the session is published whole.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from sessfs.local.db import Database, TableName
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Callable

DIRTY = TableName("dirty")
SESSION_KEY = struct.Struct(">Q")
SINCE = struct.Struct("<q")


class SessionChanges:
    """Changes of one session. *whole*: it is not known what changed, so everything counts as changed."""

    __slots__ = ("inodes", "names", "since_ns", "whole")

    def __init__(self, since_ns: int, *, whole: bool) -> None:
        self.since_ns = since_ns
        self.whole = whole
        self.inodes: set[Ino] = set()
        self.names: set[tuple[Ino, bytes]] = set()

    def absorb(self, other: SessionChanges) -> None:
        """Take in changes of the same session that were noted at another time."""
        self.since_ns = min(self.since_ns, other.since_ns)
        self.whole = self.whole or other.whole
        self.inodes |= other.inodes
        self.names |= other.names


class Changes:
    """The changes of all sessions; the request loop alone."""

    def __init__(self, meta: Database, clock_ns: Callable[[], int]) -> None:
        self._meta = meta
        self._clock_ns = clock_ns
        self.sessions: dict[Ino, SessionChanges] = {
            Ino(SESSION_KEY.unpack(key)[0]): SessionChanges(SINCE.unpack(value)[0], whole=True)
            for key, value in meta.scan(DIRTY)
        }

    def _of(self, session: Ino) -> SessionChanges:
        changes = self.sessions.get(session)
        if changes is None:
            changes = self.sessions[session] = SessionChanges(self._clock_ns(), whole=False)
            self._meta.put(DIRTY, SESSION_KEY.pack(session), SINCE.pack(changes.since_ns))
        return changes

    def note_inode(self, session: Ino, ino: Ino) -> None:
        """An inode of the session changed, came or went."""
        if ino != ROOT_INO:
            self._of(session).inodes.add(ino)

    def note_name(self, session: Ino, parent: Ino, name: bytes) -> None:
        """A name of the session came, went, or stands for another inode."""
        self._of(session).names.add((parent, name))

    def note_whole(self, session: Ino) -> None:
        """Everything of the session is to be published afresh."""
        self._of(session).whole = True

    def unpublished(self) -> list[Ino]:
        """Sessions with changes that are not published: those noted here, and those on their way."""
        return [Ino(SESSION_KEY.unpack(key)[0]) for key, _ in self._meta.scan(DIRTY)]

    def is_unpublished(self, session: Ino) -> bool:
        """True when the session is one of those that `unpublished` lists."""
        return session in self.sessions or self._meta.get(DIRTY, SESSION_KEY.pack(session)) is not None

    def take(self, session: Ino) -> SessionChanges:
        """At a cut: the changes noted so far; from here on new ones are collected. They still count as unpublished, in
        `meta/`, until `settle`.
        """
        return self.sessions.pop(session)

    def restore(self, session: Ino, changes: SessionChanges) -> None:
        """Publishing did not come to an end: the changes are pending again."""
        newer = self.sessions.get(session)
        if newer is not None:
            changes.absorb(newer)
        self.sessions[session] = changes
        self._meta.put(DIRTY, SESSION_KEY.pack(session), SINCE.pack(changes.since_ns))

    def settle(self, session: Ino) -> None:
        """What was taken is published: only changes noted since count as unpublished."""
        newer = self.sessions.get(session)
        if newer is None:
            self._meta.delete(DIRTY, SESSION_KEY.pack(session))
        else:
            self._meta.put(DIRTY, SESSION_KEY.pack(session), SINCE.pack(newer.since_ns))

    def forget(self, session: Ino) -> None:
        """The session is gone from here."""
        self.sessions.pop(session, None)
        self._meta.delete(DIRTY, SESSION_KEY.pack(session))
