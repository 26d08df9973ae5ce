"""After a daemon that was killed, or a machine that lost power: bring hot files, inodes and chunks back together."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from sessfs.local.chunkstore import ChunkReader, References
    from sessfs.local.hotfiles import HotFiles
    from sessfs.local.inodes import Inodes
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


async def sweep_unreferenced(reader: ChunkReader, references: References) -> None:
    """Find chunks that were written but never named by a committed recipe, and have them dropped. In slices, so that
    requests go on; a chunk sealed meanwhile is judged again before it is dropped.
    """
    ids = list(reader.iter_ids())
    for first in range(0, len(ids), SWEEP_SLICE):
        references.note_unused(cid for cid in ids[first : first + SWEEP_SLICE] if not references.is_held(cid))
        await trio.sleep(SWEEP_PAUSE_S)
