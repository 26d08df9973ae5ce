"""Top-level directories are sessions: self-contained, so no name may tie two of them together. Mount only."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.posix import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    errno_of,
    noise,
    read_file,
    renameat2,
    tree,
    write_file,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.mounted import Mounted


@pytest.fixture
def two(sessdir: Path) -> tuple[Path, Path]:
    """Two sessions with a file, a directory and a subdirectory each."""
    other = sessdir.with_name(sessdir.name + "-other")
    other.mkdir()
    for session in (sessdir, other):
        write_file(session / "f", session.name.encode())
        (session / "d" / "e").mkdir(parents=True)
        write_file(session / "d" / "g", b"g")
    return sessdir, other


def test_rename_from_session_to_session_is_exdev(two: tuple[Path, Path]) -> None:
    one, other = two
    before = tree(one), tree(other)
    for source, existing in (("f", "d/g"), ("d", "d/e"), ("d/e", "d/e"), ("d/g", "f")):
        for target in ("new", "d/new", "d/e/new", existing):
            assert errno_of(os.rename, one / source, other / target) == errno.EXDEV, (source, target)
        assert errno_of(renameat2, one / source, other / "new", RENAME_NOREPLACE) == errno.EXDEV
    assert errno_of(renameat2, one / "f", other / "f", RENAME_EXCHANGE) == errno.EXDEV
    assert errno_of(renameat2, one / "d", other / "d", RENAME_EXCHANGE) == errno.EXDEV
    assert (tree(one), tree(other)) == before


def test_link_from_session_to_session_is_exdev(two: tuple[Path, Path]) -> None:
    one, other = two
    assert errno_of(os.link, one / "f", other / "new") == errno.EXDEV
    assert errno_of(os.link, one / "d" / "g", other / "d" / "new") == errno.EXDEV
    assert os.stat(one / "f").st_nlink == 1
    os.link(one / "f", one / "d" / "within")
    assert os.stat(one / "f").st_nlink == 2


def test_root_files_are_a_session_of_their_own(two: tuple[Path, Path]) -> None:
    one, _ = two
    root = one.parent
    name = one.name + "-file"
    write_file(root / name, b"in the root")
    os.symlink("x", root / (name + "-link"))
    assert errno_of(os.rename, root / name, one / "new") == errno.EXDEV
    assert errno_of(os.rename, one / "f", root / (name + "2")) == errno.EXDEV
    assert errno_of(os.link, root / name, one / "new") == errno.EXDEV
    assert errno_of(os.link, one / "f", root / (name + "2")) == errno.EXDEV
    assert errno_of(renameat2, root / name, one / "f", RENAME_EXCHANGE) == errno.EXDEV
    os.rename(root / name, root / (name + "2"))
    os.link(root / (name + "2"), root / (name + "3"))
    assert read_file(root / (name + "3")) == b"in the root"
    for suffix in ("-link", "2", "3"):
        os.unlink(root / (name + suffix))


def test_directory_cannot_become_or_cease_to_be_a_session_by_rename(two: tuple[Path, Path]) -> None:
    one, other = two
    before = tree(one), tree(other)
    assert errno_of(os.rename, one / "d", one.parent / (one.name + "-new")) == errno.EXDEV
    assert errno_of(os.rename, other, one / "nested") == errno.EXDEV
    assert errno_of(os.rename, one, one / "d" / "itself") in (errno.EINVAL, errno.EXDEV)
    assert (tree(one), tree(other)) == before


def test_session_can_be_renamed_with_its_files_open(two: tuple[Path, Path]) -> None:
    one, other = two
    before = tree(one)
    fd = os.open(one / "f", os.O_RDWR)
    renamed = one.with_name(one.name + "-renamed")
    os.rename(one, renamed)
    assert errno_of(os.stat, one) == errno.ENOENT
    assert tree(renamed) == before
    os.pwrite(fd, b"later", 0)
    os.close(fd)
    assert read_file(renamed / "f").startswith(b"later")
    assert errno_of(os.rename, renamed / "f", other / "f") == errno.EXDEV
    os.rename(renamed / "d" / "g", renamed / "g")
    one.mkdir()
    write_file(one / "f", b"another session under the old name")
    assert errno_of(os.link, one / "f", renamed / "new") == errno.EXDEV


def test_session_renamed_over_an_empty_session_replaces_it(two: tuple[Path, Path]) -> None:
    one, other = two
    before = tree(one)
    assert errno_of(os.rename, one, other) == errno.ENOTEMPTY
    empty = one.with_name(one.name + "-empty")
    empty.mkdir()
    os.rename(one, empty)
    assert tree(empty) == before
    assert errno_of(os.rename, empty / "f", other / "x") == errno.EXDEV


def test_sessions_can_be_exchanged(two: tuple[Path, Path]) -> None:
    one, other = two
    before = tree(one), tree(other)
    renameat2(one, other, RENAME_EXCHANGE)
    assert (tree(other), tree(one)) == before


def test_mv_between_sessions_copies(two: tuple[Path, Path]) -> None:
    one, other = two
    write_file(one / "d" / "big", noise(1, 700_000))
    os.setxattr(one / "d" / "big", "user.a", b"b")
    before = {b"moved/" + name[2:]: entry for name, entry in tree(one).items() if name.startswith(b"d/")}
    subprocess.run(["mv", str(one / "d"), str(other / "moved")], check=True, timeout=60)
    assert {name: entry for name, entry in tree(other).items() if name.startswith(b"moved/")} == before
    assert not (one / "d").exists()


def test_removed_session_can_be_made_again_at_once(two: tuple[Path, Path]) -> None:
    one, _ = two
    fd = os.open(one / "d" / "g", os.O_RDONLY)
    subprocess.run(["rm", "-r", str(one)], check=True, timeout=60)
    one.mkdir()
    assert os.listdir(one) == []
    write_file(one / "f", b"new")
    assert os.pread(fd, 9, 0) == b"g"
    os.close(fd)


def test_sessions_and_root_files_survive_remounts(mount: Mounted) -> None:
    for name in ("user1", "user2", "\udcff odd"):
        (mount.path / name).mkdir()
        write_file(mount.path / name / "f", noise(len(name), 123_456))
        (mount.path / name / "d").mkdir()
        os.symlink("x", mount.path / name / "d" / "s")
    write_file(mount.path / "rootfile", b"r")
    os.rename(mount.path / "user2", mount.path / "user3")
    before = tree(mount.path)
    for _ in range(2):
        mount.remount()
        assert tree(mount.path) == before
        mount.seal()
        assert tree(mount.path) == before
    assert errno_of(os.rename, mount.path / "user1" / "f", mount.path / "user3" / "x") == errno.EXDEV
