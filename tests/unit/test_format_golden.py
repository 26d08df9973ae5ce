"""Every version of sessfs reads what an earlier one wrote: frozen bytes of each object and record, in tests/golden/."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec
import pytest

from sessfs.errors import KeyWrong
from sessfs.format.chunk import FrameCodec, verify_chunk
from sessfs.format.manifest import ManifestRef, merge
from sessfs.format.repository import (
    decode_format,
    decode_holder,
    decode_session_object,
    decode_state,
    encode_format,
    encode_holder,
    encode_session_object,
    encode_state,
    new_format,
    open_format,
)
from sessfs.format.roster import decode_roster, encode_roster
from sessfs.format.segment import Footer, decode_checkpoint, footer_of, open_frame, open_manifest
from sessfs.local import changes, chunkstore, inodes, places, snapshots
from sessfs.local.chunkstore import decode_frame_record
from sessfs.local.inodes import Inode, decode_inode
from sessfs.types import Ino
from tests.support import golden

if TYPE_CHECKING:
    from sessfs.format.envelope import Envelope

each_kind = pytest.mark.parametrize("kind", ["plain", "encrypted"])


def test_no_frozen_file_has_changed() -> None:
    assert golden.read(golden.SUMS).decode() == golden.sums()


def test_there_is_a_frozen_file_for_each_sample() -> None:
    assert {path.name for path in golden.GOLDEN.iterdir()} == {*golden.FILES, golden.SUMS}


def _envelope(kind: str) -> Envelope:
    """As a mount gets it: from the frozen format object and the secret."""
    form = decode_format(golden.read(f"format-{kind}.json"))
    hash_key, envelope = open_format(form, golden.SECRET if kind == "encrypted" else None)
    assert hash_key == golden.HASH_KEY
    return envelope


@each_kind
def test_format(kind: str) -> None:
    assert _envelope(kind).encrypted is (kind == "encrypted")
    form = decode_format(golden.read(f"format-{kind}.json"))
    assert encode_format(form) == golden.read(f"format-{kind}.json")
    secret = golden.SECRET if kind == "encrypted" else None
    assert form == new_format(golden.HASH_KEY, secret, golden.counting_bytes)
    with pytest.raises(KeyWrong):
        open_format(form, b"another secret")


@each_kind
def test_segment(kind: str) -> None:
    envelope, body = _envelope(kind), golden.read(f"segment-{kind}.bin")
    footer = footer_of(body, golden.NODE, 7, envelope)
    assert (footer.removed, footer.created_ns, footer.incarnation) == ([b"old user"], 1_700_000_061_000_000_000, 3)
    full, delta = (
        open_manifest(body[e.offset : e.offset + e.length], ManifestRef(golden.NODE, 7, e.offset, e.length), envelope)
        for e in footer.manifests
    )
    base = ManifestRef(golden.NODE, 7, footer.manifests[0].offset, footer.manifests[0].length)
    assert full == golden.full_manifest(footer.frames)
    assert delta == golden.delta_manifest(base)
    assert [(e.session, e.sequence, e.base) for e in footer.manifests] == [(b"user-1", 12, None), (b"user-1", 13, base)]
    merged = merge(full, [delta])
    assert [record.ino for record in merged.nodes] == [40, 41, 42, 44, 45]
    _check_frames(body, footer, envelope)


def _check_frames(body: bytes, footer: Footer, envelope: Envelope) -> None:
    found = []
    for at, length in footer.frames:
        entries, payload = decode_frame_record(open_frame(body[at : at + length], golden.NODE, 7, at, envelope))
        plain, offset = FrameCodec().decode(payload), 0
        for cid, n_bytes in entries:
            content = plain[offset : offset + n_bytes]
            verify_chunk(golden.HASH_KEY, cid, content)
            found.append((cid, content))
            offset += n_bytes
    assert found == list(zip(golden.CHUNKS, golden.CONTENTS, strict=True))


@each_kind
def test_checkpoint(kind: str) -> None:
    body = golden.read(f"checkpoint-{kind}.bin")
    assert decode_checkpoint(body, golden.NODE, 7, _envelope(kind)) == golden.CHECKPOINT


@each_kind
def test_session_object(kind: str) -> None:
    body = golden.read(f"session-{kind}.json")
    assert decode_session_object(body, _envelope(kind)) == golden.SESSION


@each_kind
def test_session_object_of_version_2(kind: str) -> None:
    body = golden.read(f"session2-{kind}.json")
    assert decode_session_object(body, _envelope(kind)) == golden.SESSION_2
    # The envelope of the samples makes no random bytes, so even the sealed marks are the same.
    assert encode_session_object(golden.SESSION_2, golden.ENVELOPES[kind]) == body


@each_kind
def test_checkpoint_of_version_2(kind: str) -> None:
    body = golden.read(f"checkpoint2-{kind}.bin")
    assert decode_checkpoint(body, golden.NODE, 7, _envelope(kind)) == golden.CHECKPOINT_2


def test_state() -> None:
    assert decode_state(golden.read("state.json")) == golden.STATE


def test_state_of_version_2() -> None:
    assert decode_state(golden.read("state2.json")) == golden.STATE_2
    assert encode_state(golden.STATE_2) == golden.read("state2.json")


@each_kind
def test_roster(kind: str) -> None:
    body = golden.read(f"roster-{kind}.bin")
    assert decode_roster(body, _envelope(kind)) == frozenset(golden.NAMES)
    assert encode_roster(golden.NAMES, golden.ENVELOPES[kind]) == body


def test_holder() -> None:
    assert decode_holder(golden.read("holder.json")) == golden.HOLDER
    assert encode_holder(golden.HOLDER) == golden.read("holder.json")


@each_kind
def test_names(kind: str) -> None:
    """Both ways: another key for the same name would make a session look absent."""
    envelope = _envelope(kind)
    frozen = json.loads(golden.read("names.json"))
    assert [bytes.fromhex(name) for name in frozen] == golden.NAMES
    for name, texts in frozen.items():
        assert envelope.open_name(texts[kind]) == bytes.fromhex(name)
        assert envelope.seal_name(bytes.fromhex(name)) == texts[kind]


def test_cuts_and_chunk_ids() -> None:
    """Both ways: other cuts or other ids would find no duplicates in what is stored."""
    frozen = json.loads(golden.read("cuts.json"))
    assert frozen["lengths"] == golden.cut_lengths()
    assert sum(frozen["lengths"]) == golden.CUT_BYTES
    assert frozen["ids"] == [cid.hex() for cid in golden.CHUNKS]


def _local(name: str) -> bytes:
    return bytes.fromhex(json.loads(golden.read("local.json"))[name])


def test_local_inode() -> None:
    inode, expected = decode_inode(Ino(41), _local("inodes value")), golden.local_inode()
    kept = [name for name in Inode.__slots__ if name not in ("changed_s", "opens", "ordered", "unsynced", "version")]
    assert {name: getattr(inode, name) for name in kept} == {name: getattr(expected, name) for name in kept}
    assert expected.encode() == _local("inodes value")


def test_local_frame() -> None:
    entries, payload = decode_frame_record(_local("frames value"))
    assert entries == [(golden.CHUNKS[n], len(golden.CONTENTS[n])) for n in (0, 1)]
    assert FrameCodec().decode(payload) == golden.CONTENTS[0] + golden.CONTENTS[1]


@pytest.mark.parametrize(
    ("name", "layout", "values"),
    [
        ("dentries value", inodes.DENTRY, (41, 0o100000)),
        ("sessions value", inodes.SESSION, (7, 123_456, 1_700_000_000_000_000_003)),
        ("super next-number", inodes.COUNTER, (8192,)),
        ("refs value", chunkstore.REF_COUNT, (3,)),
        ("dirty value", changes.SINCE, (1_700_000_000_000_000_003,)),
        ("places value", places.PLACE_RECORD, (2, 8, 99)),
        ("segments key", places.SEGMENT_KEY, (2,)),
        ("frames key", chunkstore.FRAME_KEY, (5,)),
        ("index value", chunkstore.PLACE, (5, 1080, 300)),
        ("live value", chunkstore.LIVE_BYTES, (1380,)),
        ("totals value", chunkstore.TOTALS_RECORD, (6, 1000, 1380)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_local_record(name: str, layout: object, values: tuple[int, ...]) -> None:
    assert layout.unpack(_local(name)) == values  # type: ignore[attr-defined]


def test_local_msgpack_records() -> None:
    decode = msgspec.msgpack.decode
    assert decode(_local("published value"), type=places.Published) == golden.PUBLISHED
    assert decode(_local("published value of a stub"), type=places.Published) == golden.STUB
    assert decode(_local("outbox value"), type=places.Outbox) == golden.OUTBOX
    assert decode(_local("segments value"), type=tuple[str, int]) == (golden.NODE, 7)


def test_local_snapshots() -> None:
    frozen = {name: bytes.fromhex(value) for name, value in json.loads(golden.read("local2.json")).items()}
    decode = msgspec.msgpack.decode
    assert decode(frozen["snapshots value"], type=snapshots.Snapshot) == golden.SNAPSHOT
    assert decode(frozen["snapshots value of an uploaded one"], type=snapshots.Snapshot) == golden.UPLOADED_SNAPSHOT
    assert snapshots.SNAPSHOT_KEY.unpack(frozen["snapshots key"]) == (40, 13)
    assert snapshots.SEQUENCE.unpack(frozen["sequences value"]) == (13,)


def test_local_dentry_key() -> None:
    assert _local("dentries key") == b"\0\0\0\0\0\0\0\x28file"
