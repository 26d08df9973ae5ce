"""When a session was last used: changed by anybody, or a file of it opened by Chrome. A backup or `du` is no use.

The last change is among the session's counters. Opens by Chrome are noted as an xattr of the session's root directory,
which no program sees: it travels with the session and survives the machine. It is renewed once an hour at most, and by
itself makes the session one that has changes once a day at most; with other changes it goes along.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.local.inodes import Inodes

USED_XATTR = b"trusted.sessfs.used"
USED = struct.Struct("<q")
RENEW_S = 3600.0
DAY_NS = 86_400 * 10**9


class LastUse:
    """Notes and tells the last use of each session. The request loop alone."""

    def __init__(
        self,
        inodes: Inodes,
        *,
        clock_ns: Callable[[], int],
        monotonic_s: Callable[[], float],
        is_chrome: Callable[[int], bool],
        on_use: Callable[[Ino], None] = lambda session: None,
    ) -> None:
        """*is_chrome* tells whether the process of that id counts as Chrome; *on_use* is called with each session that
        is used, once an hour at most.
        """
        self._inodes = inodes
        self._clock_ns = clock_ns
        self._monotonic_s = monotonic_s
        self._is_chrome = is_chrome
        self._on_use = on_use
        self._fresh: dict[Ino, float] = {}

    def opened(self, session: Ino, pid: int) -> None:
        """A file of the session was opened by the process *pid*. For all but one open an hour, a look into a
        dictionary.
        """
        now_s = self._monotonic_s()
        if now_s < self._fresh.get(session, 0.0) or session == ROOT_INO or not self._is_chrome(pid):
            return
        self._fresh[session] = now_s + RENEW_S
        self._on_use(session)
        self._note(session, self._clock_ns())

    def _note(self, session: Ino, now_ns: int) -> None:
        root = self._inodes.find(session)
        if root is None or root.nlink == 0:
            return
        before = self._noted(session)
        if now_ns <= before:
            return
        self._inodes.set_xattr(session, USED_XATTR, USED.pack(now_ns))
        changes = self._inodes.changes
        if changes is not None and (session in changes.sessions or now_ns // DAY_NS != before // DAY_NS):
            self._inodes.touch(root)

    def _noted(self, session: Ino) -> int:
        value = self._inodes.find_xattr(session, USED_XATTR)
        return USED.unpack(value)[0] if value is not None and len(value) == USED.size else 0

    def last_use_ns(self, session: Ino) -> int:
        """Time of the last use as far as it is known here, to the hour for opens; 0 when nothing is known."""
        return max(self._inodes.session_counters(session).last_change_ns, self._noted(session))
