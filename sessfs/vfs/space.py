"""How much room there is: the bound on the local cache, the disk below it, and what `statfs` says."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, NamedTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sessfs.local.chunkstore import ChunkReader
    from sessfs.vfs.fileio import FileIO

log = logging.getLogger(__name__)
TICK_S = 0.5
DISK_RESERVE_BYTES = 64 << 20
"""Left free for commits: a disk full to the last byte could not even record a deletion."""


class Room(NamedTuple):
    """Bytes, as statfs reports them."""

    total_bytes: int
    free_bytes: int


class Space:
    """Watches the bound and the disk, and has writers refused while either is full."""

    def __init__(self, state_dir: Path, fileio: FileIO, reader: ChunkReader, bound_bytes: int) -> None:
        self._state_dir = state_dir
        self._fileio = fileio
        self._reader = reader
        self.bound_bytes = bound_bytes
        self.hot_bytes = 0
        """What hot files took when it was last looked, which asks the disk for each of them."""
        self._disk_free_bytes = bound_bytes
        self._unknown: set[str] = set()

    def used_bytes(self) -> int:
        """Bytes that count against the bound: hot files as they lie on the disk, and chunks as stored."""
        self.hot_bytes = self._measure("what hot files take", self._fileio.hot_bytes, self.hot_bytes)
        return self.hot_bytes + self._reader.totals().stored_bytes

    def room(self) -> Room:
        """What is there in all and what is left: the smaller of the bound's and the disk's."""
        self._disk_free_bytes = self._measure("the room on the disk", self._disk_free, self._disk_free_bytes)
        used = self.used_bytes()
        free = max(min(self._disk_free_bytes, self.bound_bytes - used), 0)
        return Room(used + free, free)

    def _disk_free(self) -> int:
        disk = os.statvfs(self._state_dir)
        return max(disk.f_bavail * disk.f_frsize - DISK_RESERVE_BYTES, 0)

    def _measure(self, what: str, measure: Callable[[], int], last: int) -> int:
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

    def check(self) -> None:
        """Set or clear the reason for refusing writers."""
        room = self.room()
        if room.free_bytes > 0:
            self._fileio.full_reason = None
        elif self.used_bytes() >= self.bound_bytes:
            self._fileio.full_reason = f"the cache bound of {self.bound_bytes} bytes is full (--cache-size)"
        else:
            self._fileio.full_reason = (
                f"the disk of {self._state_dir} is full (its last {DISK_RESERVE_BYTES >> 20} MiB are left for commits)"
            )

    async def run(self) -> None:
        """Check for ever; started once, in the daemon's nursery."""
        while True:
            self.check()
            await trio.sleep(TICK_S)
