"""Segments, footers, checkpoints and keys: everything comes back, from its own place only, and damage is found."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessfs.errors import RemoteCorrupt, RemoteUnsuitable, StoreCorrupt
from sessfs.format import wire
from sessfs.format.envelope import AeadEnvelope, Envelope
from sessfs.format.manifest import FramePlace, Manifest, ManifestRef, NodeRecord, SegmentRef
from sessfs.format.recipe import encode_extent
from sessfs.format.segment import (
    CHECKPOINT_MAGIC,
    SEGMENT_END,
    TAIL_BYTES,
    TRAILER,
    Checkpoint,
    Footer,
    NeedMoreTail,
    SegmentBuilder,
    checkpoint_key,
    checkpoints_prefix,
    decode_checkpoint,
    encode_checkpoint,
    footer_of,
    open_frame,
    open_manifest,
    parse_checkpoint_key,
    parse_segment_key,
    read_footer,
    segment_key,
    segments_prefix,
    session_key,
    state_key,
)
from sessfs.types import ChunkId
from tests.support.formats import (
    AEAD,
    ENVELOPE_IDS,
    ENVELOPES,
    MASTER_KEY,
    OTHER_KEY,
    PLAIN,
    assert_damage_is_found,
    counts,
    manifest_refs,
    manifests,
    session_names,
    times,
)

each_envelope = pytest.mark.parametrize("envelope", ENVELOPES, ids=ENVELOPE_IDS)
NODE = "host-0a1b"
CHUNK = ChunkId(b"c" * 20)


def _manifest(offset: int, length: int) -> Manifest:
    node = NodeRecord(5, 0o100644, 0, 0, 1, 0, 9, 1, 2, 3, None, {}, encode_extent(CHUNK, 9))
    frame = FramePlace(0, offset, length, CHUNK)
    return Manifest(1, b"user-1", 1, None, 0, 77, 1, [node], [], [], [], [SegmentRef(NODE, 3)], [frame], b"")


def _small(envelope: Envelope) -> tuple[bytes, list[tuple[int, int]], ManifestRef]:
    """A segment of two frames and a manifest; their places."""
    builder = SegmentBuilder(NODE, 3, 2, envelope)
    frames = [builder.add_frame(b"frame one"), builder.add_frame(b"frame two, longer")]
    ref = builder.add_manifest(_manifest(*frames[0]))
    builder.add_removed(b"old user")
    return builder.finish(99), frames, ref


def _read_all(body: bytes, envelope: Envelope) -> tuple[Footer, list[bytes], list[Manifest]]:
    """Everything in the segment, as found by its footer."""
    footer = footer_of(body, NODE, 3, envelope)
    frames = [open_frame(body[at : at + n], NODE, 3, at, envelope) for at, n in footer.frames]
    refs = [ManifestRef(NODE, 3, entry.offset, entry.length) for entry in footer.manifests]
    return footer, frames, [open_manifest(body[r.offset : r.offset + r.length], r, envelope) for r in refs]


# -- round trips


@each_envelope
@given(
    frames=st.lists(st.binary(max_size=60), max_size=5),
    contents=st.lists(st.one_of(manifests(), manifests(full=False)), max_size=3),
    removed=st.lists(session_names, max_size=3),
    created_ns=times,
    incarnation=counts,
)
def test_round_trip(
    envelope: Envelope,
    frames: list[bytes],
    contents: list[Manifest],
    removed: list[bytes],
    created_ns: int,
    incarnation: int,
) -> None:
    builder = SegmentBuilder(NODE, 3, incarnation, envelope)
    places = [builder.add_frame(record) for record in frames]
    refs = [builder.add_manifest(manifest) for manifest in contents]
    for name in removed:
        builder.add_removed(name)
    size = builder.size_bytes
    body = builder.finish(created_ns)
    footer, frames_read, manifests_read = _read_all(body, envelope)
    assert (frames_read, manifests_read) == (frames, contents)
    assert (footer.frames, footer.removed) == (places, removed)
    assert (footer.created_ns, footer.incarnation) == (created_ns, incarnation)
    assert [(e.session, e.sequence, e.base, e.is_full) for e in footer.manifests] == [
        (m.session, m.sequence, m.base, m.base is None) for m in contents
    ]
    assert [ManifestRef(NODE, 3, e.offset, e.length) for e in footer.manifests] == refs
    assert size == sum(length for _, length in places) + sum(ref.length for ref in refs) + wire.HEAD.size


@each_envelope
def test_sizes_are_those_of_the_document(envelope: Envelope) -> None:
    """A builder's size is known while it is filled: head, and each blob with the envelope's overhead."""
    builder = SegmentBuilder(NODE, 1, 1, envelope)
    assert builder.size_bytes == 8
    assert builder.add_frame(bytes(1000)) == (8, 1000 + (28 if envelope.encrypted else 8))


@each_envelope
def test_empty_segment_has_an_empty_footer(envelope: Envelope) -> None:
    body = SegmentBuilder(NODE, 3, 1, envelope).finish(5)
    assert footer_of(body, NODE, 3, envelope) == Footer([], [], [], 5, 1)


def test_a_manifest_that_contradicts_itself_is_not_added() -> None:
    builder = SegmentBuilder(NODE, 3, 1, PLAIN)
    with pytest.raises(StoreCorrupt):
        builder.add_manifest(msgspec.structs.replace(_manifest(8, 9), depth=4))
    assert footer_of(builder.finish(5), NODE, 3, PLAIN).manifests == []


@pytest.mark.parametrize("name", [b"", b"..", b"a/b"])
def test_a_removed_session_has_a_name(name: bytes) -> None:
    with pytest.raises(ValueError, match="not a session's name"):
        SegmentBuilder(NODE, 3, 1, PLAIN).add_removed(name)


# -- damage


@each_envelope
def test_every_damage_of_a_segment_is_found(envelope: Envelope) -> None:
    body, _, _ = _small(envelope)
    assert_damage_is_found(body, lambda blob: _read_all(blob, envelope), maybe_newer=True)


@each_envelope
def test_every_damage_of_a_frame_is_found(envelope: Envelope) -> None:
    body, [(at, length), _], _ = _small(envelope)
    assert_damage_is_found(body[at : at + length], lambda blob: open_frame(blob, NODE, 3, at, envelope))


@each_envelope
def test_every_damage_of_a_manifest_is_found(envelope: Envelope) -> None:
    body, _, ref = _small(envelope)
    blob = body[ref.offset : ref.offset + ref.length]
    assert_damage_is_found(blob, lambda damaged: open_manifest(damaged, ref, envelope))


@each_envelope
def test_blobs_open_in_their_place_alone(envelope: Envelope) -> None:
    body, [(at, length), _], ref = _small(envelope)
    blob = body[at : at + length]
    for node, number, offset in [(NODE, 3, at + 1), (NODE, 4, at), ("other", 3, at)]:
        with pytest.raises(RemoteCorrupt, match=segment_key(node, number)):
            open_frame(blob, node, number, offset, envelope)
    with pytest.raises(RemoteCorrupt):
        open_manifest(blob, ManifestRef(NODE, 3, at, length), envelope)
    with pytest.raises(RemoteCorrupt):
        open_frame(body[ref.offset : ref.offset + ref.length], NODE, 3, ref.offset, envelope)
    with pytest.raises(RemoteCorrupt):
        footer_of(body, NODE, 4, envelope)


def test_segment_of_another_key_is_corrupt_and_shows_no_name() -> None:
    body, _, _ = _small(AEAD)
    assert b"user" not in body
    with pytest.raises(RemoteCorrupt):
        footer_of(body, NODE, 3, AeadEnvelope(OTHER_KEY))
    with pytest.raises(RemoteCorrupt):
        footer_of(body, NODE, 3, PLAIN)


@each_envelope
@given(body=st.binary(max_size=100))
def test_reading_anything_raises_nothing_else(envelope: Envelope, body: bytes) -> None:
    with pytest.raises(RemoteCorrupt, match=NODE):
        footer_of(body, NODE, 3, envelope)
    framed = body + TRAILER.pack(len(body), 1, SEGMENT_END)
    with pytest.raises((RemoteCorrupt, NeedMoreTail)):
        read_footer(framed, len(framed) + 8, NODE, 3, envelope)


@pytest.mark.parametrize("where", ["head", "trailer"])
def test_newer_segment_says_upgrade(where: str) -> None:
    body, _, _ = _small(PLAIN)
    at = 6 if where == "head" else len(body) - TRAILER.size + 4
    with pytest.raises(RemoteUnsuitable, match=rf"{segment_key(NODE, 3)} .*version 2.*upgrade"):
        footer_of(body[:at] + b"\2" + body[at + 1 :], NODE, 3, PLAIN)


def _sealed_footer(footer: Footer, start: int) -> bytes:
    """A footer that the builder would not write, sealed as it should be."""
    context = f"footer at byte {start} of {segment_key(NODE, 3)}".encode()
    sealed = PLAIN.seal(wire.compress(msgspec.msgpack.encode(footer)), context)
    return sealed + TRAILER.pack(len(sealed), 1, SEGMENT_END)


@pytest.mark.parametrize(
    "frames",
    [[(8, 10)], [(8, 30)], [(9, 19)], [(8, 10), (20, 10)], [(8, 12), (18, 10)], [(8, 20), (8, 20)], [(0, 28)], []],
    ids=["short", "long", "late", "gap", "overlap", "twice", "head", "none"],
)
def test_footer_that_leaves_bytes_out_is_corrupt(frames: list[tuple[int, int]]) -> None:
    tail = _sealed_footer(Footer(frames, [], [], 1, 1), 28)
    with pytest.raises(RemoteCorrupt, match="footer"):
        read_footer(tail, 28 + len(tail), NODE, 3, PLAIN)


def test_footer_that_accounts_for_every_byte_is_read() -> None:
    footer = Footer([(18, 10), (8, 10)], [], [b"."], 1, 1)
    tail = _sealed_footer(footer, 28)
    assert read_footer(tail, 28 + len(tail), NODE, 3, PLAIN) == footer


def test_footer_with_a_path_for_a_session_is_corrupt() -> None:
    tail = _sealed_footer(Footer([], [], [b"../x"], 1, 1), 8)
    with pytest.raises(RemoteCorrupt, match="names a session"):
        read_footer(tail, 8 + len(tail), NODE, 3, PLAIN)


# -- reading the tail


@each_envelope
def test_footer_is_read_from_any_tail_that_holds_it(envelope: Envelope) -> None:
    body, _, _ = _small(envelope)
    whole = footer_of(body, NODE, 3, envelope)
    with pytest.raises(NeedMoreTail) as more:
        read_footer(body[-TRAILER.size :], len(body), NODE, 3, envelope)
    for length in range(TRAILER.size, len(body) + 1):
        if length < more.value.length:
            with pytest.raises(NeedMoreTail) as same:
                read_footer(body[-length:], len(body), NODE, 3, envelope)
            assert same.value.length == more.value.length
        else:
            assert read_footer(body[-length:], len(body), NODE, 3, envelope) == whole
    for length in range(TRAILER.size):
        with pytest.raises(RemoteCorrupt, match="cut short"):
            read_footer(body[len(body) - length :], len(body), NODE, 3, envelope)


def test_usual_tail_holds_the_footer_of_a_full_segment() -> None:
    """32 MiB in frames of 100 kB, and a thousand sessions with a manifest each."""
    builder = SegmentBuilder(NODE, 3, 1, AEAD)
    for _ in range(330):
        builder.add_frame(b"x" * 100)
    for n in range(1000):
        builder.add_manifest(msgspec.structs.replace(_manifest(8, 9), session=b"user-%06d" % n, sequence=n))
    body = builder.finish(1)
    footer = read_footer(body[-TAIL_BYTES:], len(body), NODE, 3, AEAD)
    assert (len(footer.frames), len(footer.manifests)) == (330, 1000)


# -- checkpoints


@each_envelope
@given(
    entries=st.lists(st.tuples(session_names, st.none() | manifest_refs, counts), max_size=6),
    number=counts,
    incarnation=counts,
)
def test_checkpoint_round_trip(
    envelope: Envelope, entries: list[tuple[bytes, ManifestRef | None, int]], number: int, incarnation: int
) -> None:
    checkpoint = Checkpoint(NODE, number, incarnation, entries)
    encoded = encode_checkpoint(checkpoint, envelope)
    assert decode_checkpoint(encoded, NODE, number, envelope) == checkpoint


CHECKPOINT = Checkpoint(NODE, 7, 1, [(b"user", ManifestRef(NODE, 7, 8, 20), 4), (b"gone", None, 0)])


@each_envelope
def test_every_damage_of_a_checkpoint_is_found(envelope: Envelope) -> None:
    encoded = encode_checkpoint(CHECKPOINT, envelope)
    assert_damage_is_found(encoded, lambda body: decode_checkpoint(body, NODE, 7, envelope), maybe_newer=True)


@each_envelope
def test_checkpoint_under_another_key_is_corrupt(envelope: Envelope) -> None:
    encoded = encode_checkpoint(CHECKPOINT, envelope)
    for node, number in [(NODE, 8), ("other", 7)]:
        with pytest.raises(RemoteCorrupt, match=checkpoint_key(node, number)):
            decode_checkpoint(encoded, node, number, envelope)


@pytest.mark.parametrize(
    "wrong",
    [
        Checkpoint(NODE, 8, 1, []),
        Checkpoint("other", 7, 1, []),
        Checkpoint(NODE, 7, -1, []),
        Checkpoint(NODE, 7, 1, [(b"", None, 0)]),
        Checkpoint(NODE, 7, 1, [(b"a/b", None, 0)]),
        Checkpoint(NODE, 7, 1, [(b"a", ManifestRef("../x", 1, 8, 9), 0)]),
    ],
    ids=["number", "node", "incarnation", "empty name", "path", "node elsewhere"],
)
def test_checkpoint_that_contradicts_itself_is_corrupt(wrong: Checkpoint) -> None:
    plain = wire.compress(msgspec.msgpack.encode(wrong))
    sealed = PLAIN.seal(plain, f"checkpoint {checkpoint_key(NODE, 7)}".encode())
    with pytest.raises(RemoteCorrupt, match=checkpoint_key(NODE, 7)):
        decode_checkpoint(wire.put_head(CHECKPOINT_MAGIC, 1, sealed), NODE, 7, PLAIN)


def test_newer_checkpoint_says_upgrade() -> None:
    with pytest.raises(RemoteUnsuitable, match=checkpoint_key(NODE, 7)):
        decode_checkpoint(wire.put_head(CHECKPOINT_MAGIC, 3, b"whatever"), NODE, 7, PLAIN)


# -- keys


def test_keys_are_those_of_the_document() -> None:
    assert segment_key("n", 255) == "nodes/n/segments/00000000000000ff"
    assert checkpoint_key("n", 0) == "nodes/n/checkpoints/0000000000000000"
    assert state_key("n") == "nodes/n/state"
    assert session_key(PLAIN, b".") == "sessions/=2E"
    assert session_key(AEAD, b"user") == "sessions/" + AeadEnvelope(MASTER_KEY).seal_name(b"user")


@given(st.integers(0, (1 << 63) - 1), st.integers(0, (1 << 63) - 1))
def test_numbered_keys_sort_by_number_and_are_parsed(one: int, other: int) -> None:
    assert (segment_key(NODE, one) < segment_key(NODE, other)) == (one < other)
    assert segment_key(NODE, one).startswith(segments_prefix(NODE))
    assert checkpoint_key(NODE, one).startswith(checkpoints_prefix(NODE))
    assert parse_segment_key(segment_key(NODE, one)) == (NODE, one)
    assert parse_checkpoint_key(checkpoint_key(NODE, one)) == (NODE, one)
    assert parse_segment_key(checkpoint_key(NODE, one)) is None
    assert parse_checkpoint_key(segment_key(NODE, one)) is None


@pytest.mark.parametrize("key", ["", "format", "nodes/n/state", "nodes/n/segments/1", "nodes//segments/" + "0" * 16])
def test_other_keys_are_not_parsed(key: str) -> None:
    assert parse_segment_key(key) is None
    assert parse_checkpoint_key(key) is None


@pytest.mark.parametrize("node", ["", ".", "..", "../x", "a/b", "a b", "ü", "x" * 101, "a\n"])
def test_a_node_name_that_is_none_is_a_bug(node: str) -> None:
    with pytest.raises(ValueError, match="not a node's name"):
        segment_key(node, 1)
    with pytest.raises(ValueError, match="not a node's name"):
        SegmentBuilder(node, 1, 1, PLAIN).add_frame(b"x")
