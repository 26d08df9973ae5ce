"""Sessions' own objects: what a node writes there when it stalls in the middle, and is replaced meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from sessfs.errors import Fenced, RemoteConflict
from sessfs.format.repository import KeptSnapshot, decode_session_object
from sessfs.format.roster import ROSTER_KEY
from sessfs.format.segment import session_key, state_key
from tests.support.faultystore import Fault, FaultyStore
from tests.support.heldstore import HeldStore
from tests.support.memorystore import MemoryStore
from tests.unit.test_remote_node import PLAIN, names_of, publish, segment_of, take

if TYPE_CHECKING:
    from sessfs.format.repository import SessionObject
    from sessfs.remote.node import Node


def object_of(store: MemoryStore, name: bytes) -> SessionObject:
    key = session_key(PLAIN, name)
    return decode_session_object(store.objects[key], PLAIN, key)


async def replace(store: MemoryStore, *names: bytes, gone: tuple[bytes, ...] = ()) -> None:
    """Another node takes over, publishes the sessions *names*, and releases."""
    other = await take(store, "c", take_over=True, stale_s=0)
    await publish(other, store, *names, gone=gone)
    await other.release()


async def fenced_release(node: Node) -> None:
    with pytest.raises(Fenced):
        await node.release()


async def test_release_that_stalls_does_not_overwrite_what_the_next_node_released() -> None:
    inner = MemoryStore()
    store = HeldStore(inner)
    node = await take(store)
    await node.announce(b"s")
    await publish(node, store, b"s", b"t")
    stalled = store.hold("put*", session_key(PLAIN, b"s"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fenced_release, node)
        await stalled.reached.wait()
        await replace(inner, b"s")
        stalled.release()
    record = object_of(inner, b"s")
    assert record.manifest is not None
    assert record.manifest.node == "c"
    assert await names_of(await take(inner, "d")) == [b"s", b"t"]


async def test_release_that_stalls_does_not_delete_what_the_next_node_made_anew() -> None:
    inner = MemoryStore()
    store = HeldStore(inner)
    await replace(inner, b"s")
    node = await take(store)
    await publish(node, store, b"t", gone=(b"s",))
    stalled = store.hold("get", session_key(PLAIN, b"s"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fenced_release, node)
        await stalled.reached.wait()
        await replace(inner, b"s")
        stalled.release()
    assert await segment_of(await take(inner, "d"), b"s") == 2


async def test_release_of_a_removed_session_without_an_object_deletes_nothing() -> None:
    store = FaultyStore(MemoryStore())
    node = await take(store)
    await publish(node, store, b"s")
    await publish(node, store, gone=(b"s",))
    await node.release()
    assert store.count("delete") == 0


async def test_saving_kept_snapshots_that_stalls_does_not_overwrite_what_the_next_node_released() -> None:
    inner = MemoryStore()
    store = HeldStore(inner)
    await replace(inner, b"s")
    node = await take(store)
    manifest = object_of(inner, b"s").manifest
    assert manifest is not None
    node.keeping.kept_of = lambda name: [KeptSnapshot(1, 0, manifest, "marked")]
    stalled = store.hold("put*", session_key(PLAIN, b"s"))

    async def save() -> None:
        with pytest.raises(Fenced):
            await node.save_kept(b"s")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(save)
        await stalled.reached.wait()
        await replace(inner, b"s")
        stalled.release()
    record = object_of(inner, b"s")
    assert record.manifest is not None
    assert record.manifest.segment == 2
    assert record.kept == []


async def test_release_takes_a_write_whose_answer_was_lost_for_its_own() -> None:
    inner = MemoryStore()
    store = FaultyStore(inner)
    node = await take(store)
    await publish(node, store, b"s")
    # The state is proved first.
    store.plan("put_if", None, Fault(RemoteConflict("written already"), after=True))
    await node.release()
    assert [call.key for call in store.calls if call.key == session_key(PLAIN, b"s")] == [session_key(PLAIN, b"s")] * 3
    assert object_of(inner, b"s").sequence == 1
    assert await names_of(await take(inner, "b")) == [b"s"]


async def test_release_proves_its_right_once_for_many_sessions() -> None:
    store = FaultyStore(MemoryStore())
    node = await take(store)
    await publish(node, store, *(b"s%d" % number for number in range(200)))
    before = len(store.calls)
    await node.release()
    # Before the sessions' objects, before the roster, and for the release itself.
    assert [call.key for call in store.calls[before:]].count(state_key("a")) == 3
    assert [call.key for call in store.calls[before:]].count(ROSTER_KEY) == 2
    assert len(store.calls) - before == 406
