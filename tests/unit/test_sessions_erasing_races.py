"""Erasing while something else goes on: another node that takes over, requests that are slow, what a crash left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from sessfs.errors import Fenced
from sessfs.format.envelope import PlainEnvelope
from sessfs.format.manifest import SegmentRef
from sessfs.format.repository import decode_state
from sessfs.format.segment import session_key, state_key
from sessfs.sync.gc import MARK_KEEP_S, Options, collect
from sessfs.sync.gc_marks import MARK_PREFIX, missing_segments
from sessfs.sync.keeping import Policy
from tests.support.heldstore import Held, HeldStore
from tests.support.memorystore import MemoryStore
from tests.support.volumes import open_machine
from tests.unit.test_sessions_erasing import (
    ONE,
    Crash,
    Remote,
    assert_remote_clean,
    change,
    fill,
    in_bucket,
    kept_content,
    noise,
    others,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.volumes import Machine

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'sessfs.remote.footers.iter_segments':ResourceWarning")


async def test_purge_by_a_node_that_was_replaced_does_not_let_go_of_who_holds_the_remote_now(tmp_path: Path) -> None:
    store = MemoryStore()
    slow = HeldStore(store)
    async with open_machine(tmp_path / "b", slow, name="b", release=False) as machine:
        side = Remote(machine, slow)
        await fill(machine)
        await machine.publish()
        view = slow.hold("list_page", "nodes/")

        async def purge() -> None:
            with pytest.raises(Fenced, match="fenced by c"):
                await side.purger.purge(ONE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(purge)
            await view.reached.wait()
            async with open_machine(tmp_path / "c", store, name="c", take_over=True, release=False) as other:
                await other.load(b"two")
                await other.write(b"two/f1", b"changed")
                await other.publish()
                view.release()
                while nursery.child_tasks:
                    await trio.testing.wait_all_tasks_blocked()
                assert not decode_state(store.objects[state_key("c")]).clean
                await other.write(b"two/f2", b"changed")
                await other.publish()
    await assert_remote_clean(store)


def places_of(machine: Machine) -> set[SegmentRef]:
    """The segments that the state directory knows places in."""
    return {SegmentRef(place.node, place.segment) for _, place in machine.volume.places.iter_chunks()}


async def test_purge_whose_deletions_are_late_has_the_next_node_rely_on_nothing_that_goes(tmp_path: Path) -> None:
    store = MemoryStore()
    slow = HeldStore(store)
    async with open_machine(tmp_path / "c", store, name="c") as machine:
        await fill(machine)
    async with open_machine(tmp_path / "b", slow, name="b", release=False) as machine:
        side = Remote(machine, slow)
        await machine.load_all()
        deletion = slow.hold("delete", "*/segments/*")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.purger.purge, ONE)
            await deletion.reached.wait()
            async with open_machine(tmp_path / "c", store, name="c", take_over=True, release=False) as other:
                known = places_of(other)
                assert SegmentRef("c", 1) in known & await missing_segments(store, known)
                deletion.release()
                while nursery.child_tasks:
                    await trio.testing.wait_all_tasks_blocked()
    assert [key for key in store.objects if key.startswith(MARK_PREFIX)] == []


async def test_purge_by_a_node_that_was_replaced_deletes_nothing(tmp_path: Path) -> None:
    store = MemoryStore()
    slow = HeldStore(store)
    async with open_machine(tmp_path / "b", slow, name="b", release=False) as machine:
        held = trio.Event()
        side = Remote(machine, slow, lambda point: held.set() if point == "checkpoint" else None)
        await fill(machine)
        await machine.publish()

        async def purge() -> None:
            with pytest.raises(Fenced):
                await side.purger.purge(ONE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(purge)
            await held.wait()
            view = slow.hold("list_page", "nodes/")
            await view.reached.wait()
            async with open_machine(tmp_path / "c", store, name="c", take_over=True, release=False):
                before = sorted(store.objects)
                view.release()
                while nursery.child_tasks:
                    await trio.testing.wait_all_tasks_blocked()
                assert sorted(store.objects) == before


@pytest.mark.parametrize("point", ["condemned", "checkpoint"])
async def test_collection_deals_with_what_a_purge_that_crashed_has_condemned(tmp_path: Path, point: str) -> None:
    store = MemoryStore()

    def crash(name: str) -> None:
        if name == point:
            raise Crash

    async with open_machine(tmp_path / "state", store, release=False) as machine:
        await fill(machine)
        await machine.publish()
        expected = await others(machine)
        with pytest.raises(Crash):
            await Remote(machine, store, crash).purger.purge(ONE)
        left = machine.copy_state(tmp_path / "left")
    async with open_machine(left, store) as machine:
        assert await others(machine) == expected
    grace_s = 1000.0
    for age_s in (grace_s / 2, 2 * grace_s):
        for key in store.objects:
            store.set_age(key, age_s)
        report = await collect(store, PlainEnvelope(), Options(f"run{age_s}", grace_s))
        assert bool(report.deleted) == (age_s > grace_s)
    assert in_bucket(store) == []
    for key in store.objects:
        store.set_age(key, MARK_KEEP_S)
    await collect(store, PlainEnvelope(), Options("last", grace_s))
    assert [key for key in store.objects if key.startswith(MARK_PREFIX)] == []
    await assert_remote_clean(store)
    async with open_machine(tmp_path / "empty", store, name="b") as machine:
        await machine.load_all()
        assert await others(machine) == expected


async def test_purge_that_stalls_does_not_overwrite_what_the_next_node_released(tmp_path: Path) -> None:
    store = MemoryStore()
    slow = HeldStore(store)
    async with open_machine(tmp_path / "a", store, policy=Policy()) as machine:
        await fill(machine)
        await machine.publish()
        await change(machine, 1000)
    async with open_machine(tmp_path / "b", slow, name="b", release=False, policy=Policy()) as machine:
        side = Remote(machine, slow)
        write = slow.hold("put*", session_key(PlainEnvelope(), b"two"))

        async def purge() -> None:
            with pytest.raises(Fenced):
                await side.purger.purge(ONE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(purge)
            await write.reached.wait()
            async with open_machine(tmp_path / "c", store, name="c", take_over=True) as other:
                await other.load(b"two")
                await other.write(b"two/f1", b"changed by c")
            write.release()
    async with open_machine(tmp_path / "d", store, name="d") as machine:
        await machine.load(b"two")
        assert (await machine.read(b"two/f1")).startswith(b"changed by c")


@pytest.mark.parametrize("keys", ["nodes/a/segments/*", "sessions/two"])
async def test_purge_while_a_session_is_loaded_leaves_it_whole(tmp_path: Path, keys: str) -> None:
    """What it was loaded by lies in segments that are gone when the answer comes."""
    store = MemoryStore()
    slow = HeldStore(store)
    async with open_machine(tmp_path / "a", store, name="a", policy=Policy()) as machine:
        await fill(machine)
        await machine.publish()
        await change(machine, 1000)
        expected = await others(machine)
    async with open_machine(tmp_path / "b", slow, name="b", policy=Policy()) as machine:
        side = Remote(machine, slow)
        await machine.sessions.find(b"two")
        answer = slow.hold("get", keys, after=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(machine.load, b"two")
            await answer.reached.wait()
            await side.purger.purge(ONE)
            answer.release()
        assert await others(machine) == expected
        await machine.chunks.settle()
        assert await kept_content(store, side, 1)
        await machine.write(b"two/new", b"new")
        await machine.publish()
        assert in_bucket(store) == []
    await assert_remote_clean(store)


async def test_purge_while_the_files_of_the_root_are_loaded_leaves_them_whole(tmp_path: Path) -> None:
    store = MemoryStore()
    slow = HeldStore(store)
    async with open_machine(tmp_path / "a", store, name="a") as machine:
        await fill(machine)
        await machine.write(b"file", noise(7, 9_000))
    async with open_machine(tmp_path / "b", slow, name="b") as machine:
        side = Remote(machine, slow)
        await machine.sessions.list_all()
        answer = slow.hold("get", "nodes/a/segments/*", after=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(machine.sessions.load_root)
            await answer.reached.wait()
            await side.purger.purge(ONE)
            answer.release()
        assert await machine.read(b"file") == noise(7, 9_000)
        await machine.chunks.settle()
    await assert_remote_clean(store)


@pytest.mark.parametrize("at", ["segments", "outbox", "state"])
@pytest.mark.parametrize("what", ["rollback", "slow rollback", "view"])
async def test_purge_while_a_snapshot_is_taken_up_leaves_it_whole(tmp_path: Path, what: str, at: str) -> None:
    """Its manifest is read while it is about to be moved, and used when what it names is gone."""
    store = MemoryStore()
    slow = HeldStore(store)
    async with open_machine(tmp_path / "b", slow, name="b", policy=Policy()) as machine:
        await fill(machine)
        await machine.publish()
        at_first = await others(machine)
        for seed in (1000, 2000):
            await change(machine, seed)
            await machine.publish()
        expected = await others(machine) if what == "view" else at_first
        started = trio.Event()
        answers: list[Held] = []

        async def take_up() -> None:
            await started.wait()
            if what != "rollback":
                answers.append(slow.hold("get", "nodes/b/segments/*", after=True))
            if what != "view":
                await side.lives.rollback(b"two", 1)
            else:
                view = await side.lives.open_view(b"two", 1)
                assert {path: await machine.read(path.replace(b"two", view, 1)) for path in at_first} == at_first
                side.lives.close_view(view)

        side = Remote(machine, slow, lambda point: started.set() if point == at else None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_up)
            await side.purger.purge(ONE)
            for answer in answers:
                answer.release()
        assert await others(machine) == expected
        await machine.chunks.settle()
        await machine.publish()
        assert in_bucket(store) == []
    await assert_remote_clean(store)
    async with open_machine(tmp_path / "d", store, name="d") as machine:
        await machine.load(b"two")
        assert await others(machine) == expected
