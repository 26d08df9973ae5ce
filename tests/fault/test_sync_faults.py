"""Faults of the store, before and after their effect, at every request of a machine's life: nothing is lost, everything
catches up, and nothing that the remote has is ever taken for missing.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import trio

from sessfs.errors import RemoteError, SessfsError
from tests.support.faultystore import METHODS, PASSING, Fault, FaultyStore, bucket_gone, timeout
from tests.support.memorystore import MemoryStore
from tests.support.volumes import assert_clean, open_machine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.volumes import Attributes, Machine

BODY = random.Random(1).randbytes(300_000)
TRIES = 300


async def until_done(act: Callable[[], Awaitable[object]]) -> int:
    """Repeat *act* until no fault of the remote stops it; the number of faults."""
    for failures in range(TRIES):
        try:
            await act()
        except RemoteError:
            continue
        return failures
    raise AssertionError("it never worked again")


async def first_life(machine: Machine) -> dict[bytes, dict[bytes, Attributes]]:
    """Publishes with everything in them, each repeated until it works."""
    machine.mkdir(b"s")
    machine.mkdir(b"t")
    machine.mkdir(b"old")
    await machine.write(b"s/f", BODY)
    await machine.write(b"t/f", BODY[:50_000])
    await machine.write(b"root", b"root")
    await until_done(machine.publish)
    await machine.write(b"s/f", b"changed", 100_000)
    machine.unlink(b"t/f")
    machine.rmdir(b"t")
    machine.rename(b"old", b"new")
    await until_done(machine.publish)
    await until_done(machine.node.checkpoint)
    machine.mkdir(b"t")
    await machine.write(b"t/again", BODY[7:])
    await until_done(machine.publish)
    return await look_at(machine)


async def look_at(machine: Machine) -> dict[bytes, dict[bytes, Attributes]]:
    """All that the machine has, asking again after each fault."""
    found: dict[bytes, dict[bytes, Attributes]] = {}

    async def look() -> None:
        found.update(await machine.snapshots())

    await until_done(look)
    return found


async def restore(path: Path, store: FaultyStore | MemoryStore) -> dict[bytes, dict[bytes, Attributes]]:
    """What a new machine finds, when it asks again after each fault."""
    async with open_machine(path, store, name="b", take_over=True, release=False) as machine:
        found = await look_at(machine)
    return found


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("method", METHODS)
async def test_every_request_of_a_life_may_fail_once(tmp_path: Path, method: str, after: bool) -> None:
    """The nth call of the method fails, for every n that there is."""
    nth = 0
    while True:
        store = FaultyStore(MemoryStore())
        path = tmp_path / str(nth)
        async with open_machine(path / "a", store, release=False) as machine:
            # The opening of the node has tests of its own.
            store.plan(method, *[None] * nth, timeout(after=after))
            expected = await first_life(machine)
            assert machine.writeback.failed is None
            assert machine.changes.unpublished() == []
            await until_done(machine.node.release)
        assert_clean(path / "a")
        used = store.count(method)
        store.heal()
        assert await restore(path / "b", store) == expected
        nth += 2 if method in ("put", "put_if") else 4
        if nth > used:
            return


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("method", ["get", "list_page"])
async def test_every_request_of_a_restore_may_fail_once(tmp_path: Path, method: str, after: bool) -> None:
    inner = MemoryStore()
    async with open_machine(tmp_path / "a", inner) as machine:
        expected = await first_life(machine)
    for nth in range(8):
        store = FaultyStore(inner)
        async with open_machine(tmp_path / f"b{nth}", store, name="b", take_over=True, release=False) as machine:
            store.plan(method, *[None] * nth, timeout(after=after))
            failures = 0
            found: dict[bytes, dict[bytes, Attributes]] = {}
            for _ in range(3):
                try:
                    found = await machine.snapshots()
                except RemoteError:
                    failures += 1
            assert found == expected
            assert failures <= 1
        assert_clean(tmp_path / f"b{nth}")


async def test_random_faults_through_a_whole_life(tmp_path: Path) -> None:
    for seed in range(4):
        rng = random.Random(seed)
        inner = MemoryStore()
        store = FaultyStore(inner)
        path = tmp_path / str(seed)
        async with open_machine(path / "a", store, release=False) as machine:
            for method in METHODS:
                faults: list[Fault | None] = [
                    rng.choice(PASSING)(after=rng.random() < 0.5) if rng.random() < 0.3 else None for _ in range(60)
                ]
                store.plan(method, *faults)
            expected = await first_life(machine)
            await until_done(machine.node.release)
        store.heal()
        assert await restore(path / "b", inner) == expected
        assert_clean(path / "a")


@pytest.mark.parametrize("fault", [timeout(), bucket_gone()])
async def test_remote_away_for_long_is_caught_up_with(tmp_path: Path, fault: Fault) -> None:
    store = FaultyStore(MemoryStore())
    async with open_machine(tmp_path / "a", store) as machine:
        store.always(fault)
        for i in range(5):
            if not i:
                machine.mkdir(b"s")
            await machine.write(b"s/%d" % i, BODY[i:])
            with pytest.raises(RemoteError):
                await machine.publish()
            assert machine.writeback.at_risk(machine.get(b"s").ino) is not None
            await machine.seal()
            await machine.commit()
        with pytest.raises(RemoteError):
            await machine.load(b"unknown")
        assert machine.find(b"unknown") is None
        assert await machine.read(b"s/0") == BODY
        store.heal()
        puts = store.count("put")
        await machine.publish()
        assert store.count("put") == puts + 1
        expected = await machine.snapshots()
    assert_clean(tmp_path / "a")
    assert await restore(tmp_path / "b", store) == expected


async def test_session_that_cant_be_loaded_stays_a_stub(tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore())
    async with open_machine(tmp_path / "a", store) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/f", BODY)
    async with open_machine(tmp_path / "b", store, name="b", release=False) as machine:
        store.always(timeout(keys="nodes/*"), "get")
        for _ in range(2):
            with pytest.raises(RemoteError):
                await machine.load(b"s")
            assert machine.get(b"s").ino in machine.sessions.stubs
            assert machine.walk(b"s") == []
        assert machine.changes.unpublished() == []
        store.heal()
        await machine.load(b"s")
        assert await machine.read(b"s/f") == BODY
    assert_clean(tmp_path / "b")


async def test_damaged_manifest_is_an_error_that_names_it(tmp_path: Path) -> None:
    inner = MemoryStore()
    async with open_machine(tmp_path / "a", inner) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/f", b"small")
    async with open_machine(tmp_path / "b", inner, name="b", release=False) as machine:
        found = await machine.node.resolve(b"s")
        assert found is not None
        ref = found[0]
        assert ref is not None
        key = f"nodes/a/segments/{ref.segment:016x}"
        good = inner.objects[key]
        for at in range(ref.offset, ref.offset + ref.length, 7):
            inner.objects[key] = good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :]
            with pytest.raises(RemoteError, match=f"manifest at byte {ref.offset} of {key}"):
                await machine.load(b"s")
        inner.objects[key] = good
        await machine.load(b"s")
        assert await machine.read(b"s/f") == b"small"


async def test_fenced_machine_publishes_nothing_and_keeps_everything(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, release=False) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/f", b"published")
        await machine.publish()
        await machine.write(b"s/f", b"not seen!")
        await machine.write(b"s/g", BODY)
        async with open_machine(tmp_path / "b", store, name="b", take_over=True) as other:
            await other.load_all()
            assert await other.contents() == {b"s/f": b"published"}
            await other.write(b"s/h", b"of the other")
            await other.publish()
            with pytest.raises(SessfsError, match="fenced by b"):
                await machine.publish()
            assert await machine.contents() == {b"s/f": b"not seen!", b"s/g": BODY}
    assert_clean(tmp_path / "a")
    async with open_machine(tmp_path / "a", store) as machine:
        await machine.load_all()
        await machine.load_all()
        assert await machine.contents() == {
            b"s/f": b"published",
            b"s/h": b"of the other",
            b"s.unsent/f": b"not seen!",
            b"s.unsent/g": BODY,
        }
        await machine.publish()
        expected = await machine.snapshots()
    assert_clean(tmp_path / "a")
    assert await restore(tmp_path / "c", store) == expected


async def test_publish_cancelled_at_any_moment_is_taken_up_again(tmp_path: Path) -> None:
    """As by an unmount that runs out of time."""
    for n_steps in range(0, 40, 3):
        store = FaultyStore(MemoryStore())
        path = tmp_path / str(n_steps)
        async with open_machine(path / "a", store, release=False) as machine:
            machine.mkdir(b"s")
            await machine.write(b"s/f", BODY)
            machine.mkdir(b"t")
            await machine.write(b"t/f", BODY[5:])
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def cancel(n: int, scope: trio.CancelScope) -> None:
                        for _ in range(n):
                            await trio.sleep(0.0005)
                        scope.cancel()

                    nursery.start_soon(cancel, n_steps, scope)
                    await machine.publish()
                    nursery.cancel_scope.cancel()
            await machine.write(b"s/f", b"again", 10)
            await machine.publish()
            expected = await machine.snapshots()
        assert_clean(path / "a")
        assert await restore(path / "b", store) == expected
