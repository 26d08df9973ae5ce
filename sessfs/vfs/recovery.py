"""After a daemon that was killed, or a machine that lost power: bring hot files, inodes and chunks back together."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from sessfs.local.chunkstore import ChunkReader, References
    from sessfs.local.hotfiles import HotFiles
    from sessfs.local.inodes import Inodes
    from sessfs.types import ChunkId
    from sessfs.vfs.fileio import FileIO

log = logging.getLogger(__name__)
SWEEP_SLICE = 500
SWEEP_PAUSE_S = 0.01


def reconcile_hot_files(inodes: Inodes, hot: HotFiles, fileio: FileIO) -> None:
    """Make inodes and hot files agree again.

    A hot file's length is its inode's size, and what reached the hot file after the last commit counts; so the inode
    takes over the length, and the mtime if that is later than what was committed. Hot files that no inode names are
    deleted. An inode whose hot file is missing was never flushed: its content is zeros there, as on other filesystems,
    and a new hot file says so.
    """
    on_disk = {(ino, number): length for ino, number, length in hot.iter_files()}
    for inode in [i for i in inodes.iter_inodes() if i.hot_no]:
        length = on_disk.pop((inode.ino, inode.hot_no), None)
        kept = inodes.get(inode.ino)
        if length is None:
            log.warning("inode %d lost %d bytes that were never flushed", kept.ino, kept.size)
            hot.create(kept.ino, kept.hot_no, kept.size)
        else:
            if length != kept.size:
                fileio.take_length(kept, length)
            fileio.take_mtime(kept, hot.mtime_ns(kept.ino, kept.hot_no))
        fileio.carry_times(kept)
        fileio.adopt(kept)
    for ino, number in on_disk:
        hot.delete(ino, number)


class Sweep:
    """The search for chunks that were written but never named by a committed recipe, as a crash leaves them."""

    def __init__(self, reader: ChunkReader, references: References, *, is_owed: bool) -> None:
        """Nothing is to be done unless it *is_owed*."""
        self._reader = reader
        self._references = references
        self.is_owed = is_owed
        """False once all chunks were looked at that were there at the start."""
        self._ids: list[ChunkId] | None = None

    async def run(self) -> None:
        """Have what is found dropped. In slices, so that requests go on; a chunk sealed meanwhile is judged again
        before it is dropped.
        """
        while self._step():  # noqa: ASYNC110 - it is this loop that does it
            await trio.sleep(SWEEP_PAUSE_S)

    async def finish(self) -> None:
        """The rest of it, at an unmount: may be cancelled, and then goes on at the next start."""
        while self._step():
            await trio.lowlevel.checkpoint()

    def _step(self) -> bool:
        """Look at a slice; False when that was all."""
        if not self.is_owed:
            return False
        if self._ids is None:
            self._ids = list(self._reader.iter_ids())
        some, self._ids = self._ids[-SWEEP_SLICE:], self._ids[:-SWEEP_SLICE]
        self._references.note_unused(cid for cid in some if not self._references.is_held(cid))
        self.is_owed = bool(self._ids)
        return self.is_owed
