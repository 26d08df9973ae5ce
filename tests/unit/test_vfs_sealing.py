"""Sealing with the real seal process: recipes, freezing, dead chunks, and what goes wrong on the way."""

from __future__ import annotations

import errno
import functools
import os
import random
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from sessfs.errors import LocalStoreError
from sessfs.format.recipe import Recipe, encode_extent
from sessfs.types import HOLE
from sessfs.vfs import fileio, priority, sealclient, sealing
from sessfs.vfs.children import Child
from sessfs.vfs.quiet import QUIET_REQUESTS, QUIET_S
from sessfs.vfs.sealing import PATIENCE, TICK_S
from tests.support.badsector import BadSector
from tests.support.volumes import assert_clean, open_box, wait_until

if TYPE_CHECKING:
    from sessfs.local.inodes import Inode
    from tests.support.volumes import Box


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def bytes_of(box: Box, recipe: Recipe) -> bytes:
    parts = []
    for extent in recipe:
        found = bytes(extent.end - extent.start) if extent.is_hole else box.volume.reader.find(extent.chunk)
        assert found is not None
        parts.append(found)
    return b"".join(parts)


async def assert_swept(box: Box) -> None:
    """What nothing names goes by itself after a start."""
    with trio.fail_after(10):
        await trio.sleep(0.2)
        await box.drop_dead()
    assert box.volume.reader.totals().plain_bytes == 0


async def test_sealing_equal_content_is_stored_once_and_given_back_at_the_end(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"a")
        box.mkdir(b"b")
        content = noise(1, 400_000)
        await box.write(b"a/f", content)
        await box.write(b"b/f", content)
        await box.seal()
        assert box.volume.fileio.hot_bytes() == 0
        assert box.volume.reader.totals().plain_bytes == len(content)
        box.unlink(b"a/f")
        await box.drop_dead()
        assert await box.read(b"b/f") == content
        box.unlink(b"b/f")
        await box.drop_dead()
        assert box.volume.reader.totals()[1:] == (0, 0)
    assert_clean(tmp_path / "state")


async def test_sealing_sparse_file_takes_no_room_for_holes(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", b"begin")
        await box.write(b"s/f", b"end", 5 << 30)
        await box.seal()
        inode = box.get(b"s/f")
        assert inode.size == (5 << 30) + 3
        assert box.volume.fileio.allocated_bytes(inode) < 1 << 20
        assert await box.volume.fileio.read(inode, (5 << 30) - 2, 10) == b"\0\0end"
        await box.write(b"s/f", b"middle", 3 << 30)
        await box.seal()
        assert await box.volume.fileio.read(inode, (3 << 30) - 1, 8) == b"\0middle\0"
    assert_clean(tmp_path / "state")


async def test_sealing_lets_others_go_first_until_it_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By session, since Linux gives each session an equal share, whatever the nice values in it."""
    shares = note_shares(monkeypatch)
    async with open_box(tmp_path / "state") as box, trio.open_nursery() as nursery:
        pid = await sealing_pid(box)
        assert os.getsid(pid) == pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == priority.NICE
        assert autogroup(pid) in (f"nice {priority.NICE}", None)
        assert shares == [False]
        monkeypatch.setattr(sealclient, "GIVE_WAY_S", 0.01)
        await hold_up_a_seal(box, pid, nursery)
        await wait_until(lambda: shares == [False, True])
        assert autogroup(pid) in ("nice 0", None)
        os.kill(pid, signal.SIGCONT)
        await wait_until(lambda: shares == [False, True, False])
        assert autogroup(pid) in (f"nice {priority.NICE}", None)
    assert_clean(tmp_path / "state")


async def test_storing_fetched_frames_makes_the_seal_before_it_hurry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = note_shares(monkeypatch)
    async with open_box(tmp_path / "state") as box, trio.open_nursery() as nursery:
        pid = await sealing_pid(box)
        await hold_up_a_seal(box, pid, nursery)
        await trio.testing.wait_all_tasks_blocked()
        assert shares == [False]
        nursery.start_soon(box.volume.sealer.store_frames, [], [])
        await wait_until(lambda: shares == [False, True])
        os.kill(pid, signal.SIGCONT)
        await wait_until(lambda: shares == [False, True, False])
    assert_clean(tmp_path / "state")


async def sealing_pid(box: Box) -> int:
    """The seal process, which has sealed a file."""
    box.mkdir(b"s")
    await box.write(b"s/f", noise(1, 100_000))
    await box.seal()
    assert box.volume.seal_pid is not None
    return box.volume.seal_pid


async def hold_up_a_seal(box: Box, pid: int, nursery: trio.Nursery) -> None:
    """Stop the seal process, and have it asked to seal."""
    os.kill(pid, signal.SIGSTOP)
    await box.write(b"s/f", noise(2, 100_000))
    nursery.start_soon(box.seal)


def note_shares(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the seal process was to be urgent, each time that it was said."""
    shares: list[bool] = []
    set_share = priority.set_share

    def note(pid: int, *, is_urgent: bool) -> bool:
        shares.append(is_urgent)
        set_share(pid, is_urgent=is_urgent)
        return True

    monkeypatch.setattr(priority, "set_share", note)
    return shares


def autogroup(pid: int) -> str | None:
    """What the session of *pid* has of the CPUs; None where Linux does not schedule by session."""
    try:
        return Path(f"/proc/{pid}/autogroup").read_text().split(maxsplit=1)[1].strip()
    except FileNotFoundError:
        return None


async def test_sealing_result_for_an_older_version_is_not_used(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", noise(1, 300_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.seal)
            await trio.testing.wait_all_tasks_blocked()
            await box.write(b"s/f", b"later", 100)
        inode = box.get(b"s/f")
        assert inode.hot_no
        assert (await box.read(b"s/f"))[90:120] == noise(1, 300_000)[90:100] + b"later" + noise(1, 300_000)[105:120]
        await box.drop_dead()
        assert box.volume.reader.totals().plain_bytes == 0
    assert_clean(tmp_path / "state")


async def test_sealing_result_for_another_hot_file_of_the_same_version_is_not_used(tmp_path: Path) -> None:
    """Versions are counted anew when an inode is loaded again; numbers of hot files never are."""
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        inode = await box.write(b"s/f", noise(1, 1000))
        version = inode.version
        frozen = box.volume.sealer.freeze([inode])
        await box.seal()
        await box.write(b"s/f", noise(2, 1000))
        inode.version = version
        recipes = await box.volume.sealer.seal_frozen(frozen)
        box.volume.references.unpin(recipes[inode.ino].iter_chunks())
        assert await box.read(b"s/f") == noise(2, 1000)
    assert_clean(tmp_path / "state")


async def test_sealing_file_that_goes_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", noise(1, 300_000))
        await box.write(b"s/empty", b"")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.seal)
            nursery.start_soon(box.seal)
            await trio.testing.wait_all_tasks_blocked()
            box.unlink(b"s/f")
            box.unlink(b"s/empty")
        await box.drop_dead()
    assert_clean(tmp_path / "state")


async def test_sealing_empty_file_that_went_while_another_seal_ran(tmp_path: Path) -> None:
    """Both jobs are chosen before the first is done."""
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/large", noise(1, 300_000))
        await box.write(b"s/empty", b"")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.volume.sealer.seal_frozen, box.volume.sealer.freeze([box.get(b"s/large")]))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(box.seal)
            await trio.testing.wait_all_tasks_blocked()
            box.unlink(b"s/empty")
        box.volume.references.unpin(box.volume.inodes.load_recipe(box.get(b"s/large")).iter_chunks())
        await box.drop_dead()
    assert_clean(tmp_path / "state")


@pytest.mark.parametrize("large", [False, True], ids=["copied", "waited for"])
async def test_freeze_keeps_the_content_of_that_instant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr(fileio, "COPY_MAX_BYTES", 1000)
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        old = noise(1, 200_000)
        inode = await box.write(b"s/f", old)
        frozen = box.volume.sealer.freeze([inode])
        recipes = {}

        async def seal() -> None:
            recipes.update(await box.volume.sealer.seal_frozen(frozen))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.write, b"s/f", b"new", 50)
            nursery.start_soon(box.truncate, b"s/f", 100_000)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(seal)
        assert bytes_of(box, recipes[inode.ino]) == old
        assert await box.read(b"s/f") == (old[:50] + b"new" + old[53:])[:100_000]
        await box.drop_dead()
        assert bytes_of(box, recipes[inode.ino]) == old, "pinned"
        box.volume.references.unpin(recipes[inode.ino].iter_chunks())
        box.unlink(b"s/f")
        await box.drop_dead()
        assert box.volume.reader.totals().plain_bytes == 0
    assert_clean(tmp_path / "state")


async def test_freeze_keeps_the_chunks_that_the_content_has_in_common_with_before(tmp_path: Path) -> None:
    """Between freezing and sealing, a frozen file's cold chunks may lose their last reference."""
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        old = noise(1, 500_000)
        inode = await box.write(b"s/f", old)
        await box.seal()
        await box.write(b"s/f", b"new", 10)
        assert inode.cold
        frozen = box.volume.sealer.freeze([inode])
        await box.truncate(b"s/f", 0)
        await box.drop_dead()
        recipes = await box.volume.sealer.seal_frozen(frozen)
        assert bytes_of(box, recipes[inode.ino]) == old[:10] + b"new" + old[13:]
        box.volume.references.unpin(recipes[inode.ino].iter_chunks())
        await box.drop_dead()
        assert box.volume.reader.totals().plain_bytes == 0
    assert_clean(tmp_path / "state")


async def test_freeze_of_a_file_that_is_removed(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        inode = await box.write(b"s/f", noise(1, 200_000))
        frozen = box.volume.sealer.freeze([inode])
        box.unlink(b"s/f")
        await box.drop_dead()
        recipes = await box.volume.sealer.seal_frozen(frozen)
        assert bytes_of(box, recipes[inode.ino]) == noise(1, 200_000)
        box.volume.references.unpin(recipes[inode.ino].iter_chunks())
    assert_clean(tmp_path / "state")


async def test_seal_frozen_failing_thaws_and_pins_nothing(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        files = [await box.write(b"s/%d" % i, noise(i, 100_000)) for i in range(3)]
        frozen = box.volume.sealer.freeze(files)
        os.truncate(box.volume.hot.path(files[1].ino, files[1].hot_no), 1000)
        with pytest.raises(LocalStoreError, match="could not be sealed"):
            await box.volume.sealer.seal_frozen(frozen)
        os.truncate(box.volume.hot.path(files[1].ino, files[1].hot_no), 100_000)
        assert not any(box.volume.fileio.retirement.is_frozen(item.number) for item in frozen)
        for i in range(3):
            box.unlink(b"s/%d" % i)
        await box.drop_dead()
        assert box.volume.reader.totals().plain_bytes == 0
    assert_clean(tmp_path / "state")


def changed_since(inode: Inode, then_s: float) -> bool:
    """What could not be sealed counts as just changed."""
    return inode.changed_s > then_s


@pytest.mark.parametrize(
    "why", ["it can't be opened", "it can't be read", "its holes are unknown", "its recipe is damaged"]
)
async def test_sealer_seals_the_others_when_one_file_cannot_be_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    sector = BadSector(tmp_path / "site", monkeypatch)
    async with open_box(tmp_path / "state", seal_idle_s=1.0) as box:
        box.mkdir(b"s")
        box.mkdir(b"t")
        bad = await box.write(b"s/f", noise(1, 200_000))
        if why == "its recipe is damaged":
            await box.seal()
            await box.write(b"s/f", b"hot", 100)
            recipe, damaged = box.volume.inodes.load_recipe(bad), Recipe(encode_extent(HOLE, 200_000 - 1))
            box.volume.inodes.store_recipe(bad, damaged)
        path = box.volume.hot.path(bad.ino, bad.hot_no)
        if why == "it can't be opened":
            path.rename(path.with_suffix(".away"))
            path.symlink_to(path)
        if why == "it can't be read":
            sector.strike(path)
        if why == "its holes are unknown":
            sector.strike(path, "lseek")
        others = [await box.write(b"t/%d" % i, noise(2 + i, 1000)) for i in range(3)]
        pid = box.volume.seal_pid
        for _ in range(2):
            box.clock.advance(2)
            await wait_until(functools.partial(changed_since, bad, box.clock.s() - 1))
        assert not any(inode.hot_no for inode in others)
        assert bad.hot_no
        assert box.volume.seal_pid == pid
        assert box.volume.sealer.failed is None
        told = [record.message for record in caplog.records if "can't be sealed" in record.message]
        assert len(told) == 1
        assert f"inode {bad.ino} of session s" in told[0]
        sector.mend()
        if why == "it can't be opened":
            path.unlink()
            path.with_suffix(".away").rename(path)
        if why == "its recipe is damaged":
            box.volume.inodes.store_recipe(bad, recipe)
        content = await box.read(b"s/f")
        await box.seal()
        assert not bad.hot_no
        assert await box.read(b"s/f") == content
    assert_clean(tmp_path / "state")


async def test_seal_process_killed_is_started_again(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", noise(1, 200_000))
        pid = box.volume.seal_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: box.volume.seal_pid is None)
        await box.seal()
        assert box.volume.seal_pid not in (None, pid)
        assert not box.get(b"s/f").hot_no
    assert_clean(tmp_path / "state")


async def test_seal_process_killed_at_work_leaves_a_state_that_is_swept(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        for i in range(8):
            await box.write(b"s/%d" % i, noise(i, 8 << 20))

        async def kill() -> None:
            await trio.sleep(0.15)
            assert box.volume.seal_pid is not None
            os.kill(box.volume.seal_pid, signal.SIGKILL)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            with pytest.raises(LocalStoreError):
                await box.seal()
        for i in range(8):
            box.unlink(b"s/%d" % i)
    async with open_box(tmp_path / "state") as box:
        assert not box.volume.state.was_clean, "nobody knows what the process had stored"
        await assert_swept(box)
    assert_clean(tmp_path / "state")


async def test_seal_that_fails_half_way_leaves_a_state_that_is_swept(tmp_path: Path) -> None:
    """What was written before the failure is there for good, and nobody was told of it."""
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", noise(1, 32 << 20))
        assert box.volume.seal_pid is not None
        resource.prlimit(box.volume.seal_pid, resource.RLIMIT_FSIZE, (12 << 20, 12 << 20))
        with pytest.raises(LocalStoreError):
            await box.seal()
        box.unlink(b"s/f")
        await box.commit()
    async with open_box(tmp_path / "state") as box:
        assert not box.volume.state.was_clean
        assert box.volume.reader.totals().plain_bytes > 0
        await assert_swept(box)
    assert_clean(tmp_path / "state")


async def test_seal_process_that_failed_is_not_asked_again(tmp_path: Path) -> None:
    """It answers, and needs a moment to end."""
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        for i in range(5):
            await box.write(b"s/f", noise(i, 1000))
            with pytest.raises(LocalStoreError, match="cut short"):
                await box.volume.sealer.store_frames([(b"", [])], [])
            await box.seal()
            assert not box.get(b"s/f").hot_no


async def test_drop_that_fails_is_tried_again(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", noise(1, 200_000))
        await box.seal()
        box.unlink(b"s/f")
        await box.commit()
        pid = box.volume.seal_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with trio.move_on_after(0.1):
            await box.volume.sealer.drop_dead()
        await box.drop_dead()
        assert box.volume.reader.totals().plain_bytes == 0
    assert_clean(tmp_path / "state")


async def test_sealer_seals_what_is_idle_by_itself(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state", seal_idle_s=1.0) as box:
        box.mkdir(b"s")
        inode = await box.write(b"s/f", noise(1, 10_000))
        box.clock.advance(2)
        await wait_until(lambda: not inode.hot_no)
    assert_clean(tmp_path / "state")


class Load:
    """A count of requests that grows with each question, by as many as it is told."""

    def __init__(self) -> None:
        self.total = 0
        self.each = QUIET_REQUESTS + 1

    def __call__(self) -> int:
        self.total += self.each
        return self.total


async def test_sealer_waits_while_many_requests_come(tmp_path: Path) -> None:
    load = Load()
    async with open_box(tmp_path / "state", seal_idle_s=10.0, requests=load) as box:
        box.mkdir(b"s")
        inode = await box.write(b"s/f", noise(1, 10_000))
        for _ in range(12):
            box.clock.advance(1)
            await trio.sleep(TICK_S / 4)
        assert inode.hot_no, "it was sealed in the middle of the load"
        load.each = 0
        box.clock.advance(QUIET_S)
        await wait_until(lambda: not inode.hot_no)
    assert_clean(tmp_path / "state")


@pytest.mark.parametrize("why", ["it has waited for long", "room gets short"])
async def test_sealer_does_not_wait_for_ever(tmp_path: Path, why: str) -> None:
    bound_bytes = 100_000 if why == "room gets short" else 1 << 40
    async with open_box(tmp_path / "state", seal_idle_s=10.0, requests=Load(), bound_bytes=bound_bytes) as box:
        box.mkdir(b"s")
        inode = await box.write(b"s/f", noise(1, 50_000))
        box.clock.advance(11 if why == "room gets short" else 10 * (1 + PATIENCE))
        await wait_until(lambda: not inode.hot_no)
    assert_clean(tmp_path / "state")


async def test_seal_process_whose_start_was_cancelled_serves_the_next_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        inode = await box.write(b"s/f", b"content")
        assert box.volume.seal_pid is not None
        os.kill(box.volume.seal_pid, signal.SIGKILL)
        await wait_until(lambda: box.volume.seal_pid is None)
        with trio.CancelScope() as scope, monkeypatch.context() as patch:

            def start_and_cancel(module: str, **options: Any) -> Child:
                process = Child(module, **options)
                scope.cancel()
                return process

            patch.setattr(sealclient, "Child", start_and_cancel)
            await box.seal()
        assert scope.cancelled_caught
        await box.seal()
        assert inode.hot_no == 0


@pytest.mark.parametrize("starts", [False, True])
async def test_sealing_waits_while_the_seal_process_can_not_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: bool
) -> None:
    """Or while what starts takes no request."""
    monkeypatch.setattr(sealing, "TICK_S", 0.01)
    monkeypatch.setattr(sealing, "RETRY_S", 0.01)

    def refuse(module: str, **options: Any) -> Child:
        if not starts:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        process = Child("sessfs.version", **options)
        process.stdin.close()
        return process

    async with open_box(tmp_path / "state", seal_idle_s=1) as box:
        box.mkdir(b"s")
        inode = await box.write(b"s/f", b"content")
        assert box.volume.seal_pid is not None
        os.kill(box.volume.seal_pid, signal.SIGKILL)
        await wait_until(lambda: box.volume.seal_pid is None)
        with monkeypatch.context() as patch:
            patch.setattr(sealclient, "Child", refuse)
            box.clock.advance(100)
            await wait_until(lambda: box.volume.sealer.failed is not None)
            with pytest.raises(LocalStoreError):
                await box.seal()
        await wait_until(lambda: inode.hot_no == 0 and box.volume.sealer.failed is None)
        assert await box.contents() == {b"s/f": b"content"}
