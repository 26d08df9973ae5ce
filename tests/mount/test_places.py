"""What a daemon reads and writes itself may not lie in a sessfs mount: refused, with words that name both."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sessfs.api.opening import open_store
from sessfs.errors import UsageError
from sessfs.mount import places
from tests.support.mounted import Mounted, mount_lines
from tests.support.posix import umount2, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

USAGE = 2


def _bind(source: Path, target: Path) -> None:
    target.mkdir()
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True)


def _sessfs(arguments: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sessfs.cli.entry", *arguments],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def other() -> Iterator[Mounted]:
    """A mount that things lie in, with one session."""
    with Mounted() as mounted:
        (mounted.path / "user1").mkdir()
        write_file(mounted.path / "user1" / "key", b"k" * 40)
        write_file(mounted.path / "user1" / "sessfs.toml", b'log_level = "info"\n')
        yield mounted


@pytest.fixture
def ways(other: Mounted, tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Paths that all lead into the mount, some to what is mounted below it."""
    (tmp_path / "link").symlink_to(other.path / "user1")
    _bind(other.path / "user1", tmp_path / "bound")
    beneath = other.path / "user1" / "beneath"
    beneath.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(beneath)], check=True)
    try:
        yield {
            "itself": other.path / "user1",
            "symlink": tmp_path / "link",
            "dots": tmp_path / "x" / ".." / "link",
            "bind": tmp_path / "bound",
            "beneath": beneath,
        }
    finally:
        umount2(beneath, 0)
        umount2(tmp_path / "bound", 0)
        beneath.rmdir()


def test_mount_around_a_path_is_found_by_any_way_to_it(other: Mounted, ways: dict[str, Path], tmp_path: Path) -> None:
    mounts = {line.mountpoint for line in mount_lines() if line.fstype == "fuse.sessfs"}
    for way, place in ways.items():
        for path in (place, place / "not there" / "yet"):
            assert places.mountpoint_around(path) in mounts, way
            with pytest.raises(UsageError, match=f"the thing {re.escape(str(path))} lies in the sessfs mount /"):
                places.require_outside("the thing", path)
    assert places.mountpoint_around(tmp_path / "not in one") is None
    assert places.mountpoint_around(other.path.parent) is None


def test_mount_refuses_what_lies_in_another_mount(other: Mounted, ways: dict[str, Path], tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    fine = ["--state", str(tmp_path / "state")]
    place = ways["symlink"]
    for arguments, env in (
        (["--state", str(place / "state")], {}),
        ([*fine, "--remote", f"file://{ways['beneath']}/remote"], {}),
        ([*fine, "--remote", f"file://{tmp_path}/remote", "--key-file", str(place / "key")], {}),
        ([*fine, "--config", str(place / "sessfs.toml")], {}),
        (fine, {"SESSFS_CONFIG": str(place / "sessfs.toml")}),
        (fine, {"SESSFS_REMOTE": f"file://{ways['bind']}/remote"}),
        (fine, {"TMPDIR": str(place)}),
    ):
        done = _sessfs(["mount", str(mountpoint), *arguments], env)
        assert done.returncode == USAGE, (arguments, env, done.stderr)
        assert "lies in the sessfs mount" in done.stderr
        assert not mount_lines(mountpoint)


def test_mount_refuses_what_would_lie_in_itself(tmp_path: Path) -> None:
    """Also by names that lead there by a symlink or a bind mount only."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    (tmp_path / "link").symlink_to(mountpoint)
    _bind(tmp_path, tmp_path / "bound")
    fine = ["--state", str(tmp_path / "state")]
    try:
        for place in (mountpoint, tmp_path / "link", tmp_path / "bound" / "mnt"):
            assert places.mountpoint_around(place / "x", mountpoint) == mountpoint
            for arguments, env in (
                (["--state", str(place / "state")], {}),
                ([*fine, "--remote", f"file://{place}/remote"], {}),
                (fine, {"TMPDIR": str(place)}),
            ):
                done = _sessfs(["mount", str(mountpoint), *arguments], env)
                assert done.returncode == USAGE, (arguments, env, done.stderr)
                assert str(mountpoint) in done.stderr
                assert not mount_lines(mountpoint)
    finally:
        umount2(tmp_path / "bound", 0)


def test_commands_refuse_what_lies_in_a_mount(other: Mounted, ways: dict[str, Path], tmp_path: Path) -> None:
    place = ways["bind"]
    (tmp_path / "bucket").mkdir()
    remote = f"file://{place}/remote"
    key = ["--remote", f"file://{tmp_path}/bucket", "--key-file", str(place / "key")]
    commands = [
        ["fsck", "--state", str(place / "state")],
        ["fsck", "--remote", remote],
        ["gc", "--remote", remote],
        ["key", "rotate", "--remote", remote],
        ["key", "rotate", "--remote", f"file://{tmp_path}/bucket", "--new-key-file", str(place / "key")],
        ["check", "user1", "--remote", remote],
        ["history", "user1", "--remote", remote],
        ["export", "user1", str(tmp_path / "out"), "--remote", remote],
        ["export", str(other.path / "user1"), str(place / "out.tar")],
        ["import", str(place), str(other.path)],
        ["fsck", *key],
        ["gc", *key],
    ]
    for command in commands:
        done = other.sessfs(*command, check=False, timeout_s=60)
        assert done.returncode == USAGE, (command, done.stderr)
        assert "lies in the sessfs mount" in done.stderr, (command, done.stderr)
        assert str(place) in done.stderr, (command, done.stderr)


def test_check_refuses_temporary_files_in_a_mount(other: Mounted) -> None:
    done = _sessfs(["check", str(other.path / "user1")], {"TMPDIR": str(other.path / "user1")})
    assert done.returncode == USAGE
    assert f"(TMPDIR) {other.path}/user1 lies in the sessfs mount {other.path}," in done.stderr


def test_commands_that_need_no_temporary_files_work_with_any(other: Mounted) -> None:
    """Who has such a TMPDIR must be able to look, and to unmount."""
    done = _sessfs(["status", str(other.path)], {"TMPDIR": str(other.path / "user1")})
    assert done.returncode == 0, done.stderr


def test_foreground_refuses_to_log_into_a_mount(other: Mounted, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sessfs.cli.entry", "mount", "-f", str(tmp_path / "mnt")]
    with open(other.path / "user1" / "log", "w+") as log:
        done = subprocess.run(
            [*command, "--state", str(tmp_path / "state")], stdout=subprocess.DEVNULL, stderr=log, timeout=60
        )
        log.seek(0)
        said = log.read()
    assert done.returncode == USAGE
    assert f"standard error goes to a file in the sessfs mount {other.path}" in said


def test_python_api_refuses_what_lies_in_a_mount(other: Mounted, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lies in the sessfs mount"):
        open_store(f"file://{other.path}/user1/remote")
    with pytest.raises(UsageError, match="lies in the sessfs mount"):
        open_store(other.path / "user1" / "state")
    with open_store(other.path) as store, pytest.raises(UsageError, match="lies in the sessfs mount"):
        store.import_tree(other.path / "user1", name="user2")
    with open_store(other.path) as store, pytest.raises(UsageError, match="lies in the sessfs mount"):
        store.session("user1").export(other.path / "user1" / "out.tar")


def test_dead_mount_is_found_without_being_touched(tmp_path: Path) -> None:
    with Mounted() as mounted:
        mounted.kill()
        assert places.mountpoint_around(mounted.path / "user1" / "remote") == mounted.path
        assert places.mountpoint_around(mounted.path.parent / "elsewhere") is None
        mounted.mount()
