"""What is live: the bytes of each segment that manifests refer to, and which segments are mostly dead."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sessfs.errors import RemoteCorrupt, RemoteMissing
from sessfs.format.manifest import SegmentRef, chunk_places
from sessfs.remote.roster import PUT_BACK, show
from sessfs.sync import remote_index
from sessfs.sync.remote_index import Ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sessfs.format.envelope import Envelope
    from sessfs.format.manifest import Manifest, ManifestRef
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.sync.remote_index import Cache, Root, View
    from sessfs.types import ChunkId

REWRITE_MAX_BYTES = 64 << 20
"""Live bytes that one run has uploaded anew, at most."""


KINDS = {"latest": "latest snapshot", "left": "last snapshot that a replaced node had"}


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
        self.lost: list[Root] = []
        """Kept snapshots that the bucket names and lacks."""
        self._users: dict[SegmentRef, set[bytes]] = {}
        self._fixed: set[SegmentRef] = set()
        """Segments that a replaced node refers to: its manifests nobody can publish anew. Nor can those of kept
        snapshots; but their time comes, and what is live then should not be what keeps the segment.
        """

    async def mark(self, store: ObjectStore, envelope: Envelope, roots: Iterable[Root]) -> None:
        """Everything that *roots*, manifests of one session, refer to is live: the records of their chains, and every
        frame in which whoever loads them would place a chunk.
        """
        cache: Cache = {}
        marked: set[ManifestRef] = set()
        for root in roots:
            try:
                chain = await remote_index.read_chain(store, envelope, root.ref, cache)
            except RemoteMissing as exc:
                if root.kind != "kept":
                    raise RemoteCorrupt(
                        f"{root.where} names the {KINDS[root.kind]} of session {show(root.session)}, and something of "
                        f"that is missing ({exc}): {PUT_BACK}"
                    ) from exc
                # What it needs is not known: see `may_be_needed`.
                self.lost.append(root)
                continue
            if root.kind == "latest":
                self.latest[root.session] = root.ref
                self._mark_frames(remote_index.merge_chain(chain), root)
            for ref, manifest in chain:
                if root.kind != "kept" or ref not in marked:
                    self.add(SegmentRef(ref.node, ref.segment), ref.offset, ref.length, root)
                    if root.kind != "latest":
                        # Merging each of them would take long, and what it saves lives in the latest mostly.
                        self._mark_frames(manifest, root)
                if root.kind == "kept":
                    marked.add(ref)

    def _mark_frames(self, manifest: Manifest, root: Root) -> None:
        for frame in manifest.frames:
            self.add(manifest.segments[frame.segment], frame.offset, frame.length, root)

    def add(self, segment: SegmentRef, offset: int, length: int, root: Root) -> None:
        """*root* refers to those bytes of *segment*."""
        self.ranges.setdefault(segment, Ranges()).add(offset, length)
        if root.kind == "latest":
            self._users.setdefault(segment, set()).add(root.session)
        elif root.kind == "left":
            self._fixed.add(segment)

    def may_be_needed(self, segment: SegmentRef) -> bool:
        """Whether a snapshot whose manifest is gone may refer to *segment*, which another manifest does not: of its own
        node's segments it can know only earlier ones.
        """
        return any(root.ref.node != segment.node or segment.number <= root.ref.segment for root in self.lost)

    def live_bytes(self, segment: SegmentRef) -> int:
        """Bytes of *segment* that are referred to."""
        ranges = self.ranges.get(segment)
        return 0 if ranges is None else ranges.n_bytes

    def find_mostly_dead(self, sizes: Mapping[SegmentRef, int], live_share: float) -> list[SegmentRef]:
        """Of the segments with *sizes* in bytes, those of which less than *live_share* is live, the least live first;
        REWRITE_MAX_BYTES of live bytes in all; none that is fixed, or that only kept snapshots need.
        """
        found = []
        for ref, size in sizes.items():
            live = self.live_bytes(ref)
            if 0 < live < size * live_share and ref in self._users and ref not in self._fixed:
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
    return ref.node not in view.known or ref.number < state.last_checkpoint
