"""What an fsync made durable has its times: after a kill, and after a power cut, mtime is what stat said."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.mounted import Mounted
from tests.support.posix import noise, read_file
from tests.support.powercut import PowerCut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

SLOW = ["--commit-interval", "60s"]
"""No commit but those that somebody asks for, so that what is kept is kept by a sync."""
LONG = 1_000_000_000_000_000_000


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _first(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"1" * 5000)
    os.fsync(fd)
    _sync_directory(path.parent)
    _sync_directory(path.parent.parent)
    time.sleep(0.03)
    return fd


def _let_go(fds: Iterable[int]) -> None:
    """Of a mount whose daemon is gone: the kernel says so to who closes what it has not handed over."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _overwrite(fd: int) -> None:
    os.pwrite(fd, b"2" * 5000, 0)
    os.fsync(fd)


def _append(fd: int) -> None:
    os.lseek(fd, 0, os.SEEK_END)
    os.write(fd, b"2" * 100)
    os.fsync(fd)


def _write_mapped(fd: int) -> None:
    with mmap.mmap(fd, 5000) as mapped:
        mapped[:10] = b"2" * 10
        mapped.flush()
    os.fsync(fd)


def _truncate(fd: int) -> None:
    os.ftruncate(fd, 4000)
    os.fsync(fd)


def _touch(fd: int) -> None:
    os.utime(fd)
    os.fsync(fd)


def _set_recent(fd: int) -> None:
    now = time.time_ns() - 20_000_000_000
    os.utime(fd, ns=(now, now))
    os.fsync(fd)


def _set_old(fd: int) -> None:
    os.utime(fd, ns=(LONG, LONG))
    os.fsync(fd)


def _write_and_set_old(fd: int) -> None:
    os.pwrite(fd, b"2" * 5000, 0)
    os.utime(fd, ns=(LONG, LONG))
    os.fsync(fd)


def _data_then_all(fd: int) -> None:
    os.pwrite(fd, b"2" * 5000, 0)
    os.fdatasync(fd)
    os.fsync(fd)


def _often(fd: int) -> None:
    for number in range(20):
        os.pwrite(fd, b"%d" % number, number * 10)
        os.fsync(fd)


CHANGES = [
    _overwrite,
    _append,
    _write_mapped,
    _truncate,
    _touch,
    _set_recent,
    _set_old,
    _write_and_set_old,
    _data_then_all,
    _often,
]


class _Files:
    """One file for each kind of change, changed and synced, and what stat said of it then."""

    def __init__(self, session: Path, changes: list[Callable[[int], None]]) -> None:
        session.mkdir()
        self._paths = {change.__name__: session / change.__name__ for change in changes}
        self._fds = {name: _first(path) for name, path in self._paths.items()}
        for change in changes:
            change(self._fds[change.__name__])
        self._said = {name: self._look(os.fstat(fd)) for name, fd in self._fds.items()}
        self._contents = {name: read_file(path) for name, path in self._paths.items()}

    def _look(self, found: os.stat_result) -> tuple[int, int]:
        return found.st_mtime_ns, found.st_size

    def close(self) -> None:
        _let_go(self._fds.values())

    def check(self) -> None:
        assert {name: self._look(os.stat(path)) for name, path in self._paths.items()} == self._said
        assert {name: read_file(path) for name, path in self._paths.items()} == self._contents


def test_kill_after_fsync_keeps_the_mtime_that_stat_said() -> None:
    with Mounted(options=SLOW) as mounted:
        files = _Files(mounted.path / "user1", CHANGES)
        mounted.kill()
        files.close()
        mounted.mount()
        files.check()
        mounted.remount()
        files.check()


def test_kill_after_fsync_keeps_the_mtime_of_what_was_sealed_before() -> None:
    with Mounted(options=SLOW) as mounted:
        session = mounted.path / "user1"
        session.mkdir()
        fds = [_first(session / "a"), _first(session / "b")]
        mounted.seal()
        time.sleep(0.03)
        _touch(fds[0])
        _overwrite(fds[1])
        said = [os.fstat(fd).st_mtime_ns for fd in fds]
        mounted.kill()
        _let_go(fds)
        mounted.mount()
        assert [os.stat(session / name).st_mtime_ns for name in "ab"] == said


def test_kill_keeps_the_mtime_of_what_was_closed_and_committed() -> None:
    """Written twice within a tick of the kernel's clock, at times: no second time comes from the kernel then."""
    with Mounted(options=["--commit-interval", "100ms"]) as mounted:
        session = mounted.path / "user1"
        session.mkdir()
        said = {}
        for number in range(60):
            path = session / f"f{number}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.write(fd, b"1")
            os.fsync(fd)
            os.write(fd, b"2")
            os.close(fd)
            if number % 3 == 0:
                os.utime(path, ns=(LONG, LONG + number))
            said[path] = os.stat(path).st_mtime_ns
        time.sleep(0.5)
        mounted.kill()
        mounted.mount()
        assert {path: os.stat(path).st_mtime_ns for path in said} == said


def test_kill_of_an_uncommitted_change_leaves_no_new_content_with_an_old_mtime() -> None:
    """What a backup that goes by size and mtime would never see: the same size, and the time of before."""
    with Mounted(options=SLOW) as mounted:
        session = mounted.path / "user1"
        session.mkdir()
        said = {}
        # The names of the last are those of Chrome's cache, which the kernel does not cache.
        for name in ("closed", "data-only", "0123456789abcdef_0", "fedcba9876543210_0"):
            fd = _first(session / name)
            said[name] = os.fstat(fd).st_mtime_ns
            os.pwrite(fd, b"2" * 5000, 0)
            if name in ("data-only", "fedcba9876543210_0"):
                os.fdatasync(fd)
            os.close(fd)
        mounted.kill()
        mounted.mount()
        for name, before in said.items():
            assert read_file(session / name) == b"2" * 5000
            assert os.stat(session / name).st_mtime_ns > before, name


@pytest.mark.parametrize("seed", range(2))
def test_power_cut_after_fsync_keeps_the_mtime_that_stat_said(seed: int) -> None:
    with PowerCut(seed) as power, Mounted(state=power.path / "state", options=SLOW) as mounted:
        files = _Files(mounted.path / "user1", CHANGES)
        power.cut()
        mounted.kill()
        files.close()
        mounted.detach()
        power.restore()
        mounted.mount()
        files.check()


def test_power_cut_leaves_no_time_of_a_write_that_was_lost() -> None:
    """A later write that nobody synced may be lost, and then its time is, too."""
    with PowerCut(7) as power, Mounted(state=power.path / "state", options=SLOW) as mounted:
        session = mounted.path / "user1"
        session.mkdir()
        fd = _first(session / "f")
        said = os.fstat(fd).st_mtime_ns
        os.pwrite(fd, noise(1, 5000), 0)
        os.close(fd)
        power.cut()
        mounted.kill()
        mounted.detach()
        power.restore()
        mounted.mount()
        content, mtime_ns = read_file(session / "f"), os.stat(session / "f").st_mtime_ns
        assert content == b"1" * 5000 or mtime_ns > said
