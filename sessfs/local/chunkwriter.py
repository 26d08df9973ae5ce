"""The one writer of `chunks/`: adds chunks in frames, drops dead ones, rewrites frames that are mostly dead.

What is damaged is set aside: it stays where it is, is named in `damaged`, and everything else goes on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sessfs.errors import StoreCorrupt
from sessfs.format.chunk import FRAME_TARGET_BYTES, FrameCodec, chunk_id, verify_chunk
from sessfs.local.chunkbatches import ChunkBatches
from sessfs.local.chunkstore import (
    FRAME_KEY,
    FRAMES,
    INDEX,
    LIVE,
    LIVE_BYTES,
    PLACE,
    Place,
    Totals,
    decode_frame_record,
    encode_frame_record,
    find_place,
    unpack_frame,
    unpack_live,
)
from sessfs.types import ChunkId, FrameNo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence, Set

    from sessfs.format.chunk import Buffer
    from sessfs.local.db import Database

REWRITE_BELOW = 0.5
"""A frame of which less than this share is alive is rewritten with what is."""
COMMIT_BYTES = 8 << 20
WAITING_BYTES = 24 << 20
"""So much may wait while the batch before is being written; then the caller waits, too."""


LIVE_MAX = (1 << 32) - 1


class ChunkWriter:
    """Owns all writing to `chunks/`; one process, one thread, and one of its own that waits for the disk. Nothing is
    durable or read by others before `commit`.
    """

    def __init__(
        self, db: Database, key: bytes, level: int | None = None, *, may_write: Callable[[], None] = lambda: None
    ) -> None:
        """*may_write* is called in each transaction, in whatever thread, and raises LocalStoreError when this process
        must write nothing more.
        """
        self._db = db
        self._key = key
        self._codec = FrameCodec() if level is None else FrameCodec(level)
        self._batches = ChunkBatches(db, may_write)
        self._totals = self._batches.totals
        self._open: list[bytes] = []
        self._open_ids: list[tuple[ChunkId, int]] = []
        self._open_bytes = 0
        self._pending: set[ChunkId] = set()
        self._superseded: list[FrameNo] = []
        """Frames of which every survivor is in the open frame or a later one: they go when that is closed."""
        self._uncommitted_bytes = 0
        self.added: list[ChunkId] = []
        """Chunks newly stored since the caller last cleared the list."""
        self.damaged: list[str] = []
        """What was set aside since the caller last cleared the list, a sentence each."""
        self.distrusted: set[ChunkId] = set()
        """Chunks that are stored and known to be damaged: they count as missing, and are replaced when they come."""
        self._replaced: list[ChunkId] = []

    def _account(self, *, stored: int = 0, plain: int = 0) -> None:
        """Add to the totals, which damage may have made too low."""
        number, stored_bytes, plain_bytes = self._totals
        self._totals = Totals(number, max(stored_bytes + stored, 0), max(plain_bytes + plain, 0))

    def add(self, plaintext: Buffer) -> ChunkId:
        """Store the chunk unless it is here already; returns its id."""
        cid = chunk_id(self._key, plaintext)
        if not self.has(cid):
            self._replace([cid])
            self._append(cid, bytes(plaintext))
            self.added.append(cid)
        return cid

    def _replace(self, ids: Iterable[ChunkId]) -> None:
        """Drop those of *ids* that are damaged: they are stored next."""
        damaged = [cid for cid in ids if cid in self.distrusted]
        if damaged:
            self.drop(damaged)
            self.distrusted.difference_update(damaged)
            self._replaced.extend(damaged)

    def take_replaced(self) -> list[ChunkId]:
        """After a commit: the damaged chunks that were replaced since this was asked last."""
        replaced, self._replaced = self._replaced, []
        return replaced

    def _append(self, cid: ChunkId, plaintext: bytes) -> None:
        self._pending.add(cid)
        self._open.append(plaintext)
        self._open_ids.append((cid, len(plaintext)))
        self._open_bytes += len(plaintext)
        if self._open_bytes >= FRAME_TARGET_BYTES:
            self.close_frame()

    def close_frame(self) -> None:
        """End the frame being filled, so that the next chunk starts another."""
        if not self._open:
            return
        self._store_frame(self._open_ids, self._codec.encode(self._open), frozenset())
        self._open, self._open_ids, self._open_bytes = [], [], 0
        self._pending.clear()
        self._remove_superseded()
        self._write_if_full()

    def add_frame(self, entries: Sequence[tuple[ChunkId, int]], payload: bytes) -> None:
        """Store a frame that was compressed elsewhere, of the chunks (id, length) in *entries*, none of them twice.
        Those that came to be stored meanwhile stay where they are. The caller goes on while the disk is at work.
        """
        self.close_frame()
        self._replace(cid for cid, _ in entries)
        self._store_frame(entries, payload, {cid for cid, _ in entries if self.has(cid)})
        if self._uncommitted_bytes >= (WAITING_BYTES if self._batches.is_writing else COMMIT_BYTES):
            self._begin_write()

    def has(self, cid: ChunkId) -> bool:
        """True when the chunk is stored, or about to be, and not known to be damaged."""
        return cid in self._pending or (cid not in self.distrusted and self._place(cid) is not None)

    def _place(self, cid: ChunkId) -> Place | None:
        """Where the chunk lies; None when it is not stored, or its record is damaged: then it is as good as gone."""
        try:
            return find_place(self._db, cid)
        except StoreCorrupt as exc:
            self.damaged.append(str(exc))
            return None

    def _store_frame(self, entries: Sequence[tuple[ChunkId, int]], payload: bytes, elsewhere: Set[ChunkId]) -> None:
        """Store the frame with all its chunks but those *elsewhere*."""
        number = FrameNo(self._totals.next_frame)
        live = offset = 0
        for cid, length in entries:
            if cid not in elsewhere:
                self._db.put(INDEX, cid, PLACE.pack(number, offset, length))
                live += length
            offset += length
        if not live:
            return
        record = encode_frame_record(entries, payload)
        self._db.put(FRAMES, FRAME_KEY.pack(number), record)
        self._db.put(LIVE, FRAME_KEY.pack(number), LIVE_BYTES.pack(live))
        self._totals = Totals(number + 1, self._totals.stored_bytes + len(record), self._totals.plain_bytes + live)
        self._uncommitted_bytes += len(record)

    def _write_if_full(self) -> None:
        if self._uncommitted_bytes >= COMMIT_BYTES:
            self._write()

    def add_record(self, record: bytes, wanted: set[ChunkId]) -> None:
        """Keep a frame that was made elsewhere, as it is, for those of its chunks that are *wanted* and not here yet.
        Raises StoreCorrupt when the record is damaged or a wanted chunk does not match its hash.
        """
        self.close_frame()
        entries, payload = decode_frame_record(record)
        plain = self._codec.decode(payload)
        number = FrameNo(self._totals.next_frame)
        live = offset = 0
        for cid, length in entries:
            if cid in wanted and self._place(cid) is None:
                verify_chunk(self._key, cid, memoryview(plain)[offset : offset + length])
                self._db.put(INDEX, cid, PLACE.pack(number, offset, length))
                live += length
            offset += length
        if not live:
            return
        self._db.put(FRAMES, FRAME_KEY.pack(number), record)
        self._db.put(LIVE, FRAME_KEY.pack(number), LIVE_BYTES.pack(live))
        self._totals = Totals(number + 1, self._totals.stored_bytes + len(record), self._totals.plain_bytes + live)
        self._uncommitted_bytes += len(record)
        self._write_if_full()

    def commit(self) -> None:
        """Make all that was added and dropped durable. Raises StoreFull when the disk is full; then nothing of what
        came since the last commit may be referred to, and the writer must not be used further.
        """
        self.close_frame()
        self._write()

    def _write(self) -> None:
        self._begin_write()
        self._batches.end()

    def _begin_write(self) -> None:
        """Have all that came until now written in a thread. Raises as `commit`."""
        self._batches.begin(self._totals)
        self._uncommitted_bytes = 0

    def drop(self, ids: Iterable[ChunkId]) -> None:
        """Remove dead chunks: the frame goes with its last one, and is rewritten when mostly dead. Ids that are not
        here are fine. The caller commits.
        """
        self.close_frame()
        shrunk: set[FrameNo] = set()
        for cid in ids:
            place = self._place(cid)
            self._db.delete(INDEX, cid)
            if place is not None:
                self._account(plain=-place.length)
                self._lower_live(place)
                shrunk.add(place.frame)
        for frame in sorted(shrunk):
            self._shrink(frame)
        self.close_frame()

    def _lower_live(self, gone: Place) -> None:
        """A chunk that lay there is no longer indexed. Where the count is damaged, it is counted anew."""
        live = self._live(gone.frame)
        left = -1 if live is None else live - gone.length
        if left < 0:
            counted = self._count_live(gone.frame)
            if counted is None:
                return
            left = counted
        self._db.put(LIVE, FRAME_KEY.pack(gone.frame), LIVE_BYTES.pack(left))

    def _live(self, frame: FrameNo) -> int | None:
        """What is alive of the frame, None where that is not known."""
        return unpack_live(self._db.get(LIVE, FRAME_KEY.pack(frame)))

    def _count_live(self, frame: FrameNo) -> int | None:
        """By the frame's own list and the index; None where the frame is gone, or says nothing."""
        record = self._db.get(FRAMES, FRAME_KEY.pack(frame))
        if record is None:
            return None
        try:
            entries, _ = decode_frame_record(record)
        except StoreCorrupt:
            return None
        places = [place for cid in dict(entries) if (place := self._place(cid)) is not None and place.frame == frame]
        return min(sum(place.length for place in places), LIVE_MAX)

    def _shrink(self, frame: FrameNo, below: float = REWRITE_BELOW) -> None:
        record = self._db.get(FRAMES, FRAME_KEY.pack(frame))
        if record is None:
            return
        live = self._live(frame)
        if live == 0 and (live := self._count_live(frame) or 0):
            # A damaged place of another chunk was taken for one in here.
            self._db.put(LIVE, FRAME_KEY.pack(frame), LIVE_BYTES.pack(live))
        survivors = self._survivors(frame, record, live, below) if live != 0 else []
        if survivors is None:
            return
        for cid, plain in survivors:
            self._append(cid, plain)
        self._superseded.append(frame)
        if not self._open:
            self._remove_superseded()

    def _remove_superseded(self) -> None:
        """Only once all that lived in them is indexed elsewhere: each commit must leave every chunk in some frame."""
        for frame in self._superseded:
            record = self._db.get(FRAMES, FRAME_KEY.pack(frame)) or b""
            live = self._live(frame) or 0
            self._db.delete(FRAMES, FRAME_KEY.pack(frame))
            self._db.delete(LIVE, FRAME_KEY.pack(frame))
            self._account(stored=-len(record), plain=-live)
        self._superseded.clear()

    def rewrite_mixed(self) -> int:
        """Rewrite every frame that holds a dead chunk, however little, without it. Returns how many had to stay, being
        damaged. The caller commits.
        """
        self.close_frame()
        left = 0
        mixed = [
            frame
            for key, record in self._db.scan(FRAMES)
            if (frame := unpack_frame(key)) is not None and self._is_mixed(frame, record)
        ]
        for frame in mixed:
            self._shrink(frame, below=math.inf)
        self.close_frame()
        for frame in mixed:
            left += self._db.get(FRAMES, FRAME_KEY.pack(frame)) is not None
        return left

    def _is_mixed(self, frame: FrameNo, record: bytes) -> bool:
        try:
            entries, _ = decode_frame_record(record)
        except StoreCorrupt:
            return True
        return self._live(frame) != sum(length for _, length in entries)

    def _survivors(
        self, frame: FrameNo, record: bytes, live: int | None, below: float
    ) -> list[tuple[ChunkId, bytes]] | None:
        """The chunks that live in the frame, *live* bytes of them, if it is to be rewritten; None when it stays: at
        least the share *below* is alive, or it is damaged, and then what is left must stay where the index says.
        """
        alive = []
        try:
            entries, payload = decode_frame_record(record)
            if live is not None and live >= sum(length for _, length in entries) * below:
                return None
            plain = self._codec.decode(payload)
            for cid in dict(entries):
                place = find_place(self._db, cid)
                if place is not None and place.frame == frame:
                    chunk = plain[place.offset : place.offset + place.length]
                    verify_chunk(self._key, cid, chunk)
                    alive.append((cid, chunk))
        except StoreCorrupt as exc:
            self._set_aside(frame, str(exc))
            return None
        if sum(len(chunk) for _, chunk in alive) != live:
            self._set_aside(frame, "what is alive in it is miscounted")
            return None
        return alive

    def _set_aside(self, frame: FrameNo, why: str) -> None:
        """The frame stays as it is."""
        self.damaged.append(f"frame {frame} stays, with what is dead in it: {why}")
