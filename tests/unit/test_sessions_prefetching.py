"""What is fetched ahead of a session's start: which sessions, and what of them, in which order."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from sessfs.errors import RemoteUnavailable
from sessfs.sessions import prefetching
from sessfs.sessions.prefetching import AHEAD_MAX, AHEAD_S, SMALL_BYTES, Prefetcher
from sessfs.types import ROOT_INO
from tests.support.memorystore import MemoryStore
from tests.support.volumes import open_machine, wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from sessfs.types import ChunkId
    from tests.support.volumes import Machine

LARGE = 3 * SMALL_BYTES


class Asked:
    """Chunks that nobody has: notes what is asked for."""

    def __init__(self) -> None:
        self.batches: list[list[ChunkId]] = []
        self.problem: RemoteUnavailable | None = None

    async def prefetch(self, ids: Sequence[ChunkId]) -> None:
        self.batches.append(list(ids))
        if self.problem is not None:
            raise self.problem


class Fetching:
    """A machine on which sessions of another one are looked at, and its prefetcher."""

    def __init__(self, machine: Machine, chunks: Asked) -> None:
        self.machine = machine
        self.asked = chunks
        self.prefetcher = Prefetcher(
            machine.volume.inodes, machine.volume.places, chunks, monotonic_s=lambda: machine.clock.ns() / 1e9
        )
        machine.sessions.on_loaded = self.prefetcher.loaded

    def chunks(self, path: bytes) -> list[ChunkId]:
        return list(self.machine.volume.inodes.load_recipe(self.machine.get(path)).iter_chunks())

    def use(self, session: bytes) -> None:
        self.prefetcher.used(self.machine.get(session).ino)

    async def batches(self, number: int) -> list[list[ChunkId]]:
        await wait_until(lambda: len(self.asked.batches) >= number)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        assert len(self.asked.batches) == number
        return self.asked.batches


@asynccontextmanager
async def fetching(path: Path, store: MemoryStore) -> AsyncIterator[Fetching]:
    async with open_machine(path / "b", store, name="b") as machine, trio.open_nursery() as nursery:
        found = Fetching(machine, Asked())
        nursery.start_soon(found.prefetcher.run)
        yield found
        nursery.cancel_scope.cancel()


async def publish(path: Path, files: dict[bytes, int], sessions: Sequence[bytes] = (b"s",)) -> MemoryStore:
    """A bucket with sessions that have files of these sizes."""
    store = MemoryStore()
    source = random.Random(7)
    async with open_machine(path / "a", store) as machine:
        for session in sessions:
            machine.mkdir(session)
            for name, size in files.items():
                await machine.write(session + b"/" + name, source.randbytes(size))
    return store


async def test_small_files_whole_then_ends_then_beginnings_of_large_ones(tmp_path: Path) -> None:
    store = await publish(tmp_path, {b"large": LARGE, b"small": 90_000, b"larger": LARGE + 1, b"tiny": 10, b"none": 0})
    async with fetching(tmp_path, store) as found:
        await found.machine.load(b"s")
        (ids,) = await found.batches(1)
        large, larger = found.chunks(b"s/large"), found.chunks(b"s/larger")
        assert len(large) > 2
        small = [*found.chunks(b"s/tiny"), *found.chunks(b"s/small")]
        assert ids == [*small, large[-1], larger[-1], large[0], larger[0]]


async def test_what_was_learned_comes_first(tmp_path: Path) -> None:
    store = await publish(tmp_path, {b"large": LARGE, b"small": 100})
    async with fetching(tmp_path, store) as found:
        machine = found.machine
        machine.sessions.on_loaded = lambda session: None
        await machine.load(b"s")
        middle = found.chunks(b"s/large")[1]
        machine.volume.places.set_startup(machine.get(b"s").ino, bytes(middle))
        found.prefetcher.loaded(machine.get(b"s").ino)
        (ids,) = await found.batches(1)
        assert ids[0] == middle
        assert sorted(ids) == sorted(set(ids))
        assert found.chunks(b"s/small")[0] in ids


async def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetching, "LIKELY_MAX_BYTES", 250)
    monkeypatch.setattr(prefetching, "FILES_MAX", 3)
    store = await publish(tmp_path, {b"%d" % size: size for size in (60, 70, 80, 90, 100)})
    async with fetching(tmp_path, store) as found:
        await found.machine.load(b"s")
        (ids,) = await found.batches(1)
        assert ids == [found.chunks(b"s/%d" % size)[0] for size in (60, 70, 80)]
        monkeypatch.setattr(prefetching, "LIKELY_MAX_BYTES", 140)
        found.prefetcher.loaded(found.machine.get(b"s").ino)
        assert (await found.batches(2))[1] == ids[:2]


async def test_who_looks_at_all_sessions_fetches_few_ahead_and_the_others_once_they_are_used(tmp_path: Path) -> None:
    names = [b"s%d" % number for number in range(AHEAD_MAX + 3)]
    store = await publish(tmp_path, {b"f": 1000}, names)
    async with fetching(tmp_path, store) as found:
        for name in names:
            await found.machine.load(name)
        batches = await found.batches(AHEAD_MAX)
        assert batches == [found.chunks(name + b"/f") for name in names[:AHEAD_MAX]]
        for _ in range(3):
            found.use(names[-1])
            found.use(names[0])
        assert (await found.batches(AHEAD_MAX + 1))[-1] == found.chunks(names[-1] + b"/f")


@pytest.mark.parametrize("how", ["used", "long ago"])
async def test_sessions_that_are_used_leave_room_for_others(tmp_path: Path, how: str) -> None:
    names = [b"s%d" % number for number in range(AHEAD_MAX + 1)]
    store = await publish(tmp_path, {b"f": 1000}, names)
    async with fetching(tmp_path, store) as found:
        for name in names[:-1]:
            await found.machine.load(name)
        if how == "used":
            found.use(names[2])
        else:
            found.machine.clock.advance(AHEAD_S)
        await found.machine.load(names[-1])
        assert (await found.batches(AHEAD_MAX + 1))[-1] == found.chunks(names[-1] + b"/f")


async def test_an_error_ends_nothing(tmp_path: Path) -> None:
    store = await publish(tmp_path, {b"f": 1000}, [b"s", b"t"])
    async with fetching(tmp_path, store) as found:
        found.asked.problem = RemoteUnavailable("gone")
        await found.machine.load(b"s")
        await found.machine.load(b"t")
        await found.batches(2)


async def test_files_at_the_top_are_no_session_and_a_session_that_went_is_nothing(tmp_path: Path) -> None:
    store = await publish(tmp_path, {b"f": 1000})
    async with fetching(tmp_path, store) as found:
        found.prefetcher.loaded(ROOT_INO)
        await found.machine.load(b"s")
        session = found.machine.get(b"s").ino
        found.machine.unlink(b"s/f")
        await found.batches(1)
        found.machine.volume.namespace.drop_session_tree(session)
        found.prefetcher.loaded(session)
        assert (await found.batches(2))[1] == []
