"""Snapshots, rollback, clone and reserved names on a real mount: what the kernel has cached must not show any more."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.mounted import Mounted
from tests.support.posix import errno_of, noise, read_file, tree, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOLD_OPEN = "import sys; f = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"


@pytest.fixture
def mounted() -> Iterator[Mounted]:
    with Mounted() as mounted:
        yield mounted
        mounted.umount()
        mounted.fsck()


def fill(session: Path) -> None:
    session.mkdir()
    (session / "dir").mkdir()
    write_file(session / "dir" / "big", noise(300_000, 1))
    write_file(session / "small", b"small")


def run(mounted: Mounted, *arguments: str) -> Any:
    return json.loads(mounted.sessfs(*arguments, "--json").stdout)


def test_rollback_shows_the_new_tree_where_the_old_was_looked_at(mounted: Mounted) -> None:
    session = mounted.path / "user1"
    fill(session)
    taken = run(mounted, "snapshot", str(session), "--mark", "good one")
    before = tree(session)
    write_file(session / "dir" / "big", b"damage")
    write_file(session / "dir" / "new", b"new")
    (session / "small").unlink()
    damaged = tree(session)
    assert not (session / "small").exists()
    assert run(mounted, "rollback", str(session), str(taken["sequence"])) == taken
    assert tree(session) == before
    assert read_file(session / "dir" / "big") == noise(300_000, 1)
    assert not (session / "dir" / "new").exists()
    write_file(session / "dir" / "new", b"newer")
    history = run(mounted, "history", str(session))["snapshots"]
    assert [one["mark"] for one in history] == ["good one", "before rollback"]
    mounted.sessfs("rollback", str(session), str(history[-1]["sequence"]))
    assert tree(session) == damaged
    mounted.remount()
    assert tree(session) == damaged
    mounted.sessfs("rollback", str(session), str(taken["sequence"]))
    assert tree(session) == before


def test_rollback_is_refused_while_a_process_has_a_file_open(mounted: Mounted) -> None:
    session = mounted.path / "user1"
    fill(session)
    mounted.sessfs("snapshot", str(session))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_OPEN, str(session / "small")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    done = mounted.sessfs("rollback", str(session), "1", check=False)
    assert done.returncode == 17
    assert f"pid {holder.pid}" in done.stderr
    holder.communicate()
    mounted.sessfs("rollback", str(session), "1")


def test_clone_is_there_at_once_where_it_was_known_to_be_missing(mounted: Mounted) -> None:
    session, copy = mounted.path / "user1", mounted.path / "user2"
    fill(session)
    mounted.seal()
    before = mounted.status()["stored_bytes"]
    assert not copy.exists()
    mounted.sessfs("clone", str(session), "user2")
    assert tree(copy).keys() == tree(session).keys()
    assert read_file(copy / "dir" / "big") == noise(300_000, 1)
    assert mounted.status()["stored_bytes"] == before
    write_file(copy / "small", b"other")
    assert read_file(session / "small") == b"small"
    done = mounted.sessfs("clone", str(session), "user2", check=False)
    assert done.returncode == 1
    assert "user2 exists already" in done.stderr
    assert mounted.sessfs("clone", str(mounted.path / "nobody"), "user3", check=False).returncode == 1
    for name in (".sessfs-trash-0", "x" * 256, "a/b", ""):
        done = mounted.sessfs("clone", str(session), name, check=False)
        assert (done.returncode, "name of a session" in done.stderr) == (2, True)
    assert sorted(os.listdir(mounted.path)) == ["user1", "user2"]


def test_views_are_found_by_exact_name_only_and_go(mounted: Mounted) -> None:
    session = mounted.path / "user1"
    fill(session)
    before = tree(session)
    sequence = run(mounted, "snapshot", str(session))["sequence"]
    write_file(session / "small", b"SMALL")
    assert not (mounted.path / ".sessfs-view-1").exists()
    view = mounted.path / mounted.control("open_view", {"session": "user1", "sequence": sequence})["view"]
    assert {p: e for p, e in tree(view).items() if p != "."}.keys() == {p for p in before if p != "."}
    assert read_file(view / "small") == b"small"
    assert os.listdir(mounted.path) == ["user1"]
    assert [row["name"] for row in run(mounted, "sessions", str(mounted.path))["sessions"]] == ["user1"]
    mounted.control("close_view", {"view": view.name})
    assert not view.exists()
    left = mounted.path / mounted.control("open_view", {"session": "user1", "sequence": sequence})["view"]
    assert left.exists()
    mounted.remount()
    assert not left.exists()


def test_reserved_names_are_not_for_users(mounted: Mounted) -> None:
    session = mounted.path / "user1"
    fill(session)
    write_file(mounted.path / "file", b"x")
    for name in (".sessfs-view-9", ".sessfs-trash-1", ".sessfs-x"):
        path = mounted.path / name
        assert errno_of(os.mkdir, path) == errno.EPERM
        assert errno_of(os.rename, session, path) == errno.EPERM
        assert errno_of(os.open, path, os.O_CREAT | os.O_WRONLY) == errno.EPERM
        assert errno_of(os.symlink, "x", path) == errno.EPERM
        assert errno_of(os.link, mounted.path / "file", path) == errno.EPERM
        assert errno_of(os.stat, path) == errno.ENOENT
        (session / name).mkdir()


def test_history_by_itself(mounted: Mounted) -> None:
    mounted.umount()
    mounted.options = ["--snapshot-interval", "1s", "--keep-last", "2", "--keep-hourly", "0", "--keep-daily", "0"]
    mounted.mount()
    session = mounted.path / "user1"
    fill(session)
    seen: set[int] = set()
    for number in range(4):
        write_file(session / "small", b"%d" % number)
        last = max(seen, default=0)
        for _ in range(100):
            found = [one["sequence"] for one in run(mounted, "history", str(session))["snapshots"]]
            if found and found[-1] > last:
                break
        seen.update(found)
        assert len(found) <= 2
    assert len(seen) >= 4
