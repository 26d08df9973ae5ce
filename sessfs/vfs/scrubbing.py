"""Scrubbing: after something was dropped for good, no byte of it is left in the state's databases.

Dropping frees pages, and changes pages in place: both keep what was in them. So both environments are written anew,
from their keys and values alone, beside the old ones, which they then replace by one rename each. A crash leaves the
old or the new one; a copy that was not finished is removed by the next start.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from sessfs.errors import StoreFull
from sessfs.local.db import remove_rewritten
from sessfs.vfs.space import DISK_RESERVE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sessfs.vfs.volume import Volume

REWRITTEN = ("chunks.new", "meta.new")
"""Directories in the state directory, below which each environment is written anew."""


def remove_leftovers(state_dir: Path) -> None:
    """At a start: remove what a scrub that was cut short left."""
    for name in REWRITTEN:
        remove_rewritten(state_dir / name)


def check_room(volume: Volume) -> None:
    """Raises StoreFull when the disk may lack the room to write an environment anew."""
    needed = volume.reader.used_bytes() + volume.meta.stored_bytes() + DISK_RESERVE_BYTES
    disk = os.statvfs(volume.state.path)
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        raise StoreFull(
            f"erasing writes the store anew, which takes up to {needed} bytes beside it; the disk of "
            f"{volume.state.path} has {free}: make room, or delete without --purge"
        )


async def scrub(volume: Volume, crash_point: Callable[[str], None] = lambda name: None) -> int:
    """Leave nothing in the state directory that no key of a database stands for: chunks that are dead go, and what
    freed pages keep. Returns how many damaged frames had to stay as they are. Sealing, and then commits, wait
    meanwhile; reading goes on. Raises LocalStoreError, StoreFull.
    """
    check_room(volume)
    chunks, meta = (volume.state.path / name for name in REWRITTEN)
    await volume.committer.commit()
    damaged = await volume.sealer.scrub(chunks)
    crash_point("chunks")
    # Places of what was dropped are forgotten.
    await volume.committer.commit()
    async with volume.committer.writing:
        await trio.to_thread.run_sync(volume.meta.rewrite_into, meta)
        crash_point("copied")
        volume.meta.adopt(meta)
    crash_point("meta")
    return damaged
