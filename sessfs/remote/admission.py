"""A bound on the bytes that worker threads hold at once, beside the bound on the threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Hashable

FREE_BYTES = 64 << 10  # smaller bodies do not queue behind large ones: a heartbeat must not wait for segments


class ByteBudget:
    """At most *limit* bytes at once, first come first served; more than *limit* at once goes alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._turn = trio.Lock()
        self._released = trio.Event()

    @property
    def used_bytes(self) -> int:
        """Bytes booked now."""
        return self._used

    async def acquire(self, n_bytes: int) -> None:
        """Wait until *n_bytes* fit, then book them."""
        async with self._turn:
            while self._used and self._used + n_bytes > self._limit:
                self._released = trio.Event()
                await self._released.wait()
            self._used += n_bytes

    def release(self, n_bytes: int) -> None:
        """Give back what was booked."""
        self._used -= n_bytes
        self._released.set()


class Admission:
    """The `limiter` of one trio.to_thread.run_sync call: one of *threads*, and *n_bytes* of *budget*.

    trio gives both back when the thread is done, even if the caller was cancelled long before: what is bounded is what
    really is in memory.
    """

    def __init__(self, threads: trio.CapacityLimiter, budget: ByteBudget, n_bytes: int) -> None:
        self._threads = threads
        self._budget = budget
        self._n_bytes = n_bytes if n_bytes > FREE_BYTES else 0

    async def acquire_on_behalf_of(self, borrower: Hashable) -> None:
        """Called by trio before the thread starts."""
        if self._n_bytes:
            await self._budget.acquire(self._n_bytes)
        try:
            await self._threads.acquire_on_behalf_of(borrower)
        except BaseException:
            self._give_back()
            raise

    def release_on_behalf_of(self, borrower: Hashable) -> None:
        """Called by trio in its own thread after the thread ended."""
        self._threads.release_on_behalf_of(borrower)
        self._give_back()

    def _give_back(self) -> None:
        if self._n_bytes:
            self._budget.release(self._n_bytes)
