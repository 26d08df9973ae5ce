"""A volume as a whole: opened, closed, killed, opened again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.volumes import assert_clean, open_box

if TYPE_CHECKING:
    from pathlib import Path


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
