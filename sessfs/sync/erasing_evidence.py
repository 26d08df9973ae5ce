"""Which segments of a remote may hold something that only an erased session had: see `sync.erasing`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from sessfs.errors import RemoteCorrupt, StoreCorrupt
from sessfs.format.manifest import ManifestRef, SegmentRef, split_ids
from sessfs.format.segment import open_frame, open_manifest, segment_key
from sessfs.local.chunkstore import decode_frame_record
from sessfs.remote.footers import read_segment_footer
from sessfs.remote.parallel import for_each, over
from sessfs.sync import remote_index

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sessfs.format.envelope import Envelope
    from sessfs.format.segment import Footer
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.sync.remote_index import View
    from sessfs.types import ChunkId

    Frame = tuple[SegmentRef, int, int]

READS = 2
"""Segments read at once, each as a whole."""


class Evidence:
    """What the bucket says, of which session what is. Reads every segment as a whole."""

    def __init__(self, store: ObjectStore, envelope: Envelope, view: View, erased: Collection[bytes]) -> None:
        self._store = store
        self._envelope = envelope
        self._view = view
        self._erased = set(erased)
        self._present: set[bytes] = set()
        self._known: set[ChunkId] = set()
        self._footers: dict[SegmentRef, Footer] = {}
        self.doomed: set[SegmentRef] = set()

    async def gather(self, on_step: Callable[[str, int, int], None]) -> None:
        """Fill `doomed`; *on_step* hears of the stage, and what of it is done and to be done. Raises RemoteError."""
        self._present = await present_sessions(self._store, self._envelope, self._view) - self._erased
        segments = sorted(self._view.inventory.segments)

        async def read_footer(ref: SegmentRef) -> None:
            size = self._view.inventory.segments[ref].size
            footer = await read_segment_footer(self._store, ref.node, ref.number, size, self._envelope)
            self._footers[ref] = footer
            names = {manifest.session for manifest in footer.manifests} | set(footer.removed)
            if names & self._erased:
                self.doomed.add(ref)
            for found in footer.manifests:
                if found.session in self._present:
                    await self._note(ManifestRef(ref.node, ref.number, found.offset, found.length))
            on_step("manifests", len(self._footers), len(segments))

        await for_each(over(segments), read_footer)
        done = 0

        async def read_frames(ref: SegmentRef) -> None:
            nonlocal done
            if ref not in self.doomed and await self._has_unknown(ref):
                self.doomed.add(ref)
            done += 1
            on_step("segments", done, len(segments))

        await for_each(over(segments), read_frames, READS)

    async def _note(self, ref: ManifestRef) -> None:
        blob = await self._store.get(segment_key(ref.node, ref.segment), ref.offset, ref.length)
        for frame in open_manifest(blob.body, ref, self._envelope).frames:
            self._known.update(split_ids(frame.chunks))

    async def _has_unknown(self, ref: SegmentRef) -> bool:
        """True when a frame of the segment has a chunk that no session which is present has, or had."""
        frames = self._footers[ref].frames
        if not frames:
            return False
        body = (await self._store.get(segment_key(*ref))).body
        for offset, length in frames:
            entries = frame_entries(body[offset : offset + length], (ref, offset, length), self._envelope)[0]
            if any(cid not in self._known for cid, _ in entries):
                return True
            await trio.lowlevel.checkpoint()
        return False


async def present_sessions(store: ObjectStore, envelope: Envelope, view: View) -> set[bytes]:
    """Names of all sessions that a mount would find. Raises RemoteCorrupt when one that was released has no object any
    more: what only it has would be taken for nobody's. Raises RemoteError.
    """
    roster = await remote_index.read_view_roster(store, envelope, view)
    keys: list[str] = []
    found = {name for name, (ref, _) in view.truth.items() if ref is not None}

    async def note(key: str) -> None:
        keys.append(key)
        record = await remote_index.read_session(store, envelope, key)
        if record is not None and record.name not in view.truth:
            found.add(record.name)

    await for_each(remote_index.iter_session_keys(store), note)
    await remote_index.refuse_lost_sessions(store, envelope, view, roster, keys)
    return found


def frame_entries(sealed: bytes, frame: Frame, envelope: Envelope) -> tuple[list[tuple[ChunkId, int]], bytes]:
    """(chunks and their lengths, record) of a frame. Raises RemoteCorrupt."""
    (node, number), offset, _ = frame
    record = open_frame(sealed, node, number, offset, envelope)
    try:
        return decode_frame_record(record)[0], record
    except StoreCorrupt as exc:
        raise RemoteCorrupt(f"the frame at byte {offset} of {segment_key(node, number)}: {exc}") from exc
