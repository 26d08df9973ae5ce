"""`sessfs import` into a mount: what arrives is what was there, also after kills, and also on another machine."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.support import posix
from tests.support.imports import MANY, SESSIONS, begin, outcomes, run_import, wait_for_sessions, with_copies
from tests.support.mounted import Mounted
from tests.support.profiles import Shape, describe, make_profile, make_tree

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = Shape(scripts=4, script_kib=128, records=500)
LARGE = Shape(scripts=24, script_kib=5 << 10, records=20_000)


def assert_same(mount: Mounted, sessions: list[Path]) -> None:
    for session in sessions:
        assert describe(mount.path / session.name) == describe(session), session.name


def make_large_tree(root: Path, number: int) -> list[Path]:
    """Users of about 140 MB each, if there are MANY; five are made, the others copies with something of their own."""
    return with_copies(make_tree(root, min(number, 5), LARGE if number >= MANY else SHAPE), number)


def test_import_tree_compares_byte_for_byte_and_attribute_for_attribute(mount: Mounted, tmp_path: Path) -> None:
    # The kernel remembers that the name was missing: it has to be told.
    assert not (mount.path / "user1").exists()
    users = make_tree(tmp_path / "tree", 3, SHAPE)
    report = run_import(mount, tmp_path / "tree")
    assert outcomes(report) == dict.fromkeys(["user1", "user2", "user3"], "imported")
    assert (report["refused"], report["verified"]) == (0, True)
    assert_same(mount, users)
    assert report["stored_bytes"] < 0.5 * report["total_bytes"]
    mount.remount()
    assert_same(mount, users)


def test_imported_sessions_are_used_like_any(mount: Mounted, tmp_path: Path) -> None:
    (user,) = make_tree(tmp_path / "tree", 1, SHAPE)
    run_import(mount, tmp_path / "tree")
    profile = mount.path / "user1/session"
    (profile / "Local State").write_text("new")
    os.link(profile / "Default/Preferences", profile / "Default/another")
    (profile / "Default/History").unlink()
    shutil.rmtree(profile / "Default/Cache")
    with (profile / "Default/sparse").open("r+b") as file:
        file.seek(1000)
        file.write(b"here")
    mount.remount()
    assert (profile / "Local State").read_text() == "new"
    plain = bytearray((user / "session/Default/sparse").read_bytes())
    plain[1000:1004] = b"here"
    assert (profile / "Default/sparse").read_bytes() == plain
    shutil.rmtree(mount.path / "user1")


def test_import_prints_a_line_for_each_session_and_exits_1_when_one_is_refused(mount: Mounted, tmp_path: Path) -> None:
    users = make_tree(tmp_path / "tree", 2, SHAPE)
    (users[0] / "session/bad").symlink_to("/etc/passwd")
    done = mount.sessfs("import", str(tmp_path / "tree"), str(mount.path), check=False)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("user1: refused: ")
    assert lines[0].endswith("(--skip-unsafe leaves it out)")
    assert lines[1].startswith(f"user2: imported from {users[1]} (")
    assert lines[-1] == f"whatsapp-web.js finds them with dataPath {mount.path}/NAME"
    assert os.listdir(mount.path) == ["user2"]


def test_dry_run_says_what_would_become_what(mount: Mounted, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 1, SHAPE)
    done = mount.sessfs("import", str(tmp_path / "tree/user1/session"), str(mount.path), "--dry-run", "--as", "x")
    assert done.stdout.startswith(f"x: would be imported: {tmp_path}/tree/user1/session (")
    assert os.listdir(mount.path) == []


def test_import_zip_of_remote_auth(mount: Mounted, tmp_path: Path) -> None:
    make_profile(tmp_path / "p", "p", SHAPE)
    kept = ("Default/IndexedDB", "Default/Local Storage")
    with zipfile.ZipFile(tmp_path / "RemoteAuth-7.zip", "w") as file:
        for below in kept:
            for path in sorted((tmp_path / "p" / below).rglob("*")):
                file.write(path, path.relative_to(tmp_path / "p"))
    report = run_import(mount, tmp_path / "RemoteAuth-7.zip")
    assert (outcomes(report), report["data_path"]) == ({"RemoteAuth-7": "imported"}, str(mount.path))
    assert report["sessions"][0]["source"] == str(tmp_path / "RemoteAuth-7.zip")
    for below in kept:
        for path in (tmp_path / "p" / below).rglob("*"):
            if path.is_file():
                there = mount.path / "RemoteAuth-7" / path.relative_to(tmp_path / "p")
                assert there.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("inside", ["mount", "state"])
def test_source_inside_of_the_mount_or_its_state_is_refused(mount: Mounted, inside: str) -> None:
    place = mount.path / "a" if inside == "mount" else mount.state
    (mount.path / "a/session/Default").mkdir(parents=True)
    (mount.path / "a/session/Local State").touch()
    done = mount.sessfs("import", str(place), str(mount.path), check=False)
    assert done.returncode == 2
    assert "import from outside of it" in done.stderr


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR])
def test_source_of_another_kind_is_refused_unopened(mount: Mounted, tmp_path: Path, kind: int) -> None:
    os.mknod(tmp_path / "x.tar", kind | 0o600, os.makedev(1, 5))
    done = mount.sessfs("import", str(tmp_path / "x.tar"), str(mount.path), check=False, timeout_s=30)
    assert done.returncode == 2
    assert f"{tmp_path}/x.tar is neither a directory nor a regular file" in done.stderr


def test_source_that_only_the_caller_sees_is_refused(mount: Mounted, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 1, SHAPE)
    (tmp_path / "over").mkdir()
    command = f"mount --bind {tmp_path}/tree {tmp_path}/over && {sys.executable} -m sessfs.cli.main"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{command} import {tmp_path}/over {mount.path}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 13
    assert f"sees something else at {tmp_path}/over than you do" in done.stderr
    assert os.listdir(mount.path) == []


def test_archive_that_attacks_is_refused_whole(mount: Mounted, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 1, SHAPE)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for path in (tmp_path / "tree/user1").rglob("*"):
            if path.is_file():
                file.write(path, path.relative_to(tmp_path))
        file.writestr("tree/../../../evil", b"")
    done = mount.sessfs("import", str(tmp_path / "x.zip"), str(mount.path), check=False)
    assert done.returncode == 1
    assert "member 'tree/../../../evil' leads out of the archive's folder" in done.stderr
    assert os.listdir(mount.path) == []
    assert os.listdir(mount.state / "staging") == []


def test_what_a_killed_import_left_is_removed_beside_the_next(mount: Mounted, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 1, SHAPE)
    shutil.make_archive(str(tmp_path / "x"), "tar", tmp_path / "tree")
    mount.umount()
    left = mount.state / "staging/1-1"
    for number in range(100):
        (left / str(number)).mkdir(parents=True)
        for name in range(500):
            (left / str(number) / str(name)).touch()
    mount.mount()
    assert outcomes(run_import(mount, tmp_path / "x.tar")) == {"user1": "imported"}
    assert posix.eventually(lambda: os.listdir(mount.state / "staging") == [], 60)
    assert (mount.path / "user1/session/Local State").read_bytes()


def test_daemon_killed_in_the_middle_leaves_whole_sessions_and_goes_on(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    users = make_tree(tmp_path / "tree", 8, SHAPE)
    with Mounted() as mount:
        command = begin(mount, tmp_path / "tree", started)
        wait_for_sessions(mount, 2)
        mount.kill()
        assert command.wait(30) != 0
        mount.mount()
        whole = os.listdir(mount.path)
        # The first was durable before the second was begun, which could be seen a moment before it was durable.
        assert 1 <= len(whole) < 8
        assert_same(mount, [user for user in users if user.name in whole])
        report = run_import(mount, tmp_path / "tree")
        assert outcomes(report) == {u.name: "already there" if u.name in whole else "imported" for u in users}
        assert_same(mount, users)
        mount.umount()
        mount.fsck()


def test_command_killed_in_the_middle_ends_the_import(
    mount: Mounted, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    users = make_tree(tmp_path / "tree", 8, SHAPE)
    command = begin(mount, tmp_path / "tree", started)
    time.sleep(1.0)
    command.send_signal(signal.SIGKILL)
    command.wait()
    report = run_import(mount, tmp_path / "tree")
    assert set(outcomes(report).values()) <= {"already there", "imported"}
    assert_same(mount, users)


def test_mount_answers_while_it_imports(mount: Mounted, tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    make_tree(tmp_path / "tree", 8, SHAPE)
    (mount.path / "other").mkdir()
    command = begin(mount, tmp_path / "tree", started)
    slowest_s = 0.0
    while command.poll() is None:
        before_s = time.monotonic()
        (mount.path / "other/f").write_bytes(b"x" * 5000)
        os.rename(mount.path / "other/f", mount.path / "other/g")
        slowest_s = max(slowest_s, time.monotonic() - before_s)
        time.sleep(0.01)
    assert command.returncode == 0
    assert slowest_s < 2.0


def test_import_keeps_to_the_limit_of_sessions(mount: Mounted, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 2, SHAPE)
    mount.sessfs("limit", str(mount.path), "--max-sessions", "1")
    report = run_import(mount, tmp_path / "tree", code=1)
    assert outcomes(report) == {"user1": "imported", "user2": "refused"}
    assert "a limit says no: " in report["sessions"][1]["reason"]
    assert os.listdir(mount.path) == ["user1"]


def test_imported_sessions_are_restored_from_the_bucket(tmp_path: Path) -> None:
    users = make_tree(tmp_path / "tree", 2, SHAPE)
    (tmp_path / "bucket").mkdir()
    remote = ["--remote", f"file://{tmp_path}/bucket"]
    with Mounted(options=remote) as mount:
        run_import(mount, tmp_path / "tree")
        mount.sessfs("sync", str(mount.path))
        mount.umount()
        mount.fsck()
    caches = tmp_path / "caches"
    caches.mkdir()
    for user in users:
        # The HTTP cache does not travel.
        shutil.move(user / "session/Default/Cache/Cache_Data", caches / user.name)
    with Mounted(options=remote) as mount:
        for user in users:
            found = describe(mount.path / user.name)
            wanted = describe(user)
            del found["session/Default/Cache"], wanted["session/Default/Cache"]
            assert found == wanted


def test_name_that_only_the_bucket_has_is_not_overwritten(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 1, SHAPE)
    (tmp_path / "bucket").mkdir()
    remote = ["--remote", f"file://{tmp_path}/bucket"]
    with Mounted(options=remote) as mount:
        (mount.path / "user1").mkdir()
        (mount.path / "user1/mine").write_text("mine")
        mount.sessfs("sync", str(mount.path))
    with Mounted(options=remote) as mount:
        report = run_import(mount, tmp_path / "tree", code=1)
        assert "the mount has another session of this name" in report["sessions"][0]["reason"]
        assert (mount.path / "user1/mine").read_text() == "mine"


@pytest.mark.scale
def test_many_sessions_survive_a_kill_in_the_middle(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    """With 50 sessions, 7 GB: imported, killed in the middle, imported again, compared, checked."""
    users = make_large_tree(tmp_path / "tree", SESSIONS)
    with Mounted() as mount:
        command = begin(mount, tmp_path / "tree", started)
        wait_for_sessions(mount, SESSIONS // 2)
        mount.kill()
        command.wait(60)
        mount.mount()
        assert_same(mount, [mount_user for mount_user in users if (mount.path / mount_user.name).exists()])
        report = run_import(mount, tmp_path / "tree")
        assert len(report["sessions"]) == SESSIONS
        assert report["refused"] == 0
        assert_same(mount, users)
        mount.umount()
        mount.fsck()
    shutil.rmtree(tmp_path / "tree")
