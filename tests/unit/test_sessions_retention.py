"""Expiry: exactly those that nobody used for so long, none in use, none that the remote lacks; the trash; clocks."""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import trio

from sessfs.errors import StoreFull, UsageError
from sessfs.sessions import retention
from sessfs.sessions.retention import CAP_SHARE, HIBERNATE, REMOVE
from sessfs.vfs import background
from sessfs.vfs.background import keep_going
from tests.support.memorystore import MemoryStore
from tests.support.retaining import BACKUP, CHROME, Keeping
from tests.support.volumes import Clock, assert_clean, open_box, open_machine, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.local.inodes import Inode
    from sessfs.sessions.retention import Round
    from tests.support.volumes import Box

DAY_S = 86_400.0
DAY_NS = 86_400 * 10**9
EXPIRE_DAYS = 30
DAYS = 60
NEVER_SEAL_S = 1e9
TRASH_DAYS = 13.75
SESSIONS = 1_000


@dataclass
class Simulated:
    """One user, and what the test knows of them."""

    name: bytes
    kind: str
    period_days: float
    until_days: float
    used_ns: int = 0
    next_days: float = 0.0
    file: Inode | None = None


def users(seed: int) -> list[Simulated]:
    """Users of all kinds: who come back every few days up to some day, by changes or by opening alone."""
    rng = random.Random(seed)
    kinds = ("writes", "opens", "writes", "opens", "backed up only", "always open", "never uploaded")
    found = []
    for number in range(SESSIONS):
        period = rng.uniform(0.2, 40)
        user = Simulated(b"user%d" % number, kinds[number % len(kinds)], period, rng.uniform(0, DAYS))
        user.next_days = rng.uniform(0, period)
        found.append(user)
    return found


async def act(keeping: Keeping, user: Simulated, day: float) -> None:
    """What the user does at that time, if anything."""
    inodes = keeping.box.volume.inodes
    if day < user.next_days or day > user.until_days or user.kind in ("always open", "never uploaded"):
        return
    user.next_days = day + user.period_days
    machine = keeping.machine
    if machine is not None:
        await machine.load(user.name)
    if user.kind == "backed up only":
        keeping.last_use.opened(keeping.box.get(user.name).ino, BACKUP)
        return
    file = keeping.box.find(user.name + b"/f")
    if user.kind == "writes" or file is None:
        await keeping.box.write(user.name + b"/f", b"%d" % int(day * 100))
    else:
        inodes.note_open(file)
        keeping.last_use.opened(file.session, CHROME)
        inodes.note_closed(file)
    user.used_ns = keeping.now_ns()


async def start(keeping: Keeping, everybody: list[Simulated]) -> None:
    for number, user in enumerate(everybody):
        keeping.box.mkdir(user.name)
        user.file = await keeping.box.write(user.name + b"/f", b"content of %d" % number)
        user.used_ns = keeping.now_ns()
        if user.kind == "always open":
            keeping.box.volume.inodes.note_open(user.file)
        # Not all of one instant: a round does a tenth of them at most.
        keeping.box.clock.advance(600)


def due(user: Simulated, now_ns: int) -> bool:
    return user.kind not in ("always open", "never uploaded") and user.used_ns + EXPIRE_DAYS * DAY_NS <= now_ns


def still_pending(keeping: Keeping, everybody: list[Simulated]) -> None:
    """Those whose uploads never come to an end."""
    assert keeping.machine is not None
    for user in everybody:
        if user.kind == "never uploaded":
            keeping.machine.changes.note_whole(keeping.box.get(user.name).ino)


async def test_sixty_days_of_a_thousand_sessions_with_a_remote(tmp_path: Path) -> None:
    """Hibernated are exactly those that were not used for 30 days, at every look; each loads again as it was."""
    everybody = users(1)
    async with open_machine(tmp_path / "a", MemoryStore(), seal_idle_s=NEVER_SEAL_S) as machine:
        keeping = Keeping(machine, EXPIRE_DAYS, HIBERNATE)
        await start(keeping, everybody)
        await machine.publish()
        day, hibernated, came_back = 0.0, 0, 0
        while day < DAYS:
            machine.clock.advance(DAY_S)
            day += 1
            asleep = {user.name for user in everybody if machine.get(user.name).ino in machine.sessions.stubs}
            for user in everybody:
                await act(keeping, user, day)
            came_back += sum(machine.get(name).ino not in machine.sessions.stubs for name in asleep)
            await machine.publish()
            still_pending(keeping, everybody)
            done = await keeping.retention.round()
            now_ns = machine.clock.now_ns
            assert done.held is None
            hibernated += sum(one.kept is None for one in done.sessions)
            asleep = {user.name for user in everybody if machine.get(user.name).ino in machine.sessions.stubs}
            assert asleep == {user.name for user in everybody if due(user, now_ns)}
            kept = {one.name.encode(): one.kept for one in done.sessions if one.kept}
            for user in everybody:
                if user.kind in ("always open", "never uploaded") and user.used_ns + EXPIRE_DAYS * DAY_NS <= now_ns:
                    wanted = "in use" if user.kind == "always open" else "not uploaded"
                    assert (kept.pop(user.name) or "").startswith(wanted)
            assert not kept
        assert hibernated > SESSIONS / 3
        assert came_back > 50
        for user in everybody[:50]:
            await machine.load(user.name)
            assert (await machine.read(user.name + b"/f")) != b""
        for user in everybody:
            if user.kind == "always open" and user.file is not None:
                machine.volume.inodes.note_closed(user.file)
    assert_clean(tmp_path / "a")


async def test_sixty_days_of_a_thousand_sessions_without_a_remote(tmp_path: Path) -> None:
    """Removed to the trash are exactly those, and two weeks later they are gone for good."""
    everybody = [user for user in users(2) if user.kind != "never uploaded"]
    async with open_box(tmp_path / "a", seal_idle_s=NEVER_SEAL_S) as box:
        keeping = Keeping(box, EXPIRE_DAYS, REMOVE, trash_days=TRASH_DAYS)
        await start(keeping, everybody)
        day = 0.0
        removed: dict[bytes, float] = {}
        while day < DAYS:
            box.clock.advance(DAY_S / 2)
            day += 0.5
            for user in everybody:
                if user.name not in removed:
                    await act(keeping, user, day)
            expected = {user.name for user in everybody if due(user, box.clock.now_ns)} - removed.keys()
            gone = {name for name, since in removed.items() if day - since > TRASH_DAYS}
            done = await keeping.retention.round()
            assert {one.name.encode() for one in done.sessions if one.kept is None} == expected
            assert {name.encode() for name in done.purged} == gone
            removed |= dict.fromkeys(expected, day)
            for name in gone:
                removed[name] = float("inf")
            assert all(box.find(name) is None for name in removed)
            in_trash = {name for name, since in removed.items() if since != float("inf")}
            assert set(await keeping.names_in_trash()) == in_trash
        assert len(removed) > SESSIONS / 3
        assert float("inf") in removed.values()
        for user in everybody:
            if user.kind == "always open" and user.file is not None:
                box.volume.inodes.note_closed(user.file)
    assert_clean(tmp_path / "a")


async def test_dry_run_changes_nothing(tmp_path: Path) -> None:
    async with open_box(tmp_path / "a") as box:
        keeping = Keeping(box, 1, REMOVE)
        box.mkdir(b"old")
        box.clock.advance(2 * DAY_S)
        box.mkdir(b"new")
        done = await keeping.retention.round(dry_run=True)
        assert [(one.name, one.action, one.kept) for one in done.sessions] == [("old", REMOVE, None)]
        assert box.find(b"old") is not None
        done = await keeping.retention.round()
        assert [one.name for one in done.sessions if one.kept is None] == ["old"]
        assert box.find(b"old") is None
        assert box.find(b"new") is not None


async def test_a_session_that_another_machine_used_is_left(tmp_path: Path) -> None:
    """Its manifest says so when it is loaded; by then it is no stub of long ago any more."""
    store = MemoryStore()
    clock = Clock()
    async with open_machine(tmp_path / "a", store, clock=clock) as first:
        keeping = Keeping(first, EXPIRE_DAYS, HIBERNATE)
        first.mkdir(b"user")
        await first.write(b"user/f", b"1")
        await first.publish()
        clock.advance(31 * DAY_S)
        keeping.guard.trust()
        assert [one.kept for one in (await keeping.retention.round()).sessions] == [None]
    async with open_machine(tmp_path / "b", store, name="b", clock=clock) as second:
        elsewhere = Keeping(second, None, HIBERNATE)
        inode = await second.load(b"user")
        assert inode is not None
        elsewhere.last_use.opened(inode.ino, CHROME)
        used_ns = elsewhere.last_use.last_use_ns(inode.ino)
    async with open_machine(tmp_path / "a", store, clock=clock) as first:
        keeping = Keeping(first, EXPIRE_DAYS, REMOVE)
        keeping.guard.trust()
        done = await keeping.retention.round()
        assert [one.kept is not None and one.kept.startswith("used elsewhere") for one in done.sessions] == [True]
        assert keeping.last_use.last_use_ns(first.get(b"user").ino) == used_ns
        assert await first.read(b"user/f") == b"1"


async def test_sessions_never_loaded_here_are_removed_too(tmp_path: Path) -> None:
    """An empty machine: who does not come back is never looked up there, and still expires; nobody else does."""
    store = MemoryStore()
    clock = Clock()
    async with open_machine(tmp_path / "a", store, clock=clock) as first:
        for name in (b"old", b"older", b"used", b"young"):
            if name == b"young":
                clock.advance(20 * DAY_S)
            first.mkdir(name)
            await first.write(name + b"/f", name)
            await first.publish()
        Keeping(first, None, REMOVE).last_use.opened(first.get(b"used").ino, CHROME)
        await first.publish()
    clock.advance(15 * DAY_S)
    async with open_machine(tmp_path / "b", store, name="b", clock=clock) as second:
        hibernating = Keeping(second, EXPIRE_DAYS, HIBERNATE)
        hibernating.guard.trust()
        assert not (await hibernating.retention.round()).sessions
        keeping = Keeping(second, EXPIRE_DAYS, REMOVE)
        keeping.guard.trust()
        dry = await keeping.retention.round(dry_run=True)
        assert {one.name for one in dry.sessions} == {"old", "older"}
        assert {second.get(name).ino in second.sessions.stubs for name in (b"old", b"older", b"young")} == {True}
        done = await keeping.retention.round()
        assert {one.name: one.kept for one in done.sessions} == {"old": None, "older": None}
        assert sorted(await keeping.names_in_trash()) == [b"old", b"older"]
        gets = store.statistics().requests["get"]
        assert not (await keeping.retention.round()).sessions
        assert store.statistics().requests["get"] == gets
        await second.publish()
        assert await keeping.trash.restore(b"old") == b"old"
        assert await second.read(b"old/f") == b"old"
    assert_clean(tmp_path / "b")


async def test_last_use_travels_and_a_backup_is_none(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        keeping = Keeping(machine, EXPIRE_DAYS, HIBERNATE)
        session = machine.mkdir(b"user").ino
        await machine.publish()
        changed_ns = keeping.last_use.last_use_ns(session)
        machine.clock.advance(5 * DAY_S)
        keeping.last_use.opened(session, BACKUP)
        assert keeping.last_use.last_use_ns(session) == changed_ns
        assert not machine.changes.sessions
        keeping.last_use.opened(session, CHROME)
        used_ns = keeping.last_use.last_use_ns(session)
        assert used_ns > changed_ns + 5 * DAY_NS
        assert set(machine.changes.sessions) == {session}
        await machine.publish()
        # Within the hour nothing is noted; later that day it is, but is no reason to publish; the next day it is one.
        machine.clock.advance(600)
        keeping.last_use.opened(session, CHROME)
        assert keeping.last_use.last_use_ns(session) == used_ns
        noted = []
        for _ in range(24):
            machine.clock.advance(3700)
            keeping.last_use.opened(session, CHROME)
            noted.append(bool(machine.changes.sessions))
            await machine.publish()
        assert noted.count(True) == 1
        last_ns = keeping.last_use.last_use_ns(session)
        assert last_ns > used_ns + 23 * 3600 * 10**9
    async with open_machine(tmp_path / "b", store, name="b") as other:
        inode = await other.load(b"user")
        assert inode is not None
        assert last_ns - DAY_NS <= Keeping(other, None, HIBERNATE).last_use.last_use_ns(inode.ino) <= last_ns
        assert other.volume.xattrs.names(inode.ino) == []


# -- clocks


async def fill(box: Box, count: int) -> None:
    for number in range(count):
        box.mkdir(b"user%d" % number)


def done_of(done: Round) -> int:
    return sum(one.kept is None for one in done.sessions)


async def test_a_clock_that_jumps_expires_nobody(tmp_path: Path) -> None:
    async with open_box(tmp_path / "a") as box:
        keeping = Keeping(box, EXPIRE_DAYS, REMOVE)
        await fill(box, 20)
        assert not (await keeping.retention.round()).sessions
        box.clock.advance(3600)
        keeping.wall_ahead_ns = 400 * DAY_NS
        done = await keeping.retention.round()
        assert "clock" in (done.held or "")
        assert (done_of(done), len(done.sessions)) == (0, 20)
        assert any("clock" in warning for warning in keeping.retention.warnings())
        box.clock.advance(3600)
        keeping.wall_ahead_ns = 0
        assert not (await keeping.retention.round()).sessions
        # Set right again, and a day later all is as usual.
        box.clock.advance(DAY_S)
        assert (await keeping.retention.round()).held is None
        assert keeping.retention.warnings() == []


async def test_a_jump_that_stays_is_believed_after_a_day(tmp_path: Path) -> None:
    async with open_box(tmp_path / "a") as box:
        keeping = Keeping(box, EXPIRE_DAYS, REMOVE)
        await fill(box, 5)
        await keeping.retention.round()
        keeping.wall_ahead_ns = 60 * DAY_NS
        for hour in range(25):
            done = await keeping.retention.round()
            assert (done.held is None) == (hour == 24), hour
            box.clock.advance(3600)
        assert done_of(done) == 5


@pytest.mark.parametrize("looked_before", [True, False])
async def test_a_mount_that_was_away_for_long_waits(tmp_path: Path, looked_before: bool) -> None:
    clock = Clock()
    async with open_box(tmp_path / "a", clock=clock) as box:
        await fill(box, 5)
        if looked_before:
            await Keeping(box, EXPIRE_DAYS, REMOVE).retention.round()
    clock.advance(1000 * DAY_S)
    async with open_box(tmp_path / "a", clock=clock) as box:
        done = await Keeping(box, EXPIRE_DAYS, REMOVE).retention.round()
        assert (done.held is not None, done_of(done)) == (True, 0)
    # A restart does not shorten the wait, nor begin it anew.
    clock.advance(3600)
    async with open_box(tmp_path / "a", clock=clock) as box:
        keeping = Keeping(box, EXPIRE_DAYS, REMOVE)
        assert (await keeping.retention.round()).held is not None
        done = await keeping.retention.round(trust_clock=True)
        assert (done.held, done_of(done)) == (None, 5)


@pytest.mark.parametrize("expire_days", [None, EXPIRE_DAYS])
async def test_an_empty_disk_with_a_wrong_clock_waits(tmp_path: Path, expire_days: float | None) -> None:
    """What is used under the wrong clock does not vouch for it; what the remote has is of long ago."""
    store = MemoryStore()
    clock = Clock()
    async with open_machine(tmp_path / "a", store, clock=clock) as first:
        keeping = Keeping(first, None, REMOVE)
        for name in (b"gone", b"idle", b"used"):
            first.mkdir(name)
            await first.write(name + b"/f", name)
        await first.publish()
        keeping.trash.put(b"gone")
        await first.publish()
    clock.advance(400 * DAY_S)
    async with open_machine(tmp_path / "b", store, name="b", clock=clock) as second:
        keeping = Keeping(second, expire_days, REMOVE)
        await second.load(b"used")
        await second.write(b"used/f", b"today")
        second.mkdir(b"new")
        await second.publish()
        for hour in range(25):
            done = await keeping.retention.round()
            assert ((done.held is None), done.purged) == ((hour == 24), ["gone"] if hour == 24 else []), hour
            clock.advance(3600)
        assert done_of(done) == (0 if expire_days is None else 1)


async def test_an_empty_disk_with_a_right_clock_does_not_wait(tmp_path: Path) -> None:
    store = MemoryStore()
    clock = Clock()
    async with open_machine(tmp_path / "a", store, clock=clock) as first:
        first.mkdir(b"old")
        await first.publish()
        clock.advance(31 * DAY_S)
        first.mkdir(b"young")
        await first.publish()
    clock.advance(DAY_S)
    async with open_machine(tmp_path / "b", store, name="b", clock=clock) as second:
        done = await Keeping(second, EXPIRE_DAYS, REMOVE).retention.round()
        assert (done.held, [(one.name, one.kept) for one in done.sessions]) == (None, [("old", None)])


async def test_sessions_of_unknown_age_on_an_empty_disk_wait(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as first:
        first.mkdir(b"user")
        await first.publish()
    async with open_machine(tmp_path / "b", store, name="b") as second:
        keeping = Keeping(second, EXPIRE_DAYS, REMOVE)
        second.sessions.learn_ages = learn_nothing  # type: ignore[method-assign]
        assert (await keeping.retention.round()).held is not None


async def learn_nothing(limit: int) -> None:
    """The remote has no times to tell."""


async def test_a_first_use_under_a_wrong_clock_does_not_vouch_for_it(tmp_path: Path) -> None:
    """Without a remote, in a state whose mounts were too short for a round."""
    clock = Clock()
    async with open_box(tmp_path / "a", clock=clock) as box:
        await fill(box, 2)
        Keeping(box, None, REMOVE).trash.put(b"user0")
    clock.advance(400 * DAY_S)
    async with open_box(tmp_path / "a", clock=clock) as box:
        keeping = Keeping(box, None, REMOVE)
        await box.write(b"user1/f", b"today")
        done = await keeping.retention.round()
        assert (done.held is not None, done.purged) == (True, [])


async def test_a_round_does_a_tenth(tmp_path: Path) -> None:
    async with open_box(tmp_path / "a") as box:
        keeping = Keeping(box, 5, REMOVE)
        await fill(box, 200)
        box.clock.advance(6 * DAY_S)
        counts = []
        for _ in range(30):
            done = await keeping.retention.round()
            counts.append(done_of(done))
            if counts[-1] == 200 // CAP_SHARE and len(counts) == 1:
                assert any("180 more sessions" in warning for warning in keeping.retention.warnings())
            box.clock.advance(3600)
        assert max(counts) == 200 // CAP_SHARE
        assert sum(counts) == 200
        assert keeping.retention.warnings() == []


async def test_round_that_a_bug_ends_is_not_followed_by_another_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each takes a tenth of all sessions: an hour is what an operator has to stop it."""
    monkeypatch.setattr(retention, "FIRST_ROUND_S", 0.0)
    monkeypatch.setattr(background, "RESTART_S", 0.0)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await trio.lowlevel.checkpoint()

    async def bug() -> None:
        raise KeyError("nobody has thought of this")

    async with open_box(tmp_path / "a") as box:
        keeping = Keeping(box, None, REMOVE)
        monkeypatch.setattr(keeping.retention, "round", bug)
        monkeypatch.setattr(retention, "trio", SimpleNamespace(sleep=sleep))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_going, keeping.retention.run)
            await wait_until(lambda: len(pauses) >= 4)
            nursery.cancel_scope.cancel()
    assert set(pauses[1:]) == {retention.ROUND_S}
    assert "nobody has thought of this" in caplog.text


async def test_rounds_go_on_where_the_disk_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "FIRST_ROUND_S", 0.0)
    monkeypatch.setattr(retention, "ROUND_S", 0.01)
    async with open_box(tmp_path / "a") as box:
        keeping = Keeping(box, None, REMOVE)
        await fill(box, 2)
        await keeping.retention.round()
        for name in (b"user0", b"user1"):
            keeping.trash.put(name)
        keeping.wall_ahead_ns = 31 * DAY_NS
        keeping.guard.trust()
        settled, tried = keeping.lives.settled, 0

        async def full_at_first() -> None:
            nonlocal tried
            tried += 1
            if tried == 1:
                raise StoreFull("no room for the commit")
            await settled()

        monkeypatch.setattr(keeping.lives, "settled", full_at_first)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeping.retention.run)
            await wait_until(lambda: tried > 1)
            nursery.cancel_scope.cancel()
        assert await keeping.names_in_trash() == []


# -- the trash


async def test_trash_gives_back_what_was_removed(tmp_path: Path) -> None:
    async with open_box(tmp_path / "a") as box:
        keeping = Keeping(box, None, REMOVE)
        for content in (b"first", b"second"):
            box.mkdir(b"user")
            await box.write(b"user/f", content)
            keeping.trash.put(b"user")
            assert box.find(b"user") is None
            box.clock.advance(60)
        assert await keeping.names_in_trash() == [b"user", b"user"]
        assert await keeping.trash.restore(b"user") == b"user"
        assert await box.read(b"user/f") == b"second"
        with pytest.raises(UsageError, match="--as"):
            await keeping.trash.restore(b"user")
        assert await keeping.trash.restore(b"user", b"older") == b"older"
        assert await box.read(b"older/f") == b"first"
        with pytest.raises(UsageError, match="trash list"):
            await keeping.trash.restore(b"user")
        assert box.volume.inodes.find_xattr(box.get(b"older").ino, b"trusted.sessfs.trash-name") is None
    assert_clean(tmp_path / "a")


async def test_an_empty_name_is_not_the_whole_trash(tmp_path: Path) -> None:
    async with open_box(tmp_path / "a") as box:
        keeping = Keeping(box, None, REMOVE)
        box.mkdir(b"user")
        keeping.trash.put(b"user")
        with pytest.raises(UsageError, match="empty name"):
            await keeping.trash.purge(wanted=b"")
        with pytest.raises(UsageError, match="no nobody in the trash: `sessfs trash list MOUNTPOINT`"):
            await keeping.trash.purge(wanted=b"nobody")
        with pytest.raises(UsageError, match="--as"):
            await keeping.trash.restore(b"user", b"")
        assert await keeping.names_in_trash() == [b"user"]
    assert_clean(tmp_path / "a")


async def test_what_has_no_time_in_the_trash_stays(tmp_path: Path) -> None:
    async with open_box(tmp_path / "a") as box:
        keeping = Keeping(box, None, REMOVE)
        await fill(box, 1)
        keeping.lives.rename(b"user0", b".sessfs-trash-0")
        (one,) = await keeping.trash.entries()
        assert keeping.retention.purged_ns(one) == 0
        box.clock.advance(100 * DAY_S)
        keeping.guard.trust()
        assert (await keeping.retention.round()).purged == []
        for name in (b".sessfs-x", b"x" * 256, b"a/b"):
            with pytest.raises(UsageError, match="--as"):
                await keeping.trash.restore(b".sessfs-trash-0", name)
    assert_clean(tmp_path / "a")


async def test_trash_outlives_the_machine(tmp_path: Path) -> None:
    store = MemoryStore()
    async with open_machine(tmp_path / "a", store) as machine:
        keeping = Keeping(machine, None, REMOVE)
        machine.mkdir(b"user")
        await machine.write(b"user/f", b"content")
        await machine.publish()
        keeping.trash.put(b"user")
        await machine.publish()
    async with open_machine(tmp_path / "b", store, name="b") as other:
        keeping = Keeping(other, None, REMOVE)
        # Nobody has listed the root of this empty machine yet.
        assert await keeping.names_in_trash() == [b"user"]
        assert other.find(b"user") is None
        assert await keeping.trash.restore(b"user") == b"user"
        assert await other.read(b"user/f") == b"content"
        keeping.trash.put(b"user")
        gone = await keeping.trash.purge()
        assert [one.name for one in gone] == [b"user"]
        await other.publish()
    assert_clean(tmp_path / "b")
    async with open_machine(tmp_path / "c", store, name="c") as third:
        await third.load_all()
        assert third.volume.namespace.list_names(third.get(b"").ino) == []


async def test_a_session_that_loads_while_its_chunks_are_dropped_has_them(tmp_path: Path) -> None:
    """What was taken for dead is named again before the seal process has dropped it: the remote still has it."""
    async with open_machine(tmp_path / "a", MemoryStore()) as machine:
        keeping = Keeping(machine, 1, HIBERNATE)
        for number in range(10):
            machine.mkdir(b"user")
            content = random.Random(number).randbytes(300_000)
            await machine.write(b"user/f", content)
            await machine.publish()
            machine.clock.advance(2 * DAY_S)
            assert done_of(await keeping.retention.round()) == 1
            await machine.commit()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(machine.volume.sealer.drop_dead)
                await trio.lowlevel.checkpoint()
                nursery.start_soon(machine.load, b"user")
            assert await machine.read(b"user/f") == content
            await machine.write(b"user/g", b"more")
            await machine.publish()
            await keeping.lives.remove(b"user")
            await machine.publish()
    assert_clean(tmp_path / "a")
