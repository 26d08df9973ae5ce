"""rename(2) and renameat2(2)."""

from __future__ import annotations

import errno
import itertools
import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.posix import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Child,
    errno_of,
    read_file,
    renameat2,
    tree,
    write_file,
)

if TYPE_CHECKING:
    from pathlib import Path


def _make(path: Path, kind: str) -> None:
    if kind == "file":
        write_file(path, path.name.encode())
    elif kind == "empty":
        os.mkdir(path)
    elif kind == "full":
        os.mkdir(path)
        write_file(path / "inside", path.name.encode())
    elif kind == "symlink":
        os.symlink(path.name, path)
    elif kind == "fifo":
        os.mkfifo(path)


DIRS = ("empty", "full")
KINDS = ("file", "symlink", "fifo", *DIRS)


def _expected(source: str, target: str) -> int:
    if source in DIRS:
        if target not in DIRS:
            return errno.ENOTDIR
        return errno.ENOTEMPTY if target == "full" else 0
    return errno.EISDIR if target in DIRS else 0


@pytest.mark.parametrize(("source", "target"), list(itertools.product(KINDS, KINDS)))
def test_rename_over_every_kind(directory: Path, source: str, target: str) -> None:
    _make(directory / "from", source)
    _make(directory / "to", target)
    before = tree(directory)
    expected = _expected(source, target)
    assert errno_of(os.rename, directory / "from", directory / "to") == expected
    after = tree(directory)
    if expected:
        assert after == before
    else:
        assert after[b"to"] == before[b"from"]
        assert {name for name in after if name.startswith(b"from")} == set()


@pytest.mark.parametrize("kind", KINDS)
def test_rename_to_a_free_name_moves_everything(directory: Path, kind: str) -> None:
    _make(directory / "from", kind)
    os.mkdir(directory / "d")
    before = os.lstat(directory / "from")
    os.rename(directory / "from", directory / "d" / "to")
    after = os.lstat(directory / "d" / "to")
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
    assert os.listdir(directory) == ["d"]


def test_rename_errors_change_nothing(directory: Path) -> None:
    os.makedirs(directory / "a" / "b")
    write_file(directory / "f", b"f")
    before = tree(directory)
    assert errno_of(os.rename, directory / "missing", directory / "x") == errno.ENOENT
    assert errno_of(os.rename, directory / "f", directory / "missing" / "x") == errno.ENOENT
    assert errno_of(os.rename, directory / "f", directory / "f" / "x") == errno.ENOTDIR
    assert errno_of(os.rename, directory / "a", directory / "a" / "b" / "c") == errno.EINVAL
    assert errno_of(os.rename, directory / "a", directory / "a" / "b") == errno.EINVAL
    assert errno_of(os.rename, directory / "a" / "b", directory / "a") == errno.ENOTEMPTY
    assert errno_of(os.rename, os.fsencode(directory) + b"/a/.", directory / "x") == errno.EBUSY
    assert tree(directory) == before


def test_rename_onto_itself_and_onto_a_hard_link_of_itself_does_nothing(directory: Path) -> None:
    write_file(directory / "a", b"1")
    os.link(directory / "a", directory / "b")
    os.rename(directory / "a", directory / "a")
    os.rename(directory / "a", directory / "b")
    assert sorted(os.listdir(directory)) == ["a", "b"]
    assert os.stat(directory / "a").st_nlink == 2


def test_rename_over_one_of_several_hard_links_lowers_the_count(directory: Path) -> None:
    write_file(directory / "a", b"a")
    os.link(directory / "a", directory / "a2")
    write_file(directory / "new", b"new")
    os.rename(directory / "new", directory / "a")
    assert os.stat(directory / "a2").st_nlink == 1
    assert (read_file(directory / "a"), read_file(directory / "a2")) == (b"new", b"a")


def test_rename_of_an_open_file_keeps_its_later_writes(directory: Path) -> None:
    """littlefs-fuse#78, matchlock#81: the daemon knew the open file by its path."""
    fd = os.open(directory / "1", os.O_RDWR | os.O_CREAT, 0o600)
    os.rename(directory / "1", directory / "2")
    os.write(fd, b"0123456789")
    os.mkdir(directory / "s")
    os.rename(directory / "2", directory / "s" / "3")
    os.write(fd, b"ab")
    os.close(fd)
    assert read_file(directory / "s" / "3") == b"0123456789ab"
    os.rename(directory / "s", directory / "s2")
    assert read_file(directory / "s2" / "3") == b"0123456789ab"


def test_rename_over_an_open_file_leaves_the_old_one_to_its_holder(directory: Path) -> None:
    write_file(directory / "a", b"old")
    old = os.open(directory / "a", os.O_RDWR)
    write_file(directory / "b", b"new")
    os.rename(directory / "b", directory / "a")
    assert os.pread(old, 9, 0) == b"old"
    os.pwrite(old, b"OLD!", 0)
    os.ftruncate(old, 3)
    assert (os.fstat(old).st_nlink, os.fstat(old).st_size) == (0, 3)
    assert read_file(directory / "a") == b"new"
    os.close(old)


def test_rename_replaces_so_that_a_reader_always_sees_a_whole_file(directory: Path) -> None:
    """libfuse#637, nbs#7151: ENOENT while a file is replaced."""
    write_file(directory / "CURRENT", b"MANIFEST-000001\n")
    body = """
end = time.monotonic() + 3
number = 0
say(0)
while time.monotonic() < end:
    number += 1
    with open("t", "wb") as file: file.write(b"MANIFEST-%06d\\n" % (number % 999999))
    os.rename("t", "CURRENT")
say(number)
"""
    wrong: list[object] = []
    reads = 0
    with Child(directory, body) as child:
        child.hear()
        end = time.monotonic() + 2.9
        while time.monotonic() < end and len(wrong) < 5:
            reads += 1
            try:
                content = read_file(directory / "CURRENT")
            except OSError as error:
                wrong.append(error)
            else:
                if len(content) != 16 or content[-1:] != b"\n":
                    wrong.append(content)
        replaced = child.hear()
    assert wrong == []
    assert reads > 50
    assert replaced > 50


def test_rename_of_directory_forgets_the_old_path(directory: Path) -> None:
    """clio-core#680, juicefs PR#6893: a stale path cache after a directory moved."""
    os.mkdir(directory / "d")
    write_file(directory / "d" / "bar", b"foo")
    os.rename(directory / "d", directory / "e")
    assert errno_of(os.stat, directory / "d" / "bar") == errno.ENOENT
    os.unlink(directory / "e" / "bar")
    os.rmdir(directory / "e")
    os.mkdir(directory / "d")
    assert errno_of(os.stat, directory / "d" / "bar") == errno.ENOENT
    write_file(directory / "d" / "bar", b"2")
    assert read_file(directory / "d" / "bar") == b"2"


def test_rename_of_directory_moves_its_dotdot(directory: Path) -> None:
    os.makedirs(directory / "a" / "moving")
    os.mkdir(directory / "b")
    fd = os.open(directory / "a" / "moving", os.O_RDONLY | os.O_DIRECTORY)
    os.rename(directory / "a" / "moving", directory / "b" / "moving")
    assert os.stat("..", dir_fd=fd).st_ino == os.stat(directory / "b").st_ino
    assert (os.stat(directory / "a").st_nlink, os.stat(directory / "b").st_nlink) == (2, 3)
    os.close(fd)


def test_rename_noreplace(directory: Path) -> None:
    """s3fs-fuse PR#2933, glusterfs#3907, curvine#1252: the flags were ignored."""
    write_file(directory / "a", b"A")
    write_file(directory / "b", b"B")
    os.mkdir(directory / "d")
    assert errno_of(renameat2, directory / "a", directory / "b", RENAME_NOREPLACE) == errno.EEXIST
    assert errno_of(renameat2, directory / "a", directory / "d", RENAME_NOREPLACE) == errno.EEXIST
    assert errno_of(renameat2, directory / "a", directory / "a", RENAME_NOREPLACE) == errno.EEXIST
    assert errno_of(renameat2, directory / "missing", directory / "x", RENAME_NOREPLACE) == errno.ENOENT
    assert (read_file(directory / "a"), read_file(directory / "b")) == (b"A", b"B")
    assert errno_of(renameat2, directory / "a", directory / "new", RENAME_NOREPLACE) == 0
    assert read_file(directory / "new") == b"A"
    assert not (directory / "a").exists()


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations_with_replacement(KINDS, 2)))
def test_rename_exchange_swaps_any_two(directory: Path, first: str, second: str) -> None:
    os.mkdir(directory / "x")
    os.mkdir(directory / "y")
    _make(directory / "x" / "one", first)
    _make(directory / "y" / "two", second)
    one, two = os.lstat(directory / "x" / "one").st_ino, os.lstat(directory / "y" / "two").st_ino
    before = tree(directory)
    renameat2(directory / "x" / "one", directory / "y" / "two", RENAME_EXCHANGE)
    assert os.lstat(directory / "x" / "one").st_ino == two
    assert os.lstat(directory / "y" / "two").st_ino == one
    after = tree(directory)
    assert (after[b"x/one"], after[b"y/two"]) == (before[b"y/two"], before[b"x/one"])
    for parent, kind in (("x", second), ("y", first)):
        assert os.stat(directory / parent).st_nlink == (3 if kind in DIRS else 2)


def test_rename_exchange_errors_change_nothing(directory: Path) -> None:
    os.makedirs(directory / "d" / "e")
    write_file(directory / "a", b"A")
    before = tree(directory)
    assert errno_of(renameat2, directory / "a", directory / "missing", RENAME_EXCHANGE) == errno.ENOENT
    assert errno_of(renameat2, directory / "missing", directory / "a", RENAME_EXCHANGE) == errno.ENOENT
    assert errno_of(renameat2, directory / "d", directory / "d" / "e", RENAME_EXCHANGE) == errno.EINVAL
    assert errno_of(renameat2, directory / "d" / "e", directory / "d", RENAME_EXCHANGE) == errno.EINVAL
    both = RENAME_EXCHANGE | RENAME_NOREPLACE
    assert errno_of(renameat2, directory / "a", directory / "d", both) == errno.EINVAL
    assert errno_of(renameat2, directory / "a", directory / "d", 1 << 10) == errno.EINVAL
    assert tree(directory) == before


def test_rename_moves_the_times_of_both_parents_and_ctime_of_the_file(directory: Path) -> None:
    os.mkdir(directory / "x")
    os.mkdir(directory / "y")
    write_file(directory / "x" / "f", b"")
    before = [os.stat(directory / name) for name in ("x", "y", "x/f")]
    time.sleep(0.02)
    os.rename(directory / "x" / "f", directory / "y" / "f")
    after = [os.stat(directory / name) for name in ("x", "y", "y/f")]
    for old, new in zip(before[:2], after[:2], strict=True):
        assert new.st_mtime_ns > old.st_mtime_ns
        assert new.st_ctime_ns > old.st_ctime_ns
    assert after[2].st_mtime_ns == before[2].st_mtime_ns
    assert after[2].st_ctime_ns > before[2].st_ctime_ns
