"""A trio run in a thread of its own, for tests that are not async: state machines."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

T = TypeVar("T")


class Task(Generic[T]):
    """Something under way in the loop."""

    def __init__(self) -> None:
        self._done = trio.Event()
        self._result: list[T] = []
        self._error: BaseException | None = None

    async def run(self, function: Callable[..., Awaitable[T]], *args: Any) -> None:
        try:
            self._result.append(await function(*args))
        except Exception as exc:
            self._error = exc
        finally:
            self._done.set()

    async def wait(self) -> T:
        """What it returns or raises."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result[0]


class Held(Generic[T]):
    """An async context that is kept open."""

    def __init__(self, context: AbstractAsyncContextManager[T]) -> None:
        self._context = context
        self._leave = trio.Event()
        self._entered = trio.Event()
        self.value: T

    async def run(self) -> None:
        try:
            async with self._context as self.value:
                self._entered.set()
                await self._leave.wait()
        finally:
            self._entered.set()

    async def entered(self) -> T:
        await self._entered.wait()
        return self.value

    def leave(self) -> None:
        """Let it end; its Task tells how."""
        self._leave.set()


class TrioThread:
    """`call` runs something in the loop and returns what it does; `hold` keeps an async context open across calls."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = threading.Thread(target=trio.run, args=(self._main,), daemon=True)
        self._thread.start()
        self._ready.wait()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        async with trio.open_nursery() as self._nursery:
            self._ready.set()
            await self._stop.wait()

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run the async *function* in the loop."""
        return trio.from_thread.run(function, *args, trio_token=self._token)

    def do(self, function: Callable[..., T], *args: Any) -> T:
        """Run the plain *function* in the loop, between two of its steps."""
        return trio.from_thread.run_sync(function, *args, trio_token=self._token)

    def start(self, function: Callable[..., Awaitable[T]], *args: Any) -> Task[T]:
        """Begin the async *function* and let it go as far as it gets; to be waited for later."""
        return self.call(self._start, function, *args)

    async def _start(self, function: Callable[..., Awaitable[T]], *args: Any) -> Task[T]:
        task: Task[T] = Task()
        self._nursery.start_soon(task.run, function, *args)
        await trio.lowlevel.checkpoint()
        return task

    def hold(self, context: AbstractAsyncContextManager[T]) -> tuple[T, Callable[[], None]]:
        """Enter *context*; what it gives, and a function that leaves it, raising what leaving raises."""
        held = self.do(Held, context)
        task = self.start(held.run)
        try:
            value = self.call(held.entered)
        except AttributeError:
            self.call(task.wait)
            raise

        def leave() -> None:
            self.do(held.leave)
            self.call(task.wait)

        return value, leave

    def end(self) -> None:
        """End the run; everything must have been left."""
        self.do(self._stop.set)
        self._thread.join()
