"""Range reads that are under way: one task reads a frame, and what comes of it holds for all that wait for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import trio

from sessfs.errors import RemoteCorrupt, RemoteError, RemoteMissing, StoreCorrupt
from sessfs.format.segment import open_frame, segment_key
from sessfs.local.places import RemotePlace
from sessfs.types import ChunkId

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sessfs.format.envelope import Envelope
    from sessfs.local.places import Places
    from sessfs.remote.objectstore import ObjectStore

GAP_BYTES = 128 * 1024
"""Two frames of a segment this near each other are read in one request: the gap costs less than a request."""
READ_MAX_BYTES = 2 << 20
PARALLEL_READS = 8
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


class Read(NamedTuple):
    """One range read: frames of one segment, by offset."""

    node: str
    segment: int
    start: int
    end: int
    frames: list[tuple[int, int]]


Expected = Mapping[RemotePlace, Collection[ChunkId]]


def plan_reads(places: Iterable[RemotePlace]) -> list[Read]:
    """Few range reads that cover all *places*: near ones together, none over READ_MAX_BYTES unless one frame is."""
    reads: list[Read] = []
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
            reads.append(Read(place.node, place.segment, place.offset, end, [(place.offset, place.length)]))
    return reads


class Taker(Protocol):
    """Takes a frame that was read."""

    async def __call__(self, record: bytes, key: str, expected: Collection[ChunkId]) -> None:
        """*record* is the opened frame of the segment *key*, said to hold *expected*. Raises RemoteCorrupt."""


class Flights:
    """The request loop alone; any task, which may be cancelled at any moment."""

    def __init__(self, store: ObjectStore, envelope: Envelope, places: Places) -> None:
        self._store = store
        self._envelope = envelope
        self._places = places
        self._flights: dict[RemotePlace, _Flight] = {}
        self._reads = trio.CapacityLimiter(PARALLEL_READS)

    async def settle(self) -> None:
        """Return once the flights that are under way are over."""
        for flight in list(self._flights.values()):
            await flight.over.wait()

    async def share(
        self, read: Read, expected: Expected, needed: Collection[RemotePlace], take: Taker
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
                found.update(await self._fly(own, expected, needed, take))
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

    async def alone(self, read: Read, expected: Expected, take: Taker) -> dict[RemotePlace, Problem]:
        """As `share`, all of it needed, with nobody else's frames: *take* gets each that can be had."""
        places = [RemotePlace(read.node, read.segment, *frame) for frame in read.frames]
        # Whoever reads them now may drop them.
        while flying := [place for place in places if place in self._flights]:
            await self._flights[flying[0]].over.wait()
        return await self._fly(places, expected, places, take)

    async def _fly(
        self,
        places: Sequence[RemotePlace],
        expected: Expected,
        needed: Collection[RemotePlace],
        take: Taker,
    ) -> dict[RemotePlace, Problem]:
        """Read frames of one segment that nobody is reading, in one request if they are sound. Answers and raises as
        `share`.
        """
        flights = {place: _Flight() for place in places}
        self._flights.update(flights)
        try:
            await self._read_range(places, flights, expected, take)
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
        expected: Expected,
        take: Taker,
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
                    await self._read_range([place], flights, expected, take)
            else:
                self._note_damage(places[0], flights[places[0]], exc)
            return
        for place in places:
            sealed = blob.body[place.offset - start : place.offset - start + place.length]
            try:
                record = open_frame(sealed, place.node, place.segment, place.offset, self._envelope)
                await take(record, key, expected.get(place, ()))
            except RemoteCorrupt as exc:
                self._note_damage(place, flights[place], exc)
            else:
                self._places.settle_bad(place)
                flights[place].is_known = True
                self._land(place, flights[place])
            await trio.lowlevel.checkpoint()

    def _note_damage(self, place: RemotePlace, flight: _Flight, problem: Problem) -> None:
        self._places.note_bad(place)
        flight.damage, flight.is_known = problem, True
        self._land(place, flight)
