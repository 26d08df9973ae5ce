"""Collection by the node that holds the prefix: daily by itself, or when asked to."""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from sessfs.errors import LocalStoreError, SessfsError
from sessfs.format.manifest import SegmentRef
from sessfs.mount.showing import while_showing
from sessfs.sync.bringing import bring_here
from sessfs.sync.gc import Options, Report, collect
from sessfs.sync.gc_marks import missing_segments
from sessfs.types import ROOT_INO

if TYPE_CHECKING:
    from collections.abc import Collection

    from sessfs.errors import RemoteCorrupt, StoreCorrupt
    from sessfs.mount.control import Progress
    from sessfs.mount.node_gate import NodeGate
    from sessfs.mount.repository import Repository
    from sessfs.sync.fetch import RemoteChunks
    from sessfs.sync.gc_live import Rewrite
    from sessfs.sync.restore import SessionDirectory
    from sessfs.types import ChunkId, Ino
    from sessfs.vfs.volume import Volume

log = logging.getLogger(__name__)
FIRST_RUN_S = 3600.0
EVERY_S = 86_400.0
RETRY_S = 5.0


class Collector:
    """Runs collections of the mounted node; `Holding` for them."""

    def __init__(
        self,
        repository: Repository,
        gate: NodeGate,
        volume: Volume,
        chunks: RemoteChunks,
        sessions: SessionDirectory,
        *,
        publishing: trio.Lock,
        grace_s: float,
    ) -> None:
        """*publishing* is the write-back's `busy`: what it relies on is not changed under it."""
        self._repository = repository
        self._gate = gate
        self._volume = volume
        self._chunks = chunks
        self._sessions = sessions
        self._step: dict[str, Any] = {"stage": "starting", "done": 0}
        self._publishing = publishing
        self._grace_s = grace_s
        self.busy = trio.Lock()
        """Held while a collection runs."""

    @property
    def name(self) -> str:
        """See Holding."""
        return self._gate.name

    @property
    def incarnation(self) -> int:
        """See Holding."""
        return self._gate.incarnation

    @property
    def last_segment(self) -> int:
        """See Holding."""
        return self._gate.last_segment

    def release_segments(self, segments: Collection[SegmentRef]) -> set[SegmentRef]:
        """See Holding."""
        spared: set[SegmentRef] = set()
        placed: list[tuple[ChunkId, SegmentRef]] = []
        wanted = set(segments)
        for cid, place in self._volume.places.iter_chunks():
            ref = SegmentRef(place.node, place.segment)
            if ref in wanted:
                placed.append((cid, ref))
                if self._volume.references.is_held(cid):
                    spared.add(ref)
        self._volume.places.forget([cid for cid, ref in placed if ref not in spared])
        self._volume.places.note_let_go(wanted - spared)
        return spared

    async def run(self) -> None:
        """Collect daily, for ever; started once, in the daemon's nursery."""
        await trio.sleep(FIRST_RUN_S)
        while True:
            try:
                report = await self.collect(dry_run=False, grace_s=None, progress=None)
                log.info("collected %d of %d segments", report["deleted"], report["segments"])
            except SessfsError as exc:
                log.warning("nothing was collected: %s", exc)
            await trio.sleep(EVERY_S)

    async def collect(self, *, dry_run: bool, grace_s: float | None, progress: Progress | None) -> dict[str, Any]:
        """One run; its report. Raises RemoteError, nothing being deleted then."""
        options = Options(secrets.token_hex(8), self._grace_s if grace_s is None else grace_s, dry_run)

        def note(stage: str, done: int) -> None:
            self._step = {"stage": stage, "done": done}

        async def work() -> Report:
            if not dry_run:
                # So that what history has let go since the last one counts as let go.
                await self._gate.checkpoint()
            return await collect(
                self._repository.remote.store,
                self._repository.envelope,
                options,
                holding=self,
                request_rewrite=self.rewrite,
                progress=note,
            )

        async with self.busy:
            report = await while_showing(progress, lambda: self._step, work)
        answer: dict[str, Any] = msgspec.to_builtins(report)
        return answer

    async def rewrite(self, rewrite: Rewrite) -> None:
        """See Rewrite: the next publishing uploads the chunks again, and the sessions whole. Raises as `bring_here`."""
        for name in rewrite.sessions:
            await self._sessions.find(name)
            dentry = self._volume.inodes.find_dentry(ROOT_INO, name)
            if dentry is not None and dentry.ino in self._sessions.stubs:
                await self._sessions.load(dentry.ino)
        # First without the lock, so that publishing waits for next to nothing.
        await self._chunks.bring(rewrite.chunks)
        async with self._publishing:
            await self.bring_here(rewrite.chunks)
            for session, published in list(self._volume.places.iter_published()):
                if published.name in rewrite.sessions:
                    self._volume.changes.note_whole(session)

    async def bring_here(self, ids: Collection[ChunkId]) -> None:
        """Have chunks in the local store, as far as they are held, and their places forgotten; the write-back's `busy`
        must be held. Raises RemoteError, LocalStoreError; for one that can't be had RemoteCorrupt or StoreCorrupt, once
        the others are here.
        """
        for problem in (await self._bring(ids)).values():
            raise problem

    async def _bring(self, ids: Collection[ChunkId]) -> dict[ChunkId, StoreCorrupt | RemoteCorrupt]:
        return await bring_here(self._chunks, self._volume.places, self._volume.sealer, ids)

    async def distrust_missing(self) -> None:
        """At a start, before anything is published: no longer rely on segments that were collected while this node was
        away. What was in them is uploaded again. Raises RemoteError; where the local store can't take it, waits.
        """
        while True:
            try:
                async with self._publishing:
                    return await self._distrust_missing()
            except LocalStoreError as exc:
                log.warning("not publishing before what was collected meanwhile is here: %s", exc)
            await trio.sleep(RETRY_S)

    async def _distrust_missing(self) -> None:
        places = self._volume.places
        placed = {SegmentRef(place.node, place.segment) for _, place in places.iter_chunks()}
        known = placed | places.unseen.keys()
        gone = await missing_segments(self._repository.remote.store, known) if known else set()
        places.note_let_go(gone)
        if not gone <= placed:
            # Of the others, those with manifests of the past or with nothing may go.
            gone &= placed | set(places.iter_named())
        if not gone:
            return
        ids = [cid for cid, place in places.iter_chunks() if SegmentRef(place.node, place.segment) in gone]
        log.warning("%d segments were collected meanwhile; %d chunks are uploaded again", len(gone), len(ids))
        lost = await self._bring(ids)
        if lost:
            log.error(
                "%d chunks are neither here nor in the remote any more, or damaged there (%s): `sessfs fsck --remote` "
                "names the files: take them from an older snapshot or a backup",
                len(lost),
                next(iter(lost.values())),
            )
        sessions: list[Ino] = [session for session, published in places.iter_published() if not published.stub]
        for session in sessions:
            self._volume.changes.note_whole(session)
