"""Many files and sessions cost a mount neither time nor memory: inodes load on demand."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.support.mounted import Mounted, pss_bytes, rss_bytes
from tests.support.posix import run_child

if TYPE_CHECKING:
    from pathlib import Path

SESSIONS = 400
FILES = int(os.environ.get("SESSFS_TEST_SCALE_FILES", "10000"))


def _fill(session: Path, count: int) -> None:
    session.mkdir()
    folder = os.open(session, os.O_RDONLY)
    for number in range(count):
        os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=folder))
    os.close(folder)


def _mount_s(mounted: Mounted) -> float:
    """Return the best of three times that `sessfs mount` took."""
    times = []
    for _ in range(3):
        mounted.umount()
        start = time.monotonic()
        mounted.sessfs("mount", str(mounted.path), "--state", str(mounted.state))
        times.append(time.monotonic() - start)
        mounted.adopt()
    return min(times)


@pytest.mark.scale
def test_mount_takes_no_longer_with_many_files_and_little_memory_when_idle() -> None:
    with Mounted() as empty:
        empty_s = _mount_s(empty)
    with Mounted() as full:
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda n: _fill(full.path / f"user{n}", FILES // SESSIONS), range(SESSIONS)))
        full_s = _mount_s(full)
        idle = [rss_bytes(process.pid) for process in full.processes()]
        assert len(os.listdir(full.path)) == SESSIONS
        assert len(os.listdir(full.path / "user7")) == FILES // SESSIONS
        assert full_s < empty_s + 0.5, f"{full_s:.2f} s with {FILES} files, {empty_s:.2f} s with none"
        assert sum(idle) < 80 << 20, f"idle memory of the daemon and its workers: {[size >> 20 for size in idle]} MiB"
        assert sum(pss_bytes(process.pid) for process in full.processes()) < 80 << 20


def test_file_of_many_small_extents_is_read_at_once() -> None:
    """More of them in one read than the kernel takes pieces. Direct I/O, since cached writes come by whole pages."""
    wanted = b"".join(b"%03d" % (number % 1000) for number in range(1100))
    with Mounted() as mounted:
        (mounted.path / "user1").mkdir()
        path = mounted.path / "user1" / "0123456789abcdef_0"
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        for start in range(0, len(wanted), 3):
            os.write(fd, wanted[start : start + 3])
            mounted.seal()
        os.close(fd)
        # A process of its own can be given up.
        assert run_child(mounted.path, f"say(open({str(path)!r}).read())") == wanted.decode()
