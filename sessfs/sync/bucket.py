"""A repository read from outside: its sessions, their snapshots and contents, without a mount and without a write.

It is read as it is when it is opened: the holder's catalogue first, then the sessions' own objects, so that each
session is seen in one of the two while a mount is at work beside it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import trio

from sessfs.errors import RemoteCorrupt, RemoteMissing, StoreCorrupt
from sessfs.format.chunk import FrameCodec, verify_chunk
from sessfs.format.manifest import chunk_places
from sessfs.format.repository import KeptSnapshot, decode_state
from sessfs.format.segment import SESSIONS_PREFIX, open_frame, segment_key, state_key
from sessfs.local.chunkstore import decode_frame_record
from sessfs.local.places import RemotePlace
from sessfs.local.reserved import is_reserved
from sessfs.remote.catalogue import Kept, Known, read_known
from sessfs.remote.objectstore import iter_keys
from sessfs.remote.parallel import for_each, over
from sessfs.remote.recovery import lost_state, refuse_lost_holder
from sessfs.remote.roster import lost_session, read_roster
from sessfs.remote.sessionobjects import read_object
from sessfs.sync.flights import plan_reads
from sessfs.sync.remote_index import open_existing, read_holder
from sessfs.sync.restore import load_manifest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sessfs.format.envelope import Envelope
    from sessfs.format.manifest import Manifest, ManifestRef
    from sessfs.format.repository import Holder, SessionObject
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.types import ChunkId

MEMORY_BYTES = 32 << 20
PARALLEL_READS = 8
OPEN_TRIES = 3
DOT_SESSION = b"."


class Bucket:
    """An opened repository. Made by `open_bucket`; only reads, and any task of the run may use it."""

    def __init__(
        self,
        store: ObjectStore,
        envelope: Envelope,
        hash_key: bytes,
        holder: Holder | None,
        known: Known,
        *,
        has_roster: bool = False,
    ) -> None:
        """*known*: what the holder says beyond the sessions' own objects; *has_roster*: it knows of a roster."""
        self._store = store
        self._envelope = envelope
        self._hash_key = hash_key
        self._has_roster = has_roster
        self._catalogue = known.latest
        self._kept = known.kept
        self._roster: frozenset[bytes] | None = None
        self.holder = holder
        """Who may write, None when nobody ever did."""

    @property
    def encrypted(self) -> bool:
        """True when contents and names are sealed."""
        return self._envelope.encrypted

    async def find_object(self, name: bytes) -> SessionObject | None:
        """The session's own object, None when it has none. Raises RemoteError."""
        return await read_object(self._store, self._envelope, name)

    async def resolve(self, name: bytes) -> tuple[ManifestRef | None, int] | None:
        """(latest manifest, sequence), the manifest None for a session that was never published; None when there is no
        such session. Raises RemoteError.
        """
        if name in self._catalogue:
            ref, sequence = self._catalogue[name]
            return None if ref is None else (ref, sequence)
        record = await self.find_object(name)
        if record is None and name in await self._released():
            raise lost_session(self._envelope, name)
        return None if record is None else (record.manifest, record.sequence)

    async def _released(self) -> frozenset[bytes]:
        """Sessions that were released, where it is known; read once. Raises RemoteError."""
        if self._roster is None:
            self._roster = await read_roster(self._store, self._envelope, is_due=self._has_roster) or frozenset()
        return self._roster

    async def names(self) -> list[bytes]:
        """The names of all sessions, sorted, but for those in the trash. Raises RemoteError."""
        found = {name for name, (ref, _) in self._catalogue.items() if ref is not None}
        # Also those whose object is lost: who opens one is told so.
        found |= (await self._released()).difference(self._catalogue)
        async for entry in iter_keys(self._store, SESSIONS_PREFIX):
            name = self._envelope.open_name(entry.key.removeprefix(SESSIONS_PREFIX))
            if name not in self._catalogue:
                found.add(name)
        return sorted(name for name in found if name != DOT_SESSION and not is_reserved(name))

    async def kept(self, name: bytes) -> list[KeptSnapshot]:
        """The session's kept snapshots, oldest first, the latest among them; none when there is no such session. Raises
        RemoteError.
        """
        found = await self.resolve(name)
        if found is None:
            return []
        known = self._kept.get(name, Kept({}, complete=False))
        record = None if known.complete else await self.find_object(name)
        snapshots = {one.sequence: one for one in record.kept} if record is not None else {}
        snapshots |= known.snapshots
        ref, sequence = found
        if ref is not None and sequence not in snapshots:
            # Published before history was kept: only its manifest says when.
            snapshots[sequence] = KeptSnapshot(sequence, (await self.load(ref)).taken_ns, ref)
        return [snapshots[number] for number in sorted(snapshots)]

    async def load(self, ref: ManifestRef) -> Manifest:
        """The full manifest at *ref*. Raises RemoteError."""
        return await load_manifest(self._store, self._envelope, ref)

    def chunks(self, manifest: Manifest) -> BucketChunks:
        """Where the chunks of the manifest's session come from."""
        return BucketChunks(self._store, self._envelope, self._hash_key, manifest)


async def open_bucket(store: ObjectStore, secret: bytes | None, where: str) -> Bucket:
    """Open the repository in *store*, whatever its size in a bounded number of requests. *where* is its URL, for
    people. Raises RemoteMissing when there is none, KeyWrong, RemoteError.
    """
    hash_key, envelope = await open_existing(store, secret, where)
    for tries_left in reversed(range(OPEN_TRIES)):
        holder, _ = await read_holder(store)
        try:
            known, has_roster = await _read_said(store, envelope, holder)
        except (RemoteMissing, RemoteCorrupt):
            # A mount at work beside this may have written its next checkpoint, and had the old one collected.
            if not tries_left:
                raise
        else:
            return Bucket(store, envelope, hash_key, holder, known, has_roster=has_roster)
    raise AssertionError("unreachable: the last try returns or raises")


async def read_truth(store: ObjectStore, envelope: Envelope, holder: Holder | None) -> Known:
    """What the holder says beyond the sessions' own objects: nothing when it released all. Raises RemoteError; where
    the holder, or its state, is missing, that is damage.
    """
    return (await _read_said(store, envelope, holder))[0]


async def _read_said(store: ObjectStore, envelope: Envelope, holder: Holder | None) -> tuple[Known, bool]:
    """As `read_truth`, and whether the holder knows of a roster."""
    nothing = Known({}, {}, [], set())
    if holder is None:
        await refuse_lost_holder(store)
        return nothing, False
    key = state_key(holder.node)
    try:
        state = decode_state((await store.get(key)).body, key)
    except RemoteMissing as exc:
        raise lost_state(holder) from exc
    return (nothing if state.clean else await read_known(store, envelope, state)), state.has_roster


class BucketChunks:
    """Chunks of one session straight from the bucket, several at once by merged range reads, each verified."""

    def __init__(self, store: ObjectStore, envelope: Envelope, hash_key: bytes, manifest: Manifest) -> None:
        self._store = store
        self._envelope = envelope
        self._hash_key = hash_key
        self._codec = FrameCodec()
        self._session = manifest.session.decode(errors="replace")
        self._places = {
            cid: RemotePlace(segment.node, segment.number, offset, length)
            for cid, (segment, offset, length) in chunk_places(manifest).items()
        }
        self._memory: OrderedDict[ChunkId, bytes] = OrderedDict()
        self._memory_bytes = 0

    async def fetch(self, ids: Collection[ChunkId]) -> dict[ChunkId, bytes]:
        """All of *ids*, verified. Raises RemoteCorrupt when the remote has one not, or not as it was; RemoteError."""
        found = {cid: self._memory[cid] for cid in ids if cid in self._memory}
        wanted: dict[RemotePlace, list[ChunkId]] = {}
        for cid in set(ids).difference(found):
            place = self._places.get(cid)
            if place is None:
                raise RemoteCorrupt(f"session {self._session}: its manifest says of no place of chunk {cid.hex()}")
            wanted.setdefault(place, []).append(cid)

        async def read(node: str, segment: int, start: int, end: int, frames: list[tuple[int, int]]) -> None:
            key = segment_key(node, segment)
            try:
                blob = await self._store.get(key, start, end - start)
            except RemoteMissing as exc:
                raise RemoteCorrupt(f"session {self._session}: {key}, which its manifest names, is not there") from exc
            for offset, length in frames:
                sealed = blob.body[offset - start : offset - start + length]
                try:
                    record = open_frame(sealed, node, segment, offset, self._envelope)
                except RemoteCorrupt as exc:
                    raise RemoteCorrupt(f"session {self._session}: {exc}") from exc
                found.update(self._take(record, RemotePlace(node, segment, offset, length), wanted))
                await trio.lowlevel.checkpoint()

        await for_each(over(plan_reads(wanted)), lambda one: read(*one), PARALLEL_READS)
        return {cid: found[cid] for cid in ids}

    def _take(
        self, record: bytes, place: RemotePlace, wanted: Mapping[RemotePlace, Collection[ChunkId]]
    ) -> dict[ChunkId, bytes]:
        found: dict[ChunkId, bytes] = {}
        key = segment_key(place.node, place.segment)
        try:
            entries, payload = decode_frame_record(record)
            plain, offset = memoryview(self._codec.decode(payload)), 0
            for cid, length in entries:
                # Also what was not asked for, if the session has it from here: it is mostly what is asked for next.
                if self._places.get(cid) == place:
                    verify_chunk(self._hash_key, cid, plain[offset : offset + length])
                    self._remember(cid, bytes(plain[offset : offset + length]))
                    found[cid] = self._memory[cid]
                offset += length
        except StoreCorrupt as exc:
            raise RemoteCorrupt(f"session {self._session}, {key}: {exc}") from exc
        for cid in set(wanted[place]).difference(found):
            raise RemoteCorrupt(f"session {self._session}: chunk {cid.hex()} is not in its frame in {key}")
        return found

    def _remember(self, cid: ChunkId, chunk: bytes) -> None:
        if cid not in self._memory:
            self._memory[cid] = chunk
            self._memory_bytes += len(chunk)
        self._memory.move_to_end(cid)
        while self._memory_bytes > MEMORY_BYTES and len(self._memory) > 1:
            _, dropped = self._memory.popitem(last=False)
            self._memory_bytes -= len(dropped)
