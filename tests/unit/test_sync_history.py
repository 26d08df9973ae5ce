"""Which snapshots are kept, what is in them, and what they cost: without a remote and with one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from sessfs.errors import RemoteUnavailable, StoreCorrupt, UsageError
from sessfs.format.envelope import PlainEnvelope
from sessfs.format.segment import parse_segment_key, segment_key
from sessfs.sync import history
from sessfs.sync.bucket import Bucket, read_truth
from sessfs.sync.gc import Options, collect
from sessfs.sync.keeping import DAY_NS, HOUR_NS, Policy
from sessfs.sync.remote_index import read_holder
from sessfs.types import ROOT_INO
from tests.support.faultystore import FaultyStore, timeout
from tests.support.lives import HOUR_S, Local
from tests.support.memorystore import MemoryStore
from tests.support.volumes import ONLY_LATEST, Clock, assert_clean, open_box, open_machine, snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.format.repository import KeptSnapshot
    from sessfs.sync.history import History, SnapshotInfo
    from sessfs.types import Ino
    from tests.support.volumes import Box, Machine

BODY = random.Random(2).randbytes(200_000)
PLENTY = Policy(100, 0, 0)


# -- the policy


def test_policy_keeps_the_last_and_the_newest_of_each_hour_and_day() -> None:
    start = 20_000 * DAY_NS
    times = {number: start + number * HOUR_NS // 2 for number in range(1, 200)}
    kept = Policy(3, 4, 2).choose(list(times.items()))
    # Two an hour: the later one, on the half hour, is the newest of its hour.
    assert kept == {197, 198, 199, 195, 193, 191} | {199, 191}


@given(
    st.lists(st.integers(0, 90 * 24), max_size=120),
    st.integers(0, 12),
    st.integers(0, 30),
    st.integers(0, 10),
)
@settings(deadline=None)
def test_policy_keeps_what_it_says(hours: list[int], last: int, hourly: int, daily: int) -> None:
    snapshots = [(number, hour * HOUR_NS) for number, hour in enumerate(sorted(hours), 1)]
    kept = Policy(last, hourly, daily).choose(snapshots)
    numbers = [number for number, _ in snapshots]
    assert set(numbers[-max(last, 1) :]) <= kept if numbers else not kept
    for count, unit in ((hourly, HOUR_NS), (daily, DAY_NS)):
        newest = {at // unit: number for number, at in snapshots}
        assert {newest[of] for of in sorted(newest)[len(newest) - min(count, len(newest)) :]} <= kept
    assert len(kept) <= max(last, 1) + hourly + daily
    again = [(number, at) for number, at in snapshots if number in kept]
    assert Policy(last, hourly, daily).choose(again) == kept, "what was kept once is not dropped by asking again"


# -- without a remote


async def content_of(box: Box, lives: object, name: bytes, sequence: int) -> dict[bytes, bytes]:
    view = await lives.open_view(name, sequence)  # type: ignore[attr-defined]
    found = {
        path.removeprefix(view + b"/"): content
        for path, content in (await box.contents()).items()
        if path.startswith(view + b"/")
    }
    lives.close_view(view)  # type: ignore[attr-defined]
    return found


def sequences(history: History, session: Ino) -> list[int]:
    return [info.sequence for info in history.list(session)]


async def test_history_by_policy_over_weeks(tmp_path: Path) -> None:
    policy = Policy(3, 5, 4)
    async with open_box(tmp_path) as box:
        local = Local(box, policy)
        box.mkdir(b"user1")
        await box.write(b"user1/large", BODY)
        session = box.get(b"user1").ino
        expected: dict[int, bytes] = {}
        taken: list[tuple[int, int]] = []
        for number in range(150):
            content = b"state %d" % number
            await box.write(b"user1/small", content)
            await box.write(b"user1/large", b"%08d" % number, (number * 7919) % 190_000)
            await local.take_due()
            box.clock.advance(HOUR_S + 60 + number * 20)
            await local.take_due()
            last = local.history.list(session)[-1]
            taken.append((last.sequence, last.taken_ns))
            expected[last.sequence] = content
            assert len(set(taken)) == number + 1, "one for each change that is an hour old"
        kept = sequences(local.history, session)
        assert set(kept) == policy.choose(taken)
        for sequence in kept:
            assert (await content_of(box, local.lives, b"user1", sequence))[b"small"] == expected[sequence]
        await box.drop_dead()
    assert_clean(tmp_path)
    async with open_box(tmp_path) as box:
        local = Local(box, policy)
        assert sequences(local.history, session) == kept
        for sequence in kept:
            assert (await content_of(box, local.lives, b"user1", sequence))[b"small"] == expected[sequence]
        local.history.forget(session)
        await box.drop_dead()
    assert_clean(tmp_path)


async def test_no_snapshot_where_nothing_changed(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box)
        box.mkdir(b"user1")
        first = await local.history.take(box.get(b"user1").ino)
        assert await local.history.take(box.get(b"user1").ino) == first
        box.clock.advance(10 * HOUR_S)
        await local.take_due()
        assert local.history.list(box.get(b"user1").ino) == [first]
        box.rename(b"user1", b"user2")
        second = await local.history.take(box.get(b"user2").ino)
        assert local.history.list(box.get(b"user2").ino) == [first, second]
        assert (await local.history.load(box.get(b"user2").ino, first.sequence)).session == b"user1"
    assert_clean(tmp_path)


async def test_changes_of_files_in_the_root_do_not_pile_up(tmp_path: Path) -> None:
    """Without a remote no snapshot is taken of them; with one, later, all that was never published is."""
    store = MemoryStore()
    async with open_box(tmp_path / "state") as box:
        local = Local(box)
        for i in range(5):
            await box.write(b"f%d" % i, b"x")
        assert local.snapshots.due() == []
        assert not box.volume.changes.sessions
        assert not box.volume.changes.is_unpublished(ROOT_INO)
    assert_clean(tmp_path / "state")
    async with open_machine(tmp_path / "published", store) as machine:
        await machine.write(b"f", b"x")
    async with open_box(tmp_path / "published") as box:
        local = Local(box)
        for i in range(5):
            await box.write(b"f%d" % i, b"x")
        assert local.snapshots.due() == []
        changes = box.volume.changes.sessions[ROOT_INO]
        assert changes.whole
        assert not changes.inodes
        assert not changes.names
    async with open_machine(tmp_path / "published", store) as machine:
        await machine.publish()
    async with open_machine(tmp_path / "other", store, name="b") as machine:
        await machine.load_all()
        assert len(await machine.contents()) == 6


async def test_marked_snapshots_stay_until_they_are_unmarked(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box, ONLY_LATEST)
        box.mkdir(b"user1")
        session = box.get(b"user1").ino
        for number in range(12):
            await box.write(b"user1/f", b"%d" % number)
            await local.history.take(session, "keep" if number == 2 else "")
        assert sequences(local.history, session) == [3, 12]
        assert await content_of(box, local.lives, b"user1", 3) == {b"f": b"2"}
        await local.history.mark(session, 3, "")
        assert sequences(local.history, session) == [12]
        with pytest.raises(UsageError, match="no snapshot 3"):
            await local.history.mark(session, 3, "again")
        await box.drop_dead()
    assert_clean(tmp_path)


async def test_history_of_a_removed_session_goes(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box)
        box.mkdir(b"user1")
        await box.write(b"user1/f", BODY)
        await local.history.take(box.get(b"user1").ino)
        box.unlink(b"user1/f")
        box.rmdir(b"user1")
        await local.take_due()
        box.mkdir(b"user1")
        assert local.history.list(box.get(b"user1").ino) == []
        await box.drop_dead()
        assert box.volume.reader.totals().plain_bytes == 0
    assert_clean(tmp_path)


async def test_snapshots_survive_a_kill(tmp_path: Path) -> None:
    async with open_box(tmp_path / "a") as box:
        local = Local(box)
        box.mkdir(b"user1")
        await box.write(b"user1/f", BODY)
        info = await local.history.take(box.get(b"user1").ino)
        await box.write(b"user1/f", b"other")
        await box.truncate(b"user1/f", 5)
        await box.commit()
        left = box.copy_state(tmp_path / "left")
    async with open_box(left) as box:
        local = Local(box)
        assert local.history.list(box.get(b"user1").ino) == [info]
        assert await content_of(box, local.lives, b"user1", info.sequence) == {b"f": BODY}
        assert await box.read(b"user1/f") == b"other"
        await box.drop_dead()
    assert_clean(left)


async def test_a_lost_manifest_is_damage_and_fsck_says_so(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        local = Local(box)
        box.mkdir(b"user1")
        session = box.get(b"user1").ino
        await local.history.take(session)
        box.volume.meta.delete("manifests", next(iter(box.volume.meta.scan("manifests")))[0])  # type: ignore[arg-type]
        with pytest.raises(StoreCorrupt, match="manifest is not stored"):
            await local.history.load(session, 1)
    with pytest.raises(AssertionError, match="snapshot 1 is listed, and not stored"):
        assert_clean(tmp_path)


async def test_a_lost_manifest_keeps_nobody_elses_snapshots_from_being_dropped_and_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(history, "POLL_S", 0.01)
    async with open_box(tmp_path) as box:
        plenty = Local(box, PLENTY)
        for name in (b"damaged", b"sound"):
            box.mkdir(name)
            for number in range(3):
                await box.write(name + b"/f", b"%d" % number)
                # So that none builds upon another.
                box.volume.changes.note_whole(box.get(name).ino)
                await plenty.history.take(box.get(name).ino)
        box.volume.meta.delete("manifests", next(iter(box.volume.meta.scan("manifests")))[0])  # type: ignore[arg-type]
        local = Local(box, ONLY_LATEST)
        sound = box.get(b"sound").ino
        with trio.move_on_after(0.2):
            await local.history.run()
        assert sequences(local.history, sound) == [3]
        assert "the snapshots of session damaged stay as they are" in caplog.text


async def test_a_state_with_history_gets_a_remote(tmp_path: Path) -> None:
    """Local snapshots stay beside those in the remote, and what changed without it is uploaded."""
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, policy=PLENTY) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/f", b"1")
        await machine.publish()
    async with open_box(tmp_path / "a") as box:
        local = Local(box, PLENTY)
        await box.write(b"s/f", b"2")
        await local.history.take(box.get(b"s").ino)
        await box.write(b"s/f", b"3")
        await local.history.take(box.get(b"s").ino)
        assert sequences(local.history, box.get(b"s").ino) == [1, 2, 3]
    async with open_machine(tmp_path / "a", store, policy=PLENTY) as machine:
        await machine.publish()
        session = machine.get(b"s").ino
        assert sequences(machine.history, session) == [1, 2, 3, 4]
        found = [(await content_of(machine, machine.lives, b"s", n))[b"f"] for n in (1, 2, 3, 4)]
        assert found == [b"1", b"2", b"3", b"3"]
    async with open_machine(tmp_path / "b", store, name="b", policy=PLENTY) as machine:
        await machine.load_all()
        assert await machine.read(b"s/f") == b"3"
        assert sequences(machine.history, machine.get(b"s").ino) == [1, 4]


# -- with a remote


async def life(machine: Machine, first: int, count: int) -> dict[int, bytes]:
    """Changes, each published; sequence → what `f` held."""
    held = {}
    for number in range(first, first + count):
        content = b"state %d of " % number + BODY[number * 1000 : number * 1000 + 30_000]
        await machine.write(b"s/f", content)
        await machine.truncate(b"s/f", len(content))
        await machine.publish()
        held[machine.history.list(machine.get(b"s").ino)[-1].sequence] = content
    return held


async def check(machine: Machine, held: dict[int, bytes]) -> list[SnapshotInfo]:
    """Every one of *held* is there, and readable; nothing else is."""
    await machine.load_all()
    infos = machine.history.list(machine.get(b"s").ino)
    assert [info.sequence for info in infos] == sorted(held)
    for sequence, content in held.items():
        assert (await content_of(machine, machine.lives, b"s", sequence))[b"f"] == content
    return infos


async def read_history(store: MemoryStore) -> list[KeptSnapshot]:
    """The kept snapshots of `s`, straight from the bucket."""
    envelope = PlainEnvelope()
    holder, _ = await read_holder(store)
    return await Bucket(store, envelope, b"", holder, await read_truth(store, envelope, holder)).kept(b"s")


async def test_history_travels(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, policy=PLENTY) as machine:
        machine.mkdir(b"s")
        held = await life(machine, 0, 12)
        await machine.history.mark(machine.get(b"s").ino, 2, "word")
        machine.history.judge(machine.get(b"s").ino, 3, "good")
        before = await check(machine, held)
    assert (before[1].mark, before[2].verdict) == ("word", "good")
    seen = await read_history(store)
    assert [(one.sequence, one.mark, one.verdict) for one in seen] == [(i.sequence, i.mark, i.verdict) for i in before]
    async with open_machine(tmp_path / "b", store, name="b", policy=PLENTY) as machine:
        assert await check(machine, held) == before
        held |= await life(machine, 12, 3)
        await check(machine, held)
    async with open_machine(tmp_path / "a", store, policy=PLENTY) as machine:
        await check(machine, held)
        # Neither of these publishes the session.
        machine.history.judge(machine.get(b"s").ino, 1, "bad")
    async with open_machine(tmp_path / "c", store, name="c", policy=PLENTY) as machine:
        infos = await check(machine, held)
        assert [info.verdict for info in infos[:3]] == ["bad", "", "good"]


@pytest.mark.parametrize("checkpoint_after", [0, 3, 7])
async def test_history_survives_a_take_over(tmp_path: Path, checkpoint_after: int) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, policy=PLENTY) as machine:
        machine.mkdir(b"s")
        held = await life(machine, 0, 3)
    async with open_machine(tmp_path / "b", store, name="b", policy=PLENTY, release=False) as machine:
        await machine.load_all()
        held |= await life(machine, 3, checkpoint_after)
        if checkpoint_after:
            await machine.node.checkpoint()
            await machine.history.mark(machine.get(b"s").ino, 2, "word")
        held |= await life(machine, 3 + checkpoint_after, 4)
        assert [one.sequence for one in await read_history(store)] == sorted(held)
    async with open_machine(tmp_path / "c", store, name="c", take_over=True, policy=PLENTY, release=False) as machine:
        # Dies without having looked at the session.
        assert [one.sequence for one in await machine.node.resolve_kept(b"s")] == sorted(held)
    async with open_machine(tmp_path / "d", store, name="d", take_over=True, policy=PLENTY) as machine:
        infos = await check(machine, held)
        assert infos[1].mark == ("word" if checkpoint_after else "")
    async with open_machine(tmp_path / "e", store, name="e", policy=PLENTY) as machine:
        await check(machine, held)


async def test_release_without_a_look_at_the_session_keeps_its_history(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, policy=PLENTY) as machine:
        machine.mkdir(b"s")
        held = await life(machine, 0, 3)
    async with open_machine(tmp_path / "b", store, name="b", policy=PLENTY, release=False) as machine:
        await machine.load_all()
        held |= await life(machine, 3, 2)
    async with open_machine(tmp_path / "c", store, name="c", take_over=True, policy=PLENTY):
        pass
    async with open_machine(tmp_path / "d", store, name="d", policy=PLENTY) as machine:
        await check(machine, held)


async def test_a_renamed_session_takes_its_history_along_and_a_new_one_has_none(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, policy=PLENTY) as machine:
        machine.mkdir(b"s")
        held = await life(machine, 0, 3)
        machine.rename(b"s", b"t")
        await machine.publish()
        machine.mkdir(b"s")
        await machine.publish()
        assert sequences(machine.history, machine.get(b"t").ino) == [*sorted(held), 4]
        assert sequences(machine.history, machine.get(b"s").ino) == [1]
    async with open_machine(tmp_path / "b", store, name="b", policy=PLENTY) as machine:
        await machine.load_all()
        assert sequences(machine.history, machine.get(b"t").ino) == [*sorted(held), 4]
        assert sequences(machine.history, machine.get(b"s").ino) == [1]
        for sequence, content in held.items():
            assert (await content_of(machine, machine.lives, b"t", sequence))[b"f"] == content


async def test_what_is_kept_of_a_renamed_session_is_in_the_remote_once_it_is_published(tmp_path: Path) -> None:
    """The machine may vanish right after that."""
    faulty = FaultyStore(store := MemoryStore())
    async with open_machine(tmp_path / "a", faulty, policy=PLENTY, release=False) as machine:
        machine.mkdir(b"s")
        held = await life(machine, 0, 3)
        machine.rename(b"s", b"t")
        faulty.plan("put", None, timeout())
        with pytest.raises(RemoteUnavailable):
            await machine.publish()
        # Nothing changed since, and yet there is something to be told.
        await machine.publish()
        before = faulty.count("put")
        await machine.publish()
        assert faulty.count("put") == before
    async with open_machine(tmp_path / "b", store, name="b", take_over=True, policy=PLENTY) as machine:
        await machine.load_all()
        assert sequences(machine.history, machine.get(b"t").ino) == [*sorted(held), 4]
        for sequence, content in held.items():
            assert (await content_of(machine, machine.lives, b"t", sequence))[b"f"] == content


async def test_a_removed_session_leaves_no_history_to_one_of_its_name(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, policy=PLENTY, release=False) as machine:
        machine.mkdir(b"s")
        await life(machine, 0, 3)
        await machine.node.checkpoint()
        await machine.lives.remove(b"s")
        await machine.publish()
        machine.mkdir(b"s")
        await machine.write(b"s/f", b"other")
        await machine.publish()
    async with open_machine(tmp_path / "b", store, name="b", take_over=True, policy=PLENTY) as machine:
        await check(machine, {1: b"other"})


async def run_gc(store: MemoryStore, number: int) -> None:
    await collect(store, PlainEnvelope(), Options(f"run{number}", 0.0))


def n_segments(store: MemoryStore) -> int:
    return sum(parse_segment_key(key) is not None for key in store.objects)


async def test_collection_spares_kept_snapshots_until_the_policy_drops_them(tmp_path: Path) -> None:
    store = MemoryStore()
    clock = Clock()
    async with open_machine(tmp_path / "a", store, policy=PLENTY, clock=clock) as machine:
        machine.mkdir(b"s")
        held = await life(machine, 0, 12)
    for number in range(3):
        await run_gc(store, number)
    async with open_machine(tmp_path / "b", store, name="b", policy=PLENTY, clock=clock) as machine:
        await check(machine, held)
    before = n_segments(store)
    async with open_machine(tmp_path / "c", store, name="c", policy=ONLY_LATEST, clock=clock) as machine:
        await machine.load_all()
        held = await life(machine, 12, 1)
        await check(machine, held)
    for number in range(3, 6):
        await run_gc(store, number)
    assert n_segments(store) < before / 2
    async with open_machine(tmp_path / "d", store, name="d", policy=ONLY_LATEST, clock=clock) as machine:
        await check(machine, held)


async def test_collection_after_a_crash_spares_what_only_footers_say(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, policy=PLENTY) as machine:
        machine.mkdir(b"s")
        held = await life(machine, 0, 3)
    async with open_machine(tmp_path / "b", store, name="b", policy=PLENTY, release=False) as machine:
        await machine.load_all()
        held |= await life(machine, 3, 3)
        await machine.node.checkpoint()
        held |= await life(machine, 6, 3)
    for number in range(3):
        await run_gc(store, number)
    async with open_machine(tmp_path / "c", store, name="c", take_over=True, policy=PLENTY) as machine:
        await check(machine, held)


async def test_clone_uploads_nothing_but_manifests(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, policy=PLENTY) as machine:
        machine.mkdir(b"s")
        await machine.write(b"s/large", BODY)
        await machine.publish()
        before = sum(map(len, store.objects.values()))
        await machine.lives.clone(b"s", b"copy")
        await machine.publish()
        assert sum(map(len, store.objects.values())) - before < 4000
        assert sequences(machine.history, machine.get(b"copy").ino) == [1]
    async with open_machine(tmp_path / "b", store, name="b", policy=PLENTY) as machine:
        await machine.load_all()
        assert await machine.read(b"copy/large") == BODY
        await machine.lives.clone(b"copy", b"third")
        assert await machine.read(b"third/large") == BODY


async def test_rollback_is_published(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, policy=PLENTY) as machine:
        machine.mkdir(b"s")
        held = await life(machine, 0, 10)
        await machine.write(b"s/f", b"damage")
        await machine.lives.rollback(b"s", 4)
        assert await machine.read(b"s/f") == held[4]
        infos = machine.history.list(machine.get(b"s").ino)
        assert [info.sequence for info in infos] == list(range(1, 12))
        assert infos[-1].mark == "before rollback"
        await machine.publish()
        assert sequences(machine.history, machine.get(b"s").ino) == list(range(1, 13))
    async with open_machine(tmp_path / "b", store, name="b", policy=PLENTY) as machine:
        await machine.load_all()
        assert await machine.read(b"s/f") == held[4]
        # On a node that never saw the session's files: everything comes from the remote.
        await machine.lives.rollback(b"s", 7)
        assert await machine.read(b"s/f") == held[7]
    async with open_machine(tmp_path / "c", store, name="c", policy=PLENTY) as machine:
        await machine.load_all()
        assert (await snapshot(machine, b"s"))[b"s/f"].content == held[7]
    for path in ("a", "b", "c"):
        assert_clean(tmp_path / path)


async def test_a_node_that_comes_back_has_the_history_that_the_other_left(tmp_path: Path) -> None:
    """The other let go of snapshots, and they are collected: who comes back must not name them again."""
    store = MemoryStore()
    clock = Clock()
    async with open_machine(tmp_path / "a", store, policy=PLENTY, clock=clock) as machine:
        machine.mkdir(b"s")
        held = await life(machine, 0, 12)
        machine.mkdir(b"t")
        await machine.write(b"t/f", BODY)
        await machine.publish()
    last = max(held)
    async with open_machine(tmp_path / "b", store, name="b", policy=ONLY_LATEST, clock=clock) as machine:
        await machine.load_all()
        session = machine.get(b"s").ino
        machine.history.prune(session)
        await machine.history.mark(session, last, "word")
    for number in range(3):
        await run_gc(store, number)
    async with open_machine(tmp_path / "a", store, policy=PLENTY, clock=clock) as machine:
        infos = await check(machine, {last: held[last]})
        assert infos[0].mark == "word"
        held = {last: held[last]} | await life(machine, 12, 2)
        await check(machine, held)
    for number in range(3, 6):
        await run_gc(store, number)
    async with open_machine(tmp_path / "c", store, name="c", policy=PLENTY, clock=clock) as machine:
        await check(machine, held)


async def test_a_session_that_hibernates_keeps_its_history(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, policy=PLENTY) as machine:
        machine.mkdir(b"s")
        held = await life(machine, 0, 5)
        session = machine.get(b"s").ino
        machine.volume.namespace.empty_session(session)
        machine.sessions.make_stub(session, b"s")
        await machine.node.checkpoint()
        assert [one.sequence for one in await read_history(store)] == sorted(held)
        await check(machine, held)
        machine.volume.namespace.empty_session(session)
        machine.sessions.make_stub(session, b"s")
    async with open_machine(tmp_path / "b", store, name="b", policy=PLENTY) as machine:
        await check(machine, held)


async def test_a_snapshot_whose_manifest_is_lost_does_not_stop_collection(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store, policy=PLENTY) as machine:
        machine.mkdir(b"s")
        await life(machine, 0, 12)
    manifests = await read_history(store)
    first = manifests[0].manifest
    del store.objects[segment_key(first.node, first.segment)]
    report = await collect(store, PlainEnvelope(), Options("run", 0.0))
    assert any("whose manifest is gone" in note for note in report.notes)
