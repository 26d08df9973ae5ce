"""Threads that flush files for fsync and answer the kernel themselves: no way back through the request loop.

trio's own way, `to_thread`, costs two hand-overs and 75 µs; here a flush that is done is answered at once, while the
loop serves others. What it means for the inode is told to the loop after that, and at once if it failed.
"""

from __future__ import annotations

import threading
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

THREADS: Final = 8
"""Flushes that are under way at once share the disk's journal commit."""


class Flush(NamedTuple):
    """What a handler returns to have the rest done here: *work* in a thread, then *done* in the loop, with its error or
    None.
    """

    work: Callable[[], None]
    done: Callable[[BaseException | None], None]


class Flushers:
    """The threads, started when they are first needed, and what they have done."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Flush, Callable[[Exception | None], None]] | None] = SimpleQueue()
        self._done: deque[tuple[Flush, Exception | None]] = deque()
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._token = trio.lowlevel.current_trio_token()

    def submit(self, flush: Flush, answer: Callable[[Exception | None], None]) -> None:
        """Have *flush* worked off; *answer* is called in its thread with the error, None for success."""
        self._busy += 1
        if self._busy > len(self._threads) and len(self._threads) < THREADS:
            thread = threading.Thread(target=self._run, name=f"flush {len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put((flush, answer))

    @property
    def is_busy(self) -> bool:
        """True while a flush is under way."""
        return self._busy > len(self._done)

    def settle(self) -> None:
        """In the loop: take in what the threads have done since."""
        while self._done:
            flush, error = self._done.popleft()
            self._busy -= 1
            flush.done(error)

    def close(self) -> None:
        """Have the threads end, each after what it is at, and take in what they did."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self.settle()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            flush, answer = job
            error: Exception | None = None
            try:
                flush.work()
            except Exception as exc:
                error = exc
            self._done.append((flush, error))
            answer(error)
            if error is not None:
                self._token.run_sync_soon(self.settle, idempotent=True)
