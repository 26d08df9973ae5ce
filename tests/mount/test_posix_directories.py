"""Listing directories, also while they change."""

from __future__ import annotations

import os
import random
import signal
import stat
import threading
from typing import TYPE_CHECKING

import pytest

from tests.support.posix import Child, DirStream, errno_of, raw_open, raw_pwrite, syncfs, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DTYPES = {"f": 8, "d": 4, "s": 10, "p": 1}


def _fill(directory: Path, count: int, *, prefix: str = "n") -> list[str]:
    names = [f"{prefix}{number:05d}{'x' * (number % 90)}" for number in range(count)]
    for name in names:
        write_file(directory / name, b"")
    return names


@pytest.fixture
def alarms() -> Iterator[None]:
    """A signal without effect, about 1,100 times a second; system calls are not restarted."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, 0.0009, 0.0009)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("count", [0, 1, 3, 400, 3000])
def test_listing_is_complete(directory: Path, count: int) -> None:
    names = _fill(directory, count)
    assert sorted(os.listdir(directory)) == names
    for name in names[::2]:
        os.unlink(directory / name)
    assert sorted(os.listdir(directory)) == names[1::2]


def test_listing_has_dot_dotdot_types_and_inodes(directory: Path) -> None:
    write_file(directory / "f", b"")
    os.mkdir(directory / "d")
    os.symlink("f", directory / "s")
    os.mkfifo(directory / "p")
    stream = DirStream(directory)
    entries = {}
    while (entry := stream.read()) is not None:
        entries[entry[0].decode()] = entry
    stream.close()
    assert set(entries) == {".", "..", *DTYPES}
    assert {name: entries[name][2] for name in DTYPES} == DTYPES
    assert all(entries[name][1] == os.lstat(directory / name).st_ino for name in DTYPES)


def test_seekdir_comes_back_to_every_cookie(directory: Path) -> None:
    """libfuse#65, sshfs#211, xfstests generic/257 and 471."""
    _fill(directory, 400)
    stream = DirStream(directory)
    seen: list[tuple[int, bytes]] = []
    while True:
        cookie = stream.tell()
        entry = stream.read()
        if entry is None:
            break
        seen.append((cookie, entry[0]))
    assert len({cookie for cookie, _ in seen}) == len(seen)
    assert len(seen) == 402
    order = list(range(len(seen)))
    random.Random(3).shuffle(order)
    for index in order[:150]:
        stream.seek(seen[index][0])
        entry = stream.read()
        assert entry is not None
        assert entry[0] == seen[index][1]
    stream.close()


def test_rewinddir_sees_new_names(directory: Path) -> None:
    names = _fill(directory, 50)
    stream = DirStream(directory)
    assert len(stream.names()) == 50
    write_file(directory / "late", b"")
    os.unlink(directory / names[0])
    stream.rewind()
    found = stream.names()
    stream.close()
    assert sorted(found) == sorted([b"late", *(name.encode() for name in names[1:])])


def test_listing_while_each_entry_is_renamed_away_and_back_ends(directory: Path) -> None:
    """xfstests generic/736: an endless listing."""
    _fill(directory, 1500)
    count = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            count += 1
            assert count < 4000, "endless"
            os.rename(entry.path, directory / "TEMP")
            os.rename(directory / "TEMP", entry.path)
    assert count >= 1499


def test_listing_while_each_entry_is_removed_finds_them_all(directory: Path) -> None:
    """rm -r: no entry may be skipped because those before it have gone."""
    _fill(directory, 1200)
    stream = DirStream(directory)
    removed = 0
    while (entry := stream.read()) is not None:
        if entry[0] not in (b".", b".."):
            os.unlink(os.path.join(os.fsencode(directory), entry[0]))
            removed += 1
    stream.close()
    assert removed == 1200
    assert os.listdir(directory) == []


def test_names_that_stay_are_listed_once_while_others_come_and_go(directory: Path) -> None:
    staying = sorted(name.encode() for name in _fill(directory, 600, prefix="stay"))
    body = """
for number in range(600):
    name = "come%d" % (number % 97)
    if os.path.exists(name): os.unlink(name)
    else: open(name, "w").close()
open("finished", "w").close()
"""
    listings = 0
    with Child(directory, body):
        while not (directory / "finished").exists() or listings < 5:
            stream = DirStream(directory)
            listed = stream.names()
            stream.close()
            listings += 1
            assert sorted(name for name in listed if name.startswith(b"stay")) == staying
            assert len(set(listed)) == len(listed)


def test_listing_under_signals_is_complete(directory: Path, request: pytest.FixtureRequest) -> None:
    """libfuse#214: an interrupted readdir lost or repeated entries."""
    _fill(directory, 700)
    request.getfixturevalue("alarms")
    counts = {len(os.listdir(directory)) for _ in range(60)}
    assert counts == {700}


def test_open_and_write_under_signals_are_not_interrupted(directory: Path, alarms: None) -> None:
    """macfuse#213, gcsfuse#1016: a local filesystem never answers EINTR or writes short."""
    wrong: dict[str, int] = {}
    for number in range(400):
        try:
            fd = raw_open(directory / f"c{number}", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            written = raw_pwrite(fd, b"z" * 20_000, 0)
            os.close(fd)
            if written != 20_000:
                wrong["short"] = wrong.get("short", 0) + 1
        except OSError as error:
            wrong[str(error)] = wrong.get(str(error), 0) + 1
    assert wrong == {}


def test_fsync_of_directories_and_of_read_only_descriptors(directory: Path) -> None:
    """cloudserver#368: LevelDB does not open where fsync of a directory fails."""
    fd = os.open(directory, os.O_RDONLY)
    os.fsync(fd)
    os.fdatasync(fd)
    write_file(directory / "a", b"x")
    os.fsync(fd)
    syncfs(fd)
    os.close(fd)
    fd = os.open(directory / "a", os.O_RDONLY)
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    os.sync()


def test_threads_create_and_remove_in_one_directory_without_mixing(directory: Path) -> None:
    wrong: list[object] = []

    def work(mine: int) -> None:
        try:
            for number in range(120):
                path = directory / f"t{mine}-{number}"
                write_file(path, b"%d" % mine)
                if path.read_bytes() != b"%d" % mine:
                    wrong.append(path)
                if number % 2:
                    os.unlink(path)
                else:
                    os.rename(path, directory / f"kept-{mine}-{number}")
        except OSError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sorted(os.listdir(directory)) == sorted(f"kept-{m}-{n}" for m in range(6) for n in range(0, 120, 2))


def test_tree_of_many_directories_is_removed(directory: Path) -> None:
    for outer in range(40):
        os.mkdir(directory / f"d{outer}")
        for inner in range(10):
            os.mkdir(directory / f"d{outer}" / f"e{inner}")
            write_file(directory / f"d{outer}" / f"e{inner}" / "f", b"x")
    for outer in range(40):
        for inner in range(10):
            os.unlink(directory / f"d{outer}" / f"e{inner}" / "f")
            os.rmdir(directory / f"d{outer}" / f"e{inner}")
        assert stat.S_ISDIR(os.stat(directory / f"d{outer}").st_mode)
        os.rmdir(directory / f"d{outer}")
    assert os.listdir(directory) == []
    assert errno_of(os.rmdir, directory) == 0
    os.mkdir(directory)
