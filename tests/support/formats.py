"""For tests of the remote formats: strategies of records, envelopes, and every way to damage a few bytes."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from sessfs.errors import RemoteCorrupt, RemoteUnsuitable
from sessfs.format.envelope import AeadEnvelope, PlainEnvelope
from sessfs.format.manifest import (
    FramePlace,
    Manifest,
    ManifestRef,
    NameRecord,
    NodeRecord,
    SegmentRef,
    recipe_chunks,
)
from sessfs.format.recipe import encode_extent, encode_hole
from sessfs.types import ChunkId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sessfs.format.envelope import Envelope

MASTER_KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
PLAIN = PlainEnvelope()
AEAD = AeadEnvelope(MASTER_KEY)
ENVELOPES: tuple[Envelope, ...] = (PLAIN, AEAD)
ENVELOPE_IDS = ("plain", "encrypted")

counts = st.integers(0, (1 << 63) - 1)
times = st.integers(-(1 << 63), (1 << 63) - 1)
numbers32 = st.integers(0, (1 << 32) - 1)
inos = st.integers(1, 40)
roots = st.integers(41, 43)
"""Inodes that are directories, if they are recorded at all."""
xattr_names = st.binary(min_size=1, max_size=8).filter(lambda name: b"\0" not in name)
entry_names = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
session_names = st.one_of(st.just(b"."), st.sampled_from([b" ", b"=", b"=41", b"%2E", b".a", b"A", b"a"]), entry_names)
node_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
chunk_ids = st.integers(1, 24).map(lambda n: ChunkId(bytes([n]) * 20))
segment_refs = st.builds(SegmentRef, node_names, counts)
manifest_refs = st.builds(ManifestRef, node_names, counts, numbers32, st.integers(1, (1 << 32) - 1))


@st.composite
def recipes(draw: st.DrawFn) -> tuple[int, bytes]:
    """(size, packed extents) of a file's content."""
    size, packed = 0, b""
    for _ in range(draw(st.integers(0, 4))):
        length = draw(st.integers(1, 1 << 17))
        packed += draw(st.one_of(chunk_ids.map(lambda c, n=length: encode_extent(c, n)), st.just(encode_hole(length))))
        size += length
    return size, packed


@st.composite
def nodes(draw: st.DrawFn, ino: int) -> NodeRecord:
    """An inode of that number: file, directory or symlink."""
    kind = draw(st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK])) if ino <= 40 else stat.S_IFDIR
    size, recipe = draw(recipes()) if kind == stat.S_IFREG else (draw(st.integers(0, 4096)), b"")
    return NodeRecord(
        ino=ino,
        mode=kind | draw(st.integers(0, 0o7777)),
        uid=draw(numbers32),
        gid=draw(numbers32),
        nlink=draw(st.integers(0, 5)),
        rdev=draw(numbers32),
        size=size,
        atime_ns=draw(times),
        mtime_ns=draw(times),
        ctime_ns=draw(times),
        target=draw(st.binary(max_size=20)) if kind == stat.S_IFLNK else None,
        xattrs=draw(st.dictionaries(xattr_names, st.binary(max_size=8), max_size=2)),
        recipe=recipe,
    )


@st.composite
def manifests(draw: st.DrawFn, *, session: bytes | None = None, sequence: int = 1, full: bool = True) -> Manifest:
    """A full manifest or a delta, with a place for every chunk that it names, and for some that it does not."""
    records = [draw(nodes(ino)) for ino in draw(st.lists(st.one_of(inos, roots), unique=True, max_size=5))]
    name_keys = draw(st.lists(st.tuples(inos, short_names), unique=True, max_size=6))
    segments = draw(st.lists(segment_refs, min_size=1, max_size=3, unique=True))
    chunks = sorted(recipe_chunks(records)) + draw(st.lists(chunk_ids, max_size=3))
    frames = [
        FramePlace(
            draw(st.integers(0, len(segments) - 1)), draw(numbers32), draw(st.integers(1, (1 << 32) - 1)), bytes(cid)
        )
        for cid in chunks
    ]
    return Manifest(
        version=1,
        session=session or draw(session_names),
        sequence=sequence,
        base=None if full else draw(manifest_refs),
        depth=0 if full else draw(st.integers(1, 8)),
        taken_ns=draw(times),
        root=draw(roots),
        nodes=records,
        names=[NameRecord(parent, name, draw(inos)) for parent, name in name_keys],
        gone_nodes=[] if full else draw(st.lists(inos, max_size=4)),
        gone_names=[] if full else draw(st.lists(st.tuples(inos, short_names), max_size=4)),
        segments=segments,
        frames=frames,
        startup=b"".join(draw(st.lists(chunk_ids, max_size=3))),
    )


short_names = st.sampled_from([b"a", b"b", b"Local State", b"\xff\xfe", "ü".encode()])


@st.composite
def chains(draw: st.DrawFn, max_deltas: int = 4) -> list[Manifest]:
    """A full manifest and deltas that follow it."""
    full = draw(manifests())
    chain = [full]
    for _ in range(draw(st.integers(0, max_deltas))):
        sequence = chain[-1].sequence + draw(st.integers(1, 3))
        chain.append(draw(manifests(session=full.session, sequence=sequence, full=False)))
    return chain


def damages(blob: bytes) -> Iterator[tuple[str, bytes]]:
    """(what was done, *blob* after it): cut at every byte, every bit turned, a byte more at either end."""
    for length in range(len(blob)):
        yield f"cut to {length} bytes", blob[:length]
    for at in range(len(blob)):
        for bit in range(8):
            yield f"bit {bit} of byte {at} turned", blob[:at] + bytes([blob[at] ^ 1 << bit]) + blob[at + 1 :]
    yield "a byte more at the end", blob + b"\0"
    yield "a byte more at the start", b"\0" + blob


def assert_damage_is_found(blob: bytes, decode: Callable[[bytes], object], *, maybe_newer: bool = False) -> None:
    """Each way to damage *blob* makes *decode* raise RemoteCorrupt; where a version is read before its checksum
    (*maybe_newer*), RemoteUnsuitable will do.
    """
    decode(blob)
    for what, damaged in damages(blob):
        try:
            got = decode(damaged)
        except RemoteCorrupt:
            continue
        except RemoteUnsuitable:
            assert maybe_newer, what
            continue
        raise AssertionError(f"{what}: not found, decoded {got!r}")
