"""Chunks and frames: cutting is content-defined and complete, names are keyed, damaged frames are found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import blake3
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sessfs.errors import StoreCorrupt
from sessfs.format.chunk import (
    CHUNK_MAX_BYTES,
    CHUNK_MIN_BYTES,
    FRAME_MAX_BYTES,
    Cutter,
    FrameCodec,
    chunk_id,
    verify_chunk,
)
from sessfs.local.chunkstore import decode_frame_record, encode_frame_record
from sessfs.types import CHUNK_ID_BYTES, ChunkId

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = bytes(range(32))
OTHER_KEY = bytes(32)


def noise(seed: int, length: int) -> bytes:
    """The same incompressible bytes each time."""
    return blake3.blake3(seed.to_bytes(8, "little")).digest(length=length)


# -- cutting


def test_pieces_laid_end_to_end_are_the_buffer() -> None:
    for length in (0, 1, CHUNK_MIN_BYTES, CHUNK_MIN_BYTES + 1, CHUNK_MAX_BYTES, 1_000_003):
        content = noise(length, length) if length else b""
        pieces = list(Cutter().cut(content))
        assert b"".join(pieces) == content
        assert all(CHUNK_MIN_BYTES <= len(piece) <= CHUNK_MAX_BYTES for piece in pieces[:-1])
        assert all(0 < len(piece) <= CHUNK_MAX_BYTES for piece in pieces)


@settings(max_examples=20)
@given(st.integers(0, 1 << 30), st.integers(0, 300_000), st.binary(min_size=1, max_size=100))
def test_an_insertion_changes_few_pieces(seed: int, at: int, inserted: bytes) -> None:
    """What deduplication lives on: after the insertion the cuts fall where they fell before."""
    content = noise(seed, 1 << 20)
    before = {bytes(piece) for piece in Cutter().cut(content)}
    after = [bytes(piece) for piece in Cutter().cut(content[:at] + inserted + content[at:])]
    changed = sum(len(piece) for piece in after if piece not in before)
    assert changed <= 6 * CHUNK_MAX_BYTES


@pytest.mark.parametrize("content", [bytes(1 << 20), b"ab" * (1 << 19)], ids=["zeros", "repeating"])
def test_content_without_cuts_is_cut_at_the_maximum(content: bytes) -> None:
    lengths = [len(piece) for piece in Cutter().cut(content)]
    assert sum(lengths) == len(content)
    assert max(lengths) <= CHUNK_MAX_BYTES


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_cut_alike(kind: type) -> None:
    content = noise(5, 300_000)
    assert [bytes(p) for p in Cutter().cut(kind(content))] == [bytes(p) for p in Cutter().cut(content)]


# -- names


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_names_are_keyed_and_differ(one: bytes, other: bytes) -> None:
    assert len(chunk_id(KEY, one)) == CHUNK_ID_BYTES
    assert chunk_id(KEY, one) == chunk_id(KEY, bytearray(one))
    assert chunk_id(KEY, one) != chunk_id(OTHER_KEY, one)
    assert (chunk_id(KEY, one) == chunk_id(KEY, other)) is (one == other)


def test_changed_chunk_does_not_verify() -> None:
    content = noise(1, 300)
    name = chunk_id(KEY, content)
    verify_chunk(KEY, name, content)
    for at in range(len(content)):
        damaged = content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
        with pytest.raises(StoreCorrupt, match=name.hex()):
            verify_chunk(KEY, name, damaged)
    with pytest.raises(StoreCorrupt):
        verify_chunk(OTHER_KEY, name, content)


# -- frames


def decode_into(frame: bytes) -> bytes:
    """By `decode_into`, into a block that had something else in it."""
    block = bytearray(b"\xee" * FRAME_MAX_BYTES)
    return bytes(block[: FrameCodec().decode_into(frame, block)])


DECODERS = [FrameCodec().decode, decode_into, lambda frame: bytes(FrameCodec().view(frame))]


@pytest.mark.parametrize("decode", DECODERS)
@given(st.lists(st.binary(max_size=500), max_size=6))
def test_frame_round_trip(decode: Callable[[bytes], bytes], chunks: list[bytes]) -> None:
    assert decode(FrameCodec().encode(chunks)) == b"".join(chunks)


@pytest.mark.parametrize("decode", DECODERS)
def test_largest_frame_round_trip(decode: Callable[[bytes], bytes]) -> None:
    codec = FrameCodec()
    for content in (bytes(FRAME_MAX_BYTES), noise(3, FRAME_MAX_BYTES)):
        assert decode(codec.encode([content])) == content


@pytest.mark.parametrize("decode", DECODERS)
def test_frame_that_is_cut_short_anywhere_is_corrupt(decode: Callable[[bytes], bytes]) -> None:
    frame = FrameCodec().encode([noise(1, 300), b"again and again " * 50])
    for end in range(len(frame)):
        with pytest.raises(StoreCorrupt):
            decode(frame[:end])


@given(st.binary(max_size=200))
def test_decoding_anything_raises_nothing_else(frame: bytes) -> None:
    for encoded in (frame, b"\x28\xb5\x2f\xfd" + frame):
        for decode in DECODERS:
            try:
                assert len(decode(encoded)) <= FRAME_MAX_BYTES
            except StoreCorrupt:
                continue


def test_decompression_is_bounded() -> None:
    bomb = zstandard.ZstdCompressor(level=1).compress(bytes(FRAME_MAX_BYTES + 1))
    unsized = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(FRAME_MAX_BYTES + 1))
    for frame in (bomb, unsized):
        for decode in DECODERS:
            with pytest.raises(StoreCorrupt):
                decode(frame)


def test_no_damage_of_a_frame_record_gives_a_wrong_chunk() -> None:
    """Frames have no checksum of their own: what they hold is verified by its name."""
    codec = FrameCodec()
    chunks = [noise(7, 60), b"text, text, text, text, text", noise(8, 40)]
    names = [chunk_id(KEY, chunk) for chunk in chunks]
    contents = dict(zip(names, chunks, strict=True))
    record = encode_frame_record([(n, len(c)) for n, c in contents.items()], codec.encode(chunks))
    assert _read_frame(record) == contents
    for at in range(len(record)):
        for bit in range(8):
            damaged = record[:at] + bytes([record[at] ^ 1 << bit]) + record[at + 1 :]
            for name, content in _read_frame(damaged).items():
                assert contents[name] == content
        assert set(_read_frame(record[:at])) <= set(names)


def _read_frame(record: bytes) -> dict[ChunkId, bytes]:
    """The chunks of the record that verify."""
    found = {}
    try:
        entries, payload = decode_frame_record(record)
        plain = FrameCodec().decode(payload)
    except StoreCorrupt:
        return {}
    offset = 0
    for name, length in entries:
        try:
            verify_chunk(KEY, name, plain[offset : offset + length])
            found[name] = plain[offset : offset + length]
        except StoreCorrupt:
            pass
        offset += length
    return found
