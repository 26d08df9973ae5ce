"""Bounds: requests at once, uploads among them, bytes in memory, bytes per second."""

from __future__ import annotations

import random
import threading

import pytest
import trio
import trio.testing

from sessfs.remote.admission import FREE_BYTES, Admission, ByteBudget
from sessfs.remote.objectstore import Blob, Forwarding, Limited, check_key
from sessfs.remote.retrying import RetryPolicy
from tests.support.memorystore import MemoryStore


class Slow(Forwarding):
    """Each request takes a second; remembers how many there were at once, and when writes started."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.now = {"get": 0, "put": 0}
        self.most = {"get": 0, "put": 0, "all": 0}
        self.put_times_s: list[float] = []

    async def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        await self._take("get")
        return Blob(b"", "")

    async def put(self, key: str, body: bytes) -> str:
        self.put_times_s.append(trio.current_time())
        await self._take("put")
        return ""

    async def put_if(self, key: str, body: bytes, etag: str | None) -> str:
        return await self.put(key, body)

    async def _take(self, kind: str) -> None:
        self.now[kind] += 1
        self.most[kind] = max(self.most[kind], self.now[kind])
        self.most["all"] = max(self.most["all"], sum(self.now.values()))
        await trio.sleep(1)
        self.now[kind] -= 1


async def test_uploads_leave_room_for_reads(autojump_clock: trio.testing.MockClock) -> None:
    slow = Slow()
    limited = Limited(slow, requests=4, uploads=3)
    started_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(limited.put, f"{number}", b"")
        await trio.testing.wait_all_tasks_blocked()
        await limited.get("k")
        assert trio.current_time() - started_s == pytest.approx(1)
        for _ in range(8):
            nursery.start_soon(limited.get, "k")
    assert slow.most["put"] == 3
    assert slow.most["all"] == 4


def test_uploads_must_leave_room() -> None:
    with pytest.raises(ValueError, match="less than requests"):
        Limited(MemoryStore(), requests=4, uploads=4)


async def test_upload_limit_holds_on_average_and_gives_no_credit(autojump_clock: trio.testing.MockClock) -> None:
    slow = Slow()
    limited = Limited(slow, upload_limit=1000)
    await trio.sleep(3600)
    started_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(limited.put, f"{number}", b"x" * 5000)
    assert [time_s - started_s for time_s in slow.put_times_s] == pytest.approx([5 * number for number in range(10)])


async def test_heartbeat_does_not_wait_for_the_rate(autojump_clock: trio.testing.MockClock) -> None:
    limited = Limited(Slow(), upload_limit=1000)
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(limited.put, f"{number}", b"x" * 1_000_000)
        await trio.testing.wait_all_tasks_blocked()
        started_s = trio.current_time()
        await limited.put_if("state", b"alive", None)
        assert trio.current_time() - started_s == pytest.approx(1)
        nursery.cancel_scope.cancel()


async def test_byte_budget_is_first_come_first_served_and_lets_one_giant_alone() -> None:
    budget = ByteBudget(100)
    order: list[int] = []

    async def hold(n_bytes: int) -> None:
        await budget.acquire(n_bytes)
        order.append(n_bytes)

    await budget.acquire(60)
    async with trio.open_nursery() as nursery:
        for n_bytes in (50, 10, 500):
            nursery.start_soon(hold, n_bytes)
            await trio.testing.wait_all_tasks_blocked()
        assert order == []
        budget.release(60)
        await trio.testing.wait_all_tasks_blocked()
        assert order == [50, 10]
        budget.release(60)
    assert order == [50, 10, 500]
    assert budget.used_bytes == 500


async def test_admission_is_given_back_when_the_thread_ends_not_when_its_caller_leaves() -> None:
    threads, budget = trio.CapacityLimiter(1), ByteBudget(1 << 30)
    go = threading.Event()

    async def run() -> None:
        admission = Admission(threads, budget, FREE_BYTES + 1)
        await trio.to_thread.run_sync(go.wait, limiter=admission, abandon_on_cancel=True)  # type: ignore[arg-type]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert (threads.borrowed_tokens, budget.used_bytes) == (1, FREE_BYTES + 1)
    go.set()
    with trio.fail_after(5):
        await threads.acquire_on_behalf_of("next")
    assert budget.used_bytes == 0


async def test_admission_cancelled_while_waiting_for_a_thread_gives_the_bytes_back() -> None:
    threads, budget = trio.CapacityLimiter(1), ByteBudget(1 << 30)
    await threads.acquire_on_behalf_of("other")
    with trio.move_on_after(0.01):
        await Admission(threads, budget, FREE_BYTES * 2).acquire_on_behalf_of("me")
    assert budget.used_bytes == 0


def test_delays_stay_within_the_policy() -> None:
    policy = RetryPolicy(base_s=0.5, cap_s=60)
    chance = random.Random(7)
    delays = [policy.delay_s(failures, chance.random()) for failures in range(1, 5000)]
    assert max(delays) < 60
    assert 28 < sum(delays[100:]) / len(delays[100:]) < 32
    assert policy.delay_s(1, 0.999) < 0.5


@pytest.mark.parametrize("key", ["a", "a/b.c", "..a", "a..", "x" * 255, "é" * 127])
def test_usable_keys(key: str) -> None:
    assert check_key(key) == key
