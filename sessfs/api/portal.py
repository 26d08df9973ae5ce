"""A trio run in a thread of its own, in which one thing is held open: what is asynchronous, for a synchronous API."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

import trio

from sessfs.errors import SessfsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

T = TypeVar("T")
HeldT = TypeVar("HeldT")


class Portal(Generic[HeldT]):
    """Holds what an async context gives until `close`. Any thread may call; calls run concurrently in the loop."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[HeldT]], what: str) -> None:
        """Enter the context that *make* gives in the loop, and return then; raises what entering raises. *what* names
        it in errors.
        """
        self._make = make
        self._what = what
        self._entered = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._leave: trio.Event | None = None
        self._held: list[HeldT] = []
        self._failure: BaseException | None = None
        # A daemon: a program that forgets to close must end all the same, as after a kill.
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)
        self._thread.start()
        self._entered.wait()
        if not self._held:
            self._thread.join()
            self._raise_failure()

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as exc:
            self._failure = _single(exc)
        finally:
            self._entered.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._leave = trio.Event()
        async with self._make() as held:
            self._held.append(held)
            self._entered.set()
            await self._leave.wait()

    @property
    def held(self) -> HeldT:
        """What is held open; to be touched in the loop alone."""
        return self._held[0]

    def call(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Run the async *function* in the loop; return or raise what it does. Raises UsageError after `close`."""
        try:
            return trio.from_thread.run(function, *args, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled) as exc:
            self._raise_failure()
            raise UsageError(f"{self._what} is closed: open it again") from exc

    def do(self, function: Callable[..., T], *args: object) -> T:
        """Run the plain *function* in the loop, between two of its steps. As `call`."""
        try:
            return trio.from_thread.run_sync(function, *args, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled) as exc:
            self._raise_failure()
            raise UsageError(f"{self._what} is closed: open it again") from exc

    def close(self) -> None:
        """Leave the context, and raise what leaving it raises, or what ended it before. Closing again does nothing."""
        if self._leave is None:
            return
        leave, self._leave = self._leave, None
        with contextlib.suppress(trio.RunFinishedError):
            trio.from_thread.run_sync(leave.set, trio_token=self._token)
        self._thread.join()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            if isinstance(failure, SessfsError | OSError | KeyboardInterrupt):
                raise failure
            raise SessfsError(f"{self._what} ended: {failure!r}") from failure


def _single(error: BaseException) -> BaseException:
    """What a group of one holds."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
