"""What the remote records share: heads, versions, bounded decompression, strict msgpack, checksummed JSON."""

from __future__ import annotations

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sessfs.errors import RemoteCorrupt, RemoteUnsuitable
from sessfs.format import wire
from tests.support.formats import assert_damage_is_found, entry_names, session_names

MAGIC = b"SFSXYZ"


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A record as the real ones are made."""

    version: int
    text: str
    count: wire.Count = 0


@given(st.binary(max_size=50), st.integers(1, 3))
def test_head_round_trip(rest: bytes, version: int) -> None:
    assert wire.take_head(wire.put_head(MAGIC, version, rest), MAGIC, 3, "x") == rest


def test_head_of_newer_version_says_upgrade() -> None:
    with pytest.raises(RemoteUnsuitable, match=r"nodes/n/x was written by a newer sessfs \(version 2.*upgrade"):
        wire.take_head(wire.put_head(MAGIC, 2, b""), MAGIC, 1, "nodes/n/x")


@pytest.mark.parametrize("encoded", [b"", MAGIC, b"SFSXYA\1\0rest", wire.put_head(MAGIC, 0, b"rest")])
def test_head_that_is_not_one_is_corrupt(encoded: bytes) -> None:
    with pytest.raises(RemoteCorrupt, match="nodes/n/x"):
        wire.take_head(encoded, MAGIC, 1, "nodes/n/x")


@given(st.binary(min_size=1, max_size=2000))
def test_compression_round_trip(plaintext: bytes) -> None:
    assert wire.decompress(wire.compress(plaintext), "x") == plaintext


def test_damaged_compression_never_gives_other_bytes() -> None:
    plaintext = b"some text, some text, some text" * 3
    frame = wire.compress(plaintext)
    for at in range(len(frame)):
        for bit in range(8):
            damaged = frame[:at] + bytes([frame[at] ^ 1 << bit]) + frame[at + 1 :]
            try:
                assert wire.decompress(damaged, "x") == plaintext
            except RemoteCorrupt:
                continue


@given(st.binary(max_size=200))
def test_decompressing_anything_raises_nothing_else(encoded: bytes) -> None:
    with pytest.raises(RemoteCorrupt, match="what "):
        wire.decompress(encoded, "what")


def test_decompression_is_bounded() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(wire.PLAIN_MAX_BYTES + 1))
    with pytest.raises(RemoteCorrupt, match="claims"):
        wire.decompress(bomb, "x")


def test_frame_that_does_not_say_its_size_is_corrupt() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100)
    with pytest.raises(RemoteCorrupt):
        wire.decompress(frame, "x")


def test_bytes_after_the_frame_are_corrupt() -> None:
    with pytest.raises(RemoteCorrupt):
        wire.decompress(wire.compress(b"x") + b"y", "x")


@given(st.binary(max_size=60))
def test_msgpack_of_anything_raises_nothing_else(encoded: bytes) -> None:
    with pytest.raises(RemoteCorrupt, match="what "):
        wire.decode_msgpack(encoded, Sample, "what")


def test_msgpack_string_that_is_no_utf8_is_corrupt() -> None:
    with pytest.raises(RemoteCorrupt, match="what does not decode"):
        wire.decode_msgpack(b"\x83\xa7version\x01\xa4text\xa1\xff\xa5count\x00", Sample, "what")


@given(st.text(max_size=30), st.integers(0, (1 << 63) - 1))
def test_json_round_trip(text: str, count: int) -> None:
    record = Sample(1, text, count)
    encoded = wire.encode_json(record)
    assert wire.decode_json(encoded, Sample, 1, "x") == record
    assert encoded.endswith(b"\n")
    assert msgspec.json.decode(encoded)["text"] == text


def test_every_damage_of_json_is_found() -> None:
    encoded = wire.encode_json(Sample(1, "text", 7))
    assert_damage_is_found(encoded, lambda body: wire.decode_json(body, Sample, 1, "x"))


def test_json_of_newer_version_says_upgrade_though_it_has_other_fields() -> None:
    encoded = wire.encode_json(msgspec.defstruct("Later", [("version", int), ("new", bool)])(2, True))
    with pytest.raises(RemoteUnsuitable, match="state was written by a newer sessfs"):
        wire.decode_json(encoded, Sample, 1, "state")


@pytest.mark.parametrize(
    "record",
    [
        msgspec.defstruct("More", [("version", int), ("text", str), ("more", int)])(1, "", 0),
        msgspec.defstruct("Less", [("version", int)])(1),
        msgspec.defstruct("Other", [("version", int), ("text", int)])(1, 1),
        msgspec.defstruct("Old", [("version", int), ("text", str)])(0, ""),
        msgspec.defstruct("No", [("text", str)])(""),
        Sample(1, "", -1),
        Sample(1, "", 1 << 63),
    ],
    ids=lambda record: type(record).__name__,
)
def test_json_with_right_checksum_and_wrong_fields_is_corrupt(record: msgspec.Struct) -> None:
    with pytest.raises(RemoteCorrupt, match=r"state does not decode|state has version 0"):
        wire.decode_json(wire.encode_json(record), Sample, 1, "state")


@given(entry_names)
def test_entry_names_are_names_of_both_kinds(name: bytes) -> None:
    assert wire.is_name(name)
    assert wire.is_session_name(name)


@pytest.mark.parametrize("name", [b"", b"..", b"a/b", b"/", b"a\0", b"x" * 256])
def test_what_is_no_name(name: bytes) -> None:
    assert not wire.is_name(name)
    assert not wire.is_session_name(name)


@given(session_names)
def test_dot_is_the_one_session_that_is_no_entry(name: bytes) -> None:
    assert wire.is_session_name(name)
    assert wire.is_name(name) is (name != b".")
