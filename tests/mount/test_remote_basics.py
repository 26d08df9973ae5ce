"""Mounts with a remote: what goes there comes back on an empty state, whole, and nothing else does."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import KeyWrong
from tests.support.mounted import Mounted
from tests.support.remotes import forget, try_mount, wait_published
from tests.support.s3proxy import Mood

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.remotes import Bucket

pytest_plugins = ["tests.support.s3fixtures", "tests.support.remotefixtures"]

NODE_ONLY = ("SingletonLock", "SingletonCookie", "Crashpad/reports/1.dmp", "BrowserMetrics-spare.pma", "x.tmp")
CACHES = ("Default/Cache/Cache_Data/0123456789abcdef_0", "Default/Code Cache/js/index", "Default/GPUCache/data_1")
TRAVELS = ("Default/Preferences", "Default/Service Worker/CacheStorage/a/b/0123456789abcdef_0", "Local State")


class Directory:
    """A remote that is a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mounted(self, *more: str, state: Path | None = None, interval: str = "1s") -> Mounted:
        return Mounted(options=["--remote", f"file://{self.path}", "--interval", interval, *more], state=state)


@pytest.fixture(params=["moto", "rclone", "directory"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bucket | Directory]:
    """Each kind of remote."""
    if request.param == "directory":
        (tmp_path / "remote").mkdir()
        yield Directory(tmp_path / "remote")
    else:
        yield request.getfixturevalue("bucket" if request.param == "moto" else "plain_bucket")


def fill(session: Path) -> None:
    """Make one of everything that a filesystem knows."""
    session.mkdir(mode=0o750)
    (session / "deep" / "er").mkdir(parents=True)
    (session / "deep" / "er" / "file").write_bytes(os.urandom(300_000))
    (session / "empty").touch()
    (session / "name\xff".encode("latin-1").decode("latin-1")).write_text("odd name")
    (session / "link").symlink_to("deep/er/file")
    os.link(session / "empty", session / "deep" / "second name")
    with (session / "sparse").open("wb") as file:
        file.seek(10_000_000)
        file.write(b"end")
    os.mkfifo(session / "fifo")
    os.setxattr(session / "empty", "user.note", b"value")
    os.utime(session / "empty", ns=(1_000_000_001, 2_000_000_002))
    (session / "deep").chmod(0o710)
    os.chown(session / "empty", 1234, 5678)


def picture(top: Path) -> dict[str, object]:
    """Everything that a reader sees below *top*."""
    seen: dict[str, object] = {}
    for path in sorted([top, *top.rglob("*")]):
        found = path.lstat()
        content: object = None
        if stat.S_ISREG(found.st_mode):
            content = (path.read_bytes(), {name: os.getxattr(path, name) for name in os.listxattr(path)})
        elif stat.S_ISLNK(found.st_mode):
            content = os.readlink(path)
        nlink = 0 if path == top else found.st_nlink
        seen[str(path.relative_to(top))] = (
            *(found.st_mode, nlink, found.st_uid, found.st_gid, found.st_mtime_ns),
            *(found.st_size if not stat.S_ISDIR(found.st_mode) else 0, content),
        )
    return seen


def test_everything_comes_back_on_an_empty_state(remote: Bucket | Directory) -> None:
    with remote.mounted("--single-node") as first:
        for name in ("one", "two"):
            fill(first.path / name)
        (first.path / "file in the root").write_text("root")
        before = {name: picture(first.path / name) for name in ("one", "two")}
        first.umount()
        first.fsck()
    with remote.mounted("--single-node") as second:
        assert sorted(os.listdir(second.path)) == ["file in the root", "one", "two"]
        assert {name: picture(second.path / name) for name in ("one", "two")} == before
        assert (second.path / "file in the root").read_text() == "root"
        (second.path / "one" / "deep" / "er" / "file").unlink()
        (second.path / "file in the root").unlink()
        second.umount()
        second.fsck()
    with remote.mounted("--single-node") as third:
        # By name, without listing first.
        assert not (third.path / "one" / "deep" / "er" / "file").exists()
        assert (third.path / "two" / "deep" / "er" / "file").exists()
        assert sorted(os.listdir(third.path)) == ["one", "two"]


def test_small_changes_to_a_published_session_come_back(bucket: Bucket) -> None:
    """Each of them alone, so that nothing else makes its inode known."""
    with bucket.mounted() as first:
        session = first.path / "s"
        session.mkdir()
        for name in ("removed", "moved", "grows", "mode", "linked", "replaced"):
            (session / name).write_text(name)
        (session / "dir").mkdir()
        wait_published(first)
        for step in (
            lambda: os.mknod(session / "empty"),
            lambda: os.mkdir(session / "new dir"),
            lambda: os.mknod(session / "new dir" / "empty"),
            lambda: os.symlink("empty", session / "symlink"),
            lambda: os.mkfifo(session / "dir" / "fifo"),
            lambda: os.unlink(session / "removed"),
            lambda: os.rename(session / "moved", session / "dir" / "moved"),
            lambda: os.rename(session / "dir", session / "renamed dir"),
            lambda: os.truncate(session / "grows", 100_000),
            lambda: os.chmod(session / "mode", 0o600),
            lambda: os.link(session / "linked", session / "renamed dir" / "linked"),
            lambda: os.rename(session / "empty", session / "replaced"),
            lambda: os.setxattr(session / "mode", "user.x", b"y"),
        ):
            step()
            wait_published(first)
        before = picture(session)
        assert first.control("status", {})["remote"]["published_snapshots"] > 12
        forget(first)
    with bucket.mounted("--take-over", "--stale", "1s") as second:
        assert picture(second.path / "s") == before


def test_file_in_the_root_is_found_by_name(bucket: Bucket) -> None:
    with bucket.mounted() as first:
        (first.path / "settings.json").write_text("{}")
        first.umount()
    with bucket.mounted() as second:
        assert (second.path / "settings.json").read_text() == "{}"


def test_removed_and_renamed_sessions_do_not_come_back(bucket: Bucket) -> None:
    """Neither here before it is published, nor elsewhere afterwards."""
    with bucket.mounted() as first:
        for name in ("gone", "old", "reborn", "stays"):
            (first.path / name).mkdir()
            (first.path / name / "file").write_text(name)
        first.umount()
    with bucket.mounted(interval="1h") as second:
        # None of this lists the root, which would tell the mount all names at once.
        for name in ("gone", "reborn"):
            (second.path / name / "file").unlink()
            (second.path / name).rmdir()
        (second.path / "old").rename(second.path / "new")
        assert not (second.path / "gone").exists()
        assert not (second.path / "old").exists()
        (second.path / "reborn").mkdir()
        assert os.listdir(second.path / "reborn") == []
        assert sorted(os.listdir(second.path)) == ["new", "reborn", "stays"]
        second.control("commit", {})
        forget(second)
        second.mount()
        assert not (second.path / "gone").exists()
        assert sorted(os.listdir(second.path)) == ["new", "reborn", "stays"]
        second.umount()
    with bucket.mounted() as third:
        assert sorted(os.listdir(third.path)) == ["new", "reborn", "stays"]
        assert (third.path / "new" / "file").read_text() == "old"
        assert os.listdir(third.path / "reborn") == []


def test_an_interval_is_all_that_is_lost_with_the_machine(bucket: Bucket) -> None:
    with bucket.mounted() as first:
        (first.path / "s").mkdir()
        for number in range(3):
            (first.path / "s" / "file").write_text(f"version {number}")
            wait_published(first)
        forget(first)
        with bucket.mounted("--take-over", "--stale", "1s") as second:
            assert (second.path / "s" / "file").read_text() == "version 2"
            (second.path / "s" / "file").write_text("version 3")
            second.umount()
    with bucket.mounted() as third:
        assert (third.path / "s" / "file").read_text() == "version 3"


@pytest.mark.parametrize("caches", [False, True], ids=["default", "upload-caches"])
def test_what_does_not_travel(bucket: Bucket, caches: bool) -> None:
    more = ["--upload-caches"] if caches else []
    with bucket.mounted(*more) as first:
        profile = first.path / "user1" / "session"
        for name in (*NODE_ONLY[2:], *CACHES, *TRAVELS):
            (profile / name).parent.mkdir(parents=True, exist_ok=True)
            (profile / name).write_text(name)
        for name in NODE_ONLY[:2]:
            (profile / name).symlink_to("host-1")
        first.remount()
        assert all(os.path.lexists(profile / name) for name in (*NODE_ONLY, *CACHES, *TRAVELS))
        first.umount()
    with bucket.mounted(*more) as second:
        profile = second.path / "user1" / "session"
        there = {name for name in (*NODE_ONLY, *CACHES, *TRAVELS) if os.path.lexists(profile / name)}
        assert there == {*TRAVELS, *(CACHES if caches else ())}


def test_sync_returns_when_the_bucket_has_everything(bucket: Bucket) -> None:
    with bucket.mounted(interval="1h") as first:
        (first.path / "s").mkdir()
        (first.path / "s" / "file").write_bytes(os.urandom(1_000_000))
        answer = first.sessfs("sync", str(first.path / "s"), "--json")
        assert '"uploaded_bytes": 1' in answer.stdout
        forget(first)
        with bucket.mounted("--take-over", "--stale", "1s") as second:
            assert (second.path / "s" / "file").stat().st_size == 1_000_000


def test_sync_of_what_is_no_mount(tmp_path: Path, bucket: Bucket) -> None:
    with Mounted() as local:
        assert local.sessfs("sync", str(tmp_path), check=False).returncode == 16
        done = local.sessfs("sync", str(local.path), check=False)
        assert (done.returncode, "--remote" in done.stderr) == (2, True)


def test_key_hides_names_and_contents(bucket: Bucket, tmp_path: Path) -> None:
    key, wrong = tmp_path / "key", tmp_path / "wrong"
    key.write_text("correct horse battery staple")
    wrong.write_text("incorrect horse")
    secrets = [b"user-with-a-name", b"file-with-a-name", b"content that nobody may read " * 3]
    with bucket.mounted("--key-file", str(key)) as first:
        assert not [w for w in first.status()["warnings"] if "clear" in w]
        session = first.path / os.fsdecode(secrets[0])
        session.mkdir()
        (session / os.fsdecode(secrets[1])).write_bytes(secrets[2])
        first.umount()
    for stored, body in bucket.objects().items():
        for secret in (*secrets, b"correct horse"):
            assert secret not in body, stored
            assert secret not in stored.encode(), stored
    with bucket.mounted("--key-file", str(key)) as second:
        assert (second.path / os.fsdecode(secrets[0]) / os.fsdecode(secrets[1])).read_bytes() == secrets[2]
        second.umount()
    for options in ([], ["--key-file", str(wrong)]):
        assert try_mount(bucket.mounted(*options)).returncode == KeyWrong.exit_code


def test_without_a_key_a_mount_warns(bucket: Bucket) -> None:
    with bucket.mounted() as mounted:
        assert [w for w in mounted.status()["warnings"] if "--key-file" in w]


def test_no_conditional_writes_wants_the_operators_word(plain_bucket: Bucket) -> None:
    done = try_mount(plain_bucket.mounted())
    assert (done.returncode, "--single-node" in done.stderr) == (36, True), done.stderr
    with plain_bucket.mounted("--single-node") as mounted:
        assert mounted.status()["remote"]["capabilities"]["conditional_writes"] is False


def test_a_daemon_told_to_end_publishes_first(bucket: Bucket) -> None:
    with bucket.mounted(interval="1h") as first:
        (first.path / "s").mkdir()
        (first.path / "s" / "file").write_text("last words")
        processes = first.processes()
        subprocess.run(["umount", str(first.path)], check=True)
        assert processes
    with bucket.mounted() as second:
        assert (second.path / "s" / "file").read_text() == "last words"


def test_a_state_that_was_used_with_a_remote_is_not_mounted_without(bucket: Bucket) -> None:
    """Sessions that only the remote has would seem to be empty, and what is done to them would be done to the remote's
    later.
    """
    with bucket.mounted() as mounted:
        (mounted.path / "user").mkdir()
        (mounted.path / "user" / "file").write_bytes(b"content")
    with bucket.mounted() as mounted:
        assert os.listdir(mounted.path) == ["user"]
        mounted.umount()
        done = mounted.sessfs("mount", str(mounted.path), "--state", str(mounted.state), check=False)
        assert done.returncode == 2
        assert str(mounted.state) in done.stderr
        assert "--remote URL" in done.stderr
        assert not mounted.is_mounted()
        mounted.mount()
        assert (mounted.path / "user" / "file").read_bytes() == b"content"


@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_a_key_file_that_cannot_be_read_is_named(bucket: Bucket, tmp_path: Path, kind: str) -> None:
    key = tmp_path / "key"
    if kind == "directory":
        key.mkdir()
    done = try_mount(bucket.mounted("--key-file", str(key)))
    assert done.returncode == 2
    assert f"the key file {key} can't be read" in done.stderr


def test_unmount_says_what_the_remote_lacks(bucket: Bucket) -> None:
    """It is durable here, and whoever gives up the disk should know."""
    with bucket.mounted("--unmount-timeout", "2s", interval="1h") as mounted:
        for number in range(2):
            (mounted.path / f"user{number}").mkdir()
        mounted.sessfs("sync", str(mounted.path))
        (mounted.path / "user1" / "file").write_bytes(b"only here")
        bucket.proxy.mood = Mood.ERROR_500
        done = mounted.sessfs("umount", str(mounted.path))
        assert "user1" in done.stderr
        assert "user0" not in done.stderr
        assert f"keep {mounted.state}" in done.stderr
        bucket.proxy.mood = Mood.HONEST
        mounted.mount()
        done = mounted.sessfs("umount", str(mounted.path))
        assert done.stderr == ""
        mounted.mount()
