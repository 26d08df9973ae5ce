"""A store that is a state directory which nobody has mounted: opened in this process, and held until it is closed."""

from __future__ import annotations

import os
import stat
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from sessfs import config
from sessfs.api.portal import Portal
from sessfs.api.records import SessionRecord
from sessfs.api.store import Store
from sessfs.chrome import PathClass
from sessfs.errors import RemoteUnavailable, UsageError
from sessfs.mount import preflight
from sessfs.mount.reports import status_report
from sessfs.sessions.usage import list_sessions, measure_session
from sessfs.sessions.volumetree import VolumeTree
from sessfs.types import ROOT_INO, ChunkId, Ino
from sessfs.vfs.volume import LocalChunks, RemoteHooks, Volume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator
    from pathlib import Path

    from sessfs.config import Settings
    from sessfs.local.chunkstore import ChunkReader, References
    from sessfs.local.places import Places
    from sessfs.sessions.trees import Tree

REPOSITORY_FILE = "repository"
"""Is in a state directory that was ever mounted with a remote."""


class _ChunksHere(LocalChunks):
    """What is not here is in a remote that is not asked."""

    async def fetch(self, ids: Collection[ChunkId]) -> None:
        """Raises RemoteUnavailable."""
        raise RemoteUnavailable(
            f"{len(ids)} chunks of this file are in the remote only: mount it, or open the remote's URL instead"
        )


def _hooks(state_dir: Path) -> RemoteHooks | None:
    """So that the next mount publishes what is changed here, if the state has a remote."""
    if not (state_dir / REPOSITORY_FILE).exists():
        return None

    def make_chunks(reader: ChunkReader, places: Places, references: References, hash_key: bytes) -> _ChunksHere:
        return _ChunksHere(reader)

    # Whether caches travel is up to the next mount: it leaves out what does not.
    return RemoteHooks(make_chunks, PathClass.CACHE)


def _bound_bytes(settings: Settings) -> int:
    disk = os.statvfs(settings.state_dir)
    used = sum(f.stat().st_blocks * 512 for f in settings.state_dir.rglob("*") if f.is_file())
    return config.cache_bound_bytes(settings, free_bytes=disk.f_bavail * disk.f_frsize, used_bytes=used)


@asynccontextmanager
async def opened_volume(settings: Settings) -> AsyncIterator[Volume]:
    """The volume of the settings' state directory, running. Raises StateInUse, StateTooNew, LocalStoreError."""
    volume = Volume(
        settings.state_dir,
        commit_interval_s=settings.commit_interval_s,
        seal_idle_s=settings.seal_idle_s,
        cache_bound_bytes=_bound_bytes(settings),
        clock_ns=time.time_ns,
        monotonic_s=time.monotonic,
        remote=_hooks(settings.state_dir),
    )
    try:
        await volume.start(os.getuid(), os.getgid())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.run)
            yield volume
            await volume.close()
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await volume.release()


class StateStore(Store):
    """An open state directory. What needs the remote is not there."""

    def __init__(self, settings: Settings) -> None:
        """Raises StateInUse, with the pid, when somebody has it; StateTooNew, NoRights, LocalStoreError."""
        preflight.check_state(settings.state_dir)
        self.where = str(settings.state_dir)
        self._settings = settings
        self._began_s = time.monotonic()
        self._portal: Portal[Volume] = Portal(lambda: opened_volume(settings), self.where)

    @property
    def _volume(self) -> Volume:
        return self._portal.held

    def close(self) -> None:
        """See Store."""
        self._portal.close()

    def sessions(self) -> Iterator[SessionRecord]:
        """See Store."""
        return iter(self._portal.call(self._measure))

    async def _measure(self) -> list[SessionRecord]:
        volume, found = self._volume, []
        for name, session in list_sessions(volume.inodes):
            usage = await measure_session(volume.inodes, volume.references, name, session)
            found.append(SessionRecord(**msgspec.structs.asdict(usage)))
        return found

    def has(self, name: bytes) -> bool:
        """See Store."""
        return self._portal.do(self._find, name) is not None

    def _find(self, name: bytes) -> Ino | None:
        dentry = self._volume.inodes.find_dentry(ROOT_INO, name)
        return dentry.ino if dentry is not None and stat.S_ISDIR(dentry.kind) else None

    def _loaded(self, name: bytes) -> Ino:
        session = self._find(name)
        if session is None:
            raise UsageError(f"{self.where} has no session {os.fsdecode(name)}")
        published = self._volume.places.published(session)
        if published is not None and published.stub:
            raise RemoteUnavailable(
                f"session {os.fsdecode(name)} is in the remote only: mount it, or open the remote's URL instead"
            )
        return session

    def tree(self, name: bytes, at: int | None, *, steady: bool) -> Tree:
        """See Store. Nobody but this process changes anything."""
        session = self._portal.do(self._loaded, name)
        if at is not None:
            raise UsageError(f"session {os.fsdecode(name)} of {self.where} has no snapshot {at}")
        return VolumeTree(self._volume, session, self._portal.call, self._portal.do)

    def status(self) -> dict[str, Any]:
        """See Store."""
        uptime_s = time.monotonic() - self._began_s
        report = self._portal.do(status_report, self._volume, uptime_s, {}, None, self._settings.warn_total_bytes)
        return {"state_dir": self.where, **report}
