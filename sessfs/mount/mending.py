"""Having the kernel let go of what it shows of writes that were refused: pages that look good, and a grown length.

Done by a process that makes system calls on the mount (`mendwork`), started when it is first needed: no notice of FUSE
makes a file shorter, and one that drops pages may wait for requests that this daemon has yet to answer.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import trio

from sessfs.mount import mendwork, mountinfo
from sessfs.types import ROOT_INO

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.local.inodes import Inode, Inodes
    from sessfs.mount.mendwork import Job
    from sessfs.types import Ino
    from sessfs.vfs.refusals import Refusals

log = logging.getLogger(__name__)
COMMAND = (sys.executable, "-I", "-S", mendwork.__file__)
RETRY_S = 0.5
ANSWER_S = 60.0
"""A process that has not answered for so long is given up, and another one started."""


class Mender:
    """Mends the files of `refusals.shown`. The request loop must be serving while it runs."""

    def __init__(self, refusals: Refusals, inodes: Inodes, mountpoint: Path) -> None:
        self._refusals = refusals
        self._inodes = inodes
        self._mountpoint = mountpoint
        self._process: trio.Process | None = None
        self._wanted = trio.Event()
        self._told: set[Ino] = set()
        refusals.noticed = self._wake

    def _wake(self) -> None:
        self._wanted.set()

    def is_asking(self, pid: int) -> bool:
        """Whether a request comes from the mending process."""
        return self._process is not None and pid == self._process.pid

    async def run(self) -> None:
        """Mend, for ever; started once, in the daemon's nursery."""
        try:
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                left = [ino for ino in self._refusals.shown() if not await self._mend(ino)]
                self._told &= set(left)
                if left:
                    # Files without a name, or renamed meanwhile. What comes meanwhile is not kept waiting.
                    with trio.move_on_after(RETRY_S):
                        await self._wanted.wait()
                    self._wanted.set()
        finally:
            with trio.CancelScope(shield=True):
                await self._end()

    async def _mend(self, ino: Ino) -> bool:
        """False when it has to be tried again."""
        inode, refused = self._inodes.find(ino), self._refusals.find(ino)
        if inode is None or refused is None:
            return True
        path = self._find_path(inode)
        mount = mountinfo.find_mount(self._mountpoint)
        if path is None or mount is None:
            return False
        version = refused.version
        major, minor = mount.device.split(":")
        job: Job = {
            "root": mount.mountpoint,
            "device": os.makedev(int(major), int(minor)),
            "path": [name.hex() for name in path],
            "ino": ino,
            "drop": [[low, min(high, inode.size)] for low, high in refused.ranges if low < inode.size],
            "size": inode.size if refused.ranges[-1][1] > inode.size else None,
        }
        problem = await self._ask(job)
        if problem:
            self._say(ino, problem)
            return False
        self._refusals.mended(inode, version)
        refused = self._refusals.find(ino)
        return refused is None or not refused.is_shown

    def _find_path(self, inode: Inode) -> list[bytes] | None:
        """Names that lead to the inode; None where it has none."""
        names: list[bytes] = []
        while inode.ino != ROOT_INO:
            name = next((n for n, found in self._inodes.iter_dentries(inode.parent) if found.ino == inode.ino), None)
            parent = self._inodes.find(inode.parent)
            if name is None or parent is None:
                return None
            names.insert(0, name)
            inode = parent
        return names

    def _say(self, ino: Ino, problem: str) -> None:
        if ino not in self._told:
            self._told.add(ino)
            log.info("inode %d: the kernel still shows writes that were refused, will be tried again: %s", ino, problem)

    async def _ask(self, job: Job) -> str:
        """What went wrong; empty for nothing."""
        try:
            process = await self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.send_all(json.dumps(job).encode() + b"\n")
            answer = b""
            with trio.fail_after(ANSWER_S):
                while not answer.endswith(b"\n"):
                    got = await process.stdout.receive_some()
                    if not got:
                        raise EOFError
                    answer += got
        except (OSError, EOFError, trio.BrokenResourceError, trio.TooSlowError) as exc:
            await self._end()
            return f"the mending process ended: {exc!r}"
        return answer.decode(errors="replace").strip()

    async def _start(self) -> trio.Process:
        if self._process is None:
            self._process = await trio.lowlevel.open_process(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", start_new_session=True
            )
        return self._process

    async def _end(self) -> None:
        """It may be waiting for a request that nobody serves any more: then it is gone when the mount is."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.aclose()
        with trio.move_on_after(1.0):
            await process.wait()
