"""A volume: all objects of one open state directory, wired once, and what is done when it opens and closes."""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

from sessfs.errors import StoreCorrupt
from sessfs.format.chunk import ZSTD_LEVEL
from sessfs.local.changes import Changes
from sessfs.local.chunkstore import CHUNK_TABLES, CHUNKS_MAP_BYTES, ChunkReader, References
from sessfs.local.damage import FOUND_FILE, read_found
from sessfs.local.db import Database
from sessfs.local.hotfiles import HotFiles
from sessfs.local.inodes import META_MAP_BYTES, META_TABLES, Inodes
from sessfs.local.places import Places
from sessfs.local.state import StateDirectory, ensure_hash_key
from sessfs.local.writelock import WriteLock
from sessfs.types import ROOT_INO
from sessfs.vfs.background import keep_going
from sessfs.vfs.committer import Committer
from sessfs.vfs.compaction import keep_compact
from sessfs.vfs.fileio import FileIO
from sessfs.vfs.namespace import Namespace
from sessfs.vfs.quiet import Quiet
from sessfs.vfs.recovery import Sweep, reconcile_hot_files
from sessfs.vfs.renames import RENAME_NOREPLACE, Renames
from sessfs.vfs.scrubbing import remove_leftovers
from sessfs.vfs.sealclient import SealProcessClient
from sessfs.vfs.sealing import Sealer
from sessfs.vfs.sealjobs import Hello
from sessfs.vfs.space import Space
from sessfs.vfs.xattrs import Xattrs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from sessfs.chrome import PathClass
    from sessfs.format.chunk import Buffer
    from sessfs.types import ChunkId, Ino
    from sessfs.vfs.fileio import ChunkSource

log = logging.getLogger(__name__)
CLOSE_DROP_S = 10.0
"""Dropping dead chunks may hold up an unmount this long; the next start sweeps the rest."""
ROOMY_PART = 4
"""Sealing waits for quiet until hot files take this part of the bound."""


class RemoteHooks(NamedTuple):
    """What a remote adds to a volume: where missing chunks come from, and what of the tree is to be published."""

    make_chunks: Callable[[ChunkReader, Places, References, bytes], ChunkSource]
    travelling: PathClass


class LocalChunks:
    """The chunk source of a volume without a remote: what is not here is nowhere."""

    def __init__(self, reader: ChunkReader) -> None:
        self._reader = reader

    def find(self, cid: ChunkId) -> Buffer | None:
        """See ChunkSource."""
        return self._reader.find(cid)

    def is_here(self, cid: ChunkId) -> bool:
        """See ChunkSource."""
        return self._reader.has(cid)

    def note_read(self, session: Ino, cid: ChunkId) -> None:
        """See ChunkSource: nothing is learned."""

    async def fetch(self, ids: Collection[ChunkId], ahead: Collection[ChunkId] = ()) -> None:
        """Raises StoreCorrupt: a chunk that a recipe names is missing."""
        raise StoreCorrupt(f"chunk {next(iter(ids)).hex()} is named by a recipe and stored nowhere")


class Volume:
    """One open state directory. `run` must be running in a nursery while it is used; `close` ends it durably."""

    def __init__(
        self,
        state_dir: Path,
        *,
        commit_interval_s: float,
        seal_idle_s: float,
        cache_bound_bytes: int,
        clock_ns: Callable[[], int],
        monotonic_s: Callable[[], float],
        hash_key: bytes | None = None,
        remote: RemoteHooks | None = None,
        level: int = ZSTD_LEVEL,
        map_bytes: tuple[int, int] = (META_MAP_BYTES, CHUNKS_MAP_BYTES),
        requests: Callable[[], int] = lambda: 0,
    ) -> None:
        """Open, creating it when new: then *hash_key* is its key, if given. *requests* says how many were served so
        far: while many come, sealing waits. Waits for the seal process of a daemon that was killed, for as long as it
        needs for its end. Raises StateInUse, StateTooNew, StoreCorrupt, LocalStoreError; then nothing is held.
        """
        self.state, self.meta, self.hash_key, chunks_db = _open_stores(state_dir, hash_key, map_bytes)
        self.inodes = Inodes(self.meta)
        self.hot = HotFiles(state_dir / "hot")
        self.references = References(self.meta)
        self.reader = ChunkReader(chunks_db, self.hash_key)
        self.places = Places(self.meta)
        self._watch_damage()
        self.changes = self.inodes.changes = Changes(self.meta, clock_ns)
        chunks: ChunkSource = LocalChunks(self.reader)
        if remote is not None:
            self.inodes.travelling = remote.travelling
            chunks = remote.make_chunks(self.reader, self.places, self.references, self.hash_key)
        self.fileio = FileIO(self.inodes, self.hot, chunks, self.references, clock_ns, monotonic_s)
        self.namespace = Namespace(self.inodes, clock_ns, self.fileio.discard)
        self.renames = Renames(self.namespace, self.inodes, clock_ns)
        self.xattrs = Xattrs(self.namespace, self.inodes, clock_ns)
        self.committer = Committer(
            self.meta, self.inodes, self.references, self.fileio, self.hot, interval_s=commit_interval_s
        )
        self._client = SealProcessClient(Hello(str(state_dir / "chunks"), self.hash_key, map_bytes[1], level))
        self.sealer = Sealer(
            self._client,
            self.inodes,
            self.fileio,
            self.hot,
            self.reader,
            self.references,
            idle_s=seal_idle_s,
            monotonic_s=monotonic_s,
            quiet=Quiet(requests, monotonic_s),
            is_roomy=lambda: self.space.hot_bytes <= cache_bound_bytes // ROOMY_PART,
            room_bytes=lambda: self.space.sealable_bytes(),
            places=self.places,
        )
        self.read_only_reason: str | None = None
        """Why nothing may be changed, None while it may."""
        self.space = self.fileio.room = Space(state_dir, self.fileio, self.reader, cache_bound_bytes)
        self._sweep = Sweep(self.reader, self.references, is_owed=self.state.owes_sweep)
        self._is_recovered = self._is_closed = False
        self.space.pending_bytes = lambda: self.sealer.pending_bytes

    def _watch_damage(self) -> None:
        """Have whatever is found damaged here noted, and what a check has found while this was not open."""
        note_here = self.reader.on_damage = self.places.damage.note_here
        for cid in read_found(self.state.path):
            if self.reader.has(cid):
                note_here(cid)

    async def start(self, uid: int, gid: int) -> None:
        """Recover what the last daemon left, and start the seal process. *uid*, *gid* own a new root directory."""
        self.namespace.ensure_root(uid, gid)
        if not self.state.was_clean:
            reconcile_hot_files(self.inodes, self.hot, self.fileio)
        else:
            self.fileio.adopt_hot_files()
        orphans = self.namespace.reclaim_orphans()
        if orphans:
            log.info("freed %d files that were deleted while open", orphans)
        self._is_recovered = True
        await self._client.start()

    async def run(self) -> None:
        """The background work of an open volume, for ever: commit, seal, watch the room left."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.committer.run)
            nursery.start_soon(keep_going, self.sealer.run)
            nursery.start_soon(keep_going, self.space.run)
            nursery.start_soon(keep_going, partial(keep_compact, self.state.path, self.space, self.sealer))
            nursery.start_soon(keep_going, self._sweep.run)

    @property
    def seal_pid(self) -> int | None:
        """Process id of the seal process."""
        return self._client.pid

    def make_read_only(self, reason: str) -> None:
        """From here on whatever would change the tree answers EROFS; what is here stays readable."""
        log.error("read-only: %s", reason)
        self.read_only_reason = reason

    def rename_session(self, old: bytes, new: bytes) -> None:
        """Give a session another name; PosixError as rename(2)."""
        self.renames.rename(ROOT_INO, old, ROOT_INO, new, RENAME_NOREPLACE)

    async def commit_all(self) -> None:
        """Return once all content and metadata acknowledged so far is durable. Raises LocalStoreError."""
        for inode in list(self.fileio.hot_inodes.values()):
            self.fileio.order(inode)
        await self.committer.commit()

    async def close(self) -> None:
        """Make everything durable and give back what is dead. `run` must still be running. Raises LocalStoreError."""
        await self.commit_all()
        # What it says is in the database. Where it can't be removed, the next start takes it over again.
        with contextlib.suppress(OSError):
            (self.state.path / FOUND_FILE).unlink(missing_ok=True)
        with trio.move_on_after(CLOSE_DROP_S):
            if self._sweep.is_owed:
                await self._sweep.finish()
                # What it found may be dropped after this.
                await self.committer.commit()
            await self.sealer.drop_dead()
        if self.committer.is_dirty:
            # Places in the remote of what was dropped are forgotten.
            await self.committer.commit()

    async def release(self) -> None:
        """After `close`, and after `run` ended: stop the seal process and close all files."""
        await self._client.stop()
        is_left = self.committer.is_dirty or not self.fileio.retirement.is_empty or self._client.lost_count
        owes_sweep = self._sweep.is_owed or self.references.has_unused
        self._close_files()
        try:
            if self._is_recovered and not is_left:
                self.state.mark_clean(owes_sweep=owes_sweep)
        finally:
            self.state.close()

    async def abandon(self) -> None:
        """Where a mount failed: no child is left on return, nothing is written any more, and the state is free. It is
        as a crash leaves it.
        """
        await self._client.stop(0)
        self._close_files()
        self.state.close()

    def _close_files(self) -> None:
        """Closing them again does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self.reader.close()
        self.meta.close()
        self.hot.close()


def _open_stores(
    state_dir: Path, hash_key: bytes | None, map_bytes: tuple[int, int]
) -> tuple[StateDirectory, Database, bytes, Database]:
    """The state, `meta/`, the key of chunk ids, and `chunks/`, which is made if it is not there, and from then on only
    read here. Whoever wrote it before has ended. Raises as Volume.
    """
    chunks = state_dir / "chunks"
    with contextlib.ExitStack() as opened:
        state = StateDirectory(state_dir)
        opened.callback(state.close)
        remove_leftovers(state_dir)
        meta = Database(state_dir / "meta", META_TABLES, map_bytes[0])
        opened.callback(meta.close)
        key = ensure_hash_key(state_dir, hash_key)
        with WriteLock(chunks, create=True):
            Database(chunks, CHUNK_TABLES, map_bytes[1]).close()
        reading = Database(chunks, CHUNK_TABLES, map_bytes[1], readonly=True, readahead=True)
        opened.pop_all()
    return state, meta, key, reading
