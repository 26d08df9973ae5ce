"""One node at a time: who holds the prefix, who may take it, and what a node that lost it keeps."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import RemoteHeld
from tests.support import posix
from tests.support.machines import machine
from tests.support.remotes import forget, remount_refused, try_mount, wait_published
from tests.support.s3proxy import Mood

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.remotes import Bucket

pytest_plugins = ["tests.support.s3fixtures", "tests.support.remotefixtures"]

FENCED_S = 40.0
"""A fenced node learns of it with its next write, a heartbeat at the latest."""


def write(path: Path, text: str) -> None:
    """Write and fsync."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def test_a_held_prefix_is_refused_and_its_holder_named(bucket: Bucket) -> None:
    with machine("holder-host"):
        first = bucket.mounted()
        first.mount()
    try:
        refused = try_mount(bucket.mounted())
        assert refused.returncode == RemoteHeld.exit_code
        assert "holder-host" in refused.stderr
        assert str(first.pid) in refused.stderr
    finally:
        first.umount()
    with bucket.mounted() as second:
        (second.path / "free").mkdir()


def test_take_over_is_refused_while_the_heart_beats(bucket: Bucket) -> None:
    """The heart beats at least every 20 seconds, and with each publishing."""
    with bucket.mounted() as first:
        (first.path / "s").mkdir()
        started = time.monotonic()
        waiting = bucket.mounted("--take-over", "--stale", "25s")
        refused = try_mount(waiting)
        assert refused.returncode == RemoteHeld.exit_code, refused.stderr
        assert "beats" in refused.stderr
        assert time.monotonic() - started >= 25
        write(first.path / "s" / "file", "still mine")
        assert wait_published(first)["remote"]["node"]["fenced_by"] is None


def test_a_fenced_node_goes_read_only_and_loses_nothing(bucket: Bucket) -> None:
    with bucket.mounted() as first:
        for name in ("changed", "untouched", "edited on both"):
            (first.path / name).mkdir()
            write(first.path / name / "file", "published")
        wait_published(first)
        # Nobody finds a new session's name absent while the remote is away, so this one begins before.
        (first.path / "only here").mkdir()
        # The first node is cut off, goes on for a while, and another one takes over.
        bucket.proxy.mood = Mood.RESET
        write(first.path / "edited on both" / "file", "never sent")
        write(first.path / "only here" / "file", "never sent either")
        time.sleep(2)
        with bucket.bypassed().mounted("--take-over", "--stale", "1s") as second:
            assert (second.path / "edited on both" / "file").read_text() == "published"
            write(second.path / "edited on both" / "file", "sent by the second")
            write(second.path / "changed" / "file", "sent by the second")
            (second.path / "new there").mkdir()
            wait_published(second)
            bucket.proxy.mood = Mood.HONEST
            assert posix.eventually(lambda: first.control("status", {})["remote"]["node"]["fenced_by"], FENCED_S)
            assert posix.eventually(lambda: any("read-only" in w for w in first.control("status", {})["warnings"]), 5)
            for attempt in (
                lambda: write(first.path / "changed" / "file", "too late"),
                lambda: (first.path / "late").mkdir(),
                lambda: (first.path / "untouched" / "file").unlink(),
            ):
                with pytest.raises(OSError, match="Read-only file system"):
                    attempt()
            assert (first.path / "edited on both" / "file").read_text() == "never sent"
            assert first.sessfs("sync", str(first.path), check=False).returncode == 40
            first.umount()
            first.fsck()
            assert remount_refused(first).returncode == RemoteHeld.exit_code
            second.umount()
        first.mount()
        names = ["changed", "edited on both", "edited on both.unsent", "new there", "only here", "untouched"]
        # Sessions are held against the remote at their first look-up, and before something is published.
        assert posix.eventually(lambda: sorted(os.listdir(first.path)) == names, 10), os.listdir(first.path)
        assert (first.path / "changed" / "file").read_text() == "sent by the second"
        assert (first.path / "edited on both" / "file").read_text() == "sent by the second"
        assert (first.path / "edited on both.unsent" / "file").read_text() == "never sent"
        assert any("edited on both.unsent" in warning for warning in first.status()["warnings"])
        assert (first.path / "only here" / "file").read_text() == "never sent either"
        assert (first.path / "untouched" / "file").read_text() == "published"
        first.umount()
        first.fsck()
    with bucket.mounted() as third:
        assert (third.path / "edited on both" / "file").read_text() == "sent by the second"
        assert (third.path / "edited on both.unsent" / "file").read_text() == "never sent"
        assert (third.path / "only here" / "file").read_text() == "never sent either"


def test_what_was_taken_over_is_not_undone_by_an_older_node(bucket: Bucket) -> None:
    """A was killed, B took over and released; A comes back, is killed again, and comes back once more."""
    with bucket.mounted() as first:
        (first.path / "s").mkdir()
        write(first.path / "s" / "file", "by A")
        wait_published(first)
        forget(first)
        with bucket.mounted("--take-over", "--stale", "1s") as second:
            write(second.path / "s" / "file", "by B")
            second.umount()
        first.mount()
        assert (first.path / "s" / "file").read_text() == "by B"
        wait_published(first)
        forget(first)
        first.mount()
        assert (first.path / "s" / "file").read_text() == "by B"
        forget(first)
        with bucket.mounted("--take-over", "--stale", "1s") as third:
            assert (third.path / "s" / "file").read_text() == "by B"


@pytest.mark.parametrize("committed", [False, True])
def test_a_node_killed_right_after_publishing_yields_to_its_successor(bucket: Bucket, committed: bool) -> None:
    """Whether or not A had written down that it published: what B made of it since stays the session."""
    with bucket.mounted("--commit-interval", "1s" if committed else "1h", interval="1h") as first:
        (first.path / "s").mkdir()
        write(first.path / "s" / "file", "by A")
        first.sessfs("sync", str(first.path))
        if committed:
            first.control("commit", {})
        forget(first)
        with bucket.mounted("--take-over", "--stale", "1s") as second:
            write(second.path / "s" / "file", "by B")
            (second.path / "s" / "more").touch()
            second.umount()
        first.mount()
        assert (first.path / "s" / "file").read_text() == "by B"
        first.sessfs("sync", str(first.path))
        forget(first)
        with bucket.mounted("--take-over", "--stale", "1s") as third:
            assert (third.path / "s" / "file").read_text() == "by B"
            assert (third.path / "s" / "more").exists()
            assert set(os.listdir(third.path)) <= {"s", "s.unsent"}


def test_take_over_survives_the_death_of_who_took_over(bucket: Bucket) -> None:
    """B takes over from A, changes nothing and dies; C takes over from B and has what A had."""
    with bucket.mounted() as first:
        (first.path / "s").mkdir()
        write(first.path / "s" / "file", "by A")
        wait_published(first)
        forget(first)
    for _ in range(2):
        with bucket.mounted("--take-over", "--stale", "1s") as second:
            assert (second.path / "s" / "file").read_text() == "by A"
            forget(second)


def test_same_state_mounts_again_at_once_after_a_kill(bucket: Bucket) -> None:
    with bucket.mounted(interval="1h") as mounted:
        (mounted.path / "s").mkdir()
        write(mounted.path / "s" / "file", "not sent")
        forget(mounted)
        mounted.mount()
        assert (mounted.path / "s" / "file").read_text() == "not sent"
        mounted.sessfs("sync", str(mounted.path))
        forget(mounted)
        with bucket.mounted("--take-over", "--stale", "1s") as second:
            assert (second.path / "s" / "file").read_text() == "not sent"
