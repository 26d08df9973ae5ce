"""Bytes of files: partial writes over sealed content, a full disk, missing and damaged chunks."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessfs.errors import PosixError, StoreCorrupt, StoreFull
from sessfs.local import hotfiles
from sessfs.local.chunkstore import CHUNK_TABLES, INDEX
from sessfs.local.db import Database
from sessfs.vfs import fileio
from sessfs.vfs.ranges import split, subtract, total
from tests.support.volumes import assert_clean, examples, open_box

if TYPE_CHECKING:
    from pathlib import Path

BODY = bytes(range(256)) * 2000


async def test_fileio_failed_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC in the middle of a write over sealed content: the old content stays, and holes stay zeros."""
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", BODY)
        await box.write(b"s/f", BODY, 2_000_000)
        await box.seal()
        before = await box.read(b"s/f")
        pwrite = os.pwrite
        left = [10_000]

        def nearly_full(fd: int, content: Any, offset: int) -> int:
            if left[0] <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            length = min(len(content), left[0])
            left[0] -= length
            return pwrite(fd, content[:length], offset)

        for offset, length, room in (
            (100_000, 300_000, 250_000),
            (400_000, 700_000, 300_000),
            (len(before) - 100, 200_000, 150_000),
            (5, 3, 10),
        ):
            left[0] = room
            with monkeypatch.context() as patch:
                patch.setattr(hotfiles.os, "pwrite", nearly_full)
                with pytest.raises(StoreFull):
                    await box.write(b"s/f", b"N" * length, offset)
            after = await box.read(b"s/f")
            assert len(after) == len(before)
            hole = slice(len(BODY), 2_000_000)
            assert after[: hole.start] == before[: hole.start]
            assert after[hole.stop :] == before[hole.stop :]
            assert set(after[hole]) <= {0, ord("N")}
            before = after
        await box.truncate(b"s/f", len(before) + 300_000)
        assert await box.read(b"s/f") == before + bytes(300_000)
        await box.seal()
        assert await box.read(b"s/f") == before + bytes(300_000)
    assert_clean(tmp_path / "state")


async def test_fileio_full_bound_refuses_growth_and_lets_the_rest_go_on(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state", bound_bytes=1 << 20) as box:
        box.mkdir(b"s")
        with pytest.raises(StoreFull):
            await box.write(b"s/f", os.urandom(2 << 20))
        # All but what is kept ahead.
        await box.write(b"s/f", os.urandom((1 << 20) - box.volume.space.ahead_bytes))
        with pytest.raises(StoreFull):
            await box.write(b"s/g", b"x")
        with pytest.raises(StoreFull):
            await box.truncate(b"s/f", 3 << 20)
        assert box.volume.space.room().free_bytes == 0
        await box.truncate(b"s/f", 100)
        box.unlink(b"s/f")
        await box.drop_dead()
        box.volume.space.check()
        await box.write(b"s/g", b"x")
        assert 0 < box.volume.space.room().free_bytes < 1 << 20
        assert box.volume.space.room().total_bytes <= 1 << 20
    assert_clean(tmp_path / "state")


async def test_fileio_too_large_is_efbig(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", b"x")
        with pytest.raises(PosixError) as caught:
            await box.truncate(b"s/f", 1 << 62)
        assert caught.value.errno == errno.EFBIG
        assert await box.read(b"s/f") == b"x"
    assert_clean(tmp_path / "state")


async def test_fileio_beyond_the_largest_size_is_efbig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the filesystem below would take it: sealing a hole takes memory. One that is larger can be changed."""
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/larger", b"x" * 2000)
        monkeypatch.setattr(fileio, "FILE_MAX_BYTES", 1000)
        await box.write(b"s/f", b"x" * 1000)
        for refused in (box.truncate(b"s/f", 1001), box.write(b"s/f", b"yy", 999), box.truncate(b"s/larger", 2001)):
            with pytest.raises(PosixError) as caught:
                await refused
            assert caught.value.errno == errno.EFBIG
        assert await box.read(b"s/f") == b"x" * 1000
        await box.write(b"s/larger", b"y", 1500)
        await box.truncate(b"s/larger", 1999)
        assert await box.read(b"s/larger") == b"x" * 1500 + b"y" + b"x" * 498
    assert_clean(tmp_path / "state")


async def test_fileio_missing_chunk_is_an_error_for_its_range_alone(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/f", os.urandom(1_000_000))
        await box.seal()
        inode = box.get(b"s/f")
        extents = list(box.volume.inodes.load_recipe(inode))
        victim = extents[len(extents) // 2]
        await box.commit()
        chunks = {e.chunk: box.volume.reader.find(e.chunk) for e in extents}
        _lose(box.copy_state(tmp_path / "copy"), victim.chunk)
    async with open_box(tmp_path / "copy") as box:
        inode = box.get(b"s/f")
        for extent in extents:
            reading = box.volume.fileio.read(inode, extent.start, extent.end - extent.start)
            if extent.chunk == victim.chunk:
                with pytest.raises(StoreCorrupt, match="stored nowhere"):
                    await reading
            else:
                assert await reading == chunks[extent.chunk]
        with pytest.raises(StoreCorrupt):
            await box.write(b"s/f", b"x", victim.start + 10)
        await box.write(b"s/f", b"y" * (victim.end - victim.start), victim.start)
        assert (await box.read(b"s/f"))[victim.start : victim.end] == b"y" * (victim.end - victim.start)


def _lose(state: Path, chunk: bytes) -> None:
    """Take *chunk* out of the index of the state."""
    db = Database(state / "chunks", CHUNK_TABLES, 1 << 26)
    db.delete(INDEX, chunk)
    batch = db.cut()
    assert db.write_batch(batch)
    db.settle(batch, durable=True)
    db.close()


RANGES = st.lists(st.integers(0, 60), unique=True, max_size=12).map(
    lambda xs: [(a, b) for a, b in zip(sorted(xs)[::2], sorted(xs)[1::2], strict=False)]
)


@given(ranges=RANGES, a=st.integers(0, 70), b=st.integers(0, 70))
def test_ranges_against_sets(ranges: list[tuple[int, int]], a: int, b: int) -> None:
    start, end = min(a, b), max(a, b)
    inside = {i for low, high in ranges for i in range(low, high)}
    parts = list(split(start, end, ranges))
    assert [i for p in parts for i in range(p.start, p.end)] == list(range(start, end))
    assert {i for p in parts if p.inside for i in range(p.start, p.end)} == inside & set(range(start, end))
    assert all(p.start < p.end for p in parts)
    left = subtract(ranges, start, end)
    assert {i for low, high in left for i in range(low, high)} == inside - set(range(start, end))
    assert total(ranges) == len(inside)


@settings(max_examples=examples(10))
@given(data=st.data())
async def test_fileio_of_extents_of_one_byte_and_more(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Truncate at, before and after every border of an extent."""
    async with open_box(tmp_path_factory.mktemp("box") / "state") as box:
        box.mkdir(b"s")
        model = b""
        for _ in range(data.draw(st.integers(1, 4))):
            size = data.draw(st.sampled_from([1, 2, 8192, 8193, 70_000]))
            at = data.draw(st.sampled_from([0, 1, 65_536, len(model)]))
            await box.write(b"s/f", b"w" * size, at)
            model = model.ljust(at, b"\0")
            model = model[:at] + b"w" * size + model[at + size :]
            await box.seal()
            borders = [e.end for e in box.volume.inodes.load_recipe(box.get(b"s/f"))]
            cut = max(data.draw(st.sampled_from(borders)) + data.draw(st.integers(-1, 1)), 0)
            await box.truncate(b"s/f", cut)
            model = model[:cut].ljust(cut, b"\0")
            assert await box.read(b"s/f") == model
