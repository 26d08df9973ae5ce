"""A volume as a whole: opened, closed, killed, opened again."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import trio

from sessfs.vfs import sealing, space, volume
from tests.support.volumes import assert_clean, open_box, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


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

    monkeypatch.setattr(volume, "RESTART_S", 0.001)
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
