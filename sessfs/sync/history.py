"""The kept snapshots of each session: taking, listing, loading, judging, and dropping those that the policy lets go.

One notion for volumes with a remote and without. With one, every published snapshot is kept history at no further cost,
and its manifest lies in the remote. Without, the same cut makes a manifest that is kept in `meta/`, with references to
the chunks that its records name; one that a later delta builds upon stays, hidden, until nothing does.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
import trio

from sessfs.errors import SessfsError, StoreCorrupt, UsageError
from sessfs.format.manifest import Manifest, ManifestRef, decode_manifest, merge
from sessfs.format.recipe import Recipe
from sessfs.format.repository import KeptSnapshot, Verdict
from sessfs.local.snapshots import Snapshot
from sessfs.types import ROOT_INO

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from sessfs.local.chunkstore import References
    from sessfs.local.inodes import Inodes
    from sessfs.local.places import Places
    from sessfs.sync.keeping import Policy
    from sessfs.types import ChunkId, Ino

log = logging.getLogger(__name__)
POLL_S = 1.0
RETRY_S = 30.0
GOOD = "good"
BAD = "bad"
VERDICTS = ("", GOOD, BAD)
MARK_MAX = 255
"""Characters; the most that the record of a session in the remote may have."""


class SnapshotInfo(NamedTuple):
    """One kept snapshot, as people know it. *verdict*: "good" or "bad" once it was checked, else empty."""

    sequence: int
    taken_ns: int
    mark: str
    verdict: str


Infos = list[SnapshotInfo]
Entries = list[tuple[int, Snapshot]]
Kept = list[KeptSnapshot]


class Snapshotter(Protocol):
    """Who makes snapshots: the write-back, or `LocalSnapshots`."""

    @property
    def busy(self) -> trio.Lock:
        """Held while snapshots are on their way: until then no session may change its inode."""

    async def snapshot(self, session: Ino) -> None:
        """Return once the session's newest snapshot is as it was at the call, or later. Raises SessfsError."""

    def due(self) -> list[Ino]:
        """Sessions of which a snapshot is due that nobody else sees to."""

    def tell_of_damage(self, listener: Callable[[Ino, StoreCorrupt], None]) -> None:
        """Call *listener* with each session that can't be cut or uploaded, since something of it is damaged or gone."""


def manifest_chunks(manifest: Manifest) -> Iterator[ChunkId]:
    """The chunks that the records of *manifest* name, as often as they do."""
    for record in manifest.nodes:
        if record.recipe:
            yield from Recipe(record.recipe).iter_chunks()


def _check_mark(mark: str) -> None:
    try:
        mark.encode()
    except UnicodeEncodeError as exc:
        raise UsageError(f"the mark {mark!r} is not UTF-8: choose another") from exc
    if len(mark) > MARK_MAX:
        raise UsageError(f"the mark has {len(mark)} characters: {MARK_MAX} are the most")


def _verdict(text: str) -> Verdict:
    return "good" if text == GOOD else "bad" if text == BAD else ""


class History:
    """Snapshots of one volume. The request loop alone."""

    def __init__(
        self,
        inodes: Inodes,
        places: Places,
        references: References,
        snapshotter: Snapshotter,
        policy: Policy,
        *,
        commit: Callable[[], Awaitable[None]],
        load_remote: Callable[[ManifestRef], Awaitable[Manifest]] | None = None,
        save_remote: Callable[[bytes], Awaitable[None]] | None = None,
        touch_remote: Callable[[bytes], None] = lambda name: None,
    ) -> None:
        """*load_remote* reads a full manifest from the remote; *save_remote* has it know now what of a session is kept,
        *touch_remote* at the release at the latest.
        """
        self._inodes = inodes
        self._table = places.snapshots
        self._places = places
        self._references = references
        self._snapshotter = snapshotter
        self._policy = policy
        self._commit = commit
        self._load_remote = load_remote
        self._save_remote = save_remote
        self._touch_remote = touch_remote
        self._suspect_since_ns: Callable[[Ino], int | None] = lambda session: None

    @property
    def busy(self) -> trio.Lock:
        """Held while snapshots are on their way: until then no session may change its inode."""
        return self._snapshotter.busy

    def heed(
        self, suspect_since_ns: Callable[[Ino], int | None], on_damage: Callable[[Ino, StoreCorrupt], None]
    ) -> None:
        """*suspect_since_ns* says when a session was first found damaged, None if it was not, or is good again;
        *on_damage* is told where a snapshot fails for that.
        """
        self._suspect_since_ns = suspect_since_ns
        self._snapshotter.tell_of_damage(on_damage)

    # -- looking

    def list(self, session: Ino) -> Infos:
        """Oldest first."""
        return [
            SnapshotInfo(sequence, snapshot.taken_ns, snapshot.mark, snapshot.verdict)
            for sequence, snapshot in self._entries(session)
            if not snapshot.hidden
        ]

    def _entries(self, session: Ino) -> Entries:
        found = self._table.entries(session)
        if not found and session not in self._places.unverified:
            # Published before history was kept: its last snapshot is the first of it.
            published = self._places.published(session)
            if published is not None and published.manifest is not None and session != ROOT_INO:
                self._table.put(session, published.sequence, Snapshot(published.taken_ns, published.manifest))
                return self._table.entries(session)
        return found

    def get(self, session: Ino, sequence: int) -> SnapshotInfo:
        """One of `list`; raises UsageError, which says which there are."""
        infos = self.list(session)
        for info in infos:
            if info.sequence == sequence:
                return info
        there = ", ".join(str(info.sequence) for info in infos) or "none"
        raise UsageError(f"session {self._name(session)} has no snapshot {sequence}; there are: {there}")

    def newest_good(self, session: Ino) -> SnapshotInfo:
        """The newest snapshot that was checked good. Raises UsageError when there is none."""
        good = [info for info in self.list(session) if info.verdict == GOOD]
        if not good:
            raise UsageError(
                f"session {self._name(session)} has no snapshot that was checked good: name one (`sessfs history` "
                "lists them), or check them first (`sessfs check`)"
            )
        return good[-1]

    def _name(self, session: Ino) -> str:
        return (self._inodes.find_session_name(session) or b"?").decode(errors="replace")

    async def load(self, session: Ino, sequence: int) -> Manifest:
        """The full manifest. Raises UsageError when there is no such snapshot, StoreCorrupt, RemoteError."""
        self.get(session, sequence)
        snapshot = self._find(session, sequence)
        if snapshot.manifest is None:
            return self._load_local(session, sequence)
        if self._load_remote is None:
            raise UsageError(
                f"snapshot {sequence} of session {self._name(session)} is in the remote: mount with --remote URL"
            )
        return await self._load_remote(ManifestRef(*snapshot.manifest))

    def _find(self, session: Ino, sequence: int) -> Snapshot:
        snapshot = self._table.find(session, sequence)
        if snapshot is None:
            raise StoreCorrupt(f"snapshot {sequence} of session {self._name(session)} is not stored")
        return snapshot

    def _load_local(self, session: Ino, sequence: int) -> Manifest:
        chain = []
        at = sequence
        while at:
            chain.append(self._decode(session, at))
            at = self._find(session, at).base
        chain.reverse()
        return merge(chain[0], chain[1:])

    def _decode(self, session: Ino, sequence: int) -> Manifest:
        encoded = self._table.load_manifest(session, sequence)
        return decode_manifest(encoded, f"snapshot {sequence} of session {self._name(session)}")

    def kept_of(self, name: bytes) -> Kept | None:
        """What the remote is to keep of the session, oldest first; None when that is not known here: the session was
        never loaded, or not yet compared with the remote after another node had it. One that hibernates is known.
        """
        dentry = self._inodes.find_dentry(ROOT_INO, name)
        published = self._places.published(dentry.ino) if dentry is not None else None
        if dentry is None or published is None or published.name != name or dentry.ino in self._places.unverified:
            return None
        found = [
            KeptSnapshot(sequence, one.taken_ns, ManifestRef(*one.manifest), one.mark, _verdict(one.verdict))
            for sequence, one in self._table.entries(dentry.ino)
            if one.manifest is not None
        ]
        return found or None

    # -- changing

    async def take(self, session: Ino, mark: str = "") -> SnapshotInfo:
        """The session as it is now, as a snapshot, durable; a marked one is kept until it is unmarked. Raises
        SessfsError, nothing being taken then.
        """
        _check_mark(mark)
        if session == ROOT_INO:
            raise UsageError("the files directly in the mountpoint have no snapshots of their own")
        if not self._table.entries(session) and self._inodes.changes is not None:
            self._inodes.changes.note_whole(session)
        await self._snapshotter.snapshot(session)
        infos = self.list(session)
        if not infos:
            raise UsageError(f"session {self._name(session)} is gone")
        if mark:
            await self.mark(session, infos[-1].sequence, mark)
        else:
            await self._commit()
        return self.get(session, infos[-1].sequence)

    async def mark(self, session: Ino, sequence: int, mark: str) -> None:
        """Set the operator's word for a snapshot, which keeps it; an empty one lets it go as the policy says. Raises
        UsageError, SessfsError.
        """
        _check_mark(mark)
        self._set(session, sequence, mark=mark)
        self.prune(session)
        await self._save(session)
        await self._commit()

    def judge(self, session: Ino, sequence: int, verdict: str) -> None:
        """Note what a check found: "good", "bad", or "" for unknown again."""
        if verdict not in VERDICTS:
            raise ValueError(f"not a verdict: {verdict!r}")
        self._set(session, sequence, verdict=verdict)

    def _set(self, session: Ino, sequence: int, **changes: str) -> None:
        self.get(session, sequence)
        snapshot = msgspec.structs.replace(self._find(session, sequence), **changes)
        self._table.put(session, sequence, snapshot)
        name = self._inodes.find_session_name(session)
        if name is not None:
            self._touch_remote(name)

    async def _save(self, session: Ino) -> None:
        name = self._inodes.find_session_name(session)
        if self._save_remote is not None and name is not None:
            await self._save_remote(name)

    def prune(self, session: Ino) -> None:
        """Drop what the policy does not keep and nobody marked. Synchronous."""
        visible = [(n, s) for n, s in self._entries(session) if not s.hidden]
        kept = self._policy.choose([(n, s.taken_ns) for n, s in visible])
        kept |= self._held(session, visible)
        for sequence, snapshot in visible:
            if sequence not in kept and not snapshot.mark:
                self._drop(session, sequence)

    def _held(self, session: Ino, visible: Entries) -> set[int]:
        """Of a session that is suspect: the last snapshot from before, and the last that a check found good."""
        since_ns = self._suspect_since_ns(session)
        if since_ns is None:
            return set()
        before = [n for n, s in visible if s.taken_ns < since_ns and s.verdict != BAD]
        good = [n for n, s in visible if s.verdict == GOOD]
        return {*before[-1:], *good[-1:]}

    def prune_all(self) -> None:
        """`prune` each session; one whose snapshots are damaged keeps them all."""
        for session in list(self._table.iter_sessions()):
            try:
                self.prune(session)
            except StoreCorrupt as exc:
                log.error("the snapshots of session %s stay as they are: %s", self._name(session), exc)

    def _drop(self, session: Ino, sequence: int) -> None:
        """Drop one snapshot, and hidden ones that nothing builds upon any more."""
        at = sequence
        while at:
            snapshot = self._find(session, at)
            if any(other.base == at for _, other in self._table.entries(session)):
                if not snapshot.hidden:
                    self._table.put(session, at, msgspec.structs.replace(snapshot, hidden=True))
                return
            self._remove(session, at, snapshot)
            base = self._table.find(session, snapshot.base) if snapshot.base else None
            at = snapshot.base if base is not None and base.hidden else 0

    def _remove(self, session: Ino, sequence: int, snapshot: Snapshot) -> None:
        if snapshot.manifest is None:
            self._references.unkeep(manifest_chunks(self._decode(session, sequence)))
        self._table.delete(session, sequence)

    def forget(self, session: Ino) -> None:
        """The session is gone: so are all of its snapshots. Synchronous."""
        for sequence, snapshot in self._table.entries(session):
            self._remove(session, sequence, snapshot)
        self._table.forget(session)

    def move(self, old: Ino, new: Ino) -> None:
        """The session goes on under another inode. Synchronous."""
        self._table.move(old, new)

    # -- in the background

    async def run(self) -> None:
        """Take the snapshots that are due, for ever; started once, in the daemon's nursery."""
        self.prune_all()
        while True:
            await trio.sleep(POLL_S)
            try:
                for session in self._snapshotter.due():
                    await self._take_due(session)
            except SessfsError as exc:
                log.error("which snapshots are due can't be told: %s", exc)
                await trio.sleep(RETRY_S)

    async def _take_due(self, session: Ino) -> None:
        try:
            await self._snapshotter.snapshot(session)
        except SessfsError as exc:
            log.error("no snapshot of session %s, will be tried again: %s", self._name(session), exc)
            await trio.sleep(RETRY_S)
