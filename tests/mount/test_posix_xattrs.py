"""Extended attributes of the user namespace."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.posix import as_nobody, errno_of, getxattr_into, listxattr_into, noise, write_file

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.mounted import Mounted


@pytest.fixture
def file(directory: Path) -> Path:
    """An empty file."""
    write_file(directory / "f", b"")
    return directory / "f"


def test_set_get_list_remove(file: Path) -> None:
    assert os.listxattr(file) == []
    os.setxattr(file, "user.a", b"1")
    os.setxattr(file, "user.b", b"")
    os.setxattr(file, "user.c", bytes(range(256)))
    assert sorted(os.listxattr(file)) == ["user.a", "user.b", "user.c"]
    assert [os.getxattr(file, f"user.{name}") for name in "abc"] == [b"1", b"", bytes(range(256))]
    os.setxattr(file, "user.a", b"longer than before")
    assert os.getxattr(file, "user.a") == b"longer than before"
    os.removexattr(file, "user.a")
    assert sorted(os.listxattr(file)) == ["user.b", "user.c"]


def test_create_and_replace_flags(file: Path) -> None:
    assert errno_of(os.setxattr, file, "user.a", b"1", os.XATTR_REPLACE) == errno.ENODATA
    assert os.listxattr(file) == []
    os.setxattr(file, "user.a", b"1", os.XATTR_CREATE)
    assert errno_of(os.setxattr, file, "user.a", b"2", os.XATTR_CREATE) == errno.EEXIST
    assert os.getxattr(file, "user.a") == b"1"
    os.setxattr(file, "user.a", b"2", os.XATTR_REPLACE)
    assert os.getxattr(file, "user.a") == b"2"


def test_missing_attribute_is_enodata(file: Path) -> None:
    assert errno_of(os.getxattr, file, "user.none") == errno.ENODATA
    assert errno_of(os.removexattr, file, "user.none") == errno.ENODATA
    assert errno_of(os.getxattr, file.parent / "missing", "user.none") == errno.ENOENT


def test_short_buffer_is_erange_and_size_0_asks_for_the_size(file: Path) -> None:
    os.setxattr(file, "user.value", b"x" * 100)
    assert getxattr_into(file, "user.value", 0) == 100
    assert getxattr_into(file, "user.value", 100) == 100
    assert errno_of(getxattr_into, file, "user.value", 99) == errno.ERANGE
    names = len(b"user.value\0")
    assert listxattr_into(file, 0) == names
    assert listxattr_into(file, names) == names
    assert errno_of(listxattr_into, file, names - 1) == errno.ERANGE


def test_names_of_255_bytes_and_odd_bytes(file: Path) -> None:
    long = "user." + "n" * 250
    odd = b"user.\xff\xfe=\n".decode("utf-8", "surrogateescape")
    os.setxattr(file, long, b"1")
    os.setxattr(file, odd, b"2")
    assert sorted(map(os.fsencode, os.listxattr(file))) == sorted(map(os.fsencode, [long, odd]))
    assert (os.getxattr(file, long), os.getxattr(file, odd)) == (b"1", b"2")
    assert errno_of(os.setxattr, file, long + "n", b"1") == errno.ERANGE


def test_fifty_attributes_on_one_file(file: Path) -> None:
    wanted = {f"user.key{number}": noise(number, number % 30) for number in range(50)}
    for name, value in wanted.items():
        os.setxattr(file, name, value)
    for name in list(wanted)[::3]:
        os.removexattr(file, name)
        del wanted[name]
    assert {name: os.getxattr(file, name) for name in os.listxattr(file)} == wanted


def test_attributes_belong_to_the_inode(directory: Path, file: Path) -> None:
    os.setxattr(file, "user.a", b"1")
    os.link(file, directory / "link")
    os.rename(file, directory / "g")
    assert os.getxattr(directory / "link", "user.a") == b"1"
    os.mkdir(directory / "d")
    os.setxattr(directory / "d", "user.dir", b"2")
    os.rename(directory / "d", directory / "e")
    assert os.getxattr(directory / "e", "user.dir") == b"2"
    write_file(directory / "new", b"")
    assert os.listxattr(directory / "new") == []


def test_change_of_an_attribute_moves_ctime_only(file: Path) -> None:
    os.utime(file, ns=(1, 1))
    for change in (lambda: os.setxattr(file, "user.a", b"1"), lambda: os.removexattr(file, "user.a")):
        before = os.stat(file)
        time.sleep(0.02)
        change()
        after = os.stat(file)
        assert after.st_mtime_ns == before.st_mtime_ns
        assert after.st_ctime_ns > before.st_ctime_ns


def test_symlinks_and_fifos_have_no_user_attributes(directory: Path) -> None:
    os.symlink("x", directory / "s")
    os.mkfifo(directory / "p")
    assert errno_of(os.setxattr, directory / "s", "user.a", b"1", follow_symlinks=False) == errno.EPERM
    assert errno_of(os.setxattr, directory / "p", "user.a", b"1") == errno.EPERM
    assert os.listxattr(directory / "s", follow_symlinks=False) == []


def test_through_descriptor_of_unlinked_file(file: Path) -> None:
    fd = os.open(file, os.O_RDWR)
    os.unlink(file)
    os.setxattr(fd, "user.a", b"1")
    assert (os.listxattr(fd), os.getxattr(fd, "user.a")) == (["user.a"], b"1")
    os.removexattr(fd, "user.a")
    assert os.listxattr(fd) == []
    os.close(fd)


def test_reading_needs_read_and_writing_needs_write_permission(directory: Path, file: Path) -> None:
    os.setxattr(file, "user.a", b"1")
    os.chmod(file, 0o644)
    body = """
say([err(os.getxattr, "f", "user.a"), err(os.setxattr, "f", "user.a", b""), err(os.removexattr, "f", "user.a")])
"""
    assert as_nobody(directory, body) == [0, errno.EACCES, errno.EACCES]
    os.chmod(file, 0o666)
    assert as_nobody(directory, body) == [0, 0, 0]


def test_value_of_64_kib_and_no_more(sessdir: Path) -> None:
    """Only on the mount: ext4 has room for less."""
    write_file(sessdir / "f", b"")
    value = noise(1, 65_536)
    os.setxattr(sessdir / "f", "user.big", value)
    assert os.getxattr(sessdir / "f", "user.big") == value
    assert errno_of(os.setxattr, sessdir / "f", "user.big", value + b"x") == errno.E2BIG
    for number in range(10):
        os.setxattr(sessdir / "f", f"user.{number}", noise(number, 60_000))
    assert os.getxattr(sessdir / "f", "user.7") == noise(7, 60_000)
    assert os.getxattr(sessdir / "f", "user.big") == value


def test_other_namespaces_are_refused_not_broken(sessdir: Path, shared_mount: Mounted) -> None:
    write_file(sessdir / "f", b"")
    for name in ("trusted.x", "security.x", "system.x"):
        assert errno_of(os.setxattr, sessdir / "f", name, b"1") in (0, errno.EOPNOTSUPP, errno.EPERM), name
        assert errno_of(os.getxattr, sessdir / "f", name) in (0, errno.EOPNOTSUPP, errno.ENODATA), name
    assert errno_of(os.setxattr, sessdir / "f", "user.", b"1") in (0, errno.EINVAL)
    os.setxattr(sessdir / "f", "user.alive", b"1")
    assert shared_mount.is_mounted()


def test_attributes_survive_remount_and_go_with_the_file(mount: Mounted) -> None:
    session = mount.path / "user1"
    session.mkdir()
    write_file(session / "f", b"content")
    write_file(session / "gone", b"content")
    value = noise(5, 65_536)
    for name in ("f", "gone"):
        os.setxattr(session / name, "user.big", value)
        os.setxattr(session / name, "user.removed", b"")
        os.removexattr(session / name, "user.removed")
    os.unlink(session / "gone")
    os.setxattr(session, "user.session", b"1")
    mount.remount()
    assert os.listxattr(session / "f") == ["user.big"]
    assert os.getxattr(session / "f", "user.big") == value
    assert os.getxattr(session, "user.session") == b"1"
    write_file(session / "gone", b"new")
    assert os.listxattr(session / "gone") == []
