"""The one writer of `chunks/`: adds chunks in frames, drops dead ones, rewrites frames that are mostly dead."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from sessfs.errors import StoreCorrupt
from sessfs.format.chunk import FRAME_TARGET_BYTES, FrameCodec, chunk_id, verify_chunk
from sessfs.local.chunkstore import (
    FRAME_KEY,
    FRAMES,
    INDEX,
    LIVE,
    LIVE_BYTES,
    PLACE,
    TOTALS,
    TOTALS_KEY,
    TOTALS_RECORD,
    Totals,
    decode_frame_record,
    encode_frame_record,
    find_place,
    read_totals,
)
from sessfs.types import ChunkId, FrameNo

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence, Set
    from concurrent.futures import Future

    from sessfs.format.chunk import Buffer
    from sessfs.local.db import Batch, Database

REWRITE_BELOW = 0.5
"""A frame of which less than this share is alive is rewritten with what is."""
COMMIT_BYTES = 8 << 20
WAITING_BYTES = 24 << 20
"""So much may wait while the batch before is being written; then the caller waits, too."""


class ChunkWriter:
    """Owns all writing to `chunks/`; one process, one thread, and one of its own that waits for the disk. Nothing is
    durable or read by others before `commit`.
    """

    def __init__(self, db: Database, key: bytes, level: int | None = None) -> None:
        self._db = db
        self._key = key
        self._codec = FrameCodec() if level is None else FrameCodec(level)
        self._totals = read_totals(db)
        self._open: list[bytes] = []
        self._open_ids: list[tuple[ChunkId, int]] = []
        self._open_bytes = 0
        self._pending: set[ChunkId] = set()
        self._superseded: list[FrameNo] = []
        """Frames of which every survivor is in the open frame or a later one: they go when that is closed."""
        self._uncommitted_bytes = 0
        self._thread: ThreadPoolExecutor | None = None
        self._writing: tuple[Batch, Future[bool]] | None = None
        self.added: list[ChunkId] = []
        """Chunks newly stored since the caller last cleared the list."""
        self.distrusted: set[ChunkId] = set()
        """Chunks that are stored and known to be damaged: they count as missing, and are replaced when they come."""
        self._replaced: list[ChunkId] = []

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
        is_writing = self._writing is not None and not self._writing[1].done()
        if self._uncommitted_bytes >= (WAITING_BYTES if is_writing else COMMIT_BYTES):
            self._begin_write()

    def has(self, cid: ChunkId) -> bool:
        """True when the chunk is stored, or about to be, and not known to be damaged."""
        return cid in self._pending or (cid not in self.distrusted and find_place(self._db, cid) is not None)

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
            if cid in wanted and find_place(self._db, cid) is None:
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
        self._end_write()

    def _begin_write(self) -> None:
        """Have all that came until now written in a thread, once what was being written is. Raises as `commit`."""
        self._end_write()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "write")
        self._db.put(TOTALS, TOTALS_KEY, TOTALS_RECORD.pack(*self._totals))
        batch = self._db.cut()
        self._writing = batch, self._thread.submit(self._db.write_batch, batch)
        self._uncommitted_bytes = 0

    def _end_write(self) -> None:
        if self._writing is None:
            return
        batch, written = self._writing
        if not written.result():
            self._db.grow()
            while not self._db.write_batch(batch):
                self._db.grow()
        self._db.settle(batch, durable=True)
        self._writing = None

    def drop(self, ids: Iterable[ChunkId]) -> None:
        """Remove dead chunks: the frame goes with its last one, and is rewritten when mostly dead. Ids that are not
        here are fine. The caller commits.
        """
        self.close_frame()
        shrunk: set[FrameNo] = set()
        for cid in ids:
            place = find_place(self._db, cid)
            if place is None:
                continue
            self._db.delete(INDEX, cid)
            key = FRAME_KEY.pack(place.frame)
            live = self._live(place.frame) - place.length
            self._db.put(LIVE, key, LIVE_BYTES.pack(live))
            self._totals = self._totals._replace(plain_bytes=self._totals.plain_bytes - place.length)
            shrunk.add(place.frame)
        for frame in sorted(shrunk):
            self._shrink(frame)
        self.close_frame()

    def _live(self, frame: FrameNo) -> int:
        value = self._db.get(LIVE, FRAME_KEY.pack(frame))
        return int(LIVE_BYTES.unpack(value)[0]) if value else 0

    def _shrink(self, frame: FrameNo, below: float = REWRITE_BELOW) -> None:
        record = self._db.get(FRAMES, FRAME_KEY.pack(frame))
        if record is None:
            return
        live = self._live(frame)
        survivors = self._survivors(frame, record, live, below) if live else []
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
            live = self._live(frame)
            self._db.delete(FRAMES, FRAME_KEY.pack(frame))
            self._db.delete(LIVE, FRAME_KEY.pack(frame))
            self._totals = self._totals._replace(
                stored_bytes=self._totals.stored_bytes - len(record), plain_bytes=self._totals.plain_bytes - live
            )
        self._superseded.clear()

    def rewrite_mixed(self) -> int:
        """Rewrite every frame that holds a dead chunk, however little, without it. Returns how many had to stay, being
        damaged. The caller commits.
        """
        self.close_frame()
        left = 0
        mixed = [
            FrameNo(FRAME_KEY.unpack(key)[0]) for key, record in self._db.scan(FRAMES) if self._is_mixed(key, record)
        ]
        for frame in mixed:
            self._shrink(frame, below=math.inf)
        self.close_frame()
        for frame in mixed:
            left += self._db.get(FRAMES, FRAME_KEY.pack(frame)) is not None
        return left

    def _is_mixed(self, key: bytes, record: bytes) -> bool:
        try:
            entries, _ = decode_frame_record(record)
        except StoreCorrupt:
            return True
        return self._live(FrameNo(FRAME_KEY.unpack(key)[0])) != sum(length for _, length in entries)

    def _survivors(self, frame: FrameNo, record: bytes, live: int, below: float) -> list[tuple[ChunkId, bytes]] | None:
        """The chunks that live in the frame, *live* bytes of them, if it is to be rewritten; None when it stays: at
        least the share *below* is alive, or it is damaged, and then what is left must stay where the index says.
        """
        alive = []
        try:
            entries, payload = decode_frame_record(record)
            if live >= sum(length for _, length in entries) * below:
                return None
            plain = self._codec.decode(payload)
            for cid in dict(entries):
                place = find_place(self._db, cid)
                if place is not None and place.frame == frame:
                    chunk = plain[place.offset : place.offset + place.length]
                    verify_chunk(self._key, cid, chunk)
                    alive.append((cid, chunk))
        except StoreCorrupt:
            return None
        return alive if sum(len(chunk) for _, chunk in alive) == live else None


def _number(key: bytes) -> FrameNo:
    return FrameNo(FRAME_KEY.unpack(key)[0])
