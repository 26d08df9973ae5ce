"""New content in the place of durable content, without any sync: a crash leaves the old or the new, never nothing.

What ext4 promises by its auto_da_alloc: for a rename over a name, and for a file that is truncated, written and closed.
Here a rename, and a truncating open, keep that promise while the file is still open, though its pages may be in the
kernel's cache alone.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.mounted import Mounted
from tests.support.posix import noise, read_file, renameat2, write_file
from tests.support.powercut import PowerCut

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = ["--commit-interval", "100ms"]
COMMITTED_S = 0.8
OLD, NEW = noise(1, 150_000), noise(2, 90_000)
RENAME_EXCHANGE = 2


def _durable(path: Path, content: bytes) -> None:
    write_file(path, content)
    for each in (path, path.parent, path.parent.parent):
        fd = os.open(each, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def _written(path: Path, flags: int = 0) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    assert os.write(fd, NEW) == len(NEW)
    return fd


def _open(session: Path) -> list[int]:
    fd = _written(session / "temporary")
    os.rename(session / "temporary", session / "f")
    return [fd]


def _closed(session: Path) -> list[int]:
    os.close(_written(session / "temporary"))
    os.rename(session / "temporary", session / "f")
    return []


def _closed_after(session: Path) -> list[int]:
    os.close(_open(session)[0])
    return []


def _mapped(session: Path) -> list[int]:
    """Nothing but a mapping, which outlives the descriptor."""
    fd = os.open(session / "temporary", os.O_RDWR | os.O_CREAT, 0o600)
    os.truncate(fd, len(NEW))
    mapped = mmap.mmap(fd, len(NEW))
    mapped[:] = NEW
    MAPPED.append(mapped)
    os.close(fd)
    os.rename(session / "temporary", session / "f")
    return []


MAPPED: list[mmap.mmap] = []


def _chain(session: Path) -> list[int]:
    fd = _written(session / "temporary")
    os.rename(session / "temporary", session / "between")
    os.rename(session / "between", session / "f")
    return [fd]


def _over_two(session: Path) -> list[int]:
    fd = _written(session / "temporary")
    os.rename(session / "temporary", session / "other")
    os.rename(session / "other", session / "f")
    return [fd]


def _between_directories(session: Path) -> list[int]:
    (session / "d").mkdir()
    fd = _written(session / "d" / "temporary")
    os.rename(session / "d" / "temporary", session / "f")
    return [fd]


def _exchange(session: Path) -> list[int]:
    fd = _written(session / "temporary")
    renameat2(session / "temporary", session / "f", RENAME_EXCHANGE)
    os.unlink(session / "temporary")
    return [fd]


def _exchange_closed(session: Path) -> list[int]:
    os.close(_exchange(session)[0])
    return []


def _link(session: Path) -> list[int]:
    fd = _written(session / "temporary")
    os.unlink(session / "f")
    os.link(session / "temporary", session / "f")
    os.unlink(session / "temporary")
    return [fd]


def _truncating_open(session: Path) -> list[int]:
    return [_written(session / "f", os.O_TRUNC)]


def _truncating_open_closed(session: Path) -> list[int]:
    os.close(_written(session / "f", os.O_TRUNC))
    return []


def _truncate_closed(session: Path) -> list[int]:
    os.truncate(session / "f", 0)
    os.close(_written(session / "f"))
    return []


def _truncate_while_open(session: Path) -> list[int]:
    fd = os.open(session / "f", os.O_RDWR)
    os.ftruncate(fd, 0)
    os.write(fd, NEW)
    os.close(fd)
    return []


CASES = [
    _open,
    _closed,
    _closed_after,
    _mapped,
    _chain,
    _over_two,
    _between_directories,
    _exchange,
    _exchange_closed,
    _link,
    _truncating_open,
    _truncating_open_closed,
    _truncate_closed,
    _truncate_while_open,
]


def _verdict(path: Path) -> str:
    if not path.exists():
        return "no file"
    content = read_file(path)
    return {OLD: "old", NEW: "new"}.get(content, f"{len(content)} bytes of something")


def _let_go(fds: list[int]) -> None:
    for fd in fds:
        # The daemon is gone, and the kernel may still have what it was to get.
        with contextlib.suppress(OSError):
            os.close(fd)
    while MAPPED:
        MAPPED.pop().close()


def test_kill_after_a_replacement_leaves_the_new_content() -> None:
    """All cases in sessions of one mount: a commit came between, which has taken the old content away."""
    found = {}
    with Mounted(options=OPTIONS) as mounted:
        fds = []
        for case in CASES:
            session = mounted.path / case.__name__
            session.mkdir()
            _durable(session / "other", OLD)
            _durable(session / "f", OLD)
        for case in CASES:
            fds += case(mounted.path / case.__name__)
        time.sleep(COMMITTED_S)
        mounted.kill()
        _let_go(fds)
        mounted.mount()
        found = {case.__name__: _verdict(mounted.path / case.__name__ / "f") for case in CASES}
    assert found == dict.fromkeys(found, "new")


def test_kill_at_any_moment_of_a_replacement_leaves_old_or_new() -> None:
    with Mounted(options=["--commit-interval", "20ms"]) as mounted:
        for turn in range(6):
            fds = []
            for number in range(12):
                session = mounted.path / f"s{turn}-{number}"
                session.mkdir()
                _durable(session / "f", OLD)
            for number in range(12):
                fds += _open(mounted.path / f"s{turn}-{number}")
                time.sleep(0.004)
            mounted.kill()
            _let_go(fds)
            mounted.mount()
            found = {_verdict(mounted.path / f"s{turn}-{number}" / "f") for number in range(12)}
            assert found <= {"old", "new"}


@pytest.mark.parametrize("seed", range(3))
def test_power_cut_after_a_replacement_leaves_old_or_new(seed: int) -> None:
    with PowerCut(seed) as power, Mounted(state=power.path / "state", options=OPTIONS) as mounted:
        for case in CASES:
            session = mounted.path / case.__name__
            session.mkdir()
            _durable(session / "other", OLD)
            _durable(session / "f", OLD)
        mounted.seal()
        fds = []
        for case in CASES:
            fds += case(mounted.path / case.__name__)
        time.sleep(COMMITTED_S)
        power.cut()
        mounted.kill()
        _let_go(fds)
        mounted.detach()
        power.restore()
        mounted.mount()
        found = {case.__name__: _verdict(mounted.path / case.__name__ / "f") for case in CASES}
    assert found == {name: verdict for name, verdict in found.items() if verdict in ("old", "new")}
