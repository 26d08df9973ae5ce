"""What stat once said of a file's times stays true, whoever forgets what: the kernel, the daemon, or both."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.posix import noise, write_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.support.mounted import Mounted

LONG = 1_000_000_000_000_000_000


def _times(paths: Iterable[Path]) -> dict[str, tuple[int, int, int]]:
    found = {path.name: os.stat(path) for path in paths}
    return {name: (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size) for name, stat in found.items()}


def _drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("2\n")


def _make(session: Path) -> list[Path]:
    """Files whose kernel and daemon have every chance to disagree."""
    made = []
    for number in range(100):
        path = session / f"twice{number}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        for content in (b"a", b"b"):
            os.write(fd, content)
            os.fsync(fd)
        os.close(fd)
        made.append(path)
    for number in range(20):
        path = session / f"again{number}"
        write_file(path, b"first")
        write_file(path, b"other")
        made.append(path)
    for name in ("truncated", "same size", "emptied", "mapped", "set", "set and written", "sealed"):
        write_file(session / name, noise(3, 20_000))
        made.append(session / name)
    time.sleep(0.03)
    os.truncate(session / "truncated", 10_000)
    os.truncate(session / "same size", 20_000)
    os.close(os.open(session / "emptied", os.O_WRONLY | os.O_TRUNC))
    fd = os.open(session / "mapped", os.O_RDWR)
    with mmap.mmap(fd, 20_000) as mapped:
        mapped[:3] = b"abc"
    os.close(fd)
    os.utime(session / "set", ns=(LONG, LONG))
    fd = os.open(session / "set and written", os.O_RDWR)
    os.utime(fd, ns=(LONG, LONG))
    os.write(fd, b"later")
    os.close(fd)
    return made


def test_times_stay_when_the_kernel_forgets_them(mount: Mounted) -> None:
    session = mount.path / "user1"
    session.mkdir()
    paths = _make(session)
    said = _times(paths)
    _drop_caches()
    assert _times(paths) == said


def test_times_stay_over_an_unmount(mount: Mounted) -> None:
    session = mount.path / "user1"
    session.mkdir()
    paths = _make(session)
    said = _times(paths)
    mount.remount()
    assert _times(paths) == said


def test_times_stay_while_files_are_sealed(mount: Mounted) -> None:
    session = mount.path / "user1"
    session.mkdir()
    paths = _make(session)
    said = _times(paths)
    mount.seal()
    _drop_caches()
    assert _times(paths) == said
    mount.kill()
    mount.mount()
    assert _times(paths) == said


def test_write_moves_mtime_on(mount: Mounted) -> None:
    """What stays must also move: each kind of write, some ticks later, is later."""
    session = mount.path / "user1"
    session.mkdir()
    path = session / "f"
    write_file(path, b"first")
    for change in ("write", "map", "truncate", "empty"):
        before = os.stat(path).st_mtime_ns
        time.sleep(0.03)
        fd = os.open(path, os.O_RDWR | (os.O_TRUNC if change == "empty" else 0))
        if change == "write":
            os.pwrite(fd, b"other", 0)
        elif change == "map":
            with mmap.mmap(fd, 5) as mapped:
                mapped[:1] = b"x"
        elif change == "truncate":
            os.ftruncate(fd, 3)
        os.close(fd)
        assert os.stat(path).st_mtime_ns > before, change
        said = os.stat(path).st_mtime_ns
        _drop_caches()
        assert os.stat(path).st_mtime_ns == said, change
