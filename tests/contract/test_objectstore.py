"""What every object store has to do, run against each of them; servers are real ones."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import uuid
from typing import TYPE_CHECKING

import boto3
import pytest
import trio

from sessfs.errors import RemoteConflict, RemoteCorrupt, RemoteDenied, RemoteMissing, RemoteUnsuitable
from sessfs.remote.directory import DirectoryStore
from sessfs.remote.objectstore import KEY_MAX_BYTES, Limited, ObjectStore, iter_keys
from sessfs.remote.probe import probe
from sessfs.remote.retrying import Retrying, RetryPolicy
from sessfs.remote.urls import open_remote
from tests.support.memorystore import MemoryStore
from tests.support.s3servers import KEY_ID, SECRET

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.s3servers import Endpoint

pytest_plugins = ["tests.support.s3fixtures"]

LOCAL = ("memory", "directory", "wrapped")
SERVERS = ("rclone", "moto")
# A real server on this machine answers at once: what has to be repeated for long is a bug.
IMPATIENT = RetryPolicy(base_s=0.05, deadline_s=2.0)

WITH_CONDITIONS = (*LOCAL, "moto")

HARD_KEYS = (
    "nodes/7f/segments/00000000000000000012",
    "a",
    "a-b",
    "a0",
    "a.d/x",
    ".hidden",
    "deep/.dot/..name",
    "space and + plus %41 %",
    "ünïcödé/日本",
    "emoji/😀",
    "ctl/\x7f",
    "query?x=y&z#f",
    "quote'\"<&>",
    "backslash\\x",
    "long/" + "x" * 79 + "/" + "x" * 80 + "/" + "x" * 200,
    "sessions/" + "Ab_-" * 63 + "abc",
)


@contextlib.asynccontextmanager
async def open_store(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    if kind == "memory":
        yield MemoryStore()
    elif kind == "wrapped":
        yield Retrying(Limited(MemoryStore()))
    elif kind == "directory":
        yield DirectoryStore(tmp_path)
    else:
        endpoint = request.getfixturevalue("s3_endpoint")(kind)
        bucket = f"contract-{uuid.uuid4()}"
        endpoint.make_bucket(bucket)
        async with open_remote(endpoint.settings(bucket, "some/prefix"), IMPATIENT) as remote:
            yield remote.store


@pytest.fixture(params=[*LOCAL, *SERVERS])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    async with open_store(request.param, request, tmp_path) as opened:
        yield opened


@pytest.fixture(params=WITH_CONDITIONS)
async def cas_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    async with open_store(request.param, request, tmp_path) as opened:
        yield opened


async def test_get_after_put_gives_bytes_and_etag(store: ObjectStore) -> None:
    etag = await store.put("a/b", b"hello")
    blob = await store.get("a/b")
    assert blob.body == b"hello"
    assert blob.etag == etag
    assert '"' not in etag


async def test_put_over_another_body_replaces_it_and_its_etag(store: ObjectStore) -> None:
    first = await store.put("k", b"one")
    second = await store.put("k", b"three")
    assert first != second
    assert (await store.get("k")).body == b"three"


async def test_empty_object_is_an_object(store: ObjectStore) -> None:
    await store.put("empty", b"")
    assert (await store.get("empty")).body == b""
    assert [(entry.key, entry.size) for entry in await store.list_page("")] == [("empty", 0)]


async def test_large_body_comes_back_whole(store: ObjectStore) -> None:
    body = os.urandom(1 << 20) * 5 + b"tail"
    await store.put("large", body)
    assert (await store.get("large")).body == body
    assert (await store.get("large", len(body) - 4)).body == b"tail"


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 1, b"0"), (3, 4, b"3456"), (9, 1, b"9"), (4, None, b"456789"), (0, None, b"0123456789"), (0, 10, None)],
)
async def test_range_is_half_open(store: ObjectStore, start: int, length: int | None, expected: bytes | None) -> None:
    etag = await store.put("digits", b"0123456789")
    blob = await store.get("digits", start, length)
    assert blob.body == (expected or b"0123456789")
    assert blob.etag == etag


@pytest.mark.parametrize(("start", "length"), [(0, 11), (5, 6), (9, 2), (10, 1), (10, None), (4000, 10), (11, None)])
async def test_range_past_the_end_is_corrupt_not_short(store: ObjectStore, start: int, length: int | None) -> None:
    await store.put("digits", b"0123456789")
    with pytest.raises(RemoteCorrupt):
        await store.get("digits", start, length)


async def test_absent_key_is_missing(store: ObjectStore) -> None:
    await store.put("dir/there", b"x")
    for key in ("not-there", "dir/not-there", "dir", "dir/there2", "dir/there/below"):
        with pytest.raises(RemoteMissing):
            await store.get(key)
    with pytest.raises(RemoteMissing):
        await store.get("not-there", 2, 5)


async def test_hard_keys_come_back_from_get_and_list(store: ObjectStore) -> None:
    for key in HARD_KEYS:
        await store.put(key, key.encode())
    assert [entry.key for entry in await store.list_page("")] == sorted(HARD_KEYS)
    for key in HARD_KEYS:
        assert (await store.get(key)).body == key.encode()
    await store.delete(HARD_KEYS)
    assert await store.list_page("") == []


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "a/../b", ".", "a\0b", "x" * 256, "x/" * KEY_MAX_BYTES + "x"])
async def test_unusable_key_is_a_bug(store: ObjectStore, key: str) -> None:
    with pytest.raises(ValueError, match="not a usable object key"):
        await store.put(key, b"")
    with pytest.raises(ValueError, match="not a usable object key"):
        await store.get(key)
    with pytest.raises(ValueError, match="not a usable object key"):
        await store.delete(["fine", key])


async def test_list_gives_size_etag_and_time(store: ObjectStore) -> None:
    before_s = time.time()
    etag = await store.put("x/1", b"12345")
    (entry,) = await store.list_page("x/")
    assert (entry.key, entry.size, entry.etag) == ("x/1", 5, etag)
    assert before_s - 2 <= entry.mtime_s <= time.time() + 2


async def test_list_prefix_may_end_within_a_part(store: ObjectStore) -> None:
    for key in ("ab/1", "ab/2", "abc", "abd/1", "b"):
        await store.put(key, b"")
    assert [entry.key for entry in await store.list_page("ab")] == ["ab/1", "ab/2", "abc", "abd/1"]
    assert [entry.key for entry in await store.list_page("ab/")] == ["ab/1", "ab/2"]
    assert [entry.key for entry in await store.list_page("abc")] == ["abc"]
    assert await store.list_page("nothing/") == []


async def test_list_pages_in_order_without_gap_or_repetition(store: ObjectStore) -> None:
    keys = sorted(f"{top}/{name}" for top in ("a", "a-", "a0", "b") for name in ("1", "10", "2", "x-y", "é"))
    for key in keys:
        await store.put(key, b"")
    for limit in (1, 3, 20, 21):
        found: list[str] = []
        while page := await store.list_page("", found[-1] if found else "", limit):
            assert len(page) <= limit
            found += [entry.key for entry in page]
        assert found == keys
    assert [entry.key for entry in await store.list_page("a", "a/2")] == [key for key in keys if "b" > key > "a/2"]
    # A place to go on after need not be a key that exists.
    assert [entry.key for entry in await store.list_page("", "a/2zzz", 2)] == ["a/x-y", "a/é"]


async def test_iter_keys_gives_everything_by_pages(store: ObjectStore) -> None:
    keys = [f"n/{number:03}" for number in range(23)]
    for key in keys:
        await store.put(key, b"")
    assert [entry.key async for entry in iter_keys(store, "n/", page=7)] == keys
    assert [entry.key async for entry in iter_keys(store, "n/", page=23)] == keys
    assert [entry.key async for entry in iter_keys(store, "m/")] == []


async def test_delete_removes_only_what_is_named_and_ignores_what_is_absent(store: ObjectStore) -> None:
    for key in ("d/1", "d/2", "d/3"):
        await store.put(key, b"x")
    await store.delete(["d/1", "d/never", "d/3"])
    await store.delete(["d/1"])
    await store.delete([])
    assert [entry.key for entry in await store.list_page("")] == ["d/2"]
    with pytest.raises(RemoteMissing):
        await store.get("d/1")


async def test_key_can_be_written_again_after_deletion(store: ObjectStore) -> None:
    for body in (b"one", b"two"):
        await store.put("only/one/here", body)
        await store.delete(["only/one/here"])
    await store.put("only/one/here", b"three")
    assert (await store.get("only/one/here")).body == b"three"


async def test_prefix_hides_and_spares_what_is_outside(
    request: pytest.FixtureRequest, aws_environment: pytest.MonkeyPatch
) -> None:
    """Two remotes in one bucket, one's prefix being the beginning of the other's."""
    for name in SERVERS:
        endpoint = request.getfixturevalue("s3_endpoint")(name)
        bucket = f"prefix-{uuid.uuid4()}"
        endpoint.make_bucket(bucket)
        async with (
            open_remote(endpoint.settings(bucket, "pre"), IMPATIENT) as one,
            open_remote(endpoint.settings(bucket, "prefix"), IMPATIENT) as two,
            open_remote(endpoint.settings(bucket, ""), IMPATIENT) as whole,
        ):
            await one.store.put("k", b"1")
            await two.store.put("k", b"2")
            assert (await one.store.get("k")).body == b"1"
            assert [entry.key for entry in await one.store.list_page("")] == ["k"]
            assert [entry.key for entry in await whole.store.list_page("")] == ["pre/k", "prefix/k"]
            await one.store.delete(["k"])
            assert [entry.key for entry in await whole.store.list_page("")] == ["prefix/k"]


async def test_absent_bucket_is_denied_for_every_method(request: pytest.FixtureRequest) -> None:
    """Neither an empty listing nor a missing key: nothing is known of what is in it."""
    for name in SERVERS:
        endpoint = request.getfixturevalue("s3_endpoint")(name)
        async with open_remote(endpoint.settings("no-such-bucket"), IMPATIENT) as remote:
            for attempt in (
                lambda store: store.get("k"),
                lambda store: store.put("k", b""),
                lambda store: store.put_if("k", b"", None),
                lambda store: store.put_if("k", b"", "0123"),
                lambda store: store.list_page(""),
                lambda store: store.delete(["k", "l"]),
            ):
                with pytest.raises(RemoteDenied, match="bucket does not exist"):
                    await attempt(remote.store)
            assert remote.health().needs_person
            assert "create it" in str(remote.health())


async def test_wrong_secret_is_denied(request: pytest.FixtureRequest, aws_environment: pytest.MonkeyPatch) -> None:
    endpoint = request.getfixturevalue("s3_endpoint")("rclone")
    aws_environment.setenv("AWS_SECRET_ACCESS_KEY", "another")
    async with open_remote(endpoint.settings("some-bucket"), IMPATIENT) as remote:
        with pytest.raises(RemoteDenied, match="secret key"):
            await remote.store.get("k")


async def test_put_if_absent_succeeds_once(cas_store: ObjectStore) -> None:
    etag = await cas_store.put_if("c", b"mine", None)
    with pytest.raises(RemoteConflict):
        await cas_store.put_if("c", b"yours", None)
    blob = await cas_store.get("c")
    assert (blob.body, blob.etag) == (b"mine", etag)


async def test_put_if_etag_follows_the_chain(cas_store: ObjectStore) -> None:
    etags = [await cas_store.put_if("c", b"0", None)]
    for number in range(1, 4):
        etags.append(await cas_store.put_if("c", b"%d" % number, etags[-1]))
    assert len(set(etags)) == 4
    for stale in etags[:-1]:
        with pytest.raises(RemoteConflict):
            await cas_store.put_if("c", b"late", stale)
    assert (await cas_store.get("c")).body == b"3"


async def test_put_if_etag_on_an_absent_key_conflicts(cas_store: ObjectStore) -> None:
    etag = await cas_store.put("c", b"x")
    await cas_store.delete(["c"])
    with pytest.raises(RemoteConflict):
        await cas_store.put_if("c", b"y", etag)
    with pytest.raises(RemoteMissing):
        await cas_store.get("c")


async def test_put_if_races_have_one_winner_each(cas_store: ObjectStore) -> None:
    """Counters incremented by read and compare-and-swap lose no increment."""
    await cas_store.put_if("counter", b"0 start", None)
    won = itertools.count()

    async def increment(name: str) -> None:
        done = 0
        while done < 4:
            blob = await cas_store.get("counter")
            value = int(blob.body.split()[0])
            try:
                await cas_store.put_if("counter", f"{value + 1} {name}{done}".encode(), blob.etag)
            except RemoteConflict:
                continue
            done += 1
            next(won)

    async with trio.open_nursery() as nursery:
        for name in "abcd":
            nursery.start_soon(increment, name)
    assert (await cas_store.get("counter")).body.startswith(b"16 ")
    assert next(won) == 16


async def test_statistics_count_what_was_done(store: ObjectStore) -> None:
    await store.put("s", b"12345")
    await store.get("s", 1, 2)
    await store.list_page("")
    with contextlib.suppress(RemoteMissing):
        await store.get("absent")
    await store.delete(["s"])
    counts = store.statistics()
    assert counts.requests == {"put": 1, "get": 2, "list": 1, "delete": 1}
    assert counts.errors == {"RemoteMissing": 1}
    assert (counts.bytes_up, counts.bytes_down, counts.in_flight, counts.retries) == (5, 2, 0, 0)


async def test_probe_finds_conditional_writes_and_leaves_nothing(cas_store: ObjectStore) -> None:
    assert (await probe(cas_store)).conditional_writes is True
    assert await cas_store.list_page("") == []


async def test_probe_finds_ignored_conditions(request: pytest.FixtureRequest) -> None:
    endpoint = request.getfixturevalue("s3_endpoint")("rclone")
    bucket = f"probe-{uuid.uuid4()}"
    endpoint.make_bucket(bucket)
    async with open_remote(endpoint.settings(bucket), IMPATIENT) as remote:
        assert remote.capabilities().conditional_writes is None
        found = await remote.probe()
        assert found.conditional_writes is False
        assert found.delete_batch is True
        assert found.addressing == "path"
        assert remote.capabilities() == found
        assert await remote.store.list_page("") == []


@pytest.mark.parametrize("conditions", ["ignored", "refused", "kept if there"])
async def test_probe_finds_stores_without_conditions(conditions: str) -> None:
    memory = MemoryStore(conditions)
    assert (await probe(memory)).conditional_writes is False
    assert memory.objects == {}


async def test_old_versions_are_deleted_where_a_bucket_keeps_them(
    s3_endpoint: Callable[[str], Endpoint],
) -> None:
    endpoint, bucket = s3_endpoint("moto"), f"versions-{uuid.uuid4()}"
    endpoint.make_bucket(bucket)
    client = boto3.session.Session(KEY_ID, SECRET, region_name="us-east-1").client("s3", endpoint_url=endpoint.url)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    async with open_remote(endpoint.settings(bucket, "some/prefix"), IMPATIENT) as remote:
        for body in (b"one", b"two"):
            for key in ("nodes/a", "nodes/b", "sessions/x"):
                await remote.store.put(key, body)
        await remote.store.delete(["nodes/b"])
        assert await remote.store.delete_old_versions(lambda key: key.startswith("nodes/")) == 4
        assert (await remote.store.get("nodes/a")).body == b"two"
    left = client.list_object_versions(Bucket=bucket)
    assert sorted((one["Key"], one["IsLatest"]) for one in left["Versions"]) == [
        ("some/prefix/nodes/a", True),
        ("some/prefix/sessions/x", False),
        ("some/prefix/sessions/x", True),
    ]
    assert "DeleteMarkers" not in left
    client.close()


async def test_stores_without_versions_have_no_old_ones(store: ObjectStore, request: pytest.FixtureRequest) -> None:
    await store.put("k", b"one")
    await store.put("k", b"two")
    try:
        assert await store.delete_old_versions(lambda key: True) == 0
    except (RemoteUnsuitable, RemoteDenied):
        assert "rclone" in request.node.name
