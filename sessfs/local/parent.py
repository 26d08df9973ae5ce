"""In a child process: it ends with the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> Callable[[], bool]:
    """In the child: be killed when the process *parent*, which started it, ends. Exits at once if it has ended already.
    The answer tells whether it still lives.
    """

    def lives() -> bool:
        return os.getppid() == parent

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # It may have ended before the call.
    if not lives():
        sys.exit(0)
    return lives
