"""The errno boundary: whatever a handler raises becomes an errno for that one call; the mount lives on.

Handlers are coroutines that the request loop runs by hand, without a task of their own, until they say `in_task`.
"""

from __future__ import annotations

import builtins
import errno
import logging
import os
import types
from typing import TYPE_CHECKING, Final, TypeVar

from pyfuse3 import FUSEError

from sessfs.errors import PosixError, SessfsError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

F = TypeVar("F", bound="Callable[..., object]")

log = logging.getLogger(__name__)
FAULT_VARIABLE = "SESSFS_TEST_FAULT"
_MARK: Final = "sessfs_handler"


class NeedsTask:
    """What a handler that can't go on without a task of its own hands to the request loop. Of the requests of one
    *lane* only some have a task at a time, and the others queue.
    """

    __slots__ = ("lane",)

    def __init__(self, lane: int | None) -> None:
        self.lane = lane


NEEDS_TASK: Final = NeedsTask(None)


class Faults:
    """What tests ask for by SESSFS_TEST_FAULT=<handler>:<exception>:<count>: the first *count* calls fail so."""

    def __init__(self, spec: str) -> None:
        handler, name, count = spec.split(":")
        self._handler = handler
        self._exception: type[Exception] = getattr(builtins, name)
        self._left = int(count)

    def hit(self, handler: str) -> None:
        """Raise the fault, if it is *handler*'s turn."""
        if handler == self._handler and self._left > 0:
            self._left -= 1
            if issubclass(self._exception, UnicodeDecodeError):
                raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "asked for by a test")
            raise self._exception("asked for by a test")


def faults_from_environment() -> Faults | None:
    """The faults asked for, or None."""
    spec = os.environ.get(FAULT_VARIABLE)
    return Faults(spec) if spec else None


def handler(function: F) -> F:
    """Mark one handler, a coroutine function: the request loop counts its calls, guards and answers them."""
    function.__dict__.setdefault(_MARK, "reads")
    return function


def changing(function: F) -> F:
    """`handler`, for a handler that changes the tree: EROFS while the volume is read-only."""
    function.__dict__[_MARK] = "changes"
    return handler(function)


def is_handler(function: object) -> bool:
    """True for what `handler` or `changing` marked."""
    return hasattr(function, _MARK)


def is_changing(function: object) -> bool:
    """True for what `changing` marked."""
    return getattr(function, _MARK, "") == "changes"


@types.coroutine
def in_task(lane: int | None = None) -> Generator[object, None, None]:
    """Await this before anything that may make a handler wait. What comes after runs in a task of its own, so the
    state that was looked at before may be another. It may be cancelled wherever it waits, when whoever asked gets a
    signal: what was changed by then stays. *lane* is for what may wait for long, and be much: the session.
    """
    yield NEEDS_TASK if lane is None else NeedsTask(lane)


def errno_of(exc: BaseException, call: str) -> int:
    """The errno that answers a call whose handler raised *exc*; a bug, or a failing disk, goes to the log under what
    *call* says.
    """
    if isinstance(exc, FUSEError):
        return int(exc.errno)
    if isinstance(exc, PosixError):
        return exc.errno
    if isinstance(exc, SessfsError):
        log.error("%s: %s", call, exc)
        return exc.errno
    if isinstance(exc, OSError):
        log.error("%s: the state directory's filesystem failed", call, exc_info=exc)
        return errno.ENOSPC if exc.errno == errno.ENOSPC else errno.EIO
    log.error("bug in %s", call, exc_info=exc)
    return errno.EIO
