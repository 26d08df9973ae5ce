"""What all remote records share: strict decoding, versions, bounded decompression, checksummed JSON, types of fields.

Every decoder here turns whatever is wrong with its input into RemoteCorrupt, or into RemoteUnsuitable for a version
that only a newer sessfs knows; both name *what* was read, which callers give as the object's key.
"""

from __future__ import annotations

import struct
from typing import Annotated, TypeVar

import blake3
import msgspec
import zstandard

from sessfs.errors import RemoteCorrupt, RemoteUnsuitable
from sessfs.types import CHUNK_ID_BYTES, TIME_MAX_NS, TIME_MIN_NS

T = TypeVar("T")

HEAD = struct.Struct("<6sH")
"""Magic and version, at the start of a binary record."""
PLAIN_MAX_BYTES = 256 << 20
"""No record decompresses to more."""
ZSTD_LEVEL = 6
NAME_MAX_BYTES = 255
CHECKSUM_BYTES = 8
CHECKSUM_OPEN = b',"checksum":"'
CHECKSUM_CLOSE = b'"}\n'
CHECKSUM_TAIL_BYTES = len(CHECKSUM_OPEN) + 2 * CHECKSUM_BYTES + len(CHECKSUM_CLOSE)

NodeName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")]
"""A node's name is a part of object keys, in the clear."""
Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Number32 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
Positive32 = Annotated[int, msgspec.Meta(ge=1, le=(1 << 32) - 1)]
Ino = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
TimeNs = Annotated[int, msgspec.Meta(ge=TIME_MIN_NS, le=TIME_MAX_NS)]
"""Nanoseconds since 1970."""
SessionName = Annotated[bytes, msgspec.Meta(min_length=1, max_length=NAME_MAX_BYTES)]


class _Versioned(msgspec.Struct):
    version: int


def is_name(name: bytes) -> bool:
    """True for what may be the name of a directory entry."""
    return 0 < len(name) <= NAME_MAX_BYTES and b"/" not in name and b"\0" not in name and name not in (b".", b"..")


def is_session_name(name: bytes) -> bool:
    """True for what may be the name of a session: that of an entry, or `.`, the session of the root's plain files."""
    return name == b"." or is_name(name)


def is_id_list(ids: bytes) -> bool:
    """True when *ids* is a whole number of chunk ids laid end to end."""
    return len(ids) % CHUNK_ID_BYTES == 0


def check_version(version: int, newest: int, what: str) -> None:
    """Raises RemoteUnsuitable for a version above *newest*, RemoteCorrupt for one that never was."""
    if version > newest:
        raise RemoteUnsuitable(
            f"{what} was written by a newer sessfs (version {version}, this one knows up to {newest}): upgrade sessfs"
        )
    if version < 1:
        raise RemoteCorrupt(f"{what} has version {version}, which no sessfs ever wrote")


def put_head(magic: bytes, version: int, rest: bytes) -> bytes:
    """*rest* behind its magic and version."""
    return HEAD.pack(magic, version) + rest


def take_head(encoded: bytes, magic: bytes, newest: int, what: str) -> bytes:
    """What follows the head; raises unless it begins with *magic* and a version up to *newest*."""
    if len(encoded) < HEAD.size:
        raise RemoteCorrupt(f"{what} is cut short: {len(encoded)} bytes")
    found, version = HEAD.unpack_from(encoded)
    if found != magic:
        raise RemoteCorrupt(f"{what} begins with {found!r} instead of {magic!r}")
    check_version(version, newest, what)
    return encoded[HEAD.size :]


def compress(plaintext: bytes) -> bytes:
    """One zstd frame of *plaintext*, which is not empty, with its size and checksum."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True, write_checksum=True).compress(plaintext)


def decompress(frame: bytes, what: str) -> bytes:
    """Inverse of `compress`; allocates no more than PLAIN_MAX_BYTES, whatever the frame says of itself."""
    try:
        size = zstandard.frame_content_size(frame)
        # Of a frame that says 0 the library does not even look at the content.
        if not 0 < size <= PLAIN_MAX_BYTES:
            raise RemoteCorrupt(f"{what} claims {size} bytes of content, not 1 to {PLAIN_MAX_BYTES}")
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise RemoteCorrupt(f"{what} does not decompress: {exc}") from exc


def decode_msgpack(encoded: bytes, kind: type[T], what: str) -> T:
    """The record of type *kind*, every field checked."""
    try:
        return msgspec.msgpack.decode(encoded, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RemoteCorrupt(f"{what} does not decode: {exc}") from exc


def _checksum(text: bytes) -> bytes:
    return blake3.blake3(text).hexdigest(length=CHECKSUM_BYTES).encode()


def encode_json(record: msgspec.Struct) -> bytes:
    """One JSON object on one line, whose last member is the checksum of all bytes before that member."""
    text = msgspec.json.encode(record)[:-1]
    return text + CHECKSUM_OPEN + _checksum(text) + CHECKSUM_CLOSE


def decode_json(encoded: bytes, kind: type[T], newest: int, what: str) -> T:
    """Inverse of `encode_json`. The checksum is looked at first, so that damage never passes for a newer version."""
    text, tail = encoded[:-CHECKSUM_TAIL_BYTES], encoded[-CHECKSUM_TAIL_BYTES:]
    if tail != CHECKSUM_OPEN + _checksum(text) + CHECKSUM_CLOSE:
        raise RemoteCorrupt(f"{what} is damaged: its checksum does not match")
    try:
        check_version(msgspec.json.decode(text + b"}", type=_Versioned).version, newest, what)
        return msgspec.json.decode(text + b"}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RemoteCorrupt(f"{what} does not decode: {exc}") from exc
