"""The node: one holder of the prefix, fencing, the catalogue, and how few requests all of that takes."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing

from sessfs.errors import (
    Fenced,
    RemoteCorrupt,
    RemoteError,
    RemoteHeld,
    RemoteUnavailable,
)
from sessfs.format.envelope import AeadEnvelope, Envelope, PlainEnvelope
from sessfs.format.manifest import Manifest, ManifestRef
from sessfs.format.repository import KeptSnapshot, decode_holder, decode_session_object, decode_state, encode_state
from sessfs.format.segment import SegmentBuilder, segment_key, session_key, state_key
from sessfs.remote import node as node_module
from sessfs.remote.node import Identity, Node, open_node
from tests.support.faultystore import FaultyStore, bucket_gone, timeout
from tests.support.heldstore import HeldStore
from tests.support.memorystore import MemoryStore

PLAIN = PlainEnvelope()
SECRET = AeadEnvelope(bytes(32))


async def take(
    store: object, name: str = "a", *, take_over: bool = False, envelope: Envelope = PLAIN, stale_s: float = 5.0
) -> Node:
    return await open_node(
        store,  # type: ignore[arg-type]
        envelope,
        Identity(name, f"host-{name}", 7),
        take_over=take_over,
        stale_s=stale_s,
        monotonic_s=trio.current_time,
    )


async def publish(
    node: Node, store: object, *names: bytes, gone: tuple[bytes, ...] = (), envelope: Envelope = PLAIN
) -> int:
    """Publish one segment with a manifest of each session."""
    number = node.last_segment + 1
    builder = SegmentBuilder(node.name, number, node.incarnation, envelope)
    entries: list[tuple[bytes, ManifestRef | None, int]] = []
    for name in names:
        manifest = Manifest(1, name, number, None, 0, 0, 2, [], [], [], [], [], [], b"")
        entries.append((name, builder.add_manifest(manifest), number))
    for name in gone:
        builder.add_removed(name)
        entries.append((name, None, 0))
    await store.put(segment_key(node.name, number), builder.finish(0))  # type: ignore[attr-defined]
    await node.publish(number, entries)
    return number


async def names_of(node: Node) -> list[bytes]:
    return sorted([name async for page in node.iter_pages() for name in page])


async def segment_of(node: Node, name: bytes) -> int | None:
    found = await node.resolve(name)
    return None if found is None or found[0] is None else found[0].segment


async def test_node_open_takes_few_requests_however_many_sessions(autojump_clock: trio.testing.MockClock) -> None:
    store = FaultyStore(MemoryStore())
    node = await take(store)
    assert [call.method for call in store.calls] == ["get", "get", "list_page", "put_if", "put_if"]
    await publish(node, store, *(b"s%d" % i for i in range(500)))
    await node.release()
    before = len(store.calls)
    await take(store, "b")
    assert len(store.calls) - before <= 6


@pytest.mark.parametrize("envelope", [PLAIN, SECRET], ids=["plain", "encrypted"])
async def test_node_released_sessions_are_in_their_own_objects(envelope: Envelope) -> None:
    store = MemoryStore()
    node = await take(store, envelope=envelope)
    await node.announce(b"one")
    await publish(node, store, b"one", b"two", envelope=envelope)
    await publish(node, store, b"two", gone=(b"one",), envelope=envelope)
    assert await names_of(node) == [b"two"]
    assert await node.resolve(b"one") is None
    await node.release()
    assert session_key(envelope, b"one") not in store.objects
    key = session_key(envelope, b"two")
    record = decode_session_object(store.objects[key], envelope, key)
    assert (record.holder, record.sequence) == (None, 2)
    assert decode_state(store.objects[state_key("a")]).clean
    other = await take(store, "b", envelope=envelope)
    assert await names_of(other) == [b"two"]
    assert await segment_of(other, b"two") == 2
    assert await other.resolve(b"never") is None
    assert other.former is not None
    assert (other.former.node, other.former.incarnation) == ("a", 1)


async def test_node_released_by_one_is_taken_by_another_without_waiting() -> None:
    store = MemoryStore()
    await (await take(store)).release()
    with trio.fail_after(100):
        await take(store, "b", stale_s=1000)
    assert decode_holder(store.objects["holder"]).node == "b"


async def test_node_held_by_another_is_refused_with_its_name() -> None:
    store = MemoryStore()
    await take(store)
    with pytest.raises(RemoteHeld, match=r"node a \(host host-a, process 7.*--take-over"):
        await take(store, "b")


async def test_node_same_node_again_is_not_refused_and_fences_its_former_self() -> None:
    store = MemoryStore()
    former = await take(store)
    await publish(former, store, b"s")
    again = await take(store)
    assert again.former is not None
    assert (again.former.node, again.former.incarnation) == ("a", 1)
    assert (again.incarnation, again.last_segment) == (2, 1)
    assert await segment_of(again, b"s") == 1
    with pytest.raises(Fenced):
        await publish(former, store, b"s")
    assert former.fenced is not None


async def test_node_take_over_needs_a_heart_that_does_not_beat(autojump_clock: trio.testing.MockClock) -> None:
    store = MemoryStore()
    node = await take(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.run)
        with pytest.raises(RemoteHeld, match="its heart beats"):
            await take(store, "b", take_over=True, stale_s=node_module.BEAT_S * 1.5)
        nursery.cancel_scope.cancel()
    await publish(node, store, b"s", b"t")
    other = await take(store, "b", take_over=True, stale_s=node_module.BEAT_S * 1.5)
    assert await names_of(other) == [b"s", b"t"]
    assert decode_state(store.objects[state_key("a")]).fenced_by == "b"
    with pytest.raises(Fenced, match="fenced by b"):
        await publish(node, store, b"s")
    with pytest.raises(Fenced):
        await node.checkpoint()
    with pytest.raises(Fenced):
        await node.release()
    assert await segment_of(other, b"s") == 1


async def test_node_fenced_announces_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """A name that it left behind would be an empty directory for everybody else."""
    store = MemoryStore()
    node = await take(store)
    await node.announce(b"before")
    other = await take(store, "b", take_over=True, stale_s=30)
    with pytest.raises(Fenced):
        await node.announce(b"after")
    assert await other.resolve(b"after") is None
    assert await other.resolve(b"before") is not None


async def test_node_that_always_publishes_writes_checkpoints_too(autojump_clock: trio.testing.MockClock) -> None:
    """Its heart never needs to beat for its own sake, and a take-over must not read every footer since the start."""
    store = MemoryStore()
    node = await take(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.run)
        for _ in range(node_module.CHECKPOINT_AT_LAST + 10):
            await publish(node, store, b"s")
            await trio.sleep(5)
        nursery.cancel_scope.cancel()
    state = decode_state(store.objects[state_key("a")])
    assert state.has_checkpoint
    assert state.last_checkpoint >= node_module.CHECKPOINT_AT_LAST


async def test_node_slow_checkpoint_does_not_undo_a_later_one() -> None:
    """The segments before the later one may be gone by the time that the slow one is done."""
    store = HeldStore(MemoryStore())
    node = await take(store)
    await publish(node, store, b"s", b"gone")
    slow = store.hold("put", "*/checkpoints/*")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.checkpoint)
        await slow.reached.wait()
        await publish(node, store, b"t", gone=(b"gone",))
        nursery.start_soon(node.erase, [b"gone"])
        await trio.testing.wait_all_tasks_blocked()
        slow.release()
    await store.delete([segment_key("a", 1), segment_key("a", 2)])
    assert await names_of(await take(store)) == [b"s", b"t"]


async def test_node_slow_checkpoint_does_not_overwrite_what_a_later_one_says_of_kept_snapshots() -> None:
    inner = MemoryStore()
    store = HeldStore(inner)
    node = await take(store)
    kept: list[KeptSnapshot] = []
    node.keeping.kept_of = lambda name: list(kept)
    await publish(node, store, b"s")
    found = await node.resolve(b"s")
    assert found is not None
    assert found[0] is not None
    kept.append(KeptSnapshot(1, 0, found[0]))
    slow = store.hold("put", "*/checkpoints/*")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.checkpoint)
        await slow.reached.wait()
        kept[0] = KeptSnapshot(1, 0, found[0], "marked")
        nursery.start_soon(node.save_kept, b"s")
        await trio.testing.wait_all_tasks_blocked()
        slow.release()
    assert [one.mark for one in await (await take(inner)).resolve_kept(b"s")] == ["marked"]


async def test_node_fenced_ends_its_run_and_says_by_whom(autojump_clock: trio.testing.MockClock) -> None:
    store = MemoryStore()
    node = await take(store)
    other = await take(store, "b", take_over=True)
    await node.run()
    assert node.fenced == "b"
    assert other.fenced is None


async def test_node_fenced_one_comes_back_and_is_told_that_it_was_replaced() -> None:
    store = MemoryStore()
    node = await take(store)
    await publish(node, store, b"s")
    other = await take(store, "b", take_over=True, stale_s=0)
    await publish(other, store, b"s")
    await other.release()
    back = await take(store)
    assert back.former is not None
    assert back.former.node == "b"
    assert (await back.resolve(b"s")) is not None
    found = await back.resolve(b"s")
    assert found is not None
    assert found[0] is not None
    assert found[0].node == "b"


async def test_node_two_take_over_at_once_and_one_wins() -> None:
    store = MemoryStore()
    node = await take(store)
    await publish(node, store, b"s")
    winners: list[Node] = []
    losers: list[RemoteError] = []

    async def try_to(name: str) -> None:
        try:
            winners.append(await take(store, name, take_over=True, stale_s=0.01))
        except RemoteError as exc:
            losers.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(try_to, "b")
        nursery.start_soon(try_to, "c")
    assert len(winners) == 1
    assert isinstance(losers[0], RemoteHeld)
    assert await segment_of(winners[0], b"s") == 1


async def test_node_lost_reply_of_its_own_write_is_recognised() -> None:
    store = FaultyStore(MemoryStore())
    node = await take(store)
    store.plan("put_if", timeout(after=True))
    with pytest.raises(RemoteUnavailable):
        await publish(node, store, b"s")
    assert await node.resolve(b"s") is None
    await node.settle()
    assert node.last_segment == 1
    assert await segment_of(node, b"s") == 1
    await publish(node, store, b"t")
    again = await take(store)
    assert await names_of(again) == [b"s", b"t"]


async def test_node_release_whose_reply_is_lost_is_recognised() -> None:
    store = FaultyStore(MemoryStore())
    node = await take(store)
    store.plan("put_if", timeout(after=True))
    with pytest.raises(RemoteUnavailable):
        await node.release()
    await node.release()
    assert node.fenced is None
    await take(store, "b")


async def test_node_heart_does_not_beat_once_all_is_released(autojump_clock: trio.testing.MockClock) -> None:
    """Its state would not be clean any more, and the next node would have to take over."""
    store = MemoryStore()
    node = await take(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.run)
        await publish(node, store, *(b"s%d" % number for number in range(20)))
        await node.release()
        await trio.sleep(node_module.BEAT_S * 3)
        nursery.cancel_scope.cancel()
    assert decode_state(store.objects[state_key("a")]).clean
    await take(store, "b")


async def test_node_that_publishes_after_a_release_is_not_clean() -> None:
    store = MemoryStore()
    node = await take(store)
    await node.release()
    await publish(node, store, b"s")
    with pytest.raises(RemoteHeld):
        await take(store, "b")


async def test_node_that_another_one_let_go_of_is_fenced() -> None:
    """A clean state lets in whoever comes."""
    store = MemoryStore()
    node = await take(store)
    await publish(node, store, b"s")
    key = state_key("a")
    state = decode_state(store.objects[key])
    await store.put(key, encode_state(msgspec.structs.replace(state, clean=True, beat=state.beat + 1)))
    with pytest.raises(Fenced, match="took it for replaced"):
        await publish(node, store, b"t")
    assert decode_state(store.objects[key]).clean


async def test_node_write_that_did_not_land_does_not_count() -> None:
    store = FaultyStore(MemoryStore())
    node = await take(store)
    await publish(node, store, b"s")
    store.plan("put_if", timeout())
    with pytest.raises(RemoteUnavailable):
        await publish(node, store, b"s", b"lost")
    await node.settle()
    assert node.last_segment == 1
    assert await names_of(node) == [b"s"]
    await publish(node, store, b"t")
    assert await names_of(await take(store)) == [b"s", b"t"]


async def test_node_write_that_lands_late_is_found_out_by_the_heartbeat(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = FaultyStore(MemoryStore())
    node = await take(store)
    store.plan("put_if", timeout(after=True))
    with pytest.raises(RemoteUnavailable):
        await publish(node, store, b"s")
    with trio.move_on_after(node_module.BEAT_S * 2):
        await node.run()
    assert node.last_segment == 1
    assert await segment_of(node, b"s") == 1


async def test_node_state_deleted_is_fencing() -> None:
    store = MemoryStore()
    node = await take(store)
    del store.objects[state_key("a")]
    with pytest.raises(Fenced, match="deleted"):
        await node.checkpoint()


@pytest.mark.parametrize("n_segments", [0, 1, 3, 40])
async def test_node_catalogue_is_read_from_checkpoint_and_footers(
    n_segments: int, autojump_clock: trio.testing.MockClock
) -> None:
    store = MemoryStore()
    node = await take(store)
    for i in range(n_segments):
        await publish(node, store, b"s%d" % (i % 7), gone=(b"s%d" % ((i + 3) % 7),) if i % 2 else ())
        if i % 5 == 4:
            with trio.move_on_after(node_module.BEAT_S * 1.5):
                await node.run()
    expected = {name: await node.resolve(name) for name in [b"s%d" % i for i in range(7)]}
    again = await take(store)
    assert {name: await again.resolve(name) for name in expected} == expected
    if n_segments:
        other = await take(store, "b", take_over=True)
        assert {name: await other.resolve(name) for name in expected} == expected
        third = await take(store, "c", take_over=True)
        assert {name: await third.resolve(name) for name in expected} == expected, "inherited twice"


async def test_node_segment_that_was_put_and_never_counted_is_ignored() -> None:
    store = MemoryStore()
    node = await take(store)
    await publish(node, store, b"s")
    store.objects[segment_key("a", 2)] = b"half"
    store.set_age(segment_key("a", 2), 0)
    again = await take(store)
    assert again.last_segment == 1
    await publish(again, store, b"t")
    assert await names_of(await take(store)) == [b"s", b"t"]


async def test_node_missing_or_damaged_segment_is_an_error_not_fewer_sessions() -> None:
    store = MemoryStore()
    node = await take(store)
    for name in (b"s", b"t", b"u"):
        await publish(node, store, name)
    for number in (1, 2, 3):
        key = segment_key("a", number)
        body = store.objects.pop(key)
        with pytest.raises(RemoteCorrupt, match=f"segment {number} of node a"):
            await take(store)
        store.objects[key] = body[:-30] + bytes([body[-30] ^ 1]) + body[-29:]
        with pytest.raises(RemoteCorrupt, match="a/segments"):
            await take(store)
        store.objects[key] = body
    assert await names_of(await take(store)) == [b"s", b"t", b"u"]


@pytest.mark.parametrize("method", ["get", "put", "put_if", "list_page"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_node_open_under_faults_never_starts_with_fewer_sessions(method: str, after: bool) -> None:
    """Whichever request fails, opening fails or gives everything, and works once the remote does."""
    for nth in range(6):
        inner = MemoryStore()
        node = await take(inner)
        await publish(node, inner, b"s", b"t")
        await node.checkpoint()
        await publish(node, inner, b"u")
        for name in ("a", "b"):
            store = FaultyStore(inner)
            store.plan(method, *[None] * nth, timeout(after=after))
            try:
                opened = await take(store, name, take_over=True, stale_s=0)
            except RemoteError:
                store.heal()
                opened = await take(store, name, take_over=True, stale_s=0)
            store.heal()
            assert await names_of(opened) == [b"s", b"t", b"u"]


@pytest.mark.parametrize("method", ["get", "put", "put_if", "delete"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_node_release_under_faults_loses_no_session(method: str, after: bool) -> None:
    for nth in range(4):
        inner = MemoryStore()
        store = FaultyStore(inner)
        node = await take(store)
        await publish(node, store, b"s", b"t", b"gone")
        await publish(node, store, b"u", gone=(b"gone",))
        store.plan(method, *[None] * nth, bucket_gone(after=after))
        try:
            await node.release()
        except RemoteError:
            assert len(await names_of(await take(inner))) == 3
        other = await take(inner, "b", take_over=True, stale_s=0)
        assert await names_of(other) == [b"s", b"t", b"u"]
        assert await segment_of(other, b"u") == 2


async def test_node_resolve_and_listing_raise_what_the_store_does() -> None:
    store = FaultyStore(MemoryStore())
    node = await take(store)
    await publish(node, store, b"known")
    store.always(timeout())
    with pytest.raises(RemoteUnavailable):
        await node.resolve(b"unknown")
    assert await segment_of(node, b"known") == 1
    with pytest.raises(RemoteUnavailable):
        await names_of(node)


async def test_node_heartbeat_survives_a_remote_that_is_away(autojump_clock: trio.testing.MockClock) -> None:
    store = FaultyStore(MemoryStore())
    node = await take(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.run)
        store.always(timeout())
        await trio.sleep(200)
        store.heal()
        before = store.count("put_if")
        await trio.sleep(node_module.BEAT_S * 5)
        assert 4 <= store.count("put_if") - before <= 7
        nursery.cancel_scope.cancel()
    assert node.fenced is None
