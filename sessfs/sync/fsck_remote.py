"""Check a remote from outside: every record decodes, every manifest's chunks lie where it says, and, as far as asked,
their bytes are what they were.

It needs no mount and does not mind one: what a mounted node publishes meanwhile is not checked. What it finds damaged
it leaves a note of, and changes nothing else.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from sessfs.errors import RemoteCorrupt, RemoteError, RemoteMissing, SessfsError
from sessfs.format.chunk import FrameCodec, verify_chunk
from sessfs.format.manifest import SegmentRef, chunk_places, recipe_chunks, split_ids
from sessfs.format.roster import ROSTER_KEY
from sessfs.format.segment import open_frame, segment_key
from sessfs.local.chunkstore import decode_frame_record
from sessfs.local.places import RemotePlace
from sessfs.remote.footers import read_segment_footer
from sessfs.remote.objectstore import iter_keys
from sessfs.remote.parallel import for_each, over
from sessfs.remote.roster import lost_session
from sessfs.sync import damage_notes, gc_marks, remote_index
from sessfs.sync.flights import plan_reads
from sessfs.sync.fsck import Problem, Report
from sessfs.sync.remote_index import DAMAGE, Ranges

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sessfs.format.envelope import Envelope
    from sessfs.format.manifest import Manifest
    from sessfs.format.repository import SessionObject
    from sessfs.format.segment import Footer
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.sync.remote_index import Cache, Progress, Root, View
    from sessfs.types import ChunkId

PARALLEL_SEGMENTS = 8
SHARE_STEPS = 1 << 32
REFERRING_KINDS = ("object", "manifest")
"""Problems of these kinds are with something that refers to segments."""


class Sampling(NamedTuple):
    """Which frames to read: about *share* (0 to 1) of them, others for another *seed*."""

    share: float
    seed: bytes

    def takes(self, segment: SegmentRef, offset: int) -> bool:
        """True for frames to read."""
        text = f"{segment.node} {segment.number} {offset}".encode()
        digest = hashlib.blake2b(text, key=self.seed, digest_size=4).digest()
        return int.from_bytes(digest, "big") < self.share * SHARE_STEPS


class _Used(NamedTuple):
    """What manifests say of one segment: places of frames and of manifests, and the roots that say so."""

    frames: Ranges
    manifests: Ranges
    roots: set[int]


async def check_remote(
    store: ObjectStore,
    envelope: Envelope,
    hash_key: bytes,
    sampling: Sampling,
    progress: Progress | None = None,
) -> Report:
    """Check everything. *progress* gets (stage, items done). Damage is in the report; RemoteError is raised when the
    remote can't be read at all, and then nothing is known.
    """
    return await _Check(store, envelope, hash_key, sampling, progress).run()


class _Check:
    """One run."""

    def __init__(
        self, store: ObjectStore, envelope: Envelope, hash_key: bytes, sampling: Sampling, progress: Progress | None
    ) -> None:
        self._store = store
        self._envelope = envelope
        self._hash_key = hash_key
        self._sampling = sampling
        self._progress = progress
        self._codec = FrameCodec()
        self._problems: list[Problem] = []
        self._counts: Counter[str] = Counter()
        self._roots: list[Root] = []
        self._used: dict[SegmentRef, _Used] = {}
        self._expected: dict[tuple[SegmentRef, int], set[ChunkId]] = {}
        self._bad: dict[tuple[SegmentRef, int], str] = {}
        self._bad_places: set[RemotePlace] = set()
        self._bad_segments: set[SegmentRef] = set()

    async def run(self) -> Report:
        view = await remote_index.read_view(
            self._store, self._envelope, on_damage=self._report_object, progress=self._progress
        )
        self._counts["nodes"] = len(view.states)
        self._counts["segments"] = len(view.inventory.segments)
        await self._check_sessions(view)
        await self._check_marks()
        await for_each(over(sorted(self._used)), lambda ref: self._check_segment(view, ref), PARALLEL_SEGMENTS)
        await self._blame()
        self._problems.sort(key=lambda p: (p.session, p.path, p.kind))
        notes = [*self._notes(view), *await self._tell_mounts()]
        return Report(self._problems, dict(self._counts), notes)

    async def _tell_mounts(self) -> list[str]:
        """Have mounts put right what they can; or, where everything was read and is sound, know that nothing is amiss.
        What is to be said of that. Raises RemoteError where that can't be looked up.
        """
        is_sound = self._sampling.share >= 1 and not self._problems
        stale = await damage_notes.list_notes(self._store) if is_sound else []
        try:
            if self._bad_places or self._bad_segments:
                note = damage_notes.make_note(self._bad_places, self._bad_segments)
                await damage_notes.put_note(self._store, note)
            if stale:
                await self._store.delete(stale)
        except RemoteError as exc:
            return [f"mounts are not told of what was found, since nothing can be written there: {exc}"]
        return []

    def _step(self, stage: str, count: int = 1) -> None:
        self._counts[stage] += count
        if self._progress is not None:
            self._progress(stage, self._counts[stage])

    def _report_object(self, key: str, error: SessfsError) -> None:
        self._problems.append(Problem("object", "", key, str(error)))

    def _report(self, kind: str, root: Root, path: str, message: str) -> None:
        which = "" if root.kind == "latest" else f" (in the snapshot that {root.where} keeps)"
        self._problems.append(Problem(kind, _show(root.session), path, message + which))

    # -- sessions and their manifests

    async def _check_sessions(self, view: View) -> None:
        of_holder = [roots for roots in remote_index.catalogue_roots(view) if roots and roots[0].kind != "left"]
        await for_each(over(of_holder), self._check_roots)
        roster = await self._read_roster(view)
        keys: list[str] = []

        async def check_object(key: str) -> None:
            keys.append(key)
            try:
                record = await remote_index.read_session(self._store, self._envelope, key)
            except DAMAGE as exc:
                self._report_object(key, exc)
                return
            if record is not None:
                self._check_begun(view, record, key)
                await self._check_roots(remote_index.session_roots(view, record, key))

        await for_each(remote_index.iter_session_keys(self._store), check_object)
        for name in await remote_index.find_lost_sessions(self._store, self._envelope, view, roster, keys):
            self._problems.append(Problem("object", _show(name), "", str(lost_session(self._envelope, name))))

    async def _read_roster(self, view: View) -> frozenset[bytes]:
        try:
            return await remote_index.read_view_roster(self._store, self._envelope, view)
        except DAMAGE as exc:
            self._report_object(ROSTER_KEY, exc)
            return frozenset()

    def _check_begun(self, view: View, record: SessionObject, key: str) -> None:
        """A session that was never released is known by what its node published: that may be lost."""
        if record.manifest is None and record.name not in view.truth and not view.is_whole:
            text = f"{key} has no snapshot yet, and none is found: it may be in what is missing or damaged"
            self._problems.append(Problem("object", _show(record.name), "", text))

    async def _check_marks(self) -> None:
        """What collectors have said; a damaged mark ends the next collection."""
        async for entry in iter_keys(self._store, gc_marks.MARK_PREFIX):
            try:
                gc_marks.decode_mark(entry.key, (await self._store.get(entry.key)).body)
            except RemoteMissing:
                continue  # a collector deleted it since
            except DAMAGE as exc:
                self._report_object(entry.key, exc)

    async def _check_roots(self, roots: Iterable[Root]) -> None:
        """Check manifests of one session."""
        cache: Cache = {}
        for root in roots:
            await self._check_root(root, cache)

    async def _check_root(self, root: Root, cache: Cache) -> None:
        self._step("snapshots")
        number = len(self._roots)
        self._roots.append(root)
        try:
            chain = await remote_index.read_chain(self._store, self._envelope, root.ref, cache)
            merged = remote_index.merge_chain(chain)
        except DAMAGE as exc:
            self._report("manifest", root, "", str(exc))
            if root.kind == "latest":
                self._bad_segments.add(SegmentRef(root.ref.node, root.ref.segment))
            return
        # A kept one may be of the time before the session was renamed.
        if merged.session != root.session and root.kind == "latest":
            self._report("manifest", root, "", f"{root.where} names a manifest of session {_show(merged.session)}")
        self._check_tree(root, merged)
        self._counts["manifests"] += len(chain)
        for ref, _ in chain:
            self._use(SegmentRef(ref.node, ref.segment), number).manifests.add(ref.offset, ref.length)
        for frame in merged.frames:
            segment = merged.segments[frame.segment]
            self._use(segment, number).frames.add(frame.offset, frame.length)
            if self._sampling.takes(segment, frame.offset):
                self._expected.setdefault((segment, frame.offset), set()).update(split_ids(frame.chunks))

    def _use(self, segment: SegmentRef, root: int) -> _Used:
        used = self._used.setdefault(segment, _Used(Ranges(), Ranges(), set()))
        used.roots.add(root)
        return used

    def _check_tree(self, root: Root, manifest: Manifest) -> None:
        """Every name leads to an inode, every inode has a name, every chunk a place."""
        self._counts["files"] += len(manifest.nodes)
        places = chunk_places(manifest)
        paths = _Paths(manifest)
        inodes = {record.ino for record in manifest.nodes}
        for entry in manifest.names:
            if entry.ino not in inodes:
                self._report("tree", root, paths.of(entry.ino), "the manifest lacks its inode")
        for record in manifest.nodes:
            path = paths.of(record.ino)
            if not path:
                self._report("tree", root, f"inode {record.ino}", "no name leads there")
            missing = recipe_chunks([record]) - places.keys()
            if missing:
                message = f"{len(missing)} of its chunks have no place, {min(missing).hex()} first"
                self._report("chunk", root, path, message)

    # -- segments

    async def _check_segment(self, view: View, ref: SegmentRef) -> None:
        self._step("segments_checked")
        used = self._used[ref]
        stored = view.inventory.segments.get(ref)
        key = segment_key(*ref)
        try:
            if stored is None:
                footer = await remote_index.read_footer(self._store, self._envelope, ref)
            else:
                footer = await read_segment_footer(self._store, ref.node, ref.number, stored.size, self._envelope)
        except DAMAGE as exc:
            self._problems.append(Problem("segment", "", key, str(exc)))
            self._bad_segments.add(ref)
            if stored is None:
                self._bad_places.update(RemotePlace(*ref, *frame) for frame in used.frames)
        else:
            self._check_footer(ref, used, footer)
        await self._read_frames(ref, used)

    def _check_footer(self, ref: SegmentRef, used: _Used, footer: Footer) -> None:
        """What manifests place in the segment, its footer has to list."""
        frames = set(footer.frames)
        manifests = {(entry.offset, entry.length) for entry in footer.manifests}
        for offset, length in used.frames:
            self._counts["frames"] += 1
            if (offset, length) not in frames:
                self._bad_places.add(RemotePlace(*ref, offset, length))
                self._bad[ref, offset] = f"{segment_key(*ref)} has no frame of {length} bytes at {offset}"
        for offset, length in used.manifests:
            if (offset, length) not in manifests:
                message = f"{segment_key(*ref)} does not list the manifest of {length} bytes at {offset}"
                self._problems.append(Problem("segment", "", segment_key(*ref), message))

    async def _read_frames(self, ref: SegmentRef, used: _Used) -> None:
        """Read, open and verify the frames that are to be sampled."""
        places = [
            RemotePlace(ref.node, ref.number, offset, length)
            for offset, length in used.frames
            if (ref, offset) in self._expected and (ref, offset) not in self._bad
        ]
        for read in plan_reads(places):
            await self._read(ref, read.start, read.end, read.frames)

    async def _read(self, ref: SegmentRef, start: int, end: int, frames: list[tuple[int, int]]) -> None:
        try:
            body = (await self._store.get(segment_key(*ref), start, end - start)).body
        except DAMAGE as exc:
            if len(frames) == 1:
                self._bad_places.add(RemotePlace(*ref, *frames[0]))
                self._bad[ref, frames[0][0]] = str(exc)
                return
            for offset, length in frames:
                await self._read(ref, offset, offset + length, [(offset, length)])
            return
        for offset, length in frames:
            self._step("frames_read")
            try:
                self._verify(ref, offset, body[offset - start : offset - start + length])
            except DAMAGE as exc:
                self._bad_places.add(RemotePlace(*ref, offset, length))
                self._bad[ref, offset] = f"{segment_key(*ref)}, frame at {offset}: {exc}"

    def _verify(self, ref: SegmentRef, offset: int, sealed: bytes) -> None:
        entries, payload = decode_frame_record(open_frame(sealed, ref.node, ref.number, offset, self._envelope))
        plain = memoryview(self._codec.decode(payload))
        at = 0
        for cid, length in entries:
            # Others that are listed may have been damaged before they were uploaded: their place is another.
            if cid in self._expected[ref, offset]:
                verify_chunk(self._hash_key, cid, plain[at : at + length])
            at += length
        missing = self._expected[ref, offset] - {cid for cid, _ in entries}
        if missing or at != len(plain):
            raise RemoteCorrupt(f"{len(missing)} chunks that manifests place there are not in it")
        self._counts["chunks_verified"] += len(entries)

    # -- naming what is hit

    async def _blame(self) -> None:
        """Name the sessions and files that need what is damaged."""
        damaged = {segment for segment, _ in self._bad}
        numbers = sorted({number for segment in damaged for number in self._used[segment].roots})
        for number in numbers:
            root = self._roots[number]
            try:
                chain = await remote_index.read_chain(self._store, self._envelope, root.ref)
                manifest = remote_index.merge_chain(chain)
            except DAMAGE as exc:
                self._report("manifest", root, "", str(exc))
                continue
            paths = _Paths(manifest)
            bad = {
                cid: self._bad[segment, offset]
                for cid, (segment, offset, _) in chunk_places(manifest).items()
                if (segment, offset) in self._bad
            }
            for record in manifest.nodes:
                hit = sorted({bad[cid] for cid in recipe_chunks([record]) if cid in bad})
                if hit:
                    more = f" (and {len(hit) - 1} more places)" if len(hit) > 1 else ""
                    self._report("data", root, paths.of(record.ino) or f"inode {record.ino}", hit[0] + more)

    def _notes(self, view: View) -> list[str]:
        notes = []
        if view.holder is not None and view.holder.node in view.known:
            notes.append(
                f"node {view.holder.node} (host {view.holder.hostname}) has the remote mounted, or did not release it"
            )
        if view.inventory.strangers:
            strangers = view.inventory.strangers
            notes.append(f"{len(strangers)} objects are not of sessfs: {strangers[0]}, ...")
        idle = [stored.size for ref, stored in view.inventory.segments.items() if ref not in self._used]
        if idle:
            which = f"{len(idle)} segments ({sum(idle)} bytes)"
            # What a damaged one refers to was not seen.
            if any(problem.kind in REFERRING_KINDS for problem in self._problems):
                notes.append(f"whether {which} are needed can't be told before the damaged objects are mended")
            else:
                notes.append(f"{which} are not referred to: `sessfs gc` collects them")
        return notes


class _Paths:
    """Paths inside a session."""

    def __init__(self, manifest: Manifest) -> None:
        self._root = manifest.root
        self._names = {entry.ino: (entry.parent, entry.name) for entry in manifest.names}

    def of(self, ino: int) -> str:
        """The path of the inode, `.` for the session itself; one of them where there are several, empty for none."""
        parts: list[bytes] = []
        while ino != self._root:
            if ino not in self._names or len(parts) > len(self._names):
                return ""
            ino, name = self._names[ino]
            parts.append(name)
        return _show(b"/".join(reversed(parts))) or "."


def _show(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
