"""When it counts as quiet."""

from __future__ import annotations

import pytest

from sessfs.vfs.quiet import QUIET_REQUESTS, QUIET_S, Quiet
from tests.support.volumes import Clock


class Meter:
    """What a daemon's count of requests would say."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.total = 1_000
        self.quiet = Quiet(lambda: self.total, self.clock.s)

    def after(self, seconds: float, requests: int) -> bool:
        self.clock.advance(seconds)
        self.total += requests
        return self.quiet.is_quiet()


def test_what_was_before_the_first_question_does_not_count() -> None:
    meter = Meter()
    assert meter.after(0, 100_000)


@pytest.mark.parametrize("step_s", [0.1, 1.0, 2.5])
def test_few_requests_are_quiet_and_many_are_not(step_s: float) -> None:
    meter = Meter()
    meter.after(0, 0)
    each = int(QUIET_REQUESTS / QUIET_S * step_s)
    assert all(meter.after(step_s, int(each * 0.7)) for _ in range(int(20 / step_s)))
    busy = [meter.after(step_s, each * 2) for _ in range(int(20 / step_s))]
    assert not any(busy[int(QUIET_S / step_s) :])


def test_a_burst_is_over_after_a_while() -> None:
    meter = Meter()
    meter.after(0, 0)
    assert not meter.after(1, 5_000)
    seconds = 0
    while not meter.after(1, 0):
        seconds += 1
    assert QUIET_S - 1 <= seconds <= QUIET_S + 1


def test_a_long_time_without_a_question_is_no_burst() -> None:
    meter = Meter()
    meter.after(0, 0)
    meter.after(3600, 50_000)
    assert meter.after(QUIET_S + 1, 0)
