"""Writes that were refused after the kernel had taken them: which bytes of which files these are, and what follows.

With the kernel's write-back cache a write(2) succeeds before the daemon sees it. When the daemon refuses the bytes
then, the kernel tells the next fsync once, but keeps the pages as if they were good, and the length of the file as if
it had grown. Whoever reads them believes them, and whoever appends behind them leaves zeros in their place. So until
the refused bytes were written again or cut off, these rules hold:

- A file does not grow beyond a refused range that lies behind its end.
- While the kernel may still show refused bytes, reading them and every sync of the file fail, with the errno of the
  refusal. The kernel is made to let go of them (`mount/mending`); then the file ends where what was kept ends. Where
  they were to replace bytes of the file, reading and syncing fail until they are written again.

Synchronous; the request loop alone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sessfs.errors import PosixError
from sessfs.vfs.ranges import Range, subtract

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.format.chunk import Buffer
    from sessfs.local.inodes import Inode
    from sessfs.types import Ino


class Refused:
    """The refused ranges of one file, in order and disjoint. *version* grows with each refusal."""

    __slots__ = ("errno", "is_shown", "ranges", "version")

    def __init__(self) -> None:
        self.errno = 0
        self.ranges: list[Range] = []
        self.is_shown = True
        """Whether the kernel may show refused bytes as good, and a length with them."""
        self.version = 0


class Refusals:
    """Of all files; a file that is not in it has none."""

    def __init__(self) -> None:
        self._files: dict[Ino, Refused] = {}
        self._gaps: dict[Ino, list[Range]] = {}
        """Ranges that no write has filled yet, though bytes behind them were written: since the file was last synced or
        closed. The kernel hands its pages over in any order, so what belongs there may still come.
        """
        self.noticed: Callable[[], None] = lambda: None
        """Called when the kernel has something to let go of."""

    def __bool__(self) -> bool:
        return bool(self._files)

    def find(self, ino: Ino) -> Refused | None:
        """What was refused of the file."""
        return self._files.get(ino)

    def shown(self) -> list[Ino]:
        """The files of which the kernel may show refused bytes."""
        return [ino for ino, refused in self._files.items() if refused.is_shown]

    def kept_end(self, inode: Inode, start: int, end: int) -> int:
        """Where the file must end once [start, end) is refused: its size, unless bytes behind a gap that those were to
        fill came before them. Nobody was told that these are durable, and zeros before them must not stay.
        """
        return min([inode.size, *(low for low, high in self._gaps.get(inode.ino, ()) if low < end and high > start)])

    def add(self, inode: Inode, start: int, content: Buffer, have: Buffer, size: int, errno: int) -> None:
        """*content* for the bytes from *start* on was refused with *errno* after the kernel had taken it. *have* is
        what the file has there, maybe fewer bytes: what is the same does not count. The file had *size* bytes, and was
        cut to what `kept_end` said.
        """
        end = start + len(content)
        changed = differing(have, content)
        if changed is None:
            return
        start, end = start + changed[0], start + changed[1]
        if inode.size < size:
            start, end = min(start, inode.size), max(end, size)
        refused = self._files.setdefault(inode.ino, Refused())
        refused.errno = errno
        refused.ranges = sorted([*subtract(refused.ranges, start, end), (start, end)])
        refused.is_shown = True
        refused.version += 1
        self.noticed()

    def check_growth(self, inode: Inode, start: int) -> None:
        """Raises the refusal anew where bytes from *start* on would leave refused ones behind the file's end as
        zeros.
        """
        refused = self._files.get(inode.ino)
        if refused is not None and any(low < start and high > inode.size for low, high in refused.ranges):
            raise error_of(refused.errno, "bytes before these were refused, and were not written again")

    def check_read(self, inode: Inode, start: int, end: int) -> None:
        """Raises the refusal anew where [start, end) holds refused bytes that the kernel asks for."""
        refused = self._files.get(inode.ino)
        if refused is None:
            return
        for low, high in refused.ranges:
            if low < end and high > start and (low < inode.size or refused.is_shown):
                raise error_of(refused.errno, "these bytes were refused when they were written")

    def check_sync(self, inode: Inode) -> None:
        """Raises the refusal anew while what the kernel showed as good is not what the file has."""
        refused = self._files.get(inode.ino)
        if refused is not None and (refused.is_shown or refused.ranges[0][0] < inode.size):
            raise error_of(refused.errno, "bytes that were written to it were refused")

    def written(self, inode: Inode, start: int, end: int) -> None:
        """[start, end) was written; the inode's size is still what it was before."""
        if start > inode.size:
            self._gaps[inode.ino] = [*self._gaps.get(inode.ino, ()), (inode.size, start)]
        elif self._gaps and (gaps := self._gaps.pop(inode.ino, None)):
            left = subtract(gaps, start, end)
            if left:
                self._gaps[inode.ino] = left
        refused = self._files.get(inode.ino)
        if refused is not None:
            self._keep(inode.ino, refused, subtract(refused.ranges, start, end))

    def cut(self, inode: Inode, size: int) -> None:
        """A program set the file's length: the kernel has let go of all from *size* on."""
        gaps = [(low, min(high, size)) for low, high in self._gaps.pop(inode.ino, ()) if low < size]
        if gaps:
            self._gaps[inode.ino] = gaps
        refused = self._files.get(inode.ino)
        if refused is not None:
            self._keep(inode.ino, refused, [(low, min(high, size)) for low, high in refused.ranges if low < size])

    def synced(self, ino: Ino) -> None:
        """All that was written to the file came here: what no write has filled is meant to be a hole."""
        self._gaps.pop(ino, None)

    def _keep(self, ino: Ino, refused: Refused, ranges: list[Range]) -> None:
        refused.ranges = ranges
        if not ranges:
            del self._files[ino]

    def mended(self, inode: Inode, version: int) -> None:
        """The kernel has let go of what was refused until *version*."""
        refused = self._files.get(inode.ino)
        if refused is not None and refused.version == version:
            refused.is_shown = False
            if not inode.opens:
                del self._files[inode.ino]

    def closed(self, inode: Inode) -> None:
        """Nobody has the file open any more: who opens it next finds the file as it is."""
        self._gaps.pop(inode.ino, None)
        refused = self._files.get(inode.ino)
        if refused is not None and not refused.is_shown:
            del self._files[inode.ino]

    def forget(self, ino: Ino) -> None:
        """The kernel knows nothing of the file any more."""
        self._files.pop(ino, None)
        self._gaps.pop(ino, None)


def error_of(errno: int, why: str) -> PosixError:
    """The error of a refusal, once more."""
    return PosixError(errno, f"{os.strerror(errno)}: {why}")


def differing(old: Buffer, new: Buffer) -> tuple[int, int] | None:
    """From where to where *new* differs from *old*, which may be shorter; None where it does not. The kernel writes
    whole pages, of which most may have been written before.
    """
    same = min(len(old), len(new))
    a, b = memoryview(old), memoryview(new)
    low = _common(a[:same], b[:same])
    if low == len(b):
        return None
    if len(b) > len(a):
        return low, len(b)
    high = same
    while high > low and a[high - 1] == b[high - 1]:
        high -= 1
    return low, high


def _common(a: memoryview, b: memoryview) -> int:
    """Length of the longest common beginning of two buffers of one length."""
    low, high = 0, len(a)
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
