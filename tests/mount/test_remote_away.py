"""A remote that does not answer: who reads what only it has waits, can be ended, and keeps nobody else from working."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support import posix
from tests.support.s3proxy import Mood

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.mounted import Mounted
    from tests.support.remotes import Bucket

pytest_plugins = ["tests.support.s3fixtures", "tests.support.remotefixtures"]

MIB = 1 << 20
FILE = os.urandom(4 * MIB)
FILES = 8
PLACES = (1 * MIB, 2 * MIB, 3 * MIB)
"""Where in each file is what nothing fetches ahead."""
READERS = FILES * len(PLACES)
WAIT_S = {Mood.RESET: 23.0, Mood.DENIED: 6.0, Mood.SILENT: 40.0}
"""Longer than whoever gives up at all would wait in each mood."""
SOAK = "SESSFS_TEST_OUTAGE" in os.environ
MOODS = [mood for mood in WAIT_S if SOAK or mood is not Mood.SILENT]
READ = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
file = os.open(sys.argv[1], os.O_RDONLY)
sys.stdout.buffer.write(os.pread(file, 4096, int(sys.argv[2])))
"""


@pytest.fixture
def filled(bucket: Bucket) -> Bucket:
    """A bucket with a session of large files, and a small one."""
    with bucket.mounted() as mounted:
        (mounted.path / "cold").mkdir()
        for number in range(FILES):
            (mounted.path / "cold" / f"file{number}").write_bytes(b"%d" % number + FILE)
        (mounted.path / "stub").mkdir()
        (mounted.path / "stub" / "file").write_bytes(b"in the stub")
        mounted.umount()
    return bucket


@contextmanager
def away(bucket: Bucket, mood: Mood) -> Iterator[None]:
    bucket.proxy.mood = mood
    try:
        yield
    finally:
        bucket.proxy.mood = Mood.HONEST


def wait_quiet(bucket: Bucket) -> None:
    """Return once nothing is fetched any more: what is likely to be read is here."""
    seen = -1
    while len(bucket.proxy.since(0, "GET")) != seen:
        seen = len(bucket.proxy.since(0, "GET"))
        time.sleep(0.7)


class Readers:
    """Programs that read, each a page where nothing was fetched."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.running: list[tuple[subprocess.Popen[bytes], bytes]] = []

    def start(self, path: Path, offset: int, wanted: bytes) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", READ, str(path), str(offset)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._stack.callback(self._end, process)
        self.running.append((process, wanted))
        return process

    def start_all(self, tree: Path) -> None:
        for number in range(FILES):
            content = b"%d" % number + FILE
            for place in PLACES:
                self.start(tree / f"file{number}", place, content[place : place + 4096])

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.communicate()

    def assert_all_wait(self) -> None:
        for process, _ in self.running:
            assert process.poll() is None, process.communicate()

    def assert_all_read(self, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        for process, wanted in self.running:
            out, err = process.communicate(timeout=max(end - time.monotonic(), 0.1))
            assert (process.returncode, out) == (0, wanted), err


@pytest.fixture
def readers() -> Iterator[Readers]:
    with ExitStack() as stack:
        yield Readers(stack)


@pytest.mark.parametrize("mood", MOODS, ids=lambda mood: mood.value)
def test_reads_wait_until_the_remote_is_back(filled: Bucket, readers: Readers, mood: Mood) -> None:
    """In a file, as in a session of which only the name is here."""
    with filled.mounted() as mounted:
        assert sorted(os.listdir(mounted.path)) == ["cold", "stub"]
        assert len(os.listdir(mounted.path / "cold")) == FILES
        wait_quiet(filled)
        with away(filled, mood):
            readers.start_all(mounted.path / "cold")
            readers.start(mounted.path / "stub" / "file", 0, b"in the stub")
            time.sleep(WAIT_S[mood])
            readers.assert_all_wait()
            status = mounted.status()
            assert status["waiting_requests"] > 0
            assert [w for w in status["warnings"] if "who reads in cold, stub waits" in w], status["warnings"]
        readers.assert_all_read(60)
        assert mounted.status()["waiting_requests"] == 0
        assert mounted.status()["suspect_sessions"] == []
        mounted.umount()
        mounted.fsck()


def test_whoever_waits_can_be_ended(filled: Bucket, readers: Readers) -> None:
    """By any signal that ends a program; nothing of it stays behind that could not be unmounted."""
    with filled.mounted("--unmount-timeout", "1s") as mounted:
        assert len(os.listdir(mounted.path)) == 2
        assert len(os.listdir(mounted.path / "cold")) == FILES
        wait_quiet(filled)
        with away(filled, Mood.DENIED):
            readers.start_all(mounted.path / "cold")
            for _ in range(3):
                readers.start(mounted.path / "stub" / "file", 0, b"")
            assert posix.eventually(lambda: mounted.status()["waiting_requests"] > 0, 20)
            readers.assert_all_wait()
            for number, (process, _) in enumerate(readers.running):
                process.send_signal((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[number % 3])
            for process, _ in readers.running:
                process.communicate(timeout=10)
                assert process.returncode < 0
            mounted.umount()


def test_a_handled_signal_ends_a_system_call_with_eintr(filled: Bucket, readers: Readers) -> None:
    code = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: sys.exit("a signal"))
print("ready", flush=True)
os.listdir(sys.argv[1])
"""
    with filled.mounted() as mounted:
        assert len(os.listdir(mounted.path)) == 2
        with away(filled, Mood.RESET):
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(mounted.path / "stub")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(4)
            assert process.poll() is None
            process.send_signal(signal.SIGUSR1)
            _, err = process.communicate(timeout=10)
            assert err.strip() == b"a signal"
            assert mounted.status()["waiting_requests"] == 0


def test_two_dozen_cold_reads_leave_other_sessions_alone(filled: Bucket, readers: Readers) -> None:
    """Reading, and what fsync needs: the kernel lets 12 requests of a mount run in the background unless it is told."""
    with filled.mounted() as mounted:
        assert len(os.listdir(mounted.path / "cold")) == FILES
        warm = mounted.path / "warm"
        warm.mkdir()
        (warm / "file").write_bytes(FILE)
        wait_quiet(filled)
        with away(filled, Mood.SILENT):
            readers.start_all(mounted.path / "cold")
            time.sleep(2)
            started = time.monotonic()
            drop_pages(warm / "file")
            assert (warm / "file").read_bytes() == FILE
            with (warm / "new").open("wb") as file:
                file.write(FILE)
                file.flush()
                os.fsync(file.fileno())
            took = time.monotonic() - started
            readers.assert_all_wait()
            print(f"read and written in {took:.3f} s")
            assert took < 10
            assert held_by_one_session(mounted) <= 8
        readers.assert_all_read(60)


def drop_pages(path: Path) -> None:
    """Have the next read of the file ask the daemon."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def held_by_one_session(mounted: Mounted) -> int:
    waiting: int = mounted.status()["waiting_requests"]
    return waiting


def test_the_lock_of_a_chrome_without_its_databases_is_refused(bucket: Bucket) -> None:
    """At once, in words that `status` repeats; a session that is here, or has nothing to lose, goes on."""
    with bucket.mounted() as mounted:
        for name in ("gone", "here"):
            (mounted.path / name / "session" / "Default").mkdir(parents=True)
            (mounted.path / name / "session" / "Default" / "Cookies").write_bytes(
                FILE if name == "here" else FILE[::-1]
            )
        mounted.umount()
    with bucket.mounted() as mounted:
        assert (mounted.path / "here" / "session" / "Default" / "Cookies").read_bytes() == FILE
        assert os.listdir(mounted.path / "gone" / "session") == ["Default"]
        wait_quiet(bucket)
        with away(bucket, Mood.RESET):
            started = time.monotonic()
            with pytest.raises(OSError, match="Host is down") as refused:
                lock(mounted, "gone")
            assert refused.value.errno == errno.EHOSTDOWN
            assert time.monotonic() - started < 40
            lock(mounted, "here")
            assert posix.eventually(lambda: mounted.status()["remote"]["health"]["state"] == "degraded", 60)
            started = time.monotonic()
            with pytest.raises(OSError, match="Host is down"):
                lock(mounted, "gone")
            assert time.monotonic() - started < 1
            warnings = mounted.status()["warnings"]
            assert [w for w in warnings if "no Chrome could start in gone" in w and "only in the remote" in w], warnings
            assert "no Chrome starts in session gone" in mounted.log_tail(100_000)
        assert posix.eventually(lambda: may_lock(mounted, "gone"), 60)
        assert not [w for w in mounted.status()["warnings"] if "no Chrome" in w]
        mounted.umount()
        mounted.options.append("--wait-at-start")
        bucket.proxy.mood = Mood.HONEST
        mounted.mount()
        with away(bucket, Mood.RESET):
            (mounted.path / "gone" / "session" / "SingletonLock").unlink()
            lock(mounted, "gone")


def lock(mounted: Mounted, name: str) -> None:
    os.symlink("host-1", mounted.path / name / "session" / "SingletonLock")


def may_lock(mounted: Mounted, name: str) -> bool:
    try:
        lock(mounted, name)
    except OSError as exc:
        if exc.errno != errno.EHOSTDOWN:
            raise
        return False
    return True
