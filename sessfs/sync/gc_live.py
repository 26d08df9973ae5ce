"""What is live: the bytes of each segment that manifests refer to, and which segments are mostly dead."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sessfs.format.manifest import SegmentRef, chunk_places
from sessfs.sync import remote_index
from sessfs.sync.remote_index import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sessfs.format.envelope import Envelope
    from sessfs.format.manifest import ManifestRef
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.sync.remote_index import Root, View
    from sessfs.types import ChunkId

REWRITE_MAX_BYTES = 64 << 20
"""Live bytes that one run has uploaded anew, at most."""


class Rewrite(NamedTuple):
    """What makes mostly dead segments wholly dead: these sessions published whole again, and these chunks uploaded
    again with them, their old places forgotten. The holder fetches the chunks first.
    """

    sessions: list[bytes]
    chunks: list[ChunkId]


class Liveness:
    """What manifests refer to, by segment."""

    def __init__(self) -> None:
        self.ranges: dict[SegmentRef, Ranges] = {}
        self.latest: dict[bytes, ManifestRef] = {}
        self._users: dict[SegmentRef, set[bytes]] = {}
        self._fixed: set[SegmentRef] = set()
        """Segments that a kept snapshot or a replaced node refers to: those manifests nobody can publish anew."""

    async def mark(self, store: ObjectStore, envelope: Envelope, root: Root) -> None:
        """Everything that *root* refers to is live: the records of its chain, and every frame in which whoever loads it
        would place a chunk.
        """
        chain = await remote_index.read_chain(store, envelope, root.ref)
        if root.kind == "latest":
            self.latest[root.session] = root.ref
        for ref, _ in chain:
            self._add(SegmentRef(ref.node, ref.segment), ref.offset, ref.length, root)
        merged = remote_index.merge_chain(chain)
        for frame in merged.frames:
            self._add(merged.segments[frame.segment], frame.offset, frame.length, root)

    def _add(self, segment: SegmentRef, offset: int, length: int, root: Root) -> None:
        self.ranges.setdefault(segment, Ranges()).add(offset, length)
        if root.kind == "latest":
            self._users.setdefault(segment, set()).add(root.session)
        else:
            self._fixed.add(segment)

    def live_bytes(self, segment: SegmentRef) -> int:
        """Bytes of *segment* that are referred to."""
        ranges = self.ranges.get(segment)
        return 0 if ranges is None else ranges.n_bytes

    def find_mostly_dead(self, sizes: Mapping[SegmentRef, int], live_share: float) -> list[SegmentRef]:
        """Of the segments with *sizes* in bytes, those of which less than *live_share* is live, the least live first;
        REWRITE_MAX_BYTES of live bytes in all, and none that is fixed.
        """
        found = []
        for ref, size in sizes.items():
            live = self.live_bytes(ref)
            if 0 < live < size * live_share and ref not in self._fixed:
                found.append((live / size, ref, live))
        chosen: list[SegmentRef] = []
        left = REWRITE_MAX_BYTES
        for _, ref, live in sorted(found):
            left -= live
            if left < 0:
                break
            chosen.append(ref)
        return chosen

    async def plan_rewrite(self, store: ObjectStore, envelope: Envelope, segments: Iterable[SegmentRef]) -> Rewrite:
        """What has to be published and uploaded anew so that *segments* die. Raises RemoteError."""
        chosen = set(segments)
        sessions = sorted({name for ref in chosen for name in self._users[ref]})
        chunks: set[ChunkId] = set()
        for name in sessions:
            chain = await remote_index.read_chain(store, envelope, self.latest[name])
            places = chunk_places(remote_index.merge_chain(chain))
            chunks.update(cid for cid, (segment, _, _) in places.items() if segment in chosen)
        return Rewrite(sessions, sorted(chunks))


def is_over(ref: SegmentRef, view: View) -> bool:
    """True when the segment's node can't write it again, and needs its footer no more."""
    state = view.states.get(ref.node)
    if state is None or ref.number > state.last_segment:
        return False
    return ref.node not in view.catalogues or ref.number < state.last_checkpoint
