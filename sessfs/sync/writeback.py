"""Write-back: once an interval, every changed session is cut, and what is new goes to the remote in one segment.

The order, in `_publish`, with what a crash after each step leaves:

1. cut, seal          nothing in the remote; the changes are marked in `dirty`, and are published whole next time
2. segments put       objects that nothing names; their numbers are written again, or collected
3. outbox committed   as before; the next start, or publishing, asks the node's state whether step 4 happened
4. state swapped      published: the next start finds the outbox, and adopts it
5. outbox adopted     the places of chunks and the snapshots are known here, too
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Generic, Protocol

import trio

from sessfs.errors import RemoteCorrupt, SessfsError, StoreCorrupt
from sessfs.format.manifest import FramePlace, Manifest, ManifestRef, SegmentRef
from sessfs.local.chunkstore import listed_chunks
from sessfs.local.places import Outbox, Published
from sessfs.sync.confirming import ConfirmedPuts
from sessfs.sync.cutting import Cutter, Round
from sessfs.sync.mending import Mender
from sessfs.sync.snapshot import Draft, FrozenT
from sessfs.sync.upload import Numbering, Upload
from sessfs.types import ROOT_INO, ChunkId, Ino

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence, Set

    from sessfs.format.envelope import Envelope
    from sessfs.local.changes import Changes
    from sessfs.local.chunkstore import ChunkReader, References
    from sessfs.local.inodes import Inodes
    from sessfs.local.places import Places
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.sync.snapshot import Freezer

log = logging.getLogger(__name__)
BATCH_BYTES = 2 << 20
BATCH_CHUNKS = 512
POLL_S = 0.25
RETRY_S = 5.0


class Publisher(Numbering, Protocol):
    """The node's identity in the remote: gives segment numbers, and makes segments count."""

    async def announce(self, name: bytes) -> None:
        """Make the object of a session that was never published before; fine when it is there."""

    async def settle(self) -> None:
        """Return once no write that was given up before can make segments count any more: `last_segment` is then what
        counts. Raises Fenced, RemoteError.
        """

    async def publish(self, last_segment: int, entries: Sequence[tuple[bytes, ManifestRef | None, int]]) -> None:
        """Segments up to *last_segment* count from here on, and *entries* (session, manifest or None when removed,
        sequence) are the latest of their sessions. Raises Fenced.
        """


async def _nobody(names: Set[bytes]) -> None:
    pass


class Writeback(Generic[FrozenT]):
    """The loop that publishes, and `sync`, which does so at once."""

    def __init__(
        self,
        store: ObjectStore,
        envelope: Envelope,
        publisher: Publisher,
        inodes: Inodes,
        changes: Changes,
        references: References,
        reader: ChunkReader,
        places: Places,
        freezer: Freezer[FrozenT],
        *,
        flush_kernel: Callable[[], Awaitable[None]],
        commit: Callable[[], Awaitable[None]],
        ready: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
        prepare: Callable[[], Awaitable[None]],
        clock_ns: Callable[[], int],
        interval_s: float,
        done: Callable[[Sequence[Ino], Sequence[Ino]], None] = lambda published, removed: None,
        named: Callable[[Set[bytes]], Awaitable[None]] = _nobody,
        crash_point: Callable[[str], None] = lambda name: None,
    ) -> None:
        """*ready* is awaited before each round, *prepare* once it holds `busy`; either may raise RemoteError. *done* is
        told, after each round, of sessions whose snapshot, and whose removal, is published; *named* is awaited after
        that with the names that are new to the remote, again and again until it raises no RemoteError.
        """
        self._store = store
        self._envelope = envelope
        self._publisher = publisher
        self._inodes = inodes
        self._changes = changes
        self._references = references
        self._reader = reader
        self._checker = reader.checker()
        self._puts = ConfirmedPuts(store)
        self.mender = Mender(inodes, changes, references, reader, places)
        self._places = places
        self._cutter = Cutter(inodes, changes, references, freezer, places.published)
        self._flush_kernel = flush_kernel
        self._commit = commit
        self._ready = ready
        self._prepare = prepare
        self._clock_ns = clock_ns
        self._interval_s = interval_s
        self._done = done
        self._named = named
        self._new_names: set[bytes] = set()
        self._crash_point = crash_point
        self.busy = trio.Lock()
        """Held while a round is under way: until it ends, no session may change its inode."""
        self.failed: str | None = None
        """Why the last publishing failed, None once one succeeds again."""
        self.n_published = 0
        self._starts: dict[Ino, int] = {}
        """Of what sessions read at a start: the hash of what was published last, by this process."""

    # -- the loop

    async def run(self) -> None:
        """Publish for ever; started once, in the daemon's nursery."""
        while True:
            await trio.sleep(POLL_S)
            oldest_ns = min((c.since_ns for c in self._changes.sessions.values()), default=None)
            is_due = oldest_ns is not None and self._clock_ns() - oldest_ns >= self._interval_s * 1e9
            if not (is_due or self._places.damage.is_news):
                continue
            try:
                await self.publish()
            except SessfsError as exc:
                if self.failed is None:
                    log.error("write-back failed, will be tried again: %s", exc)
                self.failed = str(exc)
                # A store that damages what it gets would be sent all that waits, again and again.
                await trio.sleep(max(RETRY_S, self._interval_s) if isinstance(exc, RemoteCorrupt) else RETRY_S)

    async def publish(self) -> None:
        """Return once every change acknowledged before the call is in the remote. Raises RemoteError or
        LocalStoreError; then all changes are still here and pending. A session of which a chunk is lost is left
        out, and raised as StoreCorrupt once the others are published.
        """
        await self._ready()
        # What one round replaces in the remote is named by other sessions, which are the next one's.
        while await self._publish_once():
            pass

    async def _publish_once(self) -> bool:
        """One round; whether another one has to follow at once."""
        async with self.busy:
            await self._prepare()
            await self._settle_outbox()
            await self._flush_kernel()
            await self.mender.note_news()
            round_ = Round[FrozenT]()
            try:
                self._cutter.cut(round_)
                await self._cutter.seal(round_)
                must_follow = await self._publish(round_)
            except BaseException:
                self._cutter.undo(round_)
                raise
            finally:
                self._cutter.end(round_)
            for draft in round_.drafts:
                self._changes.settle(draft.session)
            for session in round_.removed:
                self._changes.forget(session)
            self._done([draft.session for draft in round_.drafts], list(round_.removed))
            self._new_names |= {d.name for d in round_.drafts if d.published is None or d.published.name != d.name}
            await self._named(self._new_names)
            self._new_names.clear()
            if round_.damage is not None:
                raise round_.damage
            self.failed = None
            self.n_published += bool(round_.drafts or round_.removed)
            return must_follow

    async def snapshot(self, session: Ino) -> None:
        """See Snapshotter: what is published is a snapshot."""
        await self.publish()

    def due(self) -> list[Ino]:
        """See Snapshotter: `run` sees to it."""
        return []

    def tell_of_damage(self, listener: Callable[[Ino, StoreCorrupt], None]) -> None:
        """See Snapshotter."""
        self._cutter.on_damage = listener

    async def _settle_outbox(self) -> None:
        """An upload of which it is not known whether it counts: find out, before its numbers are used again."""
        outbox = self._places.outbox()
        if outbox is None:
            return
        await self._publisher.settle()
        if self._publisher.last_segment >= outbox.last_segment:
            self._places.adopt(self._publisher.name, outbox)
        else:
            self._places.set_outbox(None)

    # -- publishing

    async def _publish(self, round_: Round[FrozenT]) -> bool:
        """Whether sessions that are not in the round have to be published because of it."""
        self._crash_point("cut")
        upload = Upload(self._puts, self._envelope, self._publisher)
        for draft in list(round_.drafts):
            try:
                await self._add_frames(upload, draft)
            except StoreCorrupt as exc:
                self._cutter.leave_out(round_, draft, exc)
        drafts, removed = round_.drafts, round_.removed
        if not drafts and not removed:
            return False
        starts = {draft.session: self._places.startup(draft.session) for draft in drafts}
        published = [(int(d.session), await self._add_manifest(upload, d, starts[d.session])) for d in drafts]
        gone = self._gone_names(drafts, removed)
        for name in gone:
            upload.builder.add_removed(name)
        await upload.close(self._clock_ns())
        self._crash_point("segments")
        outbox = Outbox(
            self._publisher.incarnation, upload.last_segment, upload.places, published, [int(ino) for ino in removed]
        )
        must_follow = await self.mender.note_uploaded(upload, {draft.session for draft in drafts if draft.is_full})
        self._places.set_outbox(outbox)
        await self._commit()
        self._crash_point("outbox")
        for draft in drafts:
            if draft.published is None:
                await self._publisher.announce(draft.name)
        entries: list[tuple[bytes, ManifestRef | None, int]] = [
            (p.name, ManifestRef(*p.manifest), p.sequence) for _, p in published if p.manifest is not None
        ]
        entries += [(name, None, 0) for name in gone]
        await self._publisher.publish(upload.last_segment, entries)
        self._crash_point("state")
        self._places.adopt(self._publisher.name, outbox)
        self._starts.update((session, hash(ids)) for session, ids in starts.items())
        for session in removed:
            self._starts.pop(session, None)
        return must_follow

    def _gone_names(self, drafts: list[Draft[FrozenT]], removed: dict[Ino, bytes]) -> list[bytes]:
        """Names that stand for no session any more: of removed sessions, and the old ones of renamed sessions."""
        old = set(removed.values())
        old |= {d.published.name for d in drafts if d.published is not None and d.published.name != d.name}
        return sorted(name for name in old if self._inodes.find_dentry(ROOT_INO, name) is None)

    async def _add_frames(self, upload: Upload, draft: Draft[FrozenT]) -> None:
        """Have a place for each of the draft's chunks. Raises StoreCorrupt for one that is not sound, RemoteError."""
        for batch in self._batches(upload, draft):
            await upload.add_frames(batch, self._checker, self._is_fresh, self._clock_ns())
        for cid in draft.iter_chunks():
            if cid in upload.placed or self.mender.is_placed(cid):
                continue
            try:
                record = self._reader.frame_alone(cid)
            except StoreCorrupt:
                if self._places.has(cid):
                    continue  # damaged in the remote, and here as well
                raise
            if record is None:
                raise StoreCorrupt(f"chunk {cid.hex()} is neither here nor uploaded")
            await upload.add_frames([(cid, record)], self._checker, self._is_fresh, self._clock_ns())

    def _batches(self, upload: Upload, draft: Draft[FrozenT]) -> Iterator[list[tuple[ChunkId, bytes]]]:
        """The records of frames that hold the draft's chunks without a place, each with the chunk that it is for; a few
        at a time, and sometimes none, so that whoever wants the request loop gets it between two batches.
        """
        batch: list[tuple[ChunkId, bytes]] = []
        listed: set[ChunkId] = set()
        size = 0
        for seen, cid in enumerate(draft.iter_chunks()):
            if seen % BATCH_CHUNKS == 0 or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
            if cid in listed or cid in upload.placed or self.mender.is_placed(cid):
                continue
            record = self._reader.find_record(cid)
            if record is None:
                raise StoreCorrupt(f"chunk {cid.hex()} is neither here nor uploaded")
            batch.append((cid, record))
            listed.update(listed_chunks(record))
            size += len(record)
        yield batch

    def _is_fresh(self, cid: ChunkId) -> bool:
        """Whether a place of the chunk is to be noted."""
        return self._references.is_held(cid) and not self.mender.is_placed(cid)

    async def _add_manifest(self, upload: Upload, draft: Draft[FrozenT], startup: bytes) -> Published:
        before = draft.published
        base = None if draft.is_full or before is None or before.manifest is None else ManifestRef(*before.manifest)
        segments, frames = await self._frame_places(upload, draft)
        last = self._places.snapshots.last_sequence(draft.session)
        manifest = Manifest(
            version=1,
            session=draft.name,
            sequence=1 + max(before.sequence if before is not None else 0, last),
            base=base,
            depth=0 if base is None or before is None else before.depth + 1,
            taken_ns=self._clock_ns(),
            root=int(draft.session),
            nodes=draft.nodes,
            names=draft.names,
            gone_nodes=draft.gone_nodes,
            gone_names=draft.gone_names,
            segments=segments,
            frames=frames,
            startup=b"" if base is not None and self._starts.get(draft.session) == hash(startup) else startup,
        )
        ref = await upload.add_manifest(manifest, self._clock_ns())
        return Published(
            name=draft.name,
            sequence=manifest.sequence,
            manifest=(ref.node, ref.segment, ref.offset, ref.length),
            depth=manifest.depth,
            full_bytes=ref.length if base is None or before is None else before.full_bytes,
            delta_bytes=0 if base is None or before is None else before.delta_bytes + ref.length,
            taken_ns=manifest.taken_ns,
        )

    async def _frame_places(self, upload: Upload, draft: Draft[FrozenT]) -> tuple[list[SegmentRef], list[FramePlace]]:
        """The segments and frames that hold the draft's chunks, chunks of one frame together."""
        frames: dict[tuple[str, int, int, int], list[ChunkId]] = {}
        for seen, cid in enumerate(draft.iter_chunks()):
            if seen % BATCH_CHUNKS == 0:
                await trio.lowlevel.checkpoint()
            place = upload.placed.get(cid)
            if place is None:
                known = self._places.find(cid)
                if known is None:
                    raise StoreCorrupt(f"chunk {cid.hex()} has no place in the remote")
                place = (known.node, known.segment, known.offset, known.length)
            frames.setdefault(place, []).append(cid)
        segments = sorted({(node, number) for node, number, _, _ in frames})
        index = {segment: i for i, segment in enumerate(segments)}
        return [SegmentRef(*s) for s in segments], [
            FramePlace(index[node, number], offset, length, b"".join(ids))
            for (node, number, offset, length), ids in frames.items()
        ]

    # -- measures

    def in_flight(self) -> set[Ino]:
        """Sessions whose snapshot is on its way."""
        return set(self._cutter.in_flight)

    def in_flight_bytes(self, session: Ino) -> int:
        """Bytes of the files that the session's snapshot on its way speaks of."""
        draft = self._cutter.in_flight.get(session)
        return sum(node.size for node in draft.nodes) if draft is not None else 0

    def at_risk(self, session: Ino) -> int | None:
        """Since when (ns since 1970) the session has changes that the remote lacks; None when it has none."""
        times = [c.since_ns for c in (self._changes.sessions.get(session),) if c is not None]
        if session in self._cutter.in_flight:
            times.append(self._cutter.in_flight[session].changes.since_ns)
        return min(times, default=None)
