"""What each session takes: files, logical bytes, and the bytes that no other session shares."""

from __future__ import annotations

import stat
from collections import Counter
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

import msgspec
import trio

from sessfs.local.reserved import is_reserved
from sessfs.types import ROOT_INO, ChunkId, Ino
from sessfs.vfs.turns import Turns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sessfs.local.chunkstore import References
    from sessfs.local.inodes import Inode, Inodes

PAGE = 500
"""So many names are listed before others have their turn."""


class SessionUsage(msgspec.Struct, frozen=True):
    """One session. *unique_bytes*: content (before compression) of chunks and hot files that only it has."""

    name: str
    files: int
    logical_bytes: int
    unique_bytes: int
    last_change: str | None


def list_sessions(inodes: Inodes) -> list[tuple[bytes, Ino]]:
    """(name, inode) of every session: the top-level directories, but for views and the trash."""
    return [
        (name, d.ino) for name, d in inodes.iter_dentries(ROOT_INO) if stat.S_ISDIR(d.kind) and not is_reserved(name)
    ]


async def iter_sessions(inodes: Inodes) -> AsyncGenerator[tuple[bytes, Ino], None]:
    """`list_sessions` of however many, page by page: others have their turn in between, and sessions that come or go
    meanwhile may be among them or not.
    """
    after: bytes | None = None
    while page := list(islice(inodes.iter_dentries(ROOT_INO, after), PAGE)):
        for name, dentry in page:
            if stat.S_ISDIR(dentry.kind) and not is_reserved(name):
                yield name, dentry.ino
        after = page[-1][0]
        await trio.lowlevel.checkpoint()


def rfc3339(time_ns: int) -> str | None:
    """UTC time to the second, None for never."""
    if not time_ns:
        return None
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def iter_session_inodes(inodes: Inodes, session: Ino) -> AsyncGenerator[Inode, None]:
    """Every inode of the session, its root first, each once; lets other tasks run in between."""
    turns = Turns()
    stack = [session]
    seen: set[Ino] = set()
    while stack:
        directory = stack.pop()
        node = inodes.find(directory)
        if node is None:
            continue
        yield node
        after: bytes | None = None
        while page := list(islice(inodes.iter_dentries(directory, after), PAGE)):
            for _, dentry in page:
                if stat.S_ISDIR(dentry.kind):
                    stack.append(dentry.ino)
                elif (inode := inodes.find(dentry.ino)) is not None and inode.ino not in seen:
                    if inode.nlink > 1:
                        seen.add(inode.ino)
                    yield inode
                await turns.take()
            after = page[-1][0]


async def measure_session(inodes: Inodes, references: References, name: bytes, session: Ino) -> SessionUsage:
    """What the session takes at this time; changes made meanwhile may be in it or not. Raises LocalStoreError."""
    uses: Counter[ChunkId] = Counter()
    lengths: dict[ChunkId, int] = {}
    unique = 0
    turns = Turns()
    async with aclosing(iter_session_inodes(inodes, session)) as nodes:
        async for inode in nodes:
            if not stat.S_ISREG(inode.mode):
                continue
            cold = sum(end - start for start, end in inode.cold)
            unique += inode.size - cold
            if not inode.cold:
                continue
            for extent in inodes.load_recipe(inode):
                if not extent.is_hole:
                    uses[extent.chunk] += 1
                    lengths[extent.chunk] = extent.end - extent.start
                await turns.take()
    for cid, n in uses.items():
        if references.count(cid) <= n:
            unique += lengths[cid]
        await turns.take()
    counters = inodes.session_counters(session)
    return SessionUsage(
        name=name.decode(errors="surrogateescape"),
        files=counters.files,
        logical_bytes=counters.logical_bytes,
        unique_bytes=unique,
        last_change=rfc3339(counters.last_change_ns),
    )
