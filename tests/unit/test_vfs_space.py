"""Room: what is let in and what is kept, also between two looks; what deletions give back to a disk that is full."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessfs.errors import LocalStoreError, PosixError, StoreFull
from sessfs.vfs import compaction, sealing, space
from sessfs.vfs.space import Space, check_disk
from tests.support.volumes import assert_clean, examples, open_box, wait_until

if TYPE_CHECKING:
    from tests.support.volumes import Box

MIB = 1 << 20
NEVER_S = 1e9
NAMES = itertools.count()
REFUSED_BY = 1000


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by himself how much room there is."""
    monkeypatch.setattr(space, "TICK_S", NEVER_S)
    monkeypatch.setattr(compaction, "TICK_S", NEVER_S)


class Disk:
    """A disk of *total* bytes, of which others have taken *used*; the state's own files count as they are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state: Path, total: int) -> None:
        self.total = total
        self.used = 0
        self._state = state
        monkeypatch.setattr(os, "statvfs", self._look)

    def free(self) -> int:
        own = 0
        for path in self._state.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                own += path.stat().st_blocks * 512
        return max(self.total - self.used - own, 0)

    def _look(self, path: object) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=self.free(), f_blocks=self.total, f_frsize=1)


async def fill(box: Box, size: int, *, cached: bool = False, at_most: int = REFUSED_BY) -> int:
    """Write new files of *size* bytes until one is refused; how many were taken."""
    for number in range(at_most):
        name = next(NAMES)
        inode = box.create(b"s/%d" % name)
        try:
            await box.volume.fileio.write(inode, 0, random.Random(name).randbytes(size), cached=cached)
        except StoreFull:
            return number
    assert at_most < REFUSED_BY, "nothing is refused"
    return at_most


@pytest.mark.usefixtures("slow")
async def test_what_is_let_in_between_two_looks_counts(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state", bound_bytes=32 * MIB) as box:
        box.mkdir(b"s")
        box.volume.space.check()
        ahead = box.volume.space.ahead_bytes
        assert ahead == 2 * MIB
        assert await fill(box, MIB) == 30
        assert box.volume.space.is_short
        # What the kernel has taken is let in, as long as there is any room.
        assert await fill(box, MIB // 2, cached=True) == 4
        assert box.volume.space.used_bytes() <= 32 * MIB
        assert box.volume.space.room().free_bytes == 0


@pytest.mark.usefixtures("slow")
async def test_the_reserve_of_the_disk_holds_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, tmp_path, 80 * MIB)
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        box.volume.space.check()
        await fill(box, MIB)
        await fill(box, MIB, cached=True)
        # The databases are there already, and grow a little.
        assert disk.free() >= box.volume.space.reserve_bytes - MIB // 4
        assert box.volume.space.reserve_bytes == 10 * MIB


@pytest.mark.usefixtures("slow")
async def test_bytes_that_have_their_room_are_written_without_any(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state", bound_bytes=16 * MIB) as box:
        box.mkdir(b"s")
        box.volume.space.check()
        file = await box.write(b"s/f", b"x" * MIB)
        await fill(box, MIB)
        await fill(box, MIB, cached=True)
        await box.write(b"s/f", b"y" * 1000, 5000)
        assert (await box.read(b"s/f"))[4999:6001] == b"x" + b"y" * 1000 + b"x"
        for offset in (MIB - 1, MIB, 3 * MIB):
            with pytest.raises(StoreFull):
                await box.volume.fileio.write(file, offset, b"z" * MIB)
        await box.truncate(b"s/f", MIB // 2)
        with pytest.raises(StoreFull):
            await box.truncate(b"s/f", MIB)


@pytest.mark.usefixtures("slow")
async def test_writers_are_refused_until_there_is_a_little_more_than_what_is_kept(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state", bound_bytes=32 * MIB) as box:
        box.mkdir(b"s")
        told: list[bool] = []
        box.volume.space.became_short = lambda: told.append(box.volume.space.is_short)
        box.volume.space.check()
        assert (await fill(box, MIB), told) == (30, [True])
        box.unlink(b"s/" + box.volume.namespace.list_names(box.get(b"s").ino)[0])
        await box.commit()
        box.volume.space.check()
        assert not box.volume.space.is_short
        assert (await fill(box, MIB), told) == (1, [True, True])


async def test_deletions_give_room_back_to_a_disk_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for module in (space, compaction, sealing):
        monkeypatch.setattr(module, "TICK_S", 0.02)
    disk = Disk(monkeypatch, tmp_path, 64 * MIB)
    async with open_box(tmp_path / "state", seal_idle_s=0, commit_interval_s=0.02) as box:
        box.mkdir(b"s")
        box.create(b"s/kept")
        await box.write(b"s/kept", random.Random(7).randbytes(MIB))
        for _ in range(2):
            for _ in range(40):
                await fill(box, MIB)
                await box.commit()
                await wait_until(lambda: not any(i.size for i in box.volume.fileio.hot_inodes.values()), 20)
                box.volume.space.check()
                if box.volume.space.is_short:
                    break
            used = box.volume.space.used_bytes()
            assert used > 30 * MIB
            for name in box.volume.namespace.list_names(box.get(b"s").ino):
                if name != b"kept":
                    box.unlink(b"s/" + name)
            await box.commit()
            await wait_until(lambda: box.volume.space.room().free_bytes > 30 * MIB, 20)
            assert disk.free() > 40 * MIB
        assert await box.read(b"s/kept") == random.Random(7).randbytes(MIB)
        assert any("given back to the disk" in record.message for record in caplog.records)
        monkeypatch.undo()
    assert_clean(tmp_path / "state")


async def test_freed_pages_count_as_room_where_a_copy_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (space, compaction):
        monkeypatch.setattr(module, "TICK_S", NEVER_S)
    disk = Disk(monkeypatch, tmp_path, 256 * MIB)
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        for number in range(40):
            await box.write(b"s/%d" % number, random.Random(number).randbytes(MIB))
        await box.seal()
        await box.commit()
        for number in range(20):
            box.unlink(b"s/%d" % number)
        await box.drop_dead()
        disk.used = 0
        disk.used = disk.free() - 12 * MIB
        box.volume.space.check()
        assert not box.volume.space.wants_compaction()
        reserve = box.volume.space.reserve_bytes
        assert reserve == 32 * MIB
        # 12 MiB free of the disk are less than what is left for commits; half of that is lent.
        assert box.volume.space.is_short
        disk.used -= 18 * MIB
        box.volume.space.check()
        # The pages that a commit frees can be used by the second one after it.
        for _ in range(2):
            await fill(box, 1000, at_most=1)
            await box.seal()
        store = tmp_path / "state" / "chunks" / "data.mdb"
        before = store.stat().st_size
        assert await fill(box, MIB // 4) > 0
        await box.seal()
        assert store.stat().st_size == before
        monkeypatch.undo()


async def test_a_compaction_that_fails_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compaction, "TICK_S", 0.001)
    monkeypatch.setattr(compaction, "RETRY_S", 0.001)
    calls = 0

    async def refuse(target: Path, *, rewrites: bool) -> int:
        nonlocal calls
        calls += 1
        raise LocalStoreError("no room for the copy")

    async with open_box(tmp_path / "state") as box:
        monkeypatch.setattr(box.volume.sealer, "scrub", refuse)
        monkeypatch.setattr(Space, "wants_compaction", lambda self: True)
        await wait_until(lambda: calls >= 3)
        monkeypatch.setattr(Space, "wants_compaction", lambda self: False)
    assert "no room for the copy" in caplog.text


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path) -> None:
    check_disk(tmp_path, 48 * MIB)
    with pytest.raises(StoreFull, match=r"24 MiB in all.*32 MiB at least"):
        check_disk(tmp_path, 24 * MIB)


@settings(max_examples=examples(60))
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4 * MIB)), max_size=60), st.integers(8 * MIB, 1 << 40))
def test_no_more_is_let_in_than_there_is(writes: list[tuple[bool, int]], bound: int) -> None:
    """Whoever is looked at or not: the room kept for what the kernel has taken is never given to others."""
    taken = 0
    files = SimpleNamespace(full_reason=None, hot_bytes=lambda: taken)
    reader = SimpleNamespace(totals=lambda: SimpleNamespace(stored_bytes=0), used_bytes=lambda: 0)
    watched = Space(Path("/"), files, reader, bound)  # type: ignore[arg-type]
    watched.check()
    room = watched.room().free_bytes
    free = room + watched.ahead_bytes
    for cached, size in writes:
        try:
            watched.take(size, cached=cached)
        except (StoreFull, PosixError):
            assert taken + size > (free if cached else room)
            continue
        taken += size
        assert taken <= (free if cached else room)
