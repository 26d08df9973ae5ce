"""The contents of sessions on their way into the chunk store, and back for comparison, by way of the seal process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import trio

from sessfs.errors import LocalStoreError, StoreFull
from sessfs.format.recipe import Recipe
from sessfs.sessions.importing_report import Outcome, Refused
from sessfs.vfs.sealjobs import CompareRequest, FinishRequest, IngestRequest, SourceRange, iter_groups

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from sessfs.format.manifest import Manifest
    from sessfs.sessions.importing_report import SessionReport
    from sessfs.sessions.importing_scan import Scan
    from sessfs.types import ChunkId
    from sessfs.vfs.sealjobs import Reply
    from sessfs.vfs.volume import Volume

RANGE_BYTES = 32 << 20
REQUEST_RANGES = 256
"""One request to the seal process takes about a tenth of a second: then others have their turn."""
DISCARD_S = 5.0


@dataclass
class Job:
    """A session on its way: what was found, what is said of it, the packed recipes of its files by number, and the
    chunks that are held for it.
    """

    found: Scan
    report: SessionReport
    recipes: dict[int, bytes] = field(default_factory=dict)
    pinned: list[ChunkId] = field(default_factory=list)
    added: set[bytes] = field(default_factory=set)

    def refuse(self, why: str) -> None:
        """It is not imported, and why."""
        self.report.outcome, self.report.reason = Outcome.REFUSED, why

    @property
    def is_on_its_way(self) -> bool:
        """True while it may still be imported."""
        return self.report.outcome is Outcome.IMPORTED

    def manifest(self, now_ns: int) -> Manifest:
        """What is to be installed."""
        return self.found.manifest(self.recipes, now_ns)

    def count_new(self) -> int:
        """Bytes of content that were not stored before."""
        lengths = {
            extent.chunk: extent.end - extent.start
            for recipe in self.recipes.values()
            for extent in Recipe(recipe)
            if bytes(extent.chunk) in self.added
        }
        return sum(lengths.values())


class _Part(NamedTuple):
    """A range of the file with that number."""

    number: int
    source: SourceRange


class Storing:
    """Stores and compares. *advance* is told of each batch of bytes that was read, with the stage and the job."""

    def __init__(self, volume: Volume, advance: Callable[[str, Job, int], Awaitable[None]]) -> None:
        self._volume = volume
        self._advance = advance
        self._process = 0
        self._is_first = True

    async def gather(self, job: Job) -> None:
        """Cut the files of the session; their chunks are pinned for the job, and stored by `finish`. Raises Refused
        when a file changed or can't be read, StoreFull, LocalStoreError.
        """
        for parts in _batches(_parts(job, {})):
            if self._volume.fileio.full_reason is not None:
                raise StoreFull(f"the import ends at session {job.report.name}: {self._volume.fileio.full_reason}")
            reply = await self._volume.sealer.ingest(IngestRequest([part.source for part in parts]))
            for file in reply.files:
                job.pinned.extend(Recipe(file.recipe or b"").iter_chunks())
            job.added.update(reply.added)
            self._check_process(reply)
            for file, part in zip(reply.files, parts, strict=True):
                if file.recipe is None:
                    raise Refused(f"{_show(part.source.path)}: {file.error}")
                job.recipes[part.number] = job.recipes.get(part.number, b"") + file.recipe
            await self._advance("storing", job, _size(parts))

    async def finish(self) -> None:
        """Make durable what was gathered. Raises LocalStoreError."""
        if not self._process:
            return
        self._check_process(await self._volume.sealer.finish_ingest(FinishRequest()))
        self._process = 0

    def _check_process(self, reply: Reply) -> None:
        """What one process has gathered, another one can't store."""
        if self._process not in (0, reply.process):
            raise LocalStoreError("the seal process ended while it imported: run the import again, it goes on")
        self._process = reply.process

    async def compare(self, job: Job, recipes: dict[int, bytes], *, read_back: bool) -> None:
        """Read all files again and compare them with *recipes*; with *read_back* the stored chunks are read too. Raises
        Refused where they differ, LocalStoreError.
        """
        for found in job.found.files:
            if Recipe(recipes[found.number]).size != found.stamp.size:
                raise Refused(f"{_show(found.path)}: it has another size than what is stored")
        for parts in _batches(_parts(job, recipes)):
            request = CompareRequest([part.source for part in parts], read_back, first=self._is_first)
            self._is_first = False
            reply = await self._volume.sealer.compare(request)
            for file, part in zip(reply.files, parts, strict=True):
                if file.recipe is None:
                    raise Refused(f"{_show(part.source.path)}: {file.error}")
            await self._advance("comparing", job, _size(parts))

    def release(self, job: Job) -> None:
        """The job's chunks are installed, or not needed."""
        self._volume.references.unpin(job.pinned)
        job.pinned = []

    async def discard(self) -> None:
        """After an error: forget what was gathered and not stored."""
        self._process = 0
        with trio.move_on_after(DISCARD_S, shield=True):
            try:
                await self._volume.sealer.finish_ingest(FinishRequest(discard=True))
            except LocalStoreError:
                return  # the process ended, and with it what it had gathered


def _parts(job: Job, recipes: dict[int, bytes]) -> Iterator[_Part]:
    """The files in ranges that one request may hold, with their part of the recipe, if there is one."""
    for file in job.found.files:
        recipe = Recipe(recipes.get(file.number, b""))
        for start, end in _bounds(file.stamp.size, recipe):
            packed = recipe.slice_packed(start, end) if len(recipe) else b""
            yield _Part(file.number, SourceRange(file.path, file.stamp, start, end, packed))


def _bounds(size: int, recipe: Recipe) -> Iterator[tuple[int, int]]:
    """[0, size) in ranges of about RANGE_BYTES, which end where an extent of the recipe does."""
    start = 0
    while start < size:
        end = min(start + RANGE_BYTES, size)
        if len(recipe):
            end = max(extent.end for extent in recipe.overlapping(end - 1, end))
        yield start, end
        start = end


def _batches(parts: Iterator[_Part]) -> Iterator[list[_Part]]:
    return iter_groups(parts, lambda part: part.source.end - part.source.start, RANGE_BYTES, REQUEST_RANGES)


def _size(parts: list[_Part]) -> int:
    return sum(part.source.end - part.source.start for part in parts)


def _show(path: bytes) -> str:
    return path.decode(errors="replace")
