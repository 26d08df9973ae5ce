"""The programs that people use on a profile directory: git, tar, cp, rsync, mv, rm, node."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.posix import noise, prose, read_file, tree, write_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def _run(arguments: Sequence[str | Path], cwd: Path, *, timeout_s: float = 120) -> str:
    """Run a program to its end, which must be exit status 0 with nothing on standard error; return its output."""
    done = subprocess.run(
        [str(argument) for argument in arguments], cwd=cwd, env=_ENV, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, f"{arguments} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def _populate(root: Path) -> None:
    """Make one of everything that a copy has to carry over."""
    os.makedirs(root / "dir" / "deeper")
    os.mkdir(root / "empty")
    write_file(root / "small", b"small\n")
    write_file(root / "dir" / "prose", prose(1, 300_000), mode=0o600)
    write_file(root / "dir" / "deeper" / "noise", noise(2, 1_500_000), mode=0o640)
    write_file(root / "dir" / "nothing", b"")
    write_file(os.fsencode(root) + b"/caf\xc3\xa9 \xff\n", b"odd name")
    write_file(root / ("n" * 255), b"long name")
    os.link(root / "small", root / "dir" / "hard")
    os.symlink("dir/prose", root / "link")
    os.symlink("host-4711", root / "SingletonLock")
    os.mkfifo(root / "fifo", 0o620)
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    with open(root / "sparse", "wb") as file:
        file.seek(3_000_000)
        file.write(b"end")
    os.chmod(root / "dir" / "nothing", 0o4711)
    os.chmod(root / "empty", 0o1777)
    os.chown(root / "small", 1001, 1002)
    os.setxattr(root / "small", "user.note", b"kept")
    os.setxattr(root / "empty", "user.note", b"kept too")
    for number, name in enumerate(
        ("small", "link", "dir/deeper/noise", "sparse", "null", "empty", "dir/deeper", "dir")
    ):
        wanted = 1_600_000_000_000_000_000 + number * 1_000_000_007
        os.utime(root / name, ns=(wanted, wanted), follow_symlinks=False)


@pytest.fixture
def populated(directory: Path) -> Path:
    """A tree with one of everything, in `from` below the directory under test."""
    root = directory / "from"
    os.mkdir(root)
    _populate(root)
    return root


def test_cp_archive_copies_everything(populated: Path, directory: Path) -> None:
    _run(["cp", "-a", populated, directory / "to"], directory)
    assert tree(directory / "to") == tree(populated)


def test_cp_archive_in_from_elsewhere_and_out_again(directory: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    os.mkdir(outside)
    _populate(outside)
    _run(["cp", "-a", outside, directory / "in"], directory)
    _run(["cp", "-a", directory / "in", tmp_path / "back"], directory)
    assert tree(directory / "in") == tree(outside)
    assert tree(tmp_path / "back") == tree(outside)


def test_cp_preserve_keeps_the_time_also_a_second_later(directory: Path) -> None:
    """juicefs#3204: cp -p, then the late write of the content set a new mtime."""
    write_file(directory / "a", noise(1, 200_000))
    os.utime(directory / "a", ns=(1_683_264_360_000_000_001, 1_683_264_360_123_456_789))
    _run(["cp", "-p", directory / "a", directory / "b"], directory)
    time.sleep(1.2)
    assert os.stat(directory / "b").st_mtime_ns == 1_683_264_360_123_456_789


def test_tar_round_trip(populated: Path, directory: Path) -> None:
    flags = ["--xattrs", "--xattrs-include=user.*", "--numeric-owner", "--format=posix", "--sparse"]
    _run(["tar", "-cf", directory / "t.tar", *flags, "-C", populated, "."], directory)
    os.mkdir(directory / "to")
    _run(["tar", "-xpf", directory / "t.tar", *flags, "-C", directory / "to"], directory)
    assert tree(directory / "to") == tree(populated)
    _run(["tar", "-df", directory / "t.tar", "-C", populated], directory)


def test_rsync_copies_everything_and_then_finds_nothing_to_do(populated: Path, directory: Path) -> None:
    command = [
        "rsync",
        "-aHXS",
        "--modify-window=-1",
        "--devices",
        "--specials",
        "--itemize-changes",
        f"{populated}/",
        f"{directory}/to/",
    ]
    _run(command, directory)
    assert tree(directory / "to") == tree(populated)
    assert _run(command, directory) == ""
    assert _run([*command, "--checksum"], directory) == ""
    write_file(populated / "small", b"changed\n")
    os.unlink(populated / "dir" / "nothing")
    _run([*command, "--delete", "--inplace"], directory)
    assert tree(directory / "to") == tree(populated)


def test_git_commits_clones_and_finds_no_fault(directory: Path) -> None:
    work = directory / "work"
    _run(["git", "init", "-q", "-b", "main", work], directory)
    for number in range(60):
        os.makedirs(work / f"d{number % 7}", exist_ok=True)
        write_file(work / f"d{number % 7}" / f"f{number}", prose(number, 500 + number * 991))
    os.symlink("d0/f0", work / "link")
    _run(["git", "add", "."], work)
    _run(["git", "commit", "-q", "-m", "first"], work)
    for number in range(0, 60, 3):
        write_file(work / f"d{number % 7}" / f"f{number}", prose(number + 1000, 5000))
    _run(["git", "rm", "-q", "d1/f1"], work)
    _run(["git", "mv", "d2/f2", "d3/moved"], work)
    _run(["git", "commit", "-q", "-a", "-m", "second"], work)
    _run(["git", "gc", "-q", "--aggressive", "--prune=now"], work)
    assert _run(["git", "status", "--porcelain"], work) == ""
    _run(["git", "fsck", "--full", "--strict", "--no-progress"], work)
    _run(["git", "clone", "-q", "--no-hardlinks", work, directory / "clone"], directory)
    _run(["git", "clone", "-q", "--local", work, directory / "local"], directory)
    for clone in ("clone", "local"):
        _run(["git", "fsck", "--full", "--strict", "--no-progress"], directory / clone)
        assert _run(["git", "rev-parse", "HEAD^{tree}"], directory / clone) == _run(
            ["git", "rev-parse", "HEAD^{tree}"], work
        )
        assert _run(["git", "status", "--porcelain"], directory / clone) == ""


def test_mv_and_rm_of_a_tree(populated: Path, directory: Path) -> None:
    before = tree(populated)
    _run(["mv", populated, directory / "moved"], directory)
    assert tree(directory / "moved") == before
    _run(["rm", "-r", directory / "moved"], directory)
    assert os.listdir(directory) == []


def test_shell_redirections(directory: Path) -> None:
    script = """
echo foo > t; echo bar >> t; : >> t
test "$(cat t)" = "$(printf 'foo\\nbar')"
: > t
test -e t
test ! -s t
"""
    _run(["sh", "-ec", script], directory)


def test_du_and_find_agree_with_what_is_there(populated: Path, directory: Path) -> None:
    assert int(_run(["find", populated, "-type", "f", "-printf", "x"], directory).count("x")) == 8
    apparent = int(_run(["du", "-s", "--apparent-size", "-B1", populated], directory).split()[0])
    assert 4_800_000 <= apparent <= 4_900_000
    assert _run(["find", populated, "-samefile", populated / "small"], directory).count("\n") == 2


_NODE_RM = """
const fs = require('fs');
const dir = process.argv[1];
fs.promises.rm(dir, {recursive: true, force: true, maxRetries: 4})
  .then(() => console.log('removed'), (error) => console.log('failed ' + error.code + ' ' + error.path))
"""


def test_node_rm_of_a_profile_that_is_open_and_still_written(directory: Path) -> None:
    """wwebjs#3072, #4901, nodejs/node#38684: logout() removes the profile under Chrome with exactly this call."""
    profile = directory / "session"
    os.mkdir(profile)
    handles = []
    for number in range(300):
        os.makedirs(profile / f"d{number % 12}", exist_ok=True)
        path = profile / f"d{number % 12}" / f"f{number}"
        write_file(path, noise(number, 20_000))
        handles.append(os.open(path, os.O_RDWR))
    maps = [mmap.mmap(fd, 20_000) for fd in handles[:5]]
    stop = time.monotonic() + 1.0

    def keep_writing() -> None:
        number = 0
        while time.monotonic() < stop:
            number += 1
            with contextlib.suppress(FileNotFoundError):
                write_file(profile / f"d{number % 12}" / f"new{number}", b"late" * 100)
            time.sleep(0.05)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    time.sleep(0.3)
    said = _run(["node", "-e", _NODE_RM, profile], directory).strip()
    writer.join()
    assert said == "removed"
    assert os.listdir(directory) == []
    os.mkdir(profile)
    write_file(profile / "d0", b"the name is free at once")
    for number, fd in enumerate(handles):
        assert os.pread(fd, 30_000, 0) == noise(number, 20_000)
        os.pwrite(fd, b"still writable", 0)
        assert os.fstat(fd).st_nlink == 0
    for mapped in maps:
        assert mapped[:14] == b"still writable"
        mapped.close()
    for fd in handles:
        os.close(fd)
    assert read_file(profile / "d0") == b"the name is free at once"
