"""Recipes: the chunks and holes that make up one file's content, packed 24 bytes an extent.

Byte layout of one extent: chunk id (20 bytes; all zero for a hole), length (u32, little-endian, above 0).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from itertools import accumulate, islice
from typing import TYPE_CHECKING, NamedTuple

from sessfs.errors import StoreCorrupt
from sessfs.types import CHUNK_ID_BYTES, HOLE, ChunkId

if TYPE_CHECKING:
    from collections.abc import Iterator

EXTENT = struct.Struct(f"<{CHUNK_ID_BYTES}sI")
EXTENT_BYTES = EXTENT.size
HOLE_MAX_BYTES = (1 << 32) - 1


class Extent(NamedTuple):
    """A run of a file's bytes that is one chunk, or a hole. Offsets are in the file; *end* is exclusive."""

    start: int
    end: int
    chunk: ChunkId

    @property
    def is_hole(self) -> bool:
        """True where the file has no bytes and reads as zeros."""
        return self.chunk == HOLE


def encode_extent(chunk: ChunkId, length: int) -> bytes:
    """The 24 bytes of one extent; *length* is 1 to 4 GiB - 1."""
    return EXTENT.pack(chunk, length)


def encode_hole(length: int) -> bytes:
    """The extents of a hole of *length* bytes, however long."""
    full, rest = divmod(length, HOLE_MAX_BYTES)
    return EXTENT.pack(HOLE, HOLE_MAX_BYTES) * full + (EXTENT.pack(HOLE, rest) if rest else b"")


class Recipe:
    """An immutable list of extents over its packed bytes; finds the extent at an offset in logarithmic time."""

    __slots__ = ("_ends", "packed")

    def __init__(self, packed: bytes) -> None:
        """Raises StoreCorrupt when *packed* is no whole number of extents."""
        if len(packed) % EXTENT_BYTES:
            raise StoreCorrupt(f"a recipe of {len(packed)} bytes is no whole number of extents")
        self.packed = packed
        self._ends = list(accumulate(length for _, length in EXTENT.iter_unpack(packed)))

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def size(self) -> int:
        """Bytes of content that the extents cover."""
        return self._ends[-1] if self._ends else 0

    @property
    def allocated(self) -> int:
        """Bytes of content that are not holes."""
        return sum(length for chunk, length in EXTENT.iter_unpack(self.packed) if chunk != HOLE)

    def at(self, index: int) -> Extent:
        """Extent number *index*."""
        chunk, length = EXTENT.unpack_from(self.packed, index * EXTENT_BYTES)
        end = self._ends[index]
        return Extent(end - length, end, ChunkId(chunk))

    def overlapping(self, start: int, end: int) -> Iterator[Extent]:
        """The extents that hold any byte of [start, end), in order."""
        index = bisect_right(self._ends, start)
        while index < len(self._ends):
            extent = self.at(index)
            if extent.start >= end:
                return
            yield extent
            index += 1

    def slice_packed(self, start: int, end: int) -> bytes:
        """The packed extents that cover exactly [start, end); both must be extent boundaries (ValueError if not)."""
        first = bisect_right(self._ends, start)
        last = bisect_right(self._ends, end)
        begin = self._ends[first - 1] if first else 0
        finish = self._ends[last - 1] if last else 0
        if begin != start or finish != end:
            raise ValueError(f"[{start}, {end}) does not lie on extent boundaries")
        return self.packed[first * EXTENT_BYTES : last * EXTENT_BYTES]

    def iter_chunks(self) -> Iterator[ChunkId]:
        """The chunk of each extent that is not a hole, in order, repeated where it repeats."""
        return (ChunkId(chunk) for chunk, _ in EXTENT.iter_unpack(self.packed) if chunk != HOLE)

    def __iter__(self) -> Iterator[Extent]:
        start = 0
        for (chunk, _), end in zip(EXTENT.iter_unpack(self.packed), islice(self._ends, None), strict=True):
            yield Extent(start, end, ChunkId(chunk))
            start = end
