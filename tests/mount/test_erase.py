"""`sessfs rm` on real mounts: what was erased is in no file of the state directory or the remote, also after kills."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.mounted import Mounted
from tests.support.posix import eventually, tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = b"secret of user one: "
NAMES = ("secret-name", "user-to-be-erased")
ONE, TWO = NAMES[1], "two"
KILL_AFTER_S = (0.0, 0.3, 1.0)


def secret_noise(seed: int, length: int) -> bytes:
    """Bytes that do not compress, with the pattern in every chunk, so that it is stored as it is."""
    source, parts = random.Random(seed), []
    while sum(map(len, parts)) < length:
        parts += [source.randbytes(3000), SECRET]
    return b"".join(parts)[:length]


def find_patterns(*directories: Path) -> list[tuple[Path, bytes]]:
    """Where the secret or a name is, in the bytes or the name of any file."""
    found = []
    for path in (path for directory in directories for path in directory.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        for pattern in (SECRET, *(name.encode() for name in NAMES)):
            if pattern in content or pattern.decode() in path.name:
                found.append((path, pattern))
    return found


def fill(mounted: Mounted) -> None:
    """Two users who share a file and frames; the one has snapshots, deltas, changes that are not uploaded."""
    shared = random.Random(1).randbytes(500_000)
    for name in (ONE, TWO):
        (mounted.path / name).mkdir()
        (mounted.path / name / "shared").write_bytes(shared)
    for n in range(30):
        (mounted.path / ONE / f"f{n}").write_bytes(secret_noise(n, 9_000))
        (mounted.path / TWO / f"f{n}").write_bytes(random.Random(100 + n).randbytes(9_000))
    (mounted.path / ONE / NAMES[0]).write_bytes(SECRET * 10_000)
    for seed in (50, 51):
        settle(mounted)
        (mounted.path / ONE / "f3").write_bytes(secret_noise(seed, 20_000))
        (mounted.path / TWO / "f3").write_bytes(random.Random(seed).randbytes(20_000))
        mounted.sessfs("snapshot", str(mounted.path / TWO))
    mounted.sessfs("rm", str(mounted.path / ONE))  # to the trash
    (mounted.path / ONE).mkdir()
    (mounted.path / ONE / "shared").write_bytes(shared)
    (mounted.path / ONE / "unsent").write_bytes(secret_noise(9, 50_000))


def settle(mounted: Mounted) -> None:
    mounted.seal()
    if "--remote" in mounted.options:
        mounted.sessfs("sync", str(mounted.path))
    else:
        mounted.sessfs("snapshot", str(mounted.path / ONE))


def purge(mounted: Mounted, check: bool = True) -> dict[str, Any]:
    done = mounted.sessfs("rm", str(mounted.path / ONE), "--purge", "--yes", "--json", check=check)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    (tmp_path / "remote").mkdir()
    return tmp_path / "remote"


@pytest.fixture
def mounted(remote: Path) -> Iterator[Mounted]:
    """A mount with a remote in a directory."""
    with Mounted(options=["--remote", f"file://{remote}", "--interval", "600s", "--seal-idle", "1s"]) as mounted:
        yield mounted


def assert_two_is_whole(mounted: Mounted, remote: Path, expected: Any) -> None:
    """On this mount, after a remount, in the remote by fsck, and on a machine that has nothing but the remote."""
    assert tree(mounted.path / TWO) == expected
    mounted.remount()
    assert tree(mounted.path / TWO) == expected
    mounted.umount()
    mounted.fsck()
    mounted.sessfs("fsck", "--remote", f"file://{remote}", "--read-data", "100")
    with Mounted(options=["--remote", f"file://{remote}"]) as elsewhere:
        assert os.listdir(elsewhere.path) == [TWO]
        assert tree(elsewhere.path / TWO) == expected
        history = json.loads(elsewhere.sessfs("history", str(elsewhere.path / TWO), "--json").stdout)["snapshots"]
        elsewhere.sessfs("rollback", str(elsewhere.path / TWO), str(history[0]["sequence"]))
    mounted.mount()


def assert_names_us(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 17
    assert f"session {ONE} is in use: files of it are open; end what uses it, then try again; " in done.stderr
    assert f"(pid {os.getpid()}: " in done.stderr


def test_rm_removes_a_session(mounted: Mounted) -> None:
    (mounted.path / ONE).mkdir()
    (mounted.path / ONE / "f").write_bytes(b"content")
    assert (mounted.path / ONE / "f").exists()
    mounted.sessfs("rm", str(mounted.path / ONE))
    assert not (mounted.path / ONE).exists()
    assert os.listdir(mounted.path) == []
    mounted.sessfs("trash", "restore", str(mounted.path), ONE)
    assert (mounted.path / ONE / "f").read_bytes() == b"content"


def test_purge_wants_to_be_sure_and_alone(mounted: Mounted) -> None:
    (mounted.path / ONE).mkdir()
    (mounted.path / ONE / "f").write_bytes(b"content")
    done = mounted.sessfs("rm", str(mounted.path / ONE), "--purge", check=False)
    assert (done.returncode, "--yes" in done.stderr) == (2, True)
    mounted.sessfs("limit", str(mounted.path / ONE), "--max-session-bytes", "1G")
    with (mounted.path / ONE / "f").open():
        done = mounted.sessfs("rm", str(mounted.path / ONE), "--purge", "--yes", check=False)
        assert_names_us(done)
        assert_names_us(mounted.sessfs("rm", str(mounted.path / ONE), check=False))
    assert (mounted.path / ONE / "f").read_bytes() == b"content"
    # What is refused leaves the session's limits, what is done takes them along, at once.
    for _ in range(2):
        assert mounted.control("limit", {"session": None})["sessions_with_their_own"] == [ONE]
        mounted.remount()
    purge(mounted)
    assert mounted.control("limit", {"session": None})["sessions_with_their_own"] == []


def test_purge_of_a_mount_without_a_remote(tmp_path: Path) -> None:
    with Mounted() as mounted:
        fill(mounted)
        expected = tree(mounted.path / TWO)
        assert find_patterns(mounted.state)
        report = purge(mounted)
        assert find_patterns(mounted.state) == []
        assert report["shared_bytes"] == 500_000
        assert tree(mounted.path / TWO) == expected
        mounted.remount()
        assert tree(mounted.path / TWO) == expected
        mounted.umount()
        mounted.fsck()
        assert find_patterns(mounted.state) == []
        mounted.mount()


def test_purge_leaves_nothing_here_or_in_the_remote(mounted: Mounted, remote: Path) -> None:
    fill(mounted)
    settle(mounted)
    expected = tree(mounted.path / TWO)
    assert {path.is_relative_to(remote) for path, _ in find_patterns(mounted.state, remote)} == {True, False}
    report = purge(mounted)
    assert find_patterns(mounted.state, remote) == []
    assert report["shared_bytes"] == 500_000
    assert report["erased_bytes"] > 300_000
    assert report["remote_segments"] >= 3
    assert not (mounted.path / ONE).exists()
    assert_two_is_whole(mounted, remote, expected)
    assert find_patterns(mounted.state, remote) == []


@pytest.mark.parametrize("after_s", KILL_AFTER_S)
def test_purge_that_is_killed_is_finished_by_the_next(mounted: Mounted, remote: Path, after_s: float) -> None:
    fill(mounted)
    settle(mounted)
    expected = tree(mounted.path / TWO)
    command = [sys.executable, "-m", "sessfs.cli.main", "rm", str(mounted.path / ONE), "--purge", "--yes"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        assert eventually(lambda: not (mounted.path / ONE).exists(), 120)  # from here on it is half done
        time.sleep(after_s)
        mounted.kill()
    mounted.mount()
    assert tree(mounted.path / TWO) == expected
    purge(mounted)
    assert find_patterns(mounted.state, remote) == []
    assert_two_is_whole(mounted, remote, expected)
