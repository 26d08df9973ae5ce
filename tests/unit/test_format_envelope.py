"""Envelopes: blobs and names come back, damage and wrong places are found, keys are wrapped and unwrapped."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessfs.errors import KeyWrong, RemoteCorrupt, RemoteUnsuitable
from sessfs.format.envelope import (
    MASTER_KEY_BYTES,
    NONCE_BYTES,
    PART_CHARS,
    SEAL_CHECKSUM_BYTES,
    TAG_BYTES,
    AeadEnvelope,
    Envelope,
    WrappedKey,
    unwrap_key,
    wrap_key,
)
from sessfs.remote.objectstore import check_key
from tests.support.formats import (
    AEAD,
    ENVELOPE_IDS,
    ENVELOPES,
    MASTER_KEY,
    OTHER_KEY,
    PLAIN,
    assert_damage_is_found,
    session_names,
)

each_envelope = pytest.mark.parametrize("envelope", ENVELOPES, ids=ENVELOPE_IDS)
EVERY_BYTE = bytes(sorted(set(range(1, 256)) - {0x2F}))


# -- blobs


@each_envelope
@given(plaintext=st.binary(max_size=300), context=st.binary(max_size=40))
def test_blob_round_trip(envelope: Envelope, plaintext: bytes, context: bytes) -> None:
    assert envelope.open(envelope.seal(plaintext, context), context) == plaintext


@each_envelope
@pytest.mark.parametrize("plaintext", [b"", b"x", b"some plaintext of a few bytes"])
def test_every_damage_of_a_blob_is_found(envelope: Envelope, plaintext: bytes) -> None:
    assert_damage_is_found(envelope.seal(plaintext, b"place"), lambda sealed: envelope.open(sealed, b"place"))


@each_envelope
@given(plaintext=st.binary(max_size=40), one=st.binary(max_size=10), other=st.binary(max_size=10))
def test_blob_opens_in_its_place_alone(envelope: Envelope, plaintext: bytes, one: bytes, other: bytes) -> None:
    if one != other:
        with pytest.raises(RemoteCorrupt):
            envelope.open(envelope.seal(plaintext, one), other)


def test_plain_context_and_plaintext_do_not_run_into_each_other() -> None:
    sealed = PLAIN.seal(b"bcd", b"a")
    with pytest.raises(RemoteCorrupt):
        PLAIN.open(sealed[1:], b"ab")


@each_envelope
@given(sealed=st.binary(max_size=80))
def test_opening_anything_raises_nothing_else(envelope: Envelope, sealed: bytes) -> None:
    with pytest.raises(RemoteCorrupt, match="the place"):
        envelope.open(sealed, b"the place")


@pytest.mark.parametrize("length", [0, 1, 1000])
def test_sealing_adds_what_the_document_says(length: int) -> None:
    assert len(PLAIN.seal(bytes(length), b"c")) == length + SEAL_CHECKSUM_BYTES
    assert len(AEAD.seal(bytes(length), b"c")) == length + NONCE_BYTES + TAG_BYTES


def test_encrypted_blob_differs_each_time_and_shows_nothing() -> None:
    one, two = AEAD.seal(b"secret words", b"c"), AEAD.seal(b"secret words", b"c")
    assert one != two
    assert b"secret" not in one + two
    assert (PLAIN.encrypted, AEAD.encrypted) == (False, True)


def test_blob_of_another_key_is_corrupt() -> None:
    with pytest.raises(RemoteCorrupt):
        AeadEnvelope(OTHER_KEY).open(AEAD.seal(b"x", b"c"), b"c")


def test_same_nonce_in_two_places_gives_unrelated_ciphertexts() -> None:
    """Each context has a key of its own, so a nonce that repeats elsewhere gives nothing away."""
    fixed = AeadEnvelope(MASTER_KEY, lambda n: bytes(n))
    one, two = fixed.seal(bytes(64), b"a"), fixed.seal(bytes(64), b"b")
    assert sum(x == y for x, y in zip(one[NONCE_BYTES:], two[NONCE_BYTES:], strict=True)) < 16


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_master_key_of_wrong_length_is_a_bug(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        AeadEnvelope(bytes(length))


# -- names


@each_envelope
@given(name=session_names)
def test_name_round_trip_gives_a_usable_key(envelope: Envelope, name: bytes) -> None:
    text = envelope.seal_name(name)
    assert envelope.open_name(text) == name
    assert envelope.seal_name(name) == text
    assert check_key(f"sessions/{text}") == f"sessions/{text}"
    # What AWS calls safe, and `=`: what every S3 store takes in a key.
    assert re.fullmatch(r"[A-Za-z0-9._=/-]+", text)
    assert all(len(part) <= PART_CHARS + 1 for part in text.split("/"))


@each_envelope
@pytest.mark.parametrize("name", [b".", b" ", b"...", b"..a", b"\xff" * 255, b"a" * 255, EVERY_BYTE[:255], b"\n"])
def test_hard_names_round_trip(envelope: Envelope, name: bytes) -> None:
    assert envelope.open_name(envelope.seal_name(name)) == name


@each_envelope
@given(one=session_names, other=session_names)
def test_no_name_is_anothers_directory(envelope: Envelope, one: bytes, other: bytes) -> None:
    """A store that keeps objects as files can't have both `a` and `a/b`."""
    if one != other:
        first, second = envelope.seal_name(one), envelope.seal_name(other)
        assert first != second
        assert not second.startswith(first + "/")


@each_envelope
def test_names_around_the_length_of_a_part_are_no_directories(envelope: Envelope) -> None:
    texts = [envelope.seal_name(b"a" * length) for length in range(100, 256)]
    texts += [envelope.seal_name(b"a" * length + b"\xff") for length in range(100, 255)]
    keys = set(texts)
    assert len(keys) == len(texts)
    directories = {text[:at] for text in texts for at in range(len(text)) if text[at] == "/"}
    assert not keys & directories


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"user-1_A.b", "user-1_A.b"),
        (b".", "=2E"),
        (b".hidden", "=2Ehidden"),
        (b"a b", "a=20b"),
        (b"=", "=3D"),
        ("é".encode(), "=C3=A9"),
        (b"49123@c.us", "49123=40c.us"),
        (b"x" * 241, "x" * 240 + "=/x"),
    ],
)
def test_plain_names_are_readable(name: bytes, text: str) -> None:
    assert PLAIN.seal_name(name) == text


@each_envelope
@pytest.mark.parametrize("name", [b"", b"..", b"a/b", b"a\0b", b"x" * 256])
def test_what_is_no_session_name_is_a_bug(envelope: Envelope, name: bytes) -> None:
    with pytest.raises(ValueError, match="not a session's name"):
        envelope.seal_name(name)


@each_envelope
@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", ".a", "=2E=2E", "=2e", "=41", "=", "a=", "a=/b", "a/b", "a b", "%2E", "=2F", "=00", "=0", "ä",
        "a\n", "\u017f", "aa", "aaaaaaaa", "\udcff", "AAAAAAAA", "x" * 241, "x" * 300, "a1", "=/", "=/a",
    ],
)  # fmt: skip
def test_keys_that_stand_for_no_name_are_corrupt(envelope: Envelope, text: str) -> None:
    if envelope is PLAIN and re.fullmatch("[ax1A]{2,8}", text):
        assert PLAIN.open_name(text) == text.encode()
        return
    with pytest.raises(RemoteCorrupt, match="the object key"):
        envelope.open_name(text)


@each_envelope
@given(text=st.text(max_size=30))
def test_opening_any_key_raises_nothing_else(envelope: Envelope, text: str) -> None:
    try:
        assert envelope.seal_name(envelope.open_name(text)) == text
    except RemoteCorrupt:
        return


def test_every_change_of_an_encrypted_name_is_found() -> None:
    text = AEAD.seal_name(b"user-1")
    for at in range(len(text)):
        for other in "abcdefghijklmnopqrstuvwxyz234567":
            if other != text[at]:
                with pytest.raises(RemoteCorrupt):
                    AEAD.open_name(text[:at] + other + text[at + 1 :])


def test_encrypted_names_of_another_key_are_corrupt() -> None:
    other = AeadEnvelope(OTHER_KEY)
    assert other.seal_name(b"user") != AEAD.seal_name(b"user")
    with pytest.raises(RemoteCorrupt):
        other.open_name(AEAD.seal_name(b"user"))


# -- keys


def test_key_is_unwrapped_with_its_secret_alone() -> None:
    wrapped = wrap_key(MASTER_KEY, b"correct horse")
    assert unwrap_key(wrapped, b"correct horse") == MASTER_KEY
    for wrong in (b"", b"correct horse ", b"Correct horse", MASTER_KEY):
        with pytest.raises(KeyWrong, match="--key-file"):
            unwrap_key(wrapped, wrong)


def test_wrapping_twice_gives_different_salt_and_ciphertext() -> None:
    one, two = wrap_key(MASTER_KEY, b"s"), wrap_key(MASTER_KEY, b"s")
    assert one.salt != two.salt
    assert one.ciphertext != two.ciphertext
    assert MASTER_KEY not in one.ciphertext


def test_wrapping_uses_what_the_document_says() -> None:
    wrapped = wrap_key(MASTER_KEY, b"s")
    assert (wrapped.kdf, wrapped.n, wrapped.r, wrapped.p) == ("scrypt", 1 << 15, 8, 1)
    assert (len(wrapped.salt), len(wrapped.nonce)) == (16, 12)
    assert len(wrapped.ciphertext) == MASTER_KEY_BYTES + TAG_BYTES


def test_empty_secret_is_refused() -> None:
    with pytest.raises(KeyWrong, match="empty"):
        wrap_key(MASTER_KEY, b"")


@pytest.mark.parametrize("field", ["salt", "nonce", "ciphertext"])
def test_changed_wrapped_key_is_wrong(field: str) -> None:
    wrapped = wrap_key(MASTER_KEY, b"s")
    value = getattr(wrapped, field)
    changed = msgspec.structs.replace(wrapped, **{field: bytes([value[0] ^ 1]) + value[1:]})
    with pytest.raises(KeyWrong):
        unwrap_key(changed, b"s")


@pytest.mark.parametrize(("n", "r"), [(1 << 22, 8), (1 << 20, 32), (48000, 8), (1 << 16, 1)])
def test_scrypt_of_any_size_is_not_granted(n: int, r: int) -> None:
    """A changed format object must not make a mount take all memory."""
    wrapped = WrappedKey("scrypt", n, r, 1, bytes(16), bytes(12), bytes(48))
    with pytest.raises(RemoteUnsuitable, match="scrypt"):
        unwrap_key(wrapped, b"s")
