"""Every snapshot that lies in a remote directory, each restored as plain files: what any restore could have given."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from sessfs.errors import RemoteMissing
from sessfs.format.chunk import FrameCodec, verify_chunk
from sessfs.format.manifest import ManifestRef, chunk_places
from sessfs.format.recipe import Recipe
from sessfs.format.repository import FORMAT_KEY, decode_format, open_format
from sessfs.format.segment import NODES_PREFIX, footer_of, open_frame, parse_segment_key, segment_key
from sessfs.local.chunkstore import decode_frame_record
from sessfs.remote.directory import DirectoryStore
from sessfs.remote.objectstore import iter_keys
from sessfs.sync.restore import load_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.format.manifest import Manifest
    from sessfs.types import ChunkId


@dataclass(frozen=True)
class Snapshot:
    """One published snapshot."""

    session: bytes
    sequence: int
    ref: ManifestRef


class SnapshotReader:
    """Reads the repository in a directory. For tests that are not async."""

    def __init__(self, directory: Path) -> None:
        self._store = DirectoryStore(str(directory))
        self._hash_key, self._envelope = open_format(decode_format((directory / FORMAT_KEY).read_bytes()), None)
        self._codec = FrameCodec()
        self._chunks: dict[ChunkId, bytes] = {}

    def snapshots(self, session: str) -> list[Snapshot]:
        """All snapshots of the session, oldest first."""
        return trio.run(self._snapshots, session.encode())

    async def _snapshots(self, session: bytes) -> list[Snapshot]:
        found = []
        async for entry in iter_keys(self._store, NODES_PREFIX):
            parsed = parse_segment_key(entry.key)
            if parsed is None:
                continue
            body = (await self._store.get(entry.key)).body
            for record in footer_of(body, *parsed, self._envelope).manifests:
                if record.session == session:
                    ref = ManifestRef(*parsed, record.offset, record.length)
                    found.append(Snapshot(session, record.sequence, ref))
        return sorted(found, key=lambda one: one.sequence)

    def restore(self, snapshot: Snapshot, target: Path) -> None:
        """Write the snapshot's tree to *target*, which must not exist. Raises what a mount would answer EIO for."""
        target.mkdir()
        for path, mode, content in trio.run(self._entries, snapshot):
            below = os.path.join(os.fsencode(target), path)
            if stat.S_ISDIR(mode):
                os.mkdir(below)
            elif stat.S_ISLNK(mode):
                os.symlink(content, below)
            else:
                with open(below, "wb") as file:
                    file.write(content)

    async def _entries(self, snapshot: Snapshot) -> list[tuple[bytes, int, bytes]]:
        """(path, mode, content or target) of everything in the snapshot, parents first."""
        manifest = await load_manifest(self._store, self._envelope, snapshot.ref)
        nodes = {record.ino: record for record in manifest.nodes}
        children: dict[int, list[tuple[bytes, int]]] = {}
        for name in manifest.names:
            children.setdefault(name.parent, []).append((name.name, name.ino))
        found: list[tuple[bytes, int, bytes]] = []
        stack = [(manifest.root, b"")]
        while stack:
            parent, path = stack.pop()
            for entry, ino in children.get(parent, []):
                record, below = nodes[ino], os.path.join(path, entry)
                content = record.target if record.target is not None else await self._content(manifest, record.recipe)
                found.append((below, record.mode, content))
                if stat.S_ISDIR(record.mode):
                    stack.append((ino, below))
        return found

    async def _content(self, manifest: Manifest, packed: bytes) -> bytes:
        parts = []
        for extent in Recipe(packed):
            if extent.is_hole:
                parts.append(bytes(extent.end - extent.start))
            else:
                parts.append(await self._chunk(manifest, extent.chunk))
        return b"".join(parts)

    async def _chunk(self, manifest: Manifest, wanted: ChunkId) -> bytes:
        if wanted not in self._chunks:
            place = chunk_places(manifest).get(wanted)
            if place is None:
                raise RemoteMissing(f"chunk {wanted.hex()} has no place in snapshot {manifest.sequence}")
            segment, offset, length = place
            sealed = (await self._store.get(segment_key(segment.node, segment.number), offset, length)).body
            record = open_frame(sealed, segment.node, segment.number, offset, self._envelope)
            entries, payload = decode_frame_record(record)
            plain, at = self._codec.decode(payload), 0
            for cid, size in entries:
                verify_chunk(self._hash_key, cid, plain[at : at + size])
                self._chunks[cid] = plain[at : at + size]
                at += size
        return self._chunks[wanted]
