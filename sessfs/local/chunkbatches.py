"""Transactions of the one writer of `chunks/`: each follows what the one before left, or is not made at all.

A frame's number is given once. So each transaction first holds what is durable against what this writer left there. Had
anybody else written since, nothing is put, and this writer is worth nothing any more.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from sessfs.errors import LocalStoreError
from sessfs.local.chunkstore import (
    FRAME_KEY,
    FRAMES,
    INDEX,
    LIVE,
    PLACE,
    TOTALS,
    TOTALS_KEY,
    TOTALS_RECORD,
    Totals,
    unpack_frame,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from sessfs.local.db import Batch, Database, Standing

MAX_FRAME = 1 << 62
"""No frame ever gets so high a number: a record that says so is damaged."""


def count_totals(db: Database) -> Totals:
    """The totals by all other records. No frame that a chunk's place names is given again."""
    stored = sum(len(record) for _, record in db.scan(FRAMES))
    places = [PLACE.unpack(value) for _, value in db.scan(INDEX) if len(value) == PLACE.size]
    named = [number for number, _, _ in places if number < MAX_FRAME]
    return Totals(max(named, default=0) + 1, stored, sum(length for _, _, length in places))


def sound_totals(db: Database) -> Totals:
    """The totals as they are stored, or counted where that is damaged. The next frame comes after all others."""
    record = db.get(TOTALS, TOTALS_KEY)
    totals = Totals(*TOTALS_RECORD.unpack(record)) if record and len(record) == TOTALS_RECORD.size else None
    if totals is None or totals.next_frame >= MAX_FRAME:
        totals = count_totals(db)
    lasts = [unpack_frame(db.last_key(table, FRAME_KEY.pack(MAX_FRAME)) or b"") for table in (FRAMES, LIVE)]
    return totals._replace(next_frame=max(totals.next_frame, *((last or 0) + 1 for last in lasts)))


class _Writing(NamedTuple):
    """A batch on its way to the disk."""

    batch: Batch
    totals: bytes
    write: Callable[[], bool]
    """See `Database.write_batch`."""
    written: Future[bool]


class ChunkBatches:
    """One thread calls; one of its own waits for the disk."""

    def __init__(self, db: Database, may_write: Callable[[], None]) -> None:
        """*may_write* is called in each transaction, in whatever thread, and raises LocalStoreError when this process
        must write nothing more.
        """
        self._db = db
        self._may_write = may_write
        self._durable = db.get(TOTALS, TOTALS_KEY)
        self.totals = sound_totals(db)
        """Of what is durable, and of what is on its way."""
        self._thread: ThreadPoolExecutor | None = None
        self._writing: _Writing | None = None

    @property
    def is_writing(self) -> bool:
        """True while a batch is on its way."""
        return self._writing is not None and not self._writing.written.done()

    def begin(self, totals: Totals) -> None:
        """Have all that came until now written in a thread, once what was being written is. *totals* are the sums then.
        Raises StoreFull, LocalStoreError.
        """
        self.end()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "write")
        record, first_new = TOTALS_RECORD.pack(*totals), self.totals.next_frame
        self._db.put(TOTALS, TOTALS_KEY, record)
        batch = self._db.cut()

        def write() -> bool:
            return self._db.write_batch(batch, lambda standing: self._check(standing, first_new))

        self._writing = _Writing(batch, record, write, self._thread.submit(write))
        self.totals = totals

    def end(self) -> None:
        """Return once what was begun is durable. Raises as `begin`."""
        if self._writing is None:
            return
        writing = self._writing
        if not writing.written.result():
            self._db.grow()
            while not writing.write():
                self._db.grow()
        self._db.settle(writing.batch, durable=True)
        self._durable = writing.totals
        self._writing = None

    def _check(self, standing: Standing, first_new: int) -> None:
        """Raises LocalStoreError when a batch of frames from *first_new* on does not follow what is durable."""
        self._may_write()
        last = standing.last_key(FRAMES, FRAME_KEY.pack(MAX_FRAME))
        if standing.get(TOTALS, TOTALS_KEY) != self._durable or (
            last is not None and last >= FRAME_KEY.pack(first_new)
        ):
            raise LocalStoreError("another process has written chunks meanwhile: nothing was written over them")
