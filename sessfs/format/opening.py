"""Reading what others compressed with zstd: a stream of any length, with a bound on memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, cast

import zstandard

if TYPE_CHECKING:
    from typing import IO

WINDOW_MAX_BYTES = 1 << 31
"""What `zstd --long=31` needs."""


def open_zstd(compressed: IO[bytes]) -> BinaryIO:
    """The plaintext of *compressed*, to be read once from its start. Reads raise `ZstdError`."""
    opener = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX_BYTES)
    return cast("BinaryIO", opener.stream_reader(compressed, read_across_frames=True))


ZstdError = zstandard.ZstdError
