"""Do a few things at once, and raise what went wrong as it is, not in an exception group."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

import trio

from sessfs.errors import SessfsError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

T = TypeVar("T")
PARALLEL = 16


async def for_each(
    items: AsyncGenerator[T, None], work: Callable[[T], Awaitable[None]], parallel: int = PARALLEL
) -> None:
    """Do *work* on each item, up to *parallel* at once. The first SessfsError, also of *items*, ends it, raised."""
    failures: list[SessfsError] = []
    async with trio.open_nursery() as nursery:
        send, receive = trio.open_memory_channel[T](0)

        async def worker() -> None:
            async for item in receive:
                try:
                    await work(item)
                except SessfsError as exc:
                    failures.append(exc)
                    nursery.cancel_scope.cancel()

        for _ in range(parallel):
            nursery.start_soon(worker)
        async with send, aclosing(items):
            try:
                async for item in items:
                    await send.send(item)
            except SessfsError as exc:
                failures.append(exc)
                nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]


async def over(items: Iterable[T]) -> AsyncGenerator[T, None]:
    """*items*, for `for_each`."""
    for item in items:
        yield item
