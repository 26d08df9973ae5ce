"""Giving room back to a disk that is full: the database of chunks keeps what deletions free inside its file.

Its file is written anew beside the old one, from what is alive, and replaces it by one rename; a crash leaves the old
or the new one. It is done only while the disk is short, since sealing waits for as long.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from sessfs.errors import LocalStoreError
from sessfs.vfs.scrubbing import REWRITTEN

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.vfs.sealing import Sealer
    from sessfs.vfs.space import Space

log = logging.getLogger(__name__)
TICK_S = 1.0
RETRY_S = 30.0


async def keep_compact(state_dir: Path, space: Space, sealer: Sealer) -> None:
    """For ever; started once, in the daemon's nursery."""
    while True:
        await trio.sleep(TICK_S)
        if not space.wants_compaction():
            continue
        before = space.freed_bytes()
        try:
            await sealer.scrub(state_dir / REWRITTEN[0], rewrites=False)
        except LocalStoreError as exc:
            log.warning("the disk is short, and the room that deletions freed can't be given back to it: %s", exc)
            await trio.sleep(RETRY_S)
            continue
        space.check()
        log.info(
            "about %d MiB that deletions had freed were given back to the disk", before - space.freed_bytes() >> 20
        )
