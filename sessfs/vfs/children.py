"""Child processes that end with this one: however it ends, and however deep they sleep.

Linux kills such a child when the thread that started it ends. So it is started here and now, in the loop's own thread,
and not in one of trio's, which end when they are idle. It asks for that itself (`local/parent`), first of all.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import trio


class Child:
    """A running `python -m MODULE PID ARGUMENTS`, PID being this process; of one trio run."""

    def __init__(self, module: str, *arguments: str, leads_session: bool = False) -> None:
        """Start it. Its module must call `end_with_parent` first. Raises OSError."""
        command = [sys.executable, "-P", "-m", module, str(os.getpid()), *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd="/", start_new_session=leads_session
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.stdin = trio.lowlevel.FdStream(os.dup(self._process.stdin.fileno()))
        self.stdout = trio.lowlevel.FdStream(os.dup(self._process.stdout.fileno()))
        self._process.stdin.close()
        self._process.stdout.close()

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process.poll() is None else None

    async def wait(self) -> None:
        """Return once it has ended."""
        if self._process.poll() is not None:
            await trio.lowlevel.checkpoint()
            return
        ended = os.pidfd_open(self._process.pid)
        try:
            await trio.lowlevel.wait_readable(ended)
        finally:
            os.close(ended)
        self._process.wait()

    async def end(self, patience_s: float = 0.0) -> None:
        """End it: its input ends, and after *patience_s* it is killed. On return it is gone; not to be cancelled."""
        with trio.CancelScope(shield=True):
            await self.stdin.aclose()
            if patience_s:
                with trio.move_on_after(patience_s):
                    await self.wait()
            self.kill()
            await self.wait()
            await self.stdout.aclose()

    def kill(self) -> None:
        """Kill it; fine when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
