"""A store that is a state directory which nobody has mounted: opened in this process, and held until it is closed."""

from __future__ import annotations

import math
import os
import stat
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import trio

from sessfs import config
from sessfs.api.portal import Portal
from sessfs.api.records import SessionRecord, SnapshotRecord
from sessfs.api.store import Store, no_session
from sessfs.chrome import PathClass
from sessfs.errors import PosixError, RemoteUnavailable, UsageError
from sessfs.mount import preflight
from sessfs.mount.reports import status_report
from sessfs.sessions.importing import Importer
from sessfs.sessions.importing_report import ImportOptions
from sessfs.sessions.importing_unpack import clear_staging
from sessfs.sessions.lives import Lives
from sessfs.sessions.suspects import Suspects
from sessfs.sessions.trees import ManifestTree
from sessfs.sessions.usage import list_sessions, measure_session
from sessfs.sessions.volumetree import VolumeTree
from sessfs.sync.history import GOOD, History, manifest_chunks
from sessfs.sync.keeping import Policy
from sessfs.sync.local_snapshots import LocalSnapshots
from sessfs.types import ROOT_INO, ChunkId, Ino
from sessfs.vfs.volume import LocalChunks, RemoteHooks, Volume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping

    from sessfs.config import Settings
    from sessfs.format.manifest import Manifest
    from sessfs.local.chunkstore import ChunkReader, References
    from sessfs.local.places import Places
    from sessfs.sessions.importing_report import ImportProgress, ImportReport
    from sessfs.sessions.trees import Tree
    from sessfs.sync.history import SnapshotInfo

REPOSITORY_FILE = "repository"
"""Is in a state directory that was ever mounted with a remote."""


class _ChunksHere(LocalChunks):
    """What is not here is in a remote that is not asked."""

    async def fetch(self, ids: Collection[ChunkId], ahead: Collection[ChunkId] = ()) -> None:
        """Raises RemoteUnavailable."""
        raise _elsewhere(len(ids))


def _elsewhere(n_chunks: int) -> RemoteUnavailable:
    return RemoteUnavailable(
        f"{n_chunks} chunks of this file are in the remote only: mount it, or open the remote's URL instead"
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


class Opened(NamedTuple):
    """A state directory that is open."""

    volume: Volume
    history: History
    lives: Lives
    suspects: Suspects


def _put_together(volume: Volume) -> Opened:
    """What a mount has beside its volume, without kernel and remote. Nothing is taken by itself here, and nothing let
    go: how many snapshots are kept is up to the mount, which knows its settings.
    """

    def keep(session: Ino) -> None:
        return

    def forget(session: Ino) -> None:
        history.forget(session)

    snapshots = LocalSnapshots(
        volume.inodes,
        volume.changes,
        volume.places,
        volume.references,
        volume.sealer,
        flush_kernel=trio.lowlevel.checkpoint,
        clock_ns=time.time_ns,
        interval_s=math.inf,
        prune=keep,
        forget=forget,
    )
    history = History(
        volume.inodes,
        volume.places,
        volume.references,
        snapshots,
        Policy(last=sys.maxsize),
        commit=volume.committer.commit,
    )
    lives = Lives(volume, history, clock_ns=time.time_ns, flush_kernel=trio.lowlevel.checkpoint)
    suspects = Suspects(volume.inodes, clock_ns=time.time_ns, may_note=lambda: True)
    history.heed(suspects.since_ns, lambda session, exc: suspects.note(session, str(exc)))
    return Opened(volume, history, lives, suspects)


@asynccontextmanager
async def opened_state(settings: Settings) -> AsyncIterator[Opened]:
    """The settings' state directory, running. Raises StateInUse, StateTooNew, LocalStoreError."""
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
            yield _put_together(volume)
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
        self._portal: Portal[Opened] = Portal(lambda: opened_state(settings), self.where)

    @property
    def _volume(self) -> Volume:
        return self._portal.held.volume

    @property
    def _lives(self) -> Lives:
        return self._portal.held.lives

    @property
    def _past(self) -> History:
        return self._portal.held.history

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

    def _has(self, name: bytes) -> bool:
        """See Store."""
        return self._portal.do(self._find, name) is not None

    def _no_session(self, name: bytes) -> PosixError:
        """See Store: without measuring them all."""
        return no_session(self.where, name, self._portal.do(self._names))

    def _names(self) -> list[str]:
        return [os.fsdecode(one) for one, _ in list_sessions(self._volume.inodes)]

    def _find(self, name: bytes) -> Ino | None:
        dentry = self._volume.inodes.find_dentry(ROOT_INO, name)
        return dentry.ino if dentry is not None and stat.S_ISDIR(dentry.kind) else None

    def _loaded(self, name: bytes) -> Ino:
        session = self._find(name)
        if session is None:
            raise no_session(self.where, name, self._names())
        published = self._volume.places.published(session)
        if published is not None and published.stub:
            raise RemoteUnavailable(
                f"session {os.fsdecode(name)} is in the remote only: mount it, or open the remote's URL instead"
            )
        return session

    def _tree(self, name: bytes, at: int | None, *, steady: bool) -> Tree:
        """See Store. Nobody but this process changes anything."""
        session = self._portal.do(self._loaded, name)
        if at is None:
            return VolumeTree(self._volume, session, self._portal.call, self._portal.do)
        manifest = self._portal.call(self._load, session, at)
        return _PinnedTree(manifest, self._portal, lambda ids: self._portal.do(self._fetch, ids))

    async def _load(self, session: Ino, at: int) -> Manifest:
        manifest = await self._past.load(session, at)
        self._volume.references.pin(manifest_chunks(manifest))
        return manifest

    def _fetch(self, ids: Collection[ChunkId]) -> dict[ChunkId, bytes]:
        found = {cid: bytes(chunk) for cid in ids if (chunk := self._volume.reader.find(cid)) is not None}
        if len(found) < len(set(ids)):
            raise _elsewhere(len(set(ids)) - len(found))
        return found

    def import_tree(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        verify: bool = True,
        dry_run: bool = False,
        skip_unsafe: bool = False,
        progress: Callable[[ImportProgress], None] | None = None,
    ) -> ImportReport:
        """See Store."""
        path = Path(os.path.realpath(source))
        if not path.exists():
            raise UsageError(f"{os.fspath(source)} is not there: give a tree of sessions, a profile, a tar or a zip")
        if path.is_relative_to(self.where):
            raise UsageError(f"{path} lies in the state itself: import from outside of it")
        options = ImportOptions(None if name is None else os.fsencode(name), verify, dry_run, skip_unsafe)
        return self._portal.call(self._import, path, options, progress)

    async def _import(
        self, source: Path, options: ImportOptions, progress: Callable[[ImportProgress], None] | None
    ) -> ImportReport:
        async def say(step: ImportProgress) -> None:
            if progress is not None:
                progress(step)

        await trio.to_thread.run_sync(clear_staging, self._settings.state_dir)
        importer = Importer(self._volume, self._lives, clock_ns=time.time_ns, monotonic_s=time.monotonic)
        return await importer.run(source, options, say)

    # -- the past

    def _history(self, name: bytes) -> list[SnapshotRecord]:
        return [_record(info) for info in self._portal.do(self._list, name)]

    def _list(self, name: bytes) -> list[SnapshotInfo]:
        return self._past.list(self._loaded(name))

    def _snapshot(self, name: bytes, mark: str) -> SnapshotRecord:
        session = self._portal.do(self._loaded, name)
        return _record(self._portal.call(self._past.take, session, mark))

    def _mark(self, name: bytes, sequence: int, mark: str) -> SnapshotRecord:
        session = self._portal.do(self._loaded, name)
        self._portal.call(self._past.mark, session, sequence, mark)
        return _record(self._portal.do(self._past.get, session, sequence))

    def _judge(self, name: bytes, sequence: int, verdict: str) -> None:
        self._portal.do(self._past.judge, self._portal.do(self._loaded, name), sequence, verdict)

    def _checked(self, name: bytes, verdict: str) -> None:
        if verdict == GOOD:
            self._portal.do(self._portal.held.suspects.clear, self._portal.do(self._loaded, name))

    def _rollback(self, name: bytes, sequence: int | None) -> SnapshotRecord:
        session = self._portal.do(self._loaded, name)
        if sequence is None:
            sequence = self._portal.do(self._past.newest_good, session).sequence
        return _record(self._portal.call(self._lives.rollback, name, sequence))

    def _clone(self, name: bytes, new_name: bytes) -> None:
        self._portal.do(self._loaded, name)
        self._portal.call(self._lives.clone, name, new_name)

    def _remove(self, name: bytes, *, purge: bool) -> None:
        if purge:
            raise self._cannot("erase a session")
        self._portal.call(self._lives.remove, name)

    def status(self) -> dict[str, Any]:
        """See Store."""
        uptime_s = time.monotonic() - self._began_s
        report = self._portal.do(status_report, self._volume, uptime_s, {}, None, self._settings.warn_total_bytes)
        return {"state_dir": self.where, **report}


def _record(info: SnapshotInfo) -> SnapshotRecord:
    return SnapshotRecord(**info._asdict())


class _PinnedTree(ManifestTree):
    """A snapshot whose chunks stay until this is closed."""

    def __init__(
        self,
        manifest: Manifest,
        portal: Portal[Opened],
        fetch: Callable[[Collection[ChunkId]], Mapping[ChunkId, bytes]],
    ) -> None:
        super().__init__(manifest, fetch)
        self._pinned: Manifest | None = manifest
        self._portal = portal

    def close(self) -> None:
        super().close()
        manifest, self._pinned = self._pinned, None
        if manifest is not None:
            self._portal.do(self._portal.held.volume.references.unpin, manifest_chunks(manifest))
