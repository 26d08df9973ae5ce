"""Eviction: what the remote has makes room, nothing else; and it comes back when it is read."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import trio

from sessfs.sync.bringing import bring_here
from sessfs.sync.evict import evict_when_full
from tests.support.memorystore import MemoryStore
from tests.support.volumes import assert_clean, open_machine, wait_until

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


async def test_evict_only_what_was_uploaded_and_read_it_again(tmp_path: Path) -> None:
    store = MemoryStore()
    bodies = {b"s/%d" % i: random.Random(i).randbytes(MIB) for i in range(6)}
    async with open_machine(tmp_path / "a", store) as machine:
        volume = machine.volume
        machine.mkdir(b"s")
        for path, body in list(bodies.items())[:4]:
            await machine.write(path, body)
            await machine.seal()
        await machine.publish()
        for path, body in list(bodies.items())[4:]:
            await machine.write(path, body)
            await machine.seal()
        await machine.read(b"s/0")
        async with trio.open_nursery() as nursery:
            look = machine.looker.look_before_eviction
            nursery.start_soon(
                evict_when_full,
                volume.reader,
                volume.places,
                volume.sealer,
                volume.space.used_bytes,
                lambda: 5 * MIB,
                look,
            )
            await wait_until(lambda: volume.space.used_bytes() <= 4.1 * MIB)
            nursery.cancel_scope.cancel()
        for path in (b"s/0", b"s/4", b"s/5"):
            assert all(volume.reader.has(cid) for cid in volume.inodes.load_recipe(machine.get(path)).iter_chunks())
        assert not any(volume.reader.has(cid) for cid in volume.inodes.load_recipe(machine.get(b"s/1")).iter_chunks())
        assert await machine.contents() == bodies
        await machine.write(b"s/1", b"over what was evicted", 500_000)
        bodies[b"s/1"] = bodies[b"s/1"][:500_000] + b"over what was evicted" + bodies[b"s/1"][500_021:]
        await machine.seal()
        assert await machine.contents() == bodies
    assert_clean(tmp_path / "a")
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load_all()
        assert await machine.contents() == bodies


async def test_evict_nothing_uploaded_leaves_everything(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        volume = machine.volume
        machine.mkdir(b"s")
        await machine.write(b"s/f", random.Random(1).randbytes(2 * MIB))
        await machine.seal()
        used = volume.space.used_bytes()
        with trio.move_on_after(1.3):
            look = machine.looker.look_before_eviction
            await evict_when_full(
                volume.reader, volume.places, volume.sealer, volume.space.used_bytes, lambda: MIB, look
            )
        assert volume.space.used_bytes() == used
    assert_clean(tmp_path / "a")


@pytest.mark.parametrize("order", ["evict, bring", "bring, evict", "evicting, bring"])
async def test_evict_spares_what_loses_its_place_meanwhile(tmp_path: Path, order: str) -> None:
    """Both wait for the seal process, in either order, or it is evicting already."""
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        volume = machine.volume
        machine.mkdir(b"s")
        await machine.write(b"s/f", random.Random(1).randbytes(MIB))
        await machine.publish()
        ids = [cid for cid, _ in volume.places.iter_chunks()]

        async def evict() -> None:
            await volume.sealer.evict(ids)

        async def bring() -> None:
            assert not await bring_here(machine.chunks, volume.places, volume.sealer, ids)

        async def settle() -> None:
            for _ in range(5):
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            if order != "evicting, bring":
                nursery.start_soon(volume.sealer.rewrite_mixed)
                await settle()
            for work in (bring, evict) if order == "bring, evict" else (evict, bring):
                nursery.start_soon(work)
                await settle()
        assert all(volume.reader.has(cid) for cid in ids)
        assert not any(volume.places.has(cid) for cid in ids)
        assert await machine.contents() == {b"s/f": random.Random(1).randbytes(MIB)}
        machine.changes.note_whole(machine.get(b"s").ino)
        await machine.publish()
    assert_clean(tmp_path / "a")
