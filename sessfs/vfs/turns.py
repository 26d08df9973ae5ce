"""Long work in the request loop, in steps: requests and other tasks get their turn between two of them."""

from __future__ import annotations

import time
from typing import Final

import trio

SLICE_S: Final = 0.004
"""So long work goes on before others have their turn; a step of it may take as long again."""


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
