"""A disk that refuses writes for a while, below an ext4 with its journal: what was told to be durable is."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import LocalStoreError
from tests.support.posix import MNT_DETACH, umount2
from tests.support.powercut import run
from tests.support.volumes import open_box

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IMAGE_BYTES = 200 << 20
POOL_BYTES = 60 << 20


class ThinDisk:
    """An ext4 at `path` on a disk that takes room for each block when it is first written, from a pool that can be
    full: then the write fails. Blocks that were written before stay writable, the journal's among them.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._pool, self._balloon = base / "pool", base / "pool" / "balloon"
        self.path = base / "ext4"

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """Make it, for as long as the context lasts."""
        self._pool.mkdir()
        self.path.mkdir()
        run(["mount", "-t", "tmpfs", "-o", f"size={POOL_BYTES}", "tmpfs", str(self._pool)])
        try:
            image = self._pool / "image"
            image.touch()
            os.truncate(image, IMAGE_BYTES)
            device = run(["losetup", "--find", "--show", str(image)])
            try:
                # On the device, so that the zeros of journal and tables are written, not left out.
                run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", device])
                with _mounted(device, self.path):
                    yield
            finally:
                run(["losetup", "--detach", device])
        finally:
            umount2(self._pool, MNT_DETACH)

    def fill(self) -> None:
        """From now on blocks that were never written before can't be."""
        fd = os.open(self._balloon, os.O_WRONLY | os.O_CREAT)
        try:
            with contextlib.suppress(OSError):
                while os.write(fd, bytes(4096)):
                    pass
        finally:
            os.close(fd)

    def heal(self) -> None:
        """There is room again."""
        self._balloon.unlink()

    @contextlib.contextmanager
    def after_power_loss(self) -> Iterator[Path]:
        """What a cut of the power at this instant would leave, mounted."""
        image, left = self._base / "image", self._base / "left"
        left.mkdir()
        shutil.copyfile(self._pool / "image", image)
        with _mounted(image, left, "-o", "loop"):
            yield left


@contextlib.contextmanager
def _mounted(device: Path | str, path: Path, *options: str) -> Iterator[None]:
    run(["mount", "-t", "ext4", *options, str(device), str(path)])
    try:
        yield
    finally:
        umount2(path, MNT_DETACH)


def test_disk_loses_what_is_flushed_again_after_a_failure(tmp_path: Path) -> None:
    """Prove the disk: the second fdatasync succeeds, and so does one after all was written again in place."""
    disk = ThinDisk(tmp_path)
    content = os.urandom(1 << 20)
    with disk.mounted():
        fd = os.open(disk.path / "f", os.O_RDWR | os.O_CREAT)
        os.fsync(fd)
        disk.fill()
        os.write(fd, content)
        with pytest.raises(OSError, match=r"rror|pace"):
            os.fdatasync(fd)
        disk.heal()
        os.fdatasync(fd)
        assert os.pread(fd, len(content), 0) == content
        os.pwrite(fd, content, 0)
        os.fdatasync(fd)
        os.close(fd)
        with disk.after_power_loss() as left:
            assert (left / "f").read_bytes() != content


@pytest.mark.parametrize("replaces", [False, True])
async def test_fsync_that_succeeds_after_one_that_failed_has_written_the_file(tmp_path: Path, replaces: bool) -> None:
    disk = ThinDisk(tmp_path)
    content = os.urandom(3 << 20)
    with disk.mounted():
        async with open_box(disk.path / "state") as box:
            committer = box.volume.committer
            box.mkdir(b"s")
            inode = await box.write(b"s/f", b"x" * 100_000)
            if replaces:
                await box.seal()
            await box.commit()
            for number in range(200):
                box.create(b"s/%d" % number)  # so that the database has its room
            await box.commit()
            os.sync()
            disk.fill()
            await box.write(b"s/f", content)
            for _ in range(2):
                with pytest.raises(LocalStoreError):
                    await committer.sync_file(inode)
            disk.heal()
            await committer.sync_file(inode)
            with disk.after_power_loss() as left:
                state = tmp_path / "copied"
                shutil.copytree(left / "state", state)
            await committer.commit()
        async with open_box(state) as box:
            assert await box.read(b"s/f") == content
