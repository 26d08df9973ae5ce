"""`sessfs export` of a real mount, and straight from a bucket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from typing import TYPE_CHECKING

import pytest

from tests.support import trees
from tests.support.mounted import Mounted
from tests.support.remotes import CREDENTIALS, PREFIX, Bucket, forget

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest_plugins = ["tests.support.s3fixtures", "tests.support.remotefixtures"]

COMMAND = (sys.executable, "-m", "sessfs.cli.entry")
FORMATS = ("dir", "tar", "tar.zst", "zip")


@pytest.fixture(scope="module")
def live() -> Iterator[Mounted]:
    """A mount with one session, `user1`, which no test changes."""
    with Mounted() as mounted:
        (mounted.path / "user1").mkdir()
        trees.make_profile(mounted.path / "user1", odd=False)
        yield mounted


def unpack(archive: Path, target: Path) -> dict[bytes, trees.Seen]:
    """Extract with the usual tools, and look."""
    target.mkdir()
    if archive.name.endswith(".zip"):
        subprocess.run(["unzip", "-q", str(archive), "-d", str(target)], check=True)
    else:
        command = ["tar", "--xattrs", "--xattrs-include=*", "-xpf", str(archive), "-C", str(target)]
        if archive.name.endswith(".zst"):
            command.insert(1, "--zstd")
        subprocess.run(command, check=True)
    return trees.look(target)


def travelling(seen: dict[bytes, trees.Seen]) -> dict[bytes, trees.Seen]:
    """What a snapshot has of it."""
    return {path: one for path, one in seen.items() if b"/Cache_Data" not in path}


# -- out of a mount


@pytest.mark.parametrize("form", FORMATS)
def test_export_equals_the_session(live: Mounted, tmp_path: Path, form: str) -> None:
    """Caches as well, sealed or not."""
    for round_ in ("hot", "sealed"):
        name = f"{round_}.{form}" if form != "dir" else round_
        live.sessfs("export", str(live.path / "user1"), str(tmp_path / name))
        expected = trees.look(live.path / "user1")
        found = trees.look(tmp_path / name) if form == "dir" else unpack(tmp_path / name, tmp_path / f"{round_}-out")
        if form == "zip":
            assert trees.contents(found) == trees.contents(expected)
        else:
            assert found == expected
        live.seal()


def test_export_keeps_odd_names_xattrs_and_holes(mount: Mounted, tmp_path: Path) -> None:
    (mount.path / "user1").mkdir()
    trees.make_profile(mount.path / "user1")
    mount.seal()
    mount.sessfs("export", str(mount.path / "user1"), str(tmp_path / "out"))
    assert trees.look(tmp_path / "out") == trees.look(mount.path / "user1")
    assert (tmp_path / "out" / "holes").stat().st_blocks * 512 <= 16 << 10
    mount.sessfs("export", str(mount.path / "user1"), str(tmp_path / "out.tar"))
    assert unpack(tmp_path / "out.tar", tmp_path / "tar") == trees.look(mount.path / "user1")


def test_export_reports_in_json(live: Mounted, tmp_path: Path) -> None:
    done = live.sessfs("export", str(live.path / "user1"), str(tmp_path / "a.zip"), "--json")
    answer = json.loads(done.stdout)
    assert answer["session"] == "user1"
    assert answer["format"] == "zip"
    assert answer["dest"] == str(tmp_path / "a.zip")
    assert answer["snapshot"] is None
    assert answer["content_bytes"] > 3 << 20
    assert done.stderr == ""


def test_export_of_remoteauth(live: Mounted, tmp_path: Path) -> None:
    live.sessfs("export", str(live.path / "user1"), str(tmp_path / "RemoteAuth-x.zip"), "--format", "remoteauth")
    with zipfile.ZipFile(tmp_path / "RemoteAuth-x.zip") as archive:
        names = {name.split("/")[1] for name in archive.namelist() if name != "Default/"}
    assert names == {"IndexedDB", "Local Storage"}


def test_export_leaves_no_view_and_no_part(live: Mounted, tmp_path: Path) -> None:
    live.sessfs("export", str(live.path / "user1"), str(tmp_path / "out"))
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(live.path) == ["user1"]
    for number in range(1, 100):
        assert not (live.path / f".sessfs-view-{number}").exists()
    assert live.status()["sessions"] == 1


def test_export_leaves_out_the_locks_of_chrome(mount: Mounted, tmp_path: Path) -> None:
    (mount.path / "user1").mkdir()
    for name in ("SingletonLock", "SingletonCookie", "SingletonSocket", "other"):
        os.symlink("host-1", mount.path / "user1" / name)
    mount.sessfs("export", str(mount.path / "user1"), str(tmp_path / "out"))
    assert os.listdir(tmp_path / "out") == ["other"]


@pytest.mark.parametrize(
    ("session", "dest", "code", "says"),
    [
        ("user1", "taken", 2, "is no empty directory"),
        ("user1", "taken.zip", 2, "overwrites nothing"),
        ("user1", "absent/out", 2, "make it before"),
        ("absent", "out", 1, "no session absent"),
        ("", "out", 2, "a whole mount"),
        ("user1/Default", "out", 2, "lies in session user1"),
        ("../elsewhere", "out", 16, "neither a sessfs mount nor in one"),
    ],
)
def test_export_refused(live: Mounted, tmp_path: Path, session: str, dest: str, code: int, says: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    (tmp_path / "taken.zip").touch()
    done = live.sessfs("export", str(live.path / session), str(tmp_path / dest), check=False)
    assert done.returncode == code
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == ["taken", "taken.zip"]


def test_export_of_a_session_in_use_is_one_instant(mount: Mounted, tmp_path: Path) -> None:
    """Somebody writes a number into one file, then into another, all the time: a copy that is made piece by piece finds
    the second ahead of the first.
    """
    session = mount.path / "user1"
    session.mkdir()
    stop = threading.Event()

    def write() -> None:
        fds = [os.open(session / name, os.O_RDWR | os.O_CREAT) for name in ("a-first", "z-second")]
        number = 0
        while not stop.is_set():
            number += 1
            for fd in fds:
                os.pwrite(fd, b"%012d" % number, 0)
                os.fsync(fd)
        for fd in fds:
            os.close(fd)

    for number in range(30):
        (session / f"m{number}").write_bytes(os.urandom(200_000))
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(4):
            mount.sessfs("export", str(session), str(tmp_path / f"out{number}"))
            first, second = (int((tmp_path / f"out{number}" / name).read_bytes()) for name in ("a-first", "z-second"))
            assert first - second in (0, 1)
            assert first > 0
    finally:
        stop.set()
        writer.join()


def test_export_at_a_snapshot(mount: Mounted, tmp_path: Path) -> None:
    session = mount.path / "user1"
    session.mkdir()
    trees.make_profile(session)
    expected = travelling(trees.look(session))
    taken = json.loads(mount.sessfs("snapshot", str(session), "--json").stdout)["sequence"]
    (session / "Local State").write_bytes(b"later")
    (session / "Default" / "Preferences").unlink()
    mount.sessfs("export", str(session), str(tmp_path / "out"), "--at", str(taken))
    assert trees.look(tmp_path / "out") == expected
    done = mount.sessfs("export", str(session), str(tmp_path / "none"), "--at", "99", check=False)
    assert done.returncode == 2
    assert f"there are: {taken}" in done.stderr


@pytest.mark.parametrize("name", ["out", "out.tar.zst", "out.zip"])
def test_killed_export_leaves_nothing_that_looks_whole(mount: Mounted, tmp_path: Path, name: str) -> None:
    session = mount.path / "user1"
    session.mkdir()
    for number in range(40):
        (session / f"f{number}").write_bytes(os.urandom(2 << 20))
    exporting = subprocess.Popen([*COMMAND, "export", str(session), str(tmp_path / name)], stdin=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not os.listdir(tmp_path):
        assert exporting.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    exporting.send_signal(signal.SIGKILL)
    exporting.wait()
    left = os.listdir(tmp_path)
    assert [one.startswith(f".{name}.") and one.endswith(".part") for one in left] == [True]
    mount.sessfs("export", str(session), str(tmp_path / name))
    assert sorted(os.listdir(tmp_path)) == sorted([*left, name])
    # Its view goes with the next start.
    mount.remount()
    assert not any((mount.path / f".sessfs-view-{number}").exists() for number in range(1, 20))


def test_interrupted_export_leaves_nothing(mount: Mounted, tmp_path: Path) -> None:
    session = mount.path / "user1"
    session.mkdir()
    for number in range(150):
        (session / f"f{number}").write_bytes(os.urandom(2 << 20))
    # A test run in the background may be deaf to SIGINT, and so would be its children.
    command = ["env", "--default-signal=INT", *COMMAND, "export", str(session), str(tmp_path / "out")]
    exporting = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not os.listdir(tmp_path):
        assert exporting.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    exporting.send_signal(signal.SIGINT)
    assert exporting.wait(30) == 130
    assert os.listdir(tmp_path) == []
    assert not any((mount.path / f".sessfs-view-{number}").exists() for number in range(1, 20))


# -- straight from a bucket


def run(bucket: Bucket, *arguments: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
    """`sessfs export --remote` in an environment with the bucket's credentials and, if given, a key."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SESSFS_")}
    url = f"s3://{bucket.name}/{PREFIX}"
    return subprocess.run(
        [*COMMAND, "export", "--remote", url, "--endpoint-url", bucket.proxy.url(), *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=120,
        env=environment | CREDENTIALS | ({"SESSFS_KEY": key} if key is not None else {}),
    )


def fill(mounted: Mounted) -> dict[bytes, trees.Seen]:
    """A session `user1`, uploaded; what is to come out of the bucket."""
    (mounted.path / "user1").mkdir()
    trees.make_profile(mounted.path / "user1")
    mounted.sessfs("sync", str(mounted.path))
    return travelling(trees.look(mounted.path / "user1"))


@pytest.mark.parametrize("key", [None, "the key of the operator"])
def test_export_from_the_bucket_beside_the_mount(bucket: Bucket, tmp_path: Path, key: str | None) -> None:
    mounted = bucket.mounted()
    mounted.env |= {} if key is None else {"SESSFS_KEY": key}
    with mounted:
        expected = fill(mounted)
        (mounted.path / "user2").mkdir()
        mark = bucket.proxy.mark()
        for name in ("out", "out.tar.zst"):
            done = run(bucket, "user1", str(tmp_path / name), key=key)
            assert done.returncode == 0, done.stderr
        mine = [one for one in bucket.proxy.since(mark) if "/beat" not in one.key]
        assert trees.look(tmp_path / "out") == expected
        assert unpack(tmp_path / "out.tar.zst", tmp_path / "tar") == expected
        # The mount goes on meanwhile; it alone writes, and only its own node's objects and user2's announcement.
        assert all("/nodes/" in one.key or "/sessions/" in one.key for one in mine if one.method != "GET")
        assert (tmp_path / "out" / "holes").stat().st_blocks * 512 <= 16 << 10
        if key is not None:
            for wrong in (None, "another key"):
                refused = run(bucket, "user1", str(tmp_path / "refused"), key=wrong)
                assert refused.returncode == 39
        absent = run(bucket, "absent", str(tmp_path / "refused"), key=key)
        assert absent.returncode == 1
        assert "no session absent" in absent.stderr
    released = run(bucket, "user1", str(tmp_path / "released"), key=key)
    assert released.returncode == 0, released.stderr
    assert trees.look(tmp_path / "released") == expected


def test_export_from_the_bucket_at_a_snapshot(bucket: Bucket, tmp_path: Path) -> None:
    """Kept snapshots are read beside the mount, and after it released all."""
    with bucket.mounted() as mounted:
        expected = fill(mounted)
        listed = json.loads(mounted.sessfs("history", str(mounted.path / "user1"), "--json").stdout)
        number = str(listed["snapshots"][-1]["sequence"])
        (mounted.path / "user1" / "Local State").write_bytes(b"later")
        mounted.sessfs("sync", str(mounted.path))
        assert run(bucket, "user1", str(tmp_path / "beside"), "--at", number).returncode == 0
        assert run(bucket, "user1", str(tmp_path / "now")).returncode == 0
    assert run(bucket, "user1", str(tmp_path / "after"), "--at", number).returncode == 0
    refused = run(bucket, "user1", str(tmp_path / "refused"), "--at", "99")
    assert refused.returncode == 2
    assert "no snapshot 99" in refused.stderr
    assert trees.look(tmp_path / "beside") == trees.look(tmp_path / "after") == expected
    assert (tmp_path / "now" / "Local State").read_bytes() == b"later"


def test_export_from_the_bucket_of_a_machine_that_is_gone_writes_nothing(bucket: Bucket, tmp_path: Path) -> None:
    with bucket.mounted() as mounted:
        expected = fill(mounted)
        forget(mounted)
        before = bucket.objects()
        mark = bucket.proxy.mark()
        done = run(bucket, "user1", str(tmp_path / "out"), "--json")
        assert done.returncode == 0, done.stderr
        assert trees.look(tmp_path / "out") == expected
        assert {one.method for one in bucket.proxy.since(mark)} == {"GET"}
        assert bucket.objects() == before


def test_export_from_the_bucket_takes_few_requests(bucket: Bucket, tmp_path: Path) -> None:
    """Contents come by merged ranges: 300 small files are no 300 requests."""
    with bucket.mounted() as mounted:
        (mounted.path / "user1").mkdir()
        for number in range(300):
            (mounted.path / "user1" / f"f{number}").write_bytes(os.urandom(9000))
        mounted.sessfs("sync", str(mounted.path))
    mark = bucket.proxy.mark()
    assert run(bucket, "user1", str(tmp_path / "out")).returncode == 0
    requests = bucket.proxy.since(mark)
    print(f"{len(requests)} requests: {[one.key for one in requests]}")
    assert len(requests) <= 10


def test_export_from_a_damaged_bucket_is_an_error_and_leaves_nothing(bucket: Bucket, tmp_path: Path) -> None:
    with bucket.mounted() as mounted:
        (mounted.path / "user1").mkdir()
        (mounted.path / "user1" / "f").write_bytes(os.urandom(1 << 20))
        mounted.sessfs("sync", str(mounted.path))
    segment = _segment(bucket)
    body = bytearray(bucket.read(segment))
    body[300_000] ^= 1
    bucket.client().put_object(Bucket=bucket.name, Key=f"{PREFIX}/{segment}", Body=bytes(body))
    for name in ("out", "out.tar"):
        done = run(bucket, "user1", str(tmp_path / name))
        assert done.returncode == 35
        assert "user1" in done.stderr
    assert os.listdir(tmp_path) == []


def _segment(bucket: Bucket) -> str:
    """The largest segment's key."""
    keys = [key for key in bucket.list_keys("nodes/") if "/segments/" in key]
    return max(keys, key=lambda key: len(bucket.read(key)))


def test_export_of_what_is_no_repository(bucket: Bucket, tmp_path: Path) -> None:
    done = run(bucket, "user1", str(tmp_path / "out"))
    assert done.returncode == 33
    assert "check the URL" in done.stderr
    assert bucket.objects() == {}


def test_export_from_a_bucket_without_conditional_writes(plain_bucket: Bucket, tmp_path: Path) -> None:
    with plain_bucket.mounted("--single-node") as mounted:
        expected = fill(mounted)
        done = run(plain_bucket, "user1", str(tmp_path / "out"))
        assert done.returncode == 0, done.stderr
        assert trees.look(tmp_path / "out") == expected


def test_export_of_a_mount_whose_session_only_the_remote_has(bucket: Bucket, tmp_path: Path) -> None:
    """The next machine: its first look at the session is the export."""
    with bucket.mounted() as mounted:
        expected = fill(mounted)
    with bucket.mounted() as mounted:
        mounted.sessfs("export", str(mounted.path / "user1"), str(tmp_path / "out.tar"))
    with tarfile.open(tmp_path / "out.tar", encoding="utf-8", errors="surrogateescape") as tar:
        assert {os.fsencode(member.name) for member in tar} == {path or b"." for path in expected}
    assert unpack(tmp_path / "out.tar", tmp_path / "out") == expected
