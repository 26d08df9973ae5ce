"""Group commit: one durable metadata batch after another, each holding every operation acknowledged before its cut.

The order of one commit: flush the ordered hot files, then the batch in one LMDB transaction, then delete what the batch
made superfluous. A crash between any two steps leaves the previous batch, with all data that it speaks of. Files that
somebody waits for, and that are not ordered, are flushed beside the batch, each in a thread: a filesystem makes one
commit of flushes that are under way at once, so all of it takes little longer than the longest.
"""

from __future__ import annotations

import contextlib
import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, NamedTuple

import trio

from sessfs.errors import LocalStoreError, SessfsError
from sessfs.vfs.unwritten import Unwritten

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from sessfs.local.chunkstore import References
    from sessfs.local.db import Batch, Database
    from sessfs.local.hotfiles import HotFiles, HotFlush
    from sessfs.local.inodes import Inode, Inodes
    from sessfs.types import Ino
    from sessfs.vfs.fileio import FileIO
    from sessfs.vfs.retirement import HotFile

log = logging.getLogger(__name__)
RETRY_S = 1.0
FLUSHES = 8
"""So many files are flushed at once."""
MAX_OPEN = 256
"""So many are opened for it at the cut; where there are more, each of the others when its turn comes."""


class _Outcome:
    """What the commit that several tasks wait for came to."""

    def __init__(self) -> None:
        self.done = trio.Event()
        # Until it is known to have succeeded: whatever ends it, nobody may take it for a success.
        self.error: LocalStoreError | None = LocalStoreError("the commit did not come to an end")

    async def wait(self) -> None:
        """Return once it is known; raises LocalStoreError if the commit failed."""
        await self.done.wait()
        if self.error is not None:
            raise LocalStoreError(str(self.error)) from self.error


class _Flushes(NamedTuple):
    """What is to be flushed before a batch, and beside it."""

    first: list[HotFlush]
    beside: list[HotFlush]
    names: int | None
    """What `names_synced` is to be told if the directory of the hot files is among them."""

    def close(self) -> None:
        """Give up those that were not run; fine when none is under way."""
        for flush in (*self.first, *self.beside):
            flush.close()


class _Cut(NamedTuple):
    """All that one commit is about, as of one instant."""

    batch: Batch
    flushes: _Flushes
    ordered: list[Inode]
    beside: list[tuple[Inode, int]]
    """Those that are flushed beside the batch, and the versions of their content."""
    retired: list[HotFile]
    refused: list[Ino]
    """Inodes that could not be put into the batch."""


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
        self._renewed: set[int] = set()
        """Hot files that stand in for one whose flush failed, and that no batch on the disk names, since their own
        flush failed, or is still to come.
        """
        self._undeleted = False
        """True while there are hot files that could not be removed."""
        self.unwritten = Unwritten(fileio.replacing)
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

    def needs_sync(self, inode: Inode, *, data_only: bool) -> bool:
        """True when the data, the times unless *data_only*, or anything acknowledged before may not be durable yet."""
        return self.needs_commit or _needs_flush(inode, data_only=data_only)

    @property
    def needs_commit(self) -> bool:
        """True when flushing a hot file alone does not make it durable: the last batch may not name it."""
        return self._on_its_way is not None or self._must_cut

    @property
    def _must_cut(self) -> bool:
        """True when there is something that only the next commit makes durable: what is in no batch yet, or a file
        whose flush failed.
        """
        return self._inodes.is_hard_dirty or self._meta.is_dirty or bool(self._hot.failed)

    async def sync_file(self, inode: Inode, *, data_only: bool = True) -> None:
        """Return once the file's data, its times unless *data_only*, and everything acknowledged before, are durable.
        Raises LocalStoreError.

        Where nothing but sizes and times changed since the last commit, flushing the hot file is enough: the last batch
        names it, and after a crash the inode takes over its length and mtime. That is one flush of the disk, not three.
        Where all else is in a batch that is being written, flushing beside it is enough: were each sync that comes
        meanwhile to ask for a batch of its own, writers that sync all the time would never be without one.
        """
        if self._must_cut:
            self._awaited[inode.ino] = inode
            await self.commit()
            return
        on_its_way = self._on_its_way
        if _needs_flush(inode, data_only=data_only):
            await self._flush_alone(inode, data_only=data_only)
        if on_its_way is not None:
            await on_its_way.wait()

    async def _flush_alone(self, inode: Inode, *, data_only: bool) -> None:
        flush, done = self.start_flush(inode, data_only=data_only)
        try:
            await trio.to_thread.run_sync(flush)
        except BaseException as exc:
            done(exc)
            raise
        done(None)

    def start_flush(
        self, inode: Inode, *, data_only: bool = True
    ) -> tuple[Callable[[], None], Callable[[BaseException | None], None]]:
        """The flush of an inode that `needs_sync` and no commit, in two steps: what may run in any thread (raises
        StoreFull), and what must be called by the request loop after that, with the error if there was one. Raises
        OSError, having begun nothing.
        """
        self._fileio.ensure_carried(inode)
        flushes = self._open_flushes([], [inode], data_only=data_only)
        version, mtime_ns = inode.version, inode.mtime_ns

        def work() -> None:
            try:
                for flush in flushes.beside:
                    flush.run()
            finally:
                flushes.close()

        def done(error: BaseException | None) -> None:
            if error is not None:
                # Soon: what could not be flushed is in memory for as long as the system likes.
                self._asked.set()
                return
            _note_synced(inode, version)
            if not data_only and (inode.version, inode.mtime_ns) == (version, mtime_ns):
                inode.times_unsynced = False
            if flushes.names is not None:
                self._hot.names_synced(flushes.names)

        return work, done

    async def run(self) -> None:
        """Commit for ever; started once, in the daemon's nursery."""
        while True:
            with trio.move_on_after(self._interval_s):
                await self._asked.wait()
            self._asked = trio.Event()
            outcome, self._next = self._next, _Outcome()
            self.is_busy = True
            try:
                await self._write_anew()
                async with self.writing:
                    await self.unwritten.bring()
                    await self._commit_once(outcome)  # it cuts before it waits
                outcome.error = self.failed = None
            except Exception as exc:
                outcome.error = self.failed = self._note_failure(exc)
            finally:
                self.is_busy = False
                self._on_its_way = None
                outcome.done.set()
            if self.failed is not None:
                await trio.sleep(RETRY_S)

    async def _write_anew(self) -> None:
        """Give new hot files to inodes whose flush failed: the system takes the content for written, so that without
        this the next flush would succeed and do nothing. Where that can't be, the next flush fails.
        """
        if not self._hot.failed:
            return
        for inode in list(self._fileio.hot_inodes.values()):
            if inode.hot_no not in self._hot.failed:
                continue
            try:
                await self._renew(inode)
            except (SessfsError, OSError) as exc:
                if self.failed is None:
                    log.error("inode %d can't be flushed, nor written anew: %s", inode.ino, exc)
        self._hot.failed.intersection_update([inode.hot_no for inode in self._fileio.hot_inodes.values()])

    async def _renew(self, inode: Inode) -> None:
        """The same content in a new hot file, ordered. In place it would not do: ext4 goes on taking blocks that it did
        not get to write for holes, whatever is written to them later. Raises SessfsError, OSError.
        """
        number, new_number = inode.hot_no, self._inodes.allocate_number()
        ticket = self._fileio.freeze(inode)
        try:
            with contextlib.closing(self._hot.rewrite(inode.ino, number, new_number)) as slices:
                for _ in slices:
                    await trio.lowlevel.checkpoint()
        finally:
            self._fileio.retirement.thaw(number, ticket)
        if inode.hot_no != number:
            # It was written to, which gave it a copy of its own, or is gone.
            self._delete([(inode.ino, new_number)])
            return
        self._fileio.replace_hot(inode, new_number)
        if number in self._renewed and not self._fileio.retirement.is_frozen(number):
            # Kept until a batch is durable, they would fill a disk that fails for long.
            self._delete([(inode.ino, number)])
        else:
            self._fileio.retirement.retire(inode.ino, number)
        self._renewed.add(new_number)

    def _note_failure(self, exc: Exception) -> LocalStoreError:
        """What those that wait for the commit are told; the log is told of the first failure in a row."""
        if isinstance(exc, LocalStoreError):
            if self.failed is None:
                log.error("commit failed, will be tried again: %s", exc)
            return exc
        if self.failed is None:
            log.error("commit failed, will be tried again", exc_info=exc)
        return LocalStoreError(f"the commit failed: {exc!r}")

    async def _commit_once(self, outcome: _Outcome) -> None:
        """One commit. Raises whatever goes wrong; what did not become durable by then is in the next."""
        cut = self._cut(outcome)
        durable = flushed = False
        try:
            error = None
            if cut.flushes.first or cut.flushes.beside or cut.batch.n_changes:
                error = await self._write(cut.flushes, cut.batch)
                self.n_commits += 1
            durable = True
            if error is not None:
                raise error
            flushed = True
        finally:
            # Of the others the batch may be on the disk, even if writing it failed.
            self._renewed &= self._hot.failed
            self._meta.settle(cut.batch, durable=durable)
            if durable:
                self._references.settle()
                self._delete(cut.retired)
            else:
                self._fileio.restore_ordered(cut.ordered)
                self._fileio.retirement.restore(cut.retired)
            if flushed and cut.flushes.names is not None:
                self._hot.names_synced(cut.flushes.names)
            for inode, version in cut.beside:
                if flushed:
                    _note_synced(inode, version)
                else:
                    self._awaited[inode.ino] = inode
        if cut.refused:
            raise LocalStoreError(f"inodes that can't be stored are in memory only: {cut.refused}")

    def _delete(self, retired: Sequence[HotFile]) -> None:
        """Remove hot files that no batch names any more. One that can't be is retired again, for the next commit."""
        left = []
        for ino, number in retired:
            try:
                self._hot.delete(ino, number)
            except OSError as exc:
                if not self._undeleted:
                    log.error("hot files can't be removed, will be tried again: %s", exc)
                left.append((ino, number))
        self._undeleted = bool(left)
        self._fileio.retirement.restore(left)

    def _cut(self, outcome: _Outcome) -> _Cut:
        """Take all that changed. Raises whatever goes wrong, having taken nothing."""
        ordered, retired = self._fileio.take_ordered(), self._fileio.retirement.take()
        beside = [inode for inode in self._awaited.values() if inode.unsynced and inode.hot_no]
        is_more = bool(self._must_cut or ordered)
        flushes = _Flushes([], [], None)
        try:
            flushes = self._open_flushes(ordered, beside)
            refused = self._inodes.encode_dirty()
            self._references.cut()
            batch = self._meta.cut()
        except BaseException as exc:
            flushes.close()
            self._fileio.restore_ordered(ordered)
            self._fileio.retirement.restore(retired)
            if isinstance(exc, OSError):
                raise LocalStoreError(f"a hot file could not be opened to flush it: {exc}") from exc
            raise
        self._awaited.clear()
        self._on_its_way = outcome if is_more else None
        return _Cut(batch, flushes, ordered, [(inode, inode.version) for inode in beside], retired, refused)

    def _open_flushes(self, ordered: Sequence[Inode], beside: Sequence[Inode], *, data_only: bool = True) -> _Flushes:
        """What is to be flushed before the batch, and beside it; the directory of the hot files with either, if it is
        to be. Raises OSError, having opened nothing. What is not opened here can be later: a hot file goes only when a
        later batch is durable, or this one, and its number is never used again.
        """
        found = _Flushes([], [], None)
        try:
            for flushes, inodes in ((found.first, ordered), (found.beside, beside)):
                for inode in inodes:
                    is_room = len(found.first) + len(found.beside) < MAX_OPEN
                    flushes.append(self._hot.flush(inode.ino, inode.hot_no, now=is_room, data_only=data_only))
            names = self._hot.flush_names() if found.first or found.beside else None
        except BaseException:
            found.close()
            raise
        if names is None:
            return found
        (found.first or found.beside).append(names[0])
        return found._replace(names=names[1])

    async def _write(self, flushes: _Flushes, batch: Batch) -> Exception | None:
        """Make the batch durable; returns the error of what was flushed beside it. Raises that of the rest."""
        try:
            written, error = await trio.to_thread.run_sync(_flush, self._threads, self._meta, flushes, batch)
        finally:
            # Should there have been no thread.
            flushes.close()
        while not written:
            log.info("metadata map grown to %d bytes", self._meta.grow())
            written = await trio.to_thread.run_sync(self._meta.write_batch, batch)
        return error

    @property
    def is_dirty(self) -> bool:
        """True when something acknowledged is in no batch yet."""
        return self._inodes.is_dirty or self._meta.is_dirty


def _needs_flush(inode: Inode, *, data_only: bool) -> bool:
    return inode.hot_no != 0 and (inode.unsynced or (inode.times_unsynced and not data_only))


def _note_synced(inode: Inode, version: int) -> None:
    """The content that the inode had at *version* was flushed. Not before that was done: until then whoever asks, and
    whatever is to be ordered, must not take the file for flushed.
    """
    if inode.version == version:
        inode.unsynced = False


def _flush(threads: Executor, meta: Database, flushes: _Flushes, batch: Batch) -> tuple[bool, Exception | None]:
    """In a thread: flush what is to be flushed first, then write the batch; meanwhile flush the others, whose error is
    returned. False when the map must grow before the batch is written. None is under way when it returns, or raises.
    """
    beside = [_begin(threads, flush) for flush in flushes.beside]
    more = [_begin(threads, flush) for flush in flushes.first[1:]]
    try:
        for flush in flushes.first[:1]:
            flush.run()
        for flushed in more:
            flushed.result()
        written = meta.write_batch(batch) if batch.n_changes else True
    finally:
        wait([*more, *beside])
    errors = [other.exception() for other in beside]
    return written, next((error for error in errors if isinstance(error, Exception)), None)


def _begin(threads: Executor, flush: HotFlush) -> Future[None]:
    """Run the flush in one of the threads; here, if there is none."""
    outcome: Future[None] = Future()
    left = [flush]

    def work() -> None:
        try:
            taken = left.pop()
        except IndexError:
            return
        try:
            taken.run()
        except BaseException as exc:
            outcome.set_exception(exc)
        else:
            outcome.set_result(None)

    try:
        threads.submit(work)
    except RuntimeError:
        # "Can't start new thread". The work is in the queue all the same, so another one may have come first.
        work()
    return outcome
