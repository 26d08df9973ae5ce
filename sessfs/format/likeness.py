"""Which chunks resemble each other: put side by side in one frame, what they share is compressed away.

Chunks of 32 KiB can't share what repeats in smaller pieces, such as the records of a LevelDB table that are also in
the table made of it by a compaction. So each chunk is cut again, finely and by content, and goes behind the first chunk
that has enough of the same pieces. Pure and synchronous.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pyfastcdc import FastCDC

if TYPE_CHECKING:
    from collections.abc import Sequence

PIECE_AVG_BYTES = 1024
HEAD_BYTES = 64
"""Pieces that begin with the same bytes count as the same: where they begin is decided by their content, too."""
PIECES_ALIKE = 2
"""So many pieces in common put a chunk behind another."""


class Likeness:
    """Puts chunks in order; holds no state between calls."""

    def __init__(self) -> None:
        self._cdc = FastCDC(
            avg_size=PIECE_AVG_BYTES,
            min_size=PIECE_AVG_BYTES // 4,
            max_size=PIECE_AVG_BYTES * 4,
            normalized_chunking=1,
        )

    def _pieces(self, chunk: bytes) -> list[int]:
        return [hash(chunk[p.offset : p.offset + HEAD_BYTES]) for p in self._cdc.cut_buf(chunk)]

    def order(self, chunks: Sequence[bytes]) -> list[int]:
        """The indices of *chunks*, each once: in the order given, but for those that resemble an earlier one, which
        follow it.
        """
        first_with: dict[int, int] = {}
        leader: list[int] = []
        followers: dict[int, list[int]] = {}
        for index, chunk in enumerate(chunks):
            pieces = self._pieces(chunk)
            votes = Counter(leader[first_with[piece]] for piece in pieces if piece in first_with)
            best = votes.most_common(1)
            if best and best[0][1] >= PIECES_ALIKE:
                leader.append(best[0][0])
                followers.setdefault(best[0][0], []).append(index)
            else:
                leader.append(index)
            for piece in pieces:
                first_with.setdefault(piece, index)
        return [
            index
            for start in range(len(chunks))
            if leader[start] == start
            for index in (start, *followers.get(start, ()))
        ]
