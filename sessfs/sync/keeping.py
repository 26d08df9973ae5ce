"""Which snapshots are kept, as restic's `forget` has it: the last ones, and the newest of each hour and each day."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

HOUR_NS = 3600 * 10**9
DAY_NS = 24 * HOUR_NS


class Policy(NamedTuple):
    """How many of each to keep; hours and days are those of UTC. The newest snapshot is kept in any case."""

    last: int = 10
    hourly: int = 24
    daily: int = 7

    def choose(self, snapshots: Sequence[tuple[int, int]]) -> set[int]:
        """The sequences to keep of (sequence, taken_ns), oldest first."""
        newest_first = sorted(snapshots, reverse=True)
        kept = {sequence for sequence, _ in newest_first[: max(self.last, 1)]}
        for count, unit_ns in ((self.hourly, HOUR_NS), (self.daily, DAY_NS)):
            seen: set[int] = set()
            for sequence, taken_ns in newest_first:
                if len(seen) == count:
                    break
                if taken_ns // unit_ns not in seen:
                    seen.add(taken_ns // unit_ns)
                    kept.add(sequence)
        return kept
