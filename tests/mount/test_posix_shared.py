"""What several processes share: memory maps, locks, and SQLite, which needs both."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import sqlite3
import struct
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.support.posix import (
    Child,
    errno_of,
    eventually,
    kernel_maps_direct_io,
    noise,
    read_file,
    run_child,
    write_file,
)

if TYPE_CHECKING:
    from pathlib import Path

# Where SQLite locks: PENDING_BYTE, RESERVED_BYTE, and 510 bytes of SHARED.
PENDING = 0x4000_0000
SHARED = PENDING + 2
_FLOCK = "hhqqi4x"


@pytest.mark.parametrize("name", ["m", "0123456789abcdef_0"] if kernel_maps_direct_io() else ["m"])
def test_map_and_pread_and_pwrite_agree_at_every_step(directory: Path, name: str) -> None:
    """curvine#850, litefs#346: bytes stored through a map were not seen by pread, or the other way round; the second
    name is one of those that are created with direct I/O.
    """
    size = 1 << 20
    fd = os.open(directory / name, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, size)
    mapped = mmap.mmap(fd, size)
    source = random.Random(1)
    model = bytearray(size)
    for turn in range(400):
        offset = source.randrange(0, size - 9000)
        piece = source.randbytes(source.randrange(1, 9000))
        if turn & 1:
            mapped[offset : offset + len(piece)] = piece
        else:
            os.pwrite(fd, piece, offset)
        model[offset : offset + len(piece)] = piece
        assert os.pread(fd, len(piece), offset) == piece
        assert mapped[offset : offset + len(piece)] == piece
    mapped.close()
    os.close(fd)
    assert read_file(directory / name) == bytes(model)


def test_map_outlives_its_descriptor_and_its_name(directory: Path) -> None:
    write_file(directory / "m", bytes(100_000))
    fd = os.open(directory / "m", os.O_RDWR)
    os.link(directory / "m", directory / "other")
    mapped = mmap.mmap(fd, 100_000)
    os.close(fd)
    os.unlink(directory / "m")
    mapped[50_000:50_005] = b"later"
    mapped.flush()
    assert read_file(directory / "other")[50_000:50_005] == b"later"
    mapped[0:5] = b"first"
    mapped.close()
    assert read_file(directory / "other")[:5] == b"first"


def test_map_is_shared_between_processes(directory: Path) -> None:
    write_file(directory / "m", bytes(65_536))
    fd = os.open(directory / "m", os.O_RDWR)
    mapped = mmap.mmap(fd, 65_536)
    body = """
fd = os.open("m", os.O_RDWR); m = mmap.mmap(fd, 65536); say(0)
wait(); say(m[100:105].decode()); m[60000:60005] = b"child"; say(0); wait()
"""
    with Child(directory, body) as child:
        child.hear()
        mapped[100:105] = b"panel"
        child.tell()
        assert child.hear() == "panel"
        child.hear()
        assert mapped[60_000:60_005] == b"child"
        assert os.pread(fd, 5, 60_000) == b"child"
    mapped.close()
    os.close(fd)


def test_private_map_never_reaches_the_file(directory: Path) -> None:
    write_file(directory / "m", b"a" * 8192)
    fd = os.open(directory / "m", os.O_RDONLY)
    mapped = mmap.mmap(fd, 8192, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    mapped[0:3] = b"bbb"
    mapped.close()
    os.close(fd)
    assert read_file(directory / "m") == b"a" * 8192


def test_stores_past_the_end_do_not_grow_the_file_nor_come_back(directory: Path) -> None:
    write_file(directory / "m", b"x" * 5000)
    fd = os.open(directory / "m", os.O_RDWR)
    mapped = mmap.mmap(fd, 5000)
    os.ftruncate(fd, 100)
    os.ftruncate(fd, 5000)
    assert mapped[:] == b"x" * 100 + bytes(4900)
    mapped[4999:5000] = b"z"
    mapped.close()
    assert os.fstat(fd).st_size == 5000
    os.ftruncate(fd, 8192)
    assert os.pread(fd, 9000, 4998) == b"\0z" + bytes(3192)
    os.close(fd)


def test_mapped_program_runs(directory: Path) -> None:
    """exec maps the file; a mount with noexec or a direct_io open would refuse."""
    with open("/bin/true", "rb") as file:
        write_file(directory / "true", file.read(), mode=0o755)
    assert run_child(directory, 'import subprocess; say(subprocess.call(["./true"]))') == 0


def test_record_locks_conflict_tell_their_owner_and_end_with_it(directory: Path) -> None:
    """lizardfs#322, xdg-desktop-portal#1117, curvine#1363: ranges at 0x40000000, F_GETLK's pid, kill -9."""
    write_file(directory / "db", b"x" * 4096)
    fd = os.open(directory / "db", os.O_RDWR)
    body = f"""
fd = os.open("db", os.O_RDWR); fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, {SHARED}); say(0); wait()
"""
    with Child(directory, body) as child:
        child.hear()
        assert errno_of(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, SHARED) in (errno.EAGAIN, errno.EACCES)
        assert errno_of(fcntl.lockf, fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, SHARED + 509) != 0
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, SHARED, 1, 0)
        answer = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
        assert answer == (fcntl.F_WRLCK, os.SEEK_SET, SHARED, 510, child.pid)
        assert errno_of(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, PENDING) == 0
        assert errno_of(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, SHARED + 510) == 0
        child.kill()
        assert eventually(lambda: errno_of(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, SHARED) == 0, 2), (
            "the lock outlived kill -9 of its owner"
        )
    os.close(fd)


def test_record_lock_is_not_dropped_by_another_process_that_closes_the_file(directory: Path) -> None:
    """juicefs PR#4910."""
    write_file(directory / "db", b"x" * 4096)
    fd = os.open(directory / "db", os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, PENDING)
    attempt = f"""
fd = os.open("db", os.O_RDWR)
first = err(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, {PENDING})
os.close(fd); fd = os.open("db", os.O_RDWR)
say([first, err(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, {PENDING})])
"""
    assert all(number in (errno.EAGAIN, errno.EACCES) for number in run_child(directory, attempt))
    fcntl.lockf(fd, fcntl.LOCK_UN, 10, PENDING)
    assert run_child(directory, attempt) == [0, 0]
    os.close(fd)


def test_blocking_record_lock_waits_and_then_gets_it(directory: Path) -> None:
    write_file(directory / "db", b"x")
    fd = os.open(directory / "db", os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    body = """
fd = os.open("db", os.O_RDWR); say("asking"); start = time.monotonic(); fcntl.lockf(fd, fcntl.LOCK_EX)
say(time.monotonic() - start)
"""
    with Child(directory, body) as child:
        assert child.hear() == "asking"
        run_child(directory, "time.sleep(0.2)")
        fcntl.lockf(fd, fcntl.LOCK_UN)
        assert child.hear() > 0.1
    os.close(fd)


def test_flock_conflicts_shares_and_ends_with_the_descriptor(directory: Path) -> None:
    write_file(directory / "f", b"")
    first = os.open(directory / "f", os.O_RDONLY)
    second = os.open(directory / "f", os.O_RDWR)
    fcntl.flock(first, fcntl.LOCK_SH)
    fcntl.flock(second, fcntl.LOCK_SH)
    assert errno_of(fcntl.flock, second, fcntl.LOCK_EX | fcntl.LOCK_NB) == errno.EAGAIN
    attempt = 'say(err(fcntl.flock, os.open("f", os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB))'
    assert run_child(directory, attempt) == errno.EAGAIN
    os.close(first)
    fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert run_child(directory, attempt) == errno.EAGAIN
    fcntl.flock(second, fcntl.LOCK_UN)
    assert run_child(directory, attempt) == 0
    os.close(second)


def test_sqlite_wal_of_two_processes(directory: Path) -> None:
    """devenv#2947, gsd-2#3396, codegraph#990: WAL needs a shared map of -shm; failures came at the first write."""
    with closing(sqlite3.connect(directory / "w.db")) as database:
        assert database.execute("pragma journal_mode=wal").fetchone() == ("wal",)
        database.execute("pragma mmap_size=67108864")
        database.execute("create table t(a, b)")
        database.commit()
        for number in range(300):
            database.execute("insert into t values(?, ?)", (number, noise(number, 3000)))
            if number % 20 == 0:
                database.commit()
        database.commit()
        body = """
db = sqlite3.connect("w.db", timeout=20)
seen = db.execute("select count(*), sum(length(b)) from t").fetchone()
db.execute("delete from t where a % 2"); db.commit()
db.execute("pragma wal_checkpoint(truncate)")
db.execute("insert into t values(999, zeroblob(50000))"); db.commit()
say(list(seen))
db.close()
"""
        assert run_child(directory, body) == [300, 900_000]
        assert database.execute("select count(*) from t").fetchone() == (151,)
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        database.execute("vacuum")
    with closing(sqlite3.connect(directory / "w.db")) as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        assert database.execute("select count(*) from t").fetchone() == (151,)


def test_sqlite_writers_in_two_processes_lose_no_row(directory: Path) -> None:
    for mode in ("wal", "delete"):
        with closing(sqlite3.connect(directory / f"{mode}.db")) as database:
            database.execute(f"pragma journal_mode={mode}")
            database.execute("create table t(who, n)")
            database.commit()
        body = f"""
db = sqlite3.connect("{mode}.db", timeout=60, isolation_level=None)
wait()
for n in range(40):
    db.execute("begin immediate"); db.execute("insert into t values(?, ?)", (sys.argv[1], n)); db.execute("commit")
db.close(); say(0)
"""
        with Child(directory, body, "a") as first, Child(directory, body, "b") as second:
            for child in (first, second):
                child.tell()
            for child in (first, second):
                child.hear()
                child.finish()
        with closing(sqlite3.connect(directory / f"{mode}.db")) as database:
            assert database.execute("select who, count(distinct n) from t group by who order by who").fetchall() == [
                ("a", 40),
                ("b", 40),
            ]
            assert database.execute("pragma integrity_check").fetchone() == ("ok",)
