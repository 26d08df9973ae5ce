"""Chunks from the remote: on demand, several at once by merged range reads, each verified, each fetched by one task.

What was fetched is in memory at once and goes to the local store in the background. A chunk that is damaged here is
fetched like one that is missing, and replaced.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from sessfs.errors import LocalStoreError, RemoteCorrupt, StoreCorrupt
from sessfs.format.chunk import FrameCodec, verify_chunk
from sessfs.local.chunkstore import decode_frame_record
from sessfs.remote.parallel import for_each, over
from sessfs.sync.flights import PARALLEL_READS, Flights, Problem, Read, plan_reads

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sessfs.format.chunk import Buffer
    from sessfs.format.envelope import Envelope
    from sessfs.local.chunkstore import ChunkReader, References
    from sessfs.local.places import Places, RemotePlace
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.types import ChunkId, Ino

log = logging.getLogger(__name__)
MEMORY_BYTES = 8 << 20
STORE_QUEUE = 16
STORE_POLL_S = 0.01
"""Frames of half a MiB at most that wait for the local store."""
STORE_BATCH_BYTES = 4 << 20
START_S = 30.0
"""The first reads of a session, for this long, are what its next start elsewhere prefetches."""
QUIET_S = 300.0
"""After this long without a read, the next one is a start."""
START_MAX_CHUNKS = 4000
PREFETCH_CHUNKS = 256


class FrameKeeper(Protocol):
    """Keeps fetched frames in the local store."""

    async def store_frames(self, frames: Sequence[tuple[bytes, Sequence[ChunkId]]], damaged: Sequence[ChunkId]) -> None:
        """See Sealer."""


@dataclass
class _Start:
    """One start of a session: monotonic times in seconds, and the chunks read so far, in order."""

    began_s: float
    last_s: float
    ids: dict[ChunkId, None]
    stored: bool = False


@dataclass
class _Receipt:
    """Whether the local store took a frame: *known* is set once *problem* says why not, or is None for good."""

    known: trio.Event = field(default_factory=trio.Event)
    problem: LocalStoreError | None = None


class _Fetched(NamedTuple):
    """A frame on its way to the local store, its chunks that are held, and who waits until it is there."""

    record: bytes
    ids: list[ChunkId]
    receipt: _Receipt | None


class RemoteChunks:
    """The chunk source of a volume with a remote. The request loop alone; `run` in the daemon's nursery."""

    def __init__(
        self,
        reader: ChunkReader,
        places: Places,
        references: References,
        store: ObjectStore,
        envelope: Envelope,
        hash_key: bytes,
        monotonic_s: Callable[[], float],
    ) -> None:
        self._reader = reader
        self._places = places
        self._references = references
        self._hash_key = hash_key
        self._codec = FrameCodec()
        self._memory: OrderedDict[ChunkId, bytes] = OrderedDict()
        self._memory_bytes = 0
        self._damaged = places.damage.here
        self._awaited: Counter[ChunkId] = Counter()
        """Chunks that a `fetch` under way has promised: they stay in memory."""
        self._is_storing = False
        self._flights = Flights(store, envelope, places)
        self._queue_send, self._queue_receive = trio.open_memory_channel[_Fetched](STORE_QUEUE)
        self._monotonic_s = monotonic_s
        self._starts: dict[Ino, _Start] = {}

    def is_here(self, cid: ChunkId) -> bool:
        """See ChunkSource. A damaged chunk is not here."""
        return cid in self._memory or (cid not in self._damaged and self._reader.has(cid))

    @property
    def has_damaged(self) -> bool:
        """True while chunks that were found damaged are not replaced yet."""
        return bool(self._damaged)

    @property
    def is_storing(self) -> bool:
        """True while fetched chunks are on their way to the local store."""
        return self._is_storing or self._queue_send.statistics().current_buffer_used > 0

    def note_read(self, session: Ino, cid: ChunkId) -> None:
        """See ChunkSource: how a session's start is learned, and the chunks it needs first with it."""
        now = self._monotonic_s()
        start = self._starts.get(session)
        if start is None or now - start.last_s > QUIET_S:
            start = self._starts[session] = _Start(now, now, {})
        start.last_s = now
        if now - start.began_s <= START_S and len(start.ids) < START_MAX_CHUNKS:
            start.ids[cid] = None
        elif not start.stored:
            start.stored = True
            ids = b"".join(start.ids)
            # A start out of the kernel's cache reads little here, and says nothing of what a cold one needs.
            if len(ids) * 2 >= len(self._places.startup(session)):
                self._places.set_startup(session, ids)

    async def prefetch(self, ids: Sequence[ChunkId]) -> None:
        """Have those of *ids* that can be had in the local store, in that order by and large. Raises RemoteError when
        the remote can't be asked, LocalStoreError when the local store does not take them.
        """
        wanted = [cid for cid in ids if self._places.is_sound(cid) and not self.is_here(cid)]
        for first in range(0, len(wanted), PREFETCH_CHUNKS):
            await self.bring(wanted[first : first + PREFETCH_CHUNKS])

    async def bring(self, ids: Collection[ChunkId]) -> dict[ChunkId, Problem]:
        """Have those of *ids* that are held stored here for sure, not just in memory, however many they are. Returns
        which of them can't be had, and why; the others come all the same. Raises RemoteError when the remote can't be
        asked, LocalStoreError when the local store does not take them.

        Whether a chunk is still here on return is the evicter's business.
        """
        wanted: dict[RemotePlace, list[ChunkId]] = {}
        lost: dict[ChunkId, Problem] = {}
        for cid in ids:
            if not self._references.is_held(cid) or (self._reader.has(cid) and cid not in self._damaged):
                continue
            place = self._places.find(cid)
            if place is None:
                lost[cid] = StoreCorrupt(f"chunk {cid.hex()} is needed, and neither here nor in the remote")
            else:
                wanted.setdefault(place, []).append(cid)

        async def bring(read: Read) -> None:
            receipts: list[_Receipt] = []

            async def take(record: bytes, key: str, expected: Collection[ChunkId]) -> None:
                kept = self._take_frame(record, key, expected)
                receipts.append(_Receipt())
                await self._queue_send.send(_Fetched(record, kept, receipts[-1]))

            for place, problem in (await self._flights.alone(read, wanted, take)).items():
                lost.update((cid, problem) for cid in wanted[place])
            # Before the next read: what is on its way takes memory, and a full disk should be noticed.
            for receipt in receipts:
                await receipt.known.wait()
                if receipt.problem is not None:
                    raise receipt.problem

        await for_each(over(plan_reads(wanted)), bring, PARALLEL_READS)
        return lost

    async def settle(self) -> None:
        """Return once the range reads that are under way are over, and what they brought is in the local store."""
        await self._flights.settle()
        while self.is_storing:  # noqa: ASYNC110 - it may end without anything being stored
            await trio.sleep(STORE_POLL_S)

    def find(self, cid: ChunkId) -> Buffer | None:
        """See ChunkSource. A damaged chunk that the remote has counts as missing."""
        chunk = self._memory.get(cid)
        if chunk is not None:
            return chunk
        if cid in self._damaged and self._places.has(cid):
            return None
        try:
            return self._reader.find(cid)
        except StoreCorrupt as exc:
            self._places.damage.note_here(cid)
            if not self._places.has(cid):
                raise
            log.warning("%s; fetching it from the remote", exc)
            return None

    async def fetch(self, ids: Collection[ChunkId], ahead: Collection[ChunkId] = ()) -> None:
        """See ChunkSource: raises RemoteError when the remote can't be asked, RemoteCorrupt or StoreCorrupt when it has
        one of *ids* not, or not as it was. May be cancelled at any moment.
        """
        wanted: dict[RemotePlace, list[ChunkId]] = {}
        for cid in ids:
            place = self._places.find(cid)
            if place is None:
                raise StoreCorrupt(f"chunk {cid.hex()} is named by a recipe, and neither here nor in the remote")
            wanted.setdefault(place, []).append(cid)
        needed = set(wanted)
        for cid in ahead:
            place = self._places.find(cid)
            if place is not None and (place in needed or not self._places.is_bad(place)):
                wanted.setdefault(place, []).append(cid)
        problems: dict[RemotePlace, Problem] = {}

        async def read(one: Read) -> None:
            problems.update(await self._flights.share(one, wanted, needed, self._take))

        self._awaited.update(ids)
        try:
            await for_each(over(plan_reads(wanted)), read, PARALLEL_READS)
        finally:
            self._awaited.subtract(ids)
            for cid in ids:
                if self._awaited[cid] <= 0:
                    del self._awaited[cid]
        for place in sorted(needed & problems.keys()):
            raise problems[place]

    async def _take(self, record: bytes, key: str, expected: Collection[ChunkId]) -> None:
        kept = self._take_frame(record, key, expected)
        # Where the local store is behind, the chunks stay in memory while there is room, and are fetched again later.
        with contextlib.suppress(trio.WouldBlock):
            self._queue_send.send_nowait(_Fetched(record, kept, None))

    def _take_frame(self, record: bytes, key: str, expected: Collection[ChunkId]) -> list[ChunkId]:
        """The frame's chunks that are held, verified; they are in memory from here on. Raises RemoteCorrupt."""
        try:
            entries, payload = decode_frame_record(record)
            plain = self._codec.view(payload)
        except StoreCorrupt as exc:
            raise RemoteCorrupt(f"{key}: {exc}") from exc
        for cid in set(expected).difference(cid for cid, _ in entries):
            raise RemoteCorrupt(f"{key}: chunk {cid.hex()} is not in the frame that it is said to be in")
        kept: list[ChunkId] = []
        offset = 0
        for cid, length in entries:
            is_held = self._references.is_held(cid)
            if is_held or cid in self._awaited:
                try:
                    verify_chunk(self._hash_key, cid, plain[offset : offset + length])
                except StoreCorrupt as exc:
                    if cid in expected:
                        raise RemoteCorrupt(f"{key}: {exc}") from exc
                    # It was damaged before it was uploaded with its neighbours: its place is another.
                else:
                    self._remember(cid, bytes(plain[offset : offset + length]))
                    if is_held:
                        kept.append(cid)
            offset += length
        return kept

    def _remember(self, cid: ChunkId, chunk: bytes) -> None:
        if cid not in self._memory:
            self._memory[cid] = chunk
            self._memory_bytes += len(chunk)
        if self._memory_bytes > MEMORY_BYTES:
            # Who waits for a chunk gets a look at it, or might have to fetch it for ever.
            for old in [one for one in self._memory if one != cid and one not in self._awaited]:
                self._memory_bytes -= len(self._memory.pop(old))
                if self._memory_bytes <= MEMORY_BYTES:
                    return

    async def run(self, keeper: FrameKeeper) -> None:
        """Hand fetched frames to the local store, for ever; started once, in the daemon's nursery."""
        async for item in self._queue_receive:
            frames, size = [item], len(item.record)
            while size < STORE_BATCH_BYTES:
                try:
                    frames.append(self._queue_receive.receive_nowait())
                except trio.WouldBlock:
                    break
                size += len(frames[-1].record)
            ids = {cid for frame in frames for cid in frame.ids}
            self._is_storing = True
            damaged = sorted(ids & self._damaged)
            problem: LocalStoreError | None = LocalStoreError("the daemon ends before fetched chunks are stored")
            try:
                await keeper.store_frames([(frame.record, frame.ids) for frame in frames], damaged)
                problem = None
            except LocalStoreError as exc:
                log.warning("fetched chunks could not be kept: %s", exc)
                problem = exc
            except Exception as exc:
                log.exception("bug while fetched chunks were stored")
                problem = LocalStoreError(f"bug in the daemon: {exc!r}; see its log")
            finally:
                self._is_storing = False
                for frame in frames:
                    if frame.receipt is not None:
                        frame.receipt.problem = problem
                        frame.receipt.known.set()
            if problem is not None:
                continue
            self._places.damage.settle_here(damaged)
            for cid in ids:
                dropped = self._memory.pop(cid, None)
                if dropped is not None:
                    self._memory_bytes -= len(dropped)
