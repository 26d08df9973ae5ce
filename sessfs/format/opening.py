"""Reading what others compressed with zstd: a stream of any length, with a bound on memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, cast

import zstandard

if TYPE_CHECKING:
    from typing import IO

WINDOW_MAX_BYTES = 1 << 31
"""What `zstd --long=31` needs."""
PIECE_BYTES = 1024
"""Compressed bytes that are taken at once: of runs alone they become 32 MiB, all of which lie in memory."""

ZstdError = zstandard.ZstdError


def open_zstd(compressed: IO[bytes]) -> BinaryIO:
    """The plaintext of *compressed*, to be read once from its start, by `read` alone. Reads raise `ZstdError`, also at
    the end when the last frame is cut short.
    """
    return cast("BinaryIO", _Frames(compressed))


class _Frames:
    """One frame after the other. zstandard's own reader takes any end of its input for the end of a frame."""

    def __init__(self, compressed: IO[bytes]) -> None:
        self._compressed = compressed
        self._opener = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX_BYTES)
        self._frame = self._opener.decompressobj()
        self._is_inside = False
        self._ahead = b""
        self._plain = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Up to *size* bytes, none at the end alone."""
        while not self._plain:
            piece = self._ahead or self._compressed.read(PIECE_BYTES)
            if not piece:
                if self._is_inside:
                    raise ZstdError("the last frame is cut short")
                return b""
            self._plain = memoryview(self._frame.decompress(piece))
            self._ahead, self._is_inside = self._frame.unused_data, not self._frame.eof
            if not self._is_inside:
                self._frame = self._opener.decompressobj()
        found = bytes(self._plain[:size])
        self._plain = self._plain[size:]
        return found
