"""Threads that flush files for fsync and answer the kernel themselves: no way back through the request loop.

trio's own way, `to_thread`, costs two hand-overs and 75 µs; here a flush that is done is answered at once, while the
loop serves others. What it means for the inode is told to the loop after that, and at once if it failed.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    Answer = Callable[[Exception | None], None]

log = logging.getLogger(__name__)
THREADS: Final = 8
"""Flushes that are under way at once share the disk's journal commit."""


class Flush(NamedTuple):
    """What a handler returns to have the rest done here: *work* in a thread, then *done* in the loop, with its error or
    None.
    """

    work: Callable[[], None]
    done: Callable[[BaseException | None], None]


class _Flusher:
    """One thread, which sleeps until it is given a job; None ends it. Each has a queue of its own: of several threads
    that wait at one, the first to be woken wakes the next for nothing, which takes as long as a small request.
    """

    def __init__(self, pool: Flushers, number: int) -> None:
        self.jobs: SimpleQueue[tuple[Flush, Answer] | None] = SimpleQueue()
        self.thread = threading.Thread(target=pool.work, args=(self,), name=f"flush {number}", daemon=True)
        self.thread.start()


class Flushers:
    """The threads, started when they are first needed, and what they have done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        """Held to change _idle and _backlog, of which one is empty."""
        self._idle: list[_Flusher] = []
        """The last to have fallen asleep is the first to be woken: what it needs is still in the CPU's caches."""
        self._backlog: deque[tuple[Flush, Answer]] = deque()
        self._done: deque[tuple[Flush, Exception | None]] = deque()
        self._flushers: list[_Flusher] = []
        self._busy = 0
        self._token = trio.lowlevel.current_trio_token()

    def submit(self, flush: Flush, answer: Answer) -> None:
        """Have *flush* worked off; *answer* is called in its thread with the error, None for success. Where there is no
        thread to be had, that is this one.
        """
        self._busy += 1
        with self._lock:
            flusher = self._idle.pop() if self._idle else self._start()
            if flusher is None and self._flushers:
                self._backlog.append((flush, answer))
                return
        if flusher is None:
            self._flush(flush, answer)
        else:
            flusher.jobs.put((flush, answer))

    def _start(self) -> _Flusher | None:
        """One more thread; None when there are enough, or the system has none left."""
        if len(self._flushers) >= THREADS:
            return None
        try:
            flusher = _Flusher(self, len(self._flushers))
        except RuntimeError as exc:
            log.warning("no thread for another flush: %s", exc)
            return None
        self._flushers.append(flusher)
        return flusher

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
        """Have the threads end, each after what is still to be flushed, and take in what they did."""
        for flusher in self._flushers:
            flusher.jobs.put(None)
        for flusher in self._flushers:
            flusher.thread.join()
        self.settle()

    def work(self, flusher: _Flusher) -> None:
        """The life of a flusher's thread."""
        while (job := flusher.jobs.get()) is not None:
            while job is not None:
                self._flush(*job)
                with self._lock:
                    job = self._backlog.popleft() if self._backlog else None
                    if job is None:
                        self._idle.append(flusher)

    def _flush(self, flush: Flush, answer: Answer) -> None:
        error: Exception | None = None
        try:
            flush.work()
        except Exception as exc:
            error = exc
        self._done.append((flush, error))
        answer(error)
        if error is not None:
            self._token.run_sync_soon(self.settle, idempotent=True)
