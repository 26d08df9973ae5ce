"""kill -9 of the daemon while a workload runs: what was synced, and what was closed a while ago, is there again."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
import time
from typing import TYPE_CHECKING

from sessfs.errors import SessfsError
from tests.crash.harness import Kill, Running, busy_machine, judge
from tests.support.mounted import Mounted
from tests.support.posix import noise, read_file, tree, write_file

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = int(os.environ.get("SESSFS_TEST_CRASH_ROUNDS", "20"))
LAZY_S = 1.5
"""What was closed this long before the kill must be there without any sync; the promise is one second."""


def test_kill_at_random_moments_loses_nothing_promised(tmp_path: Path) -> None:
    """Daemon and children, killed, stopped or left alone, on a busy machine, with a restart at once."""
    source = random.Random(os.urandom(8))
    promised = 0
    with busy_machine(), Mounted(options=["--seal-idle", "50ms"]) as mounted:
        for number in range(ROUNDS):
            running = Running(mounted.path / f"round{number}", tmp_path / f"log{number}", source.randrange(1 << 30))
            kill = Kill(mounted, source)
            try:
                mounted.seal()
                running.start()
                time.sleep(source.choice([source.uniform(0, 0.4), source.uniform(0, 0.4), source.uniform(1.6, 2.4)]))
                crash_s = kill.strike()
            finally:
                running.stop()
            kill.begin_anew()
            promised += judge(mounted.path / f"round{number}", running, crash_s, LAZY_S, kill.what)
            before = tree(mounted.path / f"round{number}")
            mounted.umount()
            mounted.fsck()
            mounted.mount()
            assert tree(mounted.path / f"round{number}") == before, kill.what
            shutil.rmtree(mounted.path / f"round{number}")
    assert promised > ROUNDS, "the workload hardly ran"


def _seal_until_killed(mount: Mounted) -> None:
    with contextlib.suppress(SessfsError, OSError):
        mount.seal()


def test_kill_while_sealing_keeps_every_byte(mount: Mounted) -> None:
    session = mount.path / "user1"
    session.mkdir()
    for number in range(12):
        write_file(session / f"f{number}", noise(number, 3_000_000))
    fd = os.open(session, os.O_RDONLY)
    for number in range(12):
        file = os.open(session / f"f{number}", os.O_RDONLY)
        os.fsync(file)
        os.close(file)
    os.fsync(fd)
    os.close(fd)
    for turn in range(6):
        sealing = threading.Thread(target=_seal_until_killed, args=(mount,))
        sealing.start()
        time.sleep(0.02 * turn)
        mount.kill()
        sealing.join()
        mount.mount()
        for number in range(12):
            assert read_file(session / f"f{number}") == noise(number, 3_000_000), (turn, number)


def test_kill_then_orphans_are_reclaimed(mount: Mounted) -> None:
    """juicefs PR#5488: files unlinked while open, whose daemon died, must not keep their room for ever."""
    session = mount.path / "user1"
    session.mkdir()
    fds = []
    for number in range(20):
        path = session / f"f{number}"
        write_file(path, noise(number, 500_000))
        fds.append(os.open(path, os.O_RDWR))
        os.fsync(fds[-1])
    mount.seal()
    for number in range(20):
        os.unlink(session / f"f{number}")
    write_file(session / "kept", b"kept")
    fd = os.open(session, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    mount.kill()
    for fd in fds:
        os.close(fd)
    mount.mount()
    assert os.listdir(session) == ["kept"]
    mount.seal()
    status = mount.status()
    assert status["files"] == 1
    assert status["hot_bytes"] + status["stored_bytes"] < 500_000
    mount.umount()
    mount.fsck()
    mount.mount()


def test_kill_ten_milliseconds_after_fsync_keeps_the_file(mount: Mounted) -> None:
    """waha#1095, whatsapp-api#317: the login is written, synced, and the container is stopped at once."""
    session = mount.path / "user1"
    session.mkdir()
    for turn in range(8):
        content = noise(turn, 50_000 + turn)
        temporary = session / "temporary"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, content)
        os.fsync(fd)
        os.close(fd)
        os.rename(temporary, session / "login")
        fd = os.open(session, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        time.sleep(0.01)
        mount.kill()
        mount.mount()
        assert read_file(session / "login") == content
        assert os.listdir(session) == ["login"]
