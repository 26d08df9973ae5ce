"""Stores that fail: Retrying over scripted faults, and S3Store over a server that misbehaves on the wire."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from sessfs.errors import RemoteConflict, RemoteCorrupt, RemoteDenied, RemoteMissing, RemoteUnavailable
from sessfs.remote.objectstore import Limited, ObjectStore, RemoteBusy, iter_keys
from sessfs.remote.probe import probe
from sessfs.remote.retrying import Health, Retrying, RetryPolicy
from sessfs.remote.urls import Remote, RemoteSettings, open_remote
from tests.support import faultystore
from tests.support.faultystore import Fault, FaultyStore
from tests.support.memorystore import MemoryStore
from tests.support.s3stub import Reply, Reset, Stall, Stub, Truncated, serving_stub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

pytest_plugins = ["tests.support.s3fixtures"]

QUICK = RetryPolicy(base_s=0.01, cap_s=0.05)

# Each does one thing to a store that holds {"there": b"old"}, and says what has to be true at the end.
Act = "Callable[[ObjectStore], Awaitable[object]]"


async def _get(store: ObjectStore) -> object:
    return (await store.get("there")).body == b"old"


async def _put(store: ObjectStore) -> object:
    etag = await store.put("new", b"body")
    return (await store.get("new")) == type(await store.get("new"))(b"body", etag)


async def _put_if_absent(store: ObjectStore) -> object:
    etag = await store.put_if("new", b"body 1", None)
    blob = await store.get("new")
    return (blob.body, blob.etag) == (b"body 1", etag)


async def _put_if_etag(store: ObjectStore) -> object:
    etag = await store.put_if("there", b"body 2", (await store.get("there")).etag)
    blob = await store.get("there")
    return (blob.body, blob.etag) == (b"body 2", etag)


async def _list(store: ObjectStore) -> object:
    return [entry.key for entry in await store.list_page("")] == ["there"]


async def _delete(store: ObjectStore) -> object:
    await store.delete(["there", "never"])
    return await store.list_page("") == []


ACTS = [
    ("get", _get),
    ("put", _put),
    ("put_if", _put_if_absent),
    ("put_if", _put_if_etag),
    ("list_page", _list),
    ("delete", _delete),
]


@pytest.fixture
async def faulty() -> FaultyStore:
    memory = MemoryStore()
    await memory.put("there", b"old")
    return FaultyStore(memory)


@pytest.fixture
def aws(aws_environment: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    return aws_environment


@pytest.fixture
def stub(aws: pytest.MonkeyPatch) -> Iterator[Stub]:
    with serving_stub() as serving:
        yield serving


@contextlib.asynccontextmanager
async def open_stub(stub: Stub, policy: RetryPolicy = QUICK, **changes: float) -> AsyncIterator[Remote]:
    settings = RemoteSettings("s3://bucket/p", endpoint_url=stub.url, read_timeout_s=1.0)
    async with open_remote(replace(settings, **changes), policy) as remote:
        yield remote


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


# From here on: S3Store, boto3 and HTTP are real.


WIRE = (
    Reply(503, "SlowDown"),
    Reply(503, "SlowDown", (("Retry-After", "0"),)),
    Reply(500, "InternalError"),
    Reply(500, "InternalError", effect=True),
    Reply(502, body=b"<html>Bad gateway</html>"),
    Reply(404, body=b"<html>not here</html>"),
    Reply(400, "RequestTimeout"),
    Reply(409, "ConditionalRequestConflict"),
    Reply(429, "TooManyRequests"),
    Reset(),
    Reset(effect=True),
    Stall(0.4),
    Stall(0.4, effect=True),
)


@pytest.mark.parametrize(("method", "act"), ACTS)
async def test_s3_survives_the_wire(stub: Stub, method: str, act: Callable[[ObjectStore], Awaitable[object]]) -> None:
    async with open_stub(stub, read_timeout_s=0.3) as remote:
        for number, misbehaviour in enumerate(WIRE, 1):
            stub.objects.clear()
            stub.objects["p/there"] = b"old"
            stub.plan.append(misbehaviour)
            with trio.fail_after(20):
                assert await act(remote.store), misbehaviour
            assert remote.store.statistics().retries == number
            assert remote.health().state == "ok"


async def test_s3_truncated_body_is_read_again(stub: Stub) -> None:
    stub.objects["p/k"] = bytes(range(256)) * 64
    stub.plan.extend([Truncated(), Truncated()])
    async with open_stub(stub) as remote:
        assert (await remote.store.get("k")).body == stub.objects["p/k"]
        assert remote.store.statistics().retries == 2
        stub.plan.append(Truncated())
        assert (await remote.store.get("k", 100, 1000)).body == stub.objects["p/k"][100:1100]


async def test_s3_truncated_listing_is_not_a_short_one(stub: Stub) -> None:
    stub.objects |= {f"p/{number:03}": b"" for number in range(50)}
    stub.plan.append(Truncated())
    async with open_stub(stub) as remote:
        assert len(await remote.store.list_page("")) == 50


@pytest.mark.parametrize("body", [b"", b"<html></html>", b'<?xml version="1.0"?><ListBucketResult></ListBucketResult>'])
async def test_s3_foreign_listing_is_not_an_empty_one(stub: Stub, body: bytes) -> None:
    stub.objects["p/k"] = b""
    stub.plan.append(Reply(200, body=body))
    async with open_stub(stub) as remote:
        assert [entry.key for entry in await remote.store.list_page("")] == ["k"]


async def test_s3_retry_after_is_obeyed(stub: Stub) -> None:
    stub.objects["p/k"] = b"x"
    stub.plan.append(Reply(503, "SlowDown", (("Retry-After", "1"),)))
    async with open_stub(stub) as remote:
        await remote.store.get("k")
    first, second = stub.seen
    assert second.at_s - first.at_s >= 1


async def test_s3_busy_error_carries_retry_after(stub: Stub) -> None:
    stub.plan.append(Reply(503, "SlowDown", (("Retry-After", "7"),)))
    async with open_stub(stub) as remote:
        with pytest.raises(RemoteBusy) as caught:
            await remote.within(0).get("k")
    assert caught.value.retry_after_s == 7


async def test_s3_ignored_range_is_cut_here(stub: Stub) -> None:
    stub.objects["p/k"] = b"0123456789"
    stub.ranges = False
    async with open_stub(stub) as remote:
        assert (await remote.store.get("k", 3, 4)).body == b"3456"
        assert (await remote.store.get("k", 7)).body == b"789"
        with pytest.raises(RemoteCorrupt):
            await remote.store.get("k", 8, 4)


async def test_s3_wrong_range_is_corrupt(stub: Stub) -> None:
    stub.plan.append(Reply(206, headers=(("Content-Range", "bytes 0-1/9"), ("ETag", '"e"')), body=b"01"))
    async with open_stub(stub) as remote:
        with pytest.raises(RemoteCorrupt, match="bytes 0-1/9"):
            await remote.store.get("k", 3, 2)


async def test_s3_sends_only_what_the_strictest_store_takes(stub: Stub) -> None:
    """Public bugs 78 and 79: no checksum trailers, and Content-MD5 where DeleteObjects must have a checksum."""
    async with open_stub(stub) as remote:
        for number in range(3):
            await remote.store.put(f"k{number}", b"x" * 100_000)
        await remote.store.delete(["k0", "k1"])
        await remote.store.put("large", b"x" * (3 << 20))
        assert list(stub.objects) == ["p/k2", "p/large"]
        assert remote.capabilities().delete_batch is True
    assert stub.count("POST") == 1
    put = stub.seen[0].headers
    assert put["content-length"] == "100000"
    assert "expect" not in put
    assert all(len(seen.headers["x-amz-content-sha256"]) == 64 for seen in stub.seen)


async def test_s3_deletes_singly_where_batches_are_refused(stub: Stub) -> None:
    stub.delete_batch = False
    stub.objects |= {f"p/{number}": b"" for number in range(4)}
    async with open_stub(stub) as remote:
        await remote.store.delete(["0", "1", "absent"])
        assert remote.capabilities().delete_batch is False
        await remote.store.delete(["2", "3"])
    assert stub.objects == {}
    assert stub.count("POST") == 1


async def test_s3_refusal_within_a_batch_is_raised(stub: Stub) -> None:
    refusal = b"<DeleteResult><Error><Key>p/1</Key><Code>%s</Code><Message>no</Message></Error></DeleteResult>"
    async with open_stub(stub) as remote:
        stub.plan.append(Reply(200, body=refusal % b"AccessDenied"))
        with pytest.raises(RemoteDenied, match="p/1"):
            await remote.store.delete(["0", "1"])
        stub.plan.append(Reply(200, body=refusal % b"InternalError"))
        await remote.store.delete(["0", "1"])
    assert remote.store.statistics().retries == 1


async def test_s3_forbidden_object_is_denied_not_missing(stub: Stub) -> None:
    async with open_stub(stub) as remote:
        stub.plan.append(Reply(403, "AccessDenied"))
        with pytest.raises(RemoteDenied, match="rights"):
            await remote.store.get("k")
        with pytest.raises(RemoteMissing):
            await remote.store.get("k")


async def test_s3_bucket_that_disappears_and_returns(stub: Stub) -> None:
    async with open_stub(stub) as remote:
        await remote.store.put("k", b"x")
        stub.bucket_exists = False
        with pytest.raises(RemoteDenied, match="bucket does not exist"):
            await remote.store.list_page("")
        assert remote.health().needs_person
        stub.bucket_exists = True
        assert len(await remote.store.list_page("")) == 1
        assert remote.health().state == "ok"


async def test_s3_expired_credentials_are_read_again(stub: Stub, aws: pytest.MonkeyPatch) -> None:
    async with open_stub(stub) as remote:
        await remote.store.put("a", b"1")
        stub.known_keys = {"sessfs-test": "ExpiredToken", "renewed": ""}
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(remote.store.put, f"b{number}", b"2")
            await trio.sleep(0.3)
            assert remote.health().state == "degraded"
            assert "expired" in str(remote.health())
            assert not remote.health().needs_person
            aws.setenv("AWS_ACCESS_KEY_ID", "renewed")
        assert len(stub.objects) == 6
        assert remote.health().state == "ok"


async def test_s3_rotated_key_is_denied_then_found(stub: Stub, aws: pytest.MonkeyPatch) -> None:
    async with open_stub(stub) as remote:
        stub.known_keys = {"rotated": ""}
        with pytest.raises(RemoteDenied, match="access key"):
            await remote.store.put("a", b"1")
        aws.setenv("AWS_ACCESS_KEY_ID", "rotated")
        await remote.store.put("a", b"1")


async def test_s3_without_credentials_is_denied_then_found(stub: Stub, aws: pytest.MonkeyPatch) -> None:
    key = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
    for name in key:
        aws.delenv(name)
    async with open_stub(stub) as remote:
        with pytest.raises(RemoteDenied, match="credentials"):
            await remote.store.put("a", b"1")
        for name in key:
            aws.setenv(name, "sessfs-test")
        await remote.store.put("a", b"1")


@pytest.mark.parametrize("ahead_s", [-1200.0, 1200.0, 86400.0 * 400])
async def test_s3_clock_skew_is_named_and_corrected(stub: Stub, ahead_s: float) -> None:
    """Public bug 82."""
    stub.clock_ahead_s = ahead_s
    async with open_stub(stub) as remote:
        await remote.store.put("a", b"1")
        await remote.store.put("b", b"2")
        assert remote.store.statistics().retries == 1
        off_s = re.search(r"off by (\d+) s", str(remote.health()))
        assert off_s is not None
        assert abs(int(off_s[1]) - abs(ahead_s)) <= 2
        stub.clock_ahead_s = 0
        await remote.store.put("c", b"3")
        assert remote.health().notes == ()
    assert len(stub.objects) == 3


async def test_s3_nothing_listens_then_it_does(aws: pytest.MonkeyPatch) -> None:
    """Public bugs 41 and 58: opening needs no network, and requests wait for the store to come."""
    with serving_stub() as gone:
        url = gone.url
    settings = RemoteSettings("s3://bucket/p", endpoint_url=url, connect_timeout_s=1.0)
    async with open_remote(settings, QUICK) as remote:
        with pytest.raises(RemoteUnavailable):
            await remote.within(0.2).get("k")
        assert remote.health().state == "degraded"
        assert not remote.health().needs_person


async def test_s3_unknown_host_is_unavailable(aws: pytest.MonkeyPatch) -> None:
    settings = RemoteSettings("s3://bucket/p", endpoint_url="http://no-such-host.invalid:9")
    async with open_remote(settings, QUICK) as remote:
        with pytest.raises(RemoteUnavailable):
            await remote.within(0.1).list_page("")


async def test_s3_cold_start_with_64_uploads_uses_one_client(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    """Public bug 83: no client made in threads, and a pool that holds as many connections as there are threads."""
    async with open_stub(stub) as remote, trio.open_nursery() as nursery:
        for number in range(64):
            nursery.start_soon(remote.store.put, f"k{number:02}", b"x" * 1000)
    assert len(stub.objects) == 64
    assert "discarding connection" not in caplog.text


async def test_s3_cancelled_request_returns_at_once(stub: Stub) -> None:
    stub.plan.append(Stall(1.0))
    async with open_stub(stub) as remote:
        with trio.move_on_after(0.2):
            await remote.store.get("k")
        with trio.fail_after(0.5), pytest.raises(RemoteMissing):
            await remote.store.get("k")


async def test_health_tells_time_in_its_state(autojump_clock: trio.testing.MockClock) -> None:
    health = Health()
    assert health.report().state == "unknown"
    health.failed(RemoteUnavailable("it broke"))
    await trio.sleep(30)
    assert str(health.report()) == "degraded for 30 s: it broke"
    health.note("clock", "off by 5 s")
    health.answered()
    assert str(health.report()) == "ok; off by 5 s"
