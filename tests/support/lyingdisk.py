"""A disk with a volatile write cache, for cutting its power: `python -m tests.support.lyingdisk MOUNTPOINT DIR`.

DIR holds `image`, a filesystem image. The program serves it as MOUNTPOINT/disk, for a loop device. As a real disk
may, it answers a write when the bytes are in its cache, and loses of the cache what it likes when the power goes;
only what was written before a flush (which a loop device sends as fsync) has answered is safe.

On SIGUSR1 the power goes: `DIR/cut` becomes the image that is left, that is, everything flushed, and of each 4 KiB
piece written since then perhaps some version. `DIR/cut.json` appears then, with the CLOCK_MONOTONIC time of the cut.
Every later request fails with EIO. The random choices come from the seed in `DIR/seed`.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import stat
import sys
import time
from pathlib import Path

import pyfuse3
import trio

DISK_INO = 2
PIECE_BYTES = 4096


class Disk:
    """The medium (what is safe), the cache (what is not yet), and the view that reads get (both)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.size_bytes = (folder / "image").stat().st_size
        self._view = os.open(folder / "image", os.O_RDWR)
        shutil.copyfile(folder / "image", folder / "medium")
        self._medium = os.open(folder / "medium", os.O_RDWR)
        self._cache: list[tuple[int, bytes]] = []
        self._random = random.Random(int((folder / "seed").read_text()))
        self.is_dead = False
        self.n_flushes = 0

    def read(self, offset: int, length: int) -> bytes:
        """Return what was last written there."""
        return os.pread(self._view, length, offset)

    def write(self, offset: int, content: bytes) -> None:
        """Take *content* into the cache."""
        os.pwrite(self._view, content, offset)
        self._cache.append((offset, content))

    def flush(self) -> None:
        """Make all that was written safe."""
        self.n_flushes += 1
        for offset, content in self._cache:
            os.pwrite(self._medium, content, offset)
        self._cache.clear()

    def cut_power(self) -> None:
        """Lose part of the cache, write down what is left, and answer nothing any more."""
        moment_s = time.monotonic()
        self.is_dead = True
        kept_share = self._random.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        kept = pieces = 0
        for offset, content in self._cache:
            for start in range(0, len(content), PIECE_BYTES):
                pieces += 1
                if self._random.random() < kept_share:
                    kept += 1
                    os.pwrite(self._medium, content[start : start + PIECE_BYTES], offset + start)
        os.rename(self._folder / "medium", self._folder / "cut")
        report = {"monotonic_s": moment_s, "pieces": pieces, "kept": kept, "flushes": self.n_flushes}
        (self._folder / "cut.json.new").write_text(json.dumps(report))
        os.rename(self._folder / "cut.json.new", self._folder / "cut.json")


# Its handlers have no types, and say so: they would be pyfuse3's own, which repeat in each signature.
class Operations(pyfuse3.Operations):
    """A root directory with one file, `disk`."""

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self._disk = disk

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(inode)
        entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o600 if inode == DISK_INO else stat.S_IFDIR | 0o700)
        entry.st_size = self._disk.size_bytes if inode == DISK_INO else 0
        entry.st_nlink = 1
        entry.attr_timeout = entry.entry_timeout = 300
        return entry

    async def lookup(self, parent_inode, name, ctx):  # type: ignore[no-untyped-def]
        """Find `disk`."""
        if name != b"disk":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(DISK_INO)

    async def getattr(self, inode, ctx):  # type: ignore[no-untyped-def]
        """Tell the size."""
        return self._attributes(inode)

    async def open(self, inode, flags, ctx):  # type: ignore[no-untyped-def]
        """Open without the kernel's page cache: it must see each write at once."""
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=True)

    async def read(self, fh, off, size):  # type: ignore[no-untyped-def]
        """Read a range."""
        self._refuse_if_dead()
        return self._disk.read(off, size)

    async def write(self, fh, off, buf):  # type: ignore[no-untyped-def]
        """Write a range."""
        self._refuse_if_dead()
        self._disk.write(off, bytes(buf))
        return len(buf)

    async def fsync(self, fh, datasync):  # type: ignore[no-untyped-def]
        """Flush the cache."""
        self._refuse_if_dead()
        self._disk.flush()

    async def flush(self, fh):  # type: ignore[no-untyped-def]
        """Closing flushes nothing."""

    def _refuse_if_dead(self) -> None:
        if self._disk.is_dead:
            raise pyfuse3.FUSEError(errno.EIO)


async def _serve(disk: Disk) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_listen, disk)
        await pyfuse3.main(max_tasks=4)
        nursery.cancel_scope.cancel()


async def _listen(disk: Disk) -> None:
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async for _ in signals:
            disk.cut_power()


def main() -> None:
    """Serve until unmounted."""
    mountpoint, folder = sys.argv[1], Path(sys.argv[2])
    disk = Disk(folder)
    options = set(pyfuse3.default_options) | {"fsname=lyingdisk", "subtype=lyingdisk"}
    options.discard("default_permissions")
    pyfuse3.init(Operations(disk), mountpoint, options)
    try:
        trio.run(_serve, disk)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
