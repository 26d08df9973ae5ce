"""Chunks from the remote: on demand, several at once by merged range reads, each verified, each fetched by one task.

What was fetched is in memory at once and goes to the local store in the background. A chunk that is damaged here is
fetched like one that is missing, and replaced.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from sessfs.errors import LocalStoreError, RemoteCorrupt, RemoteError, RemoteMissing, StoreCorrupt
from sessfs.format.chunk import FrameCodec, verify_chunk
from sessfs.format.segment import open_frame, segment_key
from sessfs.local.chunkstore import decode_frame_record
from sessfs.local.places import RemotePlace
from sessfs.remote.parallel import for_each, over
from sessfs.types import ChunkId, Ino

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sessfs.format.chunk import Buffer
    from sessfs.format.envelope import Envelope
    from sessfs.local.chunkstore import ChunkReader, References
    from sessfs.local.places import Places
    from sessfs.remote.objectstore import ObjectStore

log = logging.getLogger(__name__)
GAP_BYTES = 128 * 1024
"""Two frames of a segment this near each other are read in one request: the gap costs less than a request."""
READ_MAX_BYTES = 2 << 20
PARALLEL_READS = 8
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


Problem = StoreCorrupt | RemoteCorrupt
"""Why a frame can't be had, however often it is asked for."""


@dataclass
class _Flight:
    """A frame that one task reads. What came of it is set before *over* is, and *over* is set whatever happens.
    *is_known*: the frame is here, or *damage* says why it can't be; else *failure* says why it is not known, or is None
    where whoever read it was cancelled.
    """

    over: trio.Event = field(default_factory=trio.Event)
    is_known: bool = False
    damage: Problem | None = None
    failure: RemoteError | None = None


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


class _Read(NamedTuple):
    """One range read: frames of one segment, by offset."""

    node: str
    segment: int
    start: int
    end: int
    frames: list[tuple[int, int]]


_Expected = Mapping[RemotePlace, Collection[ChunkId]]


def plan_reads(places: Iterable[RemotePlace]) -> list[_Read]:
    """Few range reads that cover all *places*: near ones together, none over READ_MAX_BYTES unless one frame is."""
    reads: list[_Read] = []
    for place in sorted(set(places)):
        end = place.offset + place.length
        last = reads[-1] if reads else None
        if (
            last is not None
            and (last.node, last.segment) == (place.node, place.segment)
            and place.offset - last.end <= GAP_BYTES
            and end - last.start <= READ_MAX_BYTES
        ):
            last.frames.append((place.offset, place.length))
            reads[-1] = last._replace(end=max(last.end, end))
        else:
            reads.append(_Read(place.node, place.segment, place.offset, end, [(place.offset, place.length)]))
    return reads


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
        self._store = store
        self._envelope = envelope
        self._hash_key = hash_key
        self._codec = FrameCodec()
        self._memory: OrderedDict[ChunkId, bytes] = OrderedDict()
        self._memory_bytes = 0
        self._damaged = places.damage.here
        self._awaited: Counter[ChunkId] = Counter()
        """Chunks that a `fetch` under way has promised: they stay in memory."""
        self._is_storing = False
        self._flights: dict[RemotePlace, _Flight] = {}
        self._reads = trio.CapacityLimiter(PARALLEL_READS)
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

        async def bring(read: _Read) -> None:
            receipts: list[_Receipt] = []
            for place, problem in (await self._read(read, wanted, receipts)).items():
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
        for flight in list(self._flights.values()):
            await flight.over.wait()
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

        async def read(one: _Read) -> None:
            problems.update(await self._share(one, wanted, needed))

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

    async def _share(
        self, read: _Read, expected: _Expected, needed: Collection[RemotePlace]
    ) -> dict[RemotePlace, Problem]:
        """Have the frames of the read here, each read by one task; the answer says which can't be had, and why. Raises
        RemoteError when it is not known of one in *needed*.

        What another task finds out of a frame holds for all that wait for it. Where it found out nothing, one of those
        who wait reads in its stead, for all of them; after that, why it could not holds for all, too.
        """
        found: dict[RemotePlace, Problem] = {}
        left = [RemotePlace(read.node, read.segment, *frame) for frame in read.frames]
        is_patient = True
        while left:
            flying = {place: self._flights[place] for place in left if place in self._flights}
            own = [place for place in left if place not in flying]
            if own:
                found.update(await self._fly(own, expected, needed))
            for flight in flying.values():
                await flight.over.wait()
            found.update((place, flight.damage) for place, flight in flying.items() if flight.damage is not None)
            left = [place for place, flight in flying.items() if not flight.is_known]
            for place in left:
                reason = flying[place].failure
                if reason is not None and not is_patient and place in needed:
                    raise reason
            is_patient = is_patient and all(flying[place].failure is None for place in left)
            if not is_patient and not any(place in needed for place in left):
                return found
        return found

    async def _read(self, read: _Read, expected: _Expected, receipts: list[_Receipt]) -> dict[RemotePlace, Problem]:
        """As `_share`, all of it needed; the frames are stored for sure, and each adds a receipt."""
        places = [RemotePlace(read.node, read.segment, *frame) for frame in read.frames]
        # Whoever reads them now may drop them.
        while flying := [place for place in places if place in self._flights]:
            await self._flights[flying[0]].over.wait()
        return await self._fly(places, expected, places, receipts)

    async def _fly(
        self,
        places: Sequence[RemotePlace],
        expected: _Expected,
        needed: Collection[RemotePlace],
        receipts: list[_Receipt] | None = None,
    ) -> dict[RemotePlace, Problem]:
        """Read frames of one segment that nobody is reading, in one request if they are sound. Answers and raises as
        `_share`.
        """
        flights = {place: _Flight() for place in places}
        self._flights.update(flights)
        try:
            await self._read_range(places, flights, expected, receipts)
        except RemoteError as exc:
            for flight in flights.values():
                flight.failure = exc
            if any(place in needed for place, flight in flights.items() if not flight.is_known):
                raise
        finally:
            for place, flight in flights.items():
                self._land(place, flight)
        return {place: flight.damage for place, flight in flights.items() if flight.damage is not None}

    def _land(self, place: RemotePlace, flight: _Flight) -> None:
        """The flight is over, and what is known is known."""
        if self._flights.get(place) is flight:
            del self._flights[place]
        flight.over.set()

    async def _read_range(
        self,
        places: Sequence[RemotePlace],
        flights: Mapping[RemotePlace, _Flight],
        expected: _Expected,
        receipts: list[_Receipt] | None,
    ) -> None:
        """Read *places*, which ascend, by one request, or singly where that is answered with damage. Raises
        RemoteError when the remote can't be asked.
        """
        start = places[0].offset
        end = max(place.offset + place.length for place in places)
        key = segment_key(places[0].node, places[0].segment)
        try:
            async with self._reads:
                blob = await self._store.get(key, start, end - start)
        except RemoteMissing as exc:
            for place in places:
                problem = StoreCorrupt(f"{key} is not in the remote, but a snapshot names it: {exc}")
                self._note_damage(place, flights[place], problem)
            return
        except RemoteCorrupt as exc:
            if len(places) > 1:
                for place in places:
                    await self._read_range([place], flights, expected, receipts)
            else:
                self._note_damage(places[0], flights[places[0]], exc)
            return
        for place in places:
            sealed = blob.body[place.offset - start : place.offset - start + place.length]
            try:
                record = open_frame(sealed, place.node, place.segment, place.offset, self._envelope)
                kept = self._take_frame(record, key, expected.get(place, ()))
            except RemoteCorrupt as exc:
                self._note_damage(place, flights[place], exc)
            else:
                self._places.settle_bad(place)
                await self._hand_over(record, kept, receipts)
                flights[place].is_known = True
                self._land(place, flights[place])
            await trio.lowlevel.checkpoint()

    def _note_damage(self, place: RemotePlace, flight: _Flight, problem: Problem) -> None:
        self._places.note_bad(place)
        flight.damage, flight.is_known = problem, True
        self._land(place, flight)

    async def _hand_over(self, record: bytes, kept: list[ChunkId], receipts: list[_Receipt] | None) -> None:
        if receipts is not None:
            receipts.append(_Receipt())
            await self._queue_send.send(_Fetched(record, kept, receipts[-1]))
            return
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
                    raise RemoteCorrupt(f"{key}: {exc}") from exc
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
