"""The seal process of a daemon that was killed, or of a mount that failed: the next mount comes at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import RemoteHeld
from tests.support.mounted import Mounted, Process, process, wait_gone
from tests.support.posix import eventually, noise, read_file

if TYPE_CHECKING:
    from collections.abc import Iterator

N_FILES = 10
FILE_BYTES = 3 << 20


def put(path: Path, content: bytes) -> None:
    """Write and fsync."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        assert os.write(fd, content) == len(content)
        os.fsync(fd)
    finally:
        os.close(fd)


def seal_process(mounted: Mounted) -> Process:
    """The daemon's seal process."""
    found = [each for each in mounted.processes() if b"sessfs.vfs.sealworker" in command_of(each.pid)]
    assert len(found) == 1, found
    return found[0]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("stored_bytes", "is_stopped"), [(0, True), (2 << 20, True), (12 << 20, True), (8 << 20, False)]
)
def test_restart_at_once_while_the_seal_process_is_at_work_loses_nothing(stored_bytes: int, is_stopped: bool) -> None:
    """It is stopped at that point, the daemon killed, and goes on when the next one is at work; or just runs on."""
    with Mounted(options=["--seal-idle", "100ms"]) as mounted:
        session = mounted.path / "s"
        session.mkdir()
        for number in range(N_FILES):
            put(session / f"f{number}", noise(number, FILE_BYTES))
        database = mounted.state / "chunks" / "data.mdb"
        assert eventually(lambda: database.stat().st_blocks * 512 >= stored_bytes, 60)
        seal = seal_process(mounted)
        if is_stopped:
            os.kill(seal.pid, signal.SIGSTOP)
        os.kill(mounted.pid, signal.SIGKILL)
        mounted.mount()
        for number in range(0, N_FILES, 3):
            (session / f"f{number}").unlink()
        for number in range(4):
            put(session / f"g{number}", noise(100 + number, FILE_BYTES))
        with contextlib.suppress(ProcessLookupError):
            os.kill(seal.pid, signal.SIGCONT)
        mounted.seal()
        assert not wait_gone([seal], 10)
        expected = {f"f{number}": noise(number, FILE_BYTES) for number in range(N_FILES) if number % 3}
        expected |= {f"g{number}": noise(100 + number, FILE_BYTES) for number in range(4)}
        for _ in range(2):
            assert sorted(os.listdir(session)) == sorted(expected)
            for name, content in expected.items():
                assert read_file(session / name) == content, name
            mounted.umount()
            mounted.fsck()
            mounted.mount()


@contextlib.contextmanager
def stopping_seal_processes(state: Path) -> Iterator[list[Process]]:
    """Stop each seal process whose daemon has a file in *state* open, as soon as it is there: before it has begun."""
    stopped: list[Process] = []
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            for pid in [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]:
                if b"sessfs.vfs.sealworker" in command_of(pid) and daemon_uses(pid, state):
                    with contextlib.suppress(AssertionError, ProcessLookupError):
                        found = process(pid)
                        if found not in stopped:
                            os.kill(pid, signal.SIGSTOP)
                            stopped.append(found)
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield stopped
    finally:
        is_over.set()
        thread.join()
        for each in stopped:
            if each.is_alive():
                os.kill(each.pid, signal.SIGCONT)


def daemon_uses(seal: int, state: Path) -> bool:
    """True when the parent of process *seal* has something open in *state*."""
    try:
        parent = int(Path(f"/proc/{seal}/stat").read_text().rsplit(")", 1)[1].split()[1])
        return any(
            os.readlink(f"/proc/{parent}/fd/{fd}").startswith(f"{state}/") for fd in os.listdir(f"/proc/{parent}/fd")
        )
    except OSError:
        return False


def test_mount_that_fails_leaves_no_child_and_nothing_is_made_again(tmp_path: Path) -> None:
    """Its seal process had not begun, and goes on after the state was wiped."""
    (tmp_path / "remote").mkdir()
    options = ["--remote", f"file://{tmp_path}/remote"]
    other = Mounted(options=options)
    with Mounted(options=options):
        for turn in range(2):
            with stopping_seal_processes(other.state) as stopped:
                done = other.sessfs("mount", str(other.path), "--state", str(other.state), *options, check=False)
                assert done.returncode == RemoteHeld.exit_code, done.stderr
                if turn:
                    shutil.rmtree(other.state)
            assert stopped, "no seal process was seen"
            assert not wait_gone(stopped, 10)
            assert other.state.exists() == (turn == 0)
    shutil.rmtree(other.path.parent)
