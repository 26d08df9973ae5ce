"""What a node does about lost objects: the holder, states, the roster, objects of sessions; and what is no loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import msgspec
import pytest
import trio

from sessfs.errors import RemoteCorrupt, RemoteMissing, RemoteUnsuitable
from sessfs.format.repository import (
    FORMAT_KEY,
    HOLDER_KEY,
    decode_session_object,
    decode_state,
    encode_format,
    encode_state,
    new_format,
)
from sessfs.format.roster import ROSTER_KEY, decode_roster
from sessfs.format.segment import segment_key, session_key, state_key
from sessfs.mount.repository import CachedState, open_repository
from sessfs.remote.node import Identity, Node, open_node
from sessfs.sync.bucket import open_bucket
from sessfs.sync.erasing_evidence import present_sessions
from sessfs.sync.fsck_remote import Sampling, check_remote
from sessfs.sync.gc import Options, collect
from sessfs.sync.remote_index import read_view
from sessfs.sync.repairing import repair_sessions
from tests.support.bucket import HASH_KEY, Writer, read_everything
from tests.support.faultystore import FaultyStore, timeout
from tests.support.formats import ENVELOPE_IDS, ENVELOPES, PLAIN
from tests.support.memorystore import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.format.envelope import Envelope
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.remote.urls import Remote

ALL = Sampling(1.0, b"")


async def take(store: ObjectStore, name: str = "a", *, take_over: bool = False, envelope: Envelope = PLAIN) -> Node:
    identity = Identity(name, f"host-{name}", 7)
    return await open_node(store, envelope, identity, take_over=take_over, stale_s=0.0, monotonic_s=trio.current_time)


async def fill(store: ObjectStore, envelope: Envelope = PLAIN, *, release: bool = True) -> Writer:
    """Sessions anna, in three snapshots of which all are kept, and ben."""
    writer = Writer(store, "a", lambda: 1e9, envelope, keep=9)
    await writer.start()
    for number in range(3):
        writer.write(b"anna", b"f", [b"anna %d" % number * 50])
        await writer.publish()
    writer.write(b"ben", b"f", [b"ben" * 50])
    await writer.publish()
    if release:
        await writer.release()
    return writer


async def names_of(node: Node) -> list[bytes]:
    return sorted([name async for page in node.iter_pages() for name in page])


def roster_of(store: MemoryStore, envelope: Envelope = PLAIN) -> set[bytes]:
    return set(decode_roster(store.objects[ROSTER_KEY], envelope))


async def test_a_first_start_that_ended_before_it_took_the_prefix_is_no_loss() -> None:
    store = MemoryStore()
    await take(store)
    del store.objects[HOLDER_KEY]
    assert (await take(store)).incarnation == 2
    del store.objects[HOLDER_KEY]
    assert (await take(store, "b")).former is None


async def test_a_lost_holder_is_found_by_the_states_or_refused_where_they_leave_a_doubt() -> None:
    store = MemoryStore()
    await fill(store, release=False)
    objects = dict(store.objects)
    await take(store, "b", take_over=True)
    del store.objects[HOLDER_KEY]
    with pytest.raises(RemoteCorrupt, match="holder is missing, but nodes/a/"):
        await take(store, "c")
    assert state_key("c") not in store.objects, "refused, and nothing written"
    found = await take(store, "c", take_over=True)
    assert (found.former is not None, await names_of(found)) == (True, [b"anna", b"ben"])
    # A node that says something, and is not fenced, beside another one.
    store.objects = dict(objects)
    state = decode_state(objects[state_key("a")])
    store.objects[state_key("b")] = encode_state(msgspec.structs.replace(state, node="b"))
    del store.objects[HOLDER_KEY]
    with pytest.raises(RemoteCorrupt, match=r"can't be told which node held it last \(a, b\)"):
        await take(store, "c", take_over=True)


async def test_a_lost_state_is_made_of_the_segments_and_older_than_no_sessions_own_object() -> None:
    store = MemoryStore()
    writer = await fill(store)
    await writer.start()
    writer.write(b"ben", b"f", [b"ben again" * 50])
    await writer.publish()
    writer.kill()
    before = await read_everything(store)
    del store.objects[state_key("a")]
    node = await take(store, "b", take_over=True)
    assert await names_of(node) == [b"anna", b"ben"]
    await node.release()
    assert await read_everything(store) == before


@pytest.mark.parametrize("envelope", ENVELOPES, ids=ENVELOPE_IDS)
async def test_the_roster_follows_what_is_released_removed_and_erased(envelope: Envelope) -> None:
    store = MemoryStore()
    writer = await fill(store, envelope)
    assert roster_of(store, envelope) == {b"anna", b"ben"}
    assert envelope is PLAIN or b"anna" not in store.objects[ROSTER_KEY]
    await writer.start()
    writer.remove_session(b"ben")
    writer.write(b"carl", b"f", [b"carl"])
    await writer.release()
    assert roster_of(store, envelope) == {b"anna", b"carl"}
    node = await take(store, envelope=envelope)
    await node.erase([b"carl"])
    assert roster_of(store, envelope) == {b"anna"}
    assert await node.resolve(b"carl") is None
    assert await names_of(node) == [b"anna"]


async def test_a_roster_costs_a_request_once_and_none_at_a_mount() -> None:
    store = FaultyStore(MemoryStore())
    await fill(store)
    store.calls.clear()
    node = await take(store, "b")
    assert [call.key for call in store.calls if call.key == ROSTER_KEY] == []
    for _ in range(3):
        assert await node.resolve(b"new") is None
        assert await names_of(node) == [b"anna", b"ben"]
    assert [call.method for call in store.calls if call.key == ROSTER_KEY] == ["get"]
    await node.release()
    assert [call.method for call in store.calls if call.key == ROSTER_KEY] == ["get"], "nothing came, nothing went"


async def test_a_repository_from_before_the_roster_gets_one_at_its_next_release() -> None:
    store = MemoryStore()
    await fill(store)
    del store.objects[ROSTER_KEY]
    state = decode_state(store.objects[state_key("a")])
    store.objects[state_key("a")] = encode_state(msgspec.structs.replace(state, has_roster=False))
    node = await take(store, "b")
    assert await names_of(node) == [b"anna", b"ben"]
    assert await node.resolve(b"new") is None
    await node.release()
    assert roster_of(store) == {b"anna", b"ben"}
    assert decode_state(store.objects[state_key("b")]).has_roster


@pytest.mark.parametrize("body", [None, b"", b"SFSROS\x01\x00 damage"])
async def test_a_lost_roster_is_made_anew_by_a_take_over_alone(body: bytes | None) -> None:
    store = MemoryStore()
    await fill(store)
    store.objects.pop(ROSTER_KEY)
    if body is not None:
        await store.put(ROSTER_KEY, body)
    node = await take(store, "b")
    with pytest.raises(RemoteCorrupt, match="roster"):
        await names_of(node)
    with pytest.raises(RemoteCorrupt, match="roster"):
        await node.resolve(b"new")
    assert await node.resolve(b"anna") is not None
    node = await take(store, "c", take_over=True)
    assert await names_of(node) == [b"anna", b"ben"]
    await node.release()
    assert roster_of(store) == {b"anna", b"ben"}
    assert (await check_remote(store, PLAIN, HASH_KEY, ALL)).clean


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_release_whose_roster_fails_is_done_by_the_next_one(after: bool) -> None:
    inner = MemoryStore()
    writer = await fill(inner)
    await writer.start()
    writer.write(b"carl", b"f", [b"carl"])
    writer.remove_session(b"ben")
    await writer.publish()
    assert writer.node is not None
    store = FaultyStore(inner)
    writer.node.use_stores(store, store)
    store.plan("put_if", *[timeout(after=after, keys=ROSTER_KEY)] * 20)
    with pytest.raises(Exception, match="timed out"):
        await writer.node.release()
    node = await take(inner, "b", take_over=True)
    assert await names_of(node) == [b"anna", b"carl"]
    await node.release()
    assert roster_of(inner) == {b"anna", b"carl"}
    assert (await check_remote(inner, PLAIN, HASH_KEY, ALL)).clean


async def test_nothing_is_erased_while_the_object_of_a_session_is_lost() -> None:
    """What only that session has would be taken for nobody's."""
    store = MemoryStore()
    await fill(store)
    del store.objects[session_key(PLAIN, b"ben")]
    with pytest.raises(RemoteCorrupt, match="sessions/ben is missing"):
        await present_sessions(store, PLAIN, await read_view(store, PLAIN))


async def test_who_reads_a_remote_without_a_mount_is_told_too() -> None:
    store = MemoryStore()
    await fill(store)
    await store.put(FORMAT_KEY, encode_format(new_format(HASH_KEY, None)))
    body = store.objects.pop(session_key(PLAIN, b"ben"))
    bucket = await open_bucket(store, None, "memory:")
    assert await bucket.names() == [b"anna", b"ben"]
    assert await bucket.resolve(b"new") is None
    with pytest.raises(RemoteCorrupt, match="sessions/ben is missing"):
        await bucket.resolve(b"ben")
    store.objects[session_key(PLAIN, b"ben")] = body
    assert await bucket.resolve(b"ben") is not None
    del store.objects[HOLDER_KEY]
    with pytest.raises(RemoteCorrupt, match="holder is missing"):
        await open_bucket(store, None, "memory:")


async def test_a_snapshot_whose_manifest_is_lost_has_all_that_goes_with_it_when_it_is_put_back() -> None:
    """Its delta is lost, and what it builds upon is needed by no other."""
    store = MemoryStore()
    writer = await fill(store)
    await writer.start()
    writer.always_full = True
    writer.write(b"anna", b"f", [b"anna anew" * 50])
    writer.dirty |= {b"anna", b"ben"}
    await writer.release()
    before = await read_everything(store)
    for key in [key for key in sorted(store.objects) if "/segments/" in key]:
        body = store.objects.pop(key)
        for run in ("one", "two", "three"):
            try:
                await collect(store, PLAIN, Options(run, 0.0))
            except RemoteCorrupt as exc:
                assert key in str(exc)  # noqa: PT017 - or nothing is raised at all
        await store.put(key, body)
        assert await read_everything(store) == before
        assert (await check_remote(store, PLAIN, HASH_KEY, ALL)).clean, key


# -- making objects anew


@pytest.mark.parametrize("envelope", ENVELOPES, ids=ENVELOPE_IDS)
async def test_repair_makes_lost_objects_anew_of_the_segments(envelope: Envelope) -> None:
    store = MemoryStore()
    await fill(store, envelope)
    before = await read_everything(store, envelope)
    assert await repair_sessions(store, envelope) == []
    keys = [session_key(envelope, name) for name in (b"anna", b"ben")]
    bodies = [store.objects.pop(key) for key in keys]
    told = await repair_sessions(store, envelope)
    assert [line.partition(" was made anew")[0] for line in told] == keys
    assert await read_everything(store, envelope) == before
    for key, body in zip(keys, bodies, strict=True):
        then, now = (decode_session_object(one, envelope, key) for one in (body, store.objects[key]))
        assert (now.manifest, now.sequence) == (then.manifest, then.sequence)
        assert [one.manifest for one in now.kept] == [one.manifest for one in then.kept]
    assert (await check_remote(store, envelope, HASH_KEY, ALL)).clean


async def test_repair_takes_the_newest_that_can_be_read_and_says_what_can_not() -> None:
    store = MemoryStore()
    writer = await fill(store)
    del store.objects[session_key(PLAIN, b"anna")]
    del store.objects[segment_key("a", 3)]
    (told,) = await repair_sessions(store, PLAIN)
    assert "snapshot 2 in nodes/a/segments/0000000000000002" in told
    writer.sessions.clear()
    del store.objects[session_key(PLAIN, b"anna")]
    for number in (1, 2):
        del store.objects[segment_key("a", number)]
    (told,) = await repair_sessions(store, PLAIN)
    assert "sessions/anna can't be made anew" in told
    assert session_key(PLAIN, b"anna") not in store.objects


async def test_repair_brings_no_session_back_that_was_there_before_another_of_its_name() -> None:
    store = MemoryStore()
    now_s = 1e9
    writer = Writer(store, "a", lambda: now_s, keep=9)
    await writer.start()
    writer.write(b"anna", b"f", [b"an old user" * 50])
    await writer.publish()
    now_s += 10
    writer.remove_session(b"anna")
    await writer.publish()
    now_s += 10
    writer.write(b"anna", b"f", [b"a new user" * 50])
    await writer.release()
    key = session_key(PLAIN, b"anna")
    then = decode_session_object(store.objects.pop(key), PLAIN, key)
    await repair_sessions(store, PLAIN)
    now = decode_session_object(store.objects[key], PLAIN, key)
    assert (now.manifest, [one.manifest for one in now.kept]) == (then.manifest, [one.manifest for one in then.kept])


# -- PREFIX/format


class _Remote:
    """As much of a remote as opening a repository needs."""

    url = "memory:"

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def within(self, deadline_s: float) -> ObjectStore:
        return self._store

    async def require_conditional_writes(self, deadline_s: float | None = None) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("is_used", [False, True], ids=["empty state", "used state"])
async def test_no_repository_is_made_over_one_whose_format_is_lost(tmp_path: Path, is_used: bool) -> None:
    store = MemoryStore()
    remote = cast("Remote", _Remote(store))
    state = CachedState(tmp_path, None)
    await open_repository(remote, None, state, 1.0)
    await fill(store)
    body = store.objects.pop(FORMAT_KEY)
    before = dict(store.objects)
    # Whichever object is left alone, it tells.
    for key in (HOLDER_KEY, ROSTER_KEY, state_key("a"), session_key(PLAIN, b"anna"), segment_key("a", 1)):
        store.objects = {key: before[key]}
        with pytest.raises(RemoteCorrupt, match=f"format is missing, but {key} is there"):
            await open_repository(remote, None, state if is_used else CachedState(tmp_path / "no", None), 1.0)
        with pytest.raises(RemoteCorrupt, match="format is missing"):
            await open_bucket(store, None, "memory:")
        assert store.objects.keys() == {key}
    store.objects = before | {FORMAT_KEY: body}
    await open_repository(remote, None, state, 1.0)
    # Nothing of a repository, whatever else there is: for who used one it is another place, for others a new one.
    store.objects = {}
    for key in ("photos/one.jpg", "a"):
        await store.put(key, b"")
    with pytest.raises(RemoteUnsuitable, match="there is no repository"):
        await open_repository(remote, None, state, 1.0)
    with pytest.raises(RemoteMissing, match="holds no sessfs repository"):
        await open_bucket(store, None, "memory:")
