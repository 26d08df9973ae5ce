"""Looking at what was uploaded from here: whether the remote still has it as it was sent, before this copy is given up.

A store may answer that it has a segment, with the right checksum, and not have it, or not whole. What is found damaged
is noted in `places`, and the next publishing uploads it again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from sessfs.errors import RemoteCorrupt, RemoteMissing, StoreCorrupt
from sessfs.format.chunk import FrameCodec, verify_chunk
from sessfs.format.manifest import ManifestRef, SegmentRef
from sessfs.format.segment import open_frame, open_manifest, segment_key
from sessfs.local.chunkstore import decode_frame_record
from sessfs.local.places import RemotePlace
from sessfs.remote.footers import iter_segments, read_segment_footer
from sessfs.sync.damage_notes import read_notes
from sessfs.sync.flights import plan_reads

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Collection, Iterable, Sequence

    from sessfs.format.envelope import Envelope
    from sessfs.local.places import Places
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.types import ChunkId

log = logging.getLogger(__name__)
SAMPLES = 2
"""Of the segments that came since it was last asked whether they are there, so many are also read in part."""
LISTED_MAX = 500
"""So few that a listing of them is one request."""
SLICE = 2000
DAMAGE = (RemoteCorrupt, RemoteMissing, StoreCorrupt)


class Looker:
    """The request loop alone; any task."""

    def __init__(
        self,
        store: ObjectStore,
        envelope: Envelope,
        hash_key: bytes,
        places: Places,
        note_all: Callable[[], None],
        choose: random.Random,
    ) -> None:
        """*note_all* is called when manifests are lost: all sessions are to be published whole. *choose* takes the
        samples.
        """
        self._store = store
        self._envelope = envelope
        self._hash_key = hash_key
        self._places = places
        self._note_all = note_all
        self._choose = choose
        self._codec = FrameCodec()
        self._listed: dict[SegmentRef, int] = {}
        """Segments that this process has uploaded or seen listed, the last of them, and their sizes."""
        self.owes_checkpoint = False
        """True once footers were found damaged that a node which takes over would read; the owner sets it back."""

    # -- before chunks are evicted

    async def look_before_eviction(self, ids: Collection[ChunkId]) -> None:
        """Look at the segments in which *ids* are placed, as far as nobody has: a frame and the end of those whose
        checksum the store has named, else everything. Afterwards `Places.may_evict` tells of each. Raises RemoteError.
        """
        placed: dict[SegmentRef, list[RemotePlace]] = {}
        for cid in ids:
            place = self._places.find(cid)
            if place is not None and (ref := SegmentRef(place.node, place.segment)) in self._places.unseen:
                placed.setdefault(ref, []).append(place)
        for ref, places in sorted(placed.items()):
            unseen = self._places.unseen.get(ref)
            if unseen is not None and not (unseen.confirmed and await self._glance(ref, unseen.size, places)):
                await self._look_through(ref)
            self._places.note_seen(ref)

    async def _glance(self, ref: SegmentRef, size: int, places: Sequence[RemotePlace]) -> bool:
        """Whether one of *places*, and the end of the segment, are sound. Raises RemoteError."""
        if not await self._is_sound(self._choose.choice(places)):
            return False
        try:
            await read_segment_footer(self._store, ref.node, ref.number, size, self._envelope)
        except DAMAGE:
            return False
        return True

    # -- before a machine is given up

    async def take_notes(self) -> None:
        """Take over what checks from outside have found. Raises RemoteError."""
        damage = self._places.damage
        for key, note in (await read_notes(self._store, damage.is_taken)).items():
            log.warning("a check has found %d frames of the remote damaged", len(note.frames))
            for place in note.places:
                self._places.note_bad(place)
            if note.refs:
                self._lose_manifests()
            damage.note_taken(key)

    async def look_at_new(self) -> bool:
        """Ask whether the segments that came since are there, whole, and those of before still are; and read a few of
        the new ones in part. Whether all that was looked at is sound. Raises RemoteError.
        """
        fresh = {ref: unseen.size for ref, unseen in self._places.unseen.items() if ref not in self._listed}
        looked_for = {**self._listed, **fresh}
        sizes = await self._sizes(looked_for)
        expected = {ref: size for ref, size in looked_for.items() if ref not in self._places.let_go}
        bad = [ref for ref, size in expected.items() if ref not in sizes or size not in (0, sizes[ref])]
        sound = sorted(fresh.keys() & (expected.keys() - bad))
        samples = self._choose.sample(sound, min(SAMPLES, len(sound)))
        frames = await self._frames_of([*samples, *bad])
        for ref in samples:
            if frames[ref] and not await self._is_sound(self._choose.choice(frames[ref])):
                bad.append(ref)
        if not self._listed and samples and samples[0] not in bad and not await self._look_through(samples[0]):
            # The first of all is read whole: an endpoint that damages what it gets mostly does so from the start.
            bad.append(samples[0])
        for ref in bad:
            await self._look_through(ref)
            self._places.note_seen(ref)
        kept = sorted((expected.keys() - bad) & sizes.keys(), key=lambda ref: ref.number)[-LISTED_MAX:]
        self._listed = {ref: sizes[ref] for ref in kept}
        return not bad

    async def _sizes(self, refs: Collection[SegmentRef]) -> dict[SegmentRef, int]:
        """Of those that are listed."""
        found: dict[SegmentRef, int] = {}
        for node in sorted({ref.node for ref in refs}):
            first = min(ref.number for ref in refs if ref.node == node)
            async for number, size in iter_segments(self._store, node, first - 1):
                found[SegmentRef(node, number)] = size
        return found

    # -- one segment

    async def _look_through(self, ref: SegmentRef) -> bool:
        """Read everything in the segment that is needed, and note what is damaged; whether nothing is. Raises
        RemoteError.
        """
        places = (await self._frames_of([ref]))[ref]
        bad = 0
        for read in plan_reads(places):
            frames = [RemotePlace(ref.node, ref.number, *frame) for frame in read.frames]
            bad += await self._read(frames)
        if not await self._has_manifests(ref):
            bad += 1
            if ref not in self._places.let_go:
                self._lose_manifests()
        if ref in self._places.let_go:
            # A collection has deleted it meanwhile.
            return True
        if bad:
            log.error("%s is damaged in the remote: what is here of it is uploaded again", segment_key(*ref))
        return not bad

    async def _read(self, places: Sequence[RemotePlace]) -> int:
        """Read frames, in one request if they are sound; how many are damaged, which is noted."""
        start = places[0].offset
        length = max(place.offset + place.length for place in places) - start
        try:
            body = (await self._store.get(segment_key(places[0].node, places[0].segment), start, length)).body
        except DAMAGE:
            if len(places) > 1:
                return sum([await self._read([place]) for place in places])
            self._places.note_bad(places[0])
            return 1
        bad = 0
        for place in places:
            if self._verify(place, body[place.offset - start : place.offset - start + place.length]):
                self._places.settle_bad(place)
            else:
                self._places.note_bad(place)
                bad += 1
            await trio.lowlevel.checkpoint()
        return bad

    async def _is_sound(self, place: RemotePlace) -> bool:
        return await self._read([place]) == 0

    def _verify(self, place: RemotePlace, sealed: bytes) -> bool:
        try:
            record = open_frame(sealed, place.node, place.segment, place.offset, self._envelope)
            entries, payload = decode_frame_record(record)
            plain, at = memoryview(self._codec.decode(payload)), 0
            for cid, length in entries:
                # One that was damaged before it was uploaded with its neighbours has another place.
                if self._places.find(cid) == place:
                    verify_chunk(self._hash_key, cid, plain[at : at + length])
                at += length
        except DAMAGE:
            return False
        return True

    async def _has_manifests(self, ref: SegmentRef) -> bool:
        """Whether the footer and the manifests of the segment are sound. Raises RemoteError."""
        size = (await self._sizes([ref])).get(ref)
        if size is None:
            return False
        try:
            footer = await read_segment_footer(self._store, ref.node, ref.number, size, self._envelope)
            for entry in footer.manifests:
                place = ManifestRef(ref.node, ref.number, entry.offset, entry.length)
                blob = await self._store.get(segment_key(*ref), place.offset, place.length)
                open_manifest(blob.body, place, self._envelope)
        except DAMAGE:
            return False
        return True

    def _lose_manifests(self) -> None:
        self._note_all()
        self.owes_checkpoint = True

    async def _frames_of(self, refs: Iterable[SegmentRef]) -> dict[SegmentRef, list[RemotePlace]]:
        """The frames that are known to lie in each of *refs*."""
        found: dict[SegmentRef, set[RemotePlace]] = {ref: set() for ref in refs}
        after: ChunkId | None = None
        while found:
            chunks = self._places.chunks_after(after, SLICE)
            if not chunks:
                break
            after = chunks[-1][0]
            for _, place in chunks:
                ref = SegmentRef(place.node, place.segment)
                if ref in found:
                    found[ref].add(place)
            await trio.lowlevel.checkpoint()
        return {ref: sorted(places) for ref, places in found.items()}
