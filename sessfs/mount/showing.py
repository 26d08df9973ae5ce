"""Long work that somebody watches through the control socket."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sessfs.mount.control import Progress

T = TypeVar("T")
SHOW_S = 0.25


async def while_showing(
    progress: Progress | None, step: Callable[[], dict[str, Any]], work: Callable[[], Awaitable[T]]
) -> T:
    """What *work* returns; meanwhile *progress*, if there is one, is told what *step* says. Raises what *work* raises.
    The work goes on when nobody listens any more.
    """

    async def show(listener: Progress) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await listener(step())
                await trio.sleep(SHOW_S)

    results: list[T] = []
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        if progress is not None:
            nursery.start_soon(show, progress)
        try:
            results.append(await work())
        except Exception as exc:
            # Raised outside, or the nursery would put it into a group, which no `except` of ours looks into.
            failed = exc
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed
    return results[0]
