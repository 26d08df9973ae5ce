"""Requests whose handlers must wait: each in a task, those of one lane a few at a time, until a signal or the end.

A lane is a session whose reads wait for the remote. While that does not answer there may be thousands of them: with a
task each they would take memory by the hundred megabytes, and a fetch each would leave none to the other sessions.
"""

from __future__ import annotations

import types
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import trio

from sessfs.mount.boundary import NeedsTask

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from sessfs.mount.calls import Call, Header

    Finished = Callable[["Waiter", Any, Exception | None], None]

LANE_TASKS: Final = 8
"""So many requests of one lane have a task at once."""
EAGER_S: Final = 1.0
"""Who has waited for longer waits for a remote that does not answer: nothing that the loop could hurry."""
GRACE_S: Final = 0.5
"""A request goes on for so long after its signal. A program that hears of its child's end in the middle of a read
does not expect EINTR from a file; one that was killed has time.
"""


@types.coroutine
def _rest(started: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Go on, in a task, with a coroutine that was run by hand up to here. To ask for a task again costs nothing."""
    step: Callable[[Any], Any] = started.send
    given: Any = None
    while True:
        try:
            trapped = step(given)
        except StopIteration as done:
            return done.value
        step, given = started.send, None
        if not isinstance(trapped, NeedsTask):
            try:
                given = yield trapped
            except BaseException as exc:
                step, given = started.throw, exc


class Waiter:
    """One request: its handler was run by hand until it had to wait."""

    __slots__ = ("call", "header", "lane", "scope", "started")

    def __init__(self, call: Call, header: Header, started: Coroutine[Any, Any, Any], lane: int | None) -> None:
        self.call = call
        self.header = header
        self.started = started
        self.lane = lane
        self.scope = trio.CancelScope()

    @property
    def was_interrupted(self) -> bool:
        """True once it has been given up because of a signal."""
        return self.scope.cancelled_caught


class Waiters:
    """All requests that wait. The request loop alone."""

    def __init__(self, nursery: trio.Nursery, finished: Finished) -> None:
        """*finished* is told of each request with what its handler returned, or what it raised; neither where it was
        interrupted. It raises nothing.
        """
        self._nursery = nursery
        self._finished = finished
        self._by_unique: dict[int, Waiter] = {}
        self._queued: dict[int, deque[Waiter]] = {}
        """By lane: those without a task."""
        self._running: dict[int, int] = {}
        """By lane: how many have one."""
        self._eager_until_s = 0.0

    @property
    def are_eager(self) -> bool:
        """True while a request waits that may be over as soon as other tasks get their turn."""
        return bool(self._by_unique) and trio.current_time() < self._eager_until_s

    def add(self, waiter: Waiter) -> None:
        """Have it come to its end."""
        self._by_unique[waiter.header[2]] = waiter
        self._eager_until_s = trio.current_time() + EAGER_S
        lane = waiter.lane
        if lane is not None:
            running = self._running.get(lane, 0)
            if running >= LANE_TASKS:
                self._queued.setdefault(lane, deque()).append(waiter)
                return
            self._running[lane] = running + 1
        self._nursery.start_soon(self._run, waiter, lane)

    def interrupt(self, unique: int) -> None:
        """Whoever made the request got a signal: it ends soon. One that is over, or is never waited for long, is let
        be.
        """
        waiter = self._by_unique.get(unique)
        if waiter is None or not waiter.call.is_interruptible:
            return
        waiter.scope.deadline = min(waiter.scope.deadline, trio.current_time() + GRACE_S)
        queue = self._queued.get(waiter.lane) if waiter.lane is not None else None
        if queue is not None and waiter in queue:
            # Whoever was killed does not wait for its turn.
            queue.remove(waiter)
            self._nursery.start_soon(self._run, waiter, None)

    def close(self) -> None:
        """The mount is gone: nobody waits for those without a task."""
        for queue in self._queued.values():
            for waiter in queue:
                waiter.started.close()
        self._queued.clear()

    async def _run(self, waiter: Waiter, lane: int | None) -> None:
        result: Any = None
        error: Exception | None = None
        try:
            with waiter.scope:
                result = await _rest(waiter.started)
        except Exception as exc:
            error = exc
        finally:
            del self._by_unique[waiter.header[2]]
            # Whoever waits further on may be hurried again: the remote answers.
            self._eager_until_s = trio.current_time() + EAGER_S
            if lane is not None:
                self._leave(lane)
        self._finished(waiter, result, error)

    def _leave(self, lane: int) -> None:
        queue = self._queued.get(lane)
        if queue:
            self._nursery.start_soon(self._run, queue.popleft(), lane)
            return
        self._queued.pop(lane, None)
        self._running[lane] -= 1
        if not self._running[lane]:
            del self._running[lane]
