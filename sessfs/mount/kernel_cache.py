"""Telling the kernel that top-level names, which it caches for a day, mean something else from now on.

Each notice may wait in the kernel for requests that are under way, so none is given by the request loop: a thread gives
them, one after another.
"""

from __future__ import annotations

import errno
import logging
from collections import deque

import pyfuse3
import trio

from sessfs.types import ROOT_INO

log = logging.getLogger(__name__)
UNKNOWN_THERE = (errno.ENOENT, errno.ENOTDIR)


class KernelCache:
    """`Kernel` of a mount. *name*s given before it runs wait."""

    def __init__(self) -> None:
        self._names: deque[bytes] = deque()
        self._given = 0
        self._told = 0
        self._more = trio.Event()
        self._progress = trio.Event()

    def forget_name(self, name: bytes) -> None:
        """See Kernel."""
        self._names.append(name)
        self._given += 1
        self._more.set()

    async def settled(self) -> None:
        """See Kernel."""
        wanted = self._given
        while self._told < wanted:
            await self._progress.wait()

    async def run(self) -> None:
        """Tell, for ever; started once, in the daemon's nursery."""
        while True:
            while self._names:
                await trio.to_thread.run_sync(_tell, self._names[0])
                self._names.popleft()
                self._told += 1
                progress, self._progress = self._progress, trio.Event()
                progress.set()
            await self._more.wait()
            self._more = trio.Event()


def _tell(name: bytes) -> None:
    try:
        pyfuse3.invalidate_entry(pyfuse3.InodeT(ROOT_INO), pyfuse3.FileNameT(name))
    except OSError as exc:
        if exc.errno not in UNKNOWN_THERE:
            log.warning("the kernel may show an old %s for a while: %s", name.decode(errors="replace"), exc)
