"""`sessfs check`: what is whole passes, and whatever is broken on purpose is found, and named."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import shutil
import socket
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sessfs.cli import main
from sessfs.errors import MountBusy, StoreCorrupt
from sessfs.sessions import leveldb_format
from sessfs.sessions.checking import check_files
from sessfs.sessions.checking_files import DirectoryFiles

if TYPE_CHECKING:
    from sessfs.sessions.checking_files import FileCheck

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "leveldb"
DATABASE = Path("Default/Local Storage/leveldb")
SAMPLES = 150


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """A small profile that is whole: a LevelDB, two SQLite files, settings, and a cache that is none."""
    root = tmp_path / "profile"
    (root / DATABASE).mkdir(parents=True)
    for name in ("000005.ldb", "000008.ldb", "000010.log", "CURRENT", "LOCK", "MANIFEST-000009"):
        shutil.copyfile(GOLDEN / name, root / DATABASE / name)
    for name in ("Cookies", "some other database"):
        make_sqlite(root / "Default" / name)
    (root / "Default" / "Preferences").write_text('{"profile": {"name": "Person 1"}}')
    (root / "Local State").write_text("{}")
    (root / "Default" / "Code Cache").mkdir()
    (root / "Default" / "Code Cache" / "Cookies").write_bytes(b"a cache may be anything")
    return root


def make_sqlite(path: Path, rows: int = 2_000) -> None:
    """A database of some hundred pages."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("create table t (id integer primary key, text)")
        database.executemany("insert into t (text) values (?)", ((f"row {n} " * 20,) for n in range(rows)))
        database.execute("create index by_text on t (text)")
        database.commit()


def faults(profile: Path) -> list[FileCheck]:
    """What the check says is wrong; the verdict says the same."""
    report = check_files(DirectoryFiles(profile))
    bad = [file for file in report.files if not file.ok]
    assert report.good is not bool(bad or report.wrong)
    assert all(file.wrong and file.remedy for file in bad)
    return bad


def only_fault(profile: Path) -> FileCheck:
    """The one thing wrong."""
    (bad,) = faults(profile)
    return bad


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def test_check_of_a_whole_profile_is_good_and_changes_nothing(profile: Path) -> None:
    before = {path: path.stat() for path in profile.rglob("*")}
    report = check_files(DirectoryFiles(profile))
    assert report.verdict == "good"
    assert [(file.kind, file.path) for file in report.files] == [
        ("JSON", "Local State"),
        ("SQLite", "Default/Cookies"),
        ("JSON", "Default/Preferences"),
        ("SQLite", "Default/some other database"),
        ("LevelDB", str(DATABASE)),
    ]
    after = {path: path.stat() for path in profile.rglob("*")}
    assert {p: (s.st_mtime_ns, s.st_size) for p, s in after.items()} == {
        p: (s.st_mtime_ns, s.st_size) for p, s in before.items()
    }


def test_check_of_a_directory_with_nothing_of_chrome_is_bad(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert check_files(DirectoryFiles(tmp_path)).wrong == ("nothing of a Chrome profile is here",)


# -- JSON


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[]", b"\xff{}", b"[" * 100_000, b"\0" * 4096])
def test_settings_that_are_no_json_object_are_found(profile: Path, content: bytes) -> None:
    (profile / "Default" / "Preferences").write_bytes(content)
    bad = only_fault(profile)
    assert (bad.kind, bad.path) == ("JSON", "Default/Preferences")


# -- SQLite


@pytest.mark.parametrize("name", ["Cookies", "some other database"])
def test_overwritten_sqlite_page_is_found(profile: Path, name: str) -> None:
    path = profile / "Default" / name
    pages = path.stat().st_size // 4096
    assert pages > 100
    with path.open("r+b") as file:
        file.seek(4096 * (pages // 2))
        file.write(os.urandom(4096))
    bad = only_fault(profile)
    assert (bad.kind, bad.path) == ("SQLite", f"Default/{name}")
    assert bad.wrong[0].startswith("quick_check: ")


def test_overwritten_sqlite_header_and_lost_pages_are_found(profile: Path) -> None:
    path = profile / "Default" / "Cookies"
    os.truncate(path, path.stat().st_size // 2)
    assert "quick_check" in only_fault(profile).wrong[0]
    flip(path, 3)
    assert "beginning is overwritten" in only_fault(profile).wrong[0]


def test_empty_sqlite_file_is_an_empty_database(profile: Path) -> None:
    (profile / "Default" / "Cookies").write_bytes(b"")
    assert faults(profile) == []


@pytest.mark.parametrize("mode", ["wal", "truncate"])
def test_sqlite_left_by_a_kill_is_recovered_in_the_copy_only(profile: Path, tmp_path: Path, mode: str) -> None:
    """A log or a hot journal beside it, as a killed Chrome leaves them: without these the file alone is no database."""
    live = tmp_path / "live"
    make_sqlite(live)
    with contextlib.closing(sqlite3.connect(live, isolation_level=None)) as database:
        database.execute(f"pragma journal_mode={mode}")
        database.execute("pragma cache_size=5")
        database.execute("begin")
        database.execute("update t set text = text || 'changed'")  # spills, so the file itself is half changed
        if mode == "wal":
            database.execute("commit")
        for path in tmp_path.glob("live*"):
            if not path.name.endswith("-shm"):
                shutil.copyfile(path, profile / "Default" / path.name.replace("live", "Cookies"))
    beside = profile / "Default" / ("Cookies-wal" if mode == "wal" else "Cookies-journal")
    before = beside.read_bytes()
    assert len(before) > 100_000
    assert faults(profile) == []
    assert beside.read_bytes() == before
    if mode == "truncate":
        beside.unlink()
        assert only_fault(profile).kind == "SQLite"


# -- LevelDB


def found_in_database(profile: Path) -> str:
    """What is wrong with the LevelDB, and that nothing else is."""
    bad = only_fault(profile)
    assert (bad.kind, bad.path) == ("LevelDB", str(DATABASE))
    return "; ".join(bad.wrong)


def test_manifest_cut_anywhere_is_found(profile: Path) -> None:
    manifest = profile / DATABASE / "MANIFEST-000009"
    whole = manifest.read_bytes()
    for length in range(len(whole)):
        manifest.write_bytes(whole[:length])
        assert "MANIFEST" in found_in_database(profile), length


def test_flipped_byte_in_a_manifest_is_found(profile: Path) -> None:
    manifest = profile / DATABASE / "MANIFEST-000009"
    whole = manifest.read_bytes()
    for offset in range(len(whole)):
        flip(manifest, offset)
        assert found_in_database(profile), offset
        manifest.write_bytes(whole)


def test_flipped_byte_in_a_table_is_found(profile: Path) -> None:
    """In data, index, filter and footer alike; only the footer's padding means nothing."""
    table = profile / DATABASE / "000005.ldb"
    whole = table.read_bytes()
    footer = len(whole) - leveldb_format.FOOTER_BYTES
    for offset in [*random.Random(1).sample(range(footer), SAMPLES), footer, *range(len(whole) - 8, len(whole))]:
        flip(table, offset)
        assert "000005.ldb" in found_in_database(profile), offset
        table.write_bytes(whole)


def test_missing_and_short_tables_are_found(profile: Path) -> None:
    table = profile / DATABASE / "000008.ldb"
    os.truncate(table, table.stat().st_size - 1)
    assert "bytes, by the MANIFEST" in found_in_database(profile)
    table.unlink()
    assert found_in_database(profile) == "table 000008.ldb is missing, which the MANIFEST names"


def test_old_suffix_of_a_table_is_as_good(profile: Path) -> None:
    (profile / DATABASE / "000008.ldb").rename(profile / DATABASE / "000008.sst")
    assert faults(profile) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "CURRENT is empty"),
        (b"MANIFEST-000009", "does not name a MANIFEST"),
        (b"\0" * 16, "does not name a MANIFEST"),
        (b"MANIFEST-000004\n", "MANIFEST-000004 is missing"),
        (None, "CURRENT is missing"),
    ],
)
def test_current_that_leads_nowhere_is_found(profile: Path, content: bytes | None, said: str) -> None:
    current = profile / DATABASE / "CURRENT"
    if content is None:
        current.unlink()
    else:
        current.write_bytes(content)
    assert said in found_in_database(profile)


def test_missing_log_is_found(profile: Path) -> None:
    (profile / DATABASE / "000010.log").unlink()
    assert found_in_database(profile) == "log 000010.log is missing, which the MANIFEST names"


def test_flipped_byte_in_a_log_is_found(profile: Path) -> None:
    log = profile / DATABASE / "000010.log"
    whole = log.read_bytes()
    for offset in random.Random(2).sample(range(len(whole)), SAMPLES):
        flip(log, offset)
        assert "000010.log" in found_in_database(profile), offset
        log.write_bytes(whole)


def test_torn_log_is_told_apart_and_the_remedy_mends_it(profile: Path) -> None:
    """Wherever it is torn: at the end of a record it is whole, else the report's own command makes it so."""
    log = profile / DATABASE / "000010.log"
    whole = log.read_bytes()
    ends = {0, len(whole), *leveldb_format.scan_log(whole).offsets}
    for length in sorted({*random.Random(3).sample(range(len(whole)), SAMPLES), *list(ends)[:10]}):
        log.write_bytes(whole[:length])
        if length in ends:
            assert faults(profile) == []
            continue
        bad = only_fault(profile)
        assert "drops the database" in bad.wrong[0]
        command = shlex.split(bad.remedy.rpartition(": ")[2])
        assert command[:2] == ["truncate", "-s"]
        os.truncate(profile / command[3], int(command[2]))
        assert faults(profile) == []
        assert whole.startswith(log.read_bytes())
        assert max(end for end in ends if end <= length) == log.stat().st_size


def test_zeros_at_the_end_of_a_log_are_a_torn_end(profile: Path) -> None:
    log = profile / DATABASE / "000010.log"
    whole = log.read_bytes()
    log.write_bytes(whole + b"\0" * 4096)
    assert "zeros from" in found_in_database(profile)


def test_torn_end_that_nobody_appends_to_is_a_note(profile: Path) -> None:
    log = profile / DATABASE / "000010.log"
    whole = log.read_bytes()
    log.write_bytes(whole[:-1])
    (profile / DATABASE / "000012.log").write_bytes(b"")
    report = check_files(DirectoryFiles(profile))
    assert report.good
    (note,) = report.files[-1].notes
    assert note.startswith("000010.log: its last record")


def test_log_that_is_no_longer_in_use_does_not_matter(profile: Path) -> None:
    (profile / DATABASE / "000007.log").write_bytes(b"anything")
    assert faults(profile) == []


def test_leveldb_without_files_is_no_database(profile: Path) -> None:
    empty = profile / "Default" / "chrome_cart_db"
    empty.mkdir()
    (empty / "LOCK").write_bytes(b"")
    (empty / "LOG").write_bytes(b"")
    assert faults(profile) == []


def test_snappy_decompresses_every_kind_of_element() -> None:
    """By hand after format_description.txt: literals short and long, copies with one, two and four bytes of offset."""
    literal = bytes(range(61))
    copies = b"\x05\x3d" + b"\x26\x3d\x00" + b"\x2b\x05\x00\x00\x00"
    expected = literal + literal[:5] + literal[5:15] + (literal[10:15] * 3)[:11]
    assert leveldb_format.snappy_decompress(b"\x57" + b"\xf0\x3c" + literal + copies) == expected


@pytest.mark.parametrize("buf", [b"", b"\x05\x00", b"\x04\x01\x01", b"\x02\x00a", b"\xff" * 12])
def test_snappy_refuses_what_is_none(buf: bytes) -> None:
    with pytest.raises(leveldb_format.BadLevelDB):
        leveldb_format.snappy_decompress(buf)


# -- the command


def test_command_says_good_and_bad(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["check", str(profile)]) == 0
    assert capsys.readouterr().out == "good; checked 2 JSON, 1 LevelDB, 2 SQLite\n"
    (profile / DATABASE / "CURRENT").write_bytes(b"")
    assert main.run(["check", str(profile)]) == StoreCorrupt.exit_code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"LevelDB {DATABASE}: CURRENT is empty"
    assert lines[-1] == "bad: 1 of 5; checked 2 JSON, 1 LevelDB, 2 SQLite"


def test_command_refuses_a_profile_that_a_living_chrome_has(profile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = profile / "SingletonLock"
    lock.symlink_to(f"{socket.gethostname()}-{os.getpid()}")
    assert main.run(["check", str(profile)]) == MountBusy.exit_code
    assert f"pid {os.getpid()}" in capsys.readouterr().err
    lock.unlink()
    lock.symlink_to(f"{socket.gethostname()}-{2**22 + 1}")  # beyond the largest pid: a Chrome that ended
    assert main.run(["check", str(profile)]) == 0
