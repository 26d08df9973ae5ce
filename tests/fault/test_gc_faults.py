"""Collection under writers, takeovers, other collectors and faults: nothing live is ever deleted, garbage goes."""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

import pytest
import trio

from sessfs.errors import RemoteError, RemoteHeld
from sessfs.sync.gc import Options, collect
from sessfs.sync.gc_live import Liveness
from sessfs.sync.gc_marks import read_marks
from sessfs.sync.remote_index import iter_session_keys, read_session, read_view, session_roots
from tests.support.bucket import PLAIN, Writer, read_everything
from tests.support.faultystore import PASSING, FaultyStore
from tests.support.memorystore import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# The node's start leaves a generator unfinished where there are segments beyond its last; nothing is lost by that.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'sessfs.remote.footers.iter_segments':ResourceWarning")

GRACE_S = 7 * 86400.0
CONTENTS = [bytes([i]) * (40 + i) for i in range(24)]
"""Few, so that what was removed comes back, and is deduplicated against what may be about to go."""
SESSIONS = [b"s%d" % i for i in range(4)]
FILES = [b"f%d" % i for i in range(3)]


class World:
    """A bucket, the writers that use it in turn, and collectors at any moment."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_s = 1_000_000_000.0
        self.store = MemoryStore(now_s=lambda: self.now_s)
        keep = self.random.choice([0, 0, 1, 3])
        self.writers = [Writer(self.store, f"n{i}", lambda: self.now_s, keep=keep) for i in range(3)]
        self.at = self.writers[0]
        self.n_runs = 0
        self.n_deleted = 0

    async def run_gc(self, *, mounted: bool, store: FaultyStore | None = None) -> None:
        self.n_runs += 1
        options = Options(run_id=f"r{self.n_runs}", grace_s=GRACE_S)
        holding = self.at if mounted and self.at.node is not None else None
        scope = trio.CancelScope()
        if holding is not None:
            holding.tasks.append(scope)
        with scope, contextlib.suppress(RemoteError):
            report = await collect(store or self.store, PLAIN, options, holding=holding)
            self.n_deleted += report.deleted

    async def edit(self) -> None:
        session, name = self.random.choice(SESSIONS), self.random.choice(FILES)
        contents = self.random.sample(CONTENTS, self.random.randint(0, 3))
        self.at.write(session, name, contents)

    async def remove(self) -> None:
        if self.at.sessions:
            session = self.random.choice(sorted(self.at.sessions))
            files = self.at.sessions[session]
            if files and self.random.random() < 0.7:
                self.at.remove_file(session, self.random.choice(sorted(files)))
            else:
                self.at.remove_session(session)

    async def hide(self) -> None:
        if self.at.private and self.random.random() < 0.5:
            self.at.private.pop()
        else:
            self.at.hide(self.random.choice(CONTENTS))

    async def publish(self) -> None:
        await self.at.publish(crash_at=self.random.choice(["", "", "", "segment"]))
        if self.at.node is None:
            await self.at.start()

    async def evict(self) -> None:
        self.at.evict()

    async def checkpoint(self) -> None:
        assert self.at.node is not None
        await self.at.node.checkpoint()

    async def remount(self) -> None:
        if self.random.random() < 0.5:
            await self.at.release()
            await self.pause()
        else:
            self.at.kill()
        await self.at.start()

    async def move(self) -> None:
        """Another node goes on, having taken the prefix over or been given it."""
        if self.random.random() < 0.5:
            await self.at.release()
            await self.pause()
        else:
            self.at.kill()
        self.at = self.random.choice([w for w in self.writers if w is not self.at])
        with contextlib.suppress(RemoteHeld):
            await self.at.start(take_over=True)
        assert self.at.node is not None

    async def pause(self) -> None:
        for _ in range(self.random.randint(0, 60)):
            await trio.lowlevel.checkpoint()

    async def wait(self) -> None:
        self.now_s += GRACE_S * self.random.choice([0.1, 0.6, 1.1, 2.0])

    def actions(self) -> list[Callable[[], Awaitable[None]]]:
        weights = [
            (self.edit, 8),
            (self.remove, 4),
            (self.hide, 2),
            (self.publish, 8),
            (self.evict, 2),
            (self.checkpoint, 2),
            (self.remount, 2),
            (self.move, 1),
            (self.wait, 3),
            (self.pause, 2),
        ]
        return self.random.choices([a for a, _ in weights], [w for _, w in weights], k=self.random.randint(1, 8))

    async def act(self) -> None:
        for action in self.actions():
            await action()

    async def check_no_garbage(self) -> None:
        """Every segment is referred to, or is one that its node may still write again; marks and checkpoints went."""
        view = await read_view(self.store, PLAIN)
        live = Liveness()
        async for key in iter_session_keys(self.store):
            record = await read_session(self.store, PLAIN, key)
            assert record is not None
            await live.mark(self.store, PLAIN, session_roots(view, record, key))
        for ref in view.inventory.segments:
            assert ref in live.ranges or ref.number > view.states[ref.node].last_segment
        assert all(ref.number >= view.states[ref.node].last_checkpoint for ref in view.inventory.checkpoints)
        marks = await read_marks(self.store, touch_clock=False)
        assert not marks.condemned() & view.inventory.segments.keys()
        assert len(marks.marks) <= 2

    async def check(self) -> None:
        """What was published is whole, and what the writer holds can be had; it lost nothing that it holds."""
        await read_everything(self.store)
        await self.at.check()
        assert not self.at.lost


@pytest.mark.parametrize("seed", range(60))
async def test_collect_beside_writers_and_collectors_deletes_nothing_live(seed: int) -> None:
    world = World(seed)
    await world.at.start()
    faulty = FaultyStore(world.store)
    for _ in range(25):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.act)
            for _ in range(world.random.randint(0, 2)):
                if world.random.random() < 0.3:
                    fault = world.random.choice(PASSING)(after=world.random.random() < 0.5)
                    method = world.random.choice(["get", "put", "list_page", "delete"])
                    faulty.plan(method, *[None] * world.random.randint(0, 20), fault)
                mounted = world.random.random() < 0.6
                nursery.start_soon(lambda m=mounted: world.run_gc(mounted=m, store=faulty))
        faulty.heal()
        await world.check()
    await world.at.publish()
    await world.at.release()
    for _ in range(5):
        await world.run_gc(mounted=False)
        world.now_s += GRACE_S
    assert await read_everything(world.store) == world.at.sessions
    await world.check_no_garbage()
