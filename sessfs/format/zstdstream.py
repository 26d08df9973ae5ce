"""Compressed streams: what `.tar.zst` is read and written through."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, cast

import zstandard

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

STREAM_LEVEL = 3


def zstd_writer(raw: BinaryIO) -> AbstractContextManager[BinaryIO]:
    """A file that compresses into *raw*, with a checksum; leaving the context ends the stream and keeps *raw* open."""
    compressor = zstandard.ZstdCompressor(level=STREAM_LEVEL, write_checksum=True)
    return cast("AbstractContextManager[BinaryIO]", compressor.stream_writer(raw, closefd=False))
