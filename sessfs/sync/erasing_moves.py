"""What sessions need of segments that are to go, and writing it anew elsewhere: see `sync.erasing`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from sessfs.errors import RemoteCorrupt, StoreCorrupt
from sessfs.format.chunk import FrameCodec, verify_chunk
from sessfs.format.manifest import Manifest, ManifestRef, SegmentRef, chunk_places, pack_places, split_ids
from sessfs.format.segment import segment_key
from sessfs.local.chunkstore import decode_frame_record, encode_frame_record
from sessfs.remote.parallel import for_each, over
from sessfs.sync import remote_index
from sessfs.sync.confirming import ConfirmedPuts
from sessfs.sync.erasing_evidence import frame_entries
from sessfs.sync.upload import Numbering, Upload

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from sessfs.format.envelope import Envelope
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.sync.erasing_evidence import Frame
    from sessfs.sync.remote_index import Root, View
    from sessfs.types import ChunkId


class Need(NamedTuple):
    """A manifest that a session which is present has, and that has to be written anew: merged, full."""

    root: Root
    manifest: Manifest


async def find_needs(
    store: ObjectStore,
    envelope: Envelope,
    view: View,
    kept_here: Collection[Root],
    doomed: Collection[SegmentRef],
    erased: Collection[bytes],
) -> list[Need]:
    """Every latest and kept manifest that refers to a *doomed* segment, by itself or by one that it builds upon; with a
    kept one always also the latest, since the last manifest that a footer names counts as that. By session, oldest
    first. *kept_here*: the snapshots that this node keeps, of which the remote may not know yet. Raises RemoteError.
    """
    needs: dict[Root, Need] = {}
    latest: dict[bytes, Root] = {}
    seen: set[ManifestRef] = set()

    async def judge(root: Root) -> None:
        if root.kind == "left" or root.session in erased:
            return
        if root.kind == "latest":
            latest[root.session] = root
        if root.ref in seen:
            return
        seen.add(root.ref)
        chain = await remote_index.read_chain(store, envelope, root.ref)
        named = {SegmentRef(ref.node, ref.segment) for ref, _ in chain}
        named |= {segment for _, manifest in chain for segment in manifest.segments}
        if not named.isdisjoint(doomed):
            needs[root] = Need(root, remote_index.merge_chain(chain))

    async def judge_all(roots: Iterable[Root]) -> None:
        for root in roots:
            await judge(root)

    async def judge_session(key: str) -> None:
        record = await remote_index.read_session(store, envelope, key)
        if record is not None:
            await judge_all(remote_index.session_roots(view, record, key))

    await for_each(over(list(remote_index.catalogue_roots(view))), judge_all)
    await for_each(remote_index.iter_session_keys(store), judge_session)
    await for_each(over(kept_here), judge)
    # Snapshots of a session that was removed go with it.
    needs = {root: need for root, need in needs.items() if root.session in latest}
    for last in {latest[root.session] for root in needs}:
        if last not in needs:
            chain = await remote_index.read_chain(store, envelope, last.ref)
            needs[last] = Need(last, remote_index.merge_chain(chain))
    return sorted(needs.values(), key=lambda need: (need.root.session, need.manifest.sequence))


class Mover:
    """Writes what *needs* have in doomed segments anew, into segments of the node that come next."""

    def __init__(
        self, store: ObjectStore, envelope: Envelope, hash_key: bytes, publisher: Numbering, now_ns: Callable[[], int]
    ) -> None:
        self._store = store
        self._envelope = envelope
        self._hash_key = hash_key
        self._now_ns = now_ns
        self._codec = FrameCodec()
        # What they are copied from is deleted.
        self._upload = Upload(ConfirmedPuts(store, read_back_every=1), envelope, publisher)
        self.moved: dict[ManifestRef, ManifestRef] = {}
        self.moved_bytes = 0

    @property
    def last_segment(self) -> int:
        """The last that was put."""
        return self._upload.last_segment

    @property
    def places(self) -> list[tuple[int, int, int, bytes]]:
        """As in Outbox."""
        return self._upload.places

    async def run(self, needs: Collection[Need], doomed: Collection[SegmentRef]) -> None:
        """Put the segments; `moved` then says where each manifest lies now. Raises RemoteError."""
        wanted: dict[Frame, set[ChunkId]] = {}
        for need in needs:
            for frame in need.manifest.frames:
                segment = need.manifest.segments[frame.segment]
                if segment in doomed:
                    wanted.setdefault((segment, frame.offset, frame.length), set()).update(split_ids(frame.chunks))
        for frame_place in sorted(wanted):
            await self._move_frame(frame_place, wanted[frame_place])
        for need in needs:
            await self._write(need)
        await self._upload.close(self._now_ns())

    async def _move_frame(self, frame: Frame, wanted: set[ChunkId]) -> None:
        (node, number), offset, length = frame
        fresh = wanted - self._upload.placed.keys()
        if not fresh:
            return
        blob = await self._store.get(segment_key(node, number), offset, length)
        entries, record = frame_entries(blob.body, frame, self._envelope)
        chunks: list[tuple[ChunkId, bytes]] = []
        try:
            plain = self._codec.decode(decode_frame_record(record)[1])
            at = 0
            for cid, size in entries:
                if cid in fresh:
                    verify_chunk(self._hash_key, cid, plain[at : at + size])
                    chunks.append((cid, plain[at : at + size]))
                at += size
        except StoreCorrupt as exc:
            raise RemoteCorrupt(f"the frame at byte {offset} of {segment_key(node, number)}: {exc}") from exc
        for cid in fresh.difference(cid for cid, _ in chunks):
            raise RemoteCorrupt(f"{segment_key(node, number)} lacks chunk {cid.hex()}, which a snapshot names")
        record = encode_frame_record([(c, len(p)) for c, p in chunks], self._codec.encode([p for _, p in chunks]))
        await self._upload.make_room(len(record), self._now_ns())
        self._upload.add_frame(record, [cid for cid, _ in chunks])
        self.moved_bytes += len(record)

    async def _write(self, need: Need) -> None:
        """The manifest as it is, but for the places of chunks that were moved; its number and time stay."""
        if need.root.ref in self.moved:
            return
        places = chunk_places(need.manifest)
        for cid in places:
            moved = self._upload.placed.get(cid)
            if moved is not None:
                places[cid] = (SegmentRef(*moved[:2]), *moved[2:])
        segments, frames = pack_places(places)
        manifest = msgspec.structs.replace(need.manifest, segments=segments, frames=frames)
        self.moved[need.root.ref] = await self._upload.add_manifest(manifest, self._now_ns())
