"""History with a remote, through mounts: it is in the bucket, goes with the session, and collection heeds it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.mounted import Mounted
from tests.support.posix import noise, read_file, tree, write_file

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    directory = tmp_path / "remote"
    directory.mkdir()
    return directory


def mounted(remote: Path, *options: str) -> Mounted:
    """A mount on an empty state; uploads only when asked to."""
    return Mounted(options=["--remote", f"file://{remote}", "--interval", "1h", *options])


def run(mount: Mounted, *arguments: str) -> Any:
    return json.loads(mount.sessfs(*arguments, "--json").stdout)


def life(mount: Mounted, count: int, first: int = 0) -> dict[int, bytes]:
    """Changes, each uploaded; snapshot → content of `f`."""
    session = mount.path / "user1"
    session.mkdir(exist_ok=True)
    held = {}
    for number in range(first, first + count):
        content = b"%d " % number + noise(100_000, number)
        write_file(session / "f", content)
        mount.sessfs("sync", str(session))
        held[history(mount)[-1]["sequence"]] = content
    return held


def history(mount: Mounted) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run(mount, "history", str(mount.path / "user1"))["snapshots"]
    return found


def check(mount: Mounted, held: dict[int, bytes]) -> None:
    """The history is *held*, and each snapshot has what it had; each rollback is one more."""
    session = mount.path / "user1"
    assert [one["sequence"] for one in history(mount)] == sorted(held)
    for sequence, content in held.items():
        view = mount.path / mount.control("open_view", {"session": "user1", "sequence": sequence})["view"]
        assert read_file(view / "f") == content
        mount.control("close_view", {"view": view.name})
    assert session.exists()


def test_history_comes_back_from_the_bucket(remote: Path) -> None:
    with mounted(remote) as first:
        held = life(first, 4)
        first.sessfs("snapshot", str(first.path / "user1"), "2", "--mark", "good times")
        before = tree(first.path / "user1")
        last = history(first)
        seen = run(first, "history", "user1", "--remote", f"file://{remote}")["snapshots"]
        assert [(one["sequence"], one["mark"]) for one in seen] == [(one["sequence"], one["mark"]) for one in last]
        first.umount()
        first.fsck()
    assert run(first, "history", "user1", "--remote", f"file://{remote}")["snapshots"] == last
    done = first.sessfs("history", "nobody", "--remote", f"file://{remote}", check=False)
    assert done.returncode != 0
    assert "has no session nobody" in done.stderr
    with mounted(remote) as second:
        check(second, held)
        assert [one["mark"] for one in history(second)] == ["", "good times", "", ""]
        write_file(second.path / "user1" / "f", b"damage")
        assert run(second, "rollback", str(second.path / "user1"), "1")["sequence"] == 1
        assert read_file(second.path / "user1" / "f") == held[1]
        assert tree(second.path / "user1").keys() == before.keys()
        held[5] = b"damage"
        check(second, held)
        second.kill()
        second.detach()
    with mounted(remote, "--take-over", "--stale", "1s") as third:
        check(third, held)
        assert [one["mark"] for one in history(third)] == ["", "good times", "", "", "before rollback"]
        assert read_file(third.path / "user1" / "f") == b"damage", "the rollback itself was not uploaded yet"
        third.umount()
        third.fsck()
    done = third.sessfs("fsck", "--remote", f"file://{remote}", "--read-data", "100", "--json", check=False)
    assert done.returncode == 0, done.stdout


def test_clone_uploads_next_to_nothing(remote: Path) -> None:
    with mounted(remote) as mount:
        life(mount, 1)
        before = mount.status()["remote"]["uploaded_bytes"]
        mount.sessfs("clone", str(mount.path / "user1"), "user2")
        mount.sessfs("sync", str(mount.path))
        assert mount.status()["remote"]["uploaded_bytes"] - before < 20_000
        assert read_file(mount.path / "user2" / "f") == read_file(mount.path / "user1" / "f")


def segments(remote: Path) -> int:
    return sum("segments" in path.parts for path in remote.rglob("*") if path.is_file())


def test_collection_spares_history_and_takes_what_the_policy_lets_go(remote: Path) -> None:
    with mounted(remote, "--keep-hourly", "0", "--keep-daily", "0", "--keep-last", "6") as mount:
        held = life(mount, 6)
        for _ in range(2):
            mount.sessfs("gc", str(mount.path), "--grace", "0s")
        check(mount, held)
        assert segments(remote) == 6
        held |= life(mount, 4, first=6)
        held = dict(sorted(held.items())[-6:])
        for _ in range(3):
            mount.sessfs("gc", str(mount.path), "--grace", "0s")
        check(mount, held)
        assert segments(remote) <= 8
        mount.umount()
    with mounted(remote, "--keep-last", "6") as mount:
        check(mount, held)
