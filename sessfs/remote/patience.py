"""Waiting for a remote that does not answer, for as long as it takes: for whoever reads what only the remote has.

An error would be taken for an answer: Chrome makes a database that it can't read anew, and the login in it is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import trio

from sessfs.errors import Fenced, KeyWrong, RemoteCorrupt, RemoteError, RemoteMissing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sessfs.types import Ino

T = TypeVar("T")
PAUSE_MIN_S = 0.5
PAUSE_MAX_S = 5.0
"""From one try to the next while nothing is answered, of all who wait together."""
WAITS_S = 5.0
"""A request that was answered sooner has not waited."""
ANSWERS = (RemoteCorrupt, RemoteMissing, KeyWrong, Fenced)
"""Errors that say what is the matter with what was asked for; the others of the remote leave that unknown."""


class Patience:
    """Who waits, and when they try again. The request loop alone; `run` in the daemon's nursery."""

    def __init__(self, wait_answer: Callable[[], Awaitable[None]]) -> None:
        """*wait_answer* returns when the remote has answered anything."""
        self._wait_answer = wait_answer
        self._answers = 0
        """Rises whenever it is worth trying for all who wait."""
        self._changed = trio.Event()
        self._is_probing = False
        self._pause_s = PAUSE_MIN_S
        self._asked: dict[int, tuple[Ino, float]] = {}
        """What is under way, by number: for which session, and since when."""
        self._next = 0

    async def run(self) -> None:
        """For ever: have all try again once the remote has answered somebody else."""
        while True:
            await self._wait_answer()
            self._answered()
            await trio.sleep(PAUSE_MIN_S)

    async def persist(self, session: Ino, attempt: Callable[[], Awaitable[T]]) -> T:
        """What *attempt* returns, which is made again, for the session, until the remote answers. It must be safe to
        cancel. Of all who wait only one tries while nothing is answered: a remote that comes back is not met by
        thousands. Raises what *attempt* raises; of RemoteError only what is one of ANSWERS.
        """
        number = self._next
        self._next += 1
        self._asked[number] = (session, trio.current_time())
        try:
            return await attempt()
        except RemoteError as exc:
            if isinstance(exc, ANSWERS):
                raise
            return await self._persist(attempt)
        finally:
            del self._asked[number]

    async def _persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        while True:
            is_probe = await self._wait()
            try:
                result = await attempt()
            except RemoteError as exc:
                if isinstance(exc, ANSWERS):
                    self._answered()
                    raise
                self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S)
            else:
                self._pause_s = PAUSE_MIN_S
                self._answered()
                return result
            finally:
                if is_probe:
                    self._end_probe()

    async def _wait(self) -> bool:
        """Return when it is worth trying, or somebody must: True for the one who does."""
        seen = self._answers
        while self._is_probing:
            await self._changed.wait()
            if self._answers != seen:
                return False
        self._is_probing = True
        try:
            with trio.move_on_after(self._pause_s):
                while self._answers == seen:
                    await self._changed.wait()
        except BaseException:
            self._end_probe()
            raise
        return True

    def _answered(self) -> None:
        self._answers += 1
        self._wake()

    def _end_probe(self) -> None:
        self._is_probing = False
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def waiting(self) -> dict[Ino, tuple[int, float]]:
        """By session: how many requests have waited for the remote for WAITS_S or longer, and for how many seconds the
        longest has.
        """
        now_s = trio.current_time()
        found: dict[Ino, tuple[int, float]] = {}
        for session, since_s in self._asked.values():
            if now_s - since_s >= WAITS_S:
                count, longest_s = found.get(session, (0, 0.0))
                found[session] = count + 1, max(longest_s, now_s - since_s)
        return found
