"""The state directory is removed, renamed or replaced beneath a running mount: said so, and unmounted all the same."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support.mounted import Mounted, process, wait_gone
from tests.support.posix import read_file, write_file

if TYPE_CHECKING:
    from pathlib import Path

NOT_MOUNTED, LOCAL_STORE = 16, 20
COMMANDS = (["status"], ["sessions"], ["sync"], ["limit"], ["expire", "--dry-run"], ["trash", "list"], ["gc"])


def _commands(mounted: Mounted) -> list[list[str]]:
    session = str(mounted.path / "user1")
    on_mount = [[*command[:1], str(mounted.path), *command[1:]] for command in COMMANDS if command[0] != "trash"]
    return [*on_mount, ["history", session], ["snapshot", session], ["rm", session], ["clone", session, "user2"]]


def _write(mounted: Mounted) -> None:
    (mounted.path / "user1").mkdir()
    write_file(mounted.path / "user1" / "f", b"content")
    # From then on the seal process has all open that it needs.
    mounted.seal()


def test_renamed_state_is_named_by_each_command_and_unmounted_durably(tmp_path: Path) -> None:
    with Mounted(state=tmp_path / "state") as mounted:
        _write(mounted)
        (tmp_path / "state").rename(tmp_path / "elsewhere")
        write_file(mounted.path / "user1" / "later", b"later")
        for command in _commands(mounted):
            done = mounted.sessfs(*command, check=False)
            assert done.returncode == LOCAL_STORE, (command, done.stderr)
            assert f"was renamed from {tmp_path}/state to {tmp_path}/elsewhere" in done.stderr
            assert f"`sessfs umount {mounted.path}`" in done.stderr
        daemon = process(mounted.pid)
        done = mounted.sessfs("umount", str(mounted.path))
        assert f"durable in {tmp_path}/elsewhere" in done.stdout
        assert f"was renamed from {tmp_path}/state to {tmp_path}/elsewhere" in done.stderr
        assert not mounted.is_mounted()
        assert not wait_gone([daemon], 5)
        mounted.state = tmp_path / "elsewhere"
        assert not (tmp_path / "state").exists(), "something was made anew where it was"
        mounted.fsck()
        mounted.mount()
        assert read_file(mounted.path / "user1" / "later") == b"later"


def test_removed_state_is_named_by_each_command_and_unmounted(tmp_path: Path) -> None:
    with Mounted(state=tmp_path / "state") as mounted:
        _write(mounted)
        shutil.rmtree(tmp_path / "state")
        for command in _commands(mounted):
            done = mounted.sessfs(*command, check=False)
            assert done.returncode == LOCAL_STORE, (command, done.stderr)
            assert f"({tmp_path}/state) was removed while it was mounted" in done.stderr
        daemon = process(mounted.pid)
        done = mounted.sessfs("umount", str(mounted.path), check=False)
        assert done.returncode == LOCAL_STORE
        assert f"{mounted.path} is unmounted" in done.stderr
        assert f"({tmp_path}/state) was removed while it was mounted" in done.stderr
        assert not mounted.is_mounted()
        assert not wait_gone([daemon], 5)


def test_state_whose_place_another_mount_took_is_not_confused_with_it(tmp_path: Path) -> None:
    with Mounted(state=tmp_path / "state") as mounted:
        _write(mounted)
        (tmp_path / "state").rename(tmp_path / "elsewhere")
        with Mounted(state=tmp_path / "state") as second:
            (second.path / "of the second").mkdir()
            done = mounted.sessfs("sessions", str(mounted.path), check=False)
            assert done.returncode == LOCAL_STORE
            assert "was renamed from" in done.stderr
            assert "of the second" in second.sessfs("sessions", str(second.path)).stdout
            mounted.sessfs("umount", str(mounted.path))
            assert not mounted.is_mounted()
            assert not (tmp_path / "state" / "clean").exists()
            assert second.status()["pid"] == second.pid
        mounted.state = tmp_path / "elsewhere"
        mounted.mount()
        assert read_file(mounted.path / "user1" / "f") == b"content"


@pytest.mark.parametrize("part", ["control.sock", "lock"])
def test_state_without_what_the_daemon_is_found_by_is_unmounted(mount: Mounted, part: str) -> None:
    _write(mount)
    os.unlink(mount.state / part)
    daemon = process(mount.pid)
    if part == "control.sock":
        done = mount.sessfs("status", str(mount.path), check=False)
        assert done.returncode == NOT_MOUNTED
        assert f"(pid {mount.pid}) runs, but can't be spoken to by {mount.state}/control.sock" in done.stderr
    done = mount.sessfs("umount", str(mount.path))
    assert not mount.is_mounted()
    assert not wait_gone([daemon], 5)
    mount.mount()
    assert read_file(mount.path / "user1" / "f") == b"content"
