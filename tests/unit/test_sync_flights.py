"""Many readers of the same frames: all come to an end, whatever is the matter with the frames, in few requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sessfs.errors import RemoteCorrupt, RemoteError, RemoteMissing, RemoteUnavailable, SessfsError, StoreCorrupt
from sessfs.format.envelope import PlainEnvelope
from sessfs.format.segment import SegmentBuilder, segment_key
from sessfs.local.db import Database
from sessfs.local.inodes import META_TABLES
from sessfs.local.places import Places, RemotePlace
from sessfs.sync import fetch
from sessfs.sync.flights import Flights, Read
from tests.support.faultystore import FaultyStore
from tests.support.memorystore import MemoryStore
from tests.support.volumes import examples, open_machine
from tests.unit.test_sync_fetch import BODY, SEGMENT, damage_remote, publish

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from sessfs.remote.objectstore import Blob
    from sessfs.types import ChunkId

READERS = 8


@pytest.mark.parametrize("what", ["damaged", "cut short", "missing", "another frame's bytes"])
async def test_readers_of_what_the_remote_has_damaged_all_end(tmp_path: Path, what: str) -> None:
    """As four readers with the kernel's read-ahead are: some want the frame, some only what is beside it."""
    store = FaultyStore(memory := await publish(tmp_path))
    async with open_machine(tmp_path / "b", store, name="b", release=False) as machine:
        await machine.load(b"s")
        start, end = damage_remote(memory, machine, 30)
        body = memory.objects[SEGMENT]
        if what == "cut short":
            memory.objects[SEGMENT] = body[: len(body) // 2]
        elif what == "missing":
            del memory.objects[SEGMENT]
        elif what == "another frame's bytes":
            place = machine.volume.places.find(
                next(machine.volume.inodes.load_recipe(machine.get(b"s/f")).iter_chunks())
            )
            assert place is not None
            memory.objects[SEGMENT] = body[: place.offset] + body[place.offset + 1 :] + b"x"
        inode, ends = machine.get(b"s/f"), []
        before = store.count("get")

        async def read(at: int) -> None:
            for offset in range(at, len(BODY), 128 << 10):
                try:
                    assert await machine.volume.fileio.read(inode, offset, 64 << 10) == BODY[offset : offset + 65536]
                except (RemoteCorrupt, StoreCorrupt):
                    ends.append(offset)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for number in range(READERS):
                    nursery.start_soon(read, max(0, start - 400_000) + number * (64 << 10))
        assert ends
        assert store.count("get") - before <= 40 * READERS
        if what == "damaged":
            assert all(start - 65536 < offset < end for offset in ends)
            # Each looked at the frame once for every read of its range, and nobody for what is beside it.
            assert store.count("get") - before <= len(ends) + 20


async def test_reader_that_waits_for_a_damaged_frame_is_told_by_who_reads_it(tmp_path: Path) -> None:
    store = FaultyStore(memory := await publish(tmp_path))
    async with open_machine(tmp_path / "b", store, name="b", release=False) as machine:
        await machine.load(b"s")
        start, _ = damage_remote(memory, machine, 30)
        inode, failed = machine.get(b"s/f"), []

        async def read() -> None:
            with pytest.raises(RemoteCorrupt) as caught:
                await machine.volume.fileio.read(inode, start, 100)
            failed.append(str(caught.value))

        before = store.count("get")
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(READERS):
                    nursery.start_soon(read)
        assert len(failed) == READERS
        assert len(set(failed)) == 1
        assert store.count("get") - before == 1


async def test_reader_of_much_is_not_starved_by_many_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little fits into memory: what was fetched for a reader is there when its turn comes."""
    monkeypatch.setattr(fetch, "MEMORY_BYTES", 1)
    store = FaultyStore(await publish(tmp_path))
    async with open_machine(tmp_path / "b", store, name="b") as machine:
        await machine.load(b"s")
        machine.chunks._queue_send.close()
        monkeypatch.setattr(machine.chunks, "_queue_send", trio.open_memory_channel[object](0)[0])
        inode = machine.get(b"s/f")
        before = store.count("get")
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for number in range(READERS):
                    nursery.start_soon(machine.volume.fileio.read, inode, number * 100_000, 300_000)
        assert store.count("get") - before <= 4 * READERS


# -- any readers, any faults

FRAMES = 6


class ScriptedStore(MemoryStore):
    """Answers requests for the segment when it is told to, and so, whatever order that is in."""

    def __init__(self) -> None:
        super().__init__()
        self.gets = 0
        self.script: Iterator[str] = iter(())

    async def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        self.gets += 1
        fault = next(self.script, "")
        await trio.lowlevel.checkpoint()
        if fault == "slow":
            await trio.sleep(3)
        elif fault == "away":
            await trio.sleep(1)
            raise RemoteUnavailable("away")
        elif fault == "missing":
            raise RemoteMissing("gone")
        elif fault == "denied":
            raise RemoteError("denied")
        return await super().get(key, start, length)


def make_places(tmp_path: Path, number: int) -> tuple[ScriptedStore, Places, list[RemotePlace]]:
    store = ScriptedStore()
    builder = SegmentBuilder("n", 1, 1, PlainEnvelope())
    places = [RemotePlace("n", 1, *builder.add_frame(b"%d" % i * 2000)) for i in range(FRAMES)]
    store.objects[segment_key("n", 1)] = builder.finish(0)
    return store, Places(Database(tmp_path / f"meta{number}", META_TABLES, 1 << 24)), places


READER = st.tuples(
    st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=FRAMES, unique=True),
    st.integers(1, FRAMES),
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.sampled_from([None, None, 0.0, 0.7, 1.5]),
)
"""Frames, how many of them are needed (the others are ahead), when it comes (s), and when it is cancelled."""
FAULTS = st.lists(st.sampled_from(["", "slow", "away", "missing", "denied"]), max_size=20)


class _Run:
    """One example."""

    def __init__(self, flights: Flights, places: list[RemotePlace], damaged: Collection[int]) -> None:
        self.flights = flights
        self.places = places
        self.damaged = {places[i] for i in damaged}
        self.seen: set[RemotePlace] = set()
        self.ended = 0

    async def take(self, record: bytes, key: str, expected: Collection[ChunkId]) -> None:
        index = int(record[:1])
        if self.places[index] in self.damaged:
            raise RemoteCorrupt(f"frame {index} is damaged")
        await trio.lowlevel.checkpoint()
        self.seen.add(self.places[index])

    async def read(self, reader: tuple[list[int], int, float, float | None]) -> None:
        indices, n_needed, at, cancelled = reader
        wanted = sorted(self.places[i] for i in indices)
        needed = {self.places[i] for i in indices[:n_needed]}
        read = Read("n", 1, wanted[0].offset, wanted[-1].offset + 1, [(p.offset, p.length) for p in wanted])
        await trio.sleep(at)
        with trio.CancelScope() as scope:
            if cancelled is not None:
                scope.deadline = trio.current_time() + cancelled
            try:
                problems = await self.flights.share(read, {}, needed, self.take)
            except SessfsError:
                problems = None
            if problems is not None:
                assert all(place in self.seen or place in problems for place in needed)
        self.ended += 1


@given(readers=st.lists(READER, min_size=1, max_size=8), faults=FAULTS, damaged=st.sets(st.integers(0, FRAMES - 1)))
@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_readers_all_end_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory,
    readers: list[tuple[list[int], int, float, float | None]],
    faults: list[str],
    damaged: set[int],
) -> None:
    store, places, frames = make_places(tmp_path_factory.mktemp("flights"), 0)
    store.script = iter(faults)
    run = _Run(Flights(store, PlainEnvelope(), places), frames, damaged)

    async def main() -> None:
        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                for reader in readers:
                    nursery.start_soon(run.read, reader)
            await run.flights.settle()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert run.ended == len(readers)
    # Each reads what nobody is reading, at most once by itself and once in the stead of who could not.
    assert store.gets <= sum(2 * len(indices) for indices, *_ in readers)
