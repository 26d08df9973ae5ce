"""Manifests: the serialized snapshot of one session, whole (full) or as what changed since another (a delta).

A delta names every inode and name that changed, with its new state, and those that went. `merge` applies deltas to a
full manifest. A manifest also says where the chunks of its recipes lie: in which frame of which segment. Byte layout:
docs/format.md.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec

from sessfs.errors import RemoteCorrupt, RemoteUnsuitable, StoreCorrupt
from sessfs.format import wire
from sessfs.format.recipe import EXTENT, EXTENT_BYTES
from sessfs.types import CHUNK_ID_BYTES, HOLE, ChunkId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MANIFEST_MAGIC = b"SFSMAN"
MANIFEST_VERSION = 1
XATTR_NAME_MAX = 255
"""As Linux has it (linux/limits.h)."""
FILE_TYPES = frozenset(
    {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}
)
RDEV_MAX = (1 << 32) - 1
"""As FUSE has device numbers."""


class SegmentRef(NamedTuple):
    """A segment: the node that wrote it, and its number among that node's."""

    node: wire.NodeName
    number: wire.Count


class ManifestRef(NamedTuple):
    """Where a sealed manifest lies: bytes [offset, offset + length) of a segment."""

    node: wire.NodeName
    segment: wire.Count
    offset: wire.Number32
    length: wire.Positive32


class NodeRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One inode: attributes, a symlink's *target*, extended attributes, and the packed extents of a file's content."""

    ino: wire.Ino
    mode: wire.Number32
    uid: wire.Number32
    gid: wire.Number32
    nlink: wire.Number32
    rdev: wire.Count
    size: wire.Count
    atime_ns: wire.TimeNs
    mtime_ns: wire.TimeNs
    ctime_ns: wire.TimeNs
    target: bytes | None
    xattrs: dict[bytes, bytes]
    recipe: bytes


class NameRecord(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One dentry: *name* in the directory *parent* stands for *ino*."""

    parent: wire.Ino
    name: bytes
    ino: wire.Ino


class FramePlace(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a sealed frame lies, in the segment of that index in the manifest's list, and the ids, laid end to end, of
    those of its chunks that the session uses.
    """

    segment: wire.Number32
    offset: wire.Number32
    length: wire.Positive32
    chunks: bytes


class Manifest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A snapshot of *session*, its *sequence*-th. With *base* it is a delta of the manifest there, *depth* deltas away
    from a full one; without, it is full, and nothing in it is gone. *root* is the inode of the session's directory.
    *startup* are the ids, laid end to end, of chunks that were read at the session's last start.
    """

    version: Annotated[int, msgspec.Meta(ge=1, le=MANIFEST_VERSION)]
    session: wire.SessionName
    sequence: wire.Count
    base: ManifestRef | None
    depth: wire.Number32
    taken_ns: wire.TimeNs
    root: wire.Ino
    nodes: list[NodeRecord]
    names: list[NameRecord]
    gone_nodes: list[wire.Ino]
    gone_names: list[tuple[wire.Ino, bytes]]
    segments: list[SegmentRef]
    frames: list[FramePlace]
    startup: bytes


def encode_manifest(manifest: Manifest) -> bytes:
    """Magic, version, and the zstd-compressed record. Raises StoreCorrupt when the manifest contradicts itself, so that
    none is written that could not be read, and RemoteUnsuitable when it is too large for any reader.
    """
    who = f"the snapshot of session {_show(manifest.session)}"
    for fault in _faults(manifest):
        raise StoreCorrupt(f"{who} can't be written: {fault}")
    encoded = msgspec.msgpack.encode(manifest)
    if len(encoded) > wire.PLAIN_MAX_BYTES:
        raise RemoteUnsuitable(
            f"{who} takes {len(encoded)} bytes, at most {wire.PLAIN_MAX_BYTES} are possible: split the session"
        )
    return wire.put_head(MANIFEST_MAGIC, MANIFEST_VERSION, wire.compress(encoded))


def decode_manifest(encoded: bytes, what: str) -> Manifest:
    """Inverse of `encode_manifest`. Raises RemoteCorrupt for anything that it does not give, RemoteUnsuitable for a
    newer version; *what* names it in the error.
    """
    plain = wire.decompress(wire.take_head(encoded, MANIFEST_MAGIC, MANIFEST_VERSION, what), what)
    manifest = wire.decode_msgpack(plain, Manifest, what)
    for fault in _faults(manifest):
        raise RemoteCorrupt(f"{what}, a snapshot of session {_show(manifest.session)}: {fault}")
    return manifest


def _show(name: bytes) -> str:
    return name.decode(errors="replace")


# -- what must hold in a manifest


def _faults(manifest: Manifest) -> Iterator[str]:
    if not wire.is_session_name(manifest.session):
        yield "the session's name is not one"
    is_full = manifest.base is None
    if is_full != (manifest.depth == 0):
        yield f"depth {manifest.depth} does not fit a manifest {'without' if is_full else 'with'} base"
    if is_full and (manifest.gone_nodes or manifest.gone_names):
        yield "a full manifest has nothing to remove"
    if not wire.is_id_list(manifest.startup):
        yield "the chunks of the start are no whole number of ids"
    if any(record.ino == manifest.root and not stat.S_ISDIR(record.mode) for record in manifest.nodes):
        yield "the session's own inode is no directory"
    yield from _node_faults(manifest.nodes)
    yield from _name_faults(manifest)
    yield from _frame_faults(manifest)


def _node_faults(nodes: Sequence[NodeRecord]) -> Iterator[str]:
    if len({record.ino for record in nodes}) != len(nodes):
        yield "an inode is recorded twice"
    for record in nodes:
        if stat.S_IFMT(record.mode) not in FILE_TYPES or record.rdev > RDEV_MAX:
            yield f"inode {record.ino} has mode {record.mode:o} and device {record.rdev}, which no file has"
        for name in record.xattrs:
            if not 0 < len(name) <= XATTR_NAME_MAX or b"\0" in name:
                yield f"inode {record.ino} has an xattr called {name[:XATTR_NAME_MAX]!r}, which none can be"
        if (record.target is not None) != stat.S_ISLNK(record.mode):
            yield f"inode {record.ino}: only a symlink has a target, and each has one"
        if len(record.recipe) % EXTENT_BYTES:
            yield f"inode {record.ino}: its recipe is no whole number of extents"
            continue
        lengths = [length for _, length in EXTENT.iter_unpack(record.recipe)]
        content = record.size if stat.S_ISREG(record.mode) else 0
        if sum(lengths) != content or 0 in lengths:
            yield f"inode {record.ino} has {content} bytes of content and a recipe for {sum(lengths)}"


def _name_faults(manifest: Manifest) -> Iterator[str]:
    names = [(record.parent, record.name) for record in manifest.names]
    for parent, name in (*names, *manifest.gone_names):
        if not wire.is_name(name):
            yield f"{name!r} in directory {parent} is no name"
    if len(set(names)) != len(names):
        yield "a name is recorded twice"


def _frame_faults(manifest: Manifest) -> Iterator[str]:
    for frame in manifest.frames:
        if frame.segment >= len(manifest.segments):
            yield f"a frame lies in segment {frame.segment} of {len(manifest.segments)}"
        if not wire.is_id_list(frame.chunks):
            yield "the chunks of a frame are no whole number of ids"


# -- using manifests

Places = dict[ChunkId, tuple[SegmentRef, int, int]]
"""Chunk → segment, and offset and length of the sealed frame in it."""


def split_ids(ids: bytes) -> list[ChunkId]:
    """The ids that are laid end to end in *ids*."""
    return [ChunkId(ids[at : at + CHUNK_ID_BYTES]) for at in range(0, len(ids), CHUNK_ID_BYTES)]


def recipe_chunks(nodes: Iterable[NodeRecord]) -> set[ChunkId]:
    """Every chunk that the recipes of *nodes* name."""
    found = {ChunkId(chunk) for record in nodes for chunk, _ in EXTENT.iter_unpack(record.recipe)}
    found.discard(HOLE)
    return found


def chunk_places(manifest: Manifest) -> Places:
    """Where each chunk's frame lies; of two places of one chunk, the later in the manifest."""
    return {
        cid: (manifest.segments[frame.segment], frame.offset, frame.length)
        for frame in manifest.frames
        for cid in split_ids(frame.chunks)
    }


def merge(full: Manifest, deltas: Sequence[Manifest]) -> Manifest:
    """The full manifest that *full* becomes by applying *deltas*, oldest first, in canonical order: nodes by number,
    names by directory and name, frames by place. Sequence, time and root are those of the last; so is *startup*, if not
    empty. Of the places of chunks those are kept that a recipe still needs, the newest of each.

    `merge(full, [a, b]) == merge(merge(full, [a]), [b])`, as long as each delta places the chunks that it names. Raises
    RemoteCorrupt when these manifests are not a chain: of one session, one full, then deltas with growing sequence.
    """
    _check_chain(full, deltas)
    nodes: dict[int, NodeRecord] = {}
    names: dict[tuple[int, bytes], int] = {}
    places: Places = {}
    startup = b""
    for manifest in (full, *deltas):
        for ino in manifest.gone_nodes:
            nodes.pop(ino, None)
        for gone in manifest.gone_names:
            names.pop(gone, None)
        nodes.update((record.ino, record) for record in manifest.nodes)
        names.update(((record.parent, record.name), record.ino) for record in manifest.names)
        places.update(chunk_places(manifest))
        startup = manifest.startup or startup
    last = deltas[-1] if deltas else full
    used = recipe_chunks(nodes.values())
    segments, frames = pack_places({cid: place for cid, place in places.items() if cid in used})
    return Manifest(
        version=MANIFEST_VERSION,
        session=last.session,
        sequence=last.sequence,
        base=None,
        depth=0,
        taken_ns=last.taken_ns,
        root=last.root,
        nodes=[nodes[ino] for ino in sorted(nodes)],
        names=[NameRecord(parent, name, names[parent, name]) for parent, name in sorted(names)],
        gone_nodes=[],
        gone_names=[],
        segments=segments,
        frames=frames,
        startup=startup,
    )


def _check_chain(full: Manifest, deltas: Sequence[Manifest]) -> None:
    who = f"snapshot {full.sequence} of session {_show(full.session)}"
    if full.base is not None:
        raise RemoteCorrupt(f"{who} is the first of a chain, but not full")
    before = full
    for delta in deltas:
        if delta.base is None or delta.session != full.session or delta.sequence <= before.sequence:
            raise RemoteCorrupt(
                f"snapshot {delta.sequence} of session {_show(delta.session)} can't follow snapshot {before.sequence} "
                f"of session {_show(before.session)}"
            )
        before = delta


def pack_places(places: Places) -> tuple[list[SegmentRef], list[FramePlace]]:
    """The lists *segments* and *frames* of a manifest for *places*, in canonical order."""
    by_frame: dict[tuple[SegmentRef, int, int], list[ChunkId]] = {}
    for cid, place in places.items():
        by_frame.setdefault(place, []).append(cid)
    segments = sorted({segment for segment, _, _ in by_frame})
    index = {segment: at for at, segment in enumerate(segments)}
    frames = [
        FramePlace(index[segment], offset, length, b"".join(sorted(by_frame[segment, offset, length])))
        for segment, offset, length in sorted(by_frame)
    ]
    return segments, frames
