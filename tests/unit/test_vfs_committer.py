"""Group commit: one batch for all that wait, and nothing lost when one fails."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from sessfs.errors import LocalStoreError, StoreFull
from sessfs.local import hotfiles
from sessfs.vfs import committer as committing
from sessfs.vfs.committer import Committer
from tests.support.volumes import NEVER_S, assert_clean, open_box, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.local.db import Batch
    from sessfs.local.inodes import Inode
    from tests.support.volumes import Box


async def test_committer_shares_one_commit_among_all_that_wait(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.commit()
        before = box.volume.committer.n_commits
        async with trio.open_nursery() as nursery:
            for i in range(20):
                box.create(b"s/%d" % i)
                nursery.start_soon(box.volume.committer.commit)
        assert box.volume.committer.n_commits == before + 1
        assert not box.volume.committer.is_dirty


async def test_committer_commits_by_itself_after_its_interval(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state", commit_interval_s=0.02) as box:
        box.mkdir(b"s")
        committer = box.volume.committer
        await wait_until(lambda: not (committer.is_dirty or committer.is_busy))


@pytest.mark.parametrize("where", ["data", "batch", "open", "thread", "encode", "cut", "bug"])
async def test_committer_failure_keeps_everything_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        inode = await box.write(b"s/f", b"content")
        box.create(b"s/gone")
        volume = box.volume
        n_open = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            if where == "data":
                patch.setattr(hotfiles.os, "fdatasync", _refuse)
            elif where == "batch":
                patch.setattr(volume.meta, "write_batch", _full)
            elif where == "open":
                patch.setattr(volume.hot, "flush", _refuse)
            elif where == "thread":
                patch.setattr(trio.to_thread, "run_sync", _no_thread)
            elif where == "encode":
                patch.setattr(volume.inodes, "encode_dirty", _bug)
            elif where == "cut":
                patch.setattr(volume.meta, "cut", _bug)
            else:
                patch.setattr(volume.meta, "write_batch", _bug)
            with pytest.raises(LocalStoreError):
                await box.commit()
            assert len(os.listdir("/proc/self/fd")) <= n_open
            assert volume.committer.failed is not None
            assert inode.unsynced
        box.unlink(b"s/gone")
        await box.write(b"s/f", b"more", 7)
        if where == "data":
            names = volume.hot.flush_names()
            assert names is not None, "the new name in hot/ is not durable yet"
            names[0].close()
        await box.commit()
        assert volume.committer.failed is None
        assert not inode.unsynced
        left = box.copy_state(tmp_path / "left")
    async with open_box(left) as box:
        assert await box.contents() == {b"s/f": b"contentmore"}
    assert_clean(left)


def _refuse(*args: object, **options: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


def _full(*args: object) -> bool:
    raise StoreFull("the disk is full")


def _bug(*args: object) -> bool:
    raise KeyError("nobody has thought of this")


async def _no_thread(*args: object) -> None:
    raise RuntimeError("can't start new thread")


async def test_committer_that_is_cancelled_tells_nobody_that_it_succeeded(tmp_path: Path) -> None:
    async with open_box(tmp_path / "state") as box:
        volume = box.volume
        committer = Committer(
            volume.meta, volume.inodes, volume.references, volume.fileio, volume.hot, interval_s=NEVER_S
        )
        async with trio.open_nursery() as nursery, committer.writing:
            running = trio.CancelScope()

            async def run() -> None:
                with running:
                    await committer.run()

            nursery.start_soon(run)
            nursery.start_soon(_expect_failure, committer)
            await wait_until(lambda: committer.is_busy)
            running.cancel()
        assert running.cancelled_caught


async def test_inode_that_can_not_be_stored_keeps_no_other_from_being_durable(tmp_path: Path) -> None:
    """No such inode should come to be. Who syncs is told that not everything is durable."""
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        broken = box.create(b"s/broken")
        await box.commit()
        broken.mtime_ns = 1 << 63
        box.volume.inodes.touch(broken)
        await box.write(b"s/f", b"content")
        with pytest.raises(LocalStoreError, match=f"{broken.ino}"):
            await box.commit()
        left = box.copy_state(tmp_path / "left")
        broken.mtime_ns = 5
        await box.commit()
    async with open_box(left) as box:
        assert await box.contents() == {b"s/f": b"content", b"s/broken": b""}
    async with open_box(tmp_path / "state") as box:
        assert box.get(b"s/broken").mtime_ns == 5
    assert_clean(tmp_path / "state")


async def test_committer_flushes_by_itself_where_no_thread_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.volume.committer.commit()  # trio keeps the thread of this for the next
        for name in (b"s/a", b"s/b", b"s/c"):
            await box.write(name, b"content")

        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        flushed = []
        fdatasync = os.fdatasync
        monkeypatch.setattr(threading.Thread, "start", refuse)
        monkeypatch.setattr(hotfiles.os, "fdatasync", lambda fd: flushed.append(fdatasync(fd)))
        await box.commit()
        assert len(flushed) == 4, "three files, and the directory that they lie in"
        monkeypatch.undo()
    assert_clean(tmp_path / "state")


async def test_committer_keeps_hot_files_until_what_replaced_them_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        inode = await box.write(b"s/f", b"x" * 50_000)
        path = box.volume.hot.path(inode.ino, inode.hot_no)
        await box.commit()
        await box.seal()
        assert path.exists()
        with monkeypatch.context() as patch:
            patch.setattr(box.volume.meta, "write_batch", _full)
            with pytest.raises(LocalStoreError):
                await box.commit()
        assert path.exists()
        await box.commit()
        assert not path.exists()
    assert_clean(tmp_path / "state")


async def test_hot_file_that_can_not_be_removed_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        inode = await box.write(b"s/f", b"x" * 1000)
        await box.commit()
        path = box.volume.hot.path(inode.ino, inode.hot_no)
        await box.truncate(b"s/f", 0)
        with monkeypatch.context() as patch:
            patch.setattr(hotfiles.os, "unlink", _refuse)
            await box.commit()
        assert path.exists()
        await box.commit()
        assert not path.exists()
    assert_clean(tmp_path / "state")


async def test_state_with_a_hot_file_that_was_not_removed_is_looked_through_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        async with open_box(tmp_path / "state") as box:
            box.mkdir(b"s")
            inode = await box.write(b"s/f", b"x" * 1000)
            await box.commit()
            path = box.volume.hot.path(inode.ino, inode.hot_no)
            await box.truncate(b"s/f", 0)
            patch.setattr(hotfiles.os, "unlink", _refuse)
    assert path.exists()
    async with open_box(tmp_path / "state"):
        assert not path.exists()
    assert_clean(tmp_path / "state")


@pytest.mark.parametrize("fails", [False, True])
async def test_committer_fsync_without_commit_flushes_the_hot_files_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """A commit that had no data to flush left the name in hot/ to chance; an fsync may not. After one that failed it
    takes a commit, which writes the file anew.
    """
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        inode = await box.write(b"s/f", b"content")
        await box.volume.committer.commit()
        await box.write(b"s/f", b"more", 7)
        before = box.volume.committer.n_commits
        if fails:
            with monkeypatch.context() as patch:
                patch.setattr(hotfiles.os, "fdatasync", _refuse)
                with pytest.raises(LocalStoreError):
                    await box.volume.committer.sync_file(inode)
        assert inode.unsynced
        await box.volume.committer.sync_file(inode)
        assert not inode.unsynced
        assert fails or box.volume.committer.n_commits == before
        assert box.volume.hot.flush_names() is None


async def test_committer_failed_flush_beside_a_batch_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is durable by then, the content is not: who asked must hear of it, and the next to ask must not be told
    that there is nothing to do.
    """
    async with open_box(tmp_path / "state") as box:
        committer = box.volume.committer
        box.mkdir(b"s")
        inode = await box.write(b"s/f", b"content")
        before = committer.n_commits
        with monkeypatch.context() as patch:
            patch.setattr(hotfiles.os, "fdatasync", _refuse)
            with pytest.raises(LocalStoreError):
                await committer.sync_file(inode)
        assert committer.n_commits == before + 1
        assert inode.unsynced
        assert box.volume.hot.flush_names() is not None, "the new name in hot/ is not durable yet"
        await committer.sync_file(inode)
        assert not inode.unsynced
        assert box.volume.hot.flush_names() is None
        left = box.copy_state(tmp_path / "left")
    async with open_box(left) as box:
        assert await box.contents() == {b"s/f": b"content"}
    assert_clean(left)


async def test_committer_opens_few_of_many_files_that_are_to_be_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unmount had to give up acknowledged files where there were more than the process may open."""
    monkeypatch.setattr(committing, "MAX_OPEN", 8)
    monkeypatch.setattr(hotfiles, "MAX_OPEN", 8)
    n, open_now, flushed = 100, [], set()
    fdatasync, before = os.fdatasync, len(os.listdir("/proc/self/fd"))

    def count(fd: int) -> None:
        open_now.append(len(os.listdir("/proc/self/fd")) - before)
        fdatasync(fd)
        flushed.add(os.fstat(fd).st_ino)

    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        numbers = set()
        for i in range(n):
            inode = await box.write(b"s/%d" % i, b"%d" % i)
            numbers.add(os.stat(box.volume.hot.path(inode.ino, inode.hot_no)).st_ino)
        monkeypatch.setattr(hotfiles.os, "fdatasync", count)
        await box.commit()
        assert numbers <= flushed
        assert max(open_now) < 60
    async with open_box(tmp_path / "state") as box:
        assert await box.contents() == {b"s/%d" % i: b"%d" % i for i in range(n)}


class Disk:
    """What reaches the disk, as Linux has it: the flush that fails takes the pages for written, so that the next one
    succeeds and writes nothing of them. What is written there later stays unreadable, as on ext4, where the blocks were
    never noted as written. Holes are not followed: a file is as long as its last write reaches.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails = 0
        self._dirty: dict[str, list[tuple[int, int]]] = {}
        self._files: dict[str, bytearray] = {}
        self._damaged: set[str] = set()
        self._pwrite, self._fdatasync = os.pwrite, os.fdatasync
        monkeypatch.setattr(hotfiles.os, "pwrite", self._write)
        monkeypatch.setattr(hotfiles.os, "fdatasync", self._flush)

    def _name(self, fd: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))

    def _write(self, fd: int, content: bytes, offset: int) -> int:
        written = self._pwrite(fd, content, offset)
        self._dirty.setdefault(self._name(fd), []).append((offset, written))
        return written

    def _flush(self, fd: int) -> None:
        name = self._name(fd)
        dirty = self._dirty.pop(name, [])
        if dirty and self.fails:
            self.fails -= 1
            self._damaged.add(name)
            raise OSError(errno.EIO, "Input/output error")
        if name not in self._damaged:
            file = self._files.setdefault(name, bytearray())
            for offset, length in dirty:
                file[offset : offset + length] = os.pread(fd, length, offset)
        self._fdatasync(fd)

    def content(self, box: Box, inode: Inode) -> bytes:
        return bytes(self._files.get(box.volume.hot.path(inode.ino, inode.hot_no).name, b""))


@pytest.mark.parametrize("how", ["ordered", "beside", "alone"])
async def test_content_is_written_anew_after_a_flush_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Four flushes in a row fail. The fifth may not succeed by doing nothing."""
    disk = Disk(monkeypatch)
    async with open_box(tmp_path / "state") as box:
        committer = box.volume.committer
        box.mkdir(b"s")
        inode = await box.write(b"s/f", b"first")
        if how == "alone":
            await committer.commit()

        async def sync() -> None:
            if how == "ordered":
                await box.commit()
            else:
                await committer.sync_file(inode)

        assert committer.needs_commit == (how != "alone")
        disk.fails = 4
        for _ in range(4):
            with pytest.raises(LocalStoreError):
                await sync()
            assert inode.unsynced
            assert len(list(box.volume.hot.iter_files())) <= 2
        assert disk.content(box, inode) == b""
        await sync()
        assert disk.content(box, inode) == b"first"
        assert not inode.unsynced
        assert not committer.needs_commit
        assert len(list(box.volume.hot.iter_files())) == 1
    assert_clean(tmp_path / "state")


@pytest.mark.parametrize("what", ["write", "truncate", "unlink"])
async def test_change_while_content_is_written_anew_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    disk = Disk(monkeypatch)
    content = bytes(range(256)) * 4 * (hotfiles.SCRATCH_BYTES // 256)
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        inode = await box.write(b"s/f", content)
        await box.volume.committer.commit()
        disk.fails = 1
        with pytest.raises(LocalStoreError):
            await box.volume.committer.sync_file(inode)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.volume.committer.commit)
            await wait_until(lambda: box.volume.fileio.retirement.is_frozen(inode.hot_no), tick_s=0)
            if what == "write":
                await box.write(b"s/f", b"changed")
                expected = b"changed" + content[7:]
            elif what == "truncate":
                await box.truncate(b"s/f", 100)
                expected = content[:100]
            else:
                box.unlink(b"s/f")
        await box.commit()
        if what != "unlink":
            assert await box.read(b"s/f") == expected
            assert disk.content(box, inode)[: len(expected)] == expected
        assert len(list(box.volume.hot.iter_files())) == (what != "unlink")
    assert_clean(tmp_path / "state")


async def test_flush_fails_for_as_long_as_the_content_can_not_be_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    async with open_box(tmp_path / "state") as box:
        committer = box.volume.committer
        box.mkdir(b"s")
        inode = await box.write(b"s/f", b"first")
        other = await box.write(b"s/other", b"other")
        await committer.commit()
        disk.fails = 1
        with pytest.raises(LocalStoreError):
            await committer.sync_file(inode)
        with monkeypatch.context() as patch:
            patch.setattr(box.volume.hot, "rewrite", _refuse)
            for _ in range(2):
                with pytest.raises(LocalStoreError):
                    await committer.sync_file(inode)
        await committer.sync_file(inode)
        await committer.sync_file(other)
        assert disk.content(box, inode) == b"first"
        assert disk.content(box, other) == b"other"
    assert_clean(tmp_path / "state")


@pytest.mark.parametrize("replaces", [True, False])
async def test_committer_flushes_before_the_batch_only_what_replaces_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    """In either case all is flushed when the sync returns."""
    async with open_box(tmp_path / "state") as box:
        box.mkdir(b"s")
        await box.write(b"s/old", b"old")
        await box.commit()
        inode = await box.write(b"s/new", b"new")
        if replaces:
            box.rename(b"s/new", b"s/old")
        began, flushed, may_flush = threading.Event(), threading.Event(), threading.Event()
        write, flush = box.volume.meta.write_batch, os.fdatasync

        def write_batch(batch: Batch) -> bool:
            if replaces:
                assert flushed.is_set(), "the name would stand for content that is not there"
            else:
                assert began.wait(10), "the flush does not begin until the batch is written"
            may_flush.set()
            return write(batch)

        def fdatasync(fd: int) -> None:
            began.set()
            assert replaces or may_flush.wait(10)
            flush(fd)
            flushed.set()

        monkeypatch.setattr(box.volume.meta, "write_batch", write_batch)
        monkeypatch.setattr(hotfiles.os, "fdatasync", fdatasync)
        await box.volume.committer.sync_file(inode)
        assert flushed.is_set()
        monkeypatch.undo()
    assert_clean(tmp_path / "state")


@pytest.mark.parametrize("then", ["sync", "rename"])
async def test_file_counts_as_flushed_only_when_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """A second sync, or a rename over another file, while a first sync is still flushing: neither may take its word."""
    async with open_box(tmp_path / "state") as box:
        committer = box.volume.committer
        box.mkdir(b"s")
        await box.write(b"s/old", b"old")
        inode = await box.write(b"s/f", b"content")
        await box.commit()
        await box.write(b"s/f", b"more", 7)
        assert not committer.needs_commit
        work, done = committer.start_flush(inode)  # by a thread that takes its time
        flushed = []
        fdatasync = os.fdatasync

        def count(fd: int) -> None:
            flushed.append(os.fstat(fd).st_ino)
            fdatasync(fd)

        number = os.stat(box.volume.hot.path(inode.ino, inode.hot_no)).st_ino
        monkeypatch.setattr(hotfiles.os, "fdatasync", count)
        box.create(b"s/another")  # so that it takes a commit
        if then == "sync":
            await committer.sync_file(inode)
        else:
            box.rename(b"s/f", b"s/old")
            await committer.commit()
        assert number in flushed
        work()
        done(None)
    assert_clean(tmp_path / "state")


@pytest.mark.parametrize("fails", [False, True])
async def test_sync_beside_a_batch_flushes_and_waits_for_that_batch_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """All that was acknowledged is in the batch that is being written, so there is no need for another one."""
    async with open_box(tmp_path / "state") as box:
        committer = box.volume.committer
        box.mkdir(b"s")
        inode = await box.write(b"s/f", b"content")
        await box.commit()
        n_commits = committer.n_commits

        async def sync() -> None:
            if fails:
                with pytest.raises(LocalStoreError):
                    await committer.sync_file(inode)
            else:
                await committer.sync_file(inode)
            ended.append(may_write.is_set())

        ended: list[bool] = []
        is_writing, may_write = hold_up_batches(box, monkeypatch, fails=fails)
        async with trio.open_nursery() as nursery:
            box.create(b"s/another")
            if fails:
                nursery.start_soon(_expect_failure, committer)
            else:
                nursery.start_soon(committer.commit)
            await trio.to_thread.run_sync(is_writing.wait)
            await box.write(b"s/f", b"more", 7)
            assert committer.needs_commit
            nursery.start_soon(sync)
            await wait_until(lambda: not inode.unsynced)
            assert not ended
            may_write.set()
        assert ended == [True]
        assert committer.n_commits == n_commits + (not fails)
        monkeypatch.undo()
        await box.commit()
    assert_clean(tmp_path / "state")


def hold_up_batches(
    box: Box, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> tuple[threading.Event, threading.Event]:
    """Batches wait while they are being written: an event that one does, and one that lets them go on, or fail."""
    write, is_writing, may_write = box.volume.meta.write_batch, threading.Event(), threading.Event()

    def write_batch(batch: Batch) -> bool:
        is_writing.set()
        assert may_write.wait(10)
        return _full() if fails else write(batch)

    monkeypatch.setattr(box.volume.meta, "write_batch", write_batch)
    return is_writing, may_write


async def _expect_failure(committer: Committer) -> None:
    with pytest.raises(LocalStoreError):
        await committer.commit()


async def test_batch_of_sizes_and_times_keeps_no_sync_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else writers that sync all the time make a batch for each sync: one that comes while another is written."""
    async with open_box(tmp_path / "state") as box:
        committer = box.volume.committer
        box.mkdir(b"s")
        inode = await box.write(b"s/f", b"content")
        await box.commit()
        await box.write(b"s/f", b"more", 7)
        is_writing, may_write = hold_up_batches(box, monkeypatch, fails=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.commit)
            await trio.to_thread.run_sync(is_writing.wait)
            assert committer.is_busy
            assert not committer.needs_commit
            await committer.sync_file(inode)
            assert not inode.unsynced
            box.create(b"s/another")
            assert committer.needs_commit
            may_write.set()
    assert_clean(tmp_path / "state")
