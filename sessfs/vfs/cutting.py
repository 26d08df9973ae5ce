"""From the bytes of a file to the extents of its recipe: holes, and chunks cut by content. For the seal process."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from sessfs.format.chunk import CHUNK_MAX_BYTES, Cutter
from sessfs.format.recipe import encode_extent, encode_hole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sessfs.types import ChunkId

WINDOW_BYTES = 1 << 20
HOLE_MIN_BYTES = 64 * 1024
"""Shorter holes are stored as zeros: an extent a hole would cost more than it saves."""


class Unreadable(OSError):
    """The file that is cut can't be read: an error of the disk that it lies on, not of the one that is written to."""


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """What is done with the file that is cut; an OSError becomes Unreadable."""
    try:
        yield
    except OSError as exc:
        raise Unreadable(exc.errno, exc.strerror) from exc


def iter_regions(fd: int, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """[start, end) of a sparse file as (start, end, has data), holes shorter than HOLE_MIN_BYTES counted as data.
    Raises Unreadable.
    """
    at = data_from = start
    while at < end:
        try:
            with reading():
                data = min(os.lseek(fd, at, os.SEEK_DATA), end)
        except Unreadable as exc:
            if exc.errno != errno.ENXIO:
                raise
            # There is no more data.
            data = end
        if data - at >= HOLE_MIN_BYTES:
            if data_from < at:
                yield data_from, at, True
            yield at, data, False
            data_from = data
        with reading():
            at = min(os.lseek(fd, data, os.SEEK_HOLE), end) if data < end else end
    if data_from < end:
        yield data_from, end, True


class RangeCutter:
    """Cuts ranges of files, one at a time: it has one buffer, since a new one for each window would cost more than
    reading it does.
    """

    def __init__(self) -> None:
        self._cutter = Cutter()
        self._buffer = memoryview(bytearray(WINDOW_BYTES + CHUNK_MAX_BYTES))

    def cut(self, fd: int, start: int, end: int, add: Callable[[memoryview], ChunkId]) -> Iterator[bytes]:
        """The packed extents of bytes [start, end) of a file; *add* takes each chunk, which it must copy, and names it.
        To be used up before the next range. Raises EOFError when the file ends before, Unreadable, and as *add*.
        """
        for low, high, has_data in iter_regions(fd, start, end):
            if has_data:
                yield from self._cut_data(fd, low, high, add)
            else:
                yield encode_hole(high - low)

    def _cut_data(self, fd: int, start: int, end: int, add: Callable[[memoryview], ChunkId]) -> Iterator[bytes]:
        buffer, held, at = self._buffer, 0, start
        while at < end:
            with reading():
                got = os.preadv(fd, [buffer[held : held + min(WINDOW_BYTES, end - at)]], at)
            if not got:
                raise EOFError
            at += got
            held += got
            pieces = list(self._cutter.cut(buffer[:held]))
            # The last piece ends where the window does, not where the content says: it goes on with the next window.
            last = pieces.pop() if at < end else None
            for piece in pieces:
                yield encode_extent(add(piece), len(piece))
            held = 0
            if last is not None:
                held = len(last)
                buffer[:held] = bytes(last)
