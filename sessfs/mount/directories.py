"""Open directories: listing them in parts, and what the kernel may keep of what they list.

The kernel keeps one copy of a directory's listing for all handles. Each part that a handle reads here is added where
the copy ends, whatever changed since its beginning was read. The kernel looks for such changes only when a handle reads
from the start, and only in a copy that has reached its end. A handle that is further on looks for its own position in
the copy, and goes on there, though that part may be older than the moment when the handle began.

So the upper bits of a position say in which *generation* it was handed out. A handle that begins after a change, while
the copy may be half made, begins a new generation: it finds its positions only in parts that were read later.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Final

from pyfuse3 import FUSEError

from sessfs.errors import StoreCorrupt
from sessfs.local.listings import POSITION_BITS, Unchanged
from sessfs.local.reserved import is_reserved
from sessfs.mount.fusewire import DIRENTS, ENTRY_BYTES, pack_open_directory
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.local.inodes import Inode, Inodes
    from sessfs.local.listings import Listing

POSITION_MASK: Final = (1 << POSITION_BITS) - 1
LAST_GENERATION: Final = (1 << 63 - POSITION_BITS) - 1
"""A directory that reaches it is kept by the kernel no more: positions are below 2**63."""
DOT, DOTDOT = 1, 2
"""Positions after the first two entries."""
DT_DIR: Final = stat.S_IFDIR >> 12
NO_ATTRIBUTES: Final = bytes(ENTRY_BYTES)
"""fuse_entry_out that tells the kernel nothing, not even that the name is missing."""


class _Handle:
    """One open directory."""

    __slots__ = ("cached", "cleared", "furthest", "ino", "since")

    def __init__(self, ino: Ino, *, cached: bool, cleared: Unchanged | None) -> None:
        self.ino = ino
        self.cached = cached
        """The kernel makes its copy of what this handle reads, and lets it read the copy."""
        self.cleared = cleared
        """By opening it the kernel cleared its copy, and the directory is unchanged since; None once that is noted."""
        self.since = -1
        """The generation in which it began at the start, if it has left nothing out since; else -1."""
        self.furthest = 0
        """The greatest position that it was given."""


class _Copy:
    """What is known of the kernel's copy of one directory's listing."""

    __slots__ = ("generation", "handles", "is_partial", "n_cached")

    def __init__(self) -> None:
        self.generation = 0
        self.is_partial = False
        """It may have been begun, and not have reached its end."""
        self.handles = 0
        self.n_cached = 0


class Directories:
    """All open directories of a mount. The request loop alone.

    *found* gives fuse_entry_out for an inode, *parent_of* the inode that `..` is.
    """

    def __init__(self, inodes: Inodes, found: Callable[[Inode], bytes], parent_of: Callable[[Ino], Ino]) -> None:
        self._inodes = inodes
        self._listings = inodes.listings
        self._found = found
        self._parent_of = parent_of
        self._open: dict[int, _Handle] = {}
        self._copies: dict[Ino, _Copy] = {}
        """Of directories that are open, or whose copy may be partial, or has a generation."""
        self._next = 1

    def open(self, ino: Ino) -> bytes:
        """Open the directory: fuse_open_out."""
        copy = self._copies.setdefault(ino, _Copy())
        unchanged = self._listings.unchanged.get(ino)
        keep = unchanged is not None and unchanged.is_settled
        # A handle that seeks before it reads must not go on in a copy that is older than the handle. So the kernel
        # clears it; a copy that others still fill would never be whole then, and the handle does without.
        is_stale = copy.is_partial and copy.n_cached > 0 and not keep
        # Sessions come and go without the kernel's doing, so it must not keep what the root lists.
        cached = ino != ROOT_INO and copy.generation < LAST_GENERATION and not is_stale
        if cached and not keep and unchanged is None:
            unchanged = self._listings.unchanged[ino] = Unchanged(is_settled=False)
        handle = _Handle(ino, cached=cached, cleared=unchanged if cached and not keep else None)
        copy.handles += 1
        copy.n_cached += cached
        number = self._next
        self._next += 1
        self._open[number] = handle
        return pack_open_directory(number, cached=cached, keep=keep or not cached)

    def close(self, number: int) -> None:
        """Close it; fine when it was not open."""
        handle = self._open.pop(number, None)
        if handle is None:
            return
        copy = self._copies[handle.ino]
        copy.handles -= 1
        copy.n_cached -= handle.cached
        if not copy.handles:
            self._listings.drop(handle.ino)
            if not copy.is_partial and not copy.generation:
                del self._copies[handle.ino]

    def forget(self, ino: Ino) -> None:
        """The kernel knows the inode no more, and has no copy."""
        self._listings.unchanged.pop(ino, None)
        copy = self._copies.get(ino)
        if copy is not None and not copy.handles:
            del self._copies[ino]

    def ino_of(self, number: int) -> Ino:
        """The directory that was opened; EBADF when it is not open."""
        handle = self._open.get(number)
        if handle is None:
            raise FUSEError(errno.EBADF)
        return handle.ino

    def read(self, number: int, start: int, size: int, *, plus: bool) -> bytes:
        """Entries after the position *start*, as many as *size* bytes take, if *plus* each with its attributes and as
        one more reference to it; none at the end. The directory must be open.
        """
        handle = self._open[number]
        copy = self._copies[handle.ino]
        self._settle(handle, copy)
        at = start & POSITION_MASK
        if start == 0:
            self._begin(handle, copy)
        elif at > handle.furthest:
            handle.since = -1
        answer, last = self._entries(handle.ino, at, size, copy.generation << POSITION_BITS, plus=plus)
        handle.furthest = max(handle.furthest, last)
        if handle.cached:
            if answer:
                copy.is_partial = True
            elif handle.since == copy.generation:
                copy.is_partial = False
        return answer

    def _settle(self, handle: _Handle, copy: _Copy) -> None:
        """The handle reads, so its open is over, and the kernel has cleared its copy."""
        cleared, handle.cleared = handle.cleared, None
        if cleared is not None and self._listings.unchanged.get(handle.ino) is cleared:
            cleared.is_settled = True
            if copy.n_cached == 1:
                copy.is_partial = False

    def _begin(self, handle: _Handle, copy: _Copy) -> None:
        """It reads from the start, so the kernel has no copy, or half a one: one that has changed since it was whole is
        given up now.
        """
        if handle.cached and handle.ino not in self._listings.unchanged:
            if copy.is_partial:
                copy.generation = min(copy.generation + 1, LAST_GENERATION)
            self._listings.unchanged[handle.ino] = Unchanged(is_settled=True)
        handle.since, handle.furthest = copy.generation, 0

    def _entries(self, ino: Ino, at: int, size: int, tag: int, *, plus: bool) -> tuple[bytes, int]:
        """(entries after *at*, the position of the last one or *at*)."""
        parts: list[bytes] = []
        for name, position in ((b".", DOT), (b"..", DOTDOT)):
            if at < position:
                above = ino if position == DOT else self._parent_of(ino)
                part = DIRENTS[len(name)].pack(above, position | tag, len(name), DT_DIR, name)
                # The kernel has these two already.
                part = NO_ATTRIBUTES + part if plus else part
                size -= len(part)
                if size < 0:
                    return b"".join(parts), at
                parts.append(part)
                at = position
        listing = self._listings.get(ino)
        first = listing.after(at)
        taken = (self._take_plus if plus else self._take)(ino, listing, first, size, tag, parts)
        return b"".join(parts), listing.positions[taken - 1] if taken > first else at

    def _take(self, ino: Ino, listing: Listing, index: int, size: int, tag: int, parts: list[bytes]) -> int:
        """Append fuse_dirents from *index* on; returns the index of the first one that was not taken."""
        inos, positions, kinds, names = listing.inos, listing.positions, listing.kinds, listing.names
        is_root = ino == ROOT_INO
        for at in range(index, len(names)):
            name = names[at]
            if is_root and is_reserved(name):
                continue
            length = len(name)
            part = DIRENTS[length].pack(inos[at], positions[at] | tag, length, kinds[at], name)
            size -= len(part)
            if size < 0:
                return at
            parts.append(part)
        return len(names)

    def _take_plus(self, ino: Ino, listing: Listing, index: int, size: int, tag: int, parts: list[bytes]) -> int:
        """The same with fuse_direntplus. Entries have no attributes where the kernel knows the inode, and so has them,
        and where the inode is damaged: the others are listed, and a look at that one says what is wrong.
        """
        inos, positions, kinds, names = listing.inos, listing.positions, listing.kinds, listing.names
        is_root, is_known = ino == ROOT_INO, self._inodes.is_known
        for at in range(index, len(names)):
            name = names[at]
            if is_root and is_reserved(name):
                continue
            length = len(name)
            part = DIRENTS[length].pack(inos[at], positions[at] | tag, length, kinds[at], name)
            size -= ENTRY_BYTES + len(part)
            if size < 0:
                return at
            if not is_root and is_known(Ino(inos[at])):
                parts.append(NO_ATTRIBUTES + part)
                continue
            try:
                inode = self._inodes.get(Ino(inos[at]))
            except StoreCorrupt:
                parts.append(NO_ATTRIBUTES + part)
            else:
                parts.append(self._found(inode) + part)
                self._inodes.remember(inode.ino)
        return len(names)
