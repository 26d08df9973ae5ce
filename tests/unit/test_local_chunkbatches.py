"""Transactions of `chunks/`: no frame is ever written over, whoever else writes, and damage stops nothing else."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import LocalStoreError
from sessfs.format.chunk import chunk_id
from sessfs.local.chunkbatches import MAX_FRAME
from sessfs.local.chunkstore import (
    CHUNK_TABLES,
    FRAME_KEY,
    FRAMES,
    INDEX,
    LIVE,
    LIVE_BYTES,
    PLACE,
    TOTALS,
    TOTALS_KEY,
    TOTALS_RECORD,
    ChunkReader,
    find_place,
    read_totals,
)
from sessfs.local.chunkwriter import ChunkWriter
from sessfs.local.db import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sessfs.types import ChunkId, FrameNo

KEY = bytes(range(32))
LENGTH = 60_000
MAP_BYTES = 1 << 26

WRITER = """
import random, sys
from pathlib import Path
from sessfs.errors import LocalStoreError
from sessfs.format.chunk import chunk_id
from sessfs.local.chunkstore import CHUNK_TABLES
from sessfs.local.chunkwriter import ChunkWriter
from sessfs.local.db import Database

key = bytes(range(32))
content = lambda number: random.Random(number).randbytes(60_000)
writer = ChunkWriter(Database(Path(sys.argv[1]), CHUNK_TABLES, 1 << 26), key, 1)
print("open", flush=True)
for line in sys.stdin:
    what, *numbers = line.split()
    try:
        if what == "add":
            for number in numbers:
                writer.add(content(int(number)))
        else:
            writer.drop([chunk_id(key, content(int(number))) for number in numbers])
        writer.commit()
    except LocalStoreError as exc:
        print("refused", exc, flush=True)
        break
    print("done", flush=True)
"""


def content(number: int) -> bytes:
    return random.Random(number).randbytes(LENGTH)


def cid(number: int) -> ChunkId:
    return chunk_id(KEY, content(number))


class Writer:
    """A writer in a process of its own, without the lock that keeps others from being one."""

    def __init__(self, path: Path, started: list[subprocess.Popen[bytes]]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        started.append(self._process)
        assert self._read() == "open"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def ask(self, what: str, *numbers: int) -> str:
        """Its answer: "done", or "refused" and why; then it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join([what, *map(str, numbers)]).encode() + b"\n")
        return self._read()

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait()


def records(path: Path) -> dict[bytes, bytes]:
    db = Database(path, CHUNK_TABLES, MAP_BYTES, readonly=True)
    try:
        return dict(db.scan(FRAMES))
    finally:
        db.close()


@pytest.mark.parametrize("seed", range(6))
def test_two_writers_never_write_over_each_other(
    tmp_path: Path, started: list[subprocess.Popen[bytes]], seed: int
) -> None:
    """What was answered with "done" is there for good, whichever of them came first."""
    source = random.Random(seed)
    path = tmp_path / "chunks"
    Database(path, CHUNK_TABLES, MAP_BYTES).close()
    writers = [Writer(path, started), Writer(path, started)]
    alive: set[int] = set()
    ever: dict[bytes, bytes] = {}
    n_refused = 0
    for step in range(12):
        at = source.randrange(2)
        if alive and source.random() < 0.3:
            gone = source.sample(sorted(alive), 1)
            if (answer := writers[at].ask("drop", *gone)) == "done":
                alive.difference_update(gone)
        else:
            new = [100 * step + number for number in range(source.choice([1, 3, 12]))]
            if (answer := writers[at].ask("add", *new)) == "done":
                alive.update(new)
        if answer != "done":
            assert answer.startswith("refused another process has written chunks meanwhile"), answer
            n_refused += 1
            writers[at].close()
            writers[at] = Writer(path, started)
        for key, record in records(path).items():
            assert ever.setdefault(key, record) == record, "a frame was written over"
    for writer in writers:
        writer.close()
    assert n_refused, "they never met"
    reader = ChunkReader(Database(path, CHUNK_TABLES, MAP_BYTES, readonly=True), KEY)
    assert set(reader.iter_ids()) == {cid(number) for number in alive}
    assert all(reader.find(cid(number)) == content(number) for number in alive)
    assert reader.totals().plain_bytes == len(alive) * LENGTH
    reader.close()


def test_writer_that_may_not_write_any_more_writes_nothing(tmp_path: Path) -> None:
    db = Database(tmp_path / "chunks", CHUNK_TABLES, MAP_BYTES)
    is_allowed = True

    def may_write() -> None:
        if not is_allowed:
            raise LocalStoreError("its daemon is gone")

    writer = ChunkWriter(db, KEY, 1, may_write=may_write)
    writer.add(content(1))
    writer.commit()
    before = records_of(db)
    is_allowed = False
    writer.add(content(2))
    with pytest.raises(LocalStoreError, match="its daemon is gone"):
        writer.commit()
    db.close()
    db = Database(tmp_path / "chunks", CHUNK_TABLES, MAP_BYTES)
    assert records_of(db) == before
    db.close()


def records_of(db: Database) -> dict[str, list[tuple[bytes, bytes]]]:
    return {table: list(db.scan(table)) for table in CHUNK_TABLES}


# -- damage


class Damaged:
    """Two frames of which each holds several chunks, and a hand that damages records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.db = Database(path, CHUNK_TABLES, MAP_BYTES)
        writer = ChunkWriter(self.db, KEY, 1)
        for number in range(4):
            writer.add(content(number))
        writer.commit()
        for number in range(4, 8):
            writer.add(content(number))
        writer.commit()

    def frame_of(self, number: int) -> FrameNo:
        place = find_place(self.db, cid(number))
        assert place is not None
        return place.frame

    def key_of(self, number: int) -> bytes:
        return FRAME_KEY.pack(self.frame_of(number))

    def reopen(self) -> None:
        """What was put or deleted is on the disk."""
        batch = self.db.cut()
        assert self.db.write_batch(batch)
        self.db.settle(batch, durable=True)
        self.db.close()
        self.db = Database(self.path, CHUNK_TABLES, MAP_BYTES)


def _short_place(store: Damaged) -> None:
    store.db.put(INDEX, cid(0), b"short")


def _place_in_another_frame(store: Damaged) -> None:
    store.db.put(INDEX, cid(0), PLACE.pack(store.frame_of(4), 0, 4 * LENGTH))


def _place_in_no_frame(store: Damaged) -> None:
    store.db.put(INDEX, cid(0), PLACE.pack(77, 0, LENGTH))


def _place_of_huge_length(store: Damaged) -> None:
    store.db.put(INDEX, cid(0), PLACE.pack(store.frame_of(0), 0, 0xFFFFFFFF))


def _short_live(store: Damaged) -> None:
    store.db.put(LIVE, store.key_of(0), b"x")


def _no_live(store: Damaged) -> None:
    store.db.delete(LIVE, store.key_of(0))


def _low_live(store: Damaged) -> None:
    store.db.put(LIVE, store.key_of(0), LIVE_BYTES.pack(LENGTH))


def _no_frame(store: Damaged) -> None:
    store.db.delete(FRAMES, store.key_of(0))


def _short_frame(store: Damaged) -> None:
    store.db.put(FRAMES, store.key_of(0), b"\x04\x00short")


def _flipped_frame(store: Damaged) -> None:
    record = bytearray(store.db.get(FRAMES, store.key_of(0)) or b"")
    record[-100] ^= 0x10
    store.db.put(FRAMES, store.key_of(0), bytes(record))


def _odd_frame_key(store: Damaged) -> None:
    store.db.put(FRAMES, b"odd", b"what is this")
    store.db.put(LIVE, b"odd", b"what is this")


def _huge_frame_key(store: Damaged) -> None:
    store.db.put(FRAMES, FRAME_KEY.pack((1 << 64) - 1), b"what is this")
    store.db.put(LIVE, FRAME_KEY.pack((1 << 64) - 1), LIVE_BYTES.pack(5))


def _short_totals(store: Damaged) -> None:
    store.db.put(TOTALS, TOTALS_KEY, b"short")


def _no_totals(store: Damaged) -> None:
    store.db.delete(TOTALS, TOTALS_KEY)


def _low_totals(store: Damaged) -> None:
    store.db.put(TOTALS, TOTALS_KEY, TOTALS_RECORD.pack(1, 0, 0))


def _huge_totals(store: Damaged) -> None:
    store.db.put(TOTALS, TOTALS_KEY, TOTALS_RECORD.pack((1 << 64) - 1, 0, 0))


DAMAGE = (
    _short_place,
    _place_in_another_frame,
    _place_in_no_frame,
    _place_of_huge_length,
    _short_live,
    _no_live,
    _low_live,
    _no_frame,
    _short_frame,
    _flipped_frame,
    _odd_frame_key,
    _huge_frame_key,
    _short_totals,
    _no_totals,
    _low_totals,
    _huge_totals,
)


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[Damaged]:
    made = Damaged(tmp_path / "chunks")
    yield made
    made.db.close()


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_met_by_a_drop_is_set_aside_and_all_else_goes_on(
    damaged: Damaged, damage: Callable[[Damaged], None]
) -> None:
    """The chunks of the other frame stay, are dropped when they are to be, and new ones are stored beside them."""
    damage(damaged)
    damaged.reopen()
    before = dict(damaged.db.scan(FRAMES))
    writer = ChunkWriter(damaged.db, KEY, 1)
    reader = ChunkReader(damaged.db, KEY)
    for ids in ([0], [0, 1], [2, 3]):
        writer.drop([cid(number) for number in ids])
        writer.commit()
        assert all(reader.find(cid(number)) == content(number) for number in range(4, 8)), "others were lost with it"
    for number in (20, 21):
        writer.add(content(number))
    writer.commit()
    writer.drop([cid(4), cid(5), cid(6)])
    writer.commit()
    assert reader.find(cid(7)) == content(7)
    assert [reader.find(cid(number)) for number in (20, 21)] == [content(20), content(21)]
    assert not any(reader.has(cid(number)) for number in (0, 1, 2, 3, 4, 5, 6))
    after = dict(damaged.db.scan(FRAMES))
    assert all(after[key] == before[key] for key in before.keys() & after.keys()), "a frame was written over"
    assert read_totals(damaged.db).next_frame < MAX_FRAME
    writer.rewrite_mixed()
    writer.commit()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_short_place, cid(0).hex()),
        (_flipped_frame, "frame 1"),
        (_no_live, "frame 1"),
    ],
)
def test_damage_that_stays_is_named(damaged: Damaged, damage: Callable[[Damaged], None], named: str) -> None:
    damage(damaged)
    damaged.reopen()
    writer = ChunkWriter(damaged.db, KEY, 1)
    if damage is _no_live:
        writer.rewrite_mixed()
    writer.drop([cid(number) for number in range(3)])
    writer.commit()
    assert any(named in what for what in writer.damaged), writer.damaged


def test_chunk_whose_place_is_damaged_is_stored_anew(damaged: Damaged) -> None:
    _short_place(damaged)
    damaged.reopen()
    writer = ChunkWriter(damaged.db, KEY, 1)
    assert writer.add(content(0)) == cid(0)
    writer.commit()
    assert writer.added == [cid(0)]
    reader = ChunkReader(damaged.db, KEY)
    assert reader.find(cid(0)) == content(0)
