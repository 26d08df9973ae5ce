"""A volume as a whole: opened, closed, killed, opened again."""

from __future__ import annotations

import errno
import os
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from sessfs.local import inodes
from sessfs.vfs import background, sealing, space
from tests.support.volumes import assert_clean, open_box, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sessfs.local.inodes import Inode
    from sessfs.types import Ino
    from tests.support.volumes import Box


async def test_volume_closed_keeps_everything(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with open_box(state) as box:
        box.mkdir(b"s")
        await box.write(b"s/sealed", b"x" * 300_000)
        await box.seal()
        await box.write(b"s/hot", b"y" * 1000)
    assert_clean(state)
    async with open_box(state) as box:
        assert box.volume.state.was_clean
        assert await box.contents() == {b"s/sealed": b"x" * 300_000, b"s/hot": b"y" * 1000}
    assert_clean(state)


async def test_session_with_more_bytes_than_its_counter_holds_is_kept(tmp_path: Path) -> None:
    """Sparse files take no room, so there can be any number of the largest."""
    largest = (1 << 63) - 1
    async with open_box(tmp_path / "state") as box:
        session = box.mkdir(b"s")
        for _ in range(3):
            box.volume.inodes.account(session.ino, 1, largest, 0)
        await box.commit()
    async with open_box(tmp_path / "state") as box:
        counters = box.volume.inodes.session_counters(session.ino)
        assert (counters.files, counters.logical_bytes) == (3, (1 << 64) - 1)
        box.volume.inodes.account(session.ino, -3, -3 * largest, 0)
        await box.commit()
    async with open_box(tmp_path / "state") as box:
        assert box.volume.inodes.session_counters(session.ino).logical_bytes == 0


async def test_space_keeps_its_last_figures_while_the_disk_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(space, "TICK_S", 0.001)
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", b"x" * 100_000)
        known = box.volume.space.room()
        used = box.volume.space.used_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(box.volume.hot, "allocated_bytes", refuse)
            patch.setattr(os, "statvfs", refuse)
            await trio.sleep(0.05)
            assert box.volume.space.used_bytes() == used > 0
            assert box.volume.space.room() == known
        assert [record.message for record in caplog.records if "last figure stands" in record.message] == [
            "the room on the disk can't be looked at, the last figure stands: [Errno 5] Input/output error",
            "what hot files take can't be looked at, the last figure stands: [Errno 5] Input/output error",
        ]
    assert_clean(tmp_path / "state")


async def test_bug_in_background_work_does_not_end_the_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = 0

    async def fail() -> None:
        nonlocal failures
        failures += 1
        raise KeyError("nobody has thought of this")

    monkeypatch.setattr(background, "RESTART_S", 0.001)
    monkeypatch.setattr(sealing, "TICK_S", 0.001)
    async with open_box(tmp_path / "state", seal_idle_s=1) as box:
        with monkeypatch.context() as patch:
            patch.setattr(box.volume.sealer, "drop_dead", fail)
            await wait_until(lambda: failures >= 3)
        box.mkdir(b"s")
        inode = await box.write(b"s/f", b"content")
        box.clock.advance(100)
        await wait_until(lambda: inode.hot_no == 0)
    assert_clean(tmp_path / "state")


async def test_volume_killed_after_a_commit_keeps_what_was_committed(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/kept", b"x" * 100_000)
        await box.seal()
        await box.write(b"s/kept", b"new", 50_000)
        await box.commit()
        await box.write(b"s/late", b"not committed")
        left = box.copy_state(tmp_path / "left")
    async with open_box(left) as box:
        assert not box.volume.state.was_clean
        content = await box.contents()
        assert content == {b"s/kept": b"x" * 50_000 + b"new" + b"x" * 49_997}
    assert_clean(left)


@asynccontextmanager
async def open_without_cache(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Box, list[Ino]]]:
    """A box that keeps hardly an inode in memory, and the inodes of `s`, of `s/other`, a directory, and of `s/f`, which
    has content.
    """
    async with open_box(path) as box:
        made = [box.mkdir(b"s").ino, box.mkdir(b"s/other").ino, (await box.write(b"s/f", b"x" * 1000)).ino]
        await box.seal()
    monkeypatch.setattr(inodes, "MAX_CLEAN_INODES", 1)
    async with open_box(path) as box:
        yield box, made
    assert_clean(path)


async def test_volume_link_of_a_file_that_leaves_the_cache_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking at the directory of the new name is what makes the file leave."""
    async with open_without_cache(tmp_path / "state", monkeypatch) as (box, (session, other, file)):
        names = box.volume.namespace
        names.link(file, other, b"second")
        assert names.get(file).nlink == 2
        names.unlink(session, b"f")
        await box.commit()
        names.get(session)
        assert await box.read(b"s/other/second") == b"x" * 1000


async def test_volume_inode_that_somebody_holds_is_one_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_without_cache(tmp_path / "state", monkeypatch) as (box, (session, other, file)):
        names = box.volume.namespace
        held = names.get(file)
        names.get(session)
        names.get(other)
        assert names.get(file) is held


async def test_volume_open_file_is_known_to_be_open_though_it_had_left_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking at the file and noting that it is open, its session may be looked at, for the limits."""
    async with open_without_cache(tmp_path / "state", monkeypatch) as (box, (session, other, file)):
        names = box.volume.namespace
        opened = names.get(file)
        names.get(session)
        names.get(other)
        box.volume.inodes.note_open(opened)
        del opened
        names.get(session)
        names.get(other)
        box.unlink(b"s/f")
        assert await box.volume.fileio.read(names.get(file), 0, 1000) == b"x" * 1000
        box.volume.inodes.note_closed(names.get(file))
        names.reclaim(names.get(file))


@pytest.mark.parametrize("what", ["made", "written and sealed"])
async def test_volume_cache_of_inodes_is_bounded_while_files_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(inodes, "MAX_CLEAN_INODES", 10)
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        made: weakref.WeakSet[Inode] = weakref.WeakSet()
        for i in range(100):
            if what == "made":
                made.add(box.create(b"s/%d" % i))
            else:
                made.add(await box.write(b"s/%d" % i, b"x"))
        await box.commit()
        if what != "made":
            assert len(made) == 100, "they are hot"
            await box.seal()
            await box.commit()
        assert len(made) <= 10
    assert_clean(tmp_path / "state")
