"""Listing a directory in parts, by many handles, while names come and go: what stays is listed exactly once.

In this process with a model of what Linux keeps of a listing, and on a mount with what it does keep. Each walk takes
SESSFS_TEST_LISTING_STEPS steps, in `make soak` a million.
"""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING

import pytest

from sessfs.local import listings
from sessfs.mount.directories import Directories
from sessfs.mount.fusewire import pack_entry
from tests.support.kernelcopy import KernelCopy, KernelHandle
from tests.support.listings import Entry, Machine, getdents
from tests.support.volumes import open_box

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.local.inodes import Inode
    from sessfs.types import Ino
    from tests.support.mounted import Mounted
    from tests.support.volumes import Box

STEPS = int(os.environ.get("SESSFS_TEST_LISTING_STEPS", "24000"))
RESTART_EVERY = 2_000


class BoxDirectory:
    """A directory of a volume in this process."""

    def __init__(self, box: Box, random: Random) -> None:
        self.random = random
        self.adopt(box, ino=box.mkdir(b"s").ino)

    def adopt(self, box: Box, ino: Ino) -> None:
        self.box = box
        names = box.volume.namespace

        def found(inode: Inode) -> bytes:
            return pack_entry(inode, box.volume.fileio.allocated_bytes(inode), 1, 1)

        directories = Directories(box.volume.inodes, found, lambda each: names.get(each).parent)
        self.kernel = KernelCopy(directories, ino, self.random)

    def make(self, name: bytes) -> None:
        self.box.create(b"s/" + name)
        self.kernel.changes += 1

    def unlink(self, name: bytes) -> None:
        self.box.unlink(b"s/" + name)
        self.kernel.changes += 1

    def rename(self, old: bytes, new: bytes) -> None:
        self.box.rename(b"s/" + old, b"s/" + new)
        self.kernel.changes += 1

    def link(self, old: bytes, new: bytes) -> None:
        self.box.link(b"s/" + old, b"s/" + new)
        self.kernel.changes += 1

    def open(self) -> KernelHandle:
        return self.kernel.open()

    def drop(self) -> None:
        self.kernel.drop()

    def restart(self) -> None:
        """Another volume is adopted by then."""


@pytest.mark.parametrize(("n_names", "seed"), [(4, 1), (40, 2), (400, 3)])
async def test_what_stays_is_listed_once_in_this_process(tmp_path: Path, n_names: int, seed: int) -> None:
    random = Random(seed)
    machine: Machine | None = None
    steps = STEPS // 3
    while steps > 0:
        async with open_box(tmp_path / "state") as box:
            if machine is None:
                directory = BoxDirectory(box, random)
                machine = Machine(directory, random, n_names)
            else:
                directory.adopt(box, box.get(b"s").ino)
                machine.restart()
            part = min(steps, RESTART_EVERY)
            steps -= part
            machine.walk(part)
            # Names are in the database and in what is not committed yet.
            await box.volume.committer.commit()
            machine.walk(50)
            if steps <= 0:
                machine.end()
                print(machine.counts, directory.kernel.requests)


async def test_names_with_one_position_are_each_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "_PRIME", 5)
    random = Random(7)
    async with open_box(tmp_path / "state") as box:
        machine = Machine(BoxDirectory(box, random), random, 60, has_twins=True)
        machine.walk(STEPS // 6)
        machine.end()


def _read_all(handle: KernelHandle) -> set[bytes]:
    found: set[bytes] = set()
    while part := handle.read(4096):
        found |= {entry.name for entry in part}
    return found


def _name_between(low: Entry, high: Entry) -> bytes:
    """A name that is listed after the one, and before the other."""
    return next(
        name
        for name in (b"new %d" % number for number in range(10**6))
        if low.offset < listings.home_of(name) < high.offset
    )


async def test_a_handle_that_seeks_before_it_reads_is_shown_nothing_older_than_itself(tmp_path: Path) -> None:
    """One has read a part, in which a name comes; another one is opened there; then the first is done."""
    async with open_box(tmp_path / "state") as box:
        directory = BoxDirectory(box, Random(1))
        for number in range(600):
            directory.make(b"%d" % (number * 7919))
        first = directory.open()
        begun = first.read(8192)
        assert 40 < len(begun) < 400
        late = _name_between(begun[2], begun[-1])
        directory.make(late)
        second = directory.open()
        second.seek(begun[2].offset)
        _read_all(first)
        assert late in _read_all(second)
        # And the copy that the first one began was finished, so that it could be replaced by one that is kept.
        for _ in range(2):
            asked = directory.kernel.requests
            assert late in _read_all(directory.open())
        assert directory.kernel.requests == asked


async def test_a_copy_that_was_begun_twice_is_not_taken_for_whole(tmp_path: Path) -> None:
    """One reads the first part, another one the last: the start of the copy is older than a handle that begins then."""
    async with open_box(tmp_path / "state") as box:
        directory = BoxDirectory(box, Random(1))
        for number in range(600):
            directory.make(b"%d" % (number * 7919))
        first, second, third = directory.open(), directory.open(), directory.open()
        while part := third.read(4096):
            position = part[-1].offset
        directory.make(b"one more")
        begun = first.read(8192)
        assert 40 < len(begun) < 400
        second.seek(position)
        _read_all(second)
        late = _name_between(begun[10], begun[-1])
        directory.make(late)
        directory.unlink(begun[20].name)
        third.seek(0)
        place = third.read(200)[-1].offset
        for _ in range(2):
            names = _read_all(third)
            assert late in names
            assert begun[20].name not in names
            third.seek(place)


class MountedDirectory:
    """A directory of a mount."""

    def __init__(self, mounted: Mounted, random: Random) -> None:
        self.mounted = mounted
        self.random = random
        self.path = os.fsencode(mounted.path / "s")
        os.mkdir(self.path)

    def _path(self, name: bytes) -> bytes:
        return self.path + b"/" + name

    def make(self, name: bytes) -> None:
        os.close(os.open(self._path(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    def unlink(self, name: bytes) -> None:
        os.unlink(self._path(name))

    def rename(self, old: bytes, new: bytes) -> None:
        os.rename(self._path(old), self._path(new))

    def link(self, old: bytes, new: bytes) -> None:
        os.link(self._path(old), self._path(new))

    def open(self) -> MountedReader:
        return MountedReader(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY))

    def drop(self) -> None:
        """The directory's own pages; once in a while every clean page of the machine."""
        if self.random.random() < 0.02:
            with open("/proc/sys/vm/drop_caches", "w") as file:
                file.write("1")
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)

    def restart(self) -> None:
        if self.random.random() < 0.5:
            self.mounted.remount()
        else:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(fd)
            os.close(fd)
            self.mounted.kill()
            self.mounted.detach()
            self.mounted.mount()


class MountedReader:
    """A descriptor of it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self, size: int) -> list[Entry]:
        return getdents(self.fd, size)

    def seek(self, position: int) -> None:
        os.lseek(self.fd, position, os.SEEK_SET)

    def close(self) -> None:
        os.close(self.fd)


@pytest.mark.parametrize(("n_names", "seed"), [(40, 11), (900, 12)])
def test_what_stays_is_listed_once_on_a_mount(mount: Mounted, n_names: int, seed: int) -> None:
    random = Random(seed)
    machine = Machine(MountedDirectory(mount, random), random, n_names)
    for _ in range(4):
        machine.walk(STEPS // 32)
        machine.restart()
    machine.walk(STEPS // 32)
    machine.end()
    print(machine.counts)
