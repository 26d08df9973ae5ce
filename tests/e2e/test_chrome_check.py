"""`sessfs check` on profiles that Chromium made: whole ones pass, broken ones are found, and what it advises helps."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sessfs.sessions.checking import check_files
from sessfs.sessions.checking_files import DirectoryFiles
from sessfs.sessions.leveldb_format import read_versions, scan_log
from tests.e2e.chromelife import Life, Page, User, open_page, run_life
from tests.support.mounted import Mounted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sessfs.sessions.checking_files import CheckReport

RECORDS = 12_000
FILL = ("pair", "worker", "caches", f"add={RECORDS}", "local=50", "reload")
INDEXED_DB = Path("session/Default/IndexedDB/https_web.whatsapp.com_0.indexeddb.leveldb")


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """The stand-in for https://web.whatsapp.com."""
    with open_page() as served:
        yield served


@pytest.fixture(scope="module")
def lived(page: Page, tmp_path_factory: pytest.TempPathFactory) -> User:
    """A user after a first life and a restart, on a plain directory; not to be changed."""
    user = User("user1", "seed-of-user1", tmp_path_factory.mktemp("lived") / "user1")
    run_life(page, user, "qr", FILL)
    run_life(page, user, "ready", ["verify", "add=300"])
    return user


@pytest.fixture
def user(lived: User, tmp_path: Path) -> User:
    """A copy of that user."""
    shutil.copytree(lived.data_path, tmp_path / "user1", symlinks=True)
    return User(lived.name, lived.seed, tmp_path / "user1")


def report_of(user: User) -> CheckReport:
    return check_files(DirectoryFiles(user.data_path))


def faults(user: User) -> dict[str, tuple[str, ...]]:
    """What is wrong, by path."""
    return {file.path: file.wrong for file in report_of(user).files if not file.ok}


def test_profiles_that_chromium_closed_are_good(lived: User) -> None:
    report = report_of(lived)
    assert report.good, faults(lived)
    found = {kind: sum(file.kind == kind for file in report.files) for kind in ("SQLite", "LevelDB", "JSON")}
    assert found["SQLite"] >= 10
    assert found["LevelDB"] >= 8
    assert found["JSON"] >= 2
    assert any((lived.data_path / INDEXED_DB).glob("*.ldb")), "this profile has no table to check"
    assert str(INDEXED_DB) in {file.path for file in report.files}


def test_profile_that_was_killed_is_good_or_torn(page: Page, user: User) -> None:
    """A kill leaves nothing but a torn end of a log, and seldom that."""
    with Life(page, user, "ready", ["write"]) as life:
        life.wait_written(150)
        life.kill_chromium()
    for path, wrong in faults(user).items():
        assert all("drops the database" in text for text in wrong), (path, wrong)


@pytest.mark.parametrize("mended", [False, True])
def test_torn_log_costs_the_database_two_starts_later_unless_mended(page: Page, user: User, mended: bool) -> None:
    """What the check says of it, and that the command it gives is the cure."""
    log = max((user.data_path / INDEXED_DB).glob("*.log"))
    with log.open("ab") as file:
        file.write(struct.pack("<IHB", 0x1234, 100, 1))  # a header, and the kill came before the rest
    (bad,) = (file for file in report_of(user).files if not file.ok)
    assert bad.path == str(INDEXED_DB)
    assert "drops the database" in bad.wrong[0]
    if mended:
        command = shlex.split(bad.remedy.rpartition(": ")[2])
        os.truncate(user.data_path / command[3], int(command[2]))
        assert report_of(user).good
    run_life(page, user, "ready", ["add=100"])
    if not mended:
        (wrong,) = faults(user).values()
        assert "does not match its checksum" in wrong[0] or "fragments" in wrong[0]
    last = run_life(page, user, "ready" if mended else "qr", ["verify"] if mended else [])
    if mended:
        assert last.verified.errors == ()
        assert last.verified.messages == RECORDS + 400


def test_broken_on_purpose_is_found(user: User) -> None:
    """Also on files as large and as many as Chromium's own."""
    database = user.data_path / INDEXED_DB
    (manifest,) = database.glob("MANIFEST-*")
    # What a compaction replaced may still be there until the next start.
    live = read_versions(scan_log(manifest.read_bytes()).records).tables
    table = database / f"{max(live, key=lambda number: live[number]):06d}.ldb"
    whole = table.read_bytes()
    for offset in range(100, len(whole) - 48, len(whole) // 20):
        table.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        assert list(faults(user)) == [str(INDEXED_DB)]
    table.write_bytes(whole)
    content = manifest.read_bytes()
    manifest.write_bytes(content[: len(content) // 2])
    cookies = user.data_path / "session/Default/Cookies"
    with cookies.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    assert set(faults(user)) == {str(INDEXED_DB), "session/Default/Cookies"}


def test_after_a_rollback_chromium_starts_with_the_earlier_records(page: Page) -> None:
    """The whole way on a mount: a snapshot checked good, damage found, rolled back without saying to which."""
    with Mounted() as mounted:
        user = User("user1", "seed-of-user1", mounted.path / "user1")
        session = str(user.data_path)
        run_life(page, user, "qr", ("pair", "worker", "caches", "add=2000", "local=50"))
        mounted.sessfs("snapshot", session)
        mounted.sessfs("check", session, "--at", "1")
        run_life(page, user, "ready", ["add=300"])
        mounted.sessfs("check", session)
        (manifest,) = (user.data_path / INDEXED_DB).glob("MANIFEST-*")
        os.truncate(manifest, manifest.stat().st_size // 2)
        with (user.data_path / "session/Default/Cookies").open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(4096))
        done = mounted.sessfs("check", session, "--json", check=False)
        assert done.returncode == 21
        bad = {file["path"] for file in json.loads(done.stdout)["files"] if not file["ok"]}
        assert bad == {str(INDEXED_DB), "session/Default/Cookies"}
        mounted.sessfs("rollback", session)
        mounted.sessfs("check", session)
        life = run_life(page, user, "ready", ["verify"])
        assert life.n_qr == 0
        assert life.verified.errors == ()
        assert (life.verified.user, life.verified.messages, life.verified.local_keys) == ("user1", 2000, 50)
