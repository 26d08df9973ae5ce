"""Background work that outlives its errors: the mount must not end with it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from sessfs.errors import SessfsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)
RESTART_S = 5.0


async def failure_of(work: Callable[[], Awaitable[object]]) -> str:
    """Do *work* for somebody who waits for it: why it failed, empty when it did not. Raises nothing: what nobody has
    thought of goes to the log, too.
    """
    try:
        await work()
    except SessfsError as exc:
        return str(exc) or repr(exc)
    except Exception as exc:
        log.exception("bug in work that somebody waits for")
        return f"bug in the daemon: {exc!r}; see its log"
    return ""


async def keep_going(work: Callable[[], Awaitable[None]]) -> None:
    """Do *work* to its end. An error that it does not know goes to the log, and it begins anew after a pause: nobody
    has been told that it succeeded. Whom others wait for sees to it by itself that they hear of an error.
    """
    while True:
        try:
            return await work()
        except Exception:
            log.exception("background work failed, and begins anew in %.0f s", RESTART_S)
        await trio.sleep(RESTART_S)
