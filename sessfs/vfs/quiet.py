"""Whether those who use the mount leave the machine time for work that can wait."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

QUIET_S: Final = 5.0
QUIET_REQUESTS: Final = 150
"""It is quiet when at most so many requests came in QUIET_S. A Chrome that starts makes thousands, one that is left
alone a few.
"""
SAMPLE_S: Final = 0.5


class Quiet:
    """Watches how many requests come; ask it once a second or so. Before it is first asked, all was quiet."""

    def __init__(self, requests: Callable[[], int], monotonic_s: Callable[[], float]) -> None:
        """*requests* says how many were served so far."""
        self._requests = requests
        self._monotonic_s = monotonic_s
        self._samples: deque[tuple[float, int]] = deque()
        """(time, requests until then), the first one QUIET_S ago, or a little more."""

    def is_quiet(self) -> bool:
        """Whether few requests came lately."""
        now_s, count = self._monotonic_s(), self._requests()
        samples = self._samples
        if not samples or now_s - samples[-1][0] >= SAMPLE_S:
            samples.append((now_s, count))
        while len(samples) > 1 and samples[1][0] <= now_s - QUIET_S:
            samples.popleft()
        return count - samples[0][1] <= QUIET_REQUESTS
