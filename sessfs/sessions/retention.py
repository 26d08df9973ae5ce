"""Retention: sessions that nobody has used for long are hibernated, or removed to the trash; the trash is emptied.

Hibernated: the tree is dropped here and the session is one that only the remote has; it loads at the next look-up. What
does not travel (caches, locks) is gone then. Never touched: a session with open files, or of which the kernel holds
anything (a working directory, an open directory); with a remote, one of which anything is not published. A session that
was never loaded here counts as used when its latest snapshot was taken; before it is removed it is loaded, and what its
tree says counts.

A round does at most a tenth of all sessions, so that no error, of a clock or of a setting, takes everybody's at once.
"""

from __future__ import annotations

import logging
import stat
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
import trio

from sessfs.errors import MountBusy, PosixError, SessfsError
from sessfs.sessions.usage import list_sessions, rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.sessions.clockguard import ClockGuard
    from sessfs.sessions.lastuse import LastUse
    from sessfs.sessions.trash import Trash, Trashed
    from sessfs.sync.restore import SessionDirectory
    from sessfs.types import Ino
    from sessfs.vfs.volume import Volume

log = logging.getLogger(__name__)
DAY_NS = 86_400 * 10**9
ROUND_S = 3600.0
FIRST_ROUND_S = 60.0
CAP_SHARE = 10
CAP_MIN = 10
PAUSE_EVERY = 200
LEARN_PER_ROUND = 2_000
"""Sessions that only the remote has, whose age is asked for in one round: a request each, once."""
LET_GO_TRIES = 10
LET_GO_S = 0.05
HIBERNATE = "hibernate"
REMOVE = "remove"


class Kernel(Protocol):
    """What the kernel remembers of a mount."""

    def forget_name(self, name: bytes) -> None:
        """See sessions.lives."""

    async def settled(self) -> None:
        """See sessions.lives."""


class Rules(NamedTuple):
    """*expire_days* None: nothing expires. *action*: HIBERNATE or REMOVE."""

    expire_days: float | None
    action: str
    trash_days: float


class Expiry(msgspec.Struct, frozen=True):
    """One session that is due. *action*: hibernate or remove. *kept* says why it was not done, None when it was (or, in
    a dry run, would be).
    """

    name: str
    last_use: str | None
    expired: str | None
    action: str
    kept: str | None


class Round(msgspec.Struct, frozen=True):
    """What one round did, or would do: *held* says why it did nothing at all."""

    dry_run: bool
    held: str | None
    sessions: list[Expiry]
    purged: list[str]
    """Names of sessions that went from the trash for good."""


class _Due(NamedTuple):
    last_use_ns: int
    name: bytes
    session: Ino


class Retention:
    """One mount's retention. The request loop alone; one round at a time."""

    def __init__(
        self,
        volume: Volume,
        rules: Rules,
        last_use: LastUse,
        trash: Trash,
        guard: ClockGuard,
        kernel: Kernel,
        *,
        remote: SessionDirectory | None,
        forget_entry: Callable[[Ino, bytes], None] = lambda parent, name: None,
    ) -> None:
        """*forget_entry* has the kernel drop a name of a directory."""
        self._volume = volume
        self._inodes = volume.inodes
        self._rules = rules
        self._last_use = last_use
        self._trash = trash
        self._guard = guard
        self._kernel = kernel
        self._remote = remote
        self._forget_entry = forget_entry
        self._busy = trio.Lock()
        self._capped = 0

    async def run(self) -> None:
        """A round an hour, for ever, whatever went wrong in the last; started once, in the daemon's nursery."""
        await trio.sleep(FIRST_ROUND_S)
        while True:
            try:
                await self.round()
            except SessfsError as exc:
                log.warning("a round of expiry was cut short, the next one goes on: %s", exc)
            except Exception:
                # Not sooner than in an hour, whatever it is: a round takes a tenth of all sessions at most.
                log.exception("a round of expiry was cut short, the next one goes on")
            await trio.sleep(ROUND_S)

    async def round(self, *, dry_run: bool = False, trust_clock: bool = False) -> Round:
        """Do what is due; with *dry_run* only say what would be done. Raises RemoteError, LocalStoreError."""
        async with self._busy:
            if trust_clock and not dry_run:
                self._guard.trust()
            now_ns = self._guard.look(None if self._guard.has_looked else await self._known_before_ns())
            held = self._guard.reason
            if self._volume.read_only_reason is not None:
                held = f"this mount is read-only: {self._volume.read_only_reason}"
            if self._remote is not None and self._rules.expire_days is not None and self._rules.action == REMOVE:
                await self._remote.list_all()
                await self._remote.learn_ages(LEARN_PER_ROUND)
            due = await self._due(now_ns)
            sessions = await self._expire(due, held, dry_run=dry_run)
            purged: list[str] = []
            if held is None:
                purged = await self._purge(now_ns, dry_run=dry_run)
        return Round(dry_run, held, sessions, purged)

    async def _known_before_ns(self) -> int | None:
        """The last that is known to have happened before this mount, by what was there before it, here and in the
        remote; 0 when there was something and it is not known when, None when there was nothing. Raises RemoteError.
        """
        if self._remote is not None:
            await self._remote.list_all()
            await self._remote.learn_ages(LEARN_PER_ROUND)
        times = [one.removed_ns for one in await self._trash.entries()]
        for number, (_, session) in enumerate(list_sessions(self._inodes)):
            times.append(self._last_use.last_use_ns(session))
            times += [snapshot.taken_ns for _, snapshot in self._volume.places.snapshots.entries(session)]
            if number % PAUSE_EVERY == 0:
                await trio.lowlevel.checkpoint()
        return max((time_ns for time_ns in times if time_ns < self._guard.began_ns), default=None)

    async def _due(self, now_ns: int) -> list[_Due]:
        """The sessions that are due, not used for the longest time first."""
        due: list[_Due] = []
        for number, (name, session) in enumerate(list_sessions(self._inodes)):
            expires_ns = self.expires_ns(session)
            if expires_ns is not None and expires_ns <= now_ns:
                due.append(_Due(self._last_use.last_use_ns(session), name, session))
            if number % PAUSE_EVERY == 0:
                await trio.lowlevel.checkpoint()
        return sorted(due)

    def expires_ns(self, session: Ino) -> int | None:
        """When the session is due if nobody uses it before; None for never."""
        last = self._last_use.last_use_ns(session)
        if self._rules.expire_days is None or not last:
            return None
        if self._rules.action == HIBERNATE and (self._remote is None or session in self._remote.stubs):
            return None
        return last + int(self._rules.expire_days * DAY_NS)

    async def _expire(self, due: list[_Due], held: str | None, *, dry_run: bool) -> list[Expiry]:
        cap = max(len(list_sessions(self._inodes)) // CAP_SHARE, CAP_MIN)
        done = n_left = 0
        found = []
        for one in due:
            await trio.lowlevel.checkpoint()
            kept = held or self._objection(one)
            if kept is None and done >= cap:
                n_left += 1
                kept = f"a round does {cap} sessions at most; the next one is in an hour"
            if kept is None and not dry_run:
                kept = await self._do(one)
            done += kept is None
            found.append(self._expiry(one, kept))
        if not dry_run:
            self._capped = n_left
        if done and not dry_run:
            await self._volume.committer.commit()
            log.info("%d sessions expired (%s)", done, self._rules.action)
        return found

    def _expiry(self, one: _Due, kept: str | None) -> Expiry:
        expire_ns = int((self._rules.expire_days or 0) * DAY_NS)
        return Expiry(
            name=one.name.decode(errors="surrogateescape"),
            last_use=rfc3339(one.last_use_ns),
            expired=rfc3339(one.last_use_ns + expire_ns),
            action=self._rules.action,
            kept=kept,
        )

    def _objection(self, one: _Due) -> str | None:
        """Why the session must stay as it is, None when nothing is in the way."""
        if one.session in self._inodes.open_files:
            return "in use: files of it are open"
        if self._last_use.last_use_ns(one.session) != one.last_use_ns:
            return "used at this very moment"
        if self._remote is None or one.session in self._remote.stubs:
            return None
        published = self._volume.places.published(one.session)
        changes = self._inodes.changes
        if one.session in self._remote.unverified:
            return "not compared with the remote yet"
        if published is None or published.manifest is None or published.name != one.name:
            return "not uploaded"
        if changes is not None and changes.is_unpublished(one.session):
            return "not uploaded: changes are only here"
        return None

    async def _do(self, one: _Due) -> str | None:
        """Hibernate or remove; why it was left, None when it was done."""
        if self._remote is not None and one.session in self._remote.stubs:
            await self._remote.load(one.session)
            if self._inodes.find_session_name(one.session) is None:
                return "removed elsewhere"
            now = self._last_use.last_use_ns(one.session)
            if now != one.last_use_ns:
                return f"used elsewhere, as the remote says: {rfc3339(now)}"
        if not await self._let_go(one):
            return "in use: something works in its directory"
        objection = self._objection(one)
        if objection is not None or self._inodes.is_known(one.session):
            return objection or "in use: something works in its directory"
        if self._rules.action == HIBERNATE:
            self._hibernate(one)
            return None
        try:
            self._trash.put(one.name)
        except (MountBusy, PosixError) as exc:
            return str(exc)
        return None

    async def _let_go(self, one: _Due) -> bool:
        """Have the kernel drop what it remembers of the session; False when somebody keeps it from that."""
        if not self._inodes.is_known(one.session):
            return True
        self._kernel.forget_name(one.name)
        await self._kernel.settled()
        if await self._forgets(one.session):
            return True
        # What was in use when the kernel was told before is remembered after that, below a name that it forgot.
        for parent, name in self._known_names(one.session):
            self._forget_entry(parent, name)
        return await self._forgets(one.session)

    async def _forgets(self, session: Ino) -> bool:
        for _ in range(LET_GO_TRIES):
            if not self._inodes.is_known(session):
                return True
            await trio.sleep(LET_GO_S)
        return False

    def _known_names(self, directory: Ino) -> list[tuple[Ino, bytes]]:
        """(directory, name) of everything below that the kernel holds a reference to, deepest first."""
        found = []
        for name, dentry in list(self._inodes.iter_dentries(directory)):
            if stat.S_ISDIR(dentry.kind):
                found += self._known_names(dentry.ino)
            if self._inodes.is_known(dentry.ino):
                found.append((directory, name))
        return found

    def _hibernate(self, one: _Due) -> None:
        """Drop the tree of a session that the remote has as it is here. Its inode stays, and its time of last use, so
        that both are known of the stub.
        """
        assert self._remote is not None
        root, counters = self._inodes.get(one.session), self._inodes.session_counters(one.session)
        times = root.mtime_ns, root.ctime_ns, counters.last_change_ns
        self._volume.namespace.empty_session(one.session)
        root.mtime_ns, root.ctime_ns, counters.last_change_ns = times
        self._remote.make_stub(one.session, one.name)

    def purged_ns(self, one: Trashed) -> int:
        """When a session in the trash goes for good; 0 where it is not known when it was removed: then it stays."""
        return one.removed_ns and one.removed_ns + int(self._rules.trash_days * DAY_NS)

    async def _purge(self, now_ns: int, *, dry_run: bool) -> list[str]:
        before_ns = now_ns - int(self._rules.trash_days * DAY_NS)
        if dry_run:
            gone = [one for one in await self._trash.entries() if 0 < one.removed_ns < before_ns]
        else:
            gone = await self._trash.purge(before_ns)
        return [one.name.decode(errors="surrogateescape") for one in gone]

    def warnings(self) -> list[str]:
        """What a person should know."""
        found = []
        if self._guard.reason is not None and self._rules.expire_days is not None:
            found.append(f"expiry waits: {self._guard.reason}")
        if self._capped:
            found.append(f"{self._capped} more sessions are due to expire than a round does; see `sessfs expire`")
        return found
