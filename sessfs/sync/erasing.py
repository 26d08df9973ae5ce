"""Erasing a removed session from the remote: no object holds a byte any more that only that session had.

Everything in the bucket that no manifest of a session which is still there speaks of counts as that session's. So a
segment is *doomed* if it names the session, or has a frame with a chunk that no such manifest names: the chunk may have
been the session's long ago, in a snapshot that is no longer known. What others need of doomed segments is written anew,
frames with just the chunks that are needed, and full manifests; then the doomed segments are deleted, with no grace.

The order, with what a crash after each step leaves; the next run does it all again:

1. removal published       the session is gone, its bytes are there
2. segments put            objects that nothing names, which are written again or doomed by the next run
3. outbox committed, state swapped, outbox adopted     as in write-back: sessions' latest manifests lie elsewhere
4. kept snapshots changed, here and in the sessions' own objects
5. mark put                                            a node that takes over does not rely on the doomed segments
6. session's own object deleted, checkpoint written    its name is nowhere but in doomed segments
7. doomed segments and old checkpoints deleted         in any order: nothing refers to them
8. mark deleted       a mark that is left is like a collector's: the next collection knows what to do with it

The mark is there because a deletion may be late: this node stalls in step 7, and another one takes over, whose state
directory still knows places in the doomed segments.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from sessfs.errors import RemoteConflict, RemoteDenied, RemoteUnsuitable
from sessfs.format.manifest import ManifestRef, SegmentRef, split_ids
from sessfs.format.repository import encode_state
from sessfs.format.roster import ROSTER_KEY
from sessfs.format.segment import NODES_PREFIX, checkpoint_key, segment_key, session_key, state_key
from sessfs.local.places import Outbox, Published
from sessfs.remote.parallel import for_each
from sessfs.remote.sessionobjects import write_objects
from sessfs.sync import gc_marks, remote_index
from sessfs.sync.erasing_evidence import Evidence
from sessfs.sync.erasing_moves import Mover, find_needs
from sessfs.sync.gc_marks import MARK_PREFIX, MARK_VERSION, Mark
from sessfs.sync.remote_index import Root
from sessfs.sync.snapshot import MAX_DEPTH
from sessfs.sync.writeback import Publisher
from sessfs.types import Ino

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping

    import trio

    from sessfs.format.envelope import Envelope
    from sessfs.format.repository import SessionObject
    from sessfs.local.places import Places
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.sync.erasing_moves import Need
    from sessfs.sync.remote_index import View
    from sessfs.types import ChunkId

DELETE_BATCH = 1000


class Eraser(Publisher, Protocol):
    """What of the node erasing needs."""

    async def checkpoint(self) -> None:
        """Write down what is the latest, and kept, of each session. Raises Fenced, RemoteError."""

    async def prove_right(self) -> None:
        """Return once the remote has confirmed that the prefix was still this node's after the call. Raises Fenced,
        RemoteError.
        """

    def relocate(self, moved: Mapping[ManifestRef, ManifestRef]) -> None:
        """Kept snapshots lie elsewhere from now on."""

    async def erase(self, names: Collection[bytes]) -> None:
        """Delete the objects of removed sessions, and write a checkpoint that does not name them. Raises Fenced,
        RemoteError.
        """


class Erased(NamedTuple):
    """What was done in the remote. *moved_bytes* were uploaded anew for others."""

    segments: int
    segment_bytes: int
    moved_bytes: int
    versions: int
    """Old versions of objects that a versioned bucket had kept, and has no more."""
    notes: list[str]


class RemoteEraser:
    """Erases sessions from the remote of the node that holds it. The request loop alone."""

    def __init__(
        self,
        store: ObjectStore,
        envelope: Envelope,
        hash_key: bytes,
        node: Eraser,
        places: Places,
        *,
        busy: trio.Lock,
        publish: Callable[[], Awaitable[None]],
        commit: Callable[[], Awaitable[None]],
        bring_here: Callable[[Collection[ChunkId]], Awaitable[None]],
        is_held: Callable[[ChunkId], bool],
        settle_reads: Callable[[], Awaitable[None]],
        clean_frames: Callable[[], Awaitable[None]],
        clock_ns: Callable[[], int],
        crash_point: Callable[[str], None] = lambda name: None,
    ) -> None:
        """*busy* and *publish* are the write-back's. *bring_here* has chunks in the local store on return, as far as
        they are held, and their places forgotten; *settle_reads* waits for range reads that are under way;
        *clean_frames* takes dead chunks out of local frames.
        """
        self._store = store
        self._envelope = envelope
        self._hash_key = hash_key
        self._node = node
        self._places = places
        self._busy = busy
        self._publish = publish
        self._commit = commit
        self._bring_here = bring_here
        self._is_held = is_held
        self._settle_reads = settle_reads
        self._clean_frames = clean_frames
        self._clock_ns = clock_ns
        self._crash_point = crash_point

    async def erase(self, names: Collection[bytes], on_step: Callable[[str, int, int], None]) -> Erased:
        """Erase the sessions *names*, which are removed here, and no session of that name is there. Raises RemoteError,
        LocalStoreError; what was done by then stays done, and calling it again does the rest.
        """
        await self._publish()
        self._crash_point("published")
        scanned = self._node.last_segment
        notes: list[str] = []
        view = await self._read_view()
        await self._let_go_of_replaced(view, notes)
        evidence = Evidence(self._store, self._envelope, view, names)
        await evidence.gather(on_step)
        async with self._busy:
            # What is kept of sessions that were removed since the last one is not, from here on.
            await self._node.checkpoint()
            await self._refuse_present(names)
            needs = await self._needs(evidence.doomed, names)
            moved_bytes = await self._move(needs, evidence.doomed)
            await self._release_places(evidence.doomed)
            await self._commit()
            self._crash_point("moved")
            # Those in between were written since they were looked at.
            fresh = range(scanned + 1, self._node.last_segment + 1)
            doomed = {ref for ref in evidence.doomed if ref.node != self._node.name or ref.number not in fresh}
            self._places.note_let_go(doomed)
            mark_keys = await self._condemn(doomed)
            self._crash_point("condemned")
            await self._node.erase(names)
            self._crash_point("checkpoint")
            left = await self._needs(evidence.doomed, ())
            if left:
                who = ", ".join(sorted({need.root.session.decode(errors="replace") for need in left}))
                raise RemoteConflict(f"sessions {who} changed while others were erased; nothing is lost: try again")
            view = await self._read_view()
            sizes = [view.inventory.segments[ref].size for ref in doomed if ref in view.inventory.segments]
            await self._delete(view, doomed)
            await self._store.delete(mark_keys)
        versions = await self._delete_versions(names, notes)
        return Erased(len(doomed), sum(sizes), moved_bytes, versions, notes)

    async def _read_view(self) -> View:
        return await remote_index.read_view(self._store, self._envelope)

    async def _refuse_present(self, names: Collection[bytes]) -> None:
        truth = (await self._read_view()).truth
        for name in names:
            if truth.get(name, (None, 0))[0] is not None:
                raise RemoteConflict(
                    f"session {name.decode(errors='replace')} was made anew while it was being erased: stop what makes "
                    "it, and erase it again"
                )

    async def _needs(self, doomed: Collection[SegmentRef], erased: Collection[bytes]) -> list[Need]:
        view = await self._read_view()
        kept_here = list(self._kept_here())
        return await find_needs(self._store, self._envelope, view, kept_here, doomed, erased)

    def _kept_here(self) -> Iterator[Root]:
        table = self._places.snapshots
        for session in list(table.iter_sessions()):
            published = self._places.published(session)
            for _, snapshot in table.entries(session):
                if published is not None and snapshot.manifest is not None:
                    yield Root(published.name, ManifestRef(*snapshot.manifest), "kept", "the state directory")

    async def _let_go_of_replaced(self, view: View, notes: list[str]) -> None:
        """Nodes that another one replaced keep alive what they last knew, the erased session with it: no more."""
        # Only now is it sure that those in *view* are replaced: a node that took over since would be let go, too. And
        # one that takes over from here on has another state by then, so that the swap of what *view* has fails.
        await self._node.prove_right()
        for node, state in sorted(view.states.items()):
            if node == self._node.name or state.clean:
                continue
            done = msgspec.structs.replace(state, clean=True, has_checkpoint=False, beat=state.beat + 1)
            await self._store.put_if(state_key(node), encode_state(done), view.etags[node])
            notes.append(
                f"node {node} (host {state.hostname}) was replaced and never came back; its state directory may hold "
                "copies: remove it there"
            )

    async def _move(self, needs: list[Need], doomed: Collection[SegmentRef]) -> int:
        """Publish what *needs* say elsewhere; returns the bytes that were uploaded anew."""
        if not needs:
            return 0
        mover = Mover(self._store, self._envelope, self._hash_key, self._node, self._clock_ns)
        await mover.run(needs, doomed)
        self._crash_point("segments")
        places = [(n, offset, length, b"".join(self._known_here(ids))) for n, offset, length, ids in mover.places]
        published = list(self._moved_published(mover.moved))
        outbox = Outbox(self._node.incarnation, mover.last_segment, places, published)
        self._places.set_outbox(outbox)
        await self._commit()
        self._crash_point("outbox")
        latest = [need for need in needs if need.root.kind == "latest"]
        entries = [(n.root.session, mover.moved[n.root.ref], n.manifest.sequence) for n in latest]
        await self._node.publish(mover.last_segment, entries)
        self._crash_point("state")
        self._places.adopt(self._node.name, outbox)
        self._note_moved(mover.moved)
        self._crash_point("kept here")
        await self._move_in_objects(mover.moved)
        # Once more, for sessions that were loaded meanwhile by what was the latest, and kept, before.
        self._note_moved(mover.moved)
        return mover.moved_bytes

    def _known_here(self, ids: bytes) -> list[ChunkId]:
        """Of chunks of sessions that were never looked at here, nothing is noted."""
        return [cid for cid in split_ids(ids) if self._places.has(cid) or self._is_held(cid)]

    def _moved_published(self, moved: dict[ManifestRef, ManifestRef]) -> Iterator[tuple[int, Published]]:
        """What becomes of the sessions that are here: the next delta builds upon the full manifest."""
        for session, published in self._places.iter_published():
            ref = None if published.manifest is None else moved.get(ManifestRef(*published.manifest))
            if ref is not None:
                # One that was restored has other inode numbers here: its depth says that no delta can follow.
                depth = published.depth if published.depth >= MAX_DEPTH else 0
                moved_to = msgspec.structs.replace(
                    published, manifest=tuple(ref), depth=depth, full_bytes=ref.length, delta_bytes=0
                )
                yield int(session), moved_to

    def _note_moved(self, moved: dict[ManifestRef, ManifestRef]) -> None:
        """What is published, and kept, as it is noted here. Synchronous."""
        for session, published in list(self._moved_published(moved)):
            self._places.set_published(Ino(session), published)
        table = self._places.snapshots
        for session in list(table.iter_sessions()):
            for sequence, snapshot in table.entries(session):
                ref = None if snapshot.manifest is None else moved.get(ManifestRef(*snapshot.manifest))
                if ref is not None:
                    table.put(session, sequence, msgspec.structs.replace(snapshot, manifest=tuple(ref)))
        self._node.relocate(moved)

    async def _move_in_objects(self, moved: dict[ManifestRef, ManifestRef]) -> None:
        """What is the latest, and kept, as sessions' own objects say."""

        def draft(name: bytes, there: SessionObject | None) -> SessionObject | None:
            if there is None:
                return None
            kept = [msgspec.structs.replace(k, manifest=moved.get(k.manifest, k.manifest)) for k in there.kept]
            latest = None if there.manifest is None else moved.get(there.manifest, there.manifest)
            return msgspec.structs.replace(there, manifest=latest, kept=kept)

        stale: list[bytes] = []

        async def find_stale(key: str) -> None:
            record = await remote_index.read_session(self._store, self._envelope, key)
            if record is not None and draft(record.name, record) != record:
                stale.append(record.name)

        await for_each(remote_index.iter_session_keys(self._store), find_stale)
        await write_objects(self._store, self._envelope, stale, draft, self._node.prove_right)

    async def _release_places(self, doomed: Collection[SegmentRef]) -> None:
        """No chunk is placed in a doomed segment here any more; what is still needed is uploaded again."""
        # A manifest that is being read right now, and names them, is read again before it is used. Those that were used
        # are seen here: nothing runs in between.
        self._places.relocations += 1
        placed = [cid for cid, place in self._places.iter_chunks() if SegmentRef(place.node, place.segment) in doomed]
        await self._bring_here(placed)
        # What came from doomed segments came as whole frames, and would go up as such.
        await self._settle_reads()
        await self._clean_frames()

    async def _condemn(self, doomed: Collection[SegmentRef]) -> list[str]:
        """Say in a mark that the doomed segments go; its key."""
        if not doomed:
            return []
        mark = Mark(version=MARK_VERSION, candidates=gc_marks.group(doomed), rescued={}, retired=[])
        key = f"{MARK_PREFIX}{secrets.token_hex(8)}"
        await self._store.put(key, gc_marks.encode_mark(mark))
        return [key]

    async def _delete(self, view: View, doomed: Collection[SegmentRef]) -> None:
        """Delete the doomed segments, and every checkpoint that no node needs."""
        current = {(node, state.last_checkpoint) for node, state in view.states.items() if state.has_checkpoint}
        keys = [segment_key(*ref) for ref in sorted(doomed)]
        keys += [checkpoint_key(*ref) for ref in sorted(view.inventory.checkpoints) if ref not in current]
        for first in range(0, len(keys), DELETE_BATCH):
            # A node that took over before the mark was put may rely on them.
            await self._node.prove_right()
            await self._store.delete(keys[first : first + DELETE_BATCH])
            self._crash_point("deleting")

    async def _delete_versions(self, names: Collection[bytes], notes: list[str]) -> int:
        """In a bucket that keeps old versions: of segments and checkpoints, and of the sessions' own objects."""
        own = {session_key(self._envelope, name) for name in names}
        try:
            return await self._store.delete_old_versions(
                lambda key: key in own or key == ROSTER_KEY or key.startswith(NODES_PREFIX)
            )
        except (RemoteUnsuitable, RemoteDenied) as exc:
            notes.append(
                f"whether the bucket keeps old versions of what is deleted is unknown ({exc}): if it does, delete "
                f"those below {NODES_PREFIX} and of {', '.join((ROSTER_KEY, *sorted(own)))}"
            )
            return 0
