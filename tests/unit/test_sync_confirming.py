"""Stores that do not keep what they are sent: `sync` says so, nothing is evicted, and all of it is sent again."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import trio

from sessfs.errors import RemoteCorrupt
from sessfs.local.places import UNSEEN
from sessfs.mount.surely import SurePublisher
from sessfs.sync.confirming import READ_BACK_EVERY, ConfirmedPuts
from sessfs.sync.evict import evict_when_full
from tests.support.faultystore import FaultyStore
from tests.support.lyingstore import LyingStore, cut_short, drop, flip, frame
from tests.support.volumes import assert_clean, open_machine, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.volumes import Machine

    Damage = Callable[[bytes], bytes | None]

MIB = 1 << 20
BODIES = {b"s/%d" % i: random.Random(i).randbytes(400_000) for i in range(6)}


def surely(machine: Machine) -> SurePublisher:
    return SurePublisher(machine.looker, machine.writeback.publish, machine.node.checkpoint, "memory:")


async def write(machine: Machine, *numbers: int) -> None:
    for number in numbers:
        path = b"s/%d" % number
        await machine.write(path, BODIES[path])
        await machine.seal()


async def press(machine: Machine) -> None:
    """Evict all that may be evicted."""
    volume = machine.volume
    look = machine.looker.look_before_eviction
    with trio.move_on_after(1.5):
        await evict_when_full(volume.reader, volume.places, volume.sealer, volume.space.used_bytes, lambda: 1, look)


def is_here(machine: Machine, number: int) -> bool:
    recipe = machine.volume.inodes.load_recipe(machine.get(b"s/%d" % number))
    return all(machine.volume.reader.has(cid) for cid in recipe.iter_chunks())


async def assert_kept(path: Path, store: LyingStore, *numbers: int) -> None:
    async with open_machine(path, store, name="z", take_over=True, release=False) as machine:
        await machine.load_all()
        assert await machine.contents() == {b"s/%d" % n: BODIES[b"s/%d" % n] for n in numbers}


@pytest.mark.parametrize("damage", [flip, cut_short, frame])
@pytest.mark.parametrize(("etags", "late"), [("kept", False), ("kept", True), ("sent", False), ("opaque", False)])
async def test_damaged_upload_has_failed_and_is_sent_again(
    tmp_path: Path, damage: Damage, etags: str, late: bool
) -> None:
    """Told by its etag, or where that says nothing, since the first is read back."""
    store = LyingStore(etags)
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        await write(machine, 0)
        if late:
            await machine.publish()
        store.damage = damage
        await write(machine, 1)
        if etags == "sent":
            # The right checksum: only what can be read says otherwise.
            with pytest.raises(RemoteCorrupt, match="does not keep"):
                await surely(machine).publish()
        else:
            with pytest.raises(RemoteCorrupt, match="does not keep what is sent: nodes/a/segments/"):
                await machine.publish()
        await press(machine)
        assert is_here(machine, 1) or damage is cut_short
        assert machine.changes.sessions or machine.volume.places.damage.is_news
        store.damage = None
        await surely(machine).publish()
        await press(machine)
        assert await machine.contents() == {b"s/0": BODIES[b"s/0"], b"s/1": BODIES[b"s/1"]}
    assert_clean(tmp_path / "a")
    await assert_kept(tmp_path / "b", store, 0, 1)


@pytest.mark.parametrize("damage", [flip, cut_short, drop])
@pytest.mark.parametrize("etags", ["sent", "opaque"])
async def test_what_is_damaged_later_and_in_silence_is_not_evicted(tmp_path: Path, damage: Damage, etags: str) -> None:
    """Publishing sees nothing amiss: eviction looks before it gives the last copy up."""
    store = LyingStore(etags)
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        await write(machine, 0)
        await machine.publish()
        store.damage = damage
        await write(machine, 1)
        await machine.publish()
        store.damage = None
        await press(machine)
        assert not is_here(machine, 0)
        if damage is not flip or etags == "opaque":
            # Of a segment whose checksum was right a sample is read, which a single flipped bit escapes.
            if damage is cut_short:
                # All frames are there; what is not there is the end, and with it the manifests.
                assert machine.looker.owes_checkpoint
                assert machine.changes.sessions
            else:
                assert is_here(machine, 1)
                assert machine.volume.places.damage.is_news
            await machine.publish()
            await press(machine)
            assert not is_here(machine, 1)
            assert await machine.contents() == {b"s/0": BODIES[b"s/0"], b"s/1": BODIES[b"s/1"]}
    assert_clean(tmp_path / "a")


async def test_dropped_segments_are_found_when_somebody_relies_on_them(tmp_path: Path) -> None:
    store = LyingStore("sent")
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        await write(machine, 0)
        await surely(machine).publish()
        store.damage = drop
        for number in (1, 2, 3):
            await write(machine, number)
            await machine.publish()
        with pytest.raises(RemoteCorrupt, match="does not keep what is sent, though it says so"):
            await surely(machine).publish()
        assert surely(machine).problem == ""
        store.damage = None
        await surely(machine).publish()
        assert machine.looker.owes_checkpoint is False
    await assert_kept(tmp_path / "b", store, 0, 1, 2, 3)


async def test_segment_that_is_lost_after_it_was_looked_at_is_sent_again(tmp_path: Path) -> None:
    store = LyingStore("kept")
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        await write(machine, 0)
        await surely(machine).publish()
        del store.objects["nodes/a/segments/0000000000000001"]
        await write(machine, 1)
        await surely(machine).publish()
    await assert_kept(tmp_path / "b", store, 0, 1)


async def test_good_store_with_checksums_is_asked_nothing_more(tmp_path: Path) -> None:
    store = FaultyStore(LyingStore("kept"))
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        before = store.count("get"), store.count("list_page")
        for number in range(6):
            await write(machine, number)
            await machine.publish()
        assert (store.count("get"), store.count("list_page")) == before
        # Two reads for each segment before the first of its chunks goes.
        await press(machine)
        assert store.count("get") - before[0] <= 12
        assert not any(is_here(machine, number) for number in range(6))
        read = store.count("get")
        assert await machine.contents() == BODIES
        fetched = store.count("get") - read
        await wait_until(lambda: not machine.chunks.is_storing)
        await press(machine)
        assert store.count("get") == read + fetched
    assert_clean(tmp_path / "a")


async def test_state_of_an_older_version_is_looked_at_before_it_is_evicted(tmp_path: Path) -> None:
    store = LyingStore("kept")
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        await write(machine, 0, 1)
        await machine.publish()
        for key, _ in list(machine.volume.meta.scan(UNSEEN)):
            machine.volume.meta.delete(UNSEEN, key)
    key = "nodes/a/segments/0000000000000001"
    store.objects[key] = flip(store.objects[key])
    async with open_machine(tmp_path / "a", store) as machine:
        await press(machine)
        assert sum(is_here(machine, number) for number in (0, 1)) == 1
        await machine.publish()
        await press(machine)
        assert await machine.contents() == {b"s/0": BODIES[b"s/0"], b"s/1": BODIES[b"s/1"]}


@pytest.mark.parametrize("etags", ["kept", "opaque"])
async def test_puts_read_back_the_first_and_a_sample_where_etags_say_nothing(etags: str) -> None:
    store = FaultyStore(LyingStore(etags))
    puts = ConfirmedPuts(store)
    answers = [await puts.put(f"nodes/a/segments/{n:016x}", b"%d" % n) for n in range(2 * READ_BACK_EVERY)]
    if etags == "kept":
        assert all(answers)
        assert store.count("get") == 0
    else:
        assert [n for n, sure in enumerate(answers) if sure] == [0, READ_BACK_EVERY]
        assert store.count("get") == 2


async def test_etag_that_stops_being_a_checksum_is_no_damage() -> None:
    """As when a bucket's encryption is changed while it is in use."""
    store = LyingStore("kept")
    puts = ConfirmedPuts(store)
    assert await puts.put("nodes/a/segments/1", b"x")
    store.etags = "sent"
    store.etag = lambda key: "0" * 32  # type: ignore[method-assign]
    assert await puts.put("nodes/a/segments/2", b"x")
    store.damage = flip
    with pytest.raises(RemoteCorrupt, match="other bytes are there"):
        await puts.put("nodes/a/segments/3", b"x")
    store.damage = drop
    with pytest.raises(RemoteCorrupt, match="it is not there"):
        await puts.put("nodes/a/segments/4", b"x")
