"""Collection: what goes and what stays, one rule at a time; and the marks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sessfs.errors import Fenced, RemoteCorrupt, RemoteError, RemoteUnsuitable
from sessfs.format.manifest import ManifestRef, SegmentRef
from sessfs.format.repository import KeptSnapshot, encode_session_object
from sessfs.format.segment import checkpoint_key, footer_of, segment_key, session_key
from sessfs.remote.objectstore import Blob, Forwarding
from sessfs.remote.parallel import for_each, over
from sessfs.sync.gc import Options, collect
from sessfs.sync.gc_live import Liveness
from sessfs.sync.gc_marks import (
    MARK_VERSION,
    Mark,
    Marks,
    StoredMark,
    decode_mark,
    encode_mark,
    group,
    missing_segments,
    read_marks,
)
from sessfs.sync.remote_index import Ranges, Root, read_session
from tests.support.bucket import Writer, cid_of, read_everything
from tests.support.faultystore import FaultyStore, error_500
from tests.support.formats import AEAD, PLAIN
from tests.support.memorystore import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sessfs.format.envelope import Envelope
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.sync.gc import Report
    from sessfs.sync.gc_live import Rewrite

# The node's start leaves a generator unfinished where there are segments beyond its last; nothing is lost by that.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'sessfs.remote.footers.iter_segments':ResourceWarning")

GRACE_S = 1000.0
OLD, NEW, OTHER = b"old" * 30, b"new" * 30, b"other" * 30


class Bucket:
    """A store with a clock, one writer `a`, and collections."""

    def __init__(self, envelope: Envelope = PLAIN) -> None:
        self.now_s = 1e9
        self.envelope = envelope
        self.store = MemoryStore(now_s=lambda: self.now_s)
        self.a = self.writer("a")
        self.a.always_full = True
        self._n_runs = 0
        self.rewrites: list[Rewrite] = []

    def writer(self, name: str) -> Writer:
        return Writer(self.store, name, lambda: self.now_s, self.envelope)

    async def gc(
        self, *, own: Writer | None = None, dry_run: bool = False, store: ObjectStore | None = None, share: float = 0.3
    ) -> Report:
        self._n_runs += 1
        options = Options(f"r{self._n_runs}", GRACE_S, dry_run, share)

        async def rewrite(wanted: Rewrite) -> None:
            self.rewrites.append(wanted)

        request = rewrite if own is not None else None
        return await collect(store or self.store, self.envelope, options, holding=own, request_rewrite=request)

    async def publish(self, *contents: bytes) -> None:
        self.a.write(b"s", b"f", list(contents))
        await self.a.publish()

    async def garbage(self) -> None:
        """Segment 1 of `a` is referred to by nothing, and `a` released all."""
        await self.a.start()
        await self.publish(OLD)
        self.a.remove_session(b"s")
        await self.a.publish()
        await self.publish(NEW)
        await self.a.release()

    def has(self, number: int, node: str = "a") -> bool:
        return segment_key(node, number) in self.store.objects


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


class Hooked(Forwarding):
    """Does something, once, before the *nth* read of *key*."""

    def __init__(self, inner: ObjectStore, key: str, nth: int, act: Callable[[], Awaitable[None]]) -> None:
        super().__init__(inner)
        self._key, self._left, self._act = key, nth, act

    async def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        if key == self._key:
            self._left -= 1
            if self._left == 0:
                await self._act()
        return await super().get(key, start, length)


# -- what goes


@pytest.mark.parametrize("envelope", [PLAIN, AEAD], ids=["plain", "encrypted"])
async def test_collect_garbage_goes_in_the_run_after_the_grace_period(envelope: Envelope) -> None:
    bucket = Bucket(envelope)
    await bucket.garbage()
    bucket.now_s += 10 * GRACE_S
    first = await bucket.gc()
    assert (first.deleted, bucket.has(1), bucket.has(2)) == (0, True, True)
    assert {(item.key, item.fate) for item in first.items} == {(segment_key("a", n), "wait") for n in (1, 2)}
    bucket.now_s += GRACE_S - 1
    assert (await bucket.gc()).deleted == 0
    bucket.now_s += 2
    size = len(bucket.store.objects[segment_key("a", 1)]) + len(bucket.store.objects[segment_key("a", 2)])
    second = await bucket.gc()
    assert (second.deleted, second.deleted_bytes) == (2, size)
    assert not bucket.has(1)
    assert bucket.has(3)
    assert await read_everything(bucket.store, envelope) == {b"s": {b"f": [NEW]}}
    assert not (await read_marks(bucket.store, touch_clock=False)).condemned() & {SegmentRef("a", 3)}


async def test_collect_young_by_the_stores_or_the_writers_clock_stays(bucket: Bucket) -> None:
    await bucket.garbage()
    await bucket.gc()
    bucket.now_s += 2 * GRACE_S
    bucket.store.set_age(segment_key("a", 1), 5.0)
    await bucket.gc()
    assert bucket.has(1)
    assert not bucket.has(2)

    ahead = Bucket()
    ahead.now_s += 5 * GRACE_S  # a writer whose clock is ahead
    await ahead.garbage()
    ahead.now_s -= 5 * GRACE_S
    for number in (1, 2, 3):
        ahead.store.set_age(segment_key("a", number), 3 * GRACE_S)
    await ahead.gc()
    ahead.now_s += 2 * GRACE_S
    await ahead.gc()
    assert ahead.has(1)


async def test_collect_dry_run_writes_nothing_and_says_what_would_go(bucket: Bucket) -> None:
    await bucket.garbage()
    await bucket.gc()
    bucket.now_s += 2 * GRACE_S
    await bucket.store.put("gc/clock", b"")
    before = dict(bucket.store.objects)
    puts = bucket.store.statistics().requests["put"]
    report = await bucket.gc(dry_run=True)
    assert bucket.store.objects == before
    assert bucket.store.statistics().requests["put"] == puts
    assert {item.key for item in report.items if item.fate == "delete"} == {segment_key("a", n) for n in (1, 2)}
    assert (await bucket.gc()).deleted_bytes == report.deleted_bytes


async def test_collect_superseded_checkpoints_go_the_last_stays(bucket: Bucket) -> None:
    await bucket.a.start()
    assert bucket.a.node is not None
    for content in (OLD, NEW):
        await bucket.publish(content)
        await bucket.a.node.checkpoint()
    bucket.now_s += 2 * GRACE_S
    await bucket.gc()
    assert checkpoint_key("a", 1) not in bucket.store.objects
    assert checkpoint_key("a", 2) in bucket.store.objects


# -- what stays


async def test_collect_beside_a_mount_only_marks_and_the_mount_deletes(bucket: Bucket) -> None:
    await bucket.a.start()
    for content in (OLD, NEW, OTHER):
        await bucket.publish(content)
        bucket.a.remove_session(b"s")
        await bucket.a.publish()
    assert bucket.a.node is not None
    await bucket.a.node.checkpoint()
    await bucket.gc()
    bucket.now_s += 2 * GRACE_S
    outside = await bucket.gc()
    assert outside.deleted == 0
    assert "host-a" in outside.notes[0]
    assert {item.fate for item in outside.items} == {"held"}
    await bucket.gc(own=bucket.a)
    assert [bucket.has(n) for n in range(1, 7)] == [False] * 5 + [True]


async def test_collect_own_run_spares_places_of_held_chunks_and_forgets_others(bucket: Bucket) -> None:
    await bucket.a.start()
    await bucket.publish(OLD)
    bucket.a.write(b"s", b"f", [NEW])
    bucket.a.hide(OLD)
    await bucket.a.publish()
    await bucket.publish(OTHER)
    await bucket.publish(OTHER, OTHER)
    assert bucket.a.node is not None
    await bucket.a.node.checkpoint()
    bucket.a.evict()
    await bucket.gc(own=bucket.a)
    bucket.now_s += 2 * GRACE_S
    await bucket.gc(own=bucket.a)
    assert (bucket.has(1), bucket.has(2)) == (True, False)
    assert cid_of(NEW) not in bucket.a.places
    await bucket.a.check()


async def test_collect_spares_what_was_published_while_it_read(bucket: Bucket) -> None:
    """The holder names a condemned chunk again after the marking, and forgets it locally before the release."""
    await bucket.a.start()
    await bucket.publish(OLD)
    await bucket.publish(NEW)
    bucket.a.hide(OLD)
    await bucket.publish(NEW, NEW)
    assert bucket.a.node is not None
    await bucket.a.node.checkpoint()
    await bucket.gc(own=bucket.a)
    bucket.now_s += 2 * GRACE_S

    async def name_it_again() -> None:
        bucket.a.write(b"t", b"f", [OLD])
        await bucket.a.publish()
        bucket.a.remove_session(b"t")
        bucket.a.private.clear()

    await bucket.gc(own=bucket.a, store=Hooked(bucket.store, "holder", 2, name_it_again))
    assert bucket.has(1)
    assert (await read_everything(bucket.store))[b"t"] == {b"f": [OLD]}


async def test_collect_notices_a_mount_that_came_and_went_while_it_read(bucket: Bucket) -> None:
    """It saw a released prefix, and reads the sessions only after another node had been there."""
    await bucket.garbage()
    await bucket.gc()
    segment = bucket.store.objects[segment_key("a", 1)]
    await bucket.a.start()
    # As a node that was mounted before the mark, and so has not seen it.
    bucket.a.places[cid_of(OLD)] = (SegmentRef("a", 1), *footer_of(segment, "a", 1, PLAIN).frames[0])
    bucket.a.write(b"t", b"f", [OLD])
    await bucket.a.publish()
    await bucket.a.release()
    bucket.now_s += 2 * GRACE_S
    b = bucket.writer("b")

    async def come_and_go() -> None:
        await b.start()
        b.hide(OLD)
        b.remove_session(b"t")
        b.evict()
        await b.publish()
        await b.release()

    report = await bucket.gc(store=Hooked(bucket.store, session_key(PLAIN, b"s"), 1, come_and_go))
    assert report.deleted == 0
    assert "just mounted" in report.notes[0]
    await b.check()


async def test_collect_kept_snapshots_are_live(bucket: Bucket) -> None:
    await bucket.a.start()
    await bucket.publish(OLD)
    await bucket.a.release()
    key = session_key(PLAIN, b"s")
    record = await read_session(bucket.store, PLAIN, key)
    assert record is not None
    assert record.manifest is not None
    await bucket.a.start()
    await bucket.publish(NEW)
    await bucket.a.release()
    latest = await read_session(bucket.store, PLAIN, key)
    assert latest is not None
    latest.kept.append(KeptSnapshot(1, 0, record.manifest))
    await bucket.store.put(key, encode_session_object(latest, PLAIN))
    for _ in range(3):
        await bucket.gc()
        bucket.now_s += 2 * GRACE_S
    assert bucket.has(1)


async def test_collect_unpublished_segments_stay_their_numbers_are_written_again(bucket: Bucket) -> None:
    await bucket.garbage()
    await bucket.a.start()
    bucket.a.write(b"s", b"f", [OTHER])
    await bucket.a.publish(crash_at="segment")
    await bucket.a.start()
    assert bucket.a.node is not None
    await bucket.a.node.release()
    for _ in range(3):
        report = await bucket.gc()
        bucket.now_s += 2 * GRACE_S
    assert bucket.has(4)
    assert "1 segments" in report.notes[-1]


async def test_collect_a_replaced_node_counts_for_a_grace_period(bucket: Bucket) -> None:
    await bucket.a.start()
    await bucket.publish(OLD)
    bucket.a.kill()
    b = bucket.writer("b")
    await b.start(take_over=True)
    b.write(b"s", b"f", [NEW])
    await b.release()
    await bucket.gc()
    bucket.now_s += 2 * GRACE_S
    await bucket.gc()
    assert bucket.has(1), "what node a knew has counted until now"
    bucket.now_s += 2 * GRACE_S
    await bucket.gc()
    assert not bucket.has(1)
    await bucket.a.start()
    await bucket.a.check()
    assert bucket.a.sessions == {b"s": {b"f": [NEW]}}


async def test_collect_a_fenced_holder_ends_its_own_run(bucket: Bucket) -> None:
    await bucket.a.start()
    await bucket.publish(OLD)
    b = bucket.writer("b")
    await b.start(take_over=True)
    with pytest.raises(Fenced, match="node a no longer holds"):
        await bucket.gc(own=bucket.a)


# -- errors


async def test_collect_any_failing_read_ends_it_before_anything_is_deleted(bucket: Bucket) -> None:
    await bucket.garbage()
    await bucket.gc()
    bucket.now_s += 2 * GRACE_S
    before = set(bucket.store.objects)
    for method in ("get", "list_page", "put"):
        failed = 0
        while True:
            faulty = FaultyStore(bucket.store)
            faulty.plan(method, *[None] * failed, error_500())
            bucket.store.objects = dict(bucket.store.objects)
            saved = dict(bucket.store.objects)
            try:
                await bucket.gc(store=faulty)
            except RemoteError:
                assert before <= set(bucket.store.objects)
                assert faulty.count("delete") == 0
                failed += 1
            else:
                bucket.store.objects = saved
                break
        assert failed >= {"get": 5, "list_page": 3, "put": 1}[method]


async def test_collect_damaged_manifest_or_mark_ends_it(bucket: Bucket) -> None:
    await bucket.garbage()
    await bucket.gc()
    bucket.now_s += 2 * GRACE_S
    good = dict(bucket.store.objects)
    mark = next(key for key in good if key.startswith("gc/mark-"))
    for key in (mark, segment_key("a", 1), session_key(PLAIN, b"s"), "holder", "nodes/a/state"):
        bucket.store.objects[key] = b"damage" * 10
        with pytest.raises(RemoteCorrupt):
            await bucket.gc()
        bucket.store.objects[key] = good[key]
        assert bucket.has(1)
        assert bucket.has(2)


async def test_collect_without_the_holders_state_ends(bucket: Bucket) -> None:
    await bucket.garbage()
    del bucket.store.objects["nodes/a/state"]
    with pytest.raises(RemoteCorrupt, match="its state is missing"):
        await bucket.gc()


# -- mostly dead segments


async def test_collect_asks_the_holder_to_write_mostly_dead_segments_anew(bucket: Bucket) -> None:
    await bucket.a.start()
    bucket.a.write(b"s", b"small", [OLD])
    bucket.a.write(b"s", b"large", [bytes([i]) * 90 for i in range(60)])
    bucket.a.write(b"t", b"f", [OLD])
    await bucket.a.publish()
    bucket.a.remove_file(b"s", b"large")
    await bucket.a.publish()
    bucket.a.write(b"s", b"x", [NEW])
    bucket.a.remove_file(b"s", b"small")
    bucket.a.dirty |= {b"s", b"t"}
    await bucket.a.publish()
    await bucket.publish(OTHER)
    assert bucket.a.node is not None
    await bucket.a.node.checkpoint()
    bucket.now_s += 2 * GRACE_S
    report = await bucket.gc(own=bucket.a)
    assert segment_key("a", 1) in {item.key for item in report.items if item.fate == "rewrite"}
    assert [(wanted.sessions, wanted.chunks) for wanted in bucket.rewrites] == [([b"t"], [cid_of(OLD)])]


def test_liveness_rewrites_the_least_live_first_within_the_bound() -> None:
    live = Liveness()
    sizes = {}
    for number, share in enumerate((0.2, 0.05, 0.1, 0.9)):
        ref = SegmentRef("a", number)
        latest = Root(b"s", ManifestRef("a", number, 0, 1), "latest", "")
        live.add(ref, 0, int(share * (400 << 20)), latest)
        sizes[ref] = 400 << 20
    only_kept = Root(b"s", ManifestRef("a", 9, 0, 1), "kept", "")
    live.add(SegmentRef("a", 9), 0, 1, only_kept)
    live.add(SegmentRef("a", 2), 0, 1, only_kept)
    sizes[SegmentRef("a", 9)] = 400 << 20
    assert live.find_mostly_dead(sizes, 0.3) == [SegmentRef("a", 1), SegmentRef("a", 2)]


# -- marks


def _mark(key: str, mtime_s: float, candidates: set[int], rescued: set[int] = frozenset()) -> StoredMark:  # type: ignore[assignment]
    of = lambda numbers: group(SegmentRef("a", n) for n in numbers)  # noqa: E731
    return StoredMark(key, mtime_s, Mark(1, of(candidates), of(rescued), []))


def test_marks_a_rescue_starts_the_age_anew_and_stays_condemned_for_starting_nodes() -> None:
    marks = Marks([_mark("m1", 10, {1, 2}), _mark("m2", 20, {3}, {1}), _mark("m3", 30, {1})], 40)
    assert marks.condemned_since() == {SegmentRef("a", 2): 10, SegmentRef("a", 3): 20, SegmentRef("a", 1): 30}
    assert {ref.number for ref in marks.condemned()} == {1, 2, 3}


def test_marks_are_settled_when_what_they_name_is_gone_or_long_rescued() -> None:
    marks = Marks([_mark("m1", 10, {1}), _mark("m2", 20, {2}), _mark("m3", 30, set(), {2})], 100)
    existing = {SegmentRef("a", 2)}
    assert marks.settled(existing, set(), keep_s=50) == ["m1", "m2", "m3"]
    assert marks.settled(existing, set(), keep_s=75) == ["m1"]
    assert marks.settled({SegmentRef("a", 1)}, set(), keep_s=50) == ["m2", "m3"]


def test_marks_keep_a_rescue_as_long_as_the_mark_that_condemned() -> None:
    marks = Marks([_mark("m1", 10, {1, 2}), _mark("m2", 20, set(), {2})], 1000)
    assert marks.settled({SegmentRef("a", 1), SegmentRef("a", 2)}, set(), keep_s=50) == []
    assert marks.settled({SegmentRef("a", 2)}, set(), keep_s=50) == ["m1", "m2"]


def test_marks_of_the_first_version_are_read_and_later_ones_have_a_checksum() -> None:
    said = Mark(MARK_VERSION, {"a": [12, 13]}, {}, [("b", 1, 2.0)])
    first = b'{"candidates":{"a":[12,13]},"rescued":{},"retired":[["b",1,2.0]],"version":1}'
    assert decode_mark("k", first) == said
    body = encode_mark(said)
    assert decode_mark("k", body) == said
    for at in range(len(body)):
        with pytest.raises((RemoteCorrupt, RemoteUnsuitable)):
            decode_mark("k", body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
        with pytest.raises(RemoteCorrupt):
            decode_mark("k", body[:at])
    with pytest.raises(RemoteCorrupt, match="no checksum"):
        decode_mark("k", first.replace(b'"version":1', b'"version":2'))


def test_marks_keep_the_last_word_on_a_replaced_node() -> None:
    first, second = Mark(1, {}, {}, [("a", 1, 10.0)]), Mark(1, {}, {}, [("a", 1, 0.0), ("b", 1, 20.0)])
    marks = Marks([StoredMark("m1", 10, first), StoredMark("m2", 20, second)], 1000)
    assert marks.retired_since() == {("a", 1): 0.0, ("b", 1): 20.0}
    assert marks.settled(set(), {("a", 1)}, keep_s=50) == ["m1"]
    assert marks.settled(set(), set(), keep_s=50) == ["m1", "m2"]


async def test_missing_segments_are_those_deleted_and_those_condemned(bucket: Bucket) -> None:
    await bucket.garbage()
    wanted = {SegmentRef("a", 1), SegmentRef("a", 3), SegmentRef("a", 9), SegmentRef("b", 1)}
    assert await missing_segments(bucket.store, wanted) == {SegmentRef("a", 9), SegmentRef("b", 1)}
    await bucket.gc()
    assert await missing_segments(bucket.store, wanted) == wanted - {SegmentRef("a", 3)}
    assert await missing_segments(bucket.store, set()) == set()


async def test_a_node_that_was_away_does_not_rely_on_what_was_collected(bucket: Bucket) -> None:
    """It has unsent changes that name a chunk it had uploaded long ago, and that nothing in the remote names."""
    await bucket.a.start()
    await bucket.publish(OLD)
    await bucket.publish(NEW)
    await bucket.publish(OTHER)
    assert bucket.a.node is not None
    await bucket.a.node.release()
    bucket.a.kill()
    bucket.a.write(b"s", b"late", [OLD])
    for _ in range(3):
        await bucket.gc()
        bucket.now_s += 2 * GRACE_S
    assert not bucket.has(1)
    await bucket.a.start()
    await bucket.a.publish()
    assert (await read_everything(bucket.store))[b"s"] == {b"f": [OTHER], b"late": [OLD]}


# -- parts


def test_ranges_count_each_range_once() -> None:
    ranges = Ranges()
    for _ in range(500):
        ranges.add(100, 7)
        ranges.add(0, 100)
    assert list(ranges) == [(0, 100), (100, 7)]
    assert ranges.n_bytes == 107


async def test_for_each_raises_the_first_error_itself_and_stops() -> None:
    done: list[int] = []

    async def work(item: int) -> None:
        if item == 3:
            raise RemoteCorrupt("three")
        done.append(item)

    with pytest.raises(RemoteCorrupt, match="three"):
        await for_each(over(range(10_000)), work, parallel=2)
    assert len(done) < 100
