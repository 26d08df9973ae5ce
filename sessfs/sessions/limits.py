"""Limits: how many sessions, how many in use at once, and how much each may hold.

What each operation gets, always EDQUOT:

- *max_sessions*: making one more top-level directory.
- *max_active*: making a name in a session, or opening a file of it, while none of its files is open and that many other
  sessions have open files. A session that was let in keeps its place for ADMITTED_S, since Chrome makes its lock before
  it opens anything. Reading by others than Chrome is never refused.
- *max_session_bytes*, *max_unique_bytes*: making a name in a session once less than its reserve is left; growing a file
  beyond the limit. A file of which a write was refused does not grow until it is closed, or until there is room for
  all that was refused, and never behind a gap where the refused bytes would be. Deleting, truncating down and rewriting
  in place go on.

The reserve is what keeps databases whole: with the kernel's write-back cache, write(2) succeeds before the daemon sees
the bytes, so a refusal there comes late, at fsync or close. A refused new file comes at once, and is what applications
meet first: LevelDB begins a new log every 4 MB, SQLite a journal for each transaction.

Unique bytes are measured in the background, so they lag by a few seconds; what a session grew by since the last
measurement counts as unique.
"""

from __future__ import annotations

import errno
import logging
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import trio

from sessfs.config import MAX_NUMBER
from sessfs.errors import LocalStoreError, PosixError, UsageError
from sessfs.local.policy import MountLimits, PolicyTable, SessionLimits
from sessfs.local.reserved import RESERVED_PREFIX
from sessfs.sessions.usage import measure_session
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sessfs.local.inodes import Inode
    from sessfs.vfs.volume import Volume

log = logging.getLogger(__name__)
ADMITTED_S = 10.0
RESERVE_SHARE = 16
RESERVE_MIN_BYTES = 8 << 20
RESERVE_MAX_BYTES = 16 << 20
MEASURE_EVERY_S = 3.0
WARN_SHARE = 0.8
WARN_NAMES = 5
UNREADABLE = "unreadable"
DOT_SESSION = b"."


def reserve_bytes(limit_bytes: int) -> int:
    """How much of a limit is kept for files that are there already: a sixteenth, but room for the logs of Chrome's
    databases, which grow to 4 MB and begin anew, where the limit is large enough for that. A database that can't begin
    a new log says so and stays whole; one whose log is cut short may be dropped by Chrome two starts later.
    """
    return min(max(limit_bytes // RESERVE_SHARE, RESERVE_MIN_BYTES), limit_bytes // 8, RESERVE_MAX_BYTES)


class Caps(NamedTuple):
    """The limits of one session in bytes; 0 for none."""

    session_bytes: int
    unique_bytes: int


class _Measured(NamedTuple):
    """Unique bytes of a session, its logical bytes and last change when they were measured, and whether files were hot:
    then the figure shrinks by itself.
    """

    unique_bytes: int
    logical_bytes: int
    last_change_ns: int
    was_open: bool


class Limits:
    """The Quota of a volume; hooks itself in while anything is limited. The request loop alone."""

    def __init__(
        self,
        volume: Volume,
        settings: MountLimits,
        *,
        monotonic_s: Callable[[], float],
        is_chrome: Callable[[int], bool],
        forget_name: Callable[[Ino, bytes], None] = lambda parent, name: None,
    ) -> None:
        """*settings* are the limits that nobody set otherwise. *forget_name* has the kernel look a name up again."""
        self._volume = volume
        self._inodes = volume.inodes
        self._settings = settings
        self._monotonic_s = monotonic_s
        self._is_chrome = is_chrome
        self._forget_name = forget_name
        self._table = PolicyTable(volume.meta)
        self._admitted: dict[Ino, float] = {}
        self._refused: dict[Ino, int] = {}
        """File → where the refused bytes end."""
        self._told: set[tuple[Ino, str]] = set()
        self._measured: dict[Ino, _Measured] = {}
        self._watched: set[Ino] = set()
        self.refusals: dict[str, int] = {}
        """How often each limit has refused something since the mount."""
        self._apply()

    def _apply(self) -> None:
        stored = self._table.mount_limits()
        self._own = self._table.session_limits()

        def effective(name: str) -> int:
            value = getattr(stored, name)
            return int((getattr(self._settings, name) or 0) if value is None else value)

        self._max_sessions = effective("max_sessions")
        self._max_active = effective("max_active")
        self._caps = Caps(effective("max_session_bytes"), effective("max_unique_bytes"))
        self._told.clear()
        self._hook()

    def _hook(self) -> None:
        wanted = bool(self._max_sessions or self._max_active or any(self._caps) or self._own or self._refused)
        self._volume.namespace.quota = self._volume.fileio.quota = self if wanted else None

    def change(self, name: bytes | None, changes: Mapping[str, int | None]) -> None:
        """Set limits of the session *name*, or of the whole mount: None as it is without, 0 off. Durable with the next
        commit, in force at once. Raises UsageError for what is no limit of it.
        """
        _check_changes(changes, MountLimits if name is None else SessionLimits)
        if name is None:
            self._table.change_mount_limits(changes)
        else:
            self._table.change_session_limits(name, changes)
        self._apply()

    def caps(self, session: Ino) -> Caps:
        """The limits that are in force for the session."""
        if not self._own:
            return self._caps
        name = DOT_SESSION if session == ROOT_INO else self._inodes.find_session_name(session)
        own = self._own.get(name) if name is not None else None
        if own is None:
            return self._caps
        return Caps(
            self._caps.session_bytes if own.max_session_bytes is None else own.max_session_bytes,
            self._caps.unique_bytes if own.max_unique_bytes is None else own.max_unique_bytes,
        )

    # -- Quota

    def add_session(self) -> None:
        """See Quota."""
        if self._max_sessions and self.count_sessions() >= self._max_sessions:
            raise self._refusal(ROOT_INO, "max_sessions", f"there are {self._max_sessions} sessions already")

    def add_name(self, session: Ino) -> None:
        """See Quota."""
        self._admit(session)
        if self._is_full(session, self.caps(session)):
            raise self._refusal(session, "max_bytes", "it is full: nothing new can be made in it")

    def grow(self, inode: Inode, start: int, end: int) -> None:
        """See Quota."""
        session = inode.session
        caps = self.caps(session)
        if not inode.nlink or not (any(caps) or self._refused):
            return
        refused_end = self._refused.get(inode.ino, 0)
        n_bytes = max(end, refused_end) - inode.size
        over = 0 < caps.session_bytes < self._inodes.session_counters(session).logical_bytes + n_bytes
        over = over or 0 < caps.unique_bytes < self._unique(session) + n_bytes
        if over or (refused_end and start > inode.size):
            if inode.opens:
                self._refused[inode.ino] = max(end, refused_end)
            raise self._refusal(session, "max_bytes", "it is full: its files can't grow")
        if end >= refused_end > 0:
            self.shrunk(inode)

    def shrunk(self, inode: Inode) -> None:
        """See Quota."""
        self._refused.pop(inode.ino, None)

    def open(self, inode: Inode, *, writes: bool, reads: bool, pid: int) -> bool:
        """See Quota."""
        if self._max_active and inode.session not in self._inodes.open_files and (writes or self._is_chrome(pid)):
            self._admit(inode.session)
        if not writes:
            return False
        caps = self.caps(inode.session)
        if caps.unique_bytes:
            self._watched.add(inode.session)
        # Not where it is read as well: direct reads do not see what others' writes left in the page cache.
        return not reads and self._is_full(inode.session, caps)

    def closed(self, inode: Inode) -> None:
        """See Quota."""
        if self._refused.pop(inode.ino, None) is None:
            return
        # The kernel takes its own length of a file for the right one until it looks the name up again.
        for name, dentry in self._inodes.iter_dentries(inode.parent):
            if dentry.ino == inode.ino:
                self._forget_name(inode.parent, name)
        if not self._refused:
            self._hook()

    def _admit(self, session: Ino) -> None:
        """Let the session be one of those in use. Raises PosixError EDQUOT."""
        if not self._max_active or session in self._inodes.open_files or session == ROOT_INO:
            return
        now = self._monotonic_s()
        self._admitted = {one: until for one, until in self._admitted.items() if until > now}
        if session in self._admitted:
            return
        if self.count_active() >= self._max_active:
            raise self._refusal(session, "max_active", f"{self._max_active} other sessions are in use")
        self._admitted[session] = now + ADMITTED_S

    def _is_full(self, session: Ino, caps: Caps) -> bool:
        """Whether less than the reserve is left of a limit in bytes."""
        if caps.session_bytes:
            logical = self._inodes.session_counters(session).logical_bytes
            if logical >= caps.session_bytes - reserve_bytes(caps.session_bytes):
                return True
        if not caps.unique_bytes:
            return False
        self._watched.add(session)
        return self._unique(session) >= caps.unique_bytes - reserve_bytes(caps.unique_bytes)

    def _unique(self, session: Ino) -> int:
        """Unique bytes as last measured, and what the session grew by since."""
        logical = self._inodes.session_counters(session).logical_bytes
        measured = self._measured.get(session)
        if measured is None:
            self._watched.add(session)
            self._measured[session] = _Measured(0, logical, 0, True)
            return 0
        return measured.unique_bytes + max(logical - measured.logical_bytes, 0)

    def _refusal(self, session: Ino, limit: str, why: str) -> PosixError:
        self.refusals[limit] = self.refusals.get(limit, 0) + 1
        if (session, limit) not in self._told:
            self._told.add((session, limit))
            log.warning("EDQUOT for session %s (%s): %s; see `sessfs limit`", self._show(session), limit, why)
        return PosixError(errno.EDQUOT, f"session {self._show(session)}: {why}")

    def _show(self, session: Ino) -> str:
        return (self._inodes.find_session_name(session) or DOT_SESSION).decode(errors="replace")

    # -- measuring

    async def run(self) -> None:
        """Measure unique bytes where they are limited, for ever; started once, in the daemon's nursery."""
        while True:
            await trio.sleep(MEASURE_EVERY_S)
            await self.measure()

    async def measure(self) -> None:
        """Measure the sessions that may have changed since they were measured; one that can't be read is left out until
        something is made or grows in it.
        """
        for session in list(self._watched):
            name = DOT_SESSION if session == ROOT_INO else self._inodes.find_session_name(session)
            if name is None or not self.caps(session).unique_bytes:
                self._watched.discard(session)
                self._measured.pop(session, None)
                continue
            try:
                await self._measure(session, name)
            except LocalStoreError as exc:
                self._watched.discard(session)
                if (session, UNREADABLE) not in self._told:
                    self._told.add((session, UNREADABLE))
                    log.warning("what only session %s has can't be measured: %s", self._show(session), exc)

    async def _measure(self, session: Ino, name: bytes) -> None:
        counters = self._inodes.session_counters(session)
        before = self._measured.get(session)
        logical, changed_ns = counters.logical_bytes, counters.last_change_ns
        is_open = session in self._inodes.open_files
        usage = await measure_session(self._inodes, self._volume.references, name, session)
        after = _Measured(usage.unique_bytes, logical, changed_ns, is_open)
        self._measured[session] = after
        if before == after and not is_open:
            # Nothing changed, by its users or by sealing, between two looks.
            self._watched.discard(session)

    # -- reports

    @property
    def counts_sessions(self) -> bool:
        """True while the number of sessions is limited."""
        return self._max_sessions > 0

    def count_sessions(self) -> int:
        """Top-level directories that are known here, without the product's own."""
        root = self._inodes.find(ROOT_INO)
        names = self._inodes.iter_names_with(ROOT_INO, RESERVED_PREFIX)
        return (root.nlink - 2 if root is not None else 0) - sum(1 for _ in names)

    def count_active(self) -> int:
        """Sessions with open files, and those let in just now."""
        now = self._monotonic_s()
        admitted = {one for one, until in self._admitted.items() if until > now}
        return len((self._inodes.open_files.keys() | admitted) - {ROOT_INO})

    def mount_report(self) -> dict[str, Any]:
        """The limits of the whole mount, where they come from, and what is used of them."""
        stored = self._table.mount_limits()
        now = {
            "max_sessions": self._max_sessions,
            "max_active": self._max_active,
            "max_session_bytes": self._caps.session_bytes,
            "max_unique_bytes": self._caps.unique_bytes,
        }
        used: dict[str, int] = {"max_sessions": self.count_sessions(), "max_active": self.count_active()}
        return {
            "limits": [_row(name, value, used.get(name), stored) for name, value in now.items()],
            "sessions_with_their_own": sorted(name.decode(errors="surrogateescape") for name in self._own),
            "refusals": dict(self.refusals),
        }

    async def session_report(self, name: bytes, session: Ino) -> dict[str, Any]:
        """The limits of one session, and what it uses of them."""
        own, caps = self._own.get(name), self.caps(session)
        usage = await measure_session(self._inodes, self._volume.references, name, session)
        rows = (
            ("max_session_bytes", caps.session_bytes, usage.logical_bytes),
            ("max_unique_bytes", caps.unique_bytes, usage.unique_bytes),
        )
        return {
            "name": name.decode(errors="surrogateescape"),
            "limits": [_row(limit, value, used, own) for limit, value, used in rows],
            "full": self._is_full(session, caps),
        }

    def warnings(self) -> list[str]:
        """One line for each limit of which 80 % are used."""
        found = []
        counts = (
            (self._max_sessions, self.count_sessions, "max_sessions", "sessions"),
            (self._max_active, self.count_active, "max_active", "sessions in use"),
        )
        for limit, count, name, what in counts:
            if limit and count() >= limit * WARN_SHARE:
                found.append(f"{count()} of {limit} {what} (--{name.replace('_', '-')})")
        if any(self._caps) or self._own:
            found += self._warn_of_bytes()
        return found

    def _warn_of_bytes(self) -> list[str]:
        near: dict[str, list[tuple[float, Ino]]] = {"max_session_bytes": [], "max_unique_bytes": []}
        for session, counters in self._inodes.iter_sessions():
            caps = self.caps(session)
            if caps.session_bytes and counters.logical_bytes >= caps.session_bytes * WARN_SHARE:
                near["max_session_bytes"].append((counters.logical_bytes / caps.session_bytes, session))
            if caps.unique_bytes and session in self._measured:
                share = self._unique(session) / caps.unique_bytes
                if share >= WARN_SHARE:
                    near["max_unique_bytes"].append((share, session))
        return [
            f"{len(those)} sessions use 80 % or more of --{limit.replace('_', '-')}: {self._list(those)}"
            for limit, those in near.items()
            if those
        ]

    def _list(self, those: Iterable[tuple[float, Ino]]) -> str:
        fullest = sorted(those, reverse=True)
        names = [f"{self._show(session)} ({share:.0%})" for share, session in fullest[:WARN_NAMES]]
        return ", ".join(names) + (", ..." if len(fullest) > WARN_NAMES else "")


def _check_changes(changes: Mapping[str, object], known: type[MountLimits | SessionLimits]) -> None:
    names = known.__struct_fields__
    for name, value in changes.items():
        if name not in names:
            raise UsageError(f"{name!r} is not a limit that can be set there: there are {', '.join(names)}")
        if value is not None and (type(value) is not int or not 0 <= value <= MAX_NUMBER):
            raise UsageError(f"{name}: {value!r} is not a number from 0, for off, to {MAX_NUMBER}")


def _row(limit: str, value: int, used: int | None, stored: MountLimits | SessionLimits | None) -> dict[str, Any]:
    """One limit in a report; *stored* is what `sessfs limit` set where it counts."""
    is_set = getattr(stored, limit, None) is not None
    return {"limit": limit, "value": value or None, "set": is_set, "used": used}


def find_session(volume: Volume, name: bytes) -> Ino | None:
    """The session of that name, `.` for the files of the root; None when it is not here."""
    if name == DOT_SESSION:
        return ROOT_INO
    dentry = volume.inodes.find_dentry(ROOT_INO, name)
    return dentry.ino if dentry is not None and stat.S_ISDIR(dentry.kind) else None


def limits_of(source: object) -> MountLimits:
    """The limits among *source*'s attributes of those names, as a mount's settings have them."""
    return MountLimits(**{name: getattr(source, name) for name in msgspec.structs.asdict(MountLimits())})
