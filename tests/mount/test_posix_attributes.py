"""Modes, owners, times, statfs, and who may do what."""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING

import pytest

from sessfs.types import TIME_MAX_NS, TIME_MIN_NS
from tests.support.posix import as_nobody, errno_of, noise, read_file, write_file

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.mounted import Mounted

NOBODY = 65534


def _mode(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("mode", [0o000, 0o644, 0o755, 0o1777, 0o2755, 0o4755, 0o7777])
def test_chmod_sets_all_twelve_bits(directory: Path, mode: int) -> None:
    write_file(directory / "f", b"")
    os.mkdir(directory / "d")
    for name in ("f", "d"):
        os.chmod(directory / name, mode)
        assert _mode(directory / name) == mode
    fd = os.open(directory / "f", os.O_RDONLY)
    os.fchmod(fd, mode ^ 0o111)
    assert stat.S_IMODE(os.fstat(fd).st_mode) == mode ^ 0o111
    os.close(fd)


def test_chmod_moves_ctime_and_nothing_else(directory: Path) -> None:
    write_file(directory / "f", b"x")
    before = os.stat(directory / "f")
    time.sleep(0.02)
    os.chmod(directory / "f", 0o600)
    after = os.stat(directory / "f")
    assert after.st_ctime_ns > before.st_ctime_ns
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (before.st_mtime_ns, before.st_size, before.st_ino)


def test_chown_changes_what_it_was_given(directory: Path) -> None:
    write_file(directory / "f", b"")
    os.chown(directory / "f", 1001, 1002)
    assert (os.stat(directory / "f").st_uid, os.stat(directory / "f").st_gid) == (1001, 1002)
    os.chown(directory / "f", -1, 7)
    assert (os.stat(directory / "f").st_uid, os.stat(directory / "f").st_gid) == (1001, 7)
    os.chown(directory / "f", 4_000_000_000, -1)
    assert (os.stat(directory / "f").st_uid, os.stat(directory / "f").st_gid) == (4_000_000_000, 7)


@pytest.mark.parametrize(
    "mtime_ns",
    [
        0,
        1,
        999_999_501,
        1_683_264_360_000_000_001,
        1_683_264_360_999_999_999,
        4_294_967_296_123_456_789,
        -1,
        -1_500_000_000,
    ],
)
def test_utime_is_exact_to_the_nanosecond_and_stays(directory: Path, mtime_ns: int) -> None:
    """juicefs#3204, pyfuse3 3.2.0: late data writes and floating point changed the time that cp -p had set."""
    path = directory / "m"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"hello" * 5000)
    os.utime(fd, ns=(mtime_ns + 7, mtime_ns))
    assert os.fstat(fd).st_mtime_ns == mtime_ns
    os.close(fd)
    assert os.stat(path).st_mtime_ns == mtime_ns
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    assert (os.stat(path).st_mtime_ns, os.stat(path).st_atime_ns) == (mtime_ns, mtime_ns + 7)


def test_utime_beyond_what_can_be_kept_is_clamped(mount: Mounted) -> None:
    """Such a time failed the next commit, outside of any request, which ended the mount."""
    session = mount.path / "s"
    session.mkdir()
    far = {"future": (1 << 40, TIME_MAX_NS), "past": (-(1 << 40), TIME_MIN_NS)}
    for name, (seconds, _) in far.items():
        write_file(session / name, b"content")
        os.utime(session / name, (seconds, seconds))
        os.mkdir(session / f"{name}.d")
        os.utime(session / f"{name}.d", (seconds, seconds))
    fd = os.open(session / "other", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"synced")
    os.fsync(fd)
    os.close(fd)
    assert sorted(os.listdir(session)) == ["future", "future.d", "other", "past", "past.d"]
    pid = mount.pid
    assert mount.status()["pid"] == pid
    mount.remount()
    assert read_file(session / "other") == b"synced"
    for name, (_, kept) in far.items():
        assert read_file(session / name) == b"content"
        for path in (session / name, session / f"{name}.d"):
            assert os.stat(path).st_mtime_ns == kept


def test_utime_wins_over_writes_before_it_also_later(directory: Path) -> None:
    wanted = 1_683_264_360_123_456_789
    for number in range(20):
        fd = os.open(directory / f"m{number}", os.O_RDWR | os.O_CREAT, 0o600)
        os.write(fd, noise(number, 10_000 * number))
        os.utime(fd, ns=(wanted, wanted + number))
        os.close(fd)
    time.sleep(1.3)
    os.sync()
    assert [os.stat(directory / f"m{number}").st_mtime_ns for number in range(20)] == [wanted + n for n in range(20)]


def test_utime_now_and_omit(directory: Path) -> None:
    path = directory / "t"
    write_file(path, b"")
    os.utime(path, ns=(1_000_000_001, 2_000_000_002))
    assert os.system(f"touch -a -d @5 '{path}'") == 0
    assert (os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns) == (5_000_000_000, 2_000_000_002)
    assert os.system(f"touch -m -d @6 '{path}'") == 0
    assert (os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns) == (5_000_000_000, 6_000_000_000)
    before = time.time_ns() - 100_000_000
    os.utime(path)
    assert before < os.stat(path).st_mtime_ns < time.time_ns() + 100_000_000


def _ftruncate(path: Path, size: int) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.ftruncate(fd, size)
    os.close(fd)


def test_write_truncate_and_open_trunc_move_mtime_and_ctime(directory: Path) -> None:
    path = directory / "f"
    write_file(path, b"12345678")
    changes = {
        "write": lambda: write_file(path, b"k", extra_flags=os.O_APPEND),
        "truncate": lambda: os.truncate(path, 3),
        "ftruncate to the same size": lambda: _ftruncate(path, 3),
        "O_TRUNC": lambda: write_file(path, b""),
    }
    for name, change in changes.items():
        os.utime(path, ns=(1, 1))
        before = os.stat(path)
        time.sleep(0.02)
        change()
        after = os.stat(path)
        assert after.st_mtime_ns > before.st_mtime_ns, name
        assert after.st_ctime_ns > before.st_ctime_ns, name


def test_reading_and_looking_moves_no_mtime_and_no_ctime(directory: Path) -> None:
    write_file(directory / "f", b"x" * 10_000)
    os.mkdir(directory / "d")
    before = [(os.stat(p).st_mtime_ns, os.stat(p).st_ctime_ns) for p in (directory / "f", directory / "d", directory)]
    time.sleep(0.02)
    read_file(directory / "f")
    os.listdir(directory / "d")
    os.close(os.open(directory / "f", os.O_RDWR))
    after = [(os.stat(p).st_mtime_ns, os.stat(p).st_ctime_ns) for p in (directory / "f", directory / "d", directory)]
    assert after == before


def test_each_change_of_a_directory_moves_its_mtime(directory: Path) -> None:
    write_file(directory / "other", b"")
    here = directory / "d"
    os.mkdir(here)
    changes = {
        "create": lambda: write_file(here / "n", b""),
        "link": lambda: os.link(directory / "other", here / "l"),
        "symlink": lambda: os.symlink("x", here / "s"),
        "mkdir": lambda: os.mkdir(here / "m"),
        "rename within": lambda: os.rename(here / "n", here / "n2"),
        "rmdir": lambda: os.rmdir(here / "m"),
        "unlink": lambda: os.unlink(here / "s"),
        "mknod": lambda: os.mkfifo(here / "p"),
    }
    for name, change in changes.items():
        os.utime(here, ns=(1, 1))
        ctime = os.stat(here).st_ctime_ns
        time.sleep(0.02)
        change()
        assert os.stat(here).st_mtime_ns > 1, name
        assert os.stat(here).st_ctime_ns > ctime, name


def test_link_and_unlink_move_ctime_of_the_file(directory: Path) -> None:
    write_file(directory / "a", b"")
    for change in (
        lambda: os.link(directory / "a", directory / "b"),
        lambda: os.rename(directory / "b", directory / "c"),
        lambda: os.unlink(directory / "c"),
    ):
        before = os.stat(directory / "a")
        time.sleep(0.02)
        change()
        after = os.stat(directory / "a")
        assert after.st_ctime_ns > before.st_ctime_ns
        assert after.st_mtime_ns == before.st_mtime_ns


def test_new_names_in_a_setgid_directory_get_its_group(directory: Path) -> None:
    shared = directory / "shared"
    os.mkdir(shared)
    os.chown(shared, 0, 4321)
    os.chmod(shared, 0o2777)
    write_file(shared / "f", b"")
    os.mkdir(shared / "d")
    os.symlink("x", shared / "s")
    os.mkfifo(shared / "p")
    assert [os.lstat(shared / name).st_gid for name in ("f", "d", "s", "p")] == [4321] * 4
    assert _mode(shared / "d") & stat.S_ISGID
    assert not _mode(shared / "f") & stat.S_ISGID
    os.mkdir(shared / "d" / "deeper")
    assert os.stat(shared / "d" / "deeper").st_gid == 4321


@pytest.mark.parametrize("how", ["write", "truncate", "ftruncate", "open_trunc"])
def test_setuid_is_cleared_when_another_changes_the_content(directory: Path, how: str) -> None:
    path = directory / "f"
    write_file(path, b"x" * 100)
    os.chmod(path, 0o6777)
    calls = {
        "write": 'fd = os.open("f", os.O_WRONLY); os.write(fd, b"y"); os.close(fd)',
        "truncate": 'os.truncate("f", 5)',
        "ftruncate": 'fd = os.open("f", os.O_WRONLY); os.ftruncate(fd, 5); os.close(fd)',
        "open_trunc": 'os.close(os.open("f", os.O_WRONLY | os.O_TRUNC))',
    }
    as_nobody(directory, calls[how])
    assert _mode(path) == 0o777


def test_chown_clears_setuid_of_executables(directory: Path) -> None:
    path = directory / "f"
    write_file(path, b"")
    os.chown(path, NOBODY, NOBODY)
    os.chmod(path, 0o6755)
    assert as_nobody(directory, 'say(err(os.chown, "f", -1, 65534))') == 0
    assert _mode(path) == 0o755
    os.chmod(path, 0o6755)
    os.chown(path, 0, 0)
    assert _mode(path) == 0o755


def test_root_keeps_setuid_when_it_writes(directory: Path) -> None:
    write_file(directory / "f", b"x")
    os.chmod(directory / "f", 0o4755)
    write_file(directory / "f", b"y", extra_flags=0)
    assert _mode(directory / "f") == 0o4755


def test_chmod_by_a_stranger_to_the_group_drops_setgid(directory: Path) -> None:
    write_file(directory / "f", b"")
    os.chown(directory / "f", NOBODY, 4321)
    assert as_nobody(directory, 'say(err(os.chmod, "f", 0o2755))') == 0
    assert _mode(directory / "f") == 0o755
    assert as_nobody(directory, 'say(err(os.chmod, "f", 0o2755))', groups=(4321,)) == 0
    assert _mode(directory / "f") == 0o2755


def test_statfs_is_plausible(directory: Path) -> None:
    status = os.statvfs(directory)
    assert status.f_namemax == 255
    assert status.f_bsize >= 512
    assert status.f_frsize >= 512
    assert 0 < status.f_bavail <= status.f_bfree <= status.f_blocks
    assert 0 < status.f_ffree <= status.f_files


def test_st_blocks_and_blksize_are_plausible(directory: Path) -> None:
    write_file(directory / "f", noise(1, 1_000_000))
    fd = os.open(directory / "f", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    status = os.stat(directory / "f")
    assert 900_000 <= status.st_blocks * 512 <= 1_200_000
    assert status.st_blksize >= 512


def test_other_users_are_held_to_the_modes(directory: Path) -> None:
    write_file(directory / "private", b"secret", mode=0o600)
    write_file(directory / "readable", b"x", mode=0o644)
    os.mkdir(directory / "closed", 0o700)
    write_file(directory / "closed" / "f", b"", mode=0o666)
    os.mkdir(directory / "listable", 0o744)
    os.mkdir(directory / "searchable", 0o711)
    write_file(directory / "searchable" / "f", b"x", mode=0o644)
    body = """
say({
    "open private": err(open, "private"),
    "open readable": err(open, "readable"),
    "write readable": err(open, "readable", "ab"),
    "truncate readable": err(os.truncate, "readable", 0),
    "into closed": err(os.stat, "closed/f"),
    "list closed": err(os.listdir, "closed"),
    "list listable": err(os.listdir, "listable"),
    "into listable": err(os.stat, "listable/x"),
    "list searchable": err(os.listdir, "searchable"),
    "into searchable": err(open, "searchable/f"),
    "create": err(open, "new", "w"),
    "mkdir": err(os.mkdir, "new"),
    "symlink": err(os.symlink, "x", "new"),
    "unlink": err(os.unlink, "readable"),
    "rmdir": err(os.rmdir, "listable"),
    "rename": err(os.rename, "readable", "new"),
    "chmod": err(os.chmod, "readable", 0o777),
    "chown": err(os.chown, "readable", 65534, -1),
    "utime": err(os.utime, "readable", (1, 1)),
    "setxattr": err(os.setxattr, "readable", "user.x", b""),
    "getxattr private": err(os.getxattr, "private", "user.x"),
    "access": [os.access("readable", os.R_OK), os.access("readable", os.W_OK), os.access("readable", os.X_OK)],
})
"""
    denied, refused = errno.EACCES, errno.EPERM
    assert as_nobody(directory, body) == {
        "open private": denied,
        "open readable": 0,
        "write readable": denied,
        "truncate readable": denied,
        "into closed": denied,
        "list closed": denied,
        "list listable": 0,
        "into listable": denied,
        "list searchable": denied,
        "into searchable": 0,
        "create": denied,
        "mkdir": denied,
        "symlink": denied,
        "unlink": denied,
        "rmdir": denied,
        "rename": denied,
        "chmod": refused,
        "chown": refused,
        "utime": refused,
        "setxattr": denied,
        "getxattr private": denied,
        "access": [True, False, False],
    }


def test_other_users_own_what_they_create(directory: Path) -> None:
    os.chmod(directory, 0o777)
    body = """
os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o666)); os.mkdir("d"); os.symlink("x", "s"); os.mkfifo("p", 0o666)
say([[os.lstat(n).st_uid, os.lstat(n).st_gid, stat.S_IMODE(os.lstat(n).st_mode)] for n in ("f", "d", "p")]
    + [[os.lstat("s").st_uid]] + [err(os.mknod, "n", stat.S_IFCHR | 0o600, os.makedev(1, 3)), err(os.chown, "f", 0, -1),
    err(os.chown, "f", -1, 0), err(os.chmod, "f", 0o600), err(os.utime, "f", (1, 1)), err(os.unlink, "f")])
"""
    assert as_nobody(directory, body, uid=1234, gid=1235) == [
        [1234, 1235, 0o644],
        [1234, 1235, 0o755],
        [1234, 1235, 0o644],
        [1234],
        errno.EPERM,
        errno.EPERM,
        errno.EPERM,
        0,
        0,
        0,
    ]


def test_group_members_get_the_group_bits(directory: Path) -> None:
    write_file(directory / "f", b"x")
    os.chown(directory / "f", 0, 4321)
    os.chmod(directory / "f", 0o660)
    assert as_nobody(directory, 'say(err(open, "f", "r+b"))') == errno.EACCES
    assert as_nobody(directory, 'say(err(open, "f", "r+b"))', groups=(4321,)) == 0
    os.chmod(directory / "f", 0o606)
    assert as_nobody(directory, 'say(err(open, "f", "r+b"))', groups=(4321,)) == errno.EACCES


def test_sticky_directory_protects_the_files_of_others(directory: Path) -> None:
    os.mkdir(directory / "t")
    os.chmod(directory / "t", 0o1777)
    write_file(directory / "t" / "roots", b"")
    write_file(directory / "t" / "mine", b"")
    os.chown(directory / "t" / "mine", NOBODY, NOBODY)
    body = """
say([err(os.unlink, "t/roots"), err(os.rename, "t/roots", "t/x"), err(os.rename, "t/mine", "t/roots"),
     err(os.rename, "t/mine", "t/mine2"), err(os.unlink, "t/mine2")])
"""
    refused = errno.EPERM
    assert as_nobody(directory, body) == [refused, refused, refused, 0, 0]


def test_writer_who_is_not_owner_may_touch_but_not_set_times(directory: Path) -> None:
    write_file(directory / "f", b"")
    os.chmod(directory / "f", 0o666)
    body = 'say([err(os.utime, "f"), err(os.utime, "f", (1, 1))])'
    assert as_nobody(directory, body) == [0, errno.EPERM]


def test_mode_0_file_stays_open_to_its_descriptor(directory: Path) -> None:
    """Permission is checked by open, not by each write."""
    os.chmod(directory, 0o777)
    body = """
fd = os.open("f", os.O_CREAT | os.O_RDWR, 0o000)
os.write(fd, b"x" * 9000); os.fsync(fd); os.fchmod(fd, 0o400); os.write(fd, b"y")
say([err(open, "f", "r+b"), os.pread(fd, 1, 9000).decode()])
"""
    assert as_nobody(directory, body) == [errno.EACCES, "y"]
    assert errno_of(os.stat, directory / "f") == 0
    assert os.stat(directory / "f").st_size == 9001
