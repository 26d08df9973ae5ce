"""Long work in the request loop, in steps: requests and other tasks get their turn between two of them."""

from __future__ import annotations

import time
from typing import Final

import trio

SLICE_S: Final = 0.004
"""So long work goes on before others have their turn; a step of it may take as long again."""
ALLOWED_MAX: Final = 1000
AT_ONCE_S: Final = 150e-6
"""What must be of one instant, as the cut of a session, takes this much CPU time for each file at most; see at_once."""
ALLOWED: Final = trio.lowlevel.RunVar[list[tuple[str, float]]]("allowed at once")
"""What has been done at once in the step that is going on, and how many seconds it may have taken: set by the watch of
the tests, which empties it.
"""


def at_once(what: str, items: int) -> None:
    """What goes on in this step must be of one instant, and is about so many *items*, files or records: nobody else has
    a turn for as long as it takes. In a trio run.
    """
    try:
        allowed = ALLOWED.get()
    except LookupError:
        # Nobody watches.
        return
    allowed.append((what, items * AT_ONCE_S))
    if len(allowed) > ALLOWED_MAX:
        allowed.clear()


class Turns:
    """Of one piece of work. What it has looked at before a turn may be another after it."""

    __slots__ = ("_ends_s",)

    def __init__(self) -> None:
        self._ends_s = time.monotonic() + SLICE_S

    @property
    def is_over(self) -> bool:
        """True once it is time for the others."""
        return time.monotonic() >= self._ends_s

    async def take(self) -> None:
        """Let the others run if it is time for that; else costs as little as a look at the clock."""
        if time.monotonic() >= self._ends_s:
            await trio.lowlevel.checkpoint()
            self._ends_s = time.monotonic() + SLICE_S
