"""Whether a Chrome may start in a session: not while the remote, which alone has its databases, does not answer.

It would wait at its first read, show nothing, and be killed by whoever waits for it. Refused at its lock it ends at
once, and everything is as it was. Who wants it to wait sets `wait_at_start`.
"""

from __future__ import annotations

import errno
import logging
import stat
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from sessfs.chrome import PathClass, is_kept
from sessfs.errors import PosixError, RemoteError, StoreCorrupt
from sessfs.sessions.usage import rfc3339
from sessfs.types import ROOT_INO, ChunkId, Ino
from sessfs.vfs.turns import Turns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection

    from sessfs.local.inodes import Inode, Inodes
    from sessfs.remote.retrying import HealthReport

log = logging.getLogger(__name__)
ASK_S = 5.0
"""So long the remote has to give one chunk where it is not known to be away."""
ASK_CHUNKS = 4
SHOWN_MAX = 10


class Chunks(Protocol):
    """See sync.fetch.RemoteChunks."""

    def is_here(self, cid: ChunkId) -> bool:
        """Whether the chunk needs no remote."""

    async def fetch(self, ids: Collection[ChunkId]) -> None:
        """Bring the chunks here."""


class Refused(NamedTuple):
    """A start that was refused: the session's name, when, and why."""

    name: str
    time_ns: int
    why: str


class Starts:
    """Asked at each Chrome's lock. The request loop alone."""

    def __init__(
        self,
        inodes: Inodes,
        chunks: Chunks,
        health: Callable[[], HealthReport],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._inodes = inodes
        self._chunks = chunks
        self._health = health
        self._clock_ns = clock_ns
        self._refused: dict[Ino, Refused] = {}

    async def admit(self, session: Ino) -> None:
        """Return if a Chrome may start in the session. Raises PosixError EHOSTDOWN."""
        if session == ROOT_INO:
            return
        missing = await self._missing(session)
        why = await self._why_not(missing) if missing else ""
        if not why:
            self._refused.pop(session, None)
            return
        name = (self._inodes.find_session_name(session) or b"?").decode(errors="replace")
        if session not in self._refused:
            log.warning("no Chrome starts in session %s: %s", name, why)
        self._refused[session] = Refused(name, self._clock_ns(), why)
        raise PosixError(errno.EHOSTDOWN, f"session {name}: {why}")

    async def _why_not(self, missing: list[ChunkId]) -> str:
        """Why the chunks can't be had now, empty if they can, or are damaged, which a read is to say."""
        report = self._health()
        why = report.error or "it took too long"
        if report.state != "degraded":
            with trio.move_on_after(ASK_S) as scope:
                try:
                    await self._chunks.fetch(missing)
                except StoreCorrupt:
                    return ""
                except RemoteError as exc:
                    why = str(exc)
                else:
                    return ""
            if scope.cancelled_caught:
                why = f"no answer within {ASK_S:.0f} s"
        return f"its databases are only in the remote, which does not answer ({why})"

    async def _missing(self, session: Ino) -> list[ChunkId]:
        """Some chunks of its databases that are not here; none if all are."""
        found: list[ChunkId] = []
        async with aclosing(_iter_databases(self._inodes, session)) as databases:
            async for inode in databases:
                async with aclosing(self._iter_missing(inode)) as missing:
                    async for cid in missing:
                        found.append(cid)
                        if len(found) == ASK_CHUNKS:
                            return found
        return found

    async def _iter_missing(self, inode: Inode) -> AsyncGenerator[ChunkId, None]:
        turns = Turns()
        recipe = self._inodes.load_recipe(inode)
        for start, end in list(inode.cold):
            for extent in recipe.overlapping(start, end):
                await turns.take()
                if not extent.is_hole and not self._chunks.is_here(extent.chunk):
                    yield extent.chunk

    def warnings(self) -> list[str]:
        """What a person should know: sessions in which no Chrome could start, until one can or the remote answers."""
        if self._health().state != "degraded":
            self._refused.clear()
        refused = sorted(self._refused.values())
        names = ", ".join(f"{one.name} ({rfc3339(one.time_ns)})" for one in refused[:SHOWN_MAX])
        more = f" and {len(refused) - SHOWN_MAX} more" if len(refused) > SHOWN_MAX else ""
        if not refused:
            return []
        return [
            f"no Chrome could start in {names}{more}: {refused[-1].why}. They start again once it answers; "
            "--wait-at-start has them wait instead"
        ]


async def _iter_databases(inodes: Inodes, session: Ino) -> AsyncGenerator[Inode, None]:
    """What of the session's files is sealed, travels, and is more than a cache; lets other tasks run in between."""
    turns = Turns()
    stack = [session]
    while stack:
        for name, dentry in list(inodes.iter_dentries(stack.pop())):
            await turns.take()
            if stat.S_ISDIR(dentry.kind):
                stack.append(dentry.ino)
            elif stat.S_ISREG(dentry.kind) and is_kept(name):
                inode = inodes.find(dentry.ino)
                if inode is not None and inode.cold and inode.path_class == PathClass.TRAVELS:
                    yield inode
