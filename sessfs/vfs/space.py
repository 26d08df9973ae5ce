"""How much room there is: the bound on the local cache, the disk below it, and what `statfs` says.

Room is kept for two things. The last of the disk is left for commits: a disk full to the last byte could not even
record a deletion. And the last of what is free is kept ahead for what the kernel has in its page cache: its write(2)
has succeeded, so it must be let in. Who writes when no more than that is left is refused at once.

A deletion frees pages inside the database of chunks, whose file does not shrink. On a disk that is full these count as
room: files may be written into half of what is left for commits, since sealing moves them into those pages. Where what
is alive fits beside it, the file is written anew, which gives the rest back (`wants_compaction`).
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import trio

from sessfs.errors import StoreFull

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sessfs.local.chunkstore import ChunkReader
    from sessfs.vfs.fileio import FileIO

log = logging.getLogger(__name__)
T = TypeVar("T")
TICK_S = 0.5
DISK_RESERVE_BYTES = 64 << 20
"""Left free for commits, of a small disk an eighth."""
DISK_MIN_BYTES = 32 << 20
"""A smaller disk has no room for anything beside what is left for commits."""
AHEAD_BYTES = 48 << 20
"""Kept for what the kernel has taken, of a small bound or disk a sixteenth. `mount/writeback` bounds what that can
be.
"""
AHEAD_MIN_BYTES = 2 << 20
"""Programs write 1 MiB at once, and the kernel asks only before each write(2)."""
PART_RESERVED = 8
PART_AHEAD = 16
FREED_MIN_BYTES = 4 << 20
"""So much must be free inside the database of chunks before it is written anew, and a quarter of it,"""
FREED_PART = 4
COPY_MARGIN_BYTES = 2 << 20
"""and so much must be left on the disk beside the copy."""
PAGES_SHARE = 1.1
"""What chunks take in pages, to what they take as they are."""


def check_disk(state_dir: Path, total_bytes: int) -> None:
    """Raises StoreFull if a disk of *total_bytes* is too small to keep a state on."""
    if total_bytes < DISK_MIN_BYTES:
        raise StoreFull(
            f"the disk of {state_dir} has {total_bytes >> 20} MiB in all, and a state needs one of "
            f"{DISK_MIN_BYTES >> 20} MiB at least: give another directory with --state"
        )


class Room(NamedTuple):
    """Bytes, as statfs reports them."""

    total_bytes: int
    free_bytes: int


class _Disk(NamedTuple):
    free_bytes: int
    total_bytes: int


class Space:
    """Watches the bound and the disk, and has writers refused while either is full."""

    def __init__(self, state_dir: Path, fileio: FileIO, reader: ChunkReader, bound_bytes: int) -> None:
        self._state_dir = state_dir
        self._fileio = fileio
        self._reader = reader
        self.bound_bytes = bound_bytes
        self.hot_bytes = 0
        """What hot files took when it was last looked, which asks the disk for each of them."""
        self._disk = _Disk(bound_bytes, bound_bytes)
        self._unknown: set[str] = set()
        self._left_bytes = 0
        """What may still be let in, of what was free at the last look."""
        self._kept_bytes = 0
        """Of that, what is kept ahead."""
        self._taken_bytes = 1
        """What was let in since. Not 0 before the first look: the first who wants room has it looked at."""
        self._lent_bytes = 0
        """Of what is left for commits, what writers may use, since as much is free inside the database of chunks."""
        self.pending_bytes: Callable[[], int] = lambda: 0
        """What sealing is about to take of the disk."""
        self.became_short: Callable[[], None] = lambda: None
        """Called when writers begin to be refused."""

    # -- looking

    @property
    def ahead_bytes(self) -> int:
        """Kept for what the kernel has taken and not handed over."""
        total = min(self.bound_bytes, self._disk.total_bytes)
        ahead = min(AHEAD_BYTES, max(total // PART_AHEAD, AHEAD_MIN_BYTES), total // 4)
        return min(ahead, self._lent_bytes // 4) if self._lent_bytes else ahead

    @property
    def reserve_bytes(self) -> int:
        """Left on the disk for commits."""
        return min(DISK_RESERVE_BYTES, self._disk.total_bytes // PART_RESERVED)

    def full_bytes(self) -> int:
        """Of `used_bytes`, how much the bound lets writers come to."""
        return self.bound_bytes - self.ahead_bytes

    @property
    def is_short(self) -> bool:
        """Whether writers are refused."""
        return self._fileio.full_reason is not None

    def used_bytes(self) -> int:
        """Bytes that count against the bound: hot files as they lie on the disk, and chunks as stored."""
        self.hot_bytes = self._measure("what hot files take", self._fileio.hot_bytes, self.hot_bytes)
        return self.hot_bytes + self._reader.totals().stored_bytes

    def room(self) -> Room:
        """What is there in all and what writers may still have: the smaller of the bound's and the disk's."""
        used, free = self._look()
        free = max(free - self.ahead_bytes, 0)
        return Room(used + free, free)

    def _look(self) -> tuple[int, int]:
        """Bytes used, and bytes that may be let in."""
        self._disk = self._measure("the room on the disk", self._look_at_disk, self._disk)
        used = self.used_bytes()
        return used, max(min(self._disk_left(), self.bound_bytes - used), 0)

    def _look_at_disk(self) -> _Disk:
        disk = os.statvfs(self._state_dir)
        return _Disk(disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize)

    def _disk_left(self) -> int:
        """Of the disk, what may be let in: what is not left for commits, and what sealing finds room for."""
        reserve = self.reserve_bytes
        left = self._disk.free_bytes - reserve - self.pending_bytes()
        self._lent_bytes = min(self.freed_bytes(), reserve // 2) if left < reserve else 0
        return left + self._lent_bytes

    def freed_bytes(self) -> int:
        """Bytes inside the database of chunks that nothing takes, about."""
        return max(self._reader.used_bytes() - int(self._reader.totals().stored_bytes * PAGES_SHARE), 0)

    def _measure(self, what: str, measure: Callable[[], T], last: T) -> T:
        """What *measure* gives; *last* where the disk does not answer, which the log is told once."""
        try:
            found = measure()
        except OSError as exc:
            if what not in self._unknown:
                log.error("%s can't be looked at, the last figure stands: %s", what, exc)
            self._unknown.add(what)
            return last
        self._unknown.discard(what)
        return found

    # -- letting in

    def take(self, n_bytes: int, *, cached: bool) -> None:
        """See RoomLeft."""
        if self._left_bytes - n_bytes < (0 if cached else self._kept_bytes) and self._taken_bytes:
            self.check()
        if self._left_bytes - n_bytes < (0 if cached else self._kept_bytes):
            raise StoreFull(self._fileio.full_reason or self._reason())
        if not self.is_short and self._left_bytes - n_bytes <= self._kept_bytes:
            self.check(n_bytes)
        self._left_bytes -= n_bytes
        self._taken_bytes += n_bytes

    def check(self, coming_bytes: int = 0) -> None:
        """Look how much room there is, and set or clear the reason for refusing writers. What is about to be written is
        not there yet.
        """
        _, self._left_bytes = self._look()
        self._taken_bytes = 0
        ahead = self._kept_bytes = self.ahead_bytes
        if self._left_bytes - coming_bytes > ahead + (ahead // 4 if self.is_short else 0):
            self._fileio.full_reason = None
        elif not self.is_short:
            self._fileio.full_reason = self._reason()
            log.warning("writers get ENOSPC: %s", self._fileio.full_reason)
            self.became_short()

    def _reason(self) -> str:
        if self.bound_bytes - self.hot_bytes - self._reader.totals().stored_bytes <= self._disk_left():
            return f"the cache bound of {self.bound_bytes} bytes is full (--cache-size)"
        return f"the disk of {self._state_dir} is full (its last {self.reserve_bytes >> 20} MiB are left for commits)"

    async def run(self) -> None:
        """Check for ever; started once, in the daemon's nursery."""
        while True:
            self.check()
            await trio.sleep(TICK_S)

    # -- sealing, and giving back

    def sealable_bytes(self) -> int:
        """How much may be sealed at once: the hot files are given up when all of it is stored. Sealing may take more
        of what is left for commits than writers, since that makes room; the last quarter stays.
        """
        self._disk = self._measure("the room on the disk", self._look_at_disk, self._disk)
        free, reserve = self._disk.free_bytes, self.reserve_bytes
        # Of what writers may have no more than half: they are refused meanwhile, if they want that.
        return max(min(free - reserve // 4, reserve // 2), (free - reserve) // 2, 0)

    def wants_compaction(self) -> bool:
        """Whether the disk is short, and writing the database of chunks anew would give it much back, and can be done
        in what is free.
        """
        if self._disk.free_bytes - self.reserve_bytes >= self.reserve_bytes:
            return False
        freed, used = self.freed_bytes(), self._reader.used_bytes()
        if freed < max(FREED_MIN_BYTES, used // FREED_PART):
            return False
        return used - freed + COPY_MARGIN_BYTES <= self._disk.free_bytes
