"""The JSON objects: format and its keys, node states, session objects, the holder."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessfs.errors import KeyWrong, RemoteCorrupt, RemoteUnsuitable
from sessfs.format import wire
from sessfs.format.envelope import AeadEnvelope, Envelope, PlainEnvelope, wrap_key
from sessfs.format.manifest import ManifestRef
from sessfs.format.repository import (
    Chunker,
    Format,
    Holder,
    KeptSnapshot,
    NodeState,
    SessionObject,
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
    rewrap_format,
)
from tests.support.formats import (
    AEAD,
    ENVELOPE_IDS,
    ENVELOPES,
    OTHER_KEY,
    PLAIN,
    assert_damage_is_found,
    counts,
    manifest_refs,
    node_names,
    session_names,
    times,
)

HASH_KEY = bytes(range(32, 64))
SECRET = b"correct horse"
PLAIN_FORMAT = new_format(HASH_KEY, None)
SEALED_FORMAT = new_format(HASH_KEY, SECRET)
REF = ManifestRef("node-1", 5, 8, 100)
each_envelope = pytest.mark.parametrize("envelope", ENVELOPES, ids=ENVELOPE_IDS)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


# -- format


def test_clear_repository_opens_without_a_key() -> None:
    hash_key, envelope = open_format(decode_format(encode_format(PLAIN_FORMAT)), None)
    assert hash_key == HASH_KEY
    assert isinstance(envelope, PlainEnvelope)


def test_encrypted_repository_opens_with_its_key_and_hides_the_hash_key() -> None:
    encoded = encode_format(SEALED_FORMAT)
    hash_key, envelope = open_format(decode_format(encoded), SECRET)
    assert hash_key == HASH_KEY
    assert isinstance(envelope, AeadEnvelope)
    assert json.loads(encoded)["hash_key"] is None
    _, again = open_format(decode_format(encoded), SECRET)
    assert again.open(envelope.seal(b"x", b"c"), b"c") == b"x"


@pytest.mark.parametrize(
    ("form", "secret", "words"),
    [
        (SEALED_FORMAT, None, "is encrypted: give its key"),
        (SEALED_FORMAT, b"wrong", "not the one this remote is encrypted with"),
        (SEALED_FORMAT, b"", "not the one this remote is encrypted with"),
        (PLAIN_FORMAT, SECRET, "a key was given, but the remote is not encrypted"),
    ],
    ids=["missing", "wrong", "empty", "needless"],
)
def test_key_that_does_not_fit_is_explained(form: Format, secret: bytes | None, words: str) -> None:
    with pytest.raises(KeyWrong, match=words):
        open_format(form, secret)


def test_no_repository_is_made_with_an_empty_key() -> None:
    with pytest.raises(KeyWrong, match="empty"):
        new_format(HASH_KEY, b"")


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_hash_key_of_wrong_length_is_a_bug(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        new_format(bytes(length), None)


def test_two_repositories_have_different_ids_and_keys() -> None:
    other = new_format(HASH_KEY, SECRET)
    assert other.repository_id != SEALED_FORMAT.repository_id
    _, envelope = open_format(other, SECRET)
    _, first = open_format(SEALED_FORMAT, SECRET)
    assert envelope.seal_name(b"user") != first.seal_name(b"user")


def test_rotating_the_key_changes_the_secret_alone() -> None:
    rotated = rewrap_format(SEALED_FORMAT, SECRET, b"new secret")
    assert rotated.repository_id == SEALED_FORMAT.repository_id
    hash_key, envelope = open_format(decode_format(encode_format(rotated)), b"new secret")
    _, before = open_format(SEALED_FORMAT, SECRET)
    assert hash_key == HASH_KEY
    assert envelope.open(before.seal(b"x", b"c"), b"c") == b"x"
    assert envelope.seal_name(b"user") == before.seal_name(b"user")
    with pytest.raises(KeyWrong):
        open_format(rotated, SECRET)


@pytest.mark.parametrize(
    ("form", "secret", "new"),
    [(SEALED_FORMAT, b"wrong", b"n"), (SEALED_FORMAT, SECRET, b""), (PLAIN_FORMAT, b"x", b"n")],
)
def test_rotating_needs_the_old_key_and_a_new_one(form: Format, secret: bytes, new: bytes) -> None:
    with pytest.raises(KeyWrong):
        rewrap_format(form, secret, new)


@pytest.mark.parametrize("form", [PLAIN_FORMAT, SEALED_FORMAT], ids=ENVELOPE_IDS)
def test_every_damage_of_the_format_is_found(form: Format) -> None:
    """So a turned bit is never reported as a wrong key."""
    assert_damage_is_found(encode_format(form), decode_format)


def test_newer_format_says_upgrade() -> None:
    newer = msgspec.structs.replace(PLAIN_FORMAT, version=2)
    with pytest.raises(RemoteUnsuitable, match=r"format was written by a newer sessfs.*upgrade"):
        decode_format(wire.encode_json(newer))


def test_unknown_cipher_is_unsuitable() -> None:
    with pytest.raises(RemoteUnsuitable, match="rot13"):
        decode_format(encode_format(msgspec.structs.replace(PLAIN_FORMAT, cipher="rot13")))


@pytest.mark.parametrize(
    "changes",
    [{"min": 4096}, {"avg": 65536}, {"max": 1 << 20}, {"normalization": 1}, {"algorithm": "rabin"}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_chunks_are_unsuitable(changes: dict[str, object]) -> None:
    form = msgspec.structs.replace(PLAIN_FORMAT, chunker=msgspec.structs.replace(Chunker(), **changes))
    with pytest.raises(RemoteUnsuitable, match="cut by"):
        open_format(decode_format(encode_format(form)), None)


@pytest.mark.parametrize(
    "changes",
    [
        {"hash_key": None},
        {"hash_key": bytes(31)},
        {"cipher": "aes-256-gcm"},
        {"wrapped": SEALED_FORMAT.wrapped},
        {"repository_id": "XY"},
        {"version": 0},
    ],
    ids=["no hash key", "short hash key", "no wrapped key", "both", "id", "version"],
)
def test_format_that_contradicts_itself_is_corrupt(changes: dict[str, object]) -> None:
    with pytest.raises(RemoteCorrupt, match="format"):
        decode_format(encode_format(msgspec.structs.replace(PLAIN_FORMAT, **changes)))


def test_wrapped_keys_of_another_length_are_corrupt() -> None:
    with pytest.raises(RemoteCorrupt, match="wraps 32 bytes"):
        open_format(msgspec.structs.replace(SEALED_FORMAT, wrapped=wrap_key(bytes(32), SECRET)), SECRET)


@given(st.binary(max_size=80))
def test_decoding_anything_raises_nothing_else(encoded: bytes) -> None:
    for decode in (decode_format, decode_state, decode_holder, lambda body: decode_session_object(body, PLAIN)):
        with pytest.raises(RemoteCorrupt):
            decode(encoded)


# -- node state


STATE = NodeState(node="node-1", hostname="höst", incarnation=3, last_segment=9, last_checkpoint=8, fenced_by=None)


@given(
    st.builds(
        NodeState,
        node=node_names,
        hostname=texts,
        incarnation=counts,
        last_segment=st.integers(10, 20),
        last_checkpoint=st.integers(0, 10),
        has_checkpoint=st.booleans(),
        beat=counts,
        fenced_by=st.none() | texts,
        clean=st.booleans(),
    )
)
def test_state_round_trip(state: NodeState) -> None:
    assert decode_state(encode_state(state)) == state


def test_every_damage_of_a_state_is_found() -> None:
    assert_damage_is_found(encode_state(STATE), decode_state)


@pytest.mark.parametrize(
    "changes",
    [
        {"node": "../x"},
        {"incarnation": -1},
        {"last_checkpoint": 10},
        {"clean": 1},
        {"version": 0},
        {"fenced_by": 5},
        {"beat": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_state_that_contradicts_itself_is_corrupt(changes: dict[str, object]) -> None:
    with pytest.raises(RemoteCorrupt, match="nodes/node-1/state"):
        decode_state(encode_state(msgspec.structs.replace(STATE, **changes)), "nodes/node-1/state")


def test_newer_state_says_upgrade() -> None:
    with pytest.raises(RemoteUnsuitable, match=r"nodes/x/state .*upgrade"):
        decode_state(encode_state(msgspec.structs.replace(STATE, version=3)), "nodes/x/state")


# -- session objects


kept_snapshots = st.builds(KeptSnapshot, counts, times, manifest_refs, texts)


@each_envelope
@settings(max_examples=50)
@given(
    record=st.builds(
        SessionObject,
        name=session_names,
        holder=st.none() | st.tuples(node_names, counts),
        manifest=st.none() | manifest_refs,
        sequence=counts,
        kept=st.lists(kept_snapshots, max_size=3),
    )
)
def test_session_object_round_trip(envelope: Envelope, record: SessionObject) -> None:
    assert decode_session_object(encode_session_object(record, envelope), envelope) == record


SESSION = SessionObject(b"user-1", ("node-1", 4), REF, 12, [KeptSnapshot(7, 1000, REF, "before the update")])


@each_envelope
def test_every_damage_of_a_session_object_is_found(envelope: Envelope) -> None:
    assert_damage_is_found(encode_session_object(SESSION, envelope), lambda body: decode_session_object(body, envelope))


def test_encrypted_session_object_shows_neither_name_nor_mark() -> None:
    encoded = encode_session_object(SESSION, AEAD)
    assert b"user" not in encoded
    assert b"update" not in encoded
    with pytest.raises(RemoteCorrupt):
        decode_session_object(encoded, AeadEnvelope(OTHER_KEY))


def test_mark_of_another_snapshot_or_session_is_corrupt() -> None:
    """Marks are sealed for their place, as everything is."""
    fields = json.loads(encode_session_object(SESSION, AEAD))
    mark = fields["kept"][0][3]
    other = json.loads(encode_session_object(msgspec.structs.replace(SESSION, name=b"user-2"), AEAD))
    for change in (
        {"kept": [[8, 1000, list(REF), mark]]},
        {"name": other["name"]},
        {"kept": [[7, 0, list(REF), "no"]]},
    ):
        with pytest.raises(RemoteCorrupt, match="mark of snapshot"):
            decode_session_object(_json(fields | change), AEAD)


def _json(fields: dict[str, object]) -> bytes:
    """An object with these members and a right checksum."""
    fields.pop("checksum", None)
    return wire.encode_json(msgspec.defstruct("Any", [(name, object) for name in fields])(**fields))


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "a/b"},
        {"name": ""},
        {"name": "=41"},
        {"holder": ["node-1"]},
        {"holder": ["../x", 1]},
        {"manifest": ["node-1", 5, 8, 0]},
        {"manifest": ["node-1", 5, 8]},
        {"sequence": -1},
        {"sequence": "1"},
        {"kept": None},
        {"kept": [[1, 2, ["node-1", 5, 8, 9], "mark", 0]]},
        {"version": 0},
        {"extra": 1},
    ],
    ids=str,
)
def test_session_object_that_contradicts_itself_is_corrupt(changes: dict[str, object]) -> None:
    fields = json.loads(encode_session_object(SESSION, PLAIN)) | changes
    with pytest.raises(RemoteCorrupt):
        decode_session_object(_json(fields), PLAIN)


def test_newer_session_object_says_upgrade() -> None:
    fields = json.loads(encode_session_object(SESSION, PLAIN)) | {"version": 3, "lease": "new"}
    with pytest.raises(RemoteUnsuitable, match=r"sessions/user-1 .*upgrade"):
        decode_session_object(_json(fields), PLAIN, "sessions/user-1")


# -- holder


HOLDER = Holder("node-1", 3, "host", 4711, "2026-02-03T04:05:06Z")


@given(st.builds(Holder, node_names, counts, texts, st.integers(0, 1 << 22), st.just("2026-02-03T04:05:06.5+01:00")))
def test_holder_round_trip(holder: Holder) -> None:
    assert decode_holder(encode_holder(holder)) == holder


def test_every_damage_of_a_holder_is_found() -> None:
    assert_damage_is_found(encode_holder(HOLDER), decode_holder)


@pytest.mark.parametrize(
    "changes",
    [{"node": "a/b"}, {"pid": -1}, {"since": "yesterday"}, {"since": "2026-02-03T04:05:06Z\n"}, {"incarnation": -1}],
    ids=str,
)
def test_holder_that_contradicts_itself_is_corrupt(changes: dict[str, object]) -> None:
    with pytest.raises(RemoteCorrupt, match="holder"):
        decode_holder(encode_holder(msgspec.structs.replace(HOLDER, **changes)))


def test_newer_holder_says_upgrade() -> None:
    with pytest.raises(RemoteUnsuitable, match=r"holder .*upgrade"):
        decode_holder(encode_holder(msgspec.structs.replace(HOLDER, version=2)))
