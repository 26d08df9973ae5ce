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
