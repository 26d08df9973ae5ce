"""Writes that the kernel took and the daemon refuses: the log names the file, and no size stays that never was."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

import pytest

from tests.support.mounted import Mounted
from tests.support.posix import errno_of, eventually, read_file, write_file

if TYPE_CHECKING:
    from pathlib import Path

LOCAL_STORE = 20
LARGEST = 16 << 40


def _log(mounted: Mounted) -> str:
    return (mounted.state / "sessfs.log").read_text(errors="replace")


def _close(fd: int) -> None:
    """It may say once more that writes were lost."""
    with contextlib.suppress(OSError):
        os.close(fd)


def _pwrite(path: Path) -> int:
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"far", LARGEST)
    return fd


def _seek(path: Path) -> int:
    fd = os.open(path, os.O_RDWR)
    os.lseek(fd, LARGEST + 12_345, os.SEEK_SET)
    os.write(fd, b"far")
    return fd


def _across(path: Path) -> int:
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"x" * 10_000, LARGEST - 5000)
    return fd


@pytest.mark.parametrize("way", [_pwrite, _seek, _across])
def test_write_beyond_the_largest_file_is_told_and_logged_and_leaves_the_size(way: object) -> None:
    assert callable(way)
    with Mounted() as mounted:
        path = mounted.path / "user1" / "Default" / "f"
        path.parent.mkdir(parents=True)
        write_file(path, b"content")
        fd = way(path)
        assert errno_of(os.fsync, fd) == errno.EFBIG
        assert eventually(lambda: os.fstat(fd).st_size < LARGEST, 20), "the size that was refused stays"
        # Each descriptor is told once more: what was written since the refusal was dropped with it.
        assert errno_of(os.fsync, fd) == errno.EFBIG
        os.pwrite(fd, b"C", 0)
        os.fsync(fd)
        _close(fd)
        size = os.stat(path).st_size
        assert read_file(path)[:7] == b"Content" if size < 1 << 20 else size <= LARGEST
        done = mounted.sessfs("umount", str(mounted.path), check=False)
        assert done.returncode == LOCAL_STORE
        assert f"{mounted.state}/sessfs.log names the files of those that the daemon refused" in done.stderr
        lines = [line for line in _log(mounted).splitlines() if "user1/Default/f: a write that was taken" in line]
        assert len(lines) == 1
        assert "a file has 16 TiB at most" in lines[0]
        mounted.mount()
        assert os.stat(path).st_size == size


def test_truncate_beyond_the_largest_file_is_refused_at_once(mount: Mounted) -> None:
    path = mount.path / "user1" / "f"
    path.parent.mkdir()
    write_file(path, b"content")
    assert errno_of(os.truncate, path, LARGEST + 1) == errno.EFBIG
    assert os.stat(path).st_size == 7
    os.truncate(path, LARGEST - 4096)
    assert os.stat(path).st_size == LARGEST - 4096
    os.truncate(path, 7)
    assert read_file(path) == b"content"


def test_write_over_a_session_limit_is_logged_by_the_name_of_its_file() -> None:
    with Mounted(options=["--max-session-bytes", "4M"]) as mounted:
        path = mounted.path / "user1" / "f"
        path.parent.mkdir()
        write_file(path, b"content")
        fd = os.open(path, os.O_RDWR)
        os.pwrite(fd, b"x" * (8 << 20), 0)
        assert errno_of(os.fsync, fd) == errno.EDQUOT
        _close(fd)
        done = mounted.sessfs("umount", str(mounted.path), check=False)
        assert done.returncode == LOCAL_STORE
        assert "user1/f: a write that was taken is lost" in _log(mounted)


def test_log_names_a_file_that_has_no_name_any_more() -> None:
    with Mounted() as mounted:
        path = mounted.path / "user1" / "f"
        path.parent.mkdir()
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.unlink(path)
        os.pwrite(fd, b"far", LARGEST)
        assert errno_of(os.fsync, fd) == errno.EFBIG
        ino = os.fstat(fd).st_ino
        assert f"inode {ino} of session user1: a write that was taken is lost" in _log(mounted)
        _close(fd)
        mounted.sessfs("umount", str(mounted.path), check=False)
