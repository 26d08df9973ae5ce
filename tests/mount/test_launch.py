"""Starting a daemon and taking its mount down again, with a daemon that does as it is told."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sessfs.config import STATE_VERSION, Settings
from sessfs.errors import (
    MountBusy,
    MountpointUnusable,
    NoRights,
    NotMounted,
    StartFailed,
    StateInUse,
    StateTooNew,
    StoreCorrupt,
    UsageError,
)
from sessfs.mount import launch, mountinfo, openers, preflight, spawn, syscalls, unmount
from tests.support import fakedaemon

if TYPE_CHECKING:
    from collections.abc import Iterator

FAKE = (sys.executable, fakedaemon.__file__)
PYTHON_PATH = str(Path(fakedaemon.__file__).resolve().parent.parent.parent)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings whose names have a space; whatever is mounted or still runs at the end is taken away."""
    monkeypatch.setenv("PYTHONPATH", PYTHON_PATH)
    settings = Settings(
        mountpoint=tmp_path / "mount point", state_dir=tmp_path / "a state", mount_options=("allow_other",)
    )
    yield settings
    pid = preflight.daemon_pid(settings.state_dir)
    if pid is not None and preflight.lock_held(settings.state_dir):
        os.kill(pid, signal.SIGKILL)
    while mountinfo.find_mount(settings.mountpoint) is not None:
        syscalls.umount2(str(settings.mountpoint), syscalls.MNT_DETACH)


def serve(settings: Settings) -> int:
    return launch.launch(settings, argv=(*FAKE, "serve"), timeout_s=30)


def no_commit(_state_dir: Path, _left_s: float) -> None:
    """The fake daemon has nothing to make durable."""


def kill(pid: int) -> None:
    """End the daemon the hard way, and wait until its lock is free."""
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        # The reaper was faster.
        time.sleep(0.1)
    finally:
        os.close(pidfd)


def test_launch_returns_the_pid_of_a_mount_that_answers(settings: Settings) -> None:
    pid = serve(settings)
    assert preflight.find_state(settings.mountpoint) == settings.state_dir
    assert preflight.daemon_pid(settings.state_dir) == pid
    assert preflight.answers(settings.mountpoint)
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert settings.state_dir.stat().st_mode & 0o777 == 0o700


def test_launch_takes_a_daemon_that_was_started_before(settings: Settings) -> None:
    early = spawn.start((*FAKE, "serve"), None)
    assert launch.launch(settings, early, timeout_s=30) == early.process.pid
    early.drop()
    assert preflight.answers(settings.mountpoint)


def test_a_daemon_that_nobody_needs_ends(tmp_path: Path) -> None:
    early = spawn.start(spawn.DAEMON_ARGV, None)
    early.drop()
    early.drop()
    assert early.process.returncode == -signal.SIGKILL
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(early.ready)
    # And by itself, should the command end before it could say so.
    read_end, write_end = os.pipe()
    command = [*spawn.DAEMON_ARGV, "--ready-fd", str(write_end)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, pass_fds=(write_end,), check=True)
    os.close(write_end)
    assert (done.stdout, done.stderr, os.read(read_end, 1)) == (b"", b"", b"")
    os.close(read_end)


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_mount_by_a_command_without_standard_descriptors_logs_as_any(settings: Settings, closed: str) -> None:
    script = f'exec "$@" {closed}'
    command = [sys.executable, "-m", "sessfs.cli.entry", "mount", settings.mountpoint, "--state", settings.state_dir]
    subprocess.run(["sh", "-c", script, "sh", *command], timeout=60, check=True)
    assert "mounted" in (settings.state_dir / "sessfs.log").read_text()


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--help"], [], ["-f"]])
def test_no_daemon_is_left_by_a_mount_that_was_not_meant(arguments: list[str], tmp_path: Path) -> None:
    """Daemons inherit their command's environment, by which this one's would be known."""
    mark = f"SESSFS_TEST_MARK={tmp_path}"
    command = [sys.executable, "-m", "sessfs.cli.entry", "mount", *arguments]
    subprocess.run(["env", mark, *command], capture_output=True, timeout=30, check=False)
    left = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            left += [environment] if mark.encode() in environment.read_bytes().split(b"\0") else []
    assert left == []


def test_launch_passes_no_descriptor_of_the_caller_on(settings: Settings, tmp_path: Path) -> None:
    """A deploy script holds a lock on a descriptor; the daemon must not keep it for ever."""
    with (tmp_path / "deploy.lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        fcntl.flock(lock, fcntl.LOCK_EX)
        serve(settings)
    with (tmp_path / "deploy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_launch_second_time_names_the_first_pid(settings: Settings, tmp_path: Path) -> None:
    pid = serve(settings)
    elsewhere = Settings(mountpoint=tmp_path / "other", state_dir=settings.state_dir)
    for again in (settings, elsewhere):
        with pytest.raises(StateInUse, match=f"pid {pid}"):
            serve(again)


def test_launch_on_another_sessfs_is_refused(settings: Settings, tmp_path: Path) -> None:
    serve(settings)
    with pytest.raises(MountpointUnusable, match="already a sessfs mount"):
        serve(Settings(mountpoint=settings.mountpoint, state_dir=tmp_path / "other state"))


def test_launch_daemon_refuses_its_words_and_code_are_passed_on(settings: Settings) -> None:
    with pytest.raises(launch.DaemonRefused, match="the bucket is not ours") as caught:
        launch.launch(settings, argv=(*FAKE, "refuse"), timeout_s=30)
    assert caught.value.exit_code == 32


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("die", "ended before the mount answered.*first line | last words"),
        ("lie", "not in mountinfo"),
        ("babble", "no answer"),
    ],
)
def test_launch_daemon_breaks_the_protocol_start_failed(settings: Settings, mode: str, says: str) -> None:
    with pytest.raises(StartFailed, match=says):
        launch.launch(settings, argv=(*FAKE, mode), timeout_s=30)
    assert not children()


def children() -> list[str]:
    """The fake daemons that still run."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and fakedaemon.__file__.encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                found.append(entry)
    return found


def test_launch_daemon_hangs_it_is_ended_in_time(settings: Settings) -> None:
    started = time.monotonic()
    with pytest.raises(StartFailed, match="did not mount in time"):
        launch.launch(settings, argv=(*FAKE, "hang"), timeout_s=2)
    assert time.monotonic() - started < 60
    assert not children()


def test_launch_twenty_kills_with_cwd_and_open_file_leave_one_mount(settings: Settings) -> None:
    """Row 53: a supervisor restarts a killed daemon while the application keeps its cwd and files there."""
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            pid = serve(settings)
            assert len([m for m in mountinfo.read_mounts() if m.mountpoint == str(settings.mountpoint)]) == 1
            stack.callback(os.close, os.open(settings.mountpoint, os.O_RDONLY))
            kill(pid)
            assert not preflight.answers(settings.mountpoint)
        serve(settings)
    assert preflight.answers(settings.mountpoint)
    assert len([m for m in mountinfo.read_mounts() if m.mountpoint == str(settings.mountpoint)]) == 1


def test_launch_cleans_several_dead_mounts_stacked(settings: Settings, tmp_path: Path) -> None:
    first = serve(settings)
    other = Settings(mountpoint=settings.mountpoint, state_dir=tmp_path / "other")
    other.state_dir.mkdir()
    second = subprocess.Popen(
        [*FAKE, "serve", "--ready-fd", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert second.stdin is not None
    assert second.stdout is not None
    with second.stdin, second.stdout:
        second.stdin.write(other.to_json())
        second.stdin.close()
        assert second.stdout.readline()
    kill(first)
    second.kill()
    second.wait()
    assert len([m for m in mountinfo.read_mounts() if m.mountpoint == str(settings.mountpoint)]) == 2
    serve(settings)
    assert len([m for m in mountinfo.read_mounts() if m.mountpoint == str(settings.mountpoint)]) == 1


def test_check_mountpoint_not_empty_or_no_directory_is_refused(settings: Settings, tmp_path: Path) -> None:
    settings.mountpoint.mkdir()
    (settings.mountpoint / "left").touch()
    with pytest.raises(MountpointUnusable, match="not empty \\(it has 'left'\\)"):
        preflight.check(settings)
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "below"):
        with pytest.raises(MountpointUnusable, match="not a directory"):
            preflight.check(Settings(mountpoint=place, state_dir=settings.state_dir))


def test_check_state_and_mountpoint_in_each_other_are_refused(tmp_path: Path) -> None:
    for state, place in (("m/state", "m"), ("m", "m"), ("s", "s/mnt")):
        with pytest.raises(UsageError, match="lie in each other"):
            preflight.check(Settings(mountpoint=tmp_path / place, state_dir=tmp_path / state))


def test_check_version_newer_or_damaged(settings: Settings) -> None:
    settings.state_dir.mkdir()
    marker = settings.state_dir / "format"
    marker.write_text(f'{{"version": {STATE_VERSION}}}')
    preflight.check_version(settings.state_dir)
    marker.write_text(f'{{"version": {STATE_VERSION + 1}, "later": true}}')
    with pytest.raises(StateTooNew, match="update sessfs"):
        preflight.check(settings)
    marker.write_text("{")
    with pytest.raises(StoreCorrupt, match="damaged"):
        preflight.check(settings)


def test_unmount_waits_for_the_daemon_to_end(settings: Settings) -> None:
    pid = serve(settings)
    asked = []
    done = unmount.unmount(
        settings.mountpoint, timeout_s=30, commit=lambda state, left_s: asked.append((state, left_s > 1))
    )
    assert not done.was_dead
    assert asked == [(settings.state_dir, True)]
    assert mountinfo.find_mount(settings.mountpoint) is None
    assert not preflight.lock_held(settings.state_dir)
    assert str(pid) not in children()


def test_unmount_dead_mount_is_detached_at_once(settings: Settings) -> None:
    kill(serve(settings))
    started = time.monotonic()
    done = unmount.unmount(settings.mountpoint, timeout_s=100, commit=no_commit)
    assert done.was_dead
    assert time.monotonic() - started < 25
    assert mountinfo.find_mount(settings.mountpoint) is None


def test_unmount_nothing_there_is_not_mounted(settings: Settings) -> None:
    with pytest.raises(NotMounted, match="sessfs status"):
        unmount.unmount(settings.mountpoint, timeout_s=1, commit=no_commit)


def test_unmount_busy_names_processes_and_stays_up(settings: Settings) -> None:
    serve(settings)
    code = "import os,sys; os.chdir(sys.argv[1]); f = open('file'); print(flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(settings.mountpoint)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    with holder:
        holder.stdout.readline()
        with pytest.raises(MountBusy, match=f"pid {holder.pid}: {settings.mountpoint}") as caught:
            unmount.unmount(settings.mountpoint, timeout_s=30, commit=no_commit)
        assert caught.value.exit_code == 17
        assert preflight.answers(settings.mountpoint)
        mount = mountinfo.find_mount(settings.mountpoint)
        assert mount is not None
        found = openers.find_openers(mount)
        assert [(opener.pid, opener.paths) for opener in found] == [
            (holder.pid, (str(settings.mountpoint), f"{settings.mountpoint}/file"))
        ]
    assert not unmount.unmount(settings.mountpoint, timeout_s=30, commit=no_commit).was_dead


def test_unmount_commit_takes_too_long_mount_stays_up(settings: Settings) -> None:
    serve(settings)
    with pytest.raises(MountBusy, match=r"still mounted: the durable commit did not finish"):
        unmount.unmount(settings.mountpoint, timeout_s=0.5, commit=lambda _state, _left: time.sleep(3))
    assert preflight.answers(settings.mountpoint)


def test_unmount_stopped_daemon_does_not_hang(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = serve(settings)
    monkeypatch.setattr(preflight, "PROBE_TIMEOUT_S", 0.5)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(MountBusy, match=f"kill -9 {pid}"):
            unmount.unmount(settings.mountpoint, timeout_s=5, commit=no_commit)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_launch_as_user_without_rights_on_the_state(settings: Settings) -> None:
    """In a process of its own that gives its rights up."""
    settings.state_dir.mkdir(mode=0o700)
    code = (
        "import os, sys\nfrom sessfs.mount import preflight\nfrom pathlib import Path\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n    preflight.check_state(Path(sys.argv[1]))\n"
        "except preflight.NoRights as exc:\n    print(exc); sys.exit(exc.exit_code)\n"
    )
    for parent in (settings.state_dir.parent, *settings.state_dir.parent.parents):
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)
    ran = subprocess.run(
        [sys.executable, "-c", code, str(settings.state_dir)], capture_output=True, text=True, check=False, cwd="/"
    )
    assert ran.returncode == NoRights.exit_code, ran.stderr
    assert "state directory" in ran.stdout
