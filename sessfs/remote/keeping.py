"""The snapshots that a node keeps: which it writes into checkpoints and session objects, and whom it asks for them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from sessfs.errors import RemoteMissing
from sessfs.format.repository import KeptSnapshot, SessionObject, decode_session_object, encode_session_object
from sessfs.format.segment import CheckpointKept, session_key
from sessfs.remote.catalogue import Kept

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from sessfs.format.envelope import Envelope
    from sessfs.format.manifest import ManifestRef
    from sessfs.remote.catalogue import Catalogue
    from sessfs.remote.objectstore import ObjectStore


def _unknown(name: bytes) -> list[KeptSnapshot] | None:
    return None


class Keeping:
    """What a node knows of kept snapshots. Sessions that are here are asked for by *kept_of*; of others, what the node
    before left counts.
    """

    def __init__(self, envelope: Envelope, inherited: dict[bytes, Kept]) -> None:
        self._envelope = envelope
        self._inherited = inherited
        self._seen: tuple[bytes, list[KeptSnapshot]] | None = None
        self.kept_of: Callable[[bytes], list[KeptSnapshot] | None] = _unknown
        """The kept snapshots of a session that is here, oldest first; None for others."""
        self.touched: set[bytes] = set()
        """Sessions whose own object is to be written at the release, though they were not published."""

    def saw(self, record: SessionObject) -> None:
        """The session's own object was just read: who asks for its kept snapshots next need not read it again."""
        self._seen = (record.name, record.kept)

    def end(self) -> None:
        """Everything is in the sessions' own objects."""
        self._inherited.clear()
        self.touched.clear()

    def forget(self, name: bytes) -> None:
        """The session is erased."""
        self._seen = None
        self._inherited.pop(name, None)
        self.touched.discard(name)

    def relocate(self, moved: Mapping[ManifestRef, ManifestRef]) -> None:
        """Manifests lie elsewhere from now on; sessions' own objects are the caller's."""
        self._seen = None
        for name, kept in self._inherited.items():
            snapshots = {
                sequence: msgspec.structs.replace(one, manifest=moved.get(one.manifest, one.manifest))
                for sequence, one in kept.snapshots.items()
            }
            self._inherited[name] = kept._replace(snapshots=snapshots)

    def _known(self, name: bytes) -> Kept:
        here = self.kept_of(name)
        if here is not None:
            return Kept({one.sequence: one for one in here}, complete=True)
        return self._inherited.get(name, Kept({}, complete=False))

    def for_checkpoint(self, catalogue: Catalogue) -> list[CheckpointKept]:
        """What a checkpoint says of the sessions of *catalogue*, by name. The latest snapshot is in it."""
        found = []
        for name, (ref, sequence) in sorted(catalogue.items()):
            if ref is not None:
                known = self._known(name)
                snapshots = list(known.snapshots.values())
                if sequence not in known.snapshots:
                    snapshots.append(KeptSnapshot(sequence, _now_ns(), ref))
                found.append(CheckpointKept(name, known.complete, sorted(snapshots, key=lambda one: one.sequence)))
        return found

    async def resolve(self, store: ObjectStore, name: bytes) -> list[KeptSnapshot]:
        """All kept snapshots of a session, oldest first. Raises RemoteError."""
        known = self._known(name)
        snapshots = dict(known.snapshots)
        if not known.complete:
            snapshots = {one.sequence: one for one in await self._in_object(store, name)} | snapshots
        return [snapshots[sequence] for sequence in sorted(snapshots)]

    async def _in_object(self, store: ObjectStore, name: bytes) -> list[KeptSnapshot]:
        if self._seen is not None and self._seen[0] == name:
            return self._seen[1]
        record = await read_object(store, self._envelope, name)
        return [] if record is None else record.kept

    async def write(self, store: ObjectStore, name: bytes, ref: ManifestRef, sequence: int) -> None:
        """Write the object of a session that is released. Raises RemoteError."""
        self._seen = None
        kept = await self.resolve(store, name)
        record = SessionObject(name=name, holder=None, manifest=ref, sequence=sequence, kept=kept)
        await store.put(session_key(self._envelope, name), encode_session_object(record, self._envelope))

    async def rewrite(self, store: ObjectStore, name: bytes) -> None:
        """Write the kept snapshots into the object of a session that was not published since. Raises RemoteError."""
        record = await read_object(store, self._envelope, name)
        here = self.kept_of(name)
        if record is not None and here is not None:
            record = msgspec.structs.replace(record, kept=here)
            await store.put(session_key(self._envelope, name), encode_session_object(record, self._envelope))

    def untold(self, catalogue: Collection[bytes]) -> Iterable[bytes]:
        """Touched sessions that are not in *catalogue*."""
        return sorted(self.touched.difference(catalogue))


async def read_object(store: ObjectStore, envelope: Envelope, name: bytes) -> SessionObject | None:
    """The session's own object, None when there is none. Raises RemoteError."""
    key = session_key(envelope, name)
    try:
        blob = await store.get(key)
    except RemoteMissing:
        return None
    return decode_session_object(blob.body, envelope, key)


def _now_ns() -> int:
    return int(datetime.now(UTC).timestamp() * 1e9)
