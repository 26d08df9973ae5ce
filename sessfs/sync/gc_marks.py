"""Marks: what collectors have said, in PREFIX/gc/, about segments that nothing refers to.

An erasure puts one too, for what it is about to delete, and deletes it at its end: see `sync.erasing`.

A mark is one object, written once and never changed, so its age by the store's own clock is how long ago it was said.
Its segments are *condemned*: a later run may delete them, and a node that starts meanwhile must not rely on them.
The store's clock is read off an object written for that purpose; no local clock is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from sessfs.errors import RemoteCorrupt, RemoteMissing
from sessfs.format import wire
from sessfs.format.manifest import SegmentRef
from sessfs.format.segment import segment_key
from sessfs.remote.objectstore import LIST_PAGE, iter_keys

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sessfs.remote.objectstore import ObjectStore

GC_PREFIX = "gc/"
MARK_PREFIX = "gc/mark-"
CLOCK_KEY = "gc/clock"
MARK_VERSION = 2
RETIRED_S = 0.0


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run's findings; the object is its JSON, with a checksum since version 2. Segments are numbers by node."""

    version: int
    candidates: dict[str, list[int]]
    """Segments that nothing referred to, and that no older mark names."""
    rescued: dict[str, list[int]]
    """Segments of older marks that are referred to, or needed, after all: they must age anew."""
    retired: list[tuple[str, int, float]]
    """(node, incarnation, store's time when a mark first said so) of nodes that another one has replaced; the time is
    RETIRED_S once what they knew is left to rot.
    """


class StoredMark(NamedTuple):
    """A mark as it lies in the store; *mtime_s* by the store's clock."""

    key: str
    mtime_s: float
    mark: Mark


def group(refs: Iterable[SegmentRef]) -> dict[str, list[int]]:
    """The segments as numbers by node, in order."""
    numbers: dict[str, list[int]] = {}
    for ref in sorted(refs):
        numbers.setdefault(ref.node, []).append(ref.number)
    return numbers


def ungroup(numbers: dict[str, list[int]]) -> set[SegmentRef]:
    """Inverse of `group`."""
    return {SegmentRef(node, number) for node, of_node in numbers.items() for number in of_node}


class Marks:
    """All marks, oldest first, as they were at the store's time *now_s*."""

    def __init__(self, marks: list[StoredMark], now_s: float) -> None:
        self.marks = sorted(marks, key=lambda m: (m.mtime_s, m.key))
        self.now_s = now_s

    def condemned(self) -> set[SegmentRef]:
        """Every segment that some mark names, rescued or not: a collector under way may not know of the rescue."""
        return {ref for stored in self.marks for ref in ungroup(stored.mark.candidates)}

    def condemned_since(self) -> dict[SegmentRef, float]:
        """Segments that were candidates and not rescued since, with the store's time of the mark."""
        since: dict[SegmentRef, float] = {}
        for stored in self.marks:
            for ref in ungroup(stored.mark.rescued):
                since.pop(ref, None)
            for ref in ungroup(stored.mark.candidates):
                since.setdefault(ref, stored.mtime_s)
        return since

    def retired_since(self) -> dict[tuple[str, int], float]:
        """(node, incarnation) of replaced nodes, with the store's time of the first mark that said so, or RETIRED_S."""
        since: dict[tuple[str, int], float] = {}
        for stored in self.marks:
            for node, incarnation, since_s in stored.mark.retired:
                since[node, incarnation] = min(since_s, since.get((node, incarnation), since_s))
        return since

    def settled(
        self, existing: Collection[SegmentRef], retired: Collection[tuple[str, int]], keep_s: float
    ) -> list[str]:
        """Keys of marks that say nothing any more: their candidates are gone from *existing*, or were rescued at least
        *keep_s* ago, when no collector that might not know it can still be running; no mark that stays names what they
        rescued; and a later mark repeats what they say of nodes that still are *retired*.
        """
        waiting = set(self.condemned_since())
        last_word: dict[tuple[str, int, float], str] = {}
        for stored in self.marks:
            last_word.update((entry, stored.key) for entry in stored.mark.retired)
            if self._is_young(stored, keep_s):
                waiting |= ungroup(stored.mark.rescued)
        waiting.intersection_update(existing)
        needed = {
            last_word.get((*identity, since_s))
            for identity, since_s in self.retired_since().items()
            if identity in retired
        }
        keys: list[str] = []
        named: set[SegmentRef] = set()
        for stored in self.marks:
            candidates = ungroup(stored.mark.candidates)
            stays = (
                stored.key in needed
                or self._is_young(stored, keep_s)
                or candidates & waiting
                or ungroup(stored.mark.rescued) & named
            )
            if stays:
                named |= candidates
            else:
                keys.append(stored.key)
        return keys

    def _is_young(self, stored: StoredMark, keep_s: float) -> bool:
        return self.now_s - stored.mtime_s < keep_s


async def read_marks(store: ObjectStore, *, touch_clock: bool) -> Marks:
    """All marks, and the store's time: of now, or without *touch_clock*, and without writing anything, of the last
    thing a collector wrote. Raises RemoteError.
    """
    if touch_clock:
        await store.put(CLOCK_KEY, b"")
    now_s = 0.0
    marks: list[StoredMark] = []
    entries = [entry async for entry in iter_keys(store, GC_PREFIX)]
    for entry in entries:
        now_s = max(now_s, entry.mtime_s)
        if entry.key.startswith(MARK_PREFIX):
            try:
                body = (await store.get(entry.key)).body
            except RemoteMissing:
                continue  # settled and deleted by another collector a moment ago
            marks.append(StoredMark(entry.key, entry.mtime_s, decode_mark(entry.key, body)))
    return Marks(marks, now_s)


def decode_mark(key: str, body: bytes) -> Mark:
    """The mark in *body*, an older version being brought up to this one. Raises RemoteCorrupt, RemoteUnsuitable."""
    if not body.endswith(wire.CHECKSUM_CLOSE):
        # Version 1, which sorted its members and ended with the version.
        mark = _decode_version_1(key, body)
    else:
        mark = wire.decode_json(body, Mark, MARK_VERSION, key)
    return msgspec.structs.replace(mark, version=MARK_VERSION)


def _decode_version_1(key: str, body: bytes) -> Mark:
    try:
        mark = msgspec.json.decode(body, type=Mark)
    except msgspec.DecodeError as exc:
        raise RemoteCorrupt(f"{key} is no mark of a collector: {exc}") from exc
    if mark.version != 1:
        raise RemoteCorrupt(f"{key} is damaged: it has no checksum")
    return mark


def encode_mark(mark: Mark) -> bytes:
    """Inverse of `decode_mark`: JSON, so that a person can read it."""
    return wire.encode_json(mark)


async def missing_segments(store: ObjectStore, segments: Collection[SegmentRef]) -> set[SegmentRef]:
    """Those of *segments* that a node must not rely on: deleted, or condemned and perhaps deleted soon.

    A node calls this at every start, after the prefix is its own (`open_node` has returned) and before it publishes,
    with the segments that its places name. For each chunk whose place is in the answer: when the chunk is stored
    locally, forget the place and note its sessions whole, so that they are published anew; when not, fetch it now (a
    condemned segment may still be there), and then do the same; a fetch that finds it missing is damage. Raises
    RemoteError, and then nothing is known.
    """
    # Marks first: a segment whose mark is gone already was deleted before that, so the listing shows it.
    condemned = (await read_marks(store, touch_clock=False)).condemned()
    wanted = set(segments)
    found: set[SegmentRef] = set()
    for node, numbers in group(wanted).items():
        found |= await _existing(store, node, numbers)
    return {ref for ref in wanted if ref in condemned or ref not in found}


async def _existing(store: ObjectStore, node: str, numbers: list[int]) -> set[SegmentRef]:
    """Those of *node*'s segments *numbers*, which ascend, that the store has."""
    wanted = {segment_key(node, number): SegmentRef(node, number) for number in numbers}
    first, last = min(wanted), max(wanted)
    prefix = first.rpartition("/")[0] + "/"
    start_after = first[:-1]
    found: set[SegmentRef] = set()
    while True:
        page = await store.list_page(prefix, start_after, LIST_PAGE)
        found |= {wanted[entry.key] for entry in page if entry.key in wanted}
        if len(page) < LIST_PAGE or page[-1].key >= last:
            return found
        start_after = page[-1].key
