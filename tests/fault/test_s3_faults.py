"""S3Store over a server that misbehaves on the wire; boto3 and HTTP are real."""

from __future__ import annotations

import contextlib
import re
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from sessfs.errors import RemoteCorrupt, RemoteDenied, RemoteMissing, RemoteUnavailable
from sessfs.remote.objectstore import ObjectStore, RemoteBusy, iter_keys
from sessfs.remote.retrying import RetryPolicy
from sessfs.remote.urls import Remote, RemoteSettings, open_remote
from sessfs.sync.fsck_remote import Sampling, check_remote
from sessfs.sync.gc import Options, collect
from tests.support.bucket import HASH_KEY, PLAIN, Writer
from tests.support.s3stub import Reply, Reset, Stall, Stub, Truncated, serving_stub
from tests.support.storeacts import ACTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

pytest_plugins = ["tests.support.s3fixtures"]

QUICK = RetryPolicy(base_s=0.01, cap_s=0.05)


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


LISTED = "<ListBucketResult><IsTruncated>true</IsTruncated><EncodingType>url</EncodingType>{}</ListBucketResult>"


@pytest.mark.parametrize("pages", [(0,), (0, 0, 0), (3, 0, 2), (0, 7, 0, 0, 1), (5,)], ids=str)
@pytest.mark.parametrize("limit", [1, 4, 1000])
async def test_s3_listing_goes_on_by_the_tokens_it_was_given(stub: Stub, pages: tuple[int, ...], limit: int) -> None:
    """Pages may be empty, or shorter than asked for; a key is a place to go on from only where there is no token."""
    names = [f"a/{number:03d}" for number in range(20)]
    stub.objects.update((f"p/{name}", b"") for name in names)
    stub.pages = pages
    async with open_stub(stub) as remote:
        with trio.fail_after(20):
            assert [entry.key async for entry in iter_keys(remote.store, "a/", limit)] == names
        asked = [seen.path for seen in stub.seen]
        assert not any("start-after" in path and "continuation-token" in path for path in asked)
        assert any("continuation-token" in path for path in asked) is (pages[0] < limit)


async def test_s3_empty_page_that_does_not_say_how_to_go_on_is_not_the_end(stub: Stub) -> None:
    """Nor is one with the token that was asked with: that listing never ends."""
    stub.objects["p/k"] = b""
    endless = LISTED.format("<NextContinuationToken>again</NextContinuationToken>")
    for bodies in ([LISTED.format("")], [endless, endless]):
        stub.plan.extend(Reply(200, body=body.encode()) for body in bodies)
        async with open_stub(stub) as remote:
            with trio.fail_after(20):
                assert [entry.key for entry in await remote.store.list_page("")] == ["k"]
            assert remote.store.statistics().retries == 1


@pytest.mark.parametrize("pages", [(0,), (0, 0), (1, 0)], ids=str)
async def test_s3_with_empty_first_pages_serves_a_node_a_check_and_a_collection(
    stub: Stub, pages: tuple[int, ...]
) -> None:
    stub.pages = pages
    async with open_stub(stub) as remote:
        first = Writer(remote.store, "a", lambda: 1e9)
        await first.start()
        first.write(b"s", b"f", [b"content"])
        await first.release()
        second = Writer(remote.store, "b", lambda: 1e9)
        await second.start()
        assert second.sessions == {b"s": {b"f": [b"content"]}}
        assert (await check_remote(remote.store, PLAIN, HASH_KEY, Sampling(1.0, b""))).clean
        await second.release()
        for run in ("one", "two"):
            assert (await collect(remote.store, PLAIN, Options(run, 0.0))).sessions == 1


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
    """At once is: long before the server answers or the request's own time is over."""
    stub.plan.append(Stall(300.0))
    async with open_stub(stub, read_timeout_s=300.0) as remote:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(remote.store.get, "k")
                assert await trio.to_thread.run_sync(stub.stalls.wait, 50)
                nursery.cancel_scope.cancel()
            with pytest.raises(RemoteMissing):
                await remote.store.get("k")


async def test_s3_put_makes_no_copy_of_the_body(request: pytest.FixtureRequest) -> None:
    """Memory stays bounded by the bodies that callers hold; one copy of each had crept in once."""
    endpoint = request.getfixturevalue("s3_endpoint")("rclone")
    endpoint.make_bucket("memory-of-puts")
    body = b"x" * (24 << 20)
    async with open_remote(endpoint.settings("memory-of-puts"), QUICK) as remote:
        await remote.store.put("warm-up", b"")
        tracemalloc.start()
        try:
            await remote.store.put("large", body)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak_bytes < 6 << 20
