"""What the holder does for collections: chunks are brought here, however many, and places are forgotten."""

from __future__ import annotations

import logging
import random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.lowlevel
import trio.testing

from sessfs.errors import LocalStoreError, RemoteCorrupt, RemoteUnavailable, StoreCorrupt
from sessfs.format.envelope import PlainEnvelope
from sessfs.format.manifest import SegmentRef
from sessfs.format.segment import segment_key
from sessfs.mount import collecting
from sessfs.mount.collecting import Collector
from sessfs.mount.showing import while_showing
from sessfs.mount.surely import SurePublisher
from sessfs.sync import bringing, fetch
from sessfs.sync.gc_live import Rewrite
from tests.support.faultystore import FaultyStore, timeout
from tests.support.lyingstore import LyingStore
from tests.support.memorystore import MemoryStore
from tests.support.volumes import assert_clean, open_machine, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sessfs.remote.objectstore import ObjectStore
    from sessfs.types import ChunkId
    from tests.support.volumes import Machine

FILES = {b"s/%d" % i: random.Random(i).randbytes(300_000) for i in range(8)}
IN_TIME_S = 20.0


async def publish(path: Path) -> MemoryStore:
    """A bucket with one session `s`, each of whose files is in a segment of its own."""
    store = MemoryStore()
    async with open_machine(path / "a", store) as machine:
        machine.mkdir(b"s")
        for name, body in FILES.items():
            await machine.write(name, body)
            await machine.publish()
    return store


def make_collector(machine: Machine, store: ObjectStore) -> Collector:
    repository = cast("Any", SimpleNamespace(remote=SimpleNamespace(store=store), envelope=PlainEnvelope()))
    return Collector(
        repository,
        cast("Any", machine.node),
        machine.volume,
        machine.chunks,
        machine.sessions,
        publishing=machine.writeback.busy,
        grace_s=0,
    )


def surely(machine: Machine) -> SurePublisher:
    return SurePublisher(machine.looker, machine.writeback.publish, machine.node.checkpoint, "memory:")


def chunks_of(machine: Machine, path: bytes) -> list[ChunkId]:
    return list(machine.volume.inodes.load_recipe(machine.get(path)).iter_chunks())


def segment_of(machine: Machine, path: bytes) -> str:
    place = machine.volume.places.find(chunks_of(machine, path)[0])
    assert place is not None
    return segment_key(place.node, place.segment)


@pytest.fixture
def small_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "STORE_QUEUE", 1)
    monkeypatch.setattr(fetch, "MEMORY_BYTES", 1 << 20)


@pytest.mark.usefixtures("small_queue")
async def test_bring_here_more_than_the_way_there_holds(tmp_path: Path) -> None:
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        ids = [cid for cid, _ in machine.volume.places.iter_chunks()]
        with trio.fail_after(IN_TIME_S):
            await make_collector(machine, store).bring_here(ids)
        assert all(machine.volume.reader.has(cid) for cid in ids)
        assert await machine.contents() == FILES
    assert_clean(tmp_path / "b")


async def test_bring_here_what_only_a_pin_or_a_kept_snapshot_holds(tmp_path: Path) -> None:
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        references, collector = machine.volume.references, make_collector(machine, store)
        pinned, kept, dead = (chunks_of(machine, path) for path in (b"s/1", b"s/2", b"s/3"))
        references.pin(pinned)
        references.keep(kept)
        for path in (b"s/1", b"s/2", b"s/3"):
            machine.unlink(path)
        with trio.fail_after(IN_TIME_S):
            await collector.bring_here([*pinned, *kept, *dead])
        assert all(machine.volume.reader.has(cid) for cid in [*pinned, *kept])
        assert not any(machine.volume.reader.has(cid) for cid in dead)
        references.unpin(pinned)
        references.unkeep(kept)
        await machine.drop_dead()
        assert not any(machine.volume.reader.has(cid) for cid in [*pinned, *kept])
    assert_clean(tmp_path / "b")


@pytest.mark.usefixtures("small_queue")
async def test_bring_here_beside_readers_that_drop_what_they_fetch(tmp_path: Path) -> None:
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        ids = [cid for cid, _ in machine.volume.places.iter_chunks()]
        with trio.fail_after(IN_TIME_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(machine.chunks.fetch, ids)
                await trio.lowlevel.checkpoint()
                nursery.start_soon(make_collector(machine, store).bring_here, ids)
        assert all(machine.volume.reader.has(cid) for cid in ids)


async def test_bring_here_raises_for_what_cannot_be_had_and_brings_the_rest(tmp_path: Path) -> None:
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b", release=False) as machine:
        await machine.load(b"s")
        collector = make_collector(machine, store)
        lost = chunks_of(machine, b"s/4")
        ids = [cid for cid, _ in machine.volume.places.iter_chunks()]
        key = segment_of(machine, b"s/4")
        body = store.objects.pop(key)
        with trio.fail_after(IN_TIME_S):
            with pytest.raises(StoreCorrupt, match=key):
                await collector.bring_here(ids)
            assert [cid for cid in ids if not machine.volume.reader.has(cid)] == sorted(lost)
            store.objects[key] = bytes(1000) + body[1000:]
            with pytest.raises(RemoteCorrupt, match=key):
                await collector.bring_here(ids)
            store.objects[key] = body
            await collector.bring_here(ids)
        assert await machine.contents() == FILES


async def test_bring_here_raises_when_the_local_store_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b", release=False) as machine:
        await machine.load(b"s")
        monkeypatch.setattr(machine.volume.sealer, "store_frames", fail_once(machine))
        ids = chunks_of(machine, b"s/4")
        with trio.fail_after(IN_TIME_S):
            with pytest.raises(LocalStoreError, match="disk"):
                await make_collector(machine, store).bring_here(ids)
            await make_collector(machine, store).bring_here(ids)
        assert all(machine.volume.reader.has(cid) for cid in ids)


def fail_once(machine: Machine) -> Any:
    """In the place of `store_frames`."""
    store_frames, left = machine.volume.sealer.store_frames, [1]

    async def fail(frames: Sequence[Any], damaged: Sequence[ChunkId]) -> None:
        if left:
            left.pop()
            raise LocalStoreError("the disk is full")
        await store_frames(frames, damaged)

    return fail


async def test_bring_here_forgets_the_places_of_what_is_here_or_dead(tmp_path: Path) -> None:
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        here, dead = chunks_of(machine, b"s/1"), chunks_of(machine, b"s/2")
        machine.unlink(b"s/2")
        await make_collector(machine, store).bring_here([*here, *dead])
        assert not any(machine.volume.places.has(cid) for cid in [*here, *dead])
        assert all(machine.volume.reader.has(cid) for cid in here)
        assert all(machine.volume.places.has(cid) for cid in chunks_of(machine, b"s/3"))


async def test_bring_here_of_more_than_the_cache_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has a place is dropped, again and again."""
    monkeypatch.setattr(bringing, "BATCH_CHUNKS", 8)
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        volume = machine.volume
        ids = [cid for cid, _ in volume.places.iter_chunks()]

        async def evict() -> None:
            while True:
                await volume.sealer.evict(ids)
                await trio.sleep(0.03)

        with trio.fail_after(IN_TIME_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(evict)
                await make_collector(machine, store).bring_here(ids)
                nursery.cancel_scope.cancel()
        assert all(volume.reader.has(cid) for cid in ids)
        assert await machine.contents() == FILES
        await machine.publish()
    assert_clean(tmp_path / "b")


# -- a run that fails


@pytest.mark.parametrize("watched", [True, False])
async def test_what_stops_a_collection_is_told_as_it_is(tmp_path: Path, watched: bool) -> None:
    """Not in a group of errors, which nobody looks into."""
    seen: list[object] = []

    async def progress(step: object) -> None:
        seen.append(step)

    async with open_machine(tmp_path / "a", MemoryStore()) as machine:
        store = FaultyStore(MemoryStore())
        store.always(timeout(), "get", "list_page")
        with pytest.raises(RemoteUnavailable):
            await make_collector(machine, store).collect(
                dry_run=True, grace_s=None, progress=progress if watched else None
            )
    assert bool(seen) is watched


async def test_collections_go_on_daily_after_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(collecting, "FIRST_RUN_S", 0.0)
    monkeypatch.setattr(collecting, "EVERY_S", 0.001)
    tried = 0

    async def away() -> None:
        nonlocal tried
        tried += 1
        raise RemoteUnavailable("the network is gone")

    async with open_machine(tmp_path / "a", MemoryStore()) as machine:
        monkeypatch.setattr(machine.node, "checkpoint", away)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(make_collector(machine, MemoryStore()).run)
            await wait_until(lambda: tried >= 3)
            nursery.cancel_scope.cancel()
    assert "nothing was collected: the network is gone" in caplog.text


async def test_work_goes_on_when_nobody_watches_it_any_more() -> None:
    async def gone(step: object) -> None:
        raise trio.BrokenResourceError

    async def work() -> int:
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        return 7

    assert await while_showing(gone, dict, work) == 7


# -- mostly dead segments


async def test_rewrite_waits_for_a_publishing_under_way(tmp_path: Path) -> None:
    """It may rely on the places."""
    store = await publish(tmp_path)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        session = await machine.load(b"s")
        assert session is not None
        places = machine.volume.places
        ids = chunks_of(machine, b"s/1")
        async with trio.open_nursery() as nursery, machine.writeback.busy:
            nursery.start_soon(make_collector(machine, store).rewrite, Rewrite([b"s"], ids))
            await wait_until(lambda: all(machine.volume.reader.has(cid) for cid in ids))
            await trio.testing.wait_all_tasks_blocked()
            assert all(places.has(cid) for cid in ids)
            assert session.ino not in machine.changes.sessions
        assert not any(places.has(cid) for cid in ids)
        assert machine.changes.sessions[session.ino].whole
        before = segment_of(machine, b"s/2")
        await machine.publish()
        assert segment_of(machine, b"s/1") not in {before, segment_key("a", 2)}
        assert segment_of(machine, b"s/2") == before


# -- after a collection while this node was away


def condemn_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def missing(store: ObjectStore, segments: set[Any]) -> set[Any]:
        await store.list_page("nodes/")
        return set(segments)

    monkeypatch.setattr(collecting, "missing_segments", missing)


@pytest.mark.usefixtures("small_queue")
async def test_distrust_brings_the_rest_where_some_is_damaged_or_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = await publish(tmp_path)
    condemn_all(monkeypatch)
    async with open_machine(tmp_path / "b", store, name="b", release=False) as machine:
        await machine.load(b"s")
        lost = sorted([*chunks_of(machine, b"s/4"), *chunks_of(machine, b"s/7")])
        del store.objects[segment_of(machine, b"s/4")]
        key = segment_of(machine, b"s/7")
        # In each of its frames.
        store.objects[key] = bytes(len(store.objects[key]))
        with trio.fail_after(IN_TIME_S), caplog.at_level(logging.ERROR):
            await make_collector(machine, store).distrust_missing()
        places = machine.volume.places
        assert [cid for cid, _ in places.iter_chunks()] == lost
        rest = [cid for path in FILES for cid in chunks_of(machine, path) if cid not in lost]
        assert all(machine.volume.reader.has(cid) for cid in rest)
        assert f"{len(lost)} chunks" in caplog.text
        assert "fsck" in caplog.text
        assert machine.changes.sessions[machine.get(b"s").ino].whole


async def test_distrust_one_damaged_frame_keeps_none_of_its_neighbours_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/f", random.Random(5).randbytes(1_500_000))
    condemn_all(monkeypatch)
    async with open_machine(tmp_path / "b", store, name="b", release=False) as machine:
        await machine.load(b"s")
        ids = chunks_of(machine, b"s/f")
        place = machine.volume.places.find(ids[len(ids) // 2])
        assert place is not None
        key = segment_key(place.node, place.segment)
        body = bytearray(store.objects[key])
        body[place.offset + 100] ^= 1
        store.objects[key] = bytes(body)
        await make_collector(machine, store).distrust_missing()
        away = [cid for cid in ids if not machine.volume.reader.has(cid)]
        assert away == [cid for cid in ids if machine.volume.places.find(cid) == place]
        assert 0 < len(away) < len(ids)


async def test_distrust_is_tried_again_when_the_remote_is_away_and_waits_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FaultyStore(await publish(tmp_path))
    condemn_all(monkeypatch)
    monkeypatch.setattr(collecting, "RETRY_S", 0.01)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        collector = make_collector(machine, store)
        store.always(timeout(), "get")
        with trio.fail_after(IN_TIME_S):
            with pytest.raises(RemoteUnavailable):
                await collector.distrust_missing()
            store.heal()
            monkeypatch.setattr(machine.volume.sealer, "store_frames", fail_once(machine))
            await collector.distrust_missing()
        assert not any(True for _ in machine.volume.places.iter_chunks())
        assert await machine.contents() == FILES
        await machine.publish()
    assert_clean(tmp_path / "b")
    async with open_machine(tmp_path / "c", store, name="c") as machine:
        await machine.load_all()
        assert await machine.contents() == FILES


@pytest.mark.parametrize("away", [False, True])
async def test_what_a_collection_took_is_no_damage(tmp_path: Path, away: bool) -> None:
    """Deleted by this node's own collection, or by one from outside while it was away: nothing is sent again."""
    store = LyingStore("kept")
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/0", FILES[b"s/0"])
        if not away:
            await surely(machine).publish()
        await machine.publish()
        gone = SegmentRef("a", machine.node.last_segment)
        # Whole again, and in another segment: nothing needs the first one.
        await make_collector(machine, store).rewrite(Rewrite(sessions=[b"s"], chunks=chunks_of(machine, b"s/0")))
        await machine.publish()
        machine.volume.places.snapshots.delete(machine.get(b"s").ino, 1)
        if not away:
            assert make_collector(machine, store).release_segments([gone]) == set()
            del store.objects[segment_key(*gone)]
            await assert_nothing_is_sent(machine)
    if away:
        del store.objects[segment_key(*gone)]
        async with open_machine(tmp_path / "a", store) as machine:
            assert gone in machine.volume.places.unseen
            await make_collector(machine, store).distrust_missing()
            await assert_nothing_is_sent(machine)
    assert_clean(tmp_path / "a")


async def assert_nothing_is_sent(machine: Machine) -> None:
    last = machine.node.last_segment
    await surely(machine).publish()
    assert machine.node.last_segment == last
    assert not machine.changes.sessions


async def test_manifest_that_is_missing_at_a_start_is_sent_again(tmp_path: Path) -> None:
    """In a segment that has nothing else."""
    store = LyingStore("kept")
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/0", FILES[b"s/0"])
        await machine.publish()
        machine.mkdir(b"s/d")
        await machine.publish()
        lost = SegmentRef("a", machine.node.last_segment)
    del store.objects[segment_key(*lost)]
    async with open_machine(tmp_path / "a", store) as machine:
        await make_collector(machine, store).distrust_missing()
        await surely(machine).publish()
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load_all()
        assert machine.find(b"s/d") is not None
