"""Having the kernel hand over what it holds of single files; `pageworker` is the process that does so."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import trio

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
        self._command = [sys.executable, "-P", "-m", "sessfs.mount.pageworker", str(mountpoint)]
        self._process: trio.Process | None = None

    async def write_back(self, inodes: Sequence[Ino]) -> None:
        """Return when the daemon has what the kernel held of the files at the call, or can't be given it: the log says
        why. One at a time.
        """
        problem = f"it took longer than {PATIENCE_S:g} s"
        with trio.move_on_after(PATIENCE_S):
            try:
                problem = await self._ask(" ".join(f"{ino:x}" for ino in inodes))
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                problem = str(exc) or type(exc).__name__
        if not problem:
            return
        # What it may still say is no answer to the next question.
        await self.close()
        log.error("the kernel could not be told to hand over inodes %s: %s", ", ".join(map(str, inodes)), problem)

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
