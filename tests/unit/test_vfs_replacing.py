"""Content in the place of other content: what a commit asks the kernel for, and what it flushes first."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from sessfs.vfs.renames import RENAME_EXCHANGE
from tests.support.volumes import open_box

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sessfs.types import Ino
    from tests.support.volumes import Box


class Kernel:
    """Holds what was written to files that are open, until it is asked for it."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._held: dict[Ino, bytes] = {}
        self.asked: list[Ino] = []
        box.volume.committer.unwritten.write_back = self.write_back

    def write(self, path: bytes, content: bytes) -> Ino:
        """Open a file, made if need be, and write to it."""
        inode = self._box.find(path) or self._box.create(path)
        self._box.volume.inodes.note_open(inode)
        self._held[inode.ino] = content
        return inode.ino

    async def write_back(self, inodes: Sequence[Ino]) -> None:
        """See Committer."""
        for ino in inodes:
            self.asked.append(ino)
            await trio.lowlevel.checkpoint()
            inode = self._box.volume.namespace.get(ino)
            await self._box.volume.fileio.write(inode, 0, self._held.pop(ino, b""), cached=True)


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Inode numbers, of the disk, of the files that were flushed."""
    found: list[int] = []
    fdatasync = os.fdatasync

    def note(fd: int) -> None:
        found.append(os.fstat(fd).st_ino)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", note)
    return found


def _was_flushed(box: Box, path: bytes, flushed: list[int]) -> bool:
    inode = box.get(path)
    return os.stat(box.volume.hot.path(inode.ino, inode.hot_no)).st_ino in flushed


@pytest.mark.parametrize("how", ["rename", "exchange", "chain", "link"])
async def test_commit_has_the_kernel_hand_over_what_replaces_and_flushes_it_first(
    tmp_path: Path, flushed: list[int], how: str
) -> None:
    async with open_box(tmp_path / "state") as box:
        kernel = Kernel(box)
        box.mkdir(b"s")
        await box.write(b"s/f", b"old")
        await box.commit()
        ino = kernel.write(b"s/new", b"new content")
        if how == "chain":
            box.rename(b"s/new", b"s/between")
            box.rename(b"s/between", b"s/f")
        elif how == "link":
            box.unlink(b"s/f")
            box.link(b"s/new", b"s/f")
            box.volume.fileio.stand_in(box.get(b"s/f"))
        else:
            box.rename(b"s/new", b"s/f", RENAME_EXCHANGE if how == "exchange" else 0)
        await box.volume.committer.commit()
        assert kernel.asked == [ino]
        left = box.copy_state(tmp_path / "left")
        assert _was_flushed(box, b"s/f", flushed)
        await box.volume.committer.commit()
        assert kernel.asked == [ino], "once is enough"
    async with open_box(left) as box:
        assert await box.read(b"s/f") == b"new content"


async def test_commit_asks_nothing_of_what_was_closed_or_replaces_nothing(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        kernel = Kernel(box)
        box.mkdir(b"s")
        await box.write(b"s/f", b"old")
        await box.write(b"s/closed", b"new")
        box.rename(b"s/closed", b"s/f")
        kernel.write(b"s/open", b"new")
        box.rename(b"s/open", b"s/no one's")
        await box.volume.committer.commit()
        assert kernel.asked == []


async def test_replacement_while_the_kernel_is_asked_is_asked_for_too(tmp_path: Path) -> None:
    """The batch is cut after that, and has the second rename as well."""
    async with open_box(tmp_path / "state") as box:
        kernel = Kernel(box)
        box.mkdir(b"s")
        for name in (b"s/a", b"s/b"):
            await box.write(name, b"old")
        await box.commit()
        first = kernel.write(b"s/new", b"new a")
        second = kernel.write(b"s/newer", b"new b")
        write_back = kernel.write_back

        async def slow(inodes: Sequence[Ino]) -> None:
            if first in inodes:
                box.rename(b"s/newer", b"s/b")
            await write_back(inodes)

        box.volume.committer.unwritten.write_back = slow
        box.rename(b"s/new", b"s/a")
        await box.volume.committer.commit()
        assert kernel.asked == [first, second]
        left = box.copy_state(tmp_path / "left")
    async with open_box(left) as box:
        assert [await box.read(name) for name in (b"s/a", b"s/b")] == [b"new a", b"new b"]


async def test_content_after_a_truncate_to_nothing_is_flushed_first_once_it_is_closed(
    tmp_path: Path, flushed: list[int]
) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", b"old")
        await box.commit()
        await box.truncate(b"s/f", 0)
        await box.volume.committer.commit()
        await box.write(b"s/f", b"new")
        box.volume.fileio.note_handed_over(box.get(b"s/f"))
        await box.volume.committer.commit()
        assert _was_flushed(box, b"s/f", flushed)
        flushed.clear()
        await box.write(b"s/f", b"newer")
        box.volume.fileio.note_handed_over(box.get(b"s/f"))
        await box.volume.committer.commit()
        assert not _was_flushed(box, b"s/f", flushed), "it stands in for nothing any more"


@pytest.mark.parametrize("data_only", [True, False])
async def test_sync_flushes_times_unless_only_data_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flushed: list[int], data_only: bool
) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        inode = await box.write(b"s/f", b"old")
        await box.commit()
        await box.write(b"s/f", b"new")
        whole: list[int] = []
        fsync = os.fsync

        def note(fd: int) -> None:
            whole.append(fd)
            fsync(fd)

        monkeypatch.setattr(os, "fsync", note)
        committer = box.volume.committer
        assert committer.needs_sync(inode, data_only=True)
        await committer.sync_file(inode, data_only=data_only)
        assert bool(whole) != data_only
        assert not committer.needs_sync(inode, data_only=True)
        # Times that a flush of the data alone left behind are still to be flushed.
        assert committer.needs_sync(inode, data_only=False) == data_only
        await committer.sync_file(inode, data_only=False)
        assert len(whole) == 1
        assert box.volume.hot.mtime_ns(inode.ino, inode.hot_no) == inode.mtime_ns
