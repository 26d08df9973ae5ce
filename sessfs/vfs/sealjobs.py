"""What the daemon and the seal process say to each other: length-prefixed msgpack over the process's two pipes."""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, TypeVar

import msgspec

from sessfs.types import clamp_time_ns

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO

LENGTH = struct.Struct("<I")
T = TypeVar("T")


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First message: which chunk environment to write, under which hash key, and how hard to compress. It is answered
    once the process may write there, and then each request is.
    """

    chunks_path: str
    key: bytes
    map_size_bytes: int
    level: int


class Span(msgspec.Struct, frozen=True, array_like=True):
    """Bytes [start, end) of a file: to be cut out of the hot file, or, when *keep* is given, these packed extents."""

    start: int
    end: int
    keep: bytes | None = None


class SealFile(msgspec.Struct, frozen=True):
    """One file to seal; its spans cover it from 0 to its size."""

    ino: int
    version: int
    hot_path: str
    spans: list[Span]


class SealRequest(msgspec.Struct, frozen=True, tag="seal"):
    """Seal these files, neighbours sharing frames. Chunks in *damaged* are stored again where the files have them."""

    files: list[SealFile]
    damaged: list[bytes] = []


class DropRequest(msgspec.Struct, frozen=True, tag="drop"):
    """Remove these chunks, which nothing names."""

    ids: list[bytes]


class FetchedFrame(msgspec.Struct, frozen=True, array_like=True):
    """A frame record that came from the remote, and which of its chunks are wanted here."""

    record: bytes
    wanted: list[bytes]


class StoreRequest(msgspec.Struct, frozen=True, tag="store"):
    """Keep these frames as they are. Chunks in *damaged* are replaced, even if they are stored."""

    frames: list[FetchedFrame]
    damaged: list[bytes] = []


class ScrubRequest(msgspec.Struct, frozen=True, tag="scrub"):
    """Rewrite every frame that holds a dead chunk; then, if *target* is given, write all that is left into a new
    environment in that directory. Without *rewrites* the frames stay as they are.
    """

    target: str = ""
    rewrites: bool = True


class SourceStamp(msgspec.Struct, frozen=True, array_like=True):
    """What tells that a file outside of the volume is still the one that was seen, as it was."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> SourceStamp:
        """The stamp of what `stat` found; times that a message can't hold are clamped."""
        times = clamp_time_ns(found.st_mtime_ns), clamp_time_ns(found.st_ctime_ns)
        return cls(found.st_dev, found.st_ino, found.st_size, *times)


class SourceRange(msgspec.Struct, frozen=True, array_like=True):
    """Bytes [start, end) of a file outside of the volume. To compare: with this packed *recipe* of them."""

    path: bytes
    stamp: SourceStamp
    start: int
    end: int
    recipe: bytes = b""


class IngestRequest(msgspec.Struct, frozen=True, tag="ingest"):
    """Cut these, and gather their chunks. They are stored for sure when a FinishRequest was answered by the same
    process. Until then an answer says nothing but which chunks it will be. Chunks in *damaged* are stored again where
    the ranges have them.
    """

    ranges: list[SourceRange]
    damaged: list[bytes] = []


class FinishRequest(msgspec.Struct, frozen=True, tag="finish"):
    """Store all that was gathered, durably; or, with *discard*, forget what is not stored yet."""

    discard: bool = False


class CompareRequest(msgspec.Struct, frozen=True, tag="compare"):
    """Read these again and compare them with their recipes. With *read_back* each of the chunks is also read from the
    store and held against its name, once until a request is *first*.
    """

    ranges: list[SourceRange]
    read_back: bool
    first: bool = False


class SealedFile(msgspec.Struct, frozen=True):
    """The packed recipe of one file, or why there is none."""

    ino: int
    version: int
    recipe: bytes | None
    error: str = ""


class Failure(enum.StrEnum):
    """Why a request was not done."""

    FULL = "full"
    """The disk is."""
    STORE = "store"
    """The store, or what was given, is not as it should be."""
    BUG = "bug"
    """Something that nobody has thought of: of several items in the request, one may be the reason."""


class Reply(msgspec.Struct, frozen=True):
    """Answer to any request: durable when it arrives. *added* are the chunks that were not there before. *damaged*
    counts the frames that a scrub had to leave as they are. *replaced* are damaged chunks that are sound now.
    *set_aside* says what was found damaged and left out, a sentence each. With an *error*, *failure* is its kind, and
    nothing else counts.
    """

    files: list[SealedFile] = []
    """To an IngestRequest and a CompareRequest: of each range, its index as *ino*; no recipe means that it failed."""
    added: list[bytes] = []
    damaged: int = 0
    set_aside: list[str] = []
    error: str = ""
    failure: Failure = Failure.STORE
    process: int = 0
    """Of an ingest and its finish: who has gathered the chunks."""
    replaced: list[bytes] = []


def iter_groups(items: Iterable[T], size_of: Callable[[T], int], max_bytes: int, max_items: int) -> Iterator[list[T]]:
    """The items in order, in groups that one request may hold: of *max_bytes* in all, but for a single larger item."""
    group: list[T] = []
    size = 0
    for item in items:
        length = size_of(item)
        if group and (size + length > max_bytes or len(group) >= max_items):
            yield group
            group, size = [], 0
        group.append(item)
        size += length
    if group:
        yield group


Task = SealRequest | DropRequest | StoreRequest | IngestRequest | FinishRequest | CompareRequest | ScrubRequest
Request = Hello | Task
_encoder = msgspec.msgpack.Encoder()


def encode_message(message: Request | Reply) -> bytes:
    """The message with its length before it."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def decode_request(body: bytes) -> Request:
    """Inverse of `encode_message` for the seal process, without the length."""
    request: Request = msgspec.msgpack.decode(body, type=Request)
    return request


def decode_reply(body: bytes) -> Reply:
    """Inverse of `encode_message` for the daemon, without the length."""
    return msgspec.msgpack.decode(body, type=Reply)


def read_message(stream: BinaryIO) -> bytes | None:
    """The next message's body, waiting for it; None when the other side is gone."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    body = stream.read(length)
    return body if len(body) == length else None
