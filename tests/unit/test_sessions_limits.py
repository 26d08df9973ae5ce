"""Limits over a volume: what is refused, what is not, what is told; that nobody is asked while nothing is limited."""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import PosixError, StoreCorrupt, UsageError
from sessfs.local.policy import MountLimits
from sessfs.sessions.limits import ADMITTED_S, Limits
from tests.support.volumes import open_box

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sessfs.format.recipe import Recipe
    from sessfs.local.inodes import Inode
    from tests.support.volumes import Box

KIB = 1024
CHROME = 1
BACKUP = 2


def limits_over(box: Box, **settings: int) -> Limits:
    return Limits(box.volume, MountLimits(**settings), monotonic_s=box.clock.s, is_chrome=lambda pid: pid == CHROME)


def assert_edquot(caught: pytest.ExceptionInfo[PosixError]) -> None:
    assert caught.value.errno == errno.EDQUOT


@asynccontextmanager
async def two_sessions(path: Path) -> AsyncIterator[Box]:
    async with open_box(path) as box:
        for name in (b"a", b"b"):
            box.mkdir(name)
            await box.write(name + b"/f", b"x" * KIB)
        yield box


async def test_nobody_is_asked_while_nothing_is_limited(tmp_path: Path) -> None:
    async with two_sessions(tmp_path / "s") as box:
        limits = limits_over(box)
        assert (box.volume.namespace.quota, box.volume.fileio.quota) == (None, None)
        limits.change(b"a", {"max_session_bytes": KIB})
        assert box.volume.fileio.quota is limits
        limits.change(b"a", {"max_session_bytes": None})
        assert (box.volume.namespace.quota, box.volume.fileio.quota) == (None, None)


async def test_what_was_set_wins_over_the_settings_and_outlives_the_mount(tmp_path: Path) -> None:
    async with two_sessions(tmp_path / "s") as box:
        limits = limits_over(box, max_session_bytes=10 * KIB, max_sessions=2)
        limits.change(None, {"max_session_bytes": 20 * KIB, "max_sessions": 0})
        limits.change(b"b", {"max_session_bytes": 0})
    async with open_box(tmp_path / "s") as box:
        limits = limits_over(box, max_session_bytes=10 * KIB, max_sessions=2)
        assert limits.caps(box.get(b"a").ino).session_bytes == 20 * KIB
        assert limits.caps(box.get(b"b").ino).session_bytes == 0
        box.mkdir(b"c")
        limits.change(None, {"max_session_bytes": None})
        assert limits.caps(box.get(b"a").ino).session_bytes == 10 * KIB
        # A session's limits go by its name.
        box.rename(b"b", b"d")
        assert limits.caps(box.get(b"d").ino).session_bytes == 10 * KIB


async def test_a_refused_file_does_not_grow_until_it_is_closed(tmp_path: Path) -> None:
    async with two_sessions(tmp_path / "s") as box:
        forgotten: list[bytes] = []
        limits = Limits(
            box.volume,
            MountLimits(max_session_bytes=4 * KIB),
            monotonic_s=box.clock.s,
            is_chrome=lambda pid: False,
            forget_name=lambda parent, name: forgotten.append(name),
        )
        file = box.get(b"a/f")
        box.volume.inodes.note_open(file)
        await box.write(b"a/f", b"y" * 2 * KIB, KIB)
        with pytest.raises(PosixError) as caught:
            await box.write(b"a/f", b"z" * 2 * KIB, 3 * KIB)
        assert_edquot(caught)
        for offset in (3 * KIB, 5 * KIB):  # a smaller piece that would fit, and what comes behind the gap
            with pytest.raises(PosixError) as caught:
                await box.write(b"a/f", b"z", offset)
            assert_edquot(caught)
        limits.change(None, {"max_session_bytes": 0})
        with pytest.raises(PosixError):
            await box.write(b"a/f", b"z", 5 * KIB)
        await box.write(b"a/f", b"in place")
        assert (await box.read(b"a/f"))[:8] == b"in place"
        box.volume.inodes.note_closed(file)
        limits.closed(file)
        assert forgotten == [b"f"]
        assert box.volume.fileio.quota is None
        await box.write(b"a/f", b"z", 3 * KIB)


async def test_the_reserve_is_for_files_that_are_there(tmp_path: Path) -> None:
    async with two_sessions(tmp_path / "s") as box:
        limits = limits_over(box, max_session_bytes=32 * KIB)
        await box.write(b"a/f", b"x" * 30 * KIB)
        for make in (box.create, box.mkdir):
            with pytest.raises(PosixError) as caught:
                make(b"a/new")
            assert_edquot(caught)
        with pytest.raises(PosixError) as caught:
            box.symlink(b"a/lock", b"host-1")
        assert_edquot(caught)
        await box.write(b"a/f", b"y" * 2 * KIB, 30 * KIB)
        await box.truncate(b"a/f", 10)
        box.create(b"a/new")
        await box.write(b"b/f", b"z" * 20 * KIB)
        assert limits.refusals == {"max_bytes": 3}


async def test_places_of_sessions_in_use(tmp_path: Path) -> None:
    async with two_sessions(tmp_path / "s") as box:
        limits = limits_over(box, max_active=1)
        a, b = box.get(b"a/f"), box.get(b"b/f")
        box.symlink(b"a/lock", b"host-1")
        assert limits.count_active() == 1
        with pytest.raises(PosixError) as caught:
            limits.open(b, writes=False, reads=True, pid=CHROME)
        assert_edquot(caught)
        limits.open(b, writes=False, reads=True, pid=BACKUP)
        with pytest.raises(PosixError):
            box.symlink(b"b/lock", b"host-1")
        box.unlink(b"b/f")
        # It opened nothing: its place is free again.
        box.clock.advance(ADMITTED_S + 1)
        box.symlink(b"b/lock", b"host-1")
        box.clock.advance(ADMITTED_S + 1)
        limits.open(a, writes=True, reads=True, pid=CHROME)
        box.volume.inodes.note_open(a)
        box.clock.advance(ADMITTED_S + 1)
        with pytest.raises(PosixError):
            box.create(b"b/new")
        box.create(b"a/new")
        box.volume.inodes.note_closed(a)
        box.create(b"b/new")


async def test_unique_bytes_are_what_was_measured_and_what_was_added(tmp_path: Path) -> None:
    async with two_sessions(tmp_path / "s") as box:
        limits = limits_over(box, max_unique_bytes=100 * KIB)
        shared = bytes(range(256)) * 4 * 60
        await box.write(b"b/shared", shared)
        await box.write(b"a/shared", shared)
        await box.seal()
        await limits.measure()
        await limits.measure()
        # Shared: as good as nothing of it counts.
        assert box.get(b"a/shared").size == 60 * KIB
        await box.write(b"a/mine", b"m" * 90 * KIB)
        with pytest.raises(PosixError) as caught:
            await box.write(b"a/mine", b"m" * 20 * KIB, 90 * KIB)
        assert_edquot(caught)
        assert any("--max-unique-bytes: a (" in warning for warning in limits.warnings())


async def test_warnings_name_the_fullest_few(tmp_path: Path) -> None:
    async with open_box(tmp_path / "s") as box:
        limits = limits_over(box, max_session_bytes=10 * KIB, max_sessions=10)
        for number in range(8):
            box.mkdir(b"user%d" % number)
            await box.write(b"user%d/f" % number, b"x" * (8 * KIB + 205 * number))
        found = limits.warnings()
        assert found[0].startswith("8 of 10 sessions")
        assert "8 sessions use 80 % or more of --max-session-bytes: user7 (94%), user6" in found[1]
        assert "user2" not in found[1]
        assert len(found) == 2


async def test_a_session_that_cant_be_read_does_not_end_the_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_sessions(tmp_path / "s") as box:
        await box.seal()
        limits = limits_over(box, max_unique_bytes=100 * KIB)
        damaged, load = box.get(b"a/f"), box.volume.inodes.load_recipe

        def load_recipe(inode: Inode) -> Recipe:
            if inode.ino == damaged.ino:
                raise StoreCorrupt("the recipe does not decode")
            return load(inode)

        monkeypatch.setattr(box.volume.inodes, "load_recipe", load_recipe)
        for _ in range(2):
            for name in (b"a", b"b"):
                limits.add_name(box.get(name).ino)
            await limits.measure()
        assert caplog.text.count("does not decode") == 1


@pytest.mark.parametrize("changes", [{"max_session_bytes": 1 << 63}, {"max_session_bytes": -1}, {"max_widgets": 1}])
async def test_what_is_no_limit_is_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    async with two_sessions(tmp_path / "s") as box:
        limits = limits_over(box)
        for name in (None, b"a"):
            with pytest.raises(UsageError, match="max_"):
                limits.change(name, changes)
        with pytest.raises(UsageError, match="max_sessions"):
            limits.change(b"a", {"max_sessions": 1})
        limits.change(b"a", {"max_session_bytes": (1 << 63) - 1})
        await box.commit()
