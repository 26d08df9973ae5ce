"""History and lives over a volume of `tests.support.volumes`, as the daemon puts them together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from sessfs.sessions.lives import Lives
from sessfs.sync.history import History
from sessfs.sync.keeping import Policy
from sessfs.sync.local_snapshots import LocalSnapshots

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.types import Ino
    from tests.support.volumes import Box

HOUR_S = 3600.0


class Told:
    """Kernel that notes what it was told."""

    def __init__(self) -> None:
        self.names: list[bytes] = []

    def forget_name(self, name: bytes) -> None:
        self.names.append(name)

    async def settled(self) -> None:
        await trio.lowlevel.checkpoint()


class Local:
    """A volume without a remote."""

    def __init__(
        self, box: Box, policy: Policy | None = None, crash_point: Callable[[str], None] = lambda name: None
    ) -> None:
        volume = box.volume
        self.kernel = Told()

        def prune(session: Ino) -> None:
            self.history.prune(session)

        def forget(session: Ino) -> None:
            self.history.forget(session)

        self.snapshots = LocalSnapshots(
            volume.inodes,
            volume.changes,
            volume.places,
            volume.references,
            volume.sealer,
            flush_kernel=trio.lowlevel.checkpoint,
            clock_ns=box.clock.ns,
            interval_s=HOUR_S,
            prune=prune,
            forget=forget,
        )
        self.history = History(
            volume.inodes,
            volume.places,
            volume.references,
            self.snapshots,
            policy or Policy(),
            commit=volume.committer.commit,
        )
        self.lives = Lives(
            volume,
            self.history,
            clock_ns=box.clock.ns,
            flush_kernel=trio.lowlevel.checkpoint,
            kernel=self.kernel,
            crash_point=crash_point,
        )

    async def take_due(self) -> None:
        """What the loop does once."""
        for session in self.snapshots.due():
            await self.snapshots.snapshot(session)
