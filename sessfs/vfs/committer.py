"""Group commit: one durable metadata batch after another, each holding every operation acknowledged before its cut.

The order of one commit: flush the ordered hot files, then the batch in one LMDB transaction, then delete what the batch
made superfluous. A crash between any two steps leaves the previous batch, with all data that it speaks of. Files that
somebody waits for, and that are not ordered, are flushed beside the batch, each in a thread: a filesystem makes one
commit of flushes that are under way at once, so all of it takes little longer than the longest.
"""

from __future__ import annotations

import functools
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import trio

from sessfs.errors import LocalStoreError
from sessfs.local.hotfiles import sync

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from sessfs.local.chunkstore import References
    from sessfs.local.db import Batch, Database
    from sessfs.local.hotfiles import HotFiles
    from sessfs.local.inodes import Inode, Inodes
    from sessfs.types import Ino
    from sessfs.vfs.fileio import FileIO

log = logging.getLogger(__name__)
RETRY_S = 1.0
FLUSHES = 8
"""So many files are flushed at once."""


class _Outcome:
    """What the commit that several tasks wait for came to."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: LocalStoreError | None = None

    async def wait(self) -> None:
        """Return once it is known; raises LocalStoreError if the commit failed."""
        await self.done.wait()
        if self.error is not None:
            raise LocalStoreError(str(self.error)) from self.error


class Committer:
    """Commits what changed, at the latest *interval_s* after the change and at once when someone asks."""

    def __init__(
        self,
        meta: Database,
        inodes: Inodes,
        references: References,
        fileio: FileIO,
        hot: HotFiles,
        *,
        interval_s: float,
    ) -> None:
        self._meta = meta
        self._inodes = inodes
        self._references = references
        self._fileio = fileio
        self._hot = hot
        self._interval_s = interval_s
        self._next = _Outcome()
        self._awaited: dict[Ino, Inode] = {}
        self._threads = ThreadPoolExecutor(FLUSHES, "flush")
        self._asked = trio.Event()
        self.failed: LocalStoreError | None = None
        """The error of the last commit, None once one succeeds again."""
        self.n_commits = 0
        self.writing = trio.Lock()
        """Held while a batch is written; whoever else holds it keeps commits waiting."""
        self.is_busy = False
        """True while a batch is on its way: what it holds is not durable yet."""
        self._on_its_way: _Outcome | None = None
        """Of the batch that is being written, if it holds more than sizes and times, which the hot files have, too."""

    async def commit(self) -> None:
        """Return once everything acknowledged before the call is durable. Raises LocalStoreError when it can't be made
        so; it stays in memory and is tried again.
        """
        outcome = self._next
        self._asked.set()
        await outcome.wait()

    def needs_sync(self, inode: Inode) -> bool:
        """True when the file's data, or anything acknowledged before, may not be durable yet."""
        return self.needs_commit or (inode.hot_no != 0 and inode.unsynced)

    @property
    def needs_commit(self) -> bool:
        """True when flushing a hot file alone does not make it durable: the last batch may not name it."""
        return self._on_its_way is not None or self._must_cut

    @property
    def _must_cut(self) -> bool:
        """True when there is something that is in no batch yet and that only a batch makes durable."""
        return self._inodes.is_hard_dirty or self._meta.is_dirty

    async def sync_file(self, inode: Inode) -> None:
        """Return once the file's data, and everything acknowledged before, is durable. Raises LocalStoreError.

        Where nothing but sizes and times changed since the last commit, flushing the hot file is enough: the last batch
        names it, and after a crash the inode takes its length over. That is one flush of the disk, not three. Where all
        else is in a batch that is being written, flushing beside it is enough: were each sync that comes meanwhile to
        ask for a batch of its own, writers that sync all the time would never be without one.
        """
        if self._must_cut:
            self._awaited[inode.ino] = inode
            await self.commit()
            return
        on_its_way = self._on_its_way
        if inode.hot_no and inode.unsynced:
            await self._flush_alone(inode)
        if on_its_way is not None:
            await on_its_way.wait()

    async def _flush_alone(self, inode: Inode) -> None:
        flush, done = self.start_flush(inode)
        try:
            await trio.to_thread.run_sync(flush)
        except BaseException as exc:
            done(exc)
            raise
        done(None)

    def start_flush(self, inode: Inode) -> tuple[Callable[[], None], Callable[[BaseException | None], None]]:
        """The flush of an inode that `needs_sync` and no commit, in two steps: what may run in any thread (raises
        StoreFull), and what must be called by the request loop after that, with the error if there was one. Raises
        OSError, having begun nothing.
        """
        fds, _, names = self._descriptors([inode], [])
        version = inode.version

        def done(error: BaseException | None) -> None:
            if error is not None:
                return
            _note_synced(inode, version)
            if names is not None:
                self._hot.names_synced(names)

        return functools.partial(sync, fds), done

    async def run(self) -> None:
        """Commit for ever; started once, in the daemon's nursery."""
        while True:
            with trio.move_on_after(self._interval_s):
                await self._asked.wait()
            self._asked = trio.Event()
            outcome, self._next = self._next, _Outcome()
            self.is_busy = True
            try:
                async with self.writing:
                    await self._commit_once(outcome)
                self.failed = None
            except LocalStoreError as exc:
                if self.failed is None:
                    log.error("commit failed, will be tried again: %s", exc)
                outcome.error = self.failed = exc
            finally:
                self.is_busy = False
                self._on_its_way = None
                outcome.done.set()
            if self.failed is not None:
                await trio.sleep(RETRY_S)

    async def _commit_once(self, outcome: _Outcome) -> None:
        ordered = self._fileio.take_ordered()
        beside = [inode for inode in self._awaited.values() if inode.unsynced and inode.hot_no]
        try:
            first, others, names = self._descriptors(ordered, beside)
        except OSError as exc:
            self._fileio.restore_ordered(ordered)
            raise LocalStoreError(f"a hot file could not be opened to flush it: {exc}") from exc
        self._awaited.clear()
        versions = [inode.version for inode in beside]
        retired = self._fileio.retirement.take()
        self._on_its_way = outcome if self._must_cut or ordered else None
        self._inodes.encode_dirty()
        self._references.cut()
        batch = self._meta.cut()
        durable = flushed = False
        try:
            if first or others or batch.n_changes:
                error = await self._write(first, others, batch)
                durable = True
                self.n_commits += 1
                if error is not None:
                    raise error
            durable = flushed = True
        finally:
            self._meta.settle(batch, durable=durable)
            if durable:
                self._references.settle()
                for ino, number in retired:
                    self._hot.delete(ino, number)
            else:
                self._fileio.restore_ordered(ordered)
                self._fileio.retirement.restore(retired)
            if flushed and names is not None:
                self._hot.names_synced(names)
            for inode, version in zip(beside, versions, strict=True):
                if flushed:
                    _note_synced(inode, version)
                else:
                    self._awaited[inode.ino] = inode

    def _descriptors(
        self, ordered: Sequence[Inode], beside: Sequence[Inode]
    ) -> tuple[list[int], list[int], int | None]:
        """What is to be flushed before the batch, and beside it; and if the directory of the hot files is among either,
        what to tell them after. Raises OSError, having opened nothing.
        """
        first: list[int] = []
        others: list[int] = []
        try:
            for fds, inodes in ((first, ordered), (others, beside)):
                fds.extend(self._hot.duplicate(inode.ino, inode.hot_no) for inode in inodes)
            names = self._hot.open_names() if first or others else None
        except OSError:
            for fd in (*first, *others):
                os.close(fd)
            raise
        if names is None:
            return first, others, None
        (first or others).append(names[0])
        return first, others, names[1]

    async def _write(self, first: list[int], beside: list[int], batch: Batch) -> Exception | None:
        """Make the batch durable; returns the error of what was flushed beside it. Raises that of the rest."""
        beside_error: Exception | None = None
        while True:
            written, error = await trio.to_thread.run_sync(_flush, self._threads, self._meta, first, beside, batch)
            beside_error = beside_error or error
            if written:
                return beside_error
            log.info("metadata map grown to %d bytes", self._meta.grow())
            first, beside = [], []

    @property
    def is_dirty(self) -> bool:
        """True when something acknowledged is in no batch yet."""
        return self._inodes.is_dirty or self._meta.is_dirty


def _note_synced(inode: Inode, version: int) -> None:
    """The content that the inode had at *version* was flushed. Not before that was done: until then whoever asks, and
    whatever is to be ordered, must not take the file for flushed.
    """
    if inode.version == version:
        inode.unsynced = False


def _flush(
    threads: Executor, meta: Database, first: list[int], beside: list[int], batch: Batch
) -> tuple[bool, Exception | None]:
    """In a thread: flush *first*, then write the batch; meanwhile flush *beside*, whose error is returned. False when
    the map must grow before the batch is written. Closes all descriptors, also when it raises.
    """
    others = [threads.submit(sync, [fd]) for fd in beside]
    try:
        more = [threads.submit(sync, [fd]) for fd in first[1:]]
        sync(first[:1])
        for flushed in more:
            flushed.result()
        written = meta.write_batch(batch) if batch.n_changes else True
    finally:
        errors = [other.exception() for other in others]
    return written, next((error for error in errors if isinstance(error, Exception)), None)
