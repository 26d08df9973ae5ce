"""Chunks from the remote: merged reads, one flight a frame, damage healed, and errors for the range that has them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from sessfs.errors import LocalStoreError, RemoteCorrupt, RemoteError, RemoteUnavailable, SessfsError, StoreCorrupt
from sessfs.format.manifest import split_ids
from sessfs.local import inodes
from sessfs.local.chunkstore import CHUNK_TABLES, FRAMES
from sessfs.local.db import Database
from sessfs.local.places import RemotePlace
from sessfs.sync import fetch
from sessfs.sync.flights import GAP_BYTES, READ_MAX_BYTES, plan_reads
from tests.support.faultystore import FaultyStore, bucket_gone, timeout
from tests.support.memorystore import MemoryStore
from tests.support.volumes import assert_clean, open_machine, wait_until

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from sessfs.format.recipe import Extent
    from sessfs.types import ChunkId
    from tests.support.volumes import Machine

BODY = random.Random(5).randbytes(3_000_000)
SEGMENT = "nodes/a/segments/0000000000000001"


async def publish(path: Path, content: bytes = BODY) -> MemoryStore:
    """A bucket with one session `s`, of one file `f` and a small one."""
    store = MemoryStore()
    async with open_machine(path / "a", store) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/f", content)
        await machine.write(b"s/small", b"small")
    return store


def damage_remote(store: MemoryStore, machine: Machine, chunk_index: int) -> tuple[int, int]:
    """Flip a byte of the frame that holds that chunk of `s/f`; the range of the file that the frame holds."""
    extents = list(machine.volume.inodes.load_recipe(machine.get(b"s/f")))
    place = machine.volume.places.find(extents[chunk_index].chunk)
    assert place is not None
    body = bytearray(store.objects[SEGMENT])
    body[place.offset + place.length // 2] ^= 1
    store.objects[SEGMENT] = bytes(body)
    hurt = [e for e in extents if machine.volume.places.find(e.chunk) == place]
    return hurt[0].start, hurt[-1].end


async def test_fetch_brings_a_file_in_few_reads_and_keeps_it(tmp_path: Path) -> None:
    store = FaultyStore(await publish(tmp_path))
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        before = store.count("get")
        assert await machine.read(b"s/f") == BODY
        assert store.count("get") - before <= 3
        await wait_until(lambda: machine.volume.reader.totals().plain_bytes >= len(BODY))
        before = store.count("get")
        assert await machine.read(b"s/f") == BODY
        assert store.count("get") == before
    assert_clean(tmp_path / "b")


async def test_fetch_same_chunk_for_many_readers_is_one_request(tmp_path: Path) -> None:
    store = FaultyStore(await publish(tmp_path, BODY[:1_000_000]))
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        before = store.count("get")
        inode = machine.get(b"s/f")
        async with trio.open_nursery() as nursery:
            for i in range(20):
                nursery.start_soon(machine.volume.fileio.read, inode, i * 1000, 1000)
        assert store.count("get") - before == 1


def damage_local(state: Path) -> None:
    """Flip a bit of each frame."""
    db = Database(state / "chunks", CHUNK_TABLES, 1 << 28)
    for key, record in list(db.scan(FRAMES)):
        damaged = bytearray(record)
        damaged[len(record) // 2] ^= 1
        db.put(FRAMES, key, bytes(damaged))
    batch = db.cut()
    assert db.write_batch(batch)
    db.settle(batch, durable=True)
    db.close()


def damaged_extent(machine: Machine) -> Extent:
    """The first of `s/f` whose chunk is damaged here, which only its reader has looked at."""
    for extent in machine.volume.inodes.load_recipe(machine.get(b"s/f")):
        try:
            machine.volume.reader.find(extent.chunk)
        except StoreCorrupt:
            return extent
    raise AssertionError("nothing is damaged")


async def test_fetch_damaged_chunk_is_healed_from_the_remote(tmp_path: Path) -> None:
    store = await publish(tmp_path)
    damage_local(tmp_path / "a")
    async with open_machine(tmp_path / "a", store) as machine:
        assert await machine.read(b"s/f") == BODY
        await wait_until(lambda: not machine.chunks.has_damaged)
    assert_clean(tmp_path / "a")
    async with open_machine(tmp_path / "a", FaultyStore(store)) as machine:
        assert await machine.read(b"s/f") == BODY


@pytest.mark.parametrize("what", ["write", "truncate"])
async def test_fetch_damaged_chunk_that_is_changed_in_part_is_healed_from_the_remote(tmp_path: Path, what: str) -> None:
    """Whoever asks before the change learns that it has to wait."""
    store = await publish(tmp_path)
    damage_local(tmp_path / "a")
    async with open_machine(tmp_path / "a", store) as machine:
        inode, fileio = machine.get(b"s/f"), machine.volume.fileio
        at = damaged_extent(machine).start + 100
        if what == "write":
            assert not fileio.can_write(inode, at, 5)
            await fileio.write(inode, at, b"hello")
            expected = BODY[:at] + b"hello" + BODY[at + 5 :]
        else:
            assert not fileio.can_truncate(inode, at)
            await fileio.truncate(inode, at)
            expected = BODY[:at]
        assert await machine.read(b"s/f") == expected
        await wait_until(lambda: not machine.chunks.has_damaged)
    assert_clean(tmp_path / "a")


async def test_fetch_damaged_chunk_that_is_replaced_whole_is_not_needed(tmp_path: Path) -> None:
    store = await publish(tmp_path)
    damage_local(tmp_path / "a")
    async with open_machine(tmp_path / "a", FaultyStore(store)) as machine:
        inode, fileio = machine.get(b"s/f"), machine.volume.fileio
        extent = damaged_extent(machine)
        assert fileio.can_write(inode, extent.start, extent.end - extent.start)
        assert fileio.can_truncate(inode, extent.start)
        assert fileio.can_truncate(inode, extent.end)


@pytest.mark.parametrize("what", ["write", "truncate"])
async def test_fetch_for_a_handler_without_a_task_can_be_given_up(tmp_path: Path, what: str) -> None:
    """The request loop closes a handler that waits without having asked for a task."""
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", FaultyStore(store), name="b") as machine:
        await machine.load(b"s")
        inode, fileio = machine.get(b"s/f"), machine.volume.fileio
        started = fileio.write(inode, 100, b"x") if what == "write" else fileio.truncate(inode, 100)
        started.send(None)
        started.close()
        assert await machine.read(b"s/f") == BODY


async def test_fetch_for_a_truncate_while_the_inode_leaves_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks at the file meanwhile, and who changes it after, has the same one."""
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
    monkeypatch.setattr(inodes, "MAX_CLEAN_INODES", 1)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        held_up, fetching = trio.Event(), machine.chunks.fetch

        async def fetch_late(ids: Collection[ChunkId], ahead: Collection[ChunkId]) -> None:
            await held_up.wait()
            await fetching(ids, ahead)

        monkeypatch.setattr(machine.chunks, "fetch", fetch_late)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(machine.truncate, b"s/f", 1_000_000)
            await trio.testing.wait_all_tasks_blocked()
            machine.get(b"s/small")
            assert machine.get(b"s/f").size == len(BODY)
            held_up.set()
        await machine.write(b"s/f", b"x", 5)
        await machine.commit()
        machine.get(b"s/small")
        assert await machine.read(b"s/f") == BODY[:5] + b"x" + BODY[6:1_000_000]
    assert_clean(tmp_path / "b")


async def test_fetch_damage_in_the_remote_is_an_error_for_its_range_alone(tmp_path: Path) -> None:
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        start, end = damage_remote(store, machine, 30)
        inode = machine.get(b"s/f")
        with pytest.raises(RemoteCorrupt, match=SEGMENT):
            await machine.volume.fileio.read(inode, start + 10, 10)
        assert await machine.volume.fileio.read(inode, end, 5000) == BODY[end : end + 5000]
        assert await machine.volume.fileio.read(inode, start - 5000, 5000) == BODY[start - 5000 : start]
        assert await machine.read(b"s/small") == b"small"


async def test_fetch_missing_segment_is_corruption_not_emptiness(tmp_path: Path) -> None:
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        body = store.objects.pop(SEGMENT)
        with pytest.raises(StoreCorrupt, match=SEGMENT):
            await machine.read(b"s/f")
        store.objects[SEGMENT] = body[: len(body) // 2]
        with pytest.raises(RemoteError):
            await machine.read(b"s/f")
        store.objects[SEGMENT] = body
        assert await machine.read(b"s/f") == BODY


async def test_fetch_frame_without_the_chunk_is_corruption_not_a_loop(tmp_path: Path) -> None:
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b", release=False) as machine:
        await machine.load(b"s")
        chunks = [e.chunk for e in machine.volume.inodes.load_recipe(machine.get(b"s/f"))]
        wrong = machine.volume.places.find(chunks[-1])
        assert wrong is not None
        assert wrong != machine.volume.places.find(chunks[0])
        machine.volume.places.set(*wrong, [chunks[0]])
        with trio.fail_after(5), pytest.raises(RemoteCorrupt, match=chunks[0].hex()):
            await machine.volume.fileio.read(machine.get(b"s/f"), 0, 100)


@pytest.mark.parametrize("fault", [timeout(), timeout(after=True), bucket_gone()])
async def test_fetch_failing_remote_is_an_error_and_works_again(tmp_path: Path, fault: object) -> None:
    store = FaultyStore(await publish(tmp_path))
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        store.always(fault, "get")  # type: ignore[arg-type]
        with pytest.raises(RemoteError):
            await machine.read(b"s/f")
        with pytest.raises(RemoteError):
            await machine.write(b"s/f", b"into an extent that is not here", 100)
        with pytest.raises(RemoteError):
            await machine.chunks.prefetch([e.chunk for e in machine.volume.inodes.load_recipe(machine.get(b"s/f"))])
        store.heal()
        await machine.write(b"s/f", b"!", 100)
        assert await machine.read(b"s/f") == BODY[:100] + b"!" + BODY[101:]
    assert_clean(tmp_path / "b")


async def test_fetch_failure_of_one_reader_is_not_that_of_those_who_wait_for_it(tmp_path: Path) -> None:
    store = FaultyStore(await publish(tmp_path))
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        inode = machine.get(b"s/f")
        store.plan("get", timeout())
        got: list[bytes] = []
        failed: list[SessfsError] = []

        async def read() -> None:
            try:
                got.append(await machine.volume.fileio.read(inode, 0, 1000))
            except RemoteUnavailable as exc:
                failed.append(exc)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(read)
        assert got == [BODY[:1000]] * 4
        assert len(failed) == 1


async def test_fetch_more_than_fits_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MEMORY_BYTES", 1 << 20)
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        parts = [
            await machine.volume.fileio.read(machine.get(b"s/f"), at, 100_000) for at in range(0, len(BODY), 100_000)
        ]
        assert b"".join(parts) == BODY
    assert_clean(tmp_path / "b")


async def test_fetch_chunk_that_nothing_wants_any_more_is_not_kept(tmp_path: Path) -> None:
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        await machine.read(b"s/f")
        machine.unlink(b"s/f")
        await machine.drop_dead()
        await wait_until(lambda: not machine.chunks.is_storing)
        await machine.drop_dead()
    assert_clean(tmp_path / "b")


async def test_fetch_learns_what_a_session_reads_at_its_start(tmp_path: Path) -> None:
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        session = machine.get(b"s").ino
        await machine.volume.fileio.read(machine.get(b"s/f"), 0, 100_000)
        machine.clock.advance(fetch.START_S + 1)
        await machine.volume.fileio.read(machine.get(b"s/f"), 2_000_000, 1000)
        learned = machine.volume.places.startup(session)
        assert 0 < len(learned) < 10 * 20
        await machine.write(b"s/small", b"SMALL")
    faulty = FaultyStore(store)
    async with open_machine(tmp_path / "c", faulty, name="c") as machine:
        await machine.load(b"s")
        assert machine.volume.places.startup(machine.get(b"s").ino) == learned
        await machine.chunks.prefetch(split_ids(learned))
        before = faulty.count("get")
        assert await machine.volume.fileio.read(machine.get(b"s/f"), 0, 100_000) == BODY[:100_000]
        assert faulty.count("get") == before


async def test_bug_while_chunks_are_stored_is_told_to_who_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await publish(tmp_path)

    async def bug(*args: object) -> None:
        raise KeyError("nobody has thought of this")

    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        ids = [cid for cid, _ in machine.volume.places.iter_chunks()]
        with monkeypatch.context() as patch, trio.fail_after(20):
            patch.setattr(machine.volume.sealer, "store_frames", bug)
            with pytest.raises(LocalStoreError, match="nobody has thought of this"):
                await machine.chunks.bring(ids)
        assert await machine.chunks.bring(ids) == {}
        assert all(machine.volume.reader.has(cid) for cid in ids)


async def test_two_frames_at_one_place_are_damage_and_keep_nobody_waiting(tmp_path: Path) -> None:
    """A manifest that contradicts itself, or two that contradict each other."""
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        places = machine.volume.places
        ids = [e.chunk for e in machine.volume.inodes.load_recipe(machine.get(b"s/f"))]
        place = places.find(ids[0])
        assert place is not None
        others = [cid for cid in ids if places.find(cid) == place]
        lost = {cid for cid in ids if places.find(cid) == places.find(ids[-1])}
        places.set(place.node, place.segment, place.offset, place.length + 1, sorted(lost))
        with trio.fail_after(20):
            with pytest.raises(RemoteCorrupt):
                await machine.chunks.fetch(ids)
            await machine.chunks.settle()
            await machine.chunks.fetch(others)
            assert set(await machine.chunks.bring(ids)) == lost
            assert all(machine.volume.reader.has(cid) for cid in ids if cid not in lost)


PLACES = st.builds(
    RemotePlace,
    st.sampled_from(["a", "b"]),
    st.integers(1, 3),
    st.integers(0, 200).map(lambda n: n * 50_000),
    st.integers(1, 50_000),
)


@given(places=st.lists(PLACES, max_size=40, unique_by=lambda p: p[:3]))
def test_plan_reads_covers_everything_once(places: list[RemotePlace]) -> None:
    reads = plan_reads([*places, *places])
    frames = [RemotePlace(r.node, r.segment, offset, length) for r in reads for offset, length in r.frames]
    assert sorted(frames) == sorted(places)
    for read in reads:
        assert read.start == read.frames[0][0]
        assert read.end == max(offset + length for offset, length in read.frames)
        assert len(read.frames) == 1 or read.end - read.start <= READ_MAX_BYTES
        ends = [offset + length for offset, length in read.frames]
        assert all(b[0] - end <= GAP_BYTES for end, b in zip(ends, read.frames[1:], strict=False))
