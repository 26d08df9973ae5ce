"""After a kill or a power cut: every way in which hot files and inodes can disagree."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import LocalStoreError
from sessfs.sync.fsck import check_state
from sessfs.vfs import recovery, volume
from tests.support.volumes import Clock, assert_clean, open_box, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.types import Ino
    from tests.support.volumes import Box

BODY = bytes(range(256)) * 2000
MARK = b"written after the seal"


async def make(path: Path) -> tuple[Path, int]:
    """A killed state with one file, cold but for an edge, and the number of its hot file."""
    async with open_box(path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", BODY)
        await box.seal()
        await box.write(b"s/f", MARK, 1000)
        await box.write(b"s/other", b"other")
        await box.commit()
        inode = box.get(b"s/f")
        assert inode.cold
        return box.copy_state(path / "left"), inode.hot_no


def hot_path(left: Path, number: int) -> Path:
    return next(entry for entry in (left / "hot").iterdir() if entry.name.endswith(f".{number:x}"))


EXPECTED = BODY[:1000] + MARK + BODY[1000 + len(MARK) :]


async def check(left: Path, content: bytes) -> None:
    """The file reads as *content*, and goes on to work; nothing is left over once it is gone."""
    async with open_box(left) as box:
        assert await box.read(b"s/f") == content
        assert await box.read(b"s/other") == b"other"
        counters = box.volume.inodes.session_counters(box.get(b"s").ino)
        assert (counters.files, counters.logical_bytes) == (2, len(content) + 5)
    assert_clean(left)
    async with open_box(left) as box:
        await box.write(b"s/f", b"tail", len(content) + 1000)
        await box.seal()
        assert await box.read(b"s/f") == content + bytes(1000) + b"tail"
    assert_clean(left)
    async with open_box(left) as box:
        box.unlink(b"s/f")
        box.unlink(b"s/other")
        await box.drop_dead()
        assert box.volume.reader.totals().plain_bytes == 0
    assert_clean(left)


async def test_recovery_of_hot_files_as_they_were(tmp_path: Path) -> None:
    left, _ = await make(tmp_path)
    await check(left, EXPECTED)


@pytest.mark.parametrize("size", [0, 1, 999, 1005, 40_000, 200_000, len(BODY) - 1])
async def test_recovery_of_a_shorter_hot_file_cuts_the_file(tmp_path: Path, size: int) -> None:
    """As left by a truncate, which brought the divided extent into the hot file before."""
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", BODY)
        await box.seal()
        await box.write(b"s/f", MARK, 1000)
        await box.write(b"s/other", b"other")
        await box.commit()
        inode = box.get(b"s/f")
        number = inode.hot_no
        await box.truncate(b"s/f", max(size, 1))
        assert inode.hot_no == number
        left = box.copy_state(tmp_path / "left")
    if size == 0:
        os.truncate(hot_path(left, number), 0)
    await check(left, EXPECTED[:size])


async def test_recovery_of_a_longer_hot_file_takes_what_was_written(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", BODY)
        await box.seal()
        await box.write(b"s/f", MARK, 1000)
        await box.write(b"s/other", b"other")
        await box.commit()
        await box.write(b"s/f", b"late", len(BODY) + 50)
        left = box.copy_state(tmp_path / "left")
    await check(left, EXPECTED + bytes(50) + b"late")


async def test_recovery_of_a_missing_hot_file_keeps_the_size(tmp_path: Path) -> None:
    left, number = await make(tmp_path)
    hot_path(left, number).unlink()
    async with open_box(left) as box:
        content = await box.read(b"s/f")
        assert len(content) == len(BODY)
        end = box.get(b"s/f").cold[0][0]
        assert content == bytes(end) + BODY[end:]
    assert_clean(left)


async def test_recovery_deletes_hot_files_that_nothing_names(tmp_path: Path) -> None:
    left, number = await make(tmp_path)
    (left / "hot" / "999.9999").write_bytes(b"stray")
    (left / "hot" / f"999.{number:x}").write_bytes(b"stray")
    await check(left, EXPECTED)


async def test_recovery_frees_what_was_removed_while_open(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        inode = await box.write(b"s/f", BODY)
        await box.seal()
        inode.opens += 1
        box.unlink(b"s/f")
        await box.commit()
        left = box.copy_state(tmp_path / "left")
        inode.opens -= 1
        box.volume.namespace.reclaim(inode)
    async with open_box(left) as box:
        assert box.volume.inodes.find(inode.ino) is None
        await box.drop_dead()
        assert box.volume.reader.totals().plain_bytes == 0
    assert_clean(left)


async def test_recovery_before_the_first_commit(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", b"never committed")
        left = box.copy_state(tmp_path / "left")
    async with open_box(left) as box:
        assert box.walk() == []
        box.mkdir(b"s")
        await box.write(b"s/f", b"again")
        assert await box.read(b"s/f") == b"again"
    assert_clean(left)


async def test_recovery_gives_no_number_twice(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.commit()
        seen: set[Ino] = {box.create(b"s/%d" % i).ino for i in range(5000)}
        await box.commit()
        left = box.copy_state(tmp_path / "left")
    async with open_box(left) as box:
        assert box.create(b"s/new").ino not in seen
    assert_clean(left)


async def _sealed_uncommitted(box: Box) -> None:
    box.mkdir(b"s")
    await box.write(b"s/f", BODY)
    await box.commit()
    await box.seal()


async def test_recovery_sweeps_chunks_that_no_committed_recipe_names(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        await _sealed_uncommitted(box)
        left = box.copy_state(tmp_path / "left")
    async with open_box(left) as box:
        assert await box.read(b"s/f") == BODY
        box.unlink(b"s/f")
    async with open_box(left) as box:
        await box.drop_dead()
    async with open_box(left) as box:
        assert box.volume.reader.totals().plain_bytes == 0
    assert_clean(left)


async def leave_orphans(path: Path) -> Path:
    """A state as a kill leaves it that came between a seal and the commit of its recipes: nothing names its chunks."""
    async with open_box(path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/kept", BODY)
        await box.seal()
        await box.commit()
        for number in range(20):
            await box.write(b"s/%d" % number, bytes([number]) * 3000 + BODY[number:])
        await box.commit()
        await box.seal()
        left = box.copy_state(path / "left")
        assert len(list(box.volume.reader.iter_ids())) > 20
    return left


async def remove_all(box: Box) -> None:
    """What was sealed without being named is not sealed again to the same chunks."""
    for number in range(20):
        box.unlink(b"s/%d" % number)


async def test_search_for_unnamed_chunks_goes_on_over_clean_unmounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mount is too short for it, until one is long enough. fsck says that it goes on, and finds no damage."""
    left = await leave_orphans(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(recovery, "SWEEP_SLICE", 1)
        patch.setattr(recovery, "SWEEP_PAUSE_S", 1000)
        patch.setattr(volume, "CLOSE_DROP_S", 0)
        for turn in range(3):
            async with open_box(left) as box:
                assert box.volume.state.was_clean == (turn > 0)
                assert box.volume.state.owes_sweep
                if not turn:
                    await remove_all(box)
                    await box.commit()
            report = check_state(left)
            assert report.clean, report.problems
            assert ["next mount" in note for note in report.notes] == [True]
    async with open_box(left) as box:
        assert box.volume.state.owes_sweep
        await wait_until(lambda: not box.volume._sweep.is_owed)
        await box.drop_dead()
        assert set(box.volume.reader.iter_ids()) == set(box.volume.inodes.load_recipe(box.get(b"s/kept")).iter_chunks())
    assert_clean(left)
    async with open_box(left) as box:
        assert not box.volume.state.owes_sweep
        assert await box.read(b"s/kept") == BODY


async def test_quick_unmount_after_a_crash_ends_the_search_if_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = await leave_orphans(tmp_path)
    monkeypatch.setattr(recovery, "SWEEP_SLICE", 1)
    monkeypatch.setattr(recovery, "SWEEP_PAUSE_S", 1000)
    async with open_box(left) as box:
        await remove_all(box)
    assert_clean(left)


async def test_state_whose_recovery_failed_is_not_marked_as_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = await leave_orphans(tmp_path)

    def fail(*_: object) -> None:
        raise LocalStoreError("the disk does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(volume, "reconcile_hot_files", fail)
        with pytest.raises(LocalStoreError, match="does not answer"):
            async with open_box(left):
                pass
    async with open_box(left) as box:
        assert not box.volume.state.was_clean
        await remove_all(box)
    assert_clean(left)


async def test_recovery_takes_over_a_later_mtime_of_the_hot_file_and_no_other(tmp_path: Path) -> None:
    left, number = await make(tmp_path)
    async with open_box(left) as box:
        inode = box.get(b"s/f")
        mtime_ns, ctime_ns = inode.mtime_ns, inode.ctime_ns
    (left / "clean").unlink()
    for found, expected in (
        (ctime_ns - 1, mtime_ns),
        (ctime_ns, mtime_ns),
        (ctime_ns + 500, ctime_ns + 500),
        # Such a time was set, and is in the record if it was not lost with the power.
        (ctime_ns + 10**15, mtime_ns),
    ):
        copy = tmp_path / f"copy{found}"
        shutil.copytree(left, copy)
        os.utime(hot_path(copy, number), ns=(found, found))
        clock = Clock()
        clock.advance(10)
        async with open_box(copy, clock=clock) as box:
            assert box.get(b"s/f").mtime_ns == expected
            assert await box.read(b"s/f") == EXPECTED
