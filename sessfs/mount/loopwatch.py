"""For tests: who holds the request loop, so that nothing else has its turn, for longer than is allowed.

Measured is the CPU time of the loop's thread between two points where other tasks, or the next request, get their turn:
a machine that is busy otherwise makes no difference. Who it was is seen by a thread that looks at the stack meanwhile.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Final

from trio.abc import Instrument
from trio.lowlevel import add_instrument, remove_instrument

from sessfs.vfs.turns import ALLOWED

if TYPE_CHECKING:
    from types import FrameType

    from trio.lowlevel import Task

log = logging.getLogger(__name__)
LIMIT_VARIABLE: Final = "SESSFS_TEST_LOOP_MS"
MARK: Final = "the request loop was held"
LOOK_S: Final = 0.005
SHOWN_FRAMES: Final = 14
KEPT: Final = 12


class LoopWatch(Instrument):
    """Started and stopped in the loop's thread."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._allowed: list[tuple[str, float]] = []
        self._thread = threading.get_ident()
        self._began_s = time.thread_time()
        self._steps = 0
        self._seen: list[str] = []
        self._ends = threading.Event()
        self._looker = threading.Thread(target=self._look, name="loop watch", daemon=True)

    def start(self) -> None:
        """From here on."""
        ALLOWED.set(self._allowed)
        add_instrument(self)
        self._looker.start()

    def stop(self) -> None:
        """Nobody waits for the loop any more."""
        remove_instrument(self)
        self._ends.set()

    def before_task_step(self, task: Task) -> None:
        """See Instrument."""
        self._begin()

    def after_task_step(self, task: Task) -> None:
        """See Instrument."""
        self.turn(task.name)

    def turn(self, what: str) -> None:
        """The next request has its turn; *what* went on until now."""
        took_s = time.thread_time() - self._began_s
        allowed_s = self._limit_s + sum(seconds for _, seconds in self._allowed)
        if took_s > allowed_s:
            stacks = "\n".join(f"--- {stack}" for stack in self._seen) or "it was over before anybody looked"
            log.error("%s for %.0f ms (allowed: %.0f) in %s\n%s", MARK, took_s * 1e3, allowed_s * 1e3, what, stacks)
        elif self._allowed and took_s > self._limit_s:
            names = ", ".join(name for name, _ in self._allowed)
            log.info("at once: %s, %.0f ms (allowed: %.0f)", names, took_s * 1e3, allowed_s * 1e3)
        self._begin()

    def _begin(self) -> None:
        self._steps += 1
        if self._seen:
            self._seen = []
        if self._allowed:
            self._allowed.clear()
        self._began_s = time.thread_time()

    def _look(self) -> None:
        """In the thread: note where the loop is, where it has been at one step for a while."""
        step = -1
        while not self._ends.wait(LOOK_S):
            if step == self._steps and len(self._seen) < KEPT:
                frame: FrameType | None = sys._current_frames().get(self._thread)
                stack = "".join(traceback.format_stack(frame)[-SHOWN_FRAMES:])
                if step == self._steps:
                    self._seen.append(stack)
            step = self._steps


def watch_from_environment() -> LoopWatch | None:
    """The watch that is asked for, or None."""
    limit = os.environ.get(LIMIT_VARIABLE)
    return LoopWatch(float(limit) / 1e3) if limit else None
