"""Stores that fail: Retrying over scripted faults, and S3Store over a server that misbehaves on the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from sessfs.errors import RemoteConflict, RemoteDenied, RemoteUnavailable
from sessfs.remote.objectstore import Limited, ObjectStore, iter_keys
from sessfs.remote.probe import probe
from sessfs.remote.retrying import Health, Retrying, RetryPolicy
from tests.support import faultystore
from tests.support.faultystore import Fault, FaultyStore
from tests.support.memorystore import MemoryStore
from tests.support.storeacts import ACTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@pytest.fixture
async def faulty() -> FaultyStore:
    memory = MemoryStore()
    await memory.put("there", b"old")
    return FaultyStore(memory)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("make_fault", faultystore.PASSING)
@pytest.mark.parametrize(("method", "act"), ACTS)
async def test_passing_fault_is_survived(
    faulty: FaultyStore,
    method: str,
    act: Callable[[ObjectStore], Awaitable[object]],
    make_fault: Callable[..., Fault],
    after: bool,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Also twice in a row, and whether or not the failed request had its effect."""
    faulty.plan(method, make_fault(after=after), make_fault(after=after))
    store = Retrying(faulty)
    assert await act(store)
    assert store.statistics().retries == 2
    assert store.health.report().state == "ok"


@pytest.mark.parametrize(("method", "act"), ACTS)
async def test_vanished_bucket_is_not_retried_and_shown(
    faulty: FaultyStore, method: str, act: Callable[[ObjectStore], Awaitable[object]]
) -> None:
    faulty.always(faultystore.bucket_gone())
    store = Retrying(faulty)
    with pytest.raises(RemoteDenied, match="bucket does not exist"):
        await act(store)
    assert len(faulty.calls) == 1
    report = store.health.report()
    assert (report.state, report.needs_person) == ("degraded", True)
    assert "bucket does not exist" in str(report)


async def test_lost_reply_then_anothers_write_is_a_conflict(
    faulty: FaultyStore, autojump_clock: trio.testing.MockClock
) -> None:
    """The write happened, but somebody replaced it before the retry: the caller does not hold the object."""
    inner = faulty

    class Intruder(FaultyStore):
        async def put_if(self, key: str, body: bytes, etag: str | None) -> str:
            try:
                return await inner.put_if(key, body, etag)
            finally:
                if inner.count("put_if") == 1:
                    await inner.put(key, b"intruder")

    inner.plan("put_if", faultystore.timeout(after=True))
    with pytest.raises(RemoteConflict):
        await Retrying(Intruder(inner)).put_if("new", b"mine", None)
    assert (await inner.get("new")).body == b"intruder"


async def test_lost_reply_then_deletion_is_a_conflict(
    faulty: FaultyStore, autojump_clock: trio.testing.MockClock
) -> None:
    faulty.plan("put_if", faultystore.timeout(), Fault(RemoteConflict("412")))
    with pytest.raises(RemoteConflict):
        await Retrying(faulty).put_if("new", b"mine", None)


async def test_conflict_without_a_lost_reply_is_not_read_back(faulty: FaultyStore) -> None:
    """The same bytes of another writer are not mistaken for one's own."""
    with pytest.raises(RemoteConflict):
        await Retrying(faulty).put_if("there", b"old", None)
    assert faulty.count("get") == 0


async def test_read_back_survives_faults_too(faulty: FaultyStore, autojump_clock: trio.testing.MockClock) -> None:
    faulty.plan("put_if", faultystore.timeout(after=True))
    faulty.plan("get", faultystore.error_500(), faultystore.slow_down(3))
    etag = await Retrying(faulty).put_if("new", b"mine", None)
    assert etag == (await faulty.get("new")).etag


async def test_back_off_grows_with_full_jitter_up_to_the_cap(faulty: FaultyStore) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await trio.lowlevel.checkpoint()

    faulty.plan("get", *[faultystore.timeout()] * 9)
    policy = RetryPolicy(base_s=1.0, cap_s=20.0)
    await Retrying(faulty, policy, sleep=sleep, chance=lambda: 0.5).get("there")
    assert slept == [0.5, 1, 2, 4, 8, 10, 10, 10, 10]


async def test_retry_after_holds_back_all_requests(faulty: FaultyStore, autojump_clock: trio.testing.MockClock) -> None:
    """One answer of 503 with Retry-After, and no other request of this process starts before the time is over."""
    started = trio.current_time()
    store = Retrying(faulty)
    faulty.plan("put", faultystore.slow_down(30))
    times: list[float] = []

    async def late_read() -> None:
        await trio.sleep(1)
        await store.get("there")
        times.append(trio.current_time() - started)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.put, "new", b"x")
        nursery.start_soon(late_read)
    assert times[0] >= 30
    assert faulty.count("put") == 2


async def test_absurd_retry_after_is_capped(faulty: FaultyStore, autojump_clock: trio.testing.MockClock) -> None:
    started = trio.current_time()
    faulty.plan("get", faultystore.slow_down(1e6))
    await Retrying(faulty).get("there")
    assert trio.current_time() - started <= 301


async def test_ten_minutes_of_slow_down_make_no_storm_and_end_well(
    faulty: FaultyStore, autojump_clock: trio.testing.MockClock
) -> None:
    """64 uploads at once; public bug 84."""
    store = Retrying(Limited(faulty))
    faulty.always(faultystore.slow_down())
    async with trio.open_nursery() as nursery:
        for number in range(64):
            nursery.start_soon(store.put, f"up/{number}", b"x")
        await trio.sleep(600)
        assert store.health.report().state == "degraded"
        assert store.health.report().for_s > 590
        assert "SlowDown" in str(store.health.report())
        # Each waits 30 s on average once the back-off is at its cap, after some ten quicker tries.
        assert len(faulty.calls) < 64 * 40
        faulty.heal()
    assert len([entry async for entry in iter_keys(faulty, "up/")]) == 64
    assert store.health.report().state == "ok"


async def test_deadline_gives_the_last_error(faulty: FaultyStore, autojump_clock: trio.testing.MockClock) -> None:
    faulty.always(faultystore.reset())
    store = Retrying(faulty)
    started = trio.current_time()
    with pytest.raises(RemoteUnavailable, match="connection reset"):
        await store.within(20).get("there")
    assert trio.current_time() - started <= 20
    assert store.statistics().retries > 0
    faulty.heal()
    assert (await store.within(20).get("there")).body == b"old"


async def test_cancelling_ends_the_retries(faulty: FaultyStore, autojump_clock: trio.testing.MockClock) -> None:
    faulty.always(faultystore.timeout())
    with trio.move_on_after(3600) as scope:
        await Retrying(faulty).put("new", b"x")
    assert scope.cancelled_caught


async def test_stalled_store_is_left_by_cancelling(faulty: FaultyStore, autojump_clock: trio.testing.MockClock) -> None:
    faulty.always(Fault(stall=True))
    with trio.move_on_after(5) as scope:
        await Retrying(Limited(faulty)).get("there")
    assert scope.cancelled_caught


async def test_damaged_body_passes_through_for_the_hash_to_find(faulty: FaultyStore) -> None:
    faulty.plan("get", Fault(damage=lambda body: body[:-1] + b"!"))
    assert (await Retrying(faulty).get("there")).body == b"ol!"


async def test_interrupted_listing_raises_instead_of_ending(faulty: FaultyStore) -> None:
    """A collector that takes a broken listing for a short one deletes live data."""
    for number in range(5):
        await faulty.put(f"many/{number}", b"")
    faulty.plan("list_page", None, faultystore.bucket_gone())
    listing = iter_keys(Retrying(faulty), "many/", page=2)
    assert [(await anext(listing)).key, (await anext(listing)).key] == ["many/0", "many/1"]
    with pytest.raises(RemoteDenied):
        await anext(listing)


@pytest.mark.parametrize("method", ["get", "put", "put_if", "list_page", "delete"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_probe_survives_passing_faults(
    faulty: FaultyStore, method: str, after: bool, autojump_clock: trio.testing.MockClock
) -> None:
    faulty.plan(method, *[faultystore.reset(after=after)] * 3)
    assert (await probe(Retrying(faulty))).conditional_writes is True
    assert [entry.key for entry in await faulty.list_page("")] == ["there"]


async def test_health_tells_time_in_its_state(autojump_clock: trio.testing.MockClock) -> None:
    health = Health()
    assert health.report().state == "unknown"
    health.failed(RemoteUnavailable("it broke"))
    await trio.sleep(30)
    assert str(health.report()) == "degraded for 30 s: it broke"
    health.note("clock", "off by 5 s")
    health.answered()
    assert str(health.report()) == "ok; off by 5 s"
