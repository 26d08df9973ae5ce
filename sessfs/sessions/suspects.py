"""Sessions of which a read failed, or that were found damaged: named until a check finds them good.

Who reads an error may have begun anew: Chrome does so with a database. So the last snapshot from before is kept.

The note is an xattr of the session's root: it travels with the session, and outlives the mount.
"""

from __future__ import annotations

import logging
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from sessfs.sessions.usage import iter_sessions, rfc3339
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.local.inodes import Inodes

log = logging.getLogger(__name__)
SUSPECT_XATTR = b"trusted.sessfs.suspect"
SINCE = struct.Struct("<q")
WHY_MAX_BYTES = 400
NAMED_MAX = 10


class Suspect(NamedTuple):
    """*since_ns*: when it was first found, ns since 1970."""

    since_ns: int
    why: str


class Suspects:
    """The request loop alone; `learn` in the daemon's nursery."""

    def __init__(self, inodes: Inodes, *, clock_ns: Callable[[], int], may_note: Callable[[], bool]) -> None:
        """*may_note*: whether the volume may be changed now."""
        self._inodes = inodes
        self._clock_ns = clock_ns
        self._may_note = may_note
        self._known: set[Ino] = set()

    async def learn(self) -> None:
        """At a start: see which there are."""
        async for _, session in iter_sessions(self._inodes):
            self.loaded(session)

    def loaded(self, session: Ino) -> None:
        """The session's tree has come from the remote, and its note with it."""
        if self.find(session) is not None:
            self._known.add(session)

    def find(self, session: Ino) -> Suspect | None:
        """The session's note, None if it has none. Costs a look-up."""
        value = self._inodes.find_xattr(session, SUSPECT_XATTR)
        if value is None or len(value) < SINCE.size:
            return None
        return Suspect(SINCE.unpack_from(value)[0], value[SINCE.size :].decode(errors="replace"))

    def since_ns(self, session: Ino) -> int | None:
        """See History: what was taken before that is from before anything was found."""
        found = self.find(session)
        return found.since_ns if found is not None else None

    def note(self, session: Ino, why: str) -> None:
        """Something of the session is damaged or gone, and may have been read so. The first note stays."""
        if session == ROOT_INO or session in self._known or not self._may_note():
            return
        root = self._inodes.find(session)
        if root is None or root.nlink == 0:
            return
        self._known.add(session)
        if self.find(session) is not None:
            return
        text = why.encode()[:WHY_MAX_BYTES]
        self._inodes.set_xattr(session, SUSPECT_XATTR, SINCE.pack(self._clock_ns()) + text)
        self._inodes.touch(root)
        name = (self._inodes.find_session_name(session) or b"?").decode(errors="replace")
        log.error("session %s is suspect until `sessfs check` finds it good: %s", name, why)

    def clear(self, session: Ino) -> None:
        """A check found the session good."""
        self._known.discard(session)
        root = self._inodes.find(session)
        if root is None or self.find(session) is None:
            return
        self._inodes.delete_xattr(session, SUSPECT_XATTR)
        self._inodes.touch(root)

    def replaced(self, old: Ino, new: Ino) -> None:
        """The session goes on under another inode, with the notes of the old one."""
        self._known.discard(old)
        self.loaded(new)

    def _named(self) -> list[tuple[str, Suspect]]:
        found = []
        for session in list(self._known):
            name, suspect = self._inodes.find_session_name(session), self.find(session)
            if name is None or suspect is None:
                self._known.discard(session)
            else:
                found.append((name.decode(errors="replace"), suspect))
        return sorted(found)

    def report(self) -> list[dict[str, Any]]:
        """For `status`."""
        return [{"session": name, "since": rfc3339(one.since_ns), "reason": one.why} for name, one in self._named()]

    def warnings(self) -> list[str]:
        """What a person should know."""
        found = self._named()
        if not found:
            return []
        names = ", ".join(name for name, _ in found[:NAMED_MAX])
        more = f" and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else ""
        name, one = found[0]
        return [
            f"{names}{more}: something could not be read, and Chrome may have made it anew ({name}, "
            f"{rfc3339(one.since_ns)}: {one.why}); `sessfs check` says what is whole, the last good snapshot is kept"
        ]
