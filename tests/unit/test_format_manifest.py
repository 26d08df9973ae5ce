"""Manifests: they come back, contradictions are refused both ways, and merging is applying deltas one by one."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessfs.errors import RemoteCorrupt, RemoteUnsuitable, StoreCorrupt
from sessfs.format import wire
from sessfs.format.manifest import (
    MANIFEST_MAGIC,
    FramePlace,
    Manifest,
    ManifestRef,
    NameRecord,
    NodeRecord,
    SegmentRef,
    chunk_places,
    decode_manifest,
    encode_manifest,
    merge,
    pack_places,
    recipe_chunks,
    split_ids,
)
from sessfs.format.recipe import encode_extent, encode_hole
from sessfs.types import HOLE, ChunkId
from tests.support.formats import chains, damages, manifests

A, B, C = (ChunkId(bytes([n]) * 20) for n in (1, 2, 3))
SEGMENT = SegmentRef("node-1", 7)
BASE = ManifestRef("node-1", 6, 8, 100)
DIRECTORY = NodeRecord(5, 0o40755, 0, 0, 2, 0, 0, 1, 2, 3, None, {}, b"")
FILE = NodeRecord(6, 0o100600, 0, 0, 1, 0, 30, 1, 2, 3, None, {b"user.x": b"y"}, encode_extent(A, 10) + encode_hole(20))
LINK = NodeRecord(8, 0o120777, 0, 0, 1, 0, 4, 1, 2, 3, b"f", {}, b"")
FULL = Manifest(
    version=1,
    session=b"user-1",
    sequence=3,
    base=None,
    depth=0,
    taken_ns=1_700_000_000_000_000_000,
    root=5,
    nodes=[DIRECTORY, FILE, LINK],
    names=[NameRecord(5, b"f", 6), NameRecord(5, b"l", 8)],
    gone_nodes=[],
    gone_names=[],
    segments=[SEGMENT],
    frames=[FramePlace(0, 8, 100, A)],
    startup=A,
)
DELTA = msgspec.structs.replace(FULL, sequence=4, base=BASE, depth=1, nodes=[], names=[], frames=[], startup=b"")


# -- coding


@given(st.one_of(manifests(), manifests(full=False)))
def test_round_trip(manifest: Manifest) -> None:
    assert decode_manifest(encode_manifest(manifest), "x") == manifest


def test_damaged_manifest_is_found_or_still_the_same() -> None:
    """Without an envelope: zstd's own checksum. Bits of its header that mean nothing may turn."""
    encoded = encode_manifest(FULL)
    for what, damaged in damages(encoded):
        try:
            assert decode_manifest(damaged, "x") == FULL, what
        except (RemoteCorrupt, RemoteUnsuitable):
            continue


@given(st.binary(max_size=100))
def test_decoding_anything_raises_nothing_else(encoded: bytes) -> None:
    with pytest.raises(RemoteCorrupt, match="the key"):
        decode_manifest(encoded, "the key")
    with pytest.raises(RemoteCorrupt, match="the key"):
        decode_manifest(wire.put_head(MANIFEST_MAGIC, 1, wire.compress(encoded + b"\0")), "the key")


def test_newer_version_says_upgrade() -> None:
    with pytest.raises(RemoteUnsuitable, match=r"nodes/n/x.*upgrade"):
        decode_manifest(wire.put_head(MANIFEST_MAGIC, 2, b"whatever"), "nodes/n/x")


def _with(record: NodeRecord, **changes: object) -> list[NodeRecord]:
    return [msgspec.structs.replace(record, **changes)]


CONTRADICTIONS: dict[str, dict[str, object]] = {
    "session is a path": {"session": b"a/b"},
    "session is ..": {"session": b".."},
    "full with depth": {"depth": 1},
    "delta without depth": {"base": BASE},
    "full with gone nodes": {"gone_nodes": [9]},
    "full with gone names": {"gone_names": [(5, b"x")]},
    "inode twice": {"nodes": [FILE, FILE]},
    "half an extent": {"nodes": _with(FILE, recipe=FILE.recipe[:-1])},
    "recipe short of the size": {"nodes": _with(FILE, size=31)},
    "no recipe": {"nodes": _with(FILE, recipe=b"")},
    "extent of no bytes": {"nodes": _with(FILE, recipe=FILE.recipe + encode_extent(B, 0))},
    "directory with content": {"nodes": _with(DIRECTORY, recipe=encode_extent(A, 1))},
    "symlink without target": {"nodes": _with(LINK, target=None)},
    "file with target": {"nodes": _with(FILE, target=b"x")},
    "no type of file": {"nodes": _with(FILE, mode=0o644)},
    "unknown type of file": {"nodes": _with(DIRECTORY, mode=0o150644)},
    "device that none is": {"nodes": _with(FILE, rdev=1 << 32)},
    "xattr without a name": {"nodes": _with(FILE, xattrs={b"": b"x"})},
    "xattr of too long a name": {"nodes": _with(FILE, xattrs={b"user." + b"x" * 251: b"x"})},
    "xattr of half a name": {"nodes": _with(FILE, xattrs={b"user.x\0y": b"x"})},
    "session is a file": {"root": FILE.ino},
    "name is ..": {"names": [NameRecord(5, b"..", 6)]},
    "name is a path": {"names": [NameRecord(5, b"a/b", 6)]},
    "name is empty": {"names": [NameRecord(5, b"", 6)]},
    "name too long": {"names": [NameRecord(5, b"x" * 256, 6)]},
    "name twice": {"names": [NameRecord(5, b"x", 6), NameRecord(5, b"x", 8)]},
    "gone name is no name": {"base": BASE, "depth": 1, "gone_names": [(5, b"")]},
    "segment out of range": {"frames": [FramePlace(1, 8, 100, A)]},
    "half a chunk id": {"frames": [FramePlace(0, 8, 100, A[:-1])]},
    "half an id at the start": {"startup": A[:-1]},
}


@pytest.mark.parametrize("changes", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_are_neither_written_nor_read(changes: dict[str, object]) -> None:
    bad = msgspec.structs.replace(FULL, **changes)
    with pytest.raises(StoreCorrupt, match=r"the snapshot of session .* can't be written"):
        encode_manifest(bad)
    encoded = wire.put_head(MANIFEST_MAGIC, 1, wire.compress(msgspec.msgpack.encode(bad)))
    with pytest.raises(RemoteCorrupt, match="nodes/n/x"):
        decode_manifest(encoded, "nodes/n/x")


WRONG_TYPES: dict[str, dict[str, object]] = {
    "version 2 inside": {"version": 2},
    "session empty": {"session": b""},
    "session too long": {"session": b"x" * 256},
    "sequence negative": {"sequence": -1},
    "inode 0": {"nodes": _with(FILE, ino=0)},
    "mode too large": {"nodes": _with(FILE, mode=1 << 32)},
    "size negative": {"nodes": _with(FILE, size=-1)},
    "time beyond 64 bits": {"nodes": _with(FILE, mtime_ns=1 << 63)},
    "name is text": {"names": [NameRecord(5, "x", 6)]},  # type: ignore[arg-type]
    "frame without bytes": {"frames": [FramePlace(0, 8, 0, A)]},
    "offset too large": {"frames": [FramePlace(0, 1 << 32, 8, A)]},
    "node leads elsewhere": {"segments": [SegmentRef("../../x", 1)]},
    "node ends in newline": {"segments": [SegmentRef("x\n", 1)]},
    "base without bytes": {"base": ManifestRef("n", 1, 8, 0), "depth": 1},
    "base too short": {"base": ("n", 1, 8), "depth": 1},
}


@pytest.mark.parametrize("changes", WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_fields_out_of_range_are_not_read(changes: dict[str, object]) -> None:
    bad = msgspec.structs.replace(FULL, **changes)
    encoded = wire.put_head(MANIFEST_MAGIC, 1, wire.compress(msgspec.msgpack.encode(bad)))
    with pytest.raises(RemoteCorrupt, match="nodes/n/x does not decode"):
        decode_manifest(encoded, "nodes/n/x")


@pytest.mark.parametrize("change", [lambda fields: fields[:-1], lambda fields: [*fields, 0]], ids=["fewer", "more"])
def test_another_number_of_fields_is_not_read(change: object) -> None:
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(FULL))
    encoded = msgspec.msgpack.encode(change(fields))  # type: ignore[operator]
    with pytest.raises(RemoteCorrupt):
        decode_manifest(wire.put_head(MANIFEST_MAGIC, 1, wire.compress(encoded)), "x")


# -- places


def test_ids_are_split() -> None:
    assert split_ids(b"") == []
    assert split_ids(A + B + A) == [A, B, A]


def test_recipe_chunks_are_not_holes() -> None:
    assert recipe_chunks([FILE, DIRECTORY]) == {A}


@given(manifests())
def test_places_are_packed_and_found_again(manifest: Manifest) -> None:
    places = chunk_places(manifest)
    segments, frames = pack_places(places)
    packed = msgspec.structs.replace(manifest, segments=segments, frames=frames)
    assert chunk_places(packed) == places
    assert sum(len(split_ids(frame.chunks)) for frame in frames) == len(places)
    assert pack_places(dict(reversed(places.items()))) == (segments, frames)


def test_later_place_of_a_chunk_wins() -> None:
    twice = msgspec.structs.replace(FULL, frames=[FramePlace(0, 8, 100, A + B), FramePlace(0, 500, 9, A)])
    assert chunk_places(twice) == {A: (SEGMENT, 500, 9), B: (SEGMENT, 8, 100)}


# -- merging


class Model:
    """A session as dictionaries, changed by one manifest after another."""

    def __init__(self) -> None:
        self.nodes: dict[int, NodeRecord] = {}
        self.names: dict[tuple[int, bytes], int] = {}
        self.places: dict[bytes, tuple[SegmentRef, int, int]] = {}
        self.startup = b""

    def apply(self, manifest: Manifest) -> None:
        """What a reader of the format's document would do."""
        for ino in manifest.gone_nodes:
            if ino in self.nodes:
                del self.nodes[ino]
        for key in manifest.gone_names:
            if key in self.names:
                del self.names[key]
        for record in manifest.nodes:
            self.nodes[record.ino] = record
        for name in manifest.names:
            self.names[name.parent, name.name] = name.ino
        for frame in manifest.frames:
            for at in range(0, len(frame.chunks), 20):
                place = (manifest.segments[frame.segment], frame.offset, frame.length)
                self.places[frame.chunks[at : at + 20]] = place
        if manifest.startup:
            self.startup = manifest.startup

    def used(self) -> set[bytes]:
        """Chunks in the recipes."""
        packed = b"".join(record.recipe for record in self.nodes.values())
        return {packed[at : at + 20] for at in range(0, len(packed), 24)} - {HOLE}


@given(chains())
def test_merging_is_applying_one_by_one(chain: list[Manifest]) -> None:
    model = Model()
    for manifest in chain:
        model.apply(manifest)
    merged = merge(chain[0], chain[1:])
    assert {record.ino: record for record in merged.nodes} == model.nodes
    assert {(name.parent, name.name): name.ino for name in merged.names} == model.names
    assert chunk_places(merged) == {cid: place for cid, place in model.places.items() if cid in model.used()}
    assert merged.startup == model.startup
    last = chain[-1]
    assert (merged.session, merged.sequence) == (last.session, last.sequence)
    assert (merged.taken_ns, merged.root) == (last.taken_ns, last.root)
    assert (merged.base, merged.depth, merged.gone_nodes, merged.gone_names) == (None, 0, [], [])


@given(chains())
def test_merging_at_once_equals_merging_step_by_step(chain: list[Manifest]) -> None:
    step = merge(chain[0], [])
    for delta in chain[1:]:
        step = merge(step, [delta])
    assert merge(chain[0], chain[1:]) == step


@given(chains())
def test_merged_manifest_can_be_written_and_is_canonical(chain: list[Manifest]) -> None:
    merged = merge(chain[0], chain[1:])
    assert decode_manifest(encode_manifest(merged), "x") == merged
    assert merge(merged, []) == merged


def test_place_of_an_unused_chunk_is_dropped_and_so_is_its_segment() -> None:
    emptied = msgspec.structs.replace(FILE, size=10, recipe=encode_extent(B, 10))
    other = SegmentRef("node-2", 1)
    delta = msgspec.structs.replace(
        DELTA, nodes=[emptied], segments=[SEGMENT, other], frames=[FramePlace(1, 8, 50, B + C)]
    )
    merged = merge(FULL, [delta])
    assert merged.segments == [other]
    assert merged.frames == [FramePlace(0, 8, 50, B)]


def test_a_name_that_goes_and_comes_in_one_delta_is_there() -> None:
    delta = msgspec.structs.replace(DELTA, names=[NameRecord(5, b"f", 8)], gone_names=[(5, b"f")], gone_nodes=[6])
    assert NameRecord(5, b"f", 8) in merge(FULL, [delta]).names


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        (DELTA, []),
        (FULL, [FULL]),
        (FULL, [msgspec.structs.replace(FULL, sequence=9)]),
        (FULL, [msgspec.structs.replace(DELTA, sequence=3)]),
        (FULL, [msgspec.structs.replace(DELTA, sequence=2)]),
        (FULL, [DELTA, DELTA]),
        (FULL, [msgspec.structs.replace(DELTA, session=b"user-2")]),
    ],
    ids=["delta first", "same again", "full inside", "same sequence", "back", "twice", "other session"],
)
def test_what_is_no_chain_is_corrupt(first: Manifest, rest: list[Manifest]) -> None:
    with pytest.raises(RemoteCorrupt, match="user-1"):
        merge(first, rest)
