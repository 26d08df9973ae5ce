"""A wall clock that is not trusted blindly: one that jumped far ahead must not make everything expire at once.

Between two looks the wall clock should advance as the monotonic one does; between two mounts it can't be told how long
the machine was off from how far the clock jumped. A state in which nobody has looked at the clock yet, as on an empty
disk, goes by what was there before the mount: what happened since has the time of the clock in question. Whatever more
than JUMP_NS went by unseen, nothing expires until HOLD_S of the monotonic clock later: time for a person to see the
warning, for a clock to be set right, for users who could not come meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sessfs.local.policy import ClockRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.local.policy import PolicyTable

DAY_NS = 86_400 * 10**9
JUMP_NS = 7 * DAY_NS
HOLD_S = 86_400.0


class ClockGuard:
    """Looked at about once an hour."""

    def __init__(self, table: PolicyTable, *, clock_ns: Callable[[], int], monotonic_s: Callable[[], float]) -> None:
        self._table = table
        self._clock_ns = clock_ns
        self._monotonic_s = monotonic_s
        self._mono_s: float | None = None
        self.began_ns = clock_ns()
        """What the clock said when the mount began."""
        self.reason: str | None = None
        """Why nothing may expire now, None while the clock is trusted."""

    @property
    def has_looked(self) -> bool:
        """True once anybody has looked at the clock, in this mount or in one before."""
        return self._table.clock() is not None

    def look(self, known_ns: int | None = None) -> int:
        """The time now; `reason` says whether to trust it. *known_ns* is for a state that `has_looked` never: the last
        that is known to have happened before the mount, 0 when that is not known, None when nothing has.
        """
        now_ns, mono_s = self._clock_ns(), self._monotonic_s()
        record = self._table.clock()
        seen_ns = record.seen_ns if record is not None else now_ns if known_ns is None else known_ns
        hold_s = float(record.hold_s) if record is not None else 0.0
        if self._mono_s is not None:
            hold_s = max(hold_s - (mono_s - self._mono_s), 0.0)
            seen_ns += int((mono_s - self._mono_s) * 1e9)
        self._mono_s = mono_s
        unseen_ns = now_ns - seen_ns
        if unseen_ns > JUMP_NS:
            hold_s = HOLD_S
        self._table.set_clock(ClockRecord(now_ns, int(hold_s)))
        self.reason = (
            f"the clock went ahead by more than {JUMP_NS // DAY_NS} days unseen, or the mount was away so long: "
            f"nothing expires for another {hold_s / 3600:.0f} h, unless `sessfs expire --trust-clock` is called"
            if hold_s > 0
            else None
        )
        return now_ns

    def trust(self) -> None:
        """A person says that the clock is right."""
        self._table.set_clock(ClockRecord(self._clock_ns(), 0))
        self.reason = None
