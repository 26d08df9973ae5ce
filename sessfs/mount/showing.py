"""Long work that somebody watches through the control socket, or waits for."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from sessfs.errors import RemoteUnavailable
from sessfs.mount.repository import ANSWER_DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sessfs.mount.control import Progress
    from sessfs.remote.retrying import HealthReport

T = TypeVar("T")
SHOW_S = 0.25
WATCH_S = 0.5


async def while_showing(
    progress: Progress | None, step: Callable[[], dict[str, Any]], work: Callable[[], Awaitable[T]]
) -> T:
    """What *work* returns; meanwhile *progress*, if there is one, is told what *step* says. Raises what *work* raises.
    The work goes on when nobody listens any more.
    """

    async def show(listener: Progress, _scope: trio.CancelScope) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await listener(step())
                await trio.sleep(SHOW_S)

    results = await _beside(None if progress is None else partial(show, progress), work)
    return results[0]


async def while_answering(health: Callable[[], HealthReport], work: Callable[[], Awaitable[T]]) -> T:
    """What *work* returns, which must be safe to cancel at any moment: it is when the remote, whose *health* this is,
    has answered nothing for ANSWER_DEADLINE_S in a row meanwhile. Raises RemoteUnavailable then, with the reason, and
    what *work* raises. While the remote answers it may take as long as it needs.
    """
    start_s = trio.current_time()
    away: HealthReport | None = None

    async def watch(scope: trio.CancelScope) -> None:
        nonlocal away
        while True:
            await trio.sleep(WATCH_S)
            report = health()
            # Time before the call does not count: that the remote is back may not have been noticed yet.
            away_s = min(report.for_s, trio.current_time() - start_s)
            if report.state == "degraded" and away_s >= ANSWER_DEADLINE_S:
                away = report
                scope.cancel()

    results = await _beside(watch, work)
    if results:
        return results[0]
    assert away is not None
    raise RemoteUnavailable(f"the remote has not answered for {away.for_s:.0f} s: {away.error}")


async def _beside(
    other: Callable[[trio.CancelScope], Awaitable[None]] | None, work: Callable[[], Awaitable[T]]
) -> list[T]:
    """What *work* returns, alone in a list; *other* runs meanwhile, and may cancel the scope that both are in: then the
    list is empty. Raises what *work* raises.
    """
    results: list[T] = []
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        if other is not None:
            nursery.start_soon(other, nursery.cancel_scope)
        try:
            results.append(await work())
        except Exception as exc:
            # Raised outside, or the nursery would put it into a group, which no `except` of ours looks into.
            failed = exc
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return results
