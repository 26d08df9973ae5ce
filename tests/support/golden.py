"""What lies in tests/golden/: bytes frozen when a format version was released, and what every later sessfs must read in
them. `python -m tests.support.golden` writes the files that are missing, and never touches one that is there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import blake3
import msgspec

from sessfs.chrome import PathClass
from sessfs.format.chunk import Cutter, FrameCodec, chunk_id
from sessfs.format.envelope import AeadEnvelope, PlainEnvelope
from sessfs.format.manifest import FramePlace, Manifest, ManifestRef, NameRecord, NodeRecord, SegmentRef
from sessfs.format.recipe import encode_extent, encode_hole
from sessfs.format.repository import (
    Holder,
    KeptSnapshot,
    NodeState,
    SessionObject,
    encode_format,
    encode_holder,
    encode_session_object,
    encode_state,
    new_format,
)
from sessfs.format.roster import encode_roster
from sessfs.format.segment import Checkpoint, CheckpointKept, SegmentBuilder, encode_checkpoint
from sessfs.local import changes, chunkstore, inodes, places, snapshots
from sessfs.local.chunkstore import encode_frame_record
from sessfs.local.inodes import Inode
from sessfs.types import Ino

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.format.envelope import Envelope

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "v1"
SUMS = "SHA256SUMS"


def counting_bytes(n: int) -> bytes:
    """In the place of random bytes: 0, 1, 2, …"""
    return bytes(at % 256 for at in range(n))


SECRET = b"golden secret"
HASH_KEY = bytes(range(100, 132))
MASTER_KEY = counting_bytes(32)
ENVELOPES: dict[str, Envelope] = {
    "plain": PlainEnvelope(),
    "encrypted": AeadEnvelope(MASTER_KEY, counting_bytes),
}
NODE = "host-0a1b2c"
CONTENTS = [b"content of the first chunk " * 40, blake3.blake3(b"noise").digest(length=300), b"third " * 100]
CHUNKS = [chunk_id(HASH_KEY, content) for content in CONTENTS]
NAMES = [
    b"user-1",
    b".",
    b".hidden",
    b"a b=c%d",
    b"49123@c.us",
    "é".encode(),
    b"\xff\xfe",
    b"x" * 255,
    b"\xff" * 255,
]
CUT_SEED = b"sessfs golden"
CUT_BYTES = 2 << 20


def frame_records() -> list[bytes]:
    """Two frames: two chunks, and one."""
    codec = FrameCodec()
    return [
        encode_frame_record([(CHUNKS[n], len(CONTENTS[n])) for n in group], codec.encode([CONTENTS[n] for n in group]))
        for group in ((0, 1), (2,))
    ]


def full_manifest(frames: list[tuple[int, int]]) -> Manifest:
    """A snapshot with every kind of inode, whose chunks lie in *frames* of segment 7."""
    first, noise, third = CHUNKS
    extents = encode_extent(first, len(CONTENTS[0])) + encode_hole(5000) + encode_extent(noise, len(CONTENTS[1]))
    size = len(CONTENTS[0]) + 5000 + len(CONTENTS[1])
    times = (1_700_000_000_000_000_001, -1, 1_700_000_000_000_000_003)
    return Manifest(
        version=1,
        session=b"user-1",
        sequence=12,
        base=None,
        depth=0,
        taken_ns=1_700_000_000_500_000_000,
        root=40,
        nodes=[
            NodeRecord(40, 0o40700, 1000, 1000, 3, 0, 0, *times, None, {}, b""),
            NodeRecord(
                41, 0o100600, 1000, 1000, 2, 0, size, *times, None, {b"user.k": b"\0v", b"user.e": b""}, extents
            ),
            NodeRecord(42, 0o120777, 0, 0, 1, 0, 7, *times, b"target\xff", {}, b""),
            NodeRecord(43, 0o20600, 0, 0, 1, 0x0103, 0, *times, None, {}, b""),
            NodeRecord(44, 0o100644, 4294967294, 65534, 1, 0, 0, *times, None, {}, b""),
            NodeRecord(45, 0o100644, 0, 0, 1, 0, 600, *times, None, {}, encode_extent(third, 600)),
        ],
        names=[
            NameRecord(40, b"hard link", 41),
            NameRecord(40, b"file", 41),
            NameRecord(40, b"\xff\xfe", 42),
            NameRecord(40, b"device", 43),
            NameRecord(40, b"empty", 44),
            NameRecord(40, b"third", 45),
        ],
        gone_nodes=[],
        gone_names=[],
        segments=[SegmentRef(NODE, 7)],
        frames=[FramePlace(0, *frames[0], first + noise), FramePlace(0, *frames[1], third)],
        startup=noise + first,
    )


def delta_manifest(base: ManifestRef) -> Manifest:
    """One file emptied and renamed, one deleted."""
    return Manifest(
        version=1,
        session=b"user-1",
        sequence=13,
        base=base,
        depth=1,
        taken_ns=1_700_000_060_500_000_000,
        root=40,
        nodes=[NodeRecord(45, 0o100644, 0, 0, 1, 0, 0, 5, 6, 7, None, {}, b"")],
        names=[NameRecord(40, b"renamed", 45)],
        gone_nodes=[43],
        gone_names=[(40, b"third"), (40, b"device")],
        segments=[],
        frames=[],
        startup=b"",
    )


def segment(envelope: Envelope) -> bytes:
    """Segment 7: two frames, a full manifest and its delta, a removed session."""
    builder = SegmentBuilder(NODE, 7, 3, envelope)
    frames = [builder.add_frame(record) for record in frame_records()]
    base = builder.add_manifest(full_manifest(frames))
    builder.add_manifest(delta_manifest(base))
    builder.add_removed(b"old user")
    return builder.finish(1_700_000_061_000_000_000)


REF = ManifestRef(NODE, 7, 1234, 567)
CHECKPOINT = Checkpoint(NODE, 7, 3, [(b"user-1", REF, 13), (b"old user", None, 0), (b".", REF, 1)])
STATE = NodeState(
    node=NODE,
    hostname="host",
    incarnation=3,
    last_segment=7,
    last_checkpoint=4,
    has_checkpoint=True,
    beat=99,
    fenced_by="other-3d4e5f",
    clean=True,
)
STATE_2 = msgspec.structs.replace(STATE, has_roster=True)
SESSION = SessionObject(
    b"user-1", (NODE, 3), REF, 13, [KeptSnapshot(7, 5, REF, "before the update"), KeptSnapshot(9, 6, REF)]
)
SESSION_2 = SessionObject(
    b"user-1",
    None,
    REF,
    13,
    [
        KeptSnapshot(7, 5, REF, "before the update", "good"),
        KeptSnapshot(9, 6, REF, "", "bad"),
        KeptSnapshot(13, 7, REF),
    ],
)
CHECKPOINT_2 = Checkpoint(
    NODE,
    7,
    3,
    CHECKPOINT.entries,
    [CheckpointKept(b".", False, []), CheckpointKept(b"user-1", True, SESSION_2.kept)],
)
HOLDER = Holder(NODE, 3, "host", 4711, "2026-02-03T04:05:06Z")


def cut_lengths() -> list[int]:
    """Where 2 MiB of noise are cut: another cut in another version would end deduplication with what is stored."""
    noise = blake3.blake3(CUT_SEED).digest(length=CUT_BYTES)
    return [len(piece) for piece in Cutter().cut(noise)]


def local_inode() -> Inode:
    """An inode in the middle of being modified."""
    inode = Inode(Ino(41))
    inode.mode, inode.uid, inode.gid, inode.nlink, inode.rdev = 0o100600, 1000, 1001, 2, 0
    inode.size, inode.allocated = 70_000, 65_536
    inode.atime_ns, inode.mtime_ns, inode.ctime_ns = 1, -2, 1_700_000_000_000_000_003
    inode.session, inode.parent, inode.hot_no = Ino(40), Ino(40), 4711
    inode.path_class = PathClass.CACHE
    inode.cold = [(0, 1080), (6080, 6380)]
    return inode


PUBLISHED = places.Published(b"user-1", 13, (NODE, 7, 1234, 567), 1, 2000, 567)
STUB = places.Published(b"user-2", 0, None, stub=True)
SNAPSHOT = snapshots.Snapshot(1_700_000_000_000_000_003, None, "word", "good", 12, 1, True, b"user-1")
UPLOADED_SNAPSHOT = snapshots.Snapshot(1_700_000_000_000_000_003, (NODE, 7, 1234, 567))
OUTBOX = places.Outbox(3, 7, [(7, 8, 99, CHUNKS[0] + CHUNKS[1])], [(40, PUBLISHED)], [50])


def local_records() -> dict[str, str]:
    """Records of the state directory, in hexadecimal."""
    records = {
        "inodes value": local_inode().encode(),
        "dentries key": inodes.INO.pack(40) + b"file",
        "dentries value": inodes.DENTRY.pack(41, 0o100000),
        "sessions value": inodes.SESSION.pack(7, 123_456, 1_700_000_000_000_000_003),
        "super next-number": inodes.COUNTER.pack(8192),
        "refs value": chunkstore.REF_COUNT.pack(3),
        "dirty value": changes.SINCE.pack(1_700_000_000_000_000_003),
        "places value": places.PLACE_RECORD.pack(2, 8, 99),
        "segments key": places.SEGMENT_KEY.pack(2),
        "segments value": msgspec.msgpack.encode((NODE, 7)),
        "published value": msgspec.msgpack.encode(PUBLISHED),
        "published value of a stub": msgspec.msgpack.encode(STUB),
        "outbox value": msgspec.msgpack.encode(OUTBOX),
        "frames key": chunkstore.FRAME_KEY.pack(5),
        "frames value": frame_records()[0],
        "index value": chunkstore.PLACE.pack(5, 1080, 300),
        "live value": chunkstore.LIVE_BYTES.pack(1380),
        "totals value": chunkstore.TOTALS_RECORD.pack(6, 1000, 1380),
    }
    return {name: record.hex() for name, record in records.items()}


def later_local_records() -> dict[str, str]:
    """Those that came after the first version."""
    records = {
        "snapshots key": snapshots.SNAPSHOT_KEY.pack(40, 13),
        "snapshots value": msgspec.msgpack.encode(SNAPSHOT),
        "snapshots value of an uploaded one": msgspec.msgpack.encode(UPLOADED_SNAPSHOT),
        "sequences value": snapshots.SEQUENCE.pack(13),
    }
    return {name: record.hex() for name, record in records.items()}


def _json(content: object) -> bytes:
    return json.dumps(content, indent=1).encode() + b"\n"


FILES: dict[str, Callable[[], bytes]] = {
    "format-plain.json": lambda: encode_format(new_format(HASH_KEY, None, counting_bytes)),
    "format-encrypted.json": lambda: encode_format(new_format(HASH_KEY, SECRET, counting_bytes)),
    "state.json": lambda: encode_state(STATE),
    "state2.json": lambda: encode_state(STATE_2),
    "holder.json": lambda: encode_holder(HOLDER),
    **{f"session-{kind}.json": lambda e=e: encode_session_object(SESSION, e) for kind, e in ENVELOPES.items()},
    **{f"segment-{kind}.bin": lambda e=e: segment(e) for kind, e in ENVELOPES.items()},
    **{f"checkpoint-{kind}.bin": lambda e=e: encode_checkpoint(CHECKPOINT, e) for kind, e in ENVELOPES.items()},
    **{f"session2-{kind}.json": lambda e=e: encode_session_object(SESSION_2, e) for kind, e in ENVELOPES.items()},
    **{f"checkpoint2-{kind}.bin": lambda e=e: encode_checkpoint(CHECKPOINT_2, e) for kind, e in ENVELOPES.items()},
    **{f"roster-{kind}.bin": lambda e=e: encode_roster(NAMES, e) for kind, e in ENVELOPES.items()},
    "local2.json": lambda: _json(later_local_records()),
    "names.json": lambda: _json(
        {name.hex(): {kind: e.seal_name(name) for kind, e in ENVELOPES.items()} for name in NAMES}
    ),
    "cuts.json": lambda: _json({"ids": [cid.hex() for cid in CHUNKS], "lengths": cut_lengths()}),
    "local.json": lambda: _json(local_records()),
}
"""File → how it was made."""


def read(name: str) -> bytes:
    """The frozen bytes."""
    return (GOLDEN / name).read_bytes()


def sums() -> str:
    """SHA-256 of every frozen file, as `sha256sum -c` reads it."""
    files = sorted(path.name for path in GOLDEN.iterdir() if path.name != SUMS)
    return "".join(f"{hashlib.sha256(read(name)).hexdigest()}  {name}\n" for name in files)


def main() -> None:
    """Write what is missing."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, make in FILES.items():
        if not (GOLDEN / name).exists():
            (GOLDEN / name).write_bytes(make())
    (GOLDEN / SUMS).write_text(sums())


if __name__ == "__main__":
    main()
