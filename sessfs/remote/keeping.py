"""The snapshots that a node keeps: which it writes into checkpoints and session objects, and whom it asks for them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from sessfs.format.repository import KeptSnapshot, SessionObject
from sessfs.format.segment import CheckpointKept
from sessfs.remote.catalogue import Kept
from sessfs.remote.sessionobjects import read_object

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
        self.relocations = 0
        """Grows when manifests were moved: a session's own object that was read before is not to be believed."""
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
        self.relocations += 1
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
        return _all_kept(known, [] if known.complete else await self._in_object(store, name))

    async def _in_object(self, store: ObjectStore, name: bytes) -> list[KeptSnapshot]:
        if self._seen is not None and self._seen[0] == name:
            return self._seen[1]
        record = await read_object(store, self._envelope, name)
        return [] if record is None else record.kept

    def released(self, name: bytes, ref: ManifestRef, sequence: int, there: SessionObject | None) -> SessionObject:
        """The object of a session that is released, *there* being the one before."""
        self._seen = None
        kept = _all_kept(self._known(name), [] if there is None else there.kept)
        return SessionObject(name=name, holder=None, manifest=ref, sequence=sequence, kept=kept)

    def retold(self, name: bytes, there: SessionObject | None) -> SessionObject | None:
        """The object of a session that was not published since, with the snapshots that are kept now."""
        here = self.kept_of(name)
        return there if there is None or here is None else msgspec.structs.replace(there, kept=here)

    def untold(self, catalogue: Collection[bytes]) -> Iterable[bytes]:
        """Touched sessions that are not in *catalogue*."""
        return sorted(self.touched.difference(catalogue))


def _all_kept(known: Kept, in_object: list[KeptSnapshot]) -> list[KeptSnapshot]:
    """Oldest first; the session's own object counts unless all are known."""
    snapshots = {} if known.complete else {one.sequence: one for one in in_object}
    snapshots |= known.snapshots
    return [snapshots[sequence] for sequence in sorted(snapshots)]


def _now_ns() -> int:
    return int(datetime.now(UTC).timestamp() * 1e9)
