"""Keeping a process's memory what it needs: given-back blocks go to the system, mapped pages are let go of, and blocks
that are needed again and again are kept, since having the system clear new pages takes longer than filling them.
"""

from __future__ import annotations

import ctypes

MADV_DONTNEED = 4
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
TRIM_BYTES = 1 << 20
OWN_BLOCK_BYTES = 256 << 10
SPARE_BLOCKS = 4


def bound_heap() -> None:
    """Have the C library give back what is freed: it would keep each process at its peak, which segments and batches of
    tens of MB set (117 instead of 173 MB while much is uploaded). For a process's start; does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, OWN_BLOCK_BYTES)
        mallopt(M_TRIM_THRESHOLD, TRIM_BYTES)


class Blocks:
    """Blocks of one size, used again once nobody has a view of them. One thread."""

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._spare: list[bytearray] = []

    def take(self) -> bytearray:
        """A block with any content; the caller's until it is given back."""
        for at in range(len(self._spare)):
            if not has_views(self._spare[at]):
                return self._spare.pop(at)
        return bytearray(self._block_bytes)

    def give(self, block: bytearray) -> None:
        """Give *block* back: it is used again when the last view of it is gone. Few are spare, the oldest go."""
        self._spare.append(block)
        del self._spare[:-SPARE_BLOCKS]


def has_views(block: bytearray) -> bool:
    """Whether a memoryview of *block*, or a part of one, is alive: then, and only then, it can't change its size."""
    try:
        block.append(0)
    except BufferError:
        return True
    block.pop()
    return False


def unmap_pages(path: str) -> None:
    """Drop this process's references to the pages of the mapped file *path*, as /proc/self/maps spells it. They stay in
    the page cache, and come back by a minor fault each: all that was ever read would count as the process's memory.
    """
    libc = ctypes.CDLL(None)
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6 and fields[5] == path:
                start, end = (int(address, 16) for address in fields[0].split("-"))
                libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(MADV_DONTNEED))
