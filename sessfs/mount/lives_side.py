"""History and lives of the sessions of a mount, put together."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from sessfs.mount.kernel_cache import KernelCache
from sessfs.mount.remote_side import flush_kernel, keeping_policy
from sessfs.sessions.lives import Lives
from sessfs.sync.history import History
from sessfs.sync.local_snapshots import LocalSnapshots
from sessfs.vfs.background import keep_going

if TYPE_CHECKING:
    import trio

    from sessfs.config import Settings
    from sessfs.mount.remote_side import RemoteSide
    from sessfs.types import Ino
    from sessfs.vfs.volume import Volume


class LivesSide(NamedTuple):
    """What every mount has beside its volume."""

    history: History
    lives: Lives
    kernel: KernelCache

    def start(self, nursery: trio.Nursery) -> None:
        """Have the background work done."""
        nursery.start_soon(keep_going, self.kernel.run)
        nursery.start_soon(keep_going, self.history.run)


def build_lives(volume: Volume, settings: Settings, remote: RemoteSide | None) -> LivesSide:
    """For a volume that is open and not mounted yet."""
    kernel = KernelCache()

    async def flush() -> None:
        await flush_kernel(settings.mountpoint)
        await volume.committer.unwritten.bring()

    if remote is not None:
        remote.sessions.forget_name = kernel.forget_name
        lives = Lives(
            volume,
            remote.history,
            clock_ns=time.time_ns,
            flush_kernel=remote.flush_kernel,
            reach=remote.reach,
            kernel=kernel,
        )
        return LivesSide(remote.history, lives, kernel)

    def prune(session: Ino) -> None:
        history.prune(session)

    def forget(session: Ino) -> None:
        history.forget(session)

    snapshots = LocalSnapshots(
        volume.inodes,
        volume.changes,
        volume.places,
        volume.references,
        volume.sealer,
        flush_kernel=flush,
        clock_ns=time.time_ns,
        interval_s=settings.snapshot_interval_s,
        prune=prune,
        forget=forget,
    )
    history = History(
        volume.inodes,
        volume.places,
        volume.references,
        snapshots,
        keeping_policy(settings),
        commit=volume.committer.commit,
    )
    lives = Lives(volume, history, clock_ns=time.time_ns, flush_kernel=flush, kernel=kernel)
    return LivesSide(history, lives, kernel)
