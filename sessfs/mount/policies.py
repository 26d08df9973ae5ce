"""What bounds the sessions of a mount: limits, how long they are kept, the trash; wired once, beside the volume."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

from sessfs.errors import SessfsError
from sessfs.local.policy import PolicyTable
from sessfs.mount.browsers import Browsers
from sessfs.sessions.clockguard import ClockGuard
from sessfs.sessions.lastuse import LastUse
from sessfs.sessions.limits import Limits, limits_of
from sessfs.sessions.retention import HIBERNATE, Retention, Rules
from sessfs.sessions.starting import Starts
from sessfs.sessions.suspects import Suspects
from sessfs.sessions.trash import Trash
from sessfs.sessions.usage import rfc3339
from sessfs.vfs.background import keep_going

if TYPE_CHECKING:
    from sessfs.config import Settings
    from sessfs.mount.lives_side import LivesSide
    from sessfs.mount.remote_side import RemoteSide
    from sessfs.types import Ino
    from sessfs.vfs.volume import Volume

log = logging.getLogger(__name__)
RETRY_S = 60.0


def forget_name(parent: Ino, name: bytes) -> None:
    """Have the kernel look the name up again. It takes the lock of the directory for that, so a thread asks it to."""
    pyfuse3.invalidate_entry_async(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name), ignore_enoent=True)


class Policies:
    """Limits, last use, retention and trash of a mount. `run` must be running in the daemon's nursery."""

    def __init__(self, volume: Volume, settings: Settings, remote: RemoteSide | None, lives: LivesSide) -> None:
        self._volume = volume
        self._remote = remote
        browsers = Browsers(settings.chrome_names)
        self.limits = Limits(
            volume,
            limits_of(settings),
            monotonic_s=time.monotonic,
            is_chrome=browsers.is_chrome,
            forget_name=forget_name,
        )
        self.last_use = LastUse(
            volume.inodes,
            clock_ns=time.time_ns,
            monotonic_s=time.monotonic,
            is_chrome=browsers.is_chrome,
            on_use=remote.prefetcher.used if remote is not None else lambda session: None,
        )
        self.suspects = Suspects(volume.inodes, clock_ns=time.time_ns, may_note=lambda: volume.read_only_reason is None)
        lives.history.heed(self.suspects.since_ns, lambda session, exc: self.suspects.note(session, str(exc)))
        lives.lives.on_replaced = self.suspects.replaced
        self.starts: Starts | None = None
        if remote is not None:
            remote.sessions.on_loaded = self._loaded
            if not settings.wait_at_start:
                self.starts = Starts(volume.inodes, remote.chunks, remote.repository.remote.health)
        sessions = remote.sessions if remote is not None else None
        self.trash = Trash(volume, lives.lives, clock_ns=time.time_ns, remote=sessions)
        self.retention = Retention(
            volume,
            Rules(settings.expire_days, settings.expire_action or HIBERNATE, settings.trash_days),
            self.last_use,
            self.trash,
            ClockGuard(PolicyTable(volume.meta), clock_ns=time.time_ns, monotonic_s=time.monotonic),
            lives.kernel,
            remote=sessions,
            forget_entry=forget_name,
        )

    def _loaded(self, session: Ino) -> None:
        if self._remote is not None:
            self._remote.prefetcher.loaded(session)
        self.suspects.loaded(session)

    async def run(self) -> None:
        """For ever; started once, in the daemon's nursery."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_going, self.suspects.learn)
            nursery.start_soon(keep_going, self.limits.run)
            nursery.start_soon(keep_going, self.retention.run)
            if self._remote is not None:
                nursery.start_soon(keep_going, partial(self._know_all, self._remote))

    async def _know_all(self, remote: RemoteSide) -> None:
        """Have every session of the remote listed once their number is limited: unknown ones are not counted."""
        while True:
            if self.limits.counts_sessions:
                try:
                    await remote.sessions.list_all()
                    return
                except SessfsError as exc:
                    log.info("sessions that only the remote has are not counted yet: %s", exc)
            await trio.sleep(RETRY_S)

    def logical_bytes(self, session: Ino) -> int:
        """Bytes of the session's files, as far as it is loaded."""
        return self._volume.inodes.session_counters(session).logical_bytes

    def session_row(self, session: Ino) -> dict[str, Any]:
        """The part of one session in `sessfs sessions`."""
        row: dict[str, Any] = {"last_use": rfc3339(self.last_use.last_use_ns(session))}
        expires_ns = self.retention.expires_ns(session)
        if expires_ns is not None:
            row["expires"] = rfc3339(expires_ns)
        return row

    def warnings(self) -> list[str]:
        """What a person should know."""
        found = self.limits.warnings() + self.retention.warnings() + self.suspects.warnings()
        return found + (self.starts.warnings() if self.starts is not None else [])
