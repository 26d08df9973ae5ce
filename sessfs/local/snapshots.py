"""Kept snapshots: for each session which there are, and the manifests of those that were never published.

Tables of `meta/`. With a remote an entry says where the manifest lies there; without, the manifest is stored here, and
holds references to its chunks (`History` sees to them). Record layouts: docs/format.md.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec

from sessfs.errors import StoreCorrupt
from sessfs.local.db import Database, TableName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sessfs.types import Ino

SNAPSHOTS = TableName("snapshots")
MANIFESTS = TableName("manifests")
SEQUENCES = TableName("sequences")
SNAPSHOT_TABLES = (SNAPSHOTS, MANIFESTS, SEQUENCES)

SNAPSHOT_KEY = struct.Struct(">QQ")
SEQUENCE_KEY = struct.Struct(">Q")
SEQUENCE = struct.Struct("<Q")


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """One kept snapshot. *manifest*: where it lies in the remote (node, segment, offset, length), None when in the
    table `manifests`; then *base* is the sequence of the snapshot that it is a delta of, 0 for a full one, and *depth*
    how many deltas away from a full one it is, and *name* the session's at that time. *hidden*: dropped, but another
    one builds upon it.
    """

    taken_ns: int
    manifest: tuple[str, int, int, int] | None
    mark: str = ""
    verdict: str = ""
    base: int = 0
    depth: int = 0
    hidden: bool = False
    name: bytes = b""


class SnapshotTable:
    """The request loop alone."""

    def __init__(self, meta: Database) -> None:
        self._meta = meta

    def find(self, session: Ino, sequence: int) -> Snapshot | None:
        """The entry, hidden or not; None when there is none."""
        value = self._meta.get(SNAPSHOTS, SNAPSHOT_KEY.pack(session, sequence))
        return None if value is None else msgspec.msgpack.decode(value, type=Snapshot)

    def entries(self, session: Ino) -> list[tuple[int, Snapshot]]:
        """(sequence, entry) of all, hidden ones too, oldest first."""
        return [
            (SNAPSHOT_KEY.unpack(key)[1], msgspec.msgpack.decode(value, type=Snapshot))
            for key, value in self._meta.scan(SNAPSHOTS, SEQUENCE_KEY.pack(session))
        ]

    def put(self, session: Ino, sequence: int, snapshot: Snapshot) -> None:
        """Set the entry."""
        self._meta.put(SNAPSHOTS, SNAPSHOT_KEY.pack(session, sequence), msgspec.msgpack.encode(snapshot))
        if sequence > self.last_sequence(session):
            self._meta.put(SEQUENCES, SEQUENCE_KEY.pack(session), SEQUENCE.pack(sequence))

    def delete(self, session: Ino, sequence: int) -> None:
        """Remove the entry and its manifest, if it is here."""
        key = SNAPSHOT_KEY.pack(session, sequence)
        self._meta.delete(SNAPSHOTS, key)
        if self._meta.get(MANIFESTS, key) is not None:
            self._meta.delete(MANIFESTS, key)

    def clear_published(self, session: Ino) -> None:
        """Forget the entries whose manifests lie in the remote: they are another session's."""
        for sequence, snapshot in self.entries(session):
            if snapshot.manifest is not None:
                self.delete(session, sequence)

    def last_sequence(self, session: Ino) -> int:
        """The highest that the session ever had here, 0 for none."""
        value = self._meta.get(SEQUENCES, SEQUENCE_KEY.pack(session))
        return 0 if value is None else int(SEQUENCE.unpack(value)[0])

    def load_manifest(self, session: Ino, sequence: int) -> bytes:
        """The manifest stored here. Raises StoreCorrupt when it is missing."""
        encoded = self._meta.get(MANIFESTS, SNAPSHOT_KEY.pack(session, sequence))
        if encoded is None:
            raise StoreCorrupt(f"snapshot {sequence} of session {session} is listed, and its manifest is not stored")
        return encoded

    def store_manifest(self, session: Ino, sequence: int, encoded: bytes) -> None:
        """Store a manifest; the references of its chunks are the caller's."""
        self._meta.put(MANIFESTS, SNAPSHOT_KEY.pack(session, sequence), encoded)

    def move(self, old: Ino, new: Ino) -> None:
        """The session goes on under another inode, and so does its history."""
        for sequence, snapshot in self.entries(old):
            encoded = self._meta.get(MANIFESTS, SNAPSHOT_KEY.pack(old, sequence))
            self.delete(old, sequence)
            self.put(new, sequence, snapshot)
            if encoded is not None:
                self.store_manifest(new, sequence, encoded)
        last = max(self.last_sequence(old), self.last_sequence(new))
        self.forget(old)
        self._meta.put(SEQUENCES, SEQUENCE_KEY.pack(new), SEQUENCE.pack(last))

    def forget(self, session: Ino) -> None:
        """The session has no snapshots any more, and never had."""
        if self._meta.get(SEQUENCES, SEQUENCE_KEY.pack(session)) is not None:
            self._meta.delete(SEQUENCES, SEQUENCE_KEY.pack(session))

    def iter_sessions(self) -> Iterator[Ino]:
        """Sessions that have, or had, snapshots; to be used up before the next change."""
        for key, _ in self._meta.scan(SEQUENCES):
            yield SEQUENCE_KEY.unpack(key)[0]
