"""From the bytes of a file to the extents of its recipe: holes, and chunks cut by content. For the seal process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sessfs.format.recipe import encode_extent, encode_hole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sessfs.format.chunk import Cutter
    from sessfs.types import ChunkId

WINDOW_BYTES = 4 << 20
HOLE_MIN_BYTES = 64 * 1024
"""Shorter holes are stored as zeros: an extent a hole would cost more than it saves."""


def iter_regions(fd: int, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """[start, end) of a sparse file as (start, end, has data), holes shorter than HOLE_MIN_BYTES counted as data."""
    at = data_from = start
    while at < end:
        try:
            data = min(os.lseek(fd, at, os.SEEK_DATA), end)
        except OSError:
            data = end
        if data - at >= HOLE_MIN_BYTES:
            if data_from < at:
                yield data_from, at, True
            yield at, data, False
            data_from = data
        at = min(os.lseek(fd, data, os.SEEK_HOLE), end) if data < end else end
    if data_from < end:
        yield data_from, end, True


def cut_range(fd: int, start: int, end: int, cutter: Cutter, add: Callable[[memoryview], ChunkId]) -> Iterator[bytes]:
    """The packed extents of bytes [start, end) of a file; *add* takes each chunk, and names it. Raises EOFError when
    the file ends before.
    """
    for low, high, has_data in iter_regions(fd, start, end):
        if has_data:
            yield from _cut_data(fd, low, high, cutter, add)
        else:
            yield encode_hole(high - low)


def _cut_data(fd: int, start: int, end: int, cutter: Cutter, add: Callable[[memoryview], ChunkId]) -> Iterator[bytes]:
    carry = b""
    at = start
    while at < end:
        window = os.pread(fd, min(WINDOW_BYTES, end - at), at)
        if not window:
            raise EOFError
        at += len(window)
        held = carry + window if carry else window
        pieces = list(cutter.cut(held))
        # The last piece ends where the window does, not where the content says: it goes on with the next window.
        carry = bytes(pieces.pop()) if at < end else b""
        for piece in pieces:
            yield encode_extent(add(piece), len(piece))
