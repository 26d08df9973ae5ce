"""The segments of one publishing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from sessfs.format.manifest import SegmentRef
from sessfs.format.segment import SegmentBuilder, segment_key
from sessfs.local.places import Unseen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sessfs.format.envelope import Envelope
    from sessfs.format.manifest import Manifest, ManifestRef
    from sessfs.local.chunkstore import FrameChecker
    from sessfs.sync.confirming import ConfirmedPuts
    from sessfs.types import ChunkId

SEGMENT_BYTES = 32 << 20


class Numbering(Protocol):
    """Whose segments they are, and how far their numbers go."""

    @property
    def name(self) -> str:
        """The node's name in the remote."""

    @property
    def incarnation(self) -> int:
        """The count of its starts."""

    @property
    def last_segment(self) -> int:
        """The last segment that counts."""


class Upload:
    """Segments, filled one after another; each is put when it is full."""

    def __init__(self, puts: ConfirmedPuts, envelope: Envelope, node: Numbering) -> None:
        self._puts = puts
        self._envelope = envelope
        self._node = node
        self.last_segment = node.last_segment
        self.placed: dict[ChunkId, tuple[str, int, int, int]] = {}
        self.places: list[tuple[int, int, int, bytes]] = []
        self.uploaded: list[tuple[SegmentRef, Unseen]] = []
        """The segments that were put."""
        self.builder = self._next()

    def _next(self) -> SegmentBuilder:
        self.last_segment += 1
        return SegmentBuilder(self._node.name, self.last_segment, self._node.incarnation, self._envelope)

    async def make_room(self, length: int, now_ns: int) -> None:
        """Put the segment, and begin another, when *length* more bytes would be too many."""
        if self.builder.size_bytes + length > SEGMENT_BYTES:
            await self.close(now_ns)
            self.builder = self._next()

    def add_frame(self, record: bytes, ids: list[ChunkId]) -> None:
        """Add a frame that is known to be sound; *ids* are those of its chunks that had no place before."""
        self._note(*self.builder.add_frame(record), ids)

    async def add_frames(
        self,
        frames: Sequence[tuple[ChunkId, bytes]],
        checker: FrameChecker,
        is_fresh: Callable[[ChunkId], bool],
        now_ns: int,
    ) -> None:
        """Add frame records, each with a chunk that it is for, but those in which *checker*, in a thread, finds that
        chunk not sound. Places of sound chunks that are then fresh are noted. Raises RemoteError.
        """
        if not frames:
            await trio.lowlevel.checkpoint()
            return
        await self.make_room(sum(len(record) for _, record in frames), now_ns)
        for ids, (offset, length) in await trio.to_thread.run_sync(self._seal, frames, checker):
            self._note(offset, length, [cid for cid in ids if is_fresh(cid)])

    def _seal(
        self, frames: Sequence[tuple[ChunkId, bytes]], checker: FrameChecker
    ) -> list[tuple[list[ChunkId], tuple[int, int]]]:
        """Of each frame that is added, its sound chunks and where it lies in the segment."""
        added = []
        for cid, record in frames:
            sound = checker.sound_chunks(record)
            if cid in sound:
                added.append((sound, self.builder.add_frame(record)))
        return added

    def _note(self, offset: int, length: int, ids: list[ChunkId]) -> None:
        self.places.append((self.last_segment, offset, length, b"".join(ids)))
        for cid in ids:
            self.placed[cid] = (self._node.name, self.last_segment, offset, length)

    async def add_manifest(self, manifest: Manifest, now_ns: int) -> ManifestRef:
        """Add a manifest, encoded in a thread. Raises RemoteError, and as `encode_manifest`."""
        await self.make_room(0, now_ns)
        return await trio.to_thread.run_sync(self.builder.add_manifest, manifest)

    async def close(self, now_ns: int) -> None:
        """Put the segment being filled. Raises RemoteCorrupt when the store has something else then, RemoteError."""
        body = self.builder.finish(now_ns)
        confirmed = await self._puts.put(segment_key(self._node.name, self.last_segment), body)
        self.uploaded.append((SegmentRef(self._node.name, self.last_segment), Unseen(len(body), confirmed)))
