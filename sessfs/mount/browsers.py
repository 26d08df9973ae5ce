"""Which processes are Chrome, by the program that they run."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

KEPT_S = 10.0
"""A process id is not given to another process so soon, and a process seldom becomes another program."""
KEPT_MAX = 4096
COMM_BYTES = 15
"""The kernel keeps that much of a command's name."""


class Browsers:
    """Tells Chrome's processes from others. The request loop alone; a process is looked at once in ten seconds."""

    def __init__(self, names: Collection[str], monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._names = frozenset(names)
        self._short = frozenset(name[:COMM_BYTES] for name in names)
        self._monotonic_s = monotonic_s
        self._known: dict[int, tuple[float, bool]] = {}

    def is_chrome(self, pid: int) -> bool:
        """True when the process, or thread, of that id runs one of the programs; also when nothing can be known of it,
        because it has ended or is in a container of its own.
        """
        now = self._monotonic_s()
        known = self._known.get(pid)
        if known is not None and now < known[0]:
            return known[1]
        if len(self._known) >= KEPT_MAX:
            self._known.clear()
        answer = self._look(pid)
        self._known[pid] = (now + KEPT_S, answer)
        return answer

    def _look(self, pid: int) -> bool:
        try:
            program = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
            return os.path.basename(program) in self._names
        except PermissionError:
            return self._command(pid) in self._short
        except OSError:
            return True

    def _command(self, pid: int) -> str:
        """The command's name of another user's process: of its first thread, since threads have names of their own."""
        try:
            with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
                group = next((line.split()[1] for line in status if line.startswith("Tgid:")), str(pid))
            with open(f"/proc/{group}/comm", encoding="utf-8", errors="replace") as comm:
                return comm.read().rstrip("\n")
        except OSError:
            return next(iter(self._short), "")
