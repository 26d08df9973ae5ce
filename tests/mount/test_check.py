"""`sessfs check` of sessions in a mount: as they are, as snapshots, and while they are in use."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.mounted import Mounted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def mounted() -> Iterator[Mounted]:
    with Mounted() as mounted:
        yield mounted
        mounted.umount()
        mounted.fsck()


@pytest.fixture
def session(mounted: Mounted, request: pytest.FixtureRequest) -> Path:
    """A session with a small profile that is whole."""
    path = mounted.path / request.node.name
    (path / "session" / "Default").mkdir(parents=True)
    (path / "session" / "Local State").write_text("{}")
    with contextlib.closing(sqlite3.connect(path / "session" / "Default" / "Cookies")) as database:
        database.execute("create table t (text)")
        database.executemany("insert into t values (?)", (("text " * 100,) for _ in range(500)))
        database.commit()
    return path


def check(mounted: Mounted, session: Path, *options: str) -> tuple[int, dict[str, Any]]:
    done = mounted.sessfs("check", str(session), "--json", *options, check=False)
    return done.returncode, json.loads(done.stdout)


def verdicts(mounted: Mounted, session: Path) -> list[str]:
    answer = json.loads(mounted.sessfs("history", str(session), "--json").stdout)
    return [one["verdict"] for one in answer["snapshots"]]


def test_rollback_takes_the_newest_snapshot_that_was_checked_good(mounted: Mounted, session: Path) -> None:
    cookies = session / "session" / "Default" / "Cookies"
    assert check(mounted, session)[0] == 0
    whole = cookies.read_bytes()
    for content in (whole, whole[:8192] + os.urandom(4096) + whole[12288:], b"no database at all" * 100):
        cookies.write_bytes(content)
        mounted.sessfs("snapshot", str(session))
    assert mounted.sessfs("rollback", str(session), check=False).returncode != 0, "nothing was checked yet"
    for sequence, expected in ((1, 0), (2, 21), (3, 21)):
        code, answer = check(mounted, session, "--at", str(sequence))
        assert (code, answer["snapshot"]) == (expected, sequence)
        bad = [file for file in answer["files"] if not file["ok"]]
        assert [file["path"] for file in bad] == (["session/Default/Cookies"] if expected else [])
    assert verdicts(mounted, session) == ["good", "bad", "bad"]
    assert check(mounted, session)[0] == 21
    mounted.sessfs("rollback", str(session))
    assert cookies.read_bytes() == whole
    assert check(mounted, session)[0] == 0
    assert not [name for name in os.listdir(mounted.path) if name.startswith(".sessfs")]


def test_session_in_use_is_checked_as_a_snapshot(mounted: Mounted, session: Path) -> None:
    with (session / "session" / "Local State").open():
        code, answer = check(mounted, session)
    assert (code, answer["snapshot"], answer["verdict"]) == (0, 1, "good")
    assert verdicts(mounted, session) == ["good"]


def test_part_of_a_snapshot_is_checked_and_not_judged(mounted: Mounted, session: Path) -> None:
    mounted.sessfs("snapshot", str(session))
    code, answer = check(mounted, session / "session", "--at", "1")
    assert (code, [file["path"] for file in answer["files"]]) == (0, ["Local State", "Default/Cookies"])
    assert verdicts(mounted, session) == [""]


def test_wrong_places_are_named(mounted: Mounted, session: Path, tmp_path: Path) -> None:
    assert mounted.sessfs("check", str(mounted.path), check=False).returncode == 2
    assert mounted.sessfs("check", str(tmp_path), "--at", "1", check=False).returncode == 2
    assert mounted.sessfs("check", str(session), "--at", "99", check=False).returncode == 2


def test_session_in_a_remote_is_checked_without_a_mount(tmp_path: Path) -> None:
    remote = f"file://{tmp_path}"
    with Mounted(options=["--remote", remote, "--interval", "600s"]) as mounted:
        session = mounted.path / "user1"
        (session / "session" / "Default").mkdir(parents=True)
        (session / "session" / "Local State").write_text("{}")
        mounted.sessfs("snapshot", str(session))
        (session / "session" / "Local State").write_text("{")
        mounted.sessfs("sync", str(mounted.path))
        done = mounted.sessfs("check", "user1", "--remote", remote, "--json", check=False)
        assert (done.returncode, json.loads(done.stdout)["files"][0]["path"]) == (21, "session/Local State")
        mounted.umount()
        mounted.sessfs("check", "user1", "--remote", remote, "--at", "1")
        mounted.mount()
