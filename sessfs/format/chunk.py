"""Chunks and frames: cut bytes at content-defined places, name each piece, compress neighbours together.

A *chunk* is named by the first CHUNK_ID_BYTES of its keyed BLAKE3 hash. A *frame* is the zstd compression of up to
FRAME_TARGET_BYTES of chunks laid end to end: neighbouring chunks of one file resemble each other, and compressing
sixteen of them together saves about a tenth over compressing each alone. Everything here is pure and synchronous.
Compressor objects are not safe to share between threads: each thread makes its own FrameCodec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import blake3
import zstandard
from pyfastcdc import FastCDC

from sessfs.errors import StoreCorrupt
from sessfs.types import CHUNK_ID_BYTES, ChunkId

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHUNK_MIN_BYTES = 8 * 1024
CHUNK_AVG_BYTES = 32 * 1024
CHUNK_MAX_BYTES = 128 * 1024
FRAME_TARGET_BYTES = 512 * 1024
"""A frame is closed once it holds this many bytes of plaintext, so it holds less than this plus one chunk."""
FRAME_MAX_BYTES = FRAME_TARGET_BYTES + CHUNK_MAX_BYTES
HASH_KEY_BYTES = 32
ZSTD_LEVEL = 6

Buffer = bytes | bytearray | memoryview


def chunk_id(key: bytes, plaintext: Buffer) -> ChunkId:
    """Name of *plaintext* under the repository's 32-byte *key*; equal bytes have equal names, and only with the key."""
    return ChunkId(blake3.blake3(plaintext, key=key).digest(length=CHUNK_ID_BYTES))


class Cutter:
    """FastCDC (Xia et al., USENIX ATC 2016) with the parameters of this repository; holds no state between calls."""

    def __init__(self) -> None:
        self._cdc = FastCDC(
            avg_size=CHUNK_AVG_BYTES, min_size=CHUNK_MIN_BYTES, max_size=CHUNK_MAX_BYTES, normalized_chunking=2
        )

    def cut(self, buf: Buffer) -> Iterator[memoryview]:
        """The chunks of *buf* in order, each CHUNK_MIN_BYTES to CHUNK_MAX_BYTES long but for the last, which may be
        shorter; laid end to end they are *buf*. The views are valid as long as *buf* is.
        """
        view = memoryview(buf)
        if len(view) <= CHUNK_MIN_BYTES:
            if len(view):
                yield view
            return
        for piece in self._cdc.cut_buf(view):
            yield view[piece.offset : piece.offset + piece.length]


class FrameCodec:
    """Compresses and opens frames. One per thread."""

    def __init__(self, level: int = ZSTD_LEVEL) -> None:
        self._compressor = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
        self._decompressor = zstandard.ZstdDecompressor()
        self._block: bytearray | None = None

    def encode(self, chunks: Sequence[Buffer]) -> bytes:
        """One zstd frame of *chunks* laid end to end (at most FRAME_MAX_BYTES of them)."""
        joined = memoryview(self._own_block())
        size = 0
        for chunk in chunks:
            joined[size : size + len(chunk)] = chunk
            size += len(chunk)
        return self._compressor.compress(joined[:size])

    def _own_block(self) -> bytearray:
        """The same one each time: having the system clear new pages takes longer than filling them."""
        if self._block is None:
            self._block = bytearray(FRAME_MAX_BYTES)
        return self._block

    def decode(self, frame: Buffer) -> bytes:
        """The plaintext of *frame*, at most FRAME_MAX_BYTES; raises StoreCorrupt for anything else, without
        allocating what a damaged header asks for.
        """
        self.plain_bytes(frame)
        try:
            return self._decompressor.decompress(frame, max_output_size=FRAME_MAX_BYTES)
        except zstandard.ZstdError as exc:
            raise StoreCorrupt(f"a frame does not decompress: {exc}") from exc

    def view(self, frame: Buffer) -> memoryview:
        """As `decode`; what it returns is valid until the next call of this method or of `encode`."""
        block = self._own_block()
        return memoryview(block)[: self.decode_into(frame, block)]

    def decode_into(self, frame: Buffer, target: bytearray) -> int:
        """As `decode`, into the first bytes of *target*, which has FRAME_MAX_BYTES; returns how many they are."""
        size = self.plain_bytes(frame)
        done = 0
        try:
            with self._decompressor.stream_reader(frame) as reader, memoryview(target) as view:
                while got := reader.readinto(view[done:size]):
                    done += got
        except zstandard.ZstdError as exc:
            raise StoreCorrupt(f"a frame does not decompress: {exc}") from exc
        if done != size:
            raise StoreCorrupt(f"a frame claims {size} bytes of content, and has {done}")
        return size

    @staticmethod
    def plain_bytes(frame: Buffer) -> int:
        """How many bytes *frame* says that its plaintext has. Raises StoreCorrupt, also for over FRAME_MAX_BYTES."""
        try:
            size = zstandard.frame_content_size(frame)
        except zstandard.ZstdError as exc:
            raise StoreCorrupt(f"a frame does not decompress: {exc}") from exc
        if not 0 <= size <= FRAME_MAX_BYTES:
            raise StoreCorrupt(f"a frame claims {size} bytes of content, more than {FRAME_MAX_BYTES}")
        return size


def verify_chunk(key: bytes, expected: ChunkId, plaintext: Buffer) -> None:
    """Raises StoreCorrupt unless *plaintext* hashes to *expected*."""
    if chunk_id(key, plaintext) != expected:
        raise StoreCorrupt(f"chunk {expected.hex()} does not match its hash")
