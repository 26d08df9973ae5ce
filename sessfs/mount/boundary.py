"""The errno boundary: whatever a handler raises becomes an errno for that one call; the mount lives on.

pyfuse3 ends its main loop, and with it the mount, on any exception but FUSEError.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import logging
import os
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

import pyfuse3

from sessfs.errors import PosixError, SessfsError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Coroutine

    class Guarded(Protocol):
        """What the boundary needs of the object whose handlers it wraps."""

        requests: Counter[str]
        faults: Faults | None

        def read_only_reason(self) -> str | None:
            """Why nothing may be changed, None while it may."""


S = TypeVar("S", bound="Guarded")
P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)
FAULT_VARIABLE = "SESSFS_TEST_FAULT"


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


def unanswered(
    function: Callable[Concatenate[S, P], Coroutine[Any, Any, None]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, None]]:
    """`handler`, for a request that the kernel wants no answer to: whatever goes wrong is logged, and that is all."""
    guarded = handler(function)

    async def swallowed(self: S, /, *args: P.args, **kwargs: P.kwargs) -> None:
        with contextlib.suppress(pyfuse3.FUSEError):
            await guarded(self, *args, **kwargs)

    functools.update_wrapper(swallowed, function)
    return swallowed


def changing(
    function: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """`handler`, for a handler that changes the tree: EROFS while the volume is read-only."""

    async def refused(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self.read_only_reason() is not None:
            raise pyfuse3.FUSEError(errno.EROFS)
        return await function(self, *args, **kwargs)

    functools.update_wrapper(refused, function)
    return handler(refused)


def handler(
    function: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Wrap one handler of `Operations` in the boundary."""
    name = function.__name__

    async def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.requests[name] += 1
        try:
            if self.faults is not None:
                self.faults.hit(name)
            return await function(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except PosixError as exc:
            raise pyfuse3.FUSEError(exc.errno) from None
        except SessfsError as exc:
            log.error("%s%s: %s", name, _first(args), exc)
            raise pyfuse3.FUSEError(exc.errno) from None
        except OSError as exc:
            log.exception("%s%s: the state directory's filesystem failed", name, _first(args))
            raise pyfuse3.FUSEError(errno.ENOSPC if exc.errno == errno.ENOSPC else errno.EIO) from None
        except Exception:
            log.exception("bug in %s%s", name, _first(args))
            raise pyfuse3.FUSEError(errno.EIO) from None

    functools.update_wrapper(guarded, function)
    return guarded


def _first(args: tuple[object, ...]) -> str:
    """What the call was about, without file contents."""
    return "(" + ", ".join(repr(a) for a in args if isinstance(a, int) or (isinstance(a, bytes) and len(a) < 256)) + ")"
