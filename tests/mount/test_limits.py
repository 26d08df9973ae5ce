"""Limits on a mount: who gets EDQUOT, from which call, and what still works then. Set and lifted without a remount."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from sessfs.sessions.limits import MEASURE_EVERY_S
from tests.support.mounted import Mounted
from tests.support.posix import errno_of, eventually, forget_failed_writes, noise, read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


@pytest.fixture
def limited() -> Iterator[Mounted]:
    """A mount with one session, `user`; its state must be clean at the end."""
    with Mounted(options=["--seal-idle", "1s"]) as mounted:
        (mounted.path / "user").mkdir()
        yield mounted
        forget_failed_writes(mounted.path)
        mounted.umount()
        mounted.fsck()


def limit(mounted: Mounted, *arguments: str, session: str = "") -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(
        mounted.sessfs("limit", str(mounted.path / session), "--json", *arguments).stdout
    )
    return answer


def row(answer: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in answer["limits"] if each["limit"] == name)
    return found


def test_one_session_too_many(limited: Mounted) -> None:
    limit(limited, "--max-sessions", "2")
    (limited.path / "second").mkdir()
    assert errno_of(os.mkdir, limited.path / "third") == errno.EDQUOT
    write_file(limited.path / "in the root", b"no session")
    os.rename(limited.path / "second", limited.path / "renamed")
    assert row(limit(limited), "max_sessions")["used"] == 2
    assert any("2 of 2 sessions" in warning for warning in limited.status()["warnings"])
    limited.remount()
    assert errno_of(os.mkdir, limited.path / "third") == errno.EDQUOT
    (limited.path / "renamed").rmdir()
    (limited.path / "third").mkdir()
    limit(limited, "--max-sessions", "off")
    (limited.path / "fourth").mkdir()


def test_session_too_many_in_use(limited: Mounted) -> None:
    for name in ("other", "idle"):
        (limited.path / name).mkdir()
        write_file(limited.path / name / "f", b"f")
    write_file(limited.path / "user" / "f", b"f")
    limit(limited, "--max-active", "2")
    with (limited.path / "user" / "f").open("ab"), (limited.path / "other" / "f").open("ab"):
        idle = limited.path / "idle"
        assert errno_of(os.symlink, "host-1", idle / "SingletonLock") == errno.EDQUOT
        assert errno_of(os.mkdir, idle / "d") == errno.EDQUOT
        assert errno_of(os.open, idle / "f", os.O_RDWR) == errno.EDQUOT
        assert errno_of(os.open, idle / "g", os.O_CREAT | os.O_WRONLY) == errno.EDQUOT
        assert read_file(idle / "f") == b"f"  # by this test, which is no Chrome
        write_file(limited.path / "user" / "new", b"in use already")
        assert row(limit(limited), "max_active") == {
            "limit": "max_active",
            "value": 2,
            "set": True,
            "used": 2,
        }
        os.unlink(idle / "f")
        limit(limited, "--max-active", "3")
        os.symlink("host-1", idle / "SingletonLock")
        # It has its place before a file of it is open.
        (limited.path / "late").mkdir()
        assert errno_of(os.mkdir, limited.path / "late" / "d") == errno.EDQUOT


def test_session_full(limited: Mounted) -> None:
    user = limited.path / "user"
    write_file(user / "old", noise(1, 13 * MIB))
    os.sync()
    answer = limit(limited, "--max-session-bytes", "16M", session="user")
    assert row(answer, "max_session_bytes")["used"] == 13 * MIB
    assert row(limit(limited), "max_session_bytes")["value"] is None
    assert any("user (81%)" in warning for warning in limited.status()["warnings"])
    write_file(user / "new", noise(2, MIB))
    assert errno_of(os.open, user / "more", os.O_CREAT | os.O_WRONLY) == errno.EDQUOT
    assert errno_of(os.symlink, "x", user / "SingletonLock") == errno.EDQUOT
    assert errno_of(os.mkdir, user / "d") == errno.EDQUOT
    assert errno_of(os.truncate, user / "new", 4 * MIB) == errno.EDQUOT
    # Opened for writing alone when the session is full: write(2) itself is refused.
    fd = os.open(user / "new", os.O_WRONLY)
    at = MIB + os.pwrite(fd, bytes(2 * MIB), MIB)  # as much as there is room for
    assert at <= 3 * MIB
    assert errno_of(os.pwrite, fd, bytes(MIB), at) == errno.EDQUOT
    os.close(fd)
    assert os.stat(user / "new").st_size == at
    # What needs no room goes on.
    with (user / "old").open("r+b") as file:
        file.write(noise(3, MIB))
        os.fsync(file.fileno())
    assert read_file(user / "old") == noise(3, MIB) + noise(1, 13 * MIB)[MIB:]
    os.link(user / "old", user / "name")
    os.rename(user / "name", user / "renamed")
    os.unlink(user / "renamed")
    os.truncate(user / "old", MIB)
    write_file(user / "more", b"there is room again")
    (limited.path / "other").mkdir()
    write_file(limited.path / "other" / "f", noise(4, 20 * MIB))


def test_growth_of_an_open_file_is_refused_late_and_leaves_no_gap(limited: Mounted) -> None:
    """The kernel takes write(2); fsync says EDQUOT, or close EIO. What is kept is what was written up to some point."""
    user = limited.path / "user"
    limit(limited, "--max-session-bytes", "8M", session="user")
    content = noise(1, 12 * MIB)
    file = os.open(user / "log", os.O_CREAT | os.O_RDWR)
    other = os.open(user / "other", os.O_CREAT | os.O_RDWR)
    os.pwrite(other, noise(2, 2 * MIB), 0)
    os.fsync(other)
    seen = []
    for at in range(0, len(content), MIB // 2):
        try:
            os.pwrite(file, content[at : at + MIB // 2], at)
            os.fsync(file)
        except OSError as exc:
            seen.append(exc.errno)
        if at == 9 * MIB:
            os.ftruncate(other, 0)  # there is room again, but not for what would leave a gap
    print("errors seen", [errno.errorcode[one] for one in seen])
    with contextlib.suppress(OSError):
        os.close(file)
    os.close(other)
    assert eventually(lambda: (user / "log").stat().st_size <= 6 * MIB, 5)
    kept = read_file(user / "log")
    assert kept == content[: len(kept)]
    assert len(kept) >= 5 * MIB
    assert set(seen) == {errno.EDQUOT}


def test_close_reports_what_fsync_did_not(limited: Mounted) -> None:
    user = limited.path / "user"
    limit(limited, "--max-session-bytes", "8M", session="user")
    file = os.open(user / "log", os.O_CREAT | os.O_RDWR)
    os.pwrite(file, noise(1, 12 * MIB), 0)
    got = errno_of(os.close, file)
    print("close says", errno.errorcode.get(got or 0))
    assert got in (errno.EIO, errno.EDQUOT)
    assert eventually(lambda: (user / "log").stat().st_size <= 8 * MIB, 5)


def test_unique_bytes(limited: Mounted) -> None:
    """Shared content is free; what only this session has is limited, measured in the background."""
    user, twin = limited.path / "user", limited.path / "twin"
    twin.mkdir()
    shared, mine = noise(1, 6 * MIB), noise(2, 6 * MIB)
    write_file(twin / "shared", shared)
    limited.control("seal", {})
    limit(limited, "--max-unique-bytes", "8M", session="user")
    write_file(user / "shared", shared)
    os.sync()

    def unique() -> int:
        return int(row(limit(limited, session="user"), "max_unique_bytes")["used"])

    limited.control("seal", {})
    assert eventually(lambda: unique() == 0, 20)
    # What the limit goes by is measured now and then; what was written before the sealing counted as its own till then.
    time.sleep(3 * MEASURE_EVERY_S)
    assert not limit(limited, session="user")["full"]
    with (user / "mine").open("wb") as file:
        file.write(mine)
        os.fsync(file.fileno())
    with (user / "mine").open("ab") as file:
        file.write(noise(3, 4 * MIB))
        with pytest.raises(OSError, match="Disk quota exceeded"):
            os.fsync(file.fileno())
    limit(limited, "--max-unique-bytes", "default", session="user")
    write_file(user / "more", noise(4, 4 * MIB))


def test_settings_and_what_wins_over_them() -> None:
    with Mounted(options=["--max-sessions", "3", "--max-session-bytes", "1M"]) as mounted:
        assert row(limit(mounted), "max_sessions") == {"limit": "max_sessions", "value": 3, "set": False, "used": 0}
        limit(mounted, "--max-sessions", "off", "--max-session-bytes", "2M")
        mounted.remount()
        answer = limit(mounted)
        assert row(answer, "max_sessions")["value"] is None
        assert row(answer, "max_session_bytes") == {
            "limit": "max_session_bytes",
            "value": 2 * MIB,
            "set": True,
            "used": None,
        }
        limit(mounted, "--max-session-bytes", "default", "--max-sessions", "default")
        assert row(limit(mounted), "max_session_bytes")["value"] == MIB
        wrong = mounted.sessfs("limit", str(mounted.path), "--max-sessions", "0", check=False)
        assert (wrong.returncode, "--max-sessions" in wrong.stderr) == (2, True)
        wrong = mounted.sessfs("limit", str(mounted.path / "nobody"), "--max-unique-bytes", "1M", check=False)
        assert (wrong.returncode, "nobody" in wrong.stderr) == (2, True)
        mounted.umount()
        mounted.fsck()
