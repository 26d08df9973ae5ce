"""Hot files: sparse, copied with their holes, deleted late, flushed as told."""

from __future__ import annotations

import errno
import os
import random
from typing import TYPE_CHECKING

import pytest

from sessfs.errors import LocalStoreError, StoreFull
from sessfs.local import hotfiles
from sessfs.local.hotfiles import SCRATCH_BYTES, SCRATCH_MIN_BYTES, HotFiles, HotFlush
from sessfs.types import Ino

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INO = Ino(0x1F)


@pytest.fixture
def hot(tmp_path: Path) -> Iterator[HotFiles]:
    files = HotFiles(tmp_path / "hot")
    yield files
    files.close()


def test_hotfiles_new_file_reads_as_zeros_and_takes_no_room(hot: HotFiles) -> None:
    hot.create(INO, 1, 10_000)
    assert hot.pread(INO, 1, 10, 0) == bytes(10)
    assert hot.pread(INO, 1, 10, 20_000) == bytes(10)
    assert hot.allocated_bytes(INO, 1) == 0
    hot.pwrite(INO, 1, b"abc", 5000)
    assert hot.pread(INO, 1, 5, 4999) == b"\0abc\0"
    assert list(hot.iter_files()) == [(INO, 1, 10_000)]


def test_hotfiles_copy_keeps_content_and_holes(hot: HotFiles) -> None:
    size = 64 << 20
    hot.create(INO, 1, size)
    hot.pwrite(INO, 1, b"first", 0)
    hot.pwrite(INO, 1, b"middle" * 10_000, 20 << 20)
    hot.copy(INO, 1, 2)
    assert hot.pread(INO, 2, 5, 0) == b"first"
    assert hot.pread(INO, 2, 60_000, 20 << 20) == b"middle" * 10_000
    assert os.stat(hot.path(INO, 2)).st_size == size
    assert hot.allocated_bytes(INO, 2) < 1 << 20
    hot.pwrite(INO, 2, b"other", 0)
    assert hot.pread(INO, 1, 5, 0) == b"first"


@pytest.mark.parametrize(
    "length", [1, SCRATCH_MIN_BYTES - 1, SCRATCH_MIN_BYTES, 700_000, SCRATCH_BYTES, SCRATCH_BYTES + 1]
)
@pytest.mark.parametrize("offset", [0, 12_345, 3_000_000])
def test_hotfiles_view_is_what_pread_gives(hot: HotFiles, length: int, offset: int) -> None:
    """Also past the end, where what an earlier view left must not show."""
    hot.create(Ino(5), 1, 0)
    hot.pwrite(Ino(5), 1, random.Random(1).randbytes(1_500_000), 0)
    hot.view(Ino(5), 1, SCRATCH_BYTES, 0)
    assert bytes(hot.view(Ino(5), 1, length, offset)) == hot.pread(Ino(5), 1, length, offset)


def test_hotfiles_copy_fails_where_the_disk_does_not_say_what_is_a_hole(
    hot: HotFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot.create(INO, 1, 0)
    hot.pwrite(INO, 1, b"x" * 100_000, 0)

    def fail(fd: int, at: int, whence: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(hotfiles.os, "lseek", fail)
    with pytest.raises(LocalStoreError, match="Input/output error") as caught:
        hot.copy(INO, 1, 2)
    assert not isinstance(caught.value, StoreFull), "the disk is not full"
    assert [number for _, number, _ in hot.iter_files()] == [1]


def test_hotfiles_copy_of_nothing_but_a_hole(hot: HotFiles) -> None:
    hot.create(INO, 1, 5000)
    hot.copy(INO, 1, 2)
    assert hot.pread(INO, 2, 5000, 0) == bytes(5000)
    hot.create(INO, 3, 0)
    hot.copy(INO, 3, 4)
    assert os.stat(hot.path(INO, 4)).st_size == 0


def test_hotfiles_more_than_may_be_open(hot: HotFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotfiles, "MAX_OPEN", 4)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1, 20):
        hot.create(INO, number, 0)
        hot.pwrite(INO, number, b"%d" % number, 0)
    assert len(os.listdir("/proc/self/fd")) <= before + 5
    assert [hot.pread(INO, number, 2, 0).strip(b"\0") for number in (1, 10, 19)] == [b"1", b"10", b"19"]
    assert hot.allocated_bytes(INO, 2) == hot.allocated_bytes(INO, 19) > 0


def test_hotfiles_last_allocated_bytes_follow_each_change(hot: HotFiles) -> None:
    def check() -> int:
        last = hot.last_allocated_bytes(INO, 1)
        assert last == hot.last_allocated_bytes(INO, 1) == hot.allocated_bytes(INO, 1)
        return last

    hot.create(INO, 1, 1 << 20)
    assert check() == 0
    hot.pwrite(INO, 1, bytes(100_000), 0)
    assert check() >= 100_000
    hot.pwrite(INO, 1, bytes(100_000), 500_000)
    assert check() >= 200_000
    hot.truncate(INO, 1, 4096)
    assert check() < 100_000
    hot.truncate(INO, 1, 0)
    assert check() == 0
    hot.pwrite(INO, 1, bytes(100_000), 0)
    assert check() >= 100_000
    hot.copy(INO, 1, 2)
    assert hot.last_allocated_bytes(INO, 2) >= 100_000
    hot.delete(INO, 1)
    with pytest.raises(FileNotFoundError):
        hot.last_allocated_bytes(INO, 1)


def test_hotfiles_delete_is_final_and_repeatable(hot: HotFiles) -> None:
    hot.create(INO, 1, 0)
    hot.delete(INO, 1)
    hot.delete(INO, 1)
    assert list(hot.iter_files()) == []


def test_hotfiles_number_is_never_made_twice(hot: HotFiles) -> None:
    hot.create(INO, 1, 0)
    with pytest.raises(FileExistsError):
        hot.create(INO, 1, 0)


def test_hotfiles_strangers_are_no_hot_files(hot: HotFiles, tmp_path: Path) -> None:
    (tmp_path / "hot" / "lost+found").mkdir()
    (tmp_path / "hot" / "x.y").touch()
    assert list(hot.iter_files()) == []


def test_hotfiles_names_are_to_be_synced_until_they_were(hot: HotFiles) -> None:
    assert hot.flush_names() is None
    hot.create(INO, 1, 0)
    first, again = hot.flush_names(), hot.flush_names()
    assert first is not None
    assert again is not None, "who flushes meanwhile must not take the name for durable"
    hot.create(INO, 2, 0)
    first[0].run()
    again[0].close()
    hot.names_synced(first[1])
    late = hot.flush_names()
    assert late is not None, "made after the flush was begun"
    late[0].run()
    hot.names_synced(late[1])
    hot.names_synced(first[1])
    assert hot.flush_names() is None


def test_hotfiles_flush_is_closed_whatever_becomes_of_it(hot: HotFiles) -> None:
    hot.create(INO, 1, 0)
    before = len(os.listdir("/proc/self/fd"))
    hot.flush(INO, 1).run()
    hot.flush(INO, 1).close()
    reader, writer = os.pipe()
    os.close(writer)
    failing = HotFlush(lambda: reader, hot.failed)
    with pytest.raises(LocalStoreError):
        failing.run()
    failing.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_hotfiles_flush_after_one_that_failed_is_worth_nothing(hot: HotFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells one of those that flush a file of an error, and takes the pages for written from then on."""
    hot.create(INO, 1, 100)
    hot.create(INO, 2, 100)
    failing, later, other = (hot.flush(INO, number) for number in (1, 1, 2))

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(hotfiles.os, "fdatasync", refuse)
        with pytest.raises(LocalStoreError):
            failing.run()
    for flush in (later, hot.flush(INO, 1)):
        with pytest.raises(LocalStoreError, match="anew"):
            flush.run()
    other.run()
    assert hot.failed == {1}


def test_hotfiles_flush_beside_one_that_fails_fails_as_well(hot: HotFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    hot.create(INO, 1, 100)
    monkeypatch.setattr(hotfiles.os, "fdatasync", lambda fd: hot.failed.add(1))
    with pytest.raises(LocalStoreError, match="anew"):
        hot.flush(INO, 1).run()


@pytest.mark.parametrize("how", ["rewrite", "copy"])
def test_hotfiles_written_anew_after_a_failure_keep_content_and_holes(
    hot: HotFiles, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The kernel may not copy: it might share what is on the disk."""

    def refuse(*args: object) -> int:
        raise AssertionError

    monkeypatch.setattr(hotfiles.os, "copy_file_range", refuse)
    size = 64 << 20
    hot.create(INO, 1, size)
    content = random.Random(1).randbytes(3 * SCRATCH_BYTES + 17)
    hot.pwrite(INO, 1, b"first", 0)
    hot.pwrite(INO, 1, content, 20 << 20)
    hot.failed.add(1)
    if how == "copy":
        hot.copy(INO, 1, 2)
    else:
        assert len(list(hot.rewrite(INO, 1, 2))) >= 4
    assert hot.pread(INO, 2, 5, 0) == b"first"
    assert hot.pread(INO, 2, len(content), 20 << 20) == content
    assert os.stat(hot.path(INO, 2)).st_size == size
    assert hot.allocated_bytes(INO, 2) < 5 << 20
    hot.flush(INO, 2).run()


def test_hotfiles_rewrite_that_is_given_up_leaves_nothing(hot: HotFiles) -> None:
    hot.create(INO, 1, 0)
    hot.pwrite(INO, 1, b"content", 0)
    slices = hot.rewrite(INO, 1, 2)
    next(slices)
    assert hot.path(INO, 2).exists()
    slices.close()
    assert not hot.path(INO, 2).exists()


def test_hotfiles_on_a_full_disk_say_so(hot: HotFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sessfs.local.hotfiles.os.open", full)
    with pytest.raises(StoreFull):
        hot.create(INO, 1, 0)
