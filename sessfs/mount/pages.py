"""Having the kernel hand over what it holds of single files, or take over their size; `pageworker` is the process that
does so.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sessfs.local.inodes import Inode
    from sessfs.types import Ino

log = logging.getLogger(__name__)
PATIENCE_S = 10.0
"""All commits wait for it. It takes this long only where the daemon itself waits, as for bytes that the remote has."""
END_S = 1.0
READ_BYTES = 4096
SIZE = "size"
"""Begins a line that is about the size of one inode."""


class KernelPages:
    """Of one mount. The process is started when it is first needed, and ends with this one."""

    def __init__(self, mountpoint: Path) -> None:
        self._command = [sys.executable, "-P", "-m", "sessfs.mount.pageworker", str(mountpoint)]
        self._process: trio.Process | None = None
        self._busy = trio.Lock()
        self._wrong: dict[Ino, Inode] = {}
        self._more = trio.Event()

    async def write_back(self, inodes: Sequence[Ino]) -> None:
        """Return when the daemon has what the kernel held of the files at the call, or can't be given it: the log says
        why.
        """
        problem = await self._order(" ".join(f"{ino:x}" for ino in inodes))
        if problem:
            log.error("the kernel could not be told to hand over inodes %s: %s", ", ".join(map(str, inodes)), problem)

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one: what it truncates is to keep its size."""
        return None if self._process is None else self._process.pid

    def note_wrong_size(self, inode: Inode) -> None:
        """The kernel believes in a size that was refused."""
        self._wrong[inode.ino] = inode
        self._more.set()

    async def run(self) -> None:
        """Have the kernel take over the right sizes, for ever; in the daemon's nursery."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            while self._wrong:
                ino, _ = self._wrong.popitem()
                await self.write_back([ino])
                problem = await self._order(f"{SIZE} {ino:x}")
                if problem:
                    log.warning("inode %d is shown with a size that was refused, for a while: %s", ino, problem)

    async def _order(self, line: str) -> str:
        """What went wrong, empty for nothing."""
        problem = f"it took longer than {PATIENCE_S:g} s"
        async with self._busy:
            with trio.move_on_after(PATIENCE_S):
                try:
                    problem = await self._ask(line)
                except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                    problem = str(exc) or type(exc).__name__
            if problem:
                # What it may still say is no answer to the next question.
                await self.close()
        return problem

    async def _ask(self, line: str) -> str:
        if self._process is None:
            self._process = await trio.lowlevel.open_process(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", start_new_session=True
            )
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        await to.send_all(line.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            part = await back.receive_some(READ_BYTES)
            if not part:
                return "the process for it has ended"
            answer += part
        return answer.decode(errors="replace").strip()

    async def close(self) -> None:
        """End the process, which nothing is lost by."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with trio.move_on_after(END_S):
                await process.wait()
