"""Writers on a mount without room, which go on: what was acknowledged, then or later, is never lost, nor behind zeros.

Each kind of shortage befalls all kinds of writers at once (`tests/support/fullwriters.py`); then there is room again,
or the daemon is killed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from tests.crash.test_disk_errors import ThinDisk
from tests.support.fullwriters import KINDS
from tests.support.mounted import Mounted
from tests.support.posix import MNT_DETACH, errno_of, eventually, forget_failed_writes, noise, umount2
from tests.support.powercut import run

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

MIB = 1 << 20
DATABASES = ("wal", "journal")
BEFORE, MEANWHILE, AFTER = 3, 2, 2
SEAL_LATE = ("--seal-idle", "60s")


class Writers:
    """The writers, in a process of their own."""

    def __init__(self, directory: Path, kinds: Collection[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fullwriters", str(directory), *kinds],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the writers ended with {self._process.wait()} at {command!r}"
        answer: dict[str, Any] = json.loads(line)
        print(command, answer)
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


class Shortage(Protocol):
    """Takes the room away, and gives it back. *options* are those of the mount."""

    options: tuple[str, ...]
    state: Path | None
    kinds: Collection[str]

    def strike(self, mounted: Mounted) -> None: ...

    def heal(self, mounted: Mounted) -> None: ...


class Bound:
    options = ("--cache-size", "12M", *SEAL_LATE)
    state: Path | None = None
    kinds: Collection[str] = KINDS

    def strike(self, mounted: Mounted) -> None:
        for number in range(40):
            if errno_of(write_synced, mounted.path / "s" / f"fill{number}", MIB):
                return
        raise AssertionError("the bound is not met")

    def heal(self, mounted: Mounted) -> None:
        for path in (mounted.path / "s").glob("fill*"):
            path.unlink()


class Limit:
    options = ()
    state: Path | None = None
    kinds: Collection[str] = KINDS

    def strike(self, mounted: Mounted) -> None:
        used = sum(path.stat().st_size for path in (mounted.path / "s").iterdir())
        mounted.sessfs("limit", str(mounted.path / "s"), "--max-session-bytes", str(used + 10_000))

    def heal(self, mounted: Mounted) -> None:
        mounted.sessfs("limit", str(mounted.path / "s"), "--max-session-bytes", "off")


class FileSize:
    """The filesystem below takes no longer files: of the hot ones, and of the databases."""

    options = SEAL_LATE
    state: Path | None = None
    kinds: Collection[str] = KINDS

    def strike(self, mounted: Mounted) -> None:
        hot = max(path.stat().st_size for path in (mounted.state / "hot").iterdir())
        resource.prlimit(mounted.pid, resource.RLIMIT_FSIZE, (hot + 7000, resource.RLIM_INFINITY))

    def heal(self, mounted: Mounted) -> None:
        resource.prlimit(mounted.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Brim:
    """Others fill the disk to the last byte, at once."""

    options = SEAL_LATE
    kinds: Collection[str] = KINDS

    def __init__(self, disk: Path) -> None:
        self._filler = disk / "filler"
        self.state: Path | None = disk / "state"

    def strike(self, mounted: Mounted) -> None:
        fd = os.open(self._filler, os.O_WRONLY | os.O_CREAT)
        try:
            for size in (MIB, 512):
                with contextlib.suppress(OSError):
                    while True:
                        os.write(fd, bytes(size))
        finally:
            os.close(fd)

    def heal(self, mounted: Mounted) -> None:
        self._filler.unlink()


class Failing:
    """The disk fails to write what was never written before, when it is flushed."""

    options = SEAL_LATE
    kinds: Collection[str] = ("appender", "wal")
    """Each sync takes a second that fails here."""

    def __init__(self, disk: ThinDisk) -> None:
        self._disk = disk
        self.state: Path | None = disk.path / "state"

    def strike(self, mounted: Mounted) -> None:
        os.sync()
        self._disk.fill()

    def heal(self, mounted: Mounted) -> None:
        self._disk.heal()


def write_synced(path: Path, size: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        content = noise(size, size)
        while content:
            content = content[os.write(fd, content) :]
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def small_disk(base: Path, size: int) -> Iterator[Path]:
    """A new ext4 of *size* bytes."""
    image, path = base / "image", base / "disk"
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)])
    run(["mount", "-o", "loop", str(image), str(path)])
    try:
        yield path
    finally:
        umount2(path, MNT_DETACH)


@pytest.fixture(params=["bound", "limit", "filesize", "brim", "failing"])
def shortage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shortage]:
    with contextlib.ExitStack() as stack:
        if request.param == "brim":
            yield Brim(stack.enter_context(small_disk(tmp_path, 120 * MIB)))
        elif request.param == "failing":
            disk = ThinDisk(tmp_path)
            stack.enter_context(disk.mounted())
            yield Failing(disk)
        else:
            yield {"bound": Bound, "limit": Limit, "filesize": FileSize}[request.param]()


def faults_of(writers: Writers, *, databases: bool = True) -> dict[str, Any]:
    """Writer → what is wrong, of those with which anything is."""
    found = writers.ask("check").items()
    return {name: faults for name, faults in found if faults and (databases or name.split("-")[0] not in DATABASES)}


@pytest.mark.parametrize("ends", ["room again", "killed"])
def test_what_is_acknowledged_is_never_behind_zeros(shortage: Shortage, ends: str) -> None:
    with Mounted(options=shortage.options, state=shortage.state) as mounted:
        (mounted.path / "s").mkdir()
        writers = Writers(mounted.path / "s", shortage.kinds)
        try:
            before = writers.ask(f"write {BEFORE}")
            assert all(n == BEFORE for name, (n, _) in before.items() if "mapped" not in name), before
            shortage.strike(mounted)
            writers.ask(f"write {MEANWHILE}")
            # Until the kernel has let go of them, refused bytes can't be read. A database may need room to be opened.
            assert eventually(lambda: not faults_of(writers, databases=False), 20), faults_of(writers)
            if ends == "killed":
                mounted.kill()
                mounted.detach()
                if isinstance(shortage, Brim | Failing):
                    shortage.heal(mounted)
                mounted.mount()
                if not isinstance(shortage, Brim | Failing):
                    shortage.heal(mounted)
                # The same names, other files: those of before are gone with the mount that they were opened on.
                assert not faults_of(writers)
                return
            shortage.heal(mounted)
            time.sleep(1.5)
            assert not faults_of(writers)
            writers.ask("reopen")
            after = writers.ask(f"write {AFTER}")
            writers.ask("reopen")
            again = writers.ask("write 2")
            assert all(n for name, (n, _) in again.items() if name.endswith("-reopens")), (after, again)
            assert not faults_of(writers)
            mounted.kill()
            mounted.detach()
            mounted.mount()
            assert not faults_of(writers)
        finally:
            writers.end()
            forget_failed_writes(mounted.path)


def test_write_itself_says_that_there_is_no_room_and_changes_nothing() -> None:
    with Mounted(options=Bound.options) as mounted:
        (mounted.path / "s").mkdir()
        path = mounted.path / "s" / "log"
        flags = (os.O_RDWR | os.O_APPEND, os.O_RDWR, os.O_WRONLY)
        write_synced(path, 10_000)
        before = path.read_bytes()
        files = [os.open(path, each) for each in flags]
        shortage = Bound()
        shortage.strike(mounted)
        for _ in range(3):
            assert [errno_of(os.pwrite, fd, b"x" * 100, 10_000) for fd in files] == [errno.ENOSPC] * 3
            # Neither does looking at the file make the kernel believe in it, nor syncing or opening it.
            assert path.stat().st_size == 10_000
            os.fsync(files[0])
            os.listdir(mounted.path / "s")
            new = os.open(path, os.O_RDWR)
            assert errno_of(os.write, new, b"y") == errno.ENOSPC
            os.close(new)
        assert os.pread(files[0], 20_000, 0) == before
        assert os.lseek(files[1], 0, os.SEEK_END) == 10_000
        assert mounted.status()["warnings"]
        shortage.heal(mounted)
        assert eventually(lambda: errno_of(os.pwrite, files[0], b"more", 0) == 0, 10)
        os.fsync(files[0])
        for fd in files:
            os.close(fd)
        assert path.read_bytes() == before + b"more"


def test_what_was_to_replace_bytes_and_was_refused_is_not_shown_as_good() -> None:
    """Of a sealed file, whose hot file the filesystem below refuses: reads of the range, and syncs, say so."""
    with Mounted(options=("--seal-idle", "60s", "--commit-interval", "60s")) as mounted:
        (mounted.path / "s").mkdir()
        path = mounted.path / "s" / "f"
        write_synced(path, MIB)
        before = path.read_bytes()
        mounted.seal()
        at, new = MIB // 2, b"n" * 5000
        fd, other = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
        resource.prlimit(mounted.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        os.pwrite(fd, new, at)
        assert os.pread(other, 5000, at) == new
        assert [errno_of(os.fsync, fd) for _ in range(3)] == [errno.EFBIG] * 3
        assert errno_of(os.fsync, other) == errno.EFBIG
        # The kernel lets go of the page soon.
        assert eventually(lambda: errno_of(os.pread, other, 5000, at) == errno.EFBIG, 20)
        assert os.pread(other, at - 4096, 0) == before[: at - 4096]
        FileSize().heal(mounted)
        assert errno_of(os.fsync, fd) == errno.EFBIG
        # Whole pages: for a part of one the kernel would have to read the rest.
        again = b"again..." * 1024
        assert os.pwrite(other, again, at) == len(again)
        os.fsync(other)
        os.fsync(fd)
        expected = before[:at] + again + before[at + len(again) :]
        assert path.read_bytes() == expected
        os.close(fd)
        os.close(other)
        mounted.kill()
        mounted.detach()
        mounted.mount()
        assert path.read_bytes() == expected
