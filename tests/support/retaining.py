"""Retention over a volume of `tests.support.volumes`, as the daemon puts it together, with clocks that tests turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from sessfs.local.policy import PolicyTable
from sessfs.sessions.clockguard import ClockGuard
from sessfs.sessions.lastuse import LastUse
from sessfs.sessions.lives import Lives
from sessfs.sessions.retention import Retention, Rules
from sessfs.sessions.trash import Trash
from sessfs.sync.history import History
from sessfs.sync.keeping import Policy
from tests.support.lives import Local, Told
from tests.support.volumes import Machine

if TYPE_CHECKING:
    from tests.support.volumes import Box

CHROME = 1
BACKUP = 2


class Keeping:
    """Last use, trash and retention of a box or a machine; CHROME and BACKUP are ids of processes."""

    def __init__(self, box: Box, expire_days: float | None, action: str, trash_days: float = 30.0) -> None:
        self.box = box
        self.wall_ahead_ns = 0
        """How much further than the other clock the wall clock is."""
        machine = box if isinstance(box, Machine) else None
        volume = box.volume
        kernel = Told()
        if machine is None:
            lives = Local(box).lives
        else:
            history = History(
                volume.inodes,
                volume.places,
                volume.references,
                machine.writeback,
                Policy(),
                commit=volume.committer.commit,
            )
            lives = Lives(
                volume, history, clock_ns=self.now_ns, flush_kernel=trio.lowlevel.checkpoint, reach=self._reach
            )
        self.machine = machine
        self.lives = lives
        self.last_use = LastUse(
            volume.inodes, clock_ns=self.now_ns, monotonic_s=box.clock.s, is_chrome=lambda pid: pid == CHROME
        )
        remote = machine.sessions if machine is not None else None
        self.trash = Trash(volume, lives, clock_ns=self.now_ns, remote=remote)
        self.guard = ClockGuard(PolicyTable(volume.meta), clock_ns=self.now_ns, monotonic_s=box.clock.s)
        self.retention = Retention(
            volume,
            Rules(expire_days, action, trash_days),
            self.last_use,
            self.trash,
            self.guard,
            kernel,
            remote=remote,
        )

    def now_ns(self) -> int:
        return self.box.clock.ns() + self.wall_ahead_ns

    async def _reach(self, name: bytes) -> None:
        assert self.machine is not None
        await self.machine.load(name)

    async def names_in_trash(self) -> list[bytes]:
        return [one.name for one in await self.trash.entries()]
