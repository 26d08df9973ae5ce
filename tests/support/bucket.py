"""A small writer for tests of what reads the bucket: real segments and manifests by the real Node, no filesystem.

It keeps what a state directory keeps: sessions with their files, chunks, and places of chunks in the remote; it
deduplicates by places, forgets chunks when it evicts, and may hold chunks for files that do not travel.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from sessfs.errors import RemoteUnavailable
from sessfs.format.chunk import FrameCodec, chunk_id, verify_chunk
from sessfs.format.envelope import PlainEnvelope
from sessfs.format.manifest import (
    Manifest,
    ManifestRef,
    NameRecord,
    NodeRecord,
    SegmentRef,
    chunk_places,
    pack_places,
)
from sessfs.format.recipe import Recipe, encode_extent
from sessfs.format.repository import KeptSnapshot
from sessfs.format.segment import SegmentBuilder, open_frame, segment_key
from sessfs.local.chunkstore import decode_frame_record, encode_frame_record
from sessfs.remote.node import Identity, open_node
from sessfs.sync.gc_marks import missing_segments
from sessfs.sync.remote_index import (
    catalogue_roots,
    iter_session_keys,
    merge_chain,
    read_chain,
    read_session,
    read_view,
    session_roots,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import trio

    from sessfs.format.envelope import Envelope
    from sessfs.remote.node import Node
    from sessfs.remote.objectstore import ObjectStore
    from sessfs.sync.remote_index import Root
    from sessfs.types import ChunkId

HASH_KEY = bytes(range(32))
PLAIN = PlainEnvelope()
ROOT = 1
Place = tuple[SegmentRef, int, int]
Files = dict[bytes, list[bytes]]


def cid_of(content: bytes) -> ChunkId:
    return chunk_id(HASH_KEY, content)


class Writer:
    """One state directory. `start` before anything else, `kill` or `release` to end."""

    def __init__(
        self, store: ObjectStore, name: str, now_s: Callable[[], float], envelope: Envelope = PLAIN, keep: int = 0
    ) -> None:
        """*keep*: how many of the last snapshots of each session are kept."""
        self._keep_last = keep
        self._kept: dict[bytes, list[KeptSnapshot]] = {}
        self._store = store
        self._envelope = envelope
        self._now_s = now_s
        self.name = name
        self.node: Node | None = None
        self.sessions: dict[bytes, Files] = {}
        self.private: list[bytes] = []
        """Contents of files that do not travel."""
        self.chunks: dict[ChunkId, bytes] = {}
        self.places: dict[ChunkId, Place] = {}
        self.lost: list[ChunkId] = []
        """Chunks of sessions that a start found to be nowhere."""
        self.dirty: set[bytes] = set()
        self.always_full = False
        """Publish no deltas."""
        self.tasks: list[trio.CancelScope] = []
        """Around what ends with the process."""
        self._published: dict[bytes, tuple[ManifestRef, Files, int, int]] = {}
        self._held = 0
        self._pins: set[ChunkId] = set()
        self._contents: dict[ChunkId, bytes] = {}

    # -- life

    async def start(self, *, take_over: bool = False) -> None:
        """Mount: take the prefix, load every session of the remote if another node had it, check the places."""
        identity = Identity(self.name, f"host-{self.name}", 1)
        node = await open_node(
            self._store, self._envelope, identity, take_over=take_over, stale_s=0.0, monotonic_s=lambda: 0.0
        )
        node.keeping.kept_of = self._kept_of
        former = node.former
        was_here = former is None or (former.node, former.incarnation) == (self.name, self._held)
        if not was_here:
            self.sessions, self.dirty, self._published, self._kept = {}, set(), {}, {}
        missing = await missing_segments(self._store, {place[0] for place in self.places.values()})
        for cid, place in list(self.places.items()):
            if place[0] in missing:
                if cid in self.held() and cid not in self.chunks:
                    await self._fetch(cid, place)
                del self.places[cid]
                self.dirty |= {name for name, files in self.sessions.items() if cid in _chunks_of(files)}
        if not was_here:
            await self._load_all()
            self._kept = {name: await node.resolve_kept(name) for name in self._published} if self._keep_last else {}
        self.node = node
        self._held = node.incarnation

    def _kept_of(self, name: bytes) -> list[KeptSnapshot] | None:
        if not self._keep_last:
            return []
        return self._kept[name][-self._keep_last :] if name in self._kept else None

    async def _fetch(self, cid: ChunkId, place: Place) -> None:
        if segment_key(*place[0]) in {e.key for e in await self._store.list_page(segment_key(*place[0]), "", 1)}:
            self.chunks[cid] = (await read_frame(self._store, self._envelope, place))[cid]
        else:
            # A file that does not travel may lose what was evicted, as any cache; nothing else may.
            self.private = [content for content in self.private if cid_of(content) != cid]
            if cid in self.held():
                self.lost.append(cid)

    async def _load_all(self) -> None:
        for root, manifest in await read_all(self._store, self._envelope):
            if root.kind != "latest":
                continue
            files: Files = {}
            for name, ids in files_of(manifest).items():
                files[name] = [self._contents.get(cid, b"") or await self._content(manifest, cid) for cid in ids]
            for cid, place in chunk_places(manifest).items():
                self.places.setdefault(cid, place)
            self.sessions[root.session] = files
            self._published[root.session] = (root.ref, {}, manifest.sequence, 99)

    async def _content(self, manifest: Manifest, cid: ChunkId) -> bytes:
        content = (await read_frame(self._store, self._envelope, chunk_places(manifest)[cid]))[cid]
        self._contents[cid] = content
        return content

    def kill(self) -> None:
        """The process ends; the state directory stays."""
        self.node = None
        self._pins.clear()
        self._end_tasks()

    def _end_tasks(self) -> None:
        for scope in self.tasks:
            scope.cancel()
        self.tasks.clear()

    async def release(self) -> None:
        """Unmount."""
        assert self.node is not None
        self._end_tasks()
        await self.publish()
        await self.node.release()
        self.node = None

    # -- local changes

    def write(self, session: bytes, name: bytes, contents: list[bytes]) -> None:
        """Make a file of these chunks."""
        self.sessions.setdefault(session, {})[name] = list(contents)
        self._keep(contents)
        self.dirty.add(session)

    def hide(self, content: bytes) -> None:
        """Make a file that does not travel."""
        self.private.append(content)
        self._keep([content])

    def _keep(self, contents: list[bytes]) -> None:
        for content in contents:
            self._contents[cid_of(content)] = content
            self.chunks[cid_of(content)] = content

    def remove_file(self, session: bytes, name: bytes) -> None:
        del self.sessions[session][name]
        self.dirty.add(session)

    def remove_session(self, session: bytes) -> None:
        del self.sessions[session]
        self.dirty.add(session)

    def held(self) -> set[ChunkId]:
        """Chunks that a recipe or an upload under way needs."""
        held = {cid_of(content) for content in self.private} | self._pins
        for files in self.sessions.values():
            held |= _chunks_of(files)
        return held

    def evict(self) -> None:
        """Drop every chunk that has a place."""
        self.chunks = {cid: content for cid, content in self.chunks.items() if cid not in self.places}

    async def check(self) -> None:
        """Every chunk that is held here can be had."""
        for cid in self.held() - self.chunks.keys():
            assert cid in await read_frame(self._store, self._envelope, self.places[cid])

    # -- publishing

    async def publish(self, *, crash_at: str = "") -> None:
        """Write back. *crash_at*: "segment" ends after the segment is put, as a kill would."""
        assert self.node is not None
        dirty, self.dirty = self.dirty, set()
        changed = {
            name: {n: list(c) for n, c in self.sessions[name].items()} for name in dirty if name in self.sessions
        }
        gone = [name for name in dirty if name not in self.sessions and name in self._published]
        if not changed and not gone:
            return
        number = self.node.last_segment + 1
        builder = SegmentBuilder(self.name, number, self.node.incarnation, self._envelope)
        self._pins = {cid for files in changed.values() for cid in _chunks_of(files)}
        fresh: dict[ChunkId, Place] = {}
        for cid in sorted(self._pins):
            if cid not in self.places:
                record = encode_frame_record([(cid, len(self.chunks[cid]))], FrameCodec().encode([self.chunks[cid]]))
                fresh[cid] = (SegmentRef(self.name, number), *builder.add_frame(record))
        published = {name: self._add_manifest(builder, name, files, fresh) for name, files in changed.items()}
        for name in gone:
            builder.add_removed(name)
        node = self.node
        await self._store.put(segment_key(self.name, number), builder.finish(int(self._now_s() * 1e9)))
        if crash_at == "segment":
            self.dirty |= dirty
            self.kill()
            return
        for name in changed:
            if name not in self._published:
                await node.announce(name)
        entries = [(name, ref, sequence) for name, (ref, _, sequence, _) in published.items()]
        await node.publish(number, [*entries, *((name, None, 0) for name in gone)])
        self._published.update(published)
        for name, ref, sequence in entries:
            self._kept.setdefault(name, []).append(KeptSnapshot(sequence, int(self._now_s() * 1e9), ref))
        for name in gone:
            del self._published[name]
            self._kept.pop(name, None)
        self.places.update(fresh)
        self._pins.clear()

    def _add_manifest(
        self, builder: SegmentBuilder, name: bytes, files: Files, fresh: dict[ChunkId, Place]
    ) -> tuple[ManifestRef, Files, int, int]:
        base, before, sequence, depth = self._published.get(name, (None, {}, 0, 99))
        is_full = self.always_full or base is None or depth >= 4
        changed = {n: c for n, c in files.items() if is_full or before.get(n) != c}
        gone = [] if is_full else sorted(before.keys() - files.keys())
        places = {cid: fresh.get(cid) or self.places[cid] for cid in sorted(_chunks_of(changed))}
        segments, frames = pack_places(places)
        root = NodeRecord(ROOT, stat.S_IFDIR | 0o700, 0, 0, 2, 0, 0, 0, 0, 0, None, {}, b"")
        manifest = Manifest(
            version=1,
            session=name,
            sequence=sequence + 1,
            base=None if is_full else base,
            depth=0 if is_full else depth + 1,
            taken_ns=0,
            root=ROOT,
            nodes=[root, *(_file_record(n, c) for n, c in sorted(changed.items()))],
            names=[NameRecord(ROOT, n, _ino(n)) for n in sorted(changed)],
            gone_nodes=[_ino(n) for n in gone],
            gone_names=[(ROOT, n) for n in gone],
            segments=segments,
            frames=frames,
            startup=b"",
        )
        return builder.add_manifest(manifest), files, sequence + 1, manifest.depth

    # -- Holding, of sync.gc

    def _open(self) -> Node:
        if self.node is None:
            raise RemoteUnavailable("the process has ended")
        return self.node

    @property
    def incarnation(self) -> int:
        return self._open().incarnation

    @property
    def last_segment(self) -> int:
        return self._open().last_segment

    def release_segments(self, segments: Collection[SegmentRef]) -> set[SegmentRef]:
        held = self.held()
        needed = {place[0] for cid, place in self.places.items() if cid in held} & set(segments)
        self.places = {
            cid: place for cid, place in self.places.items() if place[0] not in segments or place[0] in needed
        }
        return needed


def _ino(name: bytes) -> int:
    return 2 + int.from_bytes(name, "big")


def _file_record(name: bytes, contents: list[bytes]) -> NodeRecord:
    recipe = b"".join(encode_extent(cid_of(content), len(content)) for content in contents)
    size = sum(map(len, contents))
    return NodeRecord(_ino(name), stat.S_IFREG | 0o600, 0, 0, 1, 0, size, 0, 0, 0, None, {}, recipe)


def _chunks_of(files: Files) -> set[ChunkId]:
    return {cid_of(content) for contents in files.values() for content in contents}


# -- reading it all back


def files_of(manifest: Manifest) -> dict[bytes, list[ChunkId]]:
    """Name → chunks of every file of a full manifest."""
    records = {record.ino: record for record in manifest.nodes}
    return {entry.name: list(Recipe(records[entry.ino].recipe).iter_chunks()) for entry in manifest.names}


async def read_frame(store: ObjectStore, envelope: Envelope, place: Place) -> dict[ChunkId, bytes]:
    """The chunks of a frame, verified."""
    segment, offset, length = place
    sealed = (await store.get(segment_key(*segment), offset, length)).body
    entries, payload = decode_frame_record(open_frame(sealed, *segment, offset, envelope))
    plain = FrameCodec().decode(payload)
    chunks, at = {}, 0
    for cid, size in entries:
        chunks[cid] = plain[at : at + size]
        verify_chunk(HASH_KEY, cid, chunks[cid])
        at += size
    return chunks


async def read_all(store: ObjectStore, envelope: Envelope = PLAIN) -> list[tuple[Root, Manifest]]:
    """Every manifest that counts, whole. Fails when one can't be read."""
    view = await read_view(store, envelope)
    roots = [root for roots in catalogue_roots(view) for root in roots if root.kind != "left"]
    async for key in iter_session_keys(store):
        record = await read_session(store, envelope, key)
        assert record is not None
        roots += session_roots(view, record, key)
    return [(root, merge_chain(await read_chain(store, envelope, root.ref))) for root in roots]


async def read_everything(store: ObjectStore, envelope: Envelope = PLAIN) -> dict[bytes, Files]:
    """The content of every session, as a mount on an empty state would restore it."""
    found: dict[bytes, Files] = {}
    for root, manifest in await read_all(store, envelope):
        places = chunk_places(manifest)
        files = {
            name: [(await read_frame(store, envelope, places[cid]))[cid] for cid in ids]
            for name, ids in files_of(manifest).items()
        }
        if root.kind == "latest":
            found[root.session] = files
    return found
