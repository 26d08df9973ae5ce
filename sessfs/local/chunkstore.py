"""Local chunks: the tables of `chunks/`, reading them with verification, and the reference counts kept in `meta/`.

`chunks/` has one writer (`ChunkWriter`, in the seal process) and is read by the daemon. Reference counts live in
`meta/`, so that they change in the same batch as the recipe that refers. A chunk is written, durably, before a recipe
names it, and dropped only after the batch that removed its last reference is durable.
"""

from __future__ import annotations

import itertools
import struct
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from sessfs.errors import StoreCorrupt
from sessfs.format.chunk import FRAME_MAX_BYTES, FrameCodec, chunk_id, verify_chunk
from sessfs.format.recipe import Recipe
from sessfs.local.db import Database, TableName
from sessfs.local.inodes import INO, KEPT_REFS, RECIPES, REFS
from sessfs.local.memory import OWN_BLOCK_BYTES, Blocks
from sessfs.types import CHUNK_ID_BYTES, ChunkId, FrameNo, Ino

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

FRAMES = TableName("frames")
INDEX = TableName("index")
LIVE = TableName("live")
TOTALS = TableName("totals")
CHUNK_TABLES = (FRAMES, INDEX, LIVE, TOTALS)
CHUNKS_MAP_BYTES = 1 << 40

FRAME_KEY = struct.Struct(">Q")
PLACE = struct.Struct("<QII")
FRAME_COUNT = struct.Struct("<H")
FRAME_ENTRY = struct.Struct(f"<{CHUNK_ID_BYTES}sI")
LIVE_BYTES = struct.Struct("<I")
REF_COUNT = struct.Struct("<I")
TOTALS_RECORD = struct.Struct("<QQQ")
TOTALS_KEY = b"totals"
FRAME_CACHE_BYTES = 8 << 20
BLOCK_MIN_BYTES = OWN_BLOCK_BYTES
"""Frames of this size and more are opened into blocks that are used again."""


class Place(NamedTuple):
    """Where a chunk lies: in which frame, and which bytes of that frame's plaintext."""

    frame: FrameNo
    offset: int
    length: int


class Totals(NamedTuple):
    """Sums over all frames: next frame number, bytes as stored, bytes of plaintext of chunks that are not dropped."""

    next_frame: int
    stored_bytes: int
    plain_bytes: int


def encode_frame_record(entries: Sequence[tuple[ChunkId, int]], payload: bytes) -> bytes:
    """The value stored for a frame: number of chunks, (id, length) of each, the compressed bytes."""
    head = FRAME_COUNT.pack(len(entries)) + b"".join(FRAME_ENTRY.pack(cid, length) for cid, length in entries)
    return head + payload


def decode_frame_record(record: bytes) -> tuple[list[tuple[ChunkId, int]], memoryview]:
    """Inverse of `encode_frame_record`; raises StoreCorrupt when the record is too short for what it says."""
    if len(record) < FRAME_COUNT.size:
        raise StoreCorrupt("a frame record is cut short")
    (count,) = FRAME_COUNT.unpack_from(record)
    end = FRAME_COUNT.size + count * FRAME_ENTRY.size
    if len(record) <= end:
        raise StoreCorrupt("a frame record is cut short")
    entries = [(ChunkId(cid), length) for cid, length in FRAME_ENTRY.iter_unpack(record[FRAME_COUNT.size : end])]
    return entries, memoryview(record)[end:]


def listed_chunks(record: bytes) -> list[ChunkId]:
    """The chunks that a frame record says it has, unverified; empty when it can't be read at all."""
    try:
        return [cid for cid, _ in decode_frame_record(record)[0]]
    except StoreCorrupt:
        return []


def unpack_frame(key: bytes) -> FrameNo | None:
    """The frame's number, None for a damaged key."""
    return FrameNo(FRAME_KEY.unpack(key)[0]) if len(key) == FRAME_KEY.size else None


def unpack_live(value: bytes | None) -> int | None:
    """Bytes of a frame's chunks that are alive, None for a record that is damaged or missing."""
    return int(LIVE_BYTES.unpack(value)[0]) if value is not None and len(value) == LIVE_BYTES.size else None


def read_totals(db: Database) -> Totals:
    """The stored sums; zero (and frame number 1 next) in a new environment, and where the record is damaged, until the
    writer has counted anew.
    """
    record = db.get(TOTALS, TOTALS_KEY)
    return Totals(*TOTALS_RECORD.unpack(record)) if record and len(record) == TOTALS_RECORD.size else Totals(1, 0, 0)


def find_place(db: Database, cid: ChunkId) -> Place | None:
    """Where the chunk lies, or None when it is not stored here. Raises StoreCorrupt when its record is none."""
    value = db.get(INDEX, cid)
    if value is None:
        return None
    if len(value) != PLACE.size:
        raise StoreCorrupt(f"where chunk {cid.hex()} lies can't be read: its record has {len(value)} bytes")
    frame, offset, length = PLACE.unpack(value)
    return Place(FrameNo(frame), offset, length)


def sound_chunks(key: bytes, codec: FrameCodec, record: bytes) -> list[ChunkId]:
    """The chunks that *record* lists and really has, each once; empty when it can't be read at all."""
    sound: dict[ChunkId, None] = {}
    try:
        entries, payload = decode_frame_record(record)
        plain = codec.view(payload)
    except StoreCorrupt:
        return []
    offset = 0
    for cid, length in entries:
        if chunk_id(key, plain[offset : offset + length]) == cid:
            sound[cid] = None
        offset += length
    return list(sound)


class FrameChecker:
    """Holds frame records against the names in them, as whoever gets a record will. One per thread."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._codec = FrameCodec()

    def sound_chunks(self, record: bytes) -> list[ChunkId]:
        """See the function of this name."""
        return sound_chunks(self._key, self._codec, record)


class ChunkReader:
    """Reads chunks out of `chunks/`, verifying each by its hash. One thread."""

    def __init__(self, db: Database, key: bytes) -> None:
        self._db = db
        self._key = key
        self._codec = FrameCodec()
        self._frames: OrderedDict[FrameNo, bytes | bytearray] = OrderedDict()
        self._cached_bytes = 0
        self._blocks = Blocks(FRAME_MAX_BYTES)
        self._clock = 0
        self._last_use: dict[FrameNo, int] = {}
        self.on_damage: Callable[[ChunkId], None] = lambda cid: None
        """Told of each chunk that is found not to match its hash, or to be in no frame."""

    def refresh(self) -> None:
        """See what the writer has committed since."""
        self._db.refresh()

    def adopt(self, rewritten: Path) -> None:
        """Go on with the environment rewritten there. Only once the writer's process has ended. LocalStoreError."""
        self._db.adopt(rewritten)
        self._frames.clear()
        self._cached_bytes = 0

    def find(self, cid: ChunkId) -> memoryview | None:
        """The chunk's bytes, a view of its frame's, or None when it is not stored here. Raises StoreCorrupt when they
        don't match its hash.
        """
        try:
            return self._find(cid)
        except StoreCorrupt:
            self.on_damage(cid)
            raise

    def _find(self, cid: ChunkId) -> memoryview | None:
        place = find_place(self._db, cid)
        if place is None:
            return None
        plain = self._frames.get(place.frame)
        if plain is None:
            plain = self._load(place.frame)
        else:
            self._frames.move_to_end(place.frame)
        chunk = memoryview(plain)[place.offset : place.offset + place.length]
        verify_chunk(self._key, cid, chunk)
        return chunk

    def has(self, cid: ChunkId) -> bool:
        """True when the chunk is stored here."""
        return self._db.get(INDEX, cid) is not None

    def find_record(self, cid: ChunkId) -> bytes | None:
        """The record of the frame that holds the chunk, as it is stored; None when the chunk is not here. Raises
        StoreCorrupt when there is no such frame.
        """
        place = find_place(self._db, cid)
        if place is None:
            return None
        record = self._db.get(FRAMES, FRAME_KEY.pack(place.frame))
        if record is None:
            self.on_damage(cid)
            raise StoreCorrupt(f"frame {place.frame} is indexed but not stored")
        return record

    def checker(self) -> FrameChecker:
        """For the records that `find_record` gives, in whatever thread."""
        return FrameChecker(self._key)

    def frame_alone(self, cid: ChunkId) -> bytes | None:
        """A record of a new frame with just that chunk: for one that its own frame does not list, as when that list is
        damaged. None when the chunk is not here. Raises StoreCorrupt when it is not sound.
        """
        chunk = self.find(cid)
        return None if chunk is None else encode_frame_record([(cid, len(chunk))], self._codec.encode([chunk]))

    def _load(self, frame: FrameNo) -> bytes | bytearray:
        """The plaintext of a frame, with anything behind it."""
        record = self._db.get(FRAMES, FRAME_KEY.pack(frame))
        if record is None:
            raise StoreCorrupt(f"frame {frame} is indexed but not stored")
        _, payload = decode_frame_record(record)
        while self._cached_bytes > FRAME_CACHE_BYTES and self._frames:
            _, dropped = self._frames.popitem(last=False)
            self._cached_bytes -= len(dropped)
            if isinstance(dropped, bytearray):
                self._blocks.give(dropped)
        plain: bytes | bytearray
        if self._codec.plain_bytes(payload) < BLOCK_MIN_BYTES:
            plain = self._codec.decode(payload)
        else:
            plain = self._blocks.take()
            self._codec.decode_into(payload, plain)
        self._clock += 1
        self._last_use[frame] = self._clock
        self._frames[frame] = plain
        self._cached_bytes += len(plain)
        return plain

    def least_used(self) -> list[tuple[FrameNo, int]]:
        """(frame, about the bytes it takes) of every frame, the one whose last use is longest ago first."""
        totals = self.totals()
        ratio = totals.stored_bytes / max(totals.plain_bytes, 1)
        frames = [
            (frame, int((unpack_live(value) or 0) * ratio))
            for key, value in self._db.scan(LIVE)
            if (frame := unpack_frame(key)) is not None
        ]
        self._last_use = {frame: self._last_use[frame] for frame, _ in frames if frame in self._last_use}
        return sorted(frames, key=lambda f: (self._last_use.get(f[0], 0), f[0]))

    def chunks_of(self, frame: FrameNo) -> list[ChunkId]:
        """The chunks that lie in the frame; empty when it is gone, or does not say which it has, being damaged."""
        record = self._db.get(FRAMES, FRAME_KEY.pack(frame))
        if record is None:
            return []
        return [cid for cid in listed_chunks(record) if self._frame_of(cid) == frame]

    def _frame_of(self, cid: ChunkId) -> FrameNo | None:
        try:
            place = find_place(self._db, cid)
        except StoreCorrupt:
            return None
        return None if place is None else place.frame

    def used_bytes(self) -> int:
        """Bytes of the environment's pages."""
        return self._db.stored_bytes()

    def totals(self) -> Totals:
        """Sums over all frames."""
        return read_totals(self._db)

    def iter_ids(self) -> Iterator[ChunkId]:
        """Every chunk stored here, in order of id."""
        for cid, _ in self._db.scan(INDEX):
            yield ChunkId(cid)

    def close(self) -> None:
        """Close the environment."""
        self._db.close()


class References:
    """How many extents of all recipes name each chunk, and apart from that, how many of kept snapshots. Lives in the
    overlay of `meta/`; the request loop alone.
    """

    def __init__(self, meta: Database) -> None:
        self._meta = meta
        self._unreferenced: set[ChunkId] = set()
        self._settling: set[ChunkId] = set()
        self._dead: set[ChunkId] = set()
        self._pins: Counter[ChunkId] = Counter()

    def pin(self, ids: Iterable[ChunkId]) -> None:
        """Keep the chunks from being dropped, references or not, until `unpin`. Not stored: a crash undoes it."""
        self._pins.update(ids)

    def unpin(self, ids: Iterable[ChunkId]) -> None:
        """Undo one `pin` of the same ids."""
        released = list(ids)
        self._pins.subtract(released)
        self._unreferenced.update(cid for cid in released if self._pins[cid] <= 0)
        for cid in released:
            if self._pins[cid] <= 0:
                del self._pins[cid]

    def is_held(self, cid: ChunkId) -> bool:
        """True when a recipe, a kept snapshot or a pin needs the chunk."""
        return cid in self._pins or self.count(cid) > 0 or self._count(KEPT_REFS, cid) > 0

    def count(self, cid: ChunkId) -> int:
        """Number of extents of files that name the chunk."""
        return self._count(REFS, cid)

    def _count(self, table: TableName, cid: ChunkId) -> int:
        value = self._meta.get(table, cid)
        return REF_COUNT.unpack(value)[0] if value else 0

    def recipes_after(self, ino: Ino, limit: int) -> list[tuple[Ino, Recipe]]:
        """What refers: the first *limit* recipes of files with greater inode numbers than *ino*, in order."""
        found = itertools.islice(self._meta.scan(RECIPES, after=INO.pack(ino)), limit)
        return [(Ino(INO.unpack(key)[0]), Recipe(record)) for key, record in found]

    def add(self, ids: Iterable[ChunkId]) -> None:
        """One more reference for each of *ids* (repeats count)."""
        self._add(REFS, ids)

    def remove(self, ids: Iterable[ChunkId]) -> None:
        """One reference less for each of *ids*; raises StoreCorrupt when a chunk has fewer."""
        self._remove(REFS, ids)

    def keep(self, ids: Iterable[ChunkId]) -> None:
        """As `add`, for a snapshot that is kept here."""
        self._add(KEPT_REFS, ids)

    def unkeep(self, ids: Iterable[ChunkId]) -> None:
        """Undo one `keep` of the same ids. Raises as `remove`."""
        self._remove(KEPT_REFS, ids)

    def _add(self, table: TableName, ids: Iterable[ChunkId]) -> None:
        for cid, n in Counter(ids).items():
            self._meta.put(table, cid, REF_COUNT.pack(self._count(table, cid) + n))

    def _remove(self, table: TableName, ids: Iterable[ChunkId]) -> None:
        for cid, n in Counter(ids).items():
            left = self._count(table, cid) - n
            if left < 0:
                raise StoreCorrupt(f"chunk {cid.hex()} has fewer references than {table} should count")
            if left:
                self._meta.put(table, cid, REF_COUNT.pack(left))
            else:
                self._meta.delete(table, cid)
                self._unreferenced.add(cid)

    def note_unused(self, ids: Iterable[ChunkId]) -> None:
        """Chunks that were written and may be named by nothing: dropped like those whose last reference went."""
        self._unreferenced.update(ids)

    def cut(self) -> None:
        """At the cut of a batch: what lost its last reference before it may be dropped once the batch is durable."""
        self._settling |= self._unreferenced
        self._unreferenced = set()

    def settle(self) -> None:
        """The batch is durable."""
        self._dead |= self._settling
        self._settling = set()

    def take_dead(self) -> list[ChunkId]:
        """Chunks that nothing names, durably so; call only while no seal is under way whose recipes could name them.
        Whoever then fails to drop them hands them to `note_unused`.
        """
        # Named and let go again since: what is on the disk may still name it, until the next batch is.
        waiting = self._unreferenced | self._settling
        dead = [cid for cid in self._dead if not self.is_held(cid) and cid not in waiting]
        self._dead = set()
        return dead

    @property
    def has_dead(self) -> bool:
        """True when `take_dead` has something to look at."""
        return bool(self._dead)

    @property
    def has_unused(self) -> bool:
        """True when chunks that may be named by nothing were not dropped yet."""
        return bool(self._dead or self._settling or self._unreferenced)
