"""`sessfs sync`: waits until the remote has everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from sessfs.errors import Unsynced
from sessfs.vfs.background import failure_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sessfs.mount.control import Progress

PROGRESS_S = 0.25


class _Asked:
    """One `sync` that waits: *problem* says why not everything is in the remote."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.problem = ""


class Syncs:
    """Those who wait for a publishing. The request loop alone; `run` in the daemon's nursery."""

    def __init__(
        self,
        publish: Callable[[], Awaitable[None]],
        bytes_up: Callable[[], int],
        risk_bytes: Callable[[], int],
        dirty_names: Callable[[], str],
        trouble: Callable[[], str],
    ) -> None:
        """*bytes_up* were sent so far, *risk_bytes* are to be sent, of the sessions *dirty_names*; *trouble* says what
        keeps the remote from taking them.
        """
        self._publish = publish
        self._bytes_up = bytes_up
        self._risk_bytes = risk_bytes
        self._dirty_names = dirty_names
        self._trouble = trouble
        self.opened = trio.Event()
        """Set by the owner once the node is open and was compared with this state: nothing can be published before."""
        self._asked: list[_Asked] = []
        self._ask = trio.Event()

    async def sync(self, progress: Progress, timeout_s: float) -> int:
        """Return the bytes sent once everything acknowledged so far is in the remote; meanwhile *progress* gets the
        bytes done and to do. Raises Unsynced naming the sessions that are not, after *timeout_s* at the latest; what
        was begun goes on.
        """
        start = self._bytes_up()
        asked = _Asked()
        with trio.move_on_after(timeout_s):
            # A publishing before would fail at once, with a reason that may be over: the node is opened soon.
            await self._wait(self.opened, progress, start)
            self._asked.append(asked)
            self._ask.set()
            await self._wait(asked.done, progress, start)
        if not asked.done.is_set():
            asked.problem = f"it took longer than {timeout_s:g} s ({self._trouble()})"
        if asked.problem:
            raise Unsynced(f"not everything is in the remote: {asked.problem}; only here: {self._dirty_names()}")
        return self._bytes_up() - start

    async def _wait(self, event: trio.Event, progress: Progress, start: int) -> None:
        """Until *event* is set; *start* bytes were sent before it all."""
        while not event.is_set():
            await progress({"uploaded_bytes": self._bytes_up() - start, "pending_bytes": self._risk_bytes()})
            with trio.move_on_after(PROGRESS_S):
                await event.wait()

    async def run(self) -> None:
        """One publishing for all that ask meanwhile; nobody's patience cuts it short. For ever."""
        while True:
            await self._ask.wait()
            self._ask = trio.Event()
            asked, self._asked = self._asked, []
            problem = await failure_of(self._publish)
            for one in asked:
                one.problem = problem
                one.done.set()
