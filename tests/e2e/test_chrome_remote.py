"""Chromium's logins and a remote: they move to another machine, outlive the remote's absence, and cost few bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.chromelife import Life, Page, User, open_page, run_life
from tests.support import posix
from tests.support.machines import machine, other_network
from tests.support.mounted import Mounted
from tests.support.remotes import CREDENTIALS, forget, new_bucket, wait_published
from tests.support.s3servers import free_port, rclone_command, running
from tests.support.snapshots import SnapshotReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.remotes import Bucket

pytest_plugins = ["tests.support.s3fixtures", "tests.support.remotefixtures"]

MESSAGES = 2000
FILL = ("pair", "worker", "caches", f"add={MESSAGES}", "local=50")
IN_USE = "appears to be in use"
INTERVAL_S = 10.0
APPEND_MAX_BYTES = 200_000
SNAPSHOTS = int(os.environ.get("SESSFS_TEST_SNAPSHOTS", "3"))
"""How many snapshots of a Chromium at work another Chromium is to open."""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """The stand-in for https://web.whatsapp.com."""
    with open_page() as served:
        yield served


def user_on(mounted: Mounted) -> User:
    return User("user1", "seed-of-user1", mounted.path / "user1")


def assert_logged_in(page: Page, user: User) -> None:
    """The user's Chrome starts without a QR code, and finds every record and every script."""
    life = run_life(page, user, "ready", ["verify"])
    assert life.n_qr == 0
    assert IN_USE not in life.stderr
    found = life.verified
    assert found.errors == ()
    assert (found.user, found.messages, found.local_keys) == (user.name, MESSAGES, 50)
    assert (found.cache_entries, found.cache_bytes) == (page.assets, page.asset_bytes)


@contextlib.contextmanager
def on_machine(name: str, bucket: Bucket, *more: str) -> Iterator[Mounted]:
    """A mount with an empty state, whose daemon has a hostname and a network of its own."""
    with other_network() as network, contextlib.ExitStack() as stack:
        options = bucket.options(*more, interval="2s", host=network.host_address)
        mounted = Mounted(options=options, env=CREDENTIALS)
        with machine(name, network):
            stack.enter_context(mounted)
        yield mounted


def test_login_moves_to_another_machine_after_an_unmount(plain_bucket: Bucket, page: Page) -> None:
    with on_machine("machine-a", plain_bucket, "--single-node") as a, machine("machine-a"):
        assert run_life(page, user_on(a), "qr", FILL).n_qr == 1
        a.umount()
    with on_machine("machine-b", plain_bucket, "--single-node") as b, machine("machine-b"):
        assert_logged_in(page, user_on(b))


def test_login_moves_to_another_machine_after_a_kill(bucket: Bucket, page: Page) -> None:
    """Chromium still runs when its machine is lost, so its locks are in the profile."""
    with on_machine("machine-a", bucket) as a:
        with machine("machine-a"):
            run_life(page, user_on(a), "qr", FILL)
            with Life(page, user_on(a), "ready", ["write"]) as life:
                life.wait_written(20)
                time.sleep(3)
                wait_snapshots(a, 2)
                assert (user_on(a).profile / "SingletonLock").is_symlink()
                a.kill()
        a.detach()
        with on_machine("machine-b", bucket, "--take-over", "--stale", "2s") as b, machine("machine-b"):
            assert_logged_in(page, user_on(b))


def wait_snapshots(mounted: Mounted, count: int) -> None:
    """Return once *count* more snapshots are published."""
    start = mounted.control("status", {})["remote"]["published_snapshots"]
    end = time.monotonic() + 60 + 4 * count
    while mounted.control("status", {})["remote"]["published_snapshots"] < start + count:
        assert time.monotonic() < end, mounted.log_tail()
        time.sleep(0.1)


def test_appends_to_indexeddb_upload_little(bucket: Bucket, page: Page) -> None:
    """Some messages a second come in, as in a busy chat; Chromium stores each batch in IndexedDB."""
    with bucket.mounted(interval="3s") as mounted:
        run_life(page, user_on(mounted), "qr", FILL)
        wait_published(mounted)
        with Life(page, user_on(mounted), "ready", ("pause=9000", *("add=2", "pause=400") * 60)) as life:
            life.wait_event("chromium")
            wait_snapshots(mounted, 4)  # what a start changes is over
            mark = bucket.proxy.mark()
            wait_snapshots(mounted, 5)
            segments = [one for one in bucket.proxy.since(mark, "PUT") if "/segments/" in one.key]
            life.kill_chromium()
    sizes = [one.n_bytes for one in segments]
    print(f"bytes by interval: {sizes}")
    assert len(sizes) >= 4
    assert max(sizes) < APPEND_MAX_BYTES


def test_chromium_opens_every_snapshot_of_itself_at_work(tmp_path: Path, page: Page) -> None:
    """LevelDB under IndexedDB, local storage and all else, cut while it is being written to."""
    remote = tmp_path / "remote"
    remote.mkdir()
    with Mounted(options=["--remote", f"file://{remote}", "--interval", "1s"]) as mounted:
        user = user_on(mounted)
        run_life(page, user, "qr", FILL)
        wait_published(mounted)
        before = mounted.control("status", {})["remote"]["published_snapshots"]
        with Life(page, user, "ready", ["write"]) as life:
            life.wait_written(10)
            wait_snapshots(mounted, SNAPSHOTS + 1)
            life.kill_chromium()
        assert mounted.control("status", {})["remote"]["published_snapshots"] > before + SNAPSHOTS
        mounted.umount()
    reader = SnapshotReader(remote)
    judged = reader.snapshots("user1")[-SNAPSHOTS:]
    entries = []
    for snapshot in judged:
        target = tmp_path / f"restored-{snapshot.sequence}"
        reader.restore(snapshot, target)
        found = run_life(page, User("user1", user.seed, target), "ready", ["verify"])
        assert (found.n_qr, found.verified.errors, found.verified.messages) == (0, (), MESSAGES)
        entries.append(found.verified.journal)
        shutil.rmtree(target)
    print(f"{len(judged)} snapshots, journal entries {entries}")
    assert len(judged) == SNAPSHOTS
    assert entries == sorted(entries)
    assert entries[-1] > 10


def test_the_remote_is_away_for_a_whole_life(tmp_path: Path, aws_environment: object, page: Page) -> None:
    """Chromium pairs, works and ends while the server is stopped; all of it is sent when the server is back."""
    (tmp_path / "disk").mkdir()
    port, log = free_port(), tmp_path / "log"
    command = rclone_command(tmp_path / "disk", port)
    more = ("--single-node", "--risk-limit", "1s", "--unmount-timeout", "2s")
    with contextlib.ExitStack() as stack:
        server = contextlib.ExitStack()
        stack.enter_context(server)
        endpoint = server.enter_context(running("rclone", command, port, log))
        bucket = stack.enter_context(new_bucket(endpoint))
        mounted = stack.enter_context(bucket.mounted(*more, interval=f"{INTERVAL_S:g}s"))
        user = user_on(mounted)
        user.data_path.mkdir()
        wait_published(mounted)
        server.close()

        life = run_life(page, user, "qr", FILL)
        assert life.n_qr == 1
        assert_at_risk(mounted)

        server.enter_context(running("rclone", command, port, log))
        back = time.monotonic()
        wait_published(mounted, 2 * INTERVAL_S)
        print(f"caught up {time.monotonic() - back:.1f} s after the return, interval {INTERVAL_S} s")

        server.close()
        run_life(page, user, "ready", ["add=100"])
        mounted.umount(30)
        server.enter_context(running("rclone", command, port, log))
        mounted.mount()
        wait_published(mounted, 2 * INTERVAL_S)
        forget(mounted)
        with bucket.mounted("--single-node", "--take-over", "--stale", "1s") as other:
            found = run_life(page, user_on(other), "ready", ["verify"])
            assert (found.n_qr, found.verified.errors, found.verified.messages) == (0, (), MESSAGES + 100)


def assert_at_risk(mounted: Mounted) -> None:
    # Before its first request of this interval fails, the mount can't know.
    assert posix.eventually(lambda: health(mounted) == "degraded", 2 * INTERVAL_S)
    status = mounted.status()
    assert status["at_risk_bytes"] > 1_000_000
    assert status["at_risk_seconds"] > 1
    assert [w for w in status["warnings"] if "on this machine only" in w]
    (session,) = mounted.control("sessions", {})["sessions"]
    assert session["at_risk_bytes"] > 1_000_000
    failed = mounted.sessfs("sync", str(mounted.path / "user1"), "--timeout", "2", check=False)
    assert (failed.returncode, "user1" in failed.stderr) == (40, True), failed.stderr


def health(mounted: Mounted) -> str:
    state: str = mounted.control("status", {})["remote"]["health"]["state"]
    return state
