"""Memory and the cache bound: both stay, however much goes to the remote or comes from it.

SESSFS_TEST_UPLOAD_MB says how much is uploaded and restored for the bound on memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support import posix
from tests.support.mounted import Mounted, rss_bytes
from tests.support.remotes import wait_published
from tests.support.s3proxy import Mood

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.remotes import Bucket

pytest_plugins = ["tests.support.s3fixtures", "tests.support.remotefixtures"]

UPLOAD_MB = int(os.environ.get("SESSFS_TEST_UPLOAD_MB", "200"))
MEMORY_MAX_BYTES = 200 << 20
MIB = 1 << 20


class Watch:
    """The most resident memory, mapped pages and all, of a daemon and its seal process while the context is open."""

    def __init__(self, mounted: Mounted) -> None:
        self._mounted = mounted
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.peak_bytes = 0
        self.parts: tuple[int, ...] = ()
        """The peak by process, the daemon first."""

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.05):
            pids = [each.pid for each in self._mounted.processes()]
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                each = tuple(rss_bytes(pid) for pid in pids)
                if sum(each) > self.peak_bytes:
                    self.peak_bytes, self.parts = sum(each), each


def incompressible(path: Path, n_bytes: int) -> str:
    """Write random bytes; return their hash."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(n_bytes // MIB):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def test_memory_while_much_is_uploaded_and_restored(plain_bucket: Bucket) -> None:
    bucket = plain_bucket.bypassed()
    hashes = {}
    with bucket.mounted("--single-node", interval="2s") as first, Watch(first) as upload:
        (first.path / "s").mkdir()
        for number in range(UPLOAD_MB // 50):
            hashes[f"file{number}"] = incompressible(first.path / "s" / f"file{number}", 50 * MIB)
        first.sessfs("sync", str(first.path), "--timeout", "600", timeout_s=700)
        first.umount(120)
    with bucket.mounted("--single-node", interval="2s") as second, Watch(second) as restore:
        assert {name: hash_of(second.path / "s" / name) for name in hashes} == hashes
    print(
        f"{UPLOAD_MB} MB: uploading {upload.peak_bytes / 1e6:.0f} MB, restoring {restore.peak_bytes / 1e6:.0f} MB; "
        f"{upload.parts}, {restore.parts}"
    )
    assert upload.peak_bytes < MEMORY_MAX_BYTES
    assert restore.peak_bytes < MEMORY_MAX_BYTES


@pytest.fixture
def small(bucket: Bucket) -> Iterator[Mounted]:
    """A mount whose cache holds 40 MiB."""
    with bucket.mounted("--cache-size", "40M", "--seal-idle", "1s") as mounted:
        yield mounted


def test_evicted_content_is_read_back(small: Mounted) -> None:
    (small.path / "s").mkdir()
    hashes = {}
    for number in range(32):
        # Writers are refused at 37.5 MiB, eviction begins at nine tenths of that: each file finds the room it needs.
        hashes[f"file{number}"] = incompressible(small.path / "s" / f"file{number}", 3 * MIB)
        wait_published(small)
        assert posix.eventually(lambda: small.control("status", {})["cache_bytes"] < 34 * MIB, 30)
    assert {name: hash_of(small.path / "s" / name) for name in hashes} == hashes
    assert posix.eventually(lambda: small.control("status", {})["cache_bytes"] <= 40 * MIB, 30)
    small.remount()
    assert {name: hash_of(small.path / "s" / name) for name in hashes} == hashes
    small.umount()
    small.fsck()


def test_full_of_what_the_remote_lacks(small: Mounted, bucket: Bucket) -> None:
    """Writers get ENOSPC, reads and deletes go on; nothing acknowledged is lost; it goes on once the remote is back."""
    (small.path / "s").mkdir()
    old = incompressible(small.path / "s" / "old", 4 * MIB)
    wait_published(small)
    bucket.proxy.mood = Mood.RESET
    written: dict[Path, bytes] = {}
    with pytest.raises(OSError, match="No space left"):
        fill_up(small.path / "s", written)
    assert 10 <= len(written) <= 20
    assert [path for path, content in written.items() if path.read_bytes() != content] == []
    assert [warning for warning in small.status()["warnings"] if "ENOSPC" in warning]
    next(iter(written)).unlink()
    del written[next(iter(written))]
    bucket.proxy.mood = Mood.HONEST
    wait_published(small, 60)
    assert posix.eventually(lambda: can_write(small.path / "s" / "again"), 30)
    assert [path for path, content in written.items() if path.read_bytes() != content] == []
    assert hash_of(small.path / "s" / "old") == old
    posix.forget_failed_writes(small.path)


def fill_up(session: Path, written: dict[Path, bytes]) -> None:
    """Write files, each durable before it counts as written, until that fails."""
    for number in range(40):
        content = os.urandom(2 * MIB)
        with (session / f"file{number}").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        written[session / f"file{number}"] = content
        time.sleep(0.6)  # the room is measured twice a second


def can_write(path: Path) -> bool:
    try:
        path.write_bytes(b"x" * 100_000)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except OSError:
        return False
    return True
