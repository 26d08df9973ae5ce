"""What a remote costs: requests and bytes, counted at the server."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from sessfs.format.envelope import PlainEnvelope
from sessfs.format.repository import SessionObject, encode_session_object
from sessfs.format.segment import session_key
from tests.support.mounted import Mounted
from tests.support.remotes import wait_published

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.remotes import Bucket

pytest_plugins = ["tests.support.s3fixtures", "tests.support.remotefixtures"]

SESSIONS = 10
MANY = int(os.environ.get("SESSFS_TEST_NAMES", "20000"))
"""100,000 in `make soak`."""
IDLE_S = 25.0
BEAT_S = 20.0
MOUNT_REQUESTS_MAX = 25
"""The probe of a new endpoint is most of them."""


def test_puts_of_ten_changing_sessions(bucket: Bucket) -> None:
    """At most two an interval: the segment, and the node's state, which is a heartbeat too."""
    with bucket.mounted(interval="2s") as mounted:
        for number in range(SESSIONS):
            (mounted.path / f"user{number}").mkdir()
        wait_published(mounted)
        mark = bucket.proxy.mark()
        start = mounted.control("status", {})["remote"]["published_snapshots"]
        end = time.monotonic() + 12
        while time.monotonic() < end:
            for number in range(SESSIONS):
                with (mounted.path / f"user{number}" / "log").open("ab") as file:
                    file.write(os.urandom(200))
                (mounted.path / f"user{number}" / f"new {time.monotonic_ns()}").touch()
            time.sleep(0.1)
        wait_published(mounted)
        published = mounted.control("status", {})["remote"]["published_snapshots"] - start
        seen = bucket.proxy.since(mark)
    puts = [one for one in seen if one.method == "PUT"]
    print(f"{published} snapshots of ten sessions: {len(puts)} PUTs, {len(seen) - len(puts)} other requests")
    assert 4 <= published <= 7
    assert len(puts) <= 2 * published + 1  # and one heartbeat
    assert len([one for one in puts if "/segments/" in one.key]) == published
    assert len(seen) == len(puts)


def wait_quiet(bucket: Bucket) -> int:
    """Return once no segment was asked for in half a second: how many requests were sent by then."""
    while True:
        mark = bucket.proxy.mark()
        time.sleep(0.5)
        if not any("/segments/" in one.key for one in bucket.proxy.since(mark)):
            return mark


def test_what_a_start_reads_is_here_before_it_is_read(bucket: Bucket) -> None:
    """A look at a session's directory is enough; what lies in the middle of a large file comes when it is asked for."""
    settings, large = os.urandom(30_000), os.urandom(3_000_000)
    with bucket.mounted() as mounted:
        (mounted.path / "user" / "Default").mkdir(parents=True)
        (mounted.path / "user" / "Default" / "Preferences").write_bytes(settings)
        (mounted.path / "user" / "Default" / "table").write_bytes(large)
    with bucket.mounted() as mounted:
        assert os.listdir(mounted.path / "user") == ["Default"]
        mark = wait_quiet(bucket)
        assert (mounted.path / "user" / "Default" / "Preferences").read_bytes() == settings
        with (mounted.path / "user" / "Default" / "table").open("rb", buffering=0) as file:
            for at in (len(large) - 4096, 0):
                assert os.pread(file.fileno(), 4096, at) == large[at : at + 4096]
            assert bucket.proxy.since(mark, "GET") == []
            assert os.pread(file.fileno(), 4096, 1_500_000) == large[1_500_000:1_504_096]
        assert bucket.proxy.since(mark, "GET") != []


def test_who_looks_at_all_sessions_has_their_contents_left_alone(bucket: Bucket) -> None:
    """`du` and `find` are no start."""
    size, sessions = 400_000, 20
    with bucket.mounted() as mounted:
        for number in range(sessions):
            (mounted.path / f"user{number}").mkdir()
            (mounted.path / f"user{number}" / "file").write_bytes(os.urandom(size))
    with bucket.mounted() as mounted:
        for number in range(sessions):
            assert (mounted.path / f"user{number}" / "file").stat().st_size == size
        wait_quiet(bucket)
        assert mounted.status()["remote"]["downloaded_bytes"] < size * sessions / 3


def test_an_idle_mount_sends_its_heartbeat_alone(bucket: Bucket) -> None:
    with bucket.mounted() as mounted:
        (mounted.path / "s").mkdir()
        (mounted.path / "s" / "file").write_bytes(os.urandom(100_000))
        wait_published(mounted)
        time.sleep(2)
        mark = bucket.proxy.mark()
        time.sleep(IDLE_S)
        # Readers are no reason to send anything.
        assert os.listdir(mounted.path) == ["s"]
        assert (mounted.path / "s" / "file").stat().st_size == 100_000
        seen = bucket.proxy.since(mark)
    beats = [one for one in seen if one.method == "PUT" and one.key.endswith("/state")]
    assert 1 <= len(beats) <= 1 + IDLE_S // BEAT_S
    # The first listing of the root asks once which other sessions there are.
    others = [one for one in seen if one not in beats]
    assert [one.method for one in others] in ([], ["GET"], ["GET", "GET"]), others


def test_names_by_the_ten_thousand(tmp_path: Path) -> None:
    """A mount asks for none of them, a name for its own, and `ls` gets all of them by pages."""
    remote = tmp_path / "remote"
    remote.mkdir()
    options = ["--remote", f"file://{remote}"]
    with Mounted(options=options) as first:
        (first.path / "real").mkdir()
        (first.path / "real" / "file").write_text("content")
        first.umount()
    envelope = PlainEnvelope()
    (remote / "sessions").mkdir(exist_ok=True)
    for number in range(MANY):
        name = b"user%06d" % number
        record = SessionObject(name, None, None, 0, [])
        with (remote / session_key(envelope, name)).open("wb") as file:
            file.write(encode_session_object(record, envelope))
    with Mounted(options=options) as mounted:
        asked = requests(mounted)
        assert sum(asked.values()) <= MOUNT_REQUESTS_MAX, asked
        assert asked.get("list", 0) <= 3, asked
        assert (mounted.path / "real" / "file").read_text() == "content"
        assert os.listdir(mounted.path / f"user{MANY // 2:06d}") == []
        assert sum(requests(mounted).values()) <= sum(asked.values()) + 12
        started = time.monotonic()
        names = os.listdir(mounted.path)
        print(f"{len(names)} names in {time.monotonic() - started:.1f} s; mount: {asked}, {requests(mounted)} after ls")
        assert sorted(names) == ["real", *(f"user{number:06d}" for number in range(MANY))]
        assert requests(mounted).get("list", 0) <= asked.get("list", 0) + MANY // 1000 + 5
        # The second listing needs no request at all.
        before = but_heartbeats(mounted)
        assert len(os.listdir(mounted.path)) == MANY + 1
        assert but_heartbeats(mounted) == before


def but_heartbeats(mounted: Mounted) -> dict[str, int]:
    """`requests` without those that come every 20 s, whatever is done."""
    return {kind: count for kind, count in requests(mounted).items() if kind != "put_if"}


def test_a_mount_of_many_sessions_takes_as_many_requests_as_of_few(bucket: Bucket) -> None:
    counts = []
    for added in (1, 30):
        with bucket.mounted() as mounted:
            for number in range(added):
                (mounted.path / f"{added}-{number}").mkdir()
                (mounted.path / f"{added}-{number}" / "file").write_text("x")
            mounted.umount()
        mark = bucket.proxy.mark()
        with bucket.mounted():
            time.sleep(0.5)
            counts.append(len(bucket.proxy.since(mark)))
    print(f"requests of a mount: {counts}")
    assert counts[0] == counts[1] <= MOUNT_REQUESTS_MAX


def requests(mounted: Mounted) -> dict[str, int]:
    """Requests to the remote so far, by kind."""
    counted: dict[str, int] = mounted.control("status", {})["remote"]["requests"]
    return counted
