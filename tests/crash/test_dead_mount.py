"""A dead mountpoint ("Transport endpoint is not connected") is cleaned and recovered by the next `sessfs mount`."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from tests.support.mounted import FSTYPE, mount_lines, wait_gone
from tests.support.posix import Child, errno_of, noise, read_file, write_file

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.mounted import Mounted


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def test_dead_mountpoint_answers_enotconn_until_the_next_mount(mount: Mounted) -> None:
    session = mount.path / "user1"
    session.mkdir()
    write_file(session / "f", noise(1, 300_000))
    _sync(session / "f")
    _sync(session)
    mount.kill()
    assert errno_of(os.listdir, mount.path) == errno.ENOTCONN
    mount.mount()
    assert mount.n_mounts() == 1
    assert read_file(session / "f") == noise(1, 300_000)


def test_twenty_kills_under_an_application_leave_one_mount_each(mount: Mounted) -> None:
    """libfuse#41, mountpoint-s3#630, mergerfs-docker#51, fluid PR#5495: mounts stacked up, or the start failed."""
    session = mount.path / "user1"
    session.mkdir()
    write_file(session / "f", b"content")
    _sync(session / "f")
    _sync(session)
    body = 'files = [open("f", "r+b") for _ in range(5)]; say(0); wait(); say([err(os.listdir, "."), err(open, "f")])'
    for turn in range(20):
        with Child(session, body) as application:
            application.hear()
            mount.kill()
            mount.mount()
            lines = mount_lines(mount.path)
            assert [line.fstype for line in lines] == [FSTYPE], turn
            application.tell()
            assert application.hear() == [errno.ENOTCONN, errno.ENOTCONN]
        write_file(session / f"turn{turn}", b"%d" % turn)
        _sync(session / f"turn{turn}")
        _sync(session)
    assert sorted(os.listdir(session)) == sorted(["f", *(f"turn{turn}" for turn in range(20))])


def test_second_mount_of_the_same_state_is_refused_with_the_pid_of_the_first(mount: Mounted) -> None:
    other = mount.path.with_name("other")
    other.mkdir()
    done = mount.sessfs("mount", str(other), "--state", str(mount.state), check=False)
    assert done.returncode == 15
    assert f"pid {mount.pid}" in done.stderr.strip().splitlines()[-1]
    assert mount_lines(other) == []
    (mount.path / "user1").mkdir()
    assert os.listdir(mount.path) == ["user1"]


def test_second_mount_on_the_same_mountpoint_is_refused_or_answered_by_the_first(mount: Mounted) -> None:
    (mount.path / "user1").mkdir()
    done = mount.sessfs("mount", str(mount.path), "--state", str(mount.state), check=False)
    assert done.returncode in (0, 15)
    assert mount.n_mounts() == 1
    assert mount.status()["pid"] == mount.pid
    other = mount.state.with_name("state2")
    done = mount.sessfs("mount", str(mount.path), "--state", str(other), check=False)
    assert done.returncode not in (0, 1)
    assert mount.n_mounts() == 1
    assert os.listdir(mount.path) == ["user1"]


def test_state_is_free_again_right_after_a_kill(mount: Mounted) -> None:
    """A lock must go with its process, not wait for a person or a time-out."""
    (mount.path / "user1").mkdir()
    _sync(mount.path)
    mount.kill()
    mount.detach()
    other = mount.path.with_name("other")
    other.mkdir()
    mount.sessfs("mount", str(other), "--state", str(mount.state))
    try:
        assert os.listdir(other) == ["user1"]
    finally:
        mount.sessfs("umount", str(other))
    mount.mount()


def test_terminated_daemon_keeps_200_megabytes_that_nobody_synced(mount: Mounted) -> None:
    """containers/storage PR#459, s3backer#21: the unmount returned while pages were dirty. SIGTERM is docker stop."""
    session = mount.path / "user1"
    session.mkdir()
    pieces = [noise(number, 1 << 20) for number in range(8)]
    with open(session / "big", "wb") as file:
        for number in range(200):
            file.write(pieces[number % 8])
    processes = mount.processes()
    os.kill(mount.pid, 15)
    assert wait_gone(processes, 30) == []
    assert not mount.is_mounted()
    mount.mount()
    with open(session / "big", "rb") as file:
        for number in range(200):
            assert file.read(1 << 20) == pieces[number % 8], number
        assert file.read(1) == b""
