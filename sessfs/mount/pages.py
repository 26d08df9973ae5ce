"""Having the kernel hand over what it holds of single files; `pageworker` is the process that does so."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from sessfs.vfs.children import Child

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sessfs.types import Ino

log = logging.getLogger(__name__)
PATIENCE_S = 10.0
"""All commits wait for it. It takes this long only where the daemon itself waits, as for bytes that the remote has."""
END_S = 1.0
READ_BYTES = 4096


class KernelPages:
    """Of one mount. The process is started when it is first needed, and ends with this one."""

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint
        self._child: Child | None = None
        self._busy = trio.Lock()

    async def write_back(self, inodes: Sequence[Ino]) -> None:
        """Return when the daemon has what the kernel held of the files at the call, or can't be given it: the log says
        why.
        """
        problem = await self._order(" ".join(f"{ino:x}" for ino in inodes))
        if problem:
            log.error("the kernel could not be told to hand over inodes %s: %s", ", ".join(map(str, inodes)), problem)

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
        if self._child is None:
            self._child = Child("sessfs.mount.pageworker", str(self._mountpoint), leads_session=True)
        await self._child.stdin.send_all(line.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            part = await self._child.stdout.receive_some(READ_BYTES)
            if not part:
                return "the process for it has ended"
            answer += part
        return answer.decode(errors="replace").strip()

    async def close(self) -> None:
        """End the process, which nothing is lost by. One that waits for this mount is gone once that is."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            with trio.move_on_after(END_S):
                await child.wait()
