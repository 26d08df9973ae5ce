"""A listing is complete: read in parts, by several at once, with the kernel's copy dropped, and while names change."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.listings import Entry, getdents
from tests.support.mounted import Mounted, rss_bytes
from tests.support.posix import Child

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
FINDS = int(os.environ.get("SESSFS_TEST_FINDS", "20"))
"""Listings beside processes that change other names; 150 in `make soak`."""
STAYING = 3000


def fill(directory: Path, count: int, prefix: str = "f") -> set[str]:
    directory.mkdir(exist_ok=True)
    names = {f"{prefix}{number}" for number in range(1, count + 1)}
    fd = os.open(directory, DIRECTORY)
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    return names


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def read_all(fd: int, size: int = 32_768) -> list[Entry]:
    found: list[Entry] = []
    while part := getdents(fd, size):
        found += part
    return found


def names_of(entries: list[Entry]) -> list[str]:
    return sorted(os.fsdecode(entry.name) for entry in entries if entry.name not in (b".", b".."))


def drop_caches() -> None:
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


@pytest.mark.parametrize("size", [200, 4096, 65_536])
def test_listing_goes_on_where_it_was_after_caches_were_dropped(sessdir: Path, size: int) -> None:
    names = sorted(fill(sessdir / "d", STAYING))
    for _ in range(2):
        assert sorted(os.listdir(sessdir / "d")) == names
    with opened(sessdir / "d") as fd:
        found = getdents(fd, 300)
        assert 8 <= len(found) <= 15
        drop_caches()
        assert names_of(found + read_all(fd, size)) == names


def test_any_handle_reads_on_at_any_position_also_of_another_mount(mount: Mounted) -> None:
    directory = mount.path / "s"
    names = fill(directory, 500)
    with opened(directory) as fd:
        whole = read_all(fd)
    assert len({entry.offset for entry in whole}) == len(whole) == len(names) + 2
    assert all(0 < entry.offset < 1 << 63 for entry in whole)
    # A name that others come and go around stays where it is.
    gone = set(random.Random(1).sample(sorted(names), 200))
    for name in gone:
        (directory / name).unlink()
    new = fill(directory, 300, "new")
    places = {entry.name: entry.offset for entry in whole}
    for _ in range(2):
        with opened(directory) as fd:
            now = {entry.name: entry.offset for entry in read_all(fd)}
        assert {name: now[name] for name in places if name in now} == {
            name: place for name, place in places.items() if os.fsdecode(name) not in gone
        }
        for at in range(0, len(whole), 61):
            with opened(directory) as fd:
                os.lseek(fd, whole[at].offset, os.SEEK_SET)
                rest = [os.fsdecode(entry.name) for entry in read_all(fd, 1000)]
            wanted = [os.fsdecode(entry.name) for entry in whole[at + 1 :]]
            assert [name for name in rest if name not in new] == [name for name in wanted if name not in gone]
            assert {name for name in rest if name in new} == {
                name for name in new if now[os.fsencode(name)] > whole[at].offset
            }
        mount.remount()


CHURN = """
import random
draw = random.Random(int(sys.argv[1]))
mine = ["%s-%d-%s" % (sys.argv[1], n, "x" * draw.randrange(60)) for n in range(300)]
say("ready")
while not os.path.exists("../stop"):
    name, other = draw.sample(mine, 2)
    if os.path.exists(name):
        os.unlink(name) if draw.random() < 0.7 else os.rename(name, other)
    else:
        open(name, "w").close()
    if draw.random() < 0.05:
        list(os.scandir("."))
    if draw.random() < 0.05:
        next(os.scandir("."))
"""


def test_files_that_nobody_touches_are_found_once_beside_processes_that_change_others(mount: Mounted) -> None:
    session = mount.path / "s"
    session.mkdir()
    staying = sorted(fill(session / "d", STAYING))
    wrong: Counter[str] = Counter()
    with Child(session / "d", CHURN, "1") as one, Child(session / "d", CHURN, "2") as two:
        assert [one.hear(), two.hear()] == ["ready", "ready"]
        for _ in range(FINDS):
            done = subprocess.run(
                ["find", "d", "-type", "f", "-name", "f*"], cwd=session, stdout=subprocess.PIPE, text=True, check=True
            )
            found = sorted(line.removeprefix("d/") for line in done.stdout.splitlines())
            wrong["too few"] += len(set(found)) < len(staying)
            wrong["too many"] += len(found) > len(set(found)) or set(found) > set(staying)
            wrong["others"] += found != staying
        (session / "stop").touch()
        one.finish()
        two.finish()
    assert not +wrong, f"of {FINDS} listings: {wrong}"


def test_find_delete_leaves_nothing_beside_listings(mount: Mounted) -> None:
    session = mount.path / "s"
    session.mkdir()
    body = 'say("ready")\nwhile not os.path.exists("../stop"): os.listdir(".")'
    (session / "d").mkdir()
    left = []
    with Child(session / "d", body) as lister:
        lister.hear()
        for _ in range(4):
            fill(session / "d", STAYING // 3)
            subprocess.run(["find", "d", "-type", "f", "-delete"], cwd=session, check=True)
            left.append(len(os.listdir(session / "d")))
        (session / "stop").touch()
        lister.finish()
    assert left == [0] * 4


def requests(mounted: Mounted) -> int:
    return int(mounted.status()["requests"].get("readdir", 0))


def test_an_unchanged_directory_is_listed_without_a_request(mount: Mounted) -> None:
    directory = mount.path / "s"
    fill(directory, 1000)
    os.listdir(directory)
    for _ in range(2):
        asked = requests(mount)
        for _ in range(5):
            assert len(os.listdir(directory)) == 1000
        assert requests(mount) == asked
        # Two at once, one of which began before a change, and one that is never read to its end.
        with opened(directory) as one, opened(directory) as two:
            getdents(one, 1000)
            (directory / "f1").rename(directory / "f0")
            (directory / "f0").rename(directory / "f1")
            assert len(read_all(two)) == 1002
            read_all(one)
        os.listdir(directory)
    with opened(directory) as three:
        getdents(three, 1000)
    asked = requests(mount)
    assert len(os.listdir(directory)) == len(os.listdir(directory)) == 1000
    assert requests(mount) <= asked + 20


def test_a_hundred_handles_share_one_list(mount: Mounted) -> None:
    """A list for each handle took 250 MB here."""
    directory = mount.path / "s"
    fill(directory, 10_000)
    before = rss_bytes(mount.pid)
    with contextlib.ExitStack() as stack:
        handles = [stack.enter_context(opened(directory)) for _ in range(100)]
        for fd in handles:
            getdents(fd, 1000)
        (directory / "more").touch()
        for fd in handles:
            os.lseek(fd, 0, os.SEEK_SET)
            getdents(fd, 1000)
        grown = rss_bytes(mount.pid) - before
        assert grown < 25 << 20, f"{grown >> 20} MiB"
        assert len(read_all(handles[0])) > 9_000


def test_sessions_that_only_the_remote_has_are_listed_in_parts_by_many(tmp_path: Path) -> None:
    options = ["--remote", f"file://{tmp_path}/remote"]
    (tmp_path / "remote").mkdir()
    names = {f"user{number:03d}{'x' * (number % 60)}" for number in range(300)}
    with Mounted(options=options) as first:
        for name in names:
            (first.path / name).mkdir()
        (first.path / "file").write_text("in the root")
        first.umount()
    with Mounted(options=options) as second, opened(second.path) as one, opened(second.path) as two:
        begun = getdents(one, 1000)
        os.lseek(two, begun[-1].offset, os.SEEK_SET)
        # One goes and one comes, without the kernel's doing.
        gone = next(name for name in names_of(begun) if name != "file")
        second.sessfs("rm", str(second.path / gone))
        (second.path / "late").mkdir()
        for fd in (one, two):
            found = names_of(begun + read_all(fd, 200))
            assert len(found) == len(set(found))
            assert {*found, "late"} == {*names, "file", "late"}
        assert sorted(os.listdir(second.path)) == sorted({*names, "file", "late"} - {gone})
