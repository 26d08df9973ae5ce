"""What was found damaged is never taken for a copy: who has the bytes stores and uploads them again, for everybody."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import LocalStoreError, RemoteError, StoreCorrupt
from sessfs.format.envelope import PlainEnvelope
from sessfs.local.damage import FOUND_FILE
from sessfs.sync.fsck import check_state
from sessfs.sync.fsck_remote import Sampling, check_remote
from tests.support.memorystore import MemoryStore
from tests.support.volumes import HASH_KEY, assert_clean, open_box, open_machine
from tests.unit.test_sync_fetch import damage_local

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.volumes import Box, Machine

SHARED = random.Random(1).randbytes(300_000)
OWN = random.Random(2).randbytes(60_000)
ALL = Sampling(1.0, b"")


async def find_by_read(box: Box, path: bytes) -> None:
    with pytest.raises((LocalStoreError, RemoteError)):
        await box.read(path)


# -- damage in chunks/


@pytest.mark.parametrize("found_by", ["a read", "a check", "a read, then a restart"])
async def test_content_written_again_heals_all_files_that_have_it(tmp_path: Path, found_by: str) -> None:
    async with open_box(tmp_path / "a") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", SHARED)
        await box.write(b"s/other", OWN)
        await box.seal()
    damage_local(tmp_path / "a")
    if found_by == "a check":
        assert not check_state(tmp_path / "a").clean
        assert (tmp_path / "a" / FOUND_FILE).exists()
    else:
        async with open_box(tmp_path / "a") as box:
            await find_by_read(box, b"s/f")
            if found_by == "a read":
                await box.write(b"s/again", SHARED)
                await box.seal()
    async with open_box(tmp_path / "a") as box:
        if found_by != "a read":
            box.mkdir(b"t")
            await box.write(b"t/again", SHARED)
            await box.write(b"t/own", OWN)
            await box.seal()
            assert await box.read(b"t/again") == SHARED
        assert await box.read(b"s/f") == SHARED
        await box.drop_dead()
    assert not (tmp_path / "a" / FOUND_FILE).exists()
    async with open_box(tmp_path / "a") as box:
        assert await box.read(b"s/f") == SHARED
        if found_by == "a check":
            assert not box.volume.places.damage.here
    if found_by == "a check":
        assert_clean(tmp_path / "a")


async def test_damage_that_only_an_upload_finds_is_not_a_copy_either(tmp_path: Path) -> None:
    """The state was closed unpublished, and its chunks are damaged when their turn to be uploaded comes."""
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, release=False) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/f", SHARED)
        await machine.seal()
    damage_local(tmp_path / "a")
    async with open_machine(tmp_path / "a", store, take_over=True) as machine:
        with pytest.raises(StoreCorrupt):
            await machine.publish()
        machine.mkdir(b"t")
        await machine.write(b"t/f", SHARED)
        await machine.publish()
        await machine.seal()
        assert await machine.read(b"s/f") == SHARED
    await assert_all_there(tmp_path / "b", store, {b"s/f": SHARED, b"t/f": SHARED})


# -- damage in the remote


async def assert_all_there(path: Path, store: MemoryStore, expected: dict[bytes, bytes]) -> None:
    """A machine that knows nothing but the bucket reads all of it."""
    async with open_machine(path, store, name="z", take_over=True, release=False) as machine:
        await machine.load_all()
        assert await machine.contents() == expected
    report = await check_remote(store, PlainEnvelope(), HASH_KEY, ALL)
    assert not [p for p in report.problems if "keeps" not in p.message], report.problems


def hurt(store: MemoryStore, machine: Machine, path: bytes, how: str) -> None:
    """Damage the remote's copy of that file, but no manifest."""
    recipe = machine.volume.inodes.load_recipe(machine.get(path))
    for place in {machine.volume.places.find(cid) for cid in recipe.iter_chunks()}:
        assert place is not None
        key = f"nodes/{place.node}/segments/{place.segment:016x}"
        body = bytearray(store.objects[key])
        if how == "flipped":
            body[place.offset + place.length // 2] ^= 1
        else:
            body[place.offset : place.offset + place.length] = bytes(place.length)
        store.objects[key] = bytes(body)


async def fill(path: Path, store: MemoryStore, how: str) -> None:
    """Sessions A and B with the same file, which is damaged in the remote."""
    async with open_machine(path, store) as machine:
        machine.mkdir(b"A")
        await machine.write(b"A/f", SHARED)
        await machine.publish()
        machine.mkdir(b"B")
        await machine.write(b"B/f", SHARED)
        await machine.write(b"B/own", OWN)
        await machine.publish()
        hurt(store, machine, b"A/f", how)


@pytest.mark.parametrize("how", ["flipped", "zeros"])
@pytest.mark.parametrize("when", ["at once", "after a restart", "never loaded"])
async def test_content_written_again_heals_everybody_in_the_remote(tmp_path: Path, how: str, when: str) -> None:
    store = MemoryStore()
    await fill(tmp_path / "a", store, how)
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load_all()
        for path in (b"A/f", b"B/f"):
            await find_by_read(machine, path)
        assert await machine.read(b"B/own") == OWN
        if when == "at once":
            machine.mkdir(b"C")
            await machine.write(b"C/f", SHARED)
            await machine.publish()
            assert await machine.read(b"A/f") == SHARED
    if when != "at once":
        async with open_machine(tmp_path / "b", store, name="b") as machine:
            machine.mkdir(b"C")
            await machine.write(b"C/f", SHARED)
            await machine.publish()
            assert await machine.read(b"A/f") == SHARED
    assert_clean(tmp_path / "b")
    await assert_all_there(tmp_path / "c", store, {b"A/f": SHARED, b"B/f": SHARED, b"B/own": OWN, b"C/f": SHARED})


async def test_session_loaded_after_its_damage_was_mended_is_published_anew(tmp_path: Path) -> None:
    store = MemoryStore()
    await fill(tmp_path / "a", store, "flipped")
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"A")
        await find_by_read(machine, b"A/f")
        machine.mkdir(b"C")
        await machine.write(b"C/f", SHARED)
        await machine.publish()
        await machine.load(b"B")
        assert await machine.read(b"B/f") == SHARED
        await machine.publish()
    await assert_all_there(tmp_path / "c", store, {b"A/f": SHARED, b"B/f": SHARED, b"B/own": OWN, b"C/f": SHARED})


async def test_damage_that_a_check_from_outside_found_is_mended_by_who_has_the_bytes(tmp_path: Path) -> None:
    """The mount reads nothing from there: all is here, and all that is written again is a dedup hit."""
    store = MemoryStore()
    await fill(tmp_path / "a", store, "flipped")
    report = await check_remote(store, PlainEnvelope(), HASH_KEY, ALL)
    assert {(p.session, p.path) for p in report.problems} >= {("A", "f"), ("B", "f")}
    puts = len(store.objects)
    await check_remote(store, PlainEnvelope(), HASH_KEY, ALL)
    assert len(store.objects) == puts
    async with open_machine(tmp_path / "a", store) as machine:
        await machine.looker.take_notes()
        await machine.publish()
        published = machine.writeback.n_published
        await machine.looker.take_notes()
        await machine.publish()
        assert machine.writeback.n_published == published
    assert_clean(tmp_path / "a")
    await assert_all_there(tmp_path / "c", store, {b"A/f": SHARED, b"B/f": SHARED, b"B/own": OWN})
    assert not [key for key in store.objects if key.startswith("gc/damage-")]


async def test_only_good_copy_is_not_evicted(tmp_path: Path) -> None:
    store = MemoryStore()
    await fill(tmp_path / "a", store, "flipped")
    async with open_machine(tmp_path / "a", store) as machine:
        ids = list(machine.volume.inodes.load_recipe(machine.get(b"A/f")).iter_chunks())
        await check_remote(store, PlainEnvelope(), HASH_KEY, ALL)
        await machine.looker.take_notes()
        await machine.looker.look_before_eviction(ids)
        await machine.volume.sealer.evict(ids)
        assert all(machine.volume.reader.has(cid) for cid in ids)


async def test_copy_that_is_damaged_here_and_there_does_not_stop_its_session(tmp_path: Path) -> None:
    store = MemoryStore()
    await fill(tmp_path / "a", store, "flipped")
    damage_local(tmp_path / "a")
    async with open_machine(tmp_path / "a", store) as machine:
        await find_by_read(machine, b"A/f")
        await machine.write(b"A/new", OWN[:1000])
        await machine.publish()
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"A")
        assert await machine.read(b"A/new") == OWN[:1000]


async def test_frame_that_was_only_damaged_on_its_way_counts_as_sound_again(tmp_path: Path) -> None:
    store = MemoryStore()
    await fill(tmp_path / "a", store, "flipped")
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"A")
        await find_by_read(machine, b"A/f")
        place = machine.volume.places.find(next(machine.volume.inodes.load_recipe(machine.get(b"A/f")).iter_chunks()))
        assert place is not None
        assert machine.volume.places.is_bad(place)
        hurt(store, machine, b"A/f", "flipped")
        assert await machine.read(b"A/f") == SHARED
        assert not machine.volume.places.is_bad(place)
