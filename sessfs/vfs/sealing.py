"""Sealing: hot files that came to rest become chunks, in the seal process, and dead chunks are dropped there.

One request at a time goes to the process (`sealclient`). That order is what makes dropping safe: while no seal is under
way, a chunk without references can't be in a recipe that is about to be stored.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from sessfs.errors import LocalStoreError, StoreCorrupt
from sessfs.format.recipe import Recipe
from sessfs.types import ChunkId, Ino
from sessfs.vfs.frozen import JOB_BYTES, JOB_FILES, FrozenFile, iter_jobs
from sessfs.vfs.ranges import split
from sessfs.vfs.sealcalls import SealCalls
from sessfs.vfs.sealjobs import (
    CompareRequest,
    FetchedFrame,
    FinishRequest,
    IngestRequest,
    Reply,
    ScrubRequest,
    SealedFile,
    SealFile,
    Span,
    StoreRequest,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from sessfs.local.chunkstore import ChunkReader, References
    from sessfs.local.hotfiles import HotFiles
    from sessfs.local.inodes import Inode, Inodes
    from sessfs.local.places import Places
    from sessfs.vfs.fileio import FileIO
    from sessfs.vfs.quiet import Quiet
    from sessfs.vfs.sealclient import SealProcessClient

log = logging.getLogger(__name__)
TICK_S = 1.0
RETRY_S = 5.0
DROP_AT_ONCE = 20_000
PATIENCE = 6
"""How often the time that a file must be idle may go by again before it is sealed although it is not quiet."""


class Sealer:
    """Decides what to seal, hands it to the seal process, and puts the recipes in place."""

    def __init__(
        self,
        client: SealProcessClient,
        inodes: Inodes,
        fileio: FileIO,
        hot: HotFiles,
        reader: ChunkReader,
        references: References,
        *,
        idle_s: float,
        monotonic_s: Callable[[], float],
        quiet: Quiet,
        is_roomy: Callable[[], bool],
        room_bytes: Callable[[], int],
        places: Places,
    ) -> None:
        """What has been idle for *idle_s* is sealed when it is *quiet*, and at once while hot files leave little room:
        while it is not *is_roomy*. What is sealed at once must have *room_bytes* on the disk.
        """
        self._quiet = quiet
        self._is_roomy = is_roomy
        self._room_bytes = room_bytes
        self._places = places
        self._client = client
        self._inodes = inodes
        self._fileio = fileio
        self._hot = hot
        self._reader = reader
        self._references = references
        self._idle_s = idle_s
        self._monotonic_s = monotonic_s
        self._busy = trio.Lock()
        self._put_off_before: set[int] = set()
        """Numbers of hot files that could not be sealed when their turn came."""
        self.failed: str | None = None
        """Why the last seal failed, None once one succeeds again."""
        self._calls = SealCalls(client, reader, references, places.damage, room_bytes)

    @property
    def set_aside(self) -> list[str]:
        """What of `chunks/` was found damaged, and left as it is, a sentence each."""
        return list(self._calls.set_aside)

    @property
    def pending_bytes(self) -> int:
        """What is being sealed: it may take as much of the disk, until it is durable and the hot files are given up."""
        return self._calls.pending_bytes

    async def run(self) -> None:
        """Seal what is idle and drop what is dead, for ever; started once, in the daemon's nursery. Neither waits for
        the other to succeed.
        """
        while True:
            await trio.sleep(TICK_S)
            whys = [why for act in (self._seal_idle, self.drop_dead) if (why := await _why_not(act))]
            if whys and self.failed is None:
                log.error("sealing failed, will be tried again: %s", whys[0])
            self.failed = whys[0] if whys else None
            if whys:
                await trio.sleep(RETRY_S)

    async def _seal_idle(self) -> None:
        while self._may_seal() and (idle := self._idle()):
            await self._seal(idle)

    def _may_seal(self) -> bool:
        """Whether what is idle may be sealed now. Sealing takes a core and a starting Chrome takes all of them, so it
        waits until it is quiet; but not for ever, and not where room gets short.
        """
        if self._quiet.is_quiet():
            return True
        # They are in the order of their last change.
        first = next((inode for inode in self._fileio.hot_inodes.values() if inode.nlink), None)
        if first is not None and self._monotonic_s() - first.changed_s >= self._idle_s * (1 + PATIENCE):
            return True
        return not self._is_roomy()

    def _idle(self) -> list[Inode]:
        before = self._monotonic_s() - self._idle_s
        idle = [i for i in self._fileio.hot_inodes.values() if i.nlink and i.changed_s <= before]
        return _take(idle, self._room_bytes())

    async def seal_all(self) -> None:
        """Seal every hot file that is not being written while it is sealed, and can be read. Raises LocalStoreError."""
        waiting = {i.ino for i in self._fileio.hot_inodes.values() if i.nlink}
        while waiting:
            left = [i for ino, i in self._fileio.hot_inodes.items() if ino in waiting and i.nlink]
            job = _take(left, self._room_bytes())
            if not job:
                return
            await self._seal(job)
            waiting.difference_update(i.ino for i in job)

    async def _seal(self, job: list[Inode]) -> None:
        async with self._busy:
            # While this waited for its turn, files may have been sealed, or have gone.
            await self._seal_files([inode for inode in job if inode.hot_no])

    async def _seal_files(self, job: list[Inode]) -> None:
        files: list[SealFile] = []
        numbers: list[int] = []
        for inode in job:
            if inode.size == 0:
                self._fileio.retire_hot(inode)
                self._inodes.touch(inode, noted=False)
                continue
            try:
                files.append(self.describe(inode))
            except StoreCorrupt as exc:
                self._put_off(inode, str(exc))
            else:
                numbers.append(inode.hot_no)
        if not files:
            return
        for file, number in zip(await self._calls.cut(files), numbers, strict=True):
            self._place(file, number)

    def freeze(self, inodes: Sequence[Inode]) -> list[FrozenFile]:
        """At a cut: keep the hot files of *inodes* as they are at this instant; hand the answer to `seal_frozen`.
        Raises StoreCorrupt: then none is frozen.
        """
        frozen = []
        for inode, file in [(inode, self.describe(inode)) for inode in inodes]:
            # Until the recipe is there nothing else holds them, should the file be written to meanwhile.
            kept = tuple(cid for span in file.spans if span.keep for cid in Recipe(span.keep).iter_chunks())
            self._references.pin(kept)
            frozen.append(FrozenFile(file, inode.hot_no, kept, self._fileio.freeze(inode)))
        return frozen

    def thaw(self, frozen: Sequence[FrozenFile]) -> None:
        """Give up frozen files that are not to be sealed; fine for those that were thawed."""
        for item in frozen:
            if self._fileio.retirement.thaw(item.number, item.ticket):
                self._references.unpin(item.kept)

    async def seal_frozen(self, frozen: Sequence[FrozenFile]) -> dict[Ino, Recipe]:
        """The recipes of frozen files, as they were when they were frozen; they are thawed, and their chunks are pinned
        for the caller to unpin. A file that has not changed since is sealed by the way. Raises LocalStoreError,
        StoreCorrupt if it is because of one of the files; then everything is thawed and nothing pinned.
        """
        recipes: dict[Ino, Recipe] = {}
        try:
            for job in iter_jobs(frozen):
                async with self._busy:
                    for file, item in zip(await self._calls.cut([f.file for f in job]), job, strict=True):
                        if file.recipe is None:
                            raise StoreCorrupt(f"inode {file.ino} could not be sealed for a snapshot: {file.error}")
                        recipe = recipes[Ino(file.ino)] = Recipe(file.recipe)
                        self._references.pin(recipe.iter_chunks())
                        self._place(file, item.number)
                        self.thaw([item])
        except BaseException:
            for recipe in recipes.values():
                self._references.unpin(recipe.iter_chunks())
            raise
        finally:
            self.thaw(frozen)
        return recipes

    def describe(self, inode: Inode) -> SealFile:
        """The inode's content at this instant, for the seal process. Raises StoreCorrupt."""
        try:
            spans = [
                Span(
                    part.start,
                    part.end,
                    self._inodes.load_recipe(inode).slice_packed(part.start, part.end) if part.inside else None,
                )
                for part in split(0, inode.size, inode.cold)
            ]
        except ValueError as exc:
            raise StoreCorrupt(f"the recipe of inode {inode.ino} is damaged: {exc}") from exc
        return SealFile(inode.ino, inode.version, str(self._hot.path(inode.ino, inode.hot_no)), spans)

    def _place(self, file: SealedFile, number: int) -> None:
        """Use the recipe, if the file is still what was sealed: hot file *number*, of that version."""
        inode = self._inodes.find(Ino(file.ino))
        if inode is None or (inode.hot_no, inode.version) != (number, file.version):
            return
        if file.recipe is None:
            self._put_off(inode, file.error)
            return
        recipe = Recipe(file.recipe)
        if recipe.size != inode.size:
            raise LocalStoreError(f"inode {file.ino}: sealed {recipe.size} bytes of {inode.size}")
        self._put_off_before.discard(inode.hot_no)
        self._references.add(recipe.iter_chunks())
        if inode.cold:
            self._references.remove(self._inodes.load_recipe(inode).iter_chunks())
        self._inodes.store_recipe(inode, recipe)
        inode.cold = [(0, inode.size)]
        inode.allocated = recipe.allocated
        self._fileio.retire_hot(inode)
        self._inodes.touch(inode, noted=False)

    def _put_off(self, inode: Inode, why: str) -> None:
        """The file can't be sealed: it stays hot, and its turn comes when it has been idle again. Said once."""
        self._fileio.ensure_hot(inode)
        if inode.hot_no not in self._put_off_before:
            who = (self._inodes.find_session_name(inode.session) or b".").decode(errors="replace")
            log.error("inode %d of session %s can't be sealed, will be tried again: %s", inode.ino, who, why)
        self._put_off_before.add(inode.hot_no)

    async def store_frames(self, frames: Sequence[tuple[bytes, Sequence[ChunkId]]], damaged: Sequence[ChunkId]) -> None:
        """Keep frames that were fetched: (frame record, ids of its chunks that are wanted). Chunks in *damaged* are
        replaced. On return the reader has them. Raises LocalStoreError.
        """
        request = StoreRequest(
            [FetchedFrame(record, [bytes(cid) for cid in ids]) for record, ids in frames],
            [bytes(cid) for cid in damaged],
        )
        # Until they are stored, what is read of them may have to be fetched again, and a Chrome waits.
        with self._client.hurrying():
            async with self._busy:
                await self._store(request, frames)

    async def _store(self, request: StoreRequest, frames: Sequence[tuple[bytes, Sequence[ChunkId]]]) -> None:
        try:
            await self._calls.request(request)
        finally:
            # What wanted them may have gone while they were on their way.
            gone = [cid for _, ids in frames for cid in ids if not self._references.is_held(cid)]
            self._references.note_unused(gone)

    async def ingest(self, request: IngestRequest) -> Reply:
        """Gather chunks of files outside; those of the recipes that come back are pinned for the caller to unpin, and
        stored once `finish_ingest` says so. Raises LocalStoreError.
        """
        async with self._busy:
            reply = await self._calls.request(IngestRequest(request.ranges, self._calls.damaged()))
            for file in reply.files:
                self._references.pin(Recipe(file.recipe or b"").iter_chunks())
            return reply

    async def finish_ingest(self, request: FinishRequest) -> Reply:
        """See FinishRequest. Raises LocalStoreError."""
        async with self._busy:
            return await self._calls.request(request)

    async def compare(self, request: CompareRequest) -> Reply:
        """See CompareRequest. Raises LocalStoreError."""
        async with self._busy:
            return await self._client.call(request)

    async def evict(self, ids: Sequence[ChunkId]) -> None:
        """Remove chunks that recipes name, those that still may be evicted once it is their turn. LocalStoreError."""
        async with self._busy:
            gone = [cid for cid in ids if self._places.may_evict(cid)]
            await self._calls.drop(gone)
            self._places.damage.settle_here(gone)

    async def forget_places(self, ids: Sequence[ChunkId]) -> list[ChunkId]:
        """Forget the places of chunks that are here or that nothing holds, and return the others, which only the remote
        has. No place of a held chunk may be forgotten but here, where nothing is being evicted.
        """
        async with self._busy:
            away = {cid for cid in ids if self._references.is_held(cid) and not self._reader.has(cid)}
            self._places.forget(cid for cid in ids if cid not in away)
            return [cid for cid in ids if cid in away]

    async def drop_dead(self) -> None:
        """Drop chunks that nothing names any more. Raises LocalStoreError."""
        async with self._busy:
            while self._references.has_dead:
                dead = self._references.take_dead()
                try:
                    for first in range(0, len(dead), DROP_AT_ONCE):
                        await self._calls.drop(dead[first : first + DROP_AT_ONCE])
                except BaseException:
                    self._references.note_unused(dead)
                    raise
                self._places.damage.settle_here(dead)
                # A session that was loaded meanwhile names them again, and the remote is where they are.
                self._places.forget(cid for cid in dead if not self._references.is_held(cid))

    async def rewrite_mixed(self) -> None:
        """Have no dead chunk in a frame with others, so that none travels with them. Raises LocalStoreError."""
        async with self._busy:
            await self._calls.request(ScrubRequest())

    async def scrub(self, target: Path, *, rewrites: bool = True) -> int:
        """Leave no byte of chunks that nothing names in `chunks/`, using the directory *target* on the way; returns how
        many damaged frames had to stay. Nothing is sealed or fetched meanwhile; reading goes on. Raises
        LocalStoreError.
        """
        await self.drop_dead()
        async with self._busy:
            damaged = (await self._calls.request(ScrubRequest(str(target), rewrites))).damaged
            # The next request starts the process again, which opens the new environment.
            await self._client.stop()
            self._reader.adopt(target)
        return damaged


async def _why_not(act: Callable[[], Awaitable[None]]) -> str:
    """Why it failed, empty when it did not."""
    try:
        await act()
    except LocalStoreError as exc:
        return str(exc)
    return ""


def _take(candidates: Sequence[Inode], room_bytes: int) -> list[Inode]:
    """As many of the candidates as one request may hold, neighbours side by side, and as the disk has *room_bytes*
    for.
    """
    job: list[Inode] = []
    size = 0
    for inode in sorted(candidates, key=lambda i: i.ino):
        if inode.size > room_bytes - size:
            continue
        if job and (size + inode.size > JOB_BYTES or len(job) >= JOB_FILES):
            break
        job.append(inode)
        size += inode.size
    return job
