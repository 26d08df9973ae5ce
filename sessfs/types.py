"""Names shared by all layers: identifiers, and the immutable records that cross a layer boundary."""

from __future__ import annotations

from typing import NewType

Ino = NewType("Ino", int)
"""Inode number; 1 is the root; never reused within one state directory."""

ChunkId = NewType("ChunkId", bytes)
"""The first CHUNK_ID_BYTES of the keyed BLAKE3 hash of a chunk's plaintext."""

FrameNo = NewType("FrameNo", int)
"""Local number of a frame (several neighbouring chunks, compressed together); never reused."""

CHUNK_ID_BYTES = 20
ROOT_INO = Ino(1)
HOLE = ChunkId(bytes(CHUNK_ID_BYTES))
"""Stands in a recipe where the file has no bytes: reads as zeros."""
TIME_MIN_NS, TIME_MAX_NS = -(1 << 63), (1 << 63) - 1
"""Times are kept in ns since 1970 as signed 64 bits: from 1677 to 2262."""


def clamp_time_ns(time_ns: int) -> int:
    """The nearest time that can be kept, as the kernel clamps times that a filesystem can't store. Every time that
    comes from outside goes through here: one that does not fit would fail the commit that is to hold it.
    """
    return min(max(time_ns, TIME_MIN_NS), TIME_MAX_NS)
