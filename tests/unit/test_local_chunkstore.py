"""Local chunks: frames, their index and totals, dropping and rewriting, reference counts, damage."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import StoreCorrupt
from sessfs.format.chunk import CHUNK_MAX_BYTES, FRAME_TARGET_BYTES, FrameCodec, chunk_id
from sessfs.local.chunkstore import (
    CHUNK_TABLES,
    FRAME_KEY,
    FRAMES,
    LIVE,
    ChunkReader,
    References,
    decode_frame_record,
    encode_frame_record,
    find_place,
)
from sessfs.local.chunkwriter import ChunkWriter
from sessfs.local.db import Database
from sessfs.local.inodes import META_TABLES
from sessfs.types import ChunkId, FrameNo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

KEY = bytes(range(32))
CHUNK_BYTES = 60_000
PER_FRAME = -(-FRAME_TARGET_BYTES // CHUNK_BYTES)


def chunk(number: int, length: int = CHUNK_BYTES) -> bytes:
    return random.Random(number).randbytes(length)


def cid(number: int, length: int = CHUNK_BYTES) -> ChunkId:
    return chunk_id(KEY, chunk(number, length))


class Store:
    """One environment, with a writer and a reader as two processes would have them, in turn."""

    def __init__(self, path: Path, map_bytes: int = 1 << 26) -> None:
        self.db = Database(path, CHUNK_TABLES, map_bytes)
        self.writer = ChunkWriter(self.db, KEY, 1)
        self.reader = ChunkReader(self.db, KEY)

    def add(self, *numbers: int) -> None:
        for number in numbers:
            assert self.writer.add(chunk(number)) == cid(number)
        self.commit()

    def commit(self) -> None:
        self.writer.commit()
        self.check()

    def frames(self) -> list[FrameNo]:
        return [FrameNo(FRAME_KEY.unpack(key)[0]) for key, _ in self.db.scan(FRAMES)]

    def check(self) -> None:
        """The totals are the sums, each frame has a live count, and every indexed chunk reads."""
        totals = self.reader.totals()
        assert totals.stored_bytes == sum(len(record) for _, record in self.db.scan(FRAMES))
        ids = list(self.reader.iter_ids())
        chunks = [self.reader.find(one) for one in ids]
        assert totals.plain_bytes == sum(len(found) for found in chunks if found is not None)
        assert None not in chunks
        assert [key for key, _ in self.db.scan(LIVE)] == [key for key, _ in self.db.scan(FRAMES)]
        assert all(totals.next_frame > frame for frame in self.frames())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "chunks")
    yield made
    made.reader.close()


def test_chunkwriter_stores_a_chunk_once(store: Store) -> None:
    store.add(1, 2, 1)
    assert store.writer.added == [cid(1), cid(2)]
    store.add(2)
    assert store.writer.added == [cid(1), cid(2)]
    assert sorted(store.reader.iter_ids()) == sorted([cid(1), cid(2)])
    assert store.reader.find(cid(1)) == chunk(1)
    assert store.reader.find(cid(3)) is None
    assert store.reader.has(cid(2))
    assert not store.reader.has(cid(3))


def test_chunkwriter_closes_frames_at_their_size(store: Store) -> None:
    store.add(*range(PER_FRAME + 2))
    assert len(store.frames()) == 2
    assert store.reader.chunks_of(store.frames()[0]) == [cid(n) for n in range(PER_FRAME)]


def test_chunkwriter_uncommitted_chunks_are_lost_and_committed_stay(tmp_path: Path) -> None:
    store = Store(tmp_path / "chunks")
    store.add(1)
    store.writer.add(chunk(2))
    store.writer.close_frame()
    store.reader.close()
    store = Store(tmp_path / "chunks")
    assert list(store.reader.iter_ids()) == [cid(1)]
    store.add(2)
    store.reader.close()


def test_chunkwriter_grows_its_map(tmp_path: Path) -> None:
    store = Store(tmp_path / "chunks", 1 << 17)
    store.add(*range(40))
    assert len(list(store.reader.iter_ids())) == 40
    store.reader.close()


def test_chunkwriter_drop_takes_the_frame_with_its_last_chunk(store: Store) -> None:
    store.add(1, 2)
    store.writer.drop([cid(1), cid(2), cid(99)])
    store.commit()
    assert store.frames() == []
    assert store.reader.totals()[1:] == (0, 0)


def test_chunkwriter_drop_rewrites_what_is_mostly_dead(store: Store) -> None:
    store.add(*range(PER_FRAME), 100)
    first = store.frames()[0]
    store.writer.drop([cid(n) for n in range(3)])
    store.commit()
    assert first in store.frames()
    before = store.reader.totals().stored_bytes
    store.writer.drop([cid(n) for n in range(3, PER_FRAME - 1)])
    store.commit()
    assert first not in store.frames()
    assert store.reader.find(cid(PER_FRAME - 1)) == chunk(PER_FRAME - 1)
    assert store.reader.totals().stored_bytes < before / 2


def test_chunkwriter_drop_and_add_again_in_one_commit(store: Store) -> None:
    store.add(*range(4))
    store.writer.drop([cid(0), cid(1), cid(2)])
    store.add(0, 5)
    assert sorted(store.reader.iter_ids()) == sorted([cid(0), cid(3), cid(5)])


def test_chunkwriter_random_adds_and_drops_keep_everything_right(store: Store) -> None:
    rng = random.Random(7)
    alive: set[int] = set()
    for _ in range(60):
        numbers = [rng.randrange(80) for _ in range(rng.randrange(12))]
        if rng.random() < 0.5:
            for number in numbers:
                store.writer.add(chunk(number, 100 + 1000 * number))
            alive.update(numbers)
        else:
            store.writer.drop(cid(number, 100 + 1000 * number) for number in numbers)
            alive.difference_update(numbers)
        store.commit()
        assert sorted(store.reader.iter_ids()) == sorted(cid(number, 100 + 1000 * number) for number in alive)


def frame_of(*numbers: int) -> bytes:
    chunks = [chunk(number) for number in numbers]
    return encode_frame_record([(cid(number), CHUNK_BYTES) for number in numbers], FrameCodec(1).encode(chunks))


def test_chunkwriter_record_is_kept_for_what_is_wanted(store: Store) -> None:
    store.add(2)
    store.writer.add_record(frame_of(1, 2, 3), {cid(1), cid(2)})
    store.commit()
    assert sorted(store.reader.iter_ids()) == sorted([cid(1), cid(2)])
    store.writer.add_record(frame_of(1, 2), {cid(1), cid(2)})
    store.commit()
    assert len(store.frames()) == 2
    store.writer.drop([cid(1), cid(2)])
    store.commit()
    assert store.frames() == []


def test_chunkwriter_record_may_name_a_chunk_twice(store: Store) -> None:
    store.writer.add_record(frame_of(1, 1), {cid(1)})
    store.commit()
    store.writer.drop([cid(1)])
    store.commit()
    assert store.frames() == []


def test_chunkwriter_damaged_record_is_refused(store: Store) -> None:
    with pytest.raises(StoreCorrupt):
        store.writer.add_record(frame_of(1)[:30], {cid(1)})
    wrong = encode_frame_record([(cid(1), CHUNK_BYTES)], FrameCodec(1).encode([chunk(2)]))
    with pytest.raises(StoreCorrupt):
        store.writer.add_record(wrong, {cid(1)})


def damage(store: Store, frame: FrameNo, at: int) -> None:
    """Flip a bit of the stored record."""
    record = bytearray(store.db.get(FRAMES, FRAME_KEY.pack(frame)) or b"")
    record[at] ^= 1
    store.db.put(FRAMES, FRAME_KEY.pack(frame), bytes(record))


def read_all(reader: ChunkReader, numbers: Iterable[int]) -> None:
    """Read each of these chunks."""
    for number in numbers:
        reader.find(cid(number))


def test_chunkreader_finds_damage_and_reads_the_rest(store: Store) -> None:
    store.add(*range(PER_FRAME))
    store.add(100)
    damage(store, store.frames()[0], 40 * PER_FRAME)
    reader = ChunkReader(store.db, KEY)
    with pytest.raises(StoreCorrupt):
        read_all(reader, range(PER_FRAME))
    assert reader.find(cid(100)) == chunk(100)


def test_chunkreader_chunk_stays_while_others_are_read(store: Store) -> None:
    """Frames are opened into blocks that are used again: never while somebody still looks at what was in one."""
    numbers = list(range(1, 40 * PER_FRAME))
    store.add(*numbers)
    kept = {number: store.reader.find(cid(number)) for number in numbers[::50]}
    for number in numbers:
        found = store.reader.find(cid(number))
        assert found is not None
        assert found == chunk(number)
    assert {number: bytes(found or b"") for number, found in kept.items()} == {n: chunk(n) for n in kept}


def test_chunkreader_missing_frame_is_corrupt(store: Store) -> None:
    store.add(1)
    store.db.delete(FRAMES, FRAME_KEY.pack(store.frames()[0]))
    reader = ChunkReader(store.db, KEY)
    with pytest.raises(StoreCorrupt):
        reader.find(cid(1))
    with pytest.raises(StoreCorrupt):
        reader.find_record(cid(1))
    with pytest.raises(StoreCorrupt):
        reader.frame_alone(cid(1))


@pytest.mark.parametrize("at", [0, 5, 24, -5], ids=["count", "id", "length", "payload"])
def test_chunkwriter_drops_chunks_of_a_damaged_frame(store: Store, at: int) -> None:
    store.add(*range(PER_FRAME))
    frame = store.frames()[0]
    record = bytearray(store.db.get(FRAMES, FRAME_KEY.pack(frame)) or b"")
    record[at] ^= 0x55
    store.db.put(FRAMES, FRAME_KEY.pack(frame), bytes(record))
    store.writer.commit()
    store.writer.drop([cid(number) for number in range(PER_FRAME - 1)])
    store.writer.commit()
    reader = ChunkReader(store.db, KEY)
    assert list(reader.iter_ids()) == [cid(PER_FRAME - 1)]
    if at > 0:
        assert reader.find(cid(PER_FRAME - 1)) == chunk(PER_FRAME - 1)
    store.writer.drop([cid(PER_FRAME - 1)])
    store.commit()
    assert store.frames() == []


def test_chunkreader_order_of_use(store: Store) -> None:
    for number in range(3):
        store.add(number)
        assert find_place(store.db, cid(number)) is not None
    reader = ChunkReader(store.db, KEY)
    reader.find(cid(0))
    frames = store.frames()
    assert [frame for frame, _ in reader.least_used()] == [frames[1], frames[2], frames[0]]


def test_chunkreader_forgets_the_use_of_frames_that_are_gone(store: Store) -> None:
    for number in range(3):
        store.add(number)
    reader = ChunkReader(store.db, KEY)
    for number in range(3):
        reader.find(cid(number))
    store.writer.drop([cid(0), cid(1)])
    store.commit()
    assert [frame for frame, _ in reader.least_used()] == store.frames()
    assert list(reader._last_use) == store.frames()


def test_chunkreader_names_no_chunk_of_a_frame_whose_list_is_damaged(store: Store) -> None:
    store.add(1)
    frame = store.frames()[0]
    record = store.db.get(FRAMES, FRAME_KEY.pack(frame)) or b""
    store.db.put(FRAMES, FRAME_KEY.pack(frame), b"\xff\xff" + record[2:])
    store.commit()
    assert ChunkReader(store.db, KEY).chunks_of(frame) == []


def test_frame_record_cut_short_is_corrupt() -> None:
    record = frame_of(1, 2)
    assert decode_frame_record(record)[0] == [(cid(1), CHUNK_BYTES), (cid(2), CHUNK_BYTES)]
    for length in (0, 1, 2, 20, 2 + 2 * 24):
        with pytest.raises(StoreCorrupt):
            decode_frame_record(record[:length])
    assert CHUNK_BYTES < CHUNK_MAX_BYTES


# -- references


@pytest.fixture
def refs(tmp_path: Path) -> Iterator[tuple[References, Database]]:
    meta = Database(tmp_path / "meta", META_TABLES, 1 << 20)
    yield References(meta), meta
    meta.close()


A, B = ChunkId(b"a" * 20), ChunkId(b"b" * 20)


def settle(refs: References) -> None:
    refs.cut()
    refs.settle()


def test_references_chunk_is_dead_only_after_settle(refs: tuple[References, Database]) -> None:
    references, _ = refs
    references.add([A, A, B])
    references.remove([A])
    assert references.count(A) == 1
    references.remove([A])
    assert references.has_unused
    assert not references.has_dead
    assert references.take_dead() == []
    references.cut()
    assert references.take_dead() == []
    references.settle()
    assert references.has_dead
    assert references.take_dead() == [A]
    assert references.take_dead() == []
    assert not references.has_unused


def test_references_fewer_than_named_is_corrupt(refs: tuple[References, Database]) -> None:
    references, _ = refs
    references.add([A])
    with pytest.raises(StoreCorrupt):
        references.remove([A, A])
    with pytest.raises(StoreCorrupt):
        references.remove([B])


def test_references_named_again_is_not_dead(refs: tuple[References, Database]) -> None:
    references, _ = refs
    references.add([A])
    references.remove([A])
    settle(references)
    references.add([A])
    assert references.take_dead() == []


def test_references_named_and_dropped_again_waits_for_the_second_batch(refs: tuple[References, Database]) -> None:
    """What is on the disk may name the chunk, as long as the batch that removes its last reference is not there."""
    references, _ = refs
    references.add([A])
    references.remove([A])
    settle(references)
    references.add([A])
    settle(references)
    references.remove([A])
    assert references.take_dead() == []
    references.cut()
    assert references.take_dead() == []
    references.settle()
    assert references.take_dead() == [A]


def test_references_pinned_is_kept_until_unpinned(refs: tuple[References, Database]) -> None:
    references, _ = refs
    references.add([A])
    references.pin([A, A, B])
    references.pin([A])
    references.remove([A])
    settle(references)
    assert references.is_held(A)
    assert references.take_dead() == []
    references.unpin([A])
    settle(references)
    assert references.take_dead() == []
    references.unpin([A, A, B])
    assert not references.is_held(A)
    settle(references)
    assert sorted(references.take_dead()) == [A, B]


def test_references_taken_and_not_dropped_are_dead_again(refs: tuple[References, Database]) -> None:
    references, _ = refs
    references.note_unused([A])
    settle(references)
    dead = references.take_dead()
    references.note_unused(dead)
    assert references.has_unused
    settle(references)
    assert references.take_dead() == [A]


def test_references_failed_batch_keeps_waiting(refs: tuple[References, Database]) -> None:
    references, meta = refs
    references.add([A])
    references.remove([A])
    references.cut()
    batch = meta.cut()
    meta.settle(batch, durable=False)
    assert not references.has_dead
    settle(references)
    assert references.take_dead() == [A]


def test_chunkreader_gives_only_sound_chunks_away(store: Store) -> None:
    """What is uploaded is verified as who downloads it will: by the frame's own list."""
    store.add(*range(PER_FRAME))
    frame = store.frames()[0]
    good = store.db.get(FRAMES, FRAME_KEY.pack(frame))
    assert good is not None
    checker = store.reader.checker()
    assert store.reader.find_record(cid(1)) == good
    assert checker.sound_chunks(good) == [cid(number) for number in range(PER_FRAME)]
    damage(store, frame, len(good) - 5)
    reader = ChunkReader(store.db, KEY)
    last = cid(PER_FRAME - 1)
    assert checker.sound_chunks(reader.find_record(cid(1)) or b"") == [cid(number) for number in range(PER_FRAME - 1)]
    with pytest.raises(StoreCorrupt):
        reader.frame_alone(last)
    store.db.put(FRAMES, FRAME_KEY.pack(frame), good)
    damage(store, frame, 2 + 24 + 20)
    reader = ChunkReader(store.db, KEY)
    assert cid(3) not in checker.sound_chunks(reader.find_record(cid(3)) or b"")
    alone = reader.frame_alone(cid(3))
    assert alone is not None
    assert checker.sound_chunks(alone) == [cid(3)]
    assert reader.find_record(cid(1000)) is None
    assert reader.frame_alone(cid(1000)) is None
    assert checker.sound_chunks(b"") == []
    assert decode_frame_record(alone)[0] == [(cid(3), CHUNK_BYTES)]
