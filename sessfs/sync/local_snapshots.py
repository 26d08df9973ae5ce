"""Snapshots of a volume without a remote: cut as for an upload, and kept in `meta/`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

import msgspec
import trio

from sessfs.format.manifest import MANIFEST_VERSION, Manifest, ManifestRef, encode_manifest
from sessfs.local.places import Published
from sessfs.local.snapshots import Snapshot
from sessfs.sync.cutting import Cutter, Round
from sessfs.sync.history import manifest_chunks
from sessfs.sync.snapshot import FrozenT
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sessfs.errors import StoreCorrupt
    from sessfs.local.changes import Changes, SessionChanges
    from sessfs.local.chunkstore import References
    from sessfs.local.inodes import Inodes
    from sessfs.local.places import Places
    from sessfs.sync.snapshot import Draft, Freezer

HERE = "here"
"""Stands for a node in the base of a manifest that is kept in `meta/`; its segment is the base's sequence."""


class LocalSnapshots(Generic[FrozenT]):
    """Snapshotter of a volume without a remote. The request loop alone."""

    def __init__(
        self,
        inodes: Inodes,
        changes: Changes,
        places: Places,
        references: References,
        freezer: Freezer[FrozenT],
        *,
        flush_kernel: Callable[[], Awaitable[None]],
        clock_ns: Callable[[], int],
        interval_s: float,
        prune: Callable[[Ino], None],
        forget: Callable[[Ino], None],
    ) -> None:
        """*prune* and *forget* are History's, for sessions with a new snapshot, and for those that are gone."""
        self._inodes = inodes
        self._changes = changes
        self._places = places
        self._table = places.snapshots
        self._references = references
        self._flush_kernel = flush_kernel
        self._clock_ns = clock_ns
        self._interval_s = interval_s
        self._prune = prune
        self._forget = forget
        self._cutter = Cutter(inodes, changes, references, freezer, self._last)
        self.busy = trio.Lock()

    def _last(self, session: Ino) -> Published | None:
        """The last snapshot as what a delta builds upon."""
        entries = self._table.entries(session)
        if not entries:
            return None
        sequence, last = entries[-1]
        if last.manifest is not None:
            return Published(b"", sequence, None)
        by_sequence = dict(entries)
        sizes: list[int] = []
        at = sequence
        while at:
            sizes.append(len(self._table.load_manifest(session, at)))
            at = by_sequence[at].base
        place = (HERE, sequence, 0, sizes[0])
        return Published(last.name, sequence, place, last.depth, full_bytes=sizes[-1], delta_bytes=sum(sizes[:-1]))

    def due(self) -> list[Ino]:
        """See Snapshotter: sessions whose oldest change since the last is an interval old, and those that are gone."""
        now_ns = self._clock_ns()
        found = []
        for session, changes in list(self._changes.sessions.items()):
            if session == ROOT_INO:
                self._shorten(changes)
                continue
            if self._inodes.find_session_name(session) is None:
                self._end(session)
            elif now_ns - changes.since_ns >= self._interval_s * 1e9:
                found.append(session)
        return found

    def tell_of_damage(self, listener: Callable[[Ino, StoreCorrupt], None]) -> None:
        """See Snapshotter."""
        self._cutter.on_damage = listener

    def _shorten(self, changes: SessionChanges) -> None:
        """No snapshot is taken of the files in the root: of their changes it is enough to know that there are any, and
        of files that were never published not even that.
        """
        if self._places.published(ROOT_INO) is None:
            self._changes.forget(ROOT_INO)
            return
        self._changes.note_whole(ROOT_INO)
        changes.inodes.clear()
        changes.names.clear()

    def _end(self, session: Ino) -> None:
        """The session is gone. That it was published stays to be told to the remote."""
        self._forget(session)
        if self._places.published(session) is None:
            self._changes.forget(session)

    async def snapshot(self, session: Ino) -> None:
        """See Snapshotter."""
        async with self.busy:
            await self._flush_kernel()
            round_ = Round[FrozenT]()
            try:
                self._cutter.cut(round_, [session])
                await self._cutter.seal(round_)
                for draft in round_.drafts:
                    self._store(draft)
            except BaseException:
                self._cutter.undo(round_)
                raise
            finally:
                self._cutter.end(round_)
            for draft in round_.drafts:
                self._changes.settle(draft.session)
                if self._inodes.find_session_name(draft.session) is None:
                    # Removed meanwhile.
                    self._end(draft.session)
                else:
                    self._prune(draft.session)
            for gone in round_.removed:
                self._end(gone)
            if round_.damage is not None:
                raise round_.damage

    def _store(self, draft: Draft[FrozenT]) -> None:
        session = draft.session
        base = None if draft.is_full or draft.published is None else draft.published
        sequence = self._table.last_sequence(session) + 1
        published = self._places.published(session)
        if published is not None:
            sequence = max(sequence, published.sequence + 1)
        manifest = Manifest(
            version=MANIFEST_VERSION,
            session=draft.name,
            sequence=sequence,
            base=None if base is None else ManifestRef(HERE, base.sequence, 0, 1),
            depth=0 if base is None else base.depth + 1,
            taken_ns=self._clock_ns(),
            root=int(session),
            nodes=draft.nodes,
            names=draft.names,
            gone_nodes=draft.gone_nodes,
            gone_names=draft.gone_names,
            segments=[],
            frames=[],
            startup=b"",
        )
        self._table.store_manifest(session, sequence, encode_manifest(manifest))
        self._references.keep(manifest_chunks(manifest))
        base_sequence = 0 if base is None else base.sequence
        snapshot = Snapshot(manifest.taken_ns, None, base=base_sequence, depth=manifest.depth, name=draft.name)
        self._table.put(session, sequence, snapshot)
        if published is not None and published.manifest is not None:
            # It changed without the remote, which the next mount with one can't see from what is marked as changed.
            self._places.set_published(session, msgspec.structs.replace(published, manifest=None))
