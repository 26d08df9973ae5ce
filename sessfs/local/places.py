"""What the remote has: where each uploaded chunk lies, and which snapshot of each session was published last.

Tables of `meta/`, so they change in the same batches as everything else. Record layouts: docs/format.md.
"""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from sessfs.errors import StoreCorrupt
from sessfs.format.manifest import SegmentRef, split_ids
from sessfs.local.damage import DAMAGE, Damage
from sessfs.local.db import Database, TableName
from sessfs.local.snapshots import Snapshot, SnapshotTable
from sessfs.types import ROOT_INO, ChunkId, Ino

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Set

PLACES = TableName("places")
SEGMENTS = TableName("segments")
PUBLISHED = TableName("published")
OUTBOX = TableName("outbox")
STARTUP = TableName("startup")
HELD = TableName("held")
UNVERIFIED = TableName("unverified")
UNSEEN = TableName("unseen")
PLACE_TABLES = (PLACES, SEGMENTS, PUBLISHED, OUTBOX, STARTUP, HELD, UNVERIFIED, DAMAGE, UNSEEN)
YOUNG_TABLES = (DAMAGE, UNSEEN)
"""Tables that a state lacks until a daemon has opened it that knows them."""

PLACE_RECORD = struct.Struct("<III")
SEGMENT_KEY = struct.Struct(">I")
SESSION_KEY = struct.Struct(">Q")
OUTBOX_KEY = b"outbox"
HELD_KEY = b"incarnation"
INCARNATION = struct.Struct("<Q")
UNSEEN_RECORD = struct.Struct("<II")
SEEN_KEY = b"since"


class RemotePlace(NamedTuple):
    """Where a chunk's frame lies: the segment of a node, and the bytes of that object."""

    node: str
    segment: int
    offset: int
    length: int


class Unseen(NamedTuple):
    """A segment that was uploaded from here and not looked at since. *size* in bytes, 0 where that is not known;
    *confirmed*: the store has named the checksum of what it got, which was the right one.
    """

    size: int
    confirmed: bool


class Published(msgspec.Struct, frozen=True, array_like=True):
    """The last published snapshot of a session: its manifest lies at (node, segment, offset, length); None where the
    session is known to be in the remote but was not loaded. *full_bytes* and *delta_bytes* are the sizes of the last
    full manifest and of the deltas since. *taken_ns* is when the snapshot was cut, 0 where that is not known.
    """

    name: bytes
    sequence: int
    manifest: tuple[str, int, int, int] | None
    depth: int = 0
    full_bytes: int = 0
    delta_bytes: int = 0
    stub: bool = False
    taken_ns: int = 0


class Outbox(msgspec.Struct, frozen=True, array_like=True):
    """An upload on its way: what becomes true once the node's state names *last_segment*."""

    incarnation: int
    last_segment: int
    places: list[tuple[int, int, int, bytes]]
    """(segment number, offset, length, concatenated ids of the frame's chunks)"""
    published: list[tuple[int, Published]]
    """(session inode, what it becomes)"""
    removed: list[int] = []
    """Session inodes whose removal is published."""


class Places:
    """The request loop alone."""

    def __init__(self, meta: Database) -> None:
        self._meta = meta
        self.snapshots = SnapshotTable(meta)
        self.damage = Damage(meta)
        self.relocations = 0
        """Grows when an erasure has moved manifests and forgets places: what was read of the remote before may name
        segments that are about to go.
        """
        self._numbers: dict[tuple[str, int], int] = {}
        self._segments: dict[int, tuple[str, int]] = {}
        for key, value in meta.scan(SEGMENTS):
            node, number = msgspec.msgpack.decode(value, type=tuple[str, int])
            self._numbers[node, number] = SEGMENT_KEY.unpack(key)[0]
            self._segments[SEGMENT_KEY.unpack(key)[0]] = (node, number)
        self._unseen: dict[SegmentRef, Unseen] = {}
        self._let_go: set[SegmentRef] = set()
        self._read_unseen()
        self._unverified = {Ino(SESSION_KEY.unpack(key)[0]) for key, _ in meta.scan(UNVERIFIED)}

    # -- whether what is here is the latest

    @property
    def unverified(self) -> Set[Ino]:
        """Sessions that another node may have published since they were: they must be held against the remote before
        they are used, be it several starts later.
        """
        return self._unverified

    def distrust(self, sessions: Iterable[Ino]) -> None:
        """The sessions are unverified from here on."""
        for session in sessions:
            self._unverified.add(session)
            self._meta.put(UNVERIFIED, SESSION_KEY.pack(session), b"")

    def note_verified(self, session: Ino) -> None:
        """The session was held against the remote; fine when that was done before."""
        if session in self._unverified:
            self._unverified.discard(session)
            self._meta.delete(UNVERIFIED, SESSION_KEY.pack(session))

    def held(self) -> int | None:
        """The incarnation in which this node last held the prefix, all but the unverified sessions being the latest
        then. None when it never did.
        """
        value = self._meta.get(HELD, HELD_KEY)
        return None if value is None else int(INCARNATION.unpack(value)[0])

    def set_held(self, incarnation: int) -> None:
        """This node holds the prefix in that incarnation; what may not be the latest is unverified already."""
        self._meta.put(HELD, HELD_KEY, INCARNATION.pack(incarnation))

    # -- chunks

    def find(self, cid: ChunkId) -> RemotePlace | None:
        """Where the chunk's frame lies in the remote, or None when it was not uploaded as far as is known here."""
        value = self._meta.get(PLACES, cid)
        if value is None:
            return None
        index, offset, length = PLACE_RECORD.unpack(value)
        segment = self._segments.get(index)
        if segment is None:
            raise StoreCorrupt(f"chunk {cid.hex()} lies in segment {index}, which is not recorded")
        return RemotePlace(*segment, offset, length)

    def iter_chunks(self) -> Iterator[tuple[ChunkId, RemotePlace]]:
        """Every chunk with a place, and the place; to be used up before the next change."""
        for cid, value in self._meta.scan(PLACES):
            index, offset, length = PLACE_RECORD.unpack(value)
            yield ChunkId(cid), RemotePlace(*self._segments[index], offset, length)

    def chunks_after(self, cid: ChunkId | None, limit: int) -> list[tuple[ChunkId, RemotePlace]]:
        """The first *limit* chunks with a place whose ids are greater than *cid*, and the places, in order."""
        found = itertools.islice(self._meta.scan(PLACES, after=cid), limit)
        chunks = []
        for key, value in found:
            index, offset, length = PLACE_RECORD.unpack(value)
            chunks.append((ChunkId(key), RemotePlace(*self._segments[index], offset, length)))
        return chunks

    def has(self, cid: ChunkId) -> bool:
        """True when the remote has the chunk."""
        return self._meta.get(PLACES, cid) is not None

    def is_sound(self, cid: ChunkId) -> bool:
        """True when the remote has the chunk, and nobody has found it damaged there."""
        record = self._meta.get(PLACES, cid)
        return record is not None and not self.damage.is_bad(record)

    def set(self, node: str, segment: int, offset: int, length: int, ids: Iterable[ChunkId]) -> bool:
        """The frame at that place holds the chunks *ids*. Where it is known to be damaged, a chunk with another place
        keeps that; then the answer is True.
        """
        record = PLACE_RECORD.pack(self._number(node, segment), offset, length)
        is_bad, kept = self.damage.is_bad(record), False
        for cid in ids:
            if is_bad and self.is_sound(cid):
                kept = True
            else:
                self._meta.put(PLACES, cid, record)
        if is_bad:
            self.damage.is_news = True
        return kept

    def take(self, places: Mapping[ChunkId, tuple[SegmentRef, int, int]]) -> bool:
        """What a manifest says: segment, offset and length of each chunk's frame. It holds over a place that is known,
        which may be in a segment that was collected meanwhile. The answer is as that of `set`.
        """
        kept = [self.set(*ref, offset, length, [cid]) for cid, (ref, offset, length) in places.items()]
        return any(kept)

    def forget(self, ids: Iterable[ChunkId]) -> None:
        """The chunks have no place any more. Of chunks that are held only by way of `Sealer.forget_places`."""
        for cid in ids:
            if self.has(cid):
                self._meta.delete(PLACES, cid)

    # -- what is damaged in the remote, and what nobody has looked at

    def note_bad(self, place: RemotePlace) -> None:
        """The frame there is damaged or missing: who has its chunks uploads them again."""
        self.damage.note_bad(self._record(place))

    def settle_bad(self, place: RemotePlace) -> None:
        """The frame there was read, and is sound."""
        if self.damage.has_remote:
            self.damage.settle_bad(self._record(place))

    def is_bad(self, place: RemotePlace) -> bool:
        """True when the frame there is known to be damaged or missing."""
        return self.damage.has_remote and self.damage.is_bad(self._record(place))

    def iter_bad(self) -> Iterator[ChunkId]:
        """Chunks whose place is known to be damaged; to be used up before the next change."""
        if self.damage.has_remote:
            yield from (ChunkId(cid) for cid, record in self._meta.scan(PLACES) if self.damage.is_bad(record))

    def _record(self, place: RemotePlace) -> bytes:
        return PLACE_RECORD.pack(self._number(place.node, place.segment), place.offset, place.length)

    def _read_unseen(self) -> None:
        found = dict(self._meta.scan(UNSEEN))
        if found.pop(SEEN_KEY, None) is None:
            # A daemon that looked at nothing has uploaded what is known so far.
            self._meta.put(UNSEEN, SEEN_KEY, b"")
            for ref in list(self._numbers):
                self.note_unseen(SegmentRef(*ref), Unseen(0, confirmed=False))
        for key, value in found.items():
            size, confirmed = UNSEEN_RECORD.unpack(value)
            segment = self._segments.get(SEGMENT_KEY.unpack(key)[0])
            if segment is not None:
                self._unseen[SegmentRef(*segment)] = Unseen(size, bool(confirmed))

    @property
    def unseen(self) -> Mapping[SegmentRef, Unseen]:
        """Segments that nobody has looked at since they were uploaded: no chunk in them may be evicted."""
        return self._unseen

    def note_unseen(self, ref: SegmentRef, unseen: Unseen) -> None:
        """The segment was uploaded."""
        self._unseen[ref] = unseen
        self._meta.put(UNSEEN, SEGMENT_KEY.pack(self._number(*ref)), UNSEEN_RECORD.pack(*unseen))

    def note_seen(self, ref: SegmentRef) -> None:
        """The segment was looked at: what in it is damaged is noted."""
        if self._unseen.pop(ref, None) is not None:
            self._meta.delete(UNSEEN, SEGMENT_KEY.pack(self._number(*ref)))

    @property
    def let_go(self) -> Set[SegmentRef]:
        """Segments that were let go since the start: that they are missing is no damage."""
        return self._let_go

    def note_let_go(self, refs: Iterable[SegmentRef]) -> None:
        """The segments are about to be deleted, or were: nothing that is needed lies in them."""
        for ref in refs:
            self._let_go.add(ref)
            self.note_seen(ref)

    def may_evict(self, cid: ChunkId) -> bool:
        """True when the remote has the chunk, for all that was looked at."""
        place = self.find(cid)
        return place is not None and self.is_sound(cid) and SegmentRef(place.node, place.segment) not in self._unseen

    def _number(self, node: str, segment: int) -> int:
        index = self._numbers.get((node, segment))
        if index is None:
            index = max(self._segments, default=0) + 1
            self._numbers[node, segment] = index
            self._segments[index] = (node, segment)
            self._meta.put(SEGMENTS, SEGMENT_KEY.pack(index), msgspec.msgpack.encode((node, segment)))
        return index

    # -- sessions

    def published(self, session: Ino) -> Published | None:
        """What was last published of the session, None when nothing was."""
        value = self._meta.get(PUBLISHED, SESSION_KEY.pack(session))
        return None if value is None else msgspec.msgpack.decode(value, type=Published)

    def set_published(self, session: Ino, published: Published | None) -> None:
        """Set, or with None forget, what was last published."""
        if published is None:
            self._meta.delete(PUBLISHED, SESSION_KEY.pack(session))
        else:
            self._meta.put(PUBLISHED, SESSION_KEY.pack(session), msgspec.msgpack.encode(published))

    def iter_published(self) -> Iterator[tuple[Ino, Published]]:
        """(session, what was last published) of all sessions."""
        for key, value in self._meta.scan(PUBLISHED):
            yield Ino(SESSION_KEY.unpack(key)[0]), msgspec.msgpack.decode(value, type=Published)

    def iter_named(self) -> Iterator[SegmentRef]:
        """The segment of each manifest that is the last of a session, or of a kept snapshot."""
        for _, published in self.iter_published():
            if published.manifest is not None:
                yield SegmentRef(*published.manifest[:2])
        for session in self.snapshots.iter_sessions():
            for _, snapshot in self.snapshots.entries(session):
                if snapshot.manifest is not None:
                    yield SegmentRef(*snapshot.manifest[:2])

    def startup(self, session: Ino) -> bytes:
        """Ids, end to end, of the chunks that the session read at its last start, as far as it was learned."""
        return self._meta.get(STARTUP, SESSION_KEY.pack(session)) or b""

    def set_startup(self, session: Ino, ids: bytes) -> None:
        """Set what the session reads at a start."""
        self._meta.put(STARTUP, SESSION_KEY.pack(session), ids)

    # -- the upload on its way

    def outbox(self) -> Outbox | None:
        """The upload that was on its way when the last daemon ended, if any."""
        value = self._meta.get(OUTBOX, OUTBOX_KEY)
        return None if value is None else msgspec.msgpack.decode(value, type=Outbox)

    def set_outbox(self, outbox: Outbox | None) -> None:
        """Note an upload before it begins, or with None that it is over."""
        if outbox is None:
            self._meta.delete(OUTBOX, OUTBOX_KEY)
        else:
            self._meta.put(OUTBOX, OUTBOX_KEY, msgspec.msgpack.encode(outbox))

    def adopt(self, node: str, outbox: Outbox) -> None:
        """The upload is in the remote: its places and snapshots are facts."""
        for segment, offset, length, ids in outbox.places:
            self.set(node, segment, offset, length, split_ids(ids))
        for session, published in outbox.published:
            self.set_published(Ino(session), published)
            if session != ROOT_INO and published.manifest is not None:
                # One that is there already was moved by an erasure: it keeps its mark and its verdict.
                there = self.snapshots.find(Ino(session), published.sequence)
                snapshot = there or Snapshot(published.taken_ns, None, name=published.name)
                snapshot = msgspec.structs.replace(snapshot, manifest=published.manifest)
                self.snapshots.put(Ino(session), published.sequence, snapshot)
        for session in outbox.removed:
            self.set_published(Ino(session), None)
        self.set_outbox(None)
