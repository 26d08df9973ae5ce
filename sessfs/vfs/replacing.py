"""Files whose content takes the place of one that may be durable: renamed over it, or written after a truncate to 0.

A crash must leave the old content or the new, never nothing, though nobody has synced. So the commit that takes the old
one away flushes the new one first. It may not be here yet: what is written to a file that is still open may be in the
kernel's cache alone, and the kernel has to be asked for it. As ext4 does (auto_da_alloc), and in its way of two halves:
a rename, or an open that truncates, has the content written at once; any truncate to nothing when the file is closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sessfs.local.inodes import Inode
    from sessfs.types import Ino


class _File:
    __slots__ = ("inode", "is_asked", "is_awaited")

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.is_awaited = False
        """True until some of the new content was flushed before a commit."""
        self.is_asked = True
        """False while the kernel is to be asked for what it has of the file."""


class Replacing:
    """Such files, until they are closed. Synchronous; the request loop alone."""

    def __init__(self) -> None:
        self._files: dict[Ino, _File] = {}

    def begin(self, inode: Inode, *, at_once: bool) -> None:
        """The inode's content takes another's place: *at_once*, or when it is closed."""
        file = self._files.setdefault(inode.ino, _File(inode))
        if at_once:
            file.is_awaited, file.is_asked = True, False

    def awaits(self, inode: Inode) -> bool:
        """True while what comes of the content must be flushed before the next commit."""
        file = self._files.get(inode.ino)
        return file is not None and file.is_awaited

    @property
    def has_unwritten(self) -> bool:
        """True while the kernel is to be asked for any."""
        return any(not file.is_asked for file in self._files.values())

    def take_unwritten(self) -> list[Inode]:
        """The files that the kernel is to be asked for, each once: those that are open, and have a name."""
        found = []
        for file in self._files.values():
            if not file.is_asked and file.inode.opens and file.inode.nlink:
                found.append(file.inode)
            file.is_asked = True
        return found

    def note_synced(self, inode: Inode) -> None:
        """The kernel has just handed over all that it had of the file."""
        file = self._files.get(inode.ino)
        if file is not None:
            file.is_asked = True

    def note_flushed(self, inodes: Iterable[Inode]) -> None:
        """Of these the content that is here is flushed before the batch that is cut."""
        if not self._files:
            return
        for inode in inodes:
            file = self._files.get(inode.ino)
            if file is not None:
                file.is_awaited = False

    def end(self, inode: Inode) -> bool:
        """The file is closed, or gone; False if it was none of these."""
        return self._files.pop(inode.ino, None) is not None
