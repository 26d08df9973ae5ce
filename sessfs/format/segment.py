"""Segments and checkpoints: the objects that a node writes, and the keys of all objects in the remote.

A segment is a head, sealed blobs (frames and manifests), a sealed footer that lists them, and a trailer that says how
long the footer is: whoever has the object's last bytes finds everything else. A checkpoint lists the latest manifest of
every session whose own object is not up to date. Byte layouts: docs/format.md.
"""

from __future__ import annotations

import io
import re
import struct
from typing import TYPE_CHECKING

import msgspec

from sessfs.errors import RemoteCorrupt
from sessfs.format import wire
from sessfs.format.manifest import Manifest, ManifestRef, decode_manifest, encode_manifest
from sessfs.format.repository import KeptSnapshot  # noqa: TC001, msgspec reads annotations at run time

if TYPE_CHECKING:
    from sessfs.format.envelope import Envelope

NODES_PREFIX = "nodes/"
SESSIONS_PREFIX = "sessions/"

SEGMENT_MAGIC = b"SFSSEG"
SEGMENT_END = b"SFSEND"
SEGMENT_VERSION = 1
TRAILER = struct.Struct("<IH6s")
TAIL_BYTES = 64 * 1024
"""Reading this much of a segment's end nearly always gets the whole footer."""
SEGMENT_MAX_BYTES = (1 << 32) - 1
"""Offsets are 32 bits; segments are closed long before."""
CHECKPOINT_MAGIC = b"SFSCKP"
CHECKPOINT_VERSION = 2

_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NUMBERED = re.compile(rf"{NODES_PREFIX}({_NODE.pattern})/(segments|checkpoints)/([0-9a-f]{{16}})")


# -- keys


def _node_prefix(node: str) -> str:
    if not _NODE.fullmatch(node):
        raise ValueError(f"not a node's name: {node!r}")
    return f"{NODES_PREFIX}{node}/"


def state_key(node: str) -> str:
    """Key of a node's state."""
    return f"{_node_prefix(node)}state"


def segments_prefix(node: str) -> str:
    """What the keys of all segments of a node begin with; they sort by number."""
    return f"{_node_prefix(node)}segments/"


def segment_key(node: str, number: int) -> str:
    """Key of a segment."""
    return f"{segments_prefix(node)}{number:016x}"


def checkpoints_prefix(node: str) -> str:
    """What the keys of all checkpoints of a node begin with; they sort by number."""
    return f"{_node_prefix(node)}checkpoints/"


def checkpoint_key(node: str, number: int) -> str:
    """Key of the checkpoint that covers segments up to *number*."""
    return f"{checkpoints_prefix(node)}{number:016x}"


def parse_segment_key(key: str) -> tuple[str, int] | None:
    """(node, number) when *key* is that of a segment, else None."""
    match = _NUMBERED.fullmatch(key)
    return (match[1], int(match[3], 16)) if match is not None and match[2] == "segments" else None


def parse_checkpoint_key(key: str) -> tuple[str, int] | None:
    """(node, number) when *key* is that of a checkpoint, else None."""
    match = _NUMBERED.fullmatch(key)
    return (match[1], int(match[3], 16)) if match is not None and match[2] == "checkpoints" else None


def session_key(envelope: Envelope, name: bytes) -> str:
    """Key of a session's object."""
    return SESSIONS_PREFIX + envelope.seal_name(name)


# -- segments


def _context(what: str, node: str, number: int, offset: int) -> bytes:
    """What a blob is sealed under; also what errors call it."""
    return f"{what} at byte {offset} of {segment_key(node, number)}".encode()


class FooterManifest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A manifest in a segment: of which snapshot, where it lies, and what it is a delta of."""

    session: wire.SessionName
    sequence: wire.Count
    offset: wire.Number32
    length: wire.Positive32
    base: ManifestRef | None

    @property
    def is_full(self) -> bool:
        """True when it is no delta."""
        return self.base is None


class Footer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a segment holds: (offset, length) of each sealed frame, the manifests, and names of sessions whose removal
    it publishes. *created_ns* by the clock of the node, *incarnation* the count of its starts.
    """

    frames: list[tuple[wire.Number32, wire.Positive32]]
    manifests: list[FooterManifest]
    removed: list[wire.SessionName]
    created_ns: wire.TimeNs
    incarnation: wire.Count


class NeedMoreTail(Exception):
    """The footer is longer than the bytes at hand: read the last *length* bytes of the segment instead."""

    def __init__(self, length: int) -> None:
        super().__init__(f"the footer takes the last {length} bytes")
        self.length = length


class SegmentBuilder:
    """Fills one segment; what was added lies at the places given only once the segment is stored. One thread."""

    def __init__(self, node: str, number: int, incarnation: int, envelope: Envelope) -> None:
        self._node = node
        self._number = number
        self._incarnation = incarnation
        self._envelope = envelope
        # Gives its bytes away without a copy, which a list of parts to be joined could not.
        self._body = io.BytesIO()
        self._body.write(wire.HEAD.pack(SEGMENT_MAGIC, SEGMENT_VERSION))
        self._frames: list[tuple[int, int]] = []
        self._manifests: list[FooterManifest] = []
        self._removed: list[bytes] = []
        self.size_bytes = wire.HEAD.size
        """Bytes so far, without the footer."""

    def _add(self, what: str, plaintext: bytes) -> tuple[int, int]:
        offset = self.size_bytes
        sealed = self._envelope.seal(plaintext, _context(what, self._node, self._number, offset))
        if offset + len(sealed) > SEGMENT_MAX_BYTES:
            raise ValueError("a segment holds less than 4 GiB")
        self._body.write(sealed)
        self.size_bytes += len(sealed)
        return offset, len(sealed)

    def add_frame(self, record: bytes) -> tuple[int, int]:
        """Add a frame record; returns offset and length of the sealed blob in the object."""
        place = self._add("frame", record)
        self._frames.append(place)
        return place

    def add_manifest(self, manifest: Manifest) -> ManifestRef:
        """Add a manifest; returns where it will lie. Raises as `encode_manifest`."""
        offset, length = self._add("manifest", encode_manifest(manifest))
        self._manifests.append(FooterManifest(manifest.session, manifest.sequence, offset, length, manifest.base))
        return ManifestRef(self._node, self._number, offset, length)

    def add_removed(self, session: bytes) -> None:
        """Say that the session was removed."""
        if not wire.is_session_name(session):
            raise ValueError(f"not a session's name: {session!r}")
        self._removed.append(session)

    def finish(self, created_ns: int) -> bytes:
        """The whole object. Nothing may be added afterwards."""
        footer = Footer(self._frames, self._manifests, self._removed, created_ns, self._incarnation)
        context = _context("footer", self._node, self._number, self.size_bytes)
        sealed = self._envelope.seal(wire.compress(msgspec.msgpack.encode(footer)), context)
        self._body.write(sealed)
        self._body.write(TRAILER.pack(len(sealed), SEGMENT_VERSION, SEGMENT_END))
        return self._body.getvalue()


def open_frame(sealed: bytes, node: str, number: int, offset: int, envelope: Envelope) -> bytes:
    """The frame record whose sealed bytes lie at *offset* of the segment. Raises RemoteCorrupt."""
    return envelope.open(sealed, _context("frame", node, number, offset))


def open_manifest(sealed: bytes, ref: ManifestRef, envelope: Envelope) -> Manifest:
    """The manifest whose sealed bytes lie at *ref*. Raises RemoteCorrupt, RemoteUnsuitable."""
    context = _context("manifest", ref.node, ref.segment, ref.offset)
    return decode_manifest(envelope.open(sealed, context), context.decode())


def read_footer(tail: bytes, total_size: int, node: str, number: int, envelope: Envelope) -> Footer:
    """The footer of a segment of *total_size* bytes, from its last bytes, at least TRAILER.size of them and best
    min(total_size, TAIL_BYTES). Raises NeedMoreTail when they are too few, RemoteCorrupt, RemoteUnsuitable.
    """
    what = segment_key(node, number)
    if len(tail) < TRAILER.size or total_size < len(tail):
        raise RemoteCorrupt(f"{what} is cut short: {total_size} bytes")
    length, version, magic = TRAILER.unpack_from(tail, len(tail) - TRAILER.size)
    if magic != SEGMENT_END:
        raise RemoteCorrupt(f"{what} ends with {magic!r} instead of {SEGMENT_END!r}")
    wire.check_version(version, SEGMENT_VERSION, what)
    start = total_size - TRAILER.size - length
    if start < wire.HEAD.size:
        raise RemoteCorrupt(f"{what} claims a footer of {length} bytes in {total_size}")
    if length + TRAILER.size > len(tail):
        raise NeedMoreTail(length + TRAILER.size)
    context = _context("footer", node, number, start)
    sealed = tail[len(tail) - TRAILER.size - length : len(tail) - TRAILER.size]
    plain = wire.decompress(envelope.open(sealed, context), context.decode())
    footer = wire.decode_msgpack(plain, Footer, context.decode())
    _check_footer(footer, start, what)
    return footer


def _check_footer(footer: Footer, end: int, what: str) -> None:
    """The blobs must lie end to end between head and footer: then no byte is unaccounted for."""
    at = wire.HEAD.size
    for offset, length in sorted([*footer.frames, *((m.offset, m.length) for m in footer.manifests)]):
        if offset != at:
            raise RemoteCorrupt(f"the footer of {what} has a blob at {offset} where one at {at} is due")
        at += length
    if at != end:
        raise RemoteCorrupt(f"the blobs of {what} end at {at}, its footer begins at {end}")
    for name in (*footer.removed, *(manifest.session for manifest in footer.manifests)):
        if not wire.is_session_name(name):
            raise RemoteCorrupt(f"the footer of {what} names a session {name!r}")


def footer_of(segment: bytes, node: str, number: int, envelope: Envelope) -> Footer:
    """The footer of a segment that is at hand as a whole. Raises RemoteCorrupt, RemoteUnsuitable."""
    wire.take_head(segment[: wire.HEAD.size], SEGMENT_MAGIC, SEGMENT_VERSION, segment_key(node, number))
    return read_footer(segment, len(segment), node, number, envelope)


# -- checkpoints


class CheckpointKept(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Snapshots of a session that are kept, oldest first, the latest among them. Unless *complete*, the session's own
    object may name more.
    """

    session: wire.SessionName
    complete: bool
    snapshots: list[KeptSnapshot]


class Checkpoint(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """As of segment *number* of *node*: (session, latest manifest or None when it was removed, sequence), and of those
    that were not removed, what is kept; None where version 1 wrote it.
    """

    node: wire.NodeName
    number: wire.Count
    incarnation: wire.Count
    entries: list[tuple[wire.SessionName, ManifestRef | None, wire.Count]]
    kept: list[CheckpointKept] | None = None


def _checkpoint_context(node: str, number: int) -> bytes:
    return f"checkpoint {checkpoint_key(node, number)}".encode()


def encode_checkpoint(checkpoint: Checkpoint, envelope: Envelope) -> bytes:
    """The object at `checkpoint_key`."""
    plain = wire.compress(msgspec.msgpack.encode(checkpoint))
    sealed = envelope.seal(plain, _checkpoint_context(checkpoint.node, checkpoint.number))
    return wire.put_head(CHECKPOINT_MAGIC, CHECKPOINT_VERSION, sealed)


def decode_checkpoint(encoded: bytes, node: str, number: int, envelope: Envelope) -> Checkpoint:
    """Inverse of `encode_checkpoint`, for the object read at that key. Raises RemoteCorrupt, RemoteUnsuitable."""
    what = checkpoint_key(node, number)
    sealed = wire.take_head(encoded, CHECKPOINT_MAGIC, CHECKPOINT_VERSION, what)
    plain = wire.decompress(envelope.open(sealed, _checkpoint_context(node, number)), what)
    checkpoint = wire.decode_msgpack(plain, Checkpoint, what)
    if (checkpoint.node, checkpoint.number) != (node, number):
        raise RemoteCorrupt(f"{what} is the checkpoint {checkpoint.number} of node {checkpoint.node}")
    for name in (*(entry[0] for entry in checkpoint.entries), *(one.session for one in checkpoint.kept or ())):
        if not wire.is_session_name(name):
            raise RemoteCorrupt(f"{what} names a session {name!r}")
    return checkpoint
