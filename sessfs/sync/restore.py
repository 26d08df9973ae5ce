"""Sessions from the remote: names as they are listed, a session's tree when it is first looked at, chunks later still.

A session that the remote has and this state does not is a *stub*: a top-level directory whose content is not loaded.
Unknown is not absent: an error of the remote is raised, never taken for a missing session.
"""

from __future__ import annotations

import logging
import stat
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from sessfs.errors import RemoteCorrupt, RemoteMissing
from sessfs.format.manifest import Manifest, ManifestRef, chunk_places, merge
from sessfs.format.segment import open_manifest, segment_key
from sessfs.local.places import Published
from sessfs.local.snapshots import Snapshot
from sessfs.remote.parallel import for_each, over
from sessfs.sync.installing import Installer, make_session
from sessfs.sync.snapshot import MAX_DEPTH
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Set

    from sessfs.format.envelope import Envelope
    from sessfs.format.repository import KeptSnapshot
    from sessfs.local.chunkstore import References
    from sessfs.local.inodes import Inodes
    from sessfs.local.places import Places
    from sessfs.remote.objectstore import ObjectStore

T = TypeVar("T")

log = logging.getLogger(__name__)
DOT_SESSION = b"."
UNSENT_SUFFIX = b".unsent"
UNSENT_MAX_BYTES = 235
PAUSE_EVERY = 200
"""So many stubs are looked at before requests have their turn."""


class Catalogue(Protocol):
    """Which sessions the remote has, and where their latest manifests lie."""

    async def resolve(self, name: bytes) -> tuple[ManifestRef | None, int] | None:
        """(latest manifest, sequence) of the session, None when the remote has no such session. Raises RemoteError."""

    async def resolve_kept(self, name: bytes) -> list[KeptSnapshot]:
        """The kept snapshots of the session, oldest first. Raises RemoteError."""

    def iter_pages(self) -> AsyncIterator[list[bytes]]:
        """All session names, page by page. Raises RemoteError."""


async def load_manifest(store: ObjectStore, envelope: Envelope, ref: ManifestRef) -> Manifest:
    """The full manifest that *ref* and its bases amount to. Raises RemoteError."""
    chain: list[Manifest] = []
    at: ManifestRef | None = ref
    while at is not None:
        if len(chain) > MAX_DEPTH + 1:
            raise RemoteCorrupt(f"manifest {ref} has more than {MAX_DEPTH} bases")
        blob = await store.get(segment_key(at.node, at.segment), at.offset, at.length)
        chain.append(open_manifest(blob.body, at, envelope))
        at = chain[-1].base
    chain.reverse()
    return merge(chain[0], chain[1:])


async def read_settled(places: Places, read: Callable[[], Awaitable[T]]) -> T:
    """What *read* reads of the remote, read again whenever an erasure moved manifests meanwhile; nothing else runs
    between the last read and the return. Raises what *read* does.
    """
    while True:
        relocations = places.relocations
        try:
            found = await read()
        except RemoteMissing:
            if relocations == places.relocations:
                raise
            continue
        if relocations == places.relocations:
            return found


async def _read_latest(
    catalogue: Catalogue, store: ObjectStore, envelope: Envelope, name: bytes
) -> tuple[tuple[ManifestRef | None, int] | None, list[KeptSnapshot], Manifest | None]:
    """(answer of `Catalogue.resolve`, kept snapshots, latest manifest if there is one). Raises RemoteError."""
    found = await catalogue.resolve(name)
    if found is None or found[0] is None:
        return found, [], None
    kept = await catalogue.resolve_kept(name) if name != DOT_SESSION else []
    return found, kept, await load_manifest(store, envelope, found[0])


def _is_known(published: Published, ref: ManifestRef | None) -> bool:
    return ref is not None and published.manifest == (ref.node, ref.segment, ref.offset, ref.length)


def _take_snapshots(places: Places, session: Ino, name: bytes, kept: list[KeptSnapshot]) -> None:
    for one in kept:
        snapshot = Snapshot(one.taken_ns, one.manifest, one.mark, one.verdict, name=name)
        places.snapshots.put(session, one.sequence, snapshot)


class SessionDirectory:
    """The top level of a volume with a remote. The request loop alone."""

    def __init__(
        self,
        inodes: Inodes,
        places: Places,
        references: References,
        store: ObjectStore,
        envelope: Envelope,
        catalogue: Catalogue,
        *,
        clock_ns: Callable[[], int],
        drop_tree: Callable[[Ino], None],
        drop_file: Callable[[bytes], None],
        rename: Callable[[bytes, bytes], None],
    ) -> None:
        self._inodes = inodes
        self._places = places
        self._references = references
        self._store = store
        self._envelope = envelope
        self._catalogue = catalogue
        self._clock_ns = clock_ns
        self._drop_tree = drop_tree
        self._drop_file = drop_file
        self._rename = rename
        self._loading: dict[Ino, trio.Lock] = {}
        self._complete = False
        self._root_loaded = places.published(ROOT_INO) is not None
        self.stubs: set[Ino] = {ino for ino, p in places.iter_published() if p.stub}
        """Sessions whose tree is not loaded."""
        self._asked: set[Ino] = set()
        """Stubs whose age was asked for."""
        self.on_loaded: Callable[[Ino], None] = lambda session: None
        """Called with each session whose tree was loaded; set by whoever wants to know."""
        self.forget_name: Callable[[bytes], None] = lambda name: None
        """Has the kernel look up a top-level name again; set by whoever mounts."""

    @property
    def unverified(self) -> Set[Ino]:
        """Sessions that must be held against the remote before they are used."""
        return self._places.unverified

    @property
    def is_listed(self) -> bool:
        """True when every name that the remote has is known here: neither `load_root` nor `list_all` has work to do."""
        return self._complete and self._root_loaded and ROOT_INO not in self.unverified

    def distrust(self) -> None:
        """Another node may have held the prefix since this state was written: compare each session at its next look-up,
        at this start or a later one.
        """
        doubtful = {ino for ino, p in self._places.iter_published() if not p.stub}
        for session, _ in list(self._places.iter_published()):
            # What that node let go may be collected.
            self._places.snapshots.clear_published(session)
        for name, dentry in list(self._inodes.iter_dentries(ROOT_INO)):
            # Also what is not known to be published: another node may have made a session of the same name.
            doubtful.add(dentry.ino if stat.S_ISDIR(dentry.kind) else ROOT_INO)
            # Where this comes while the volume is mounted, the remote having been away at its start.
            self.forget_name(name)
        self._places.distrust(doubtful - self.stubs)
        self._complete = False

    async def find(self, name: bytes) -> None:
        """Make sure that *name* is known here, as a stub at least, if the remote has it. Raises RemoteError."""
        dentry = self._inodes.find_dentry(ROOT_INO, name)
        if dentry is not None:
            if dentry.ino in self.unverified:
                await self._verify(dentry.ino, name)
            return
        await self.load_root()
        if self._complete or self._inodes.find_dentry(ROOT_INO, name) is not None:
            return
        for session in self._removed().get(name, ()):
            if session not in self.unverified or not await self._verify_removed(session, name):
                return
        found = await self._catalogue.resolve(name)
        if found is not None and self._inodes.find_dentry(ROOT_INO, name) is None:
            self._add_stub(name)

    def _removed(self) -> dict[bytes, list[Ino]]:
        """Names that the remote has for sessions which were removed or renamed here since: they stand for nothing."""
        removed: dict[bytes, list[Ino]] = {}
        for session in self._inodes.changes.unpublished() if self._inodes.changes is not None else []:
            published = self._places.published(session)
            if published is not None and session != ROOT_INO:
                dentry = self._inodes.find_dentry(ROOT_INO, published.name)
                if dentry is None or dentry.ino != session:
                    removed.setdefault(published.name, []).append(session)
        return removed

    async def _verify_removed(self, session: Ino, name: bytes) -> bool:
        """A session was removed or renamed here. True when another node published *name* since, so that it stays."""
        found = await self._catalogue.resolve(name)
        published = self._places.published(session)
        if session not in self.unverified or published is None:
            return published is None
        self._places.note_verified(session)
        if found is None or _is_known(published, found[0]):
            return False
        self._places.set_published(session, None)
        if self._inodes.changes is not None:
            self._inodes.changes.note_whole(session)
        return True

    async def load_root(self) -> None:
        """Bring the files directly in the root here, which are a session of their own. Raises RemoteError. Names that
        are taken here already stay what they are.
        """
        if ROOT_INO in self.unverified:
            await self._verify_root()
        if self._root_loaded:
            return
        async with self._loading.setdefault(ROOT_INO, trio.Lock()):
            if self._root_loaded:
                return
            found, _, manifest = await read_settled(
                self._places, lambda: _read_latest(self._catalogue, self._store, self._envelope, DOT_SESSION)
            )
            if found is not None and found[0] is not None and manifest is not None:
                self._install(ROOT_INO, DOT_SESSION, manifest, found[0])
            self._root_loaded = True

    async def _verify_root(self) -> None:
        """`_verify` for the files directly in the root."""
        found = await self._catalogue.resolve(DOT_SESSION)
        published = self._places.published(ROOT_INO)
        if ROOT_INO not in self.unverified:
            return
        self._places.note_verified(ROOT_INO)
        if found is None and published is None:
            return
        if published is not None and found is not None and _is_known(published, found[0]):
            return
        unsent = self._is_changed(ROOT_INO)
        for name, dentry in list(self._inodes.iter_dentries(ROOT_INO)):
            if stat.S_ISDIR(dentry.kind):
                continue
            if unsent:
                self._rename(name, await self._free_name(name))
            else:
                self._drop_file(name)
        self._places.set_published(ROOT_INO, None)
        self._root_loaded = False

    async def _verify(self, session: Ino, name: bytes) -> None:
        """Hold a session of this state against the remote's. Where the other node published it since, the remote's
        takes its place; changes made here that were never published stay, under a name that says so.
        """
        found = await self._catalogue.resolve(name)
        snapshots = await self._catalogue.resolve_kept(name) if found is not None else []
        kept = await self._free_name(name) if self._is_changed(session) else b""
        if session not in self.unverified:
            return
        if self._is_changed(session) and not kept:
            return await self._verify(session, name)
        self._places.note_verified(session)
        published = self._places.published(session)
        # One that was announced and never published is nobody's, maybe by this node when it was fenced already.
        if published is None and (found is None or found[0] is None):
            return
        if found is not None and published is not None and _is_known(published, found[0]):
            _take_snapshots(self._places, session, name, snapshots)
            return
        changes = self._inodes.changes
        if changes is not None and kept:
            log.warning(
                "session %s was published by another node since; what this one had not sent is now %s",
                name.decode(errors="replace"),
                kept.decode(errors="replace"),
            )
            self._rename(name, kept)
            self._places.set_published(session, None)
            self._places.snapshots.clear_published(session)
            changes.note_whole(session)
        else:
            self._drop_tree(session)
            self._places.set_published(session, None)
            self._places.snapshots.clear_published(session)
        if found is not None:
            self._add_stub(name)

    def _is_changed(self, session: Ino) -> bool:
        return self._inodes.changes is not None and session in self._inodes.changes.sessions

    async def _free_name(self, taken: bytes) -> bytes:
        """A name, like *taken*, that nobody has; for what was not sent. Raises RemoteError."""
        wanted = taken[:UNSENT_MAX_BYTES] + UNSENT_SUFFIX
        name, number = wanted, 1
        while self._inodes.find_dentry(ROOT_INO, name) is not None or await self._catalogue.resolve(name) is not None:
            number += 1
            name = wanted + b"-%d" % number
        return name

    async def verify_all(self) -> None:
        """Verify every session that has unpublished changes, so that they can be published. Raises RemoteError."""
        changes = self._inodes.changes
        changed = list(changes.sessions) if changes is not None else []
        if ROOT_INO in changed:
            await self.load_root()
        for session in self.unverified & set(changed):
            name, published = self._inodes.find_session_name(session), self._places.published(session)
            if name is not None:
                await self._verify(session, name)
            elif published is not None:
                await self._verify_removed(session, published.name)

    async def list_all(self) -> None:
        """Have every session of the remote known here, as a stub at least; once it was done, at no cost. Raises
        RemoteError.
        """
        if self._complete:
            return
        async for page in self._catalogue.iter_pages():
            hidden = {DOT_SESSION, *self._removed()}
            for name in page:
                if name not in hidden and self._inodes.find_dentry(ROOT_INO, name) is None:
                    self._add_stub(name)
        self._complete = True

    async def learn_ages(self, limit: int) -> None:
        """Of up to *limit* stubs of which no change is known: count the moment of their latest snapshot as that of
        their last change. One request each, once. Raises RemoteError.
        """

        async def learn(session: Ino) -> None:
            published = self._places.published(session)
            kept = await self._catalogue.resolve_kept(published.name) if published is not None else []
            self._asked.add(session)
            if session in self.stubs and kept:
                self._inodes.account(session, 0, 0, max(one.taken_ns for one in kept))

        unknown: list[Ino] = []
        for number, session in enumerate(self.stubs - self._asked):
            if number % PAUSE_EVERY == 0:
                await trio.lowlevel.checkpoint()
            if not self._inodes.session_counters(session).last_change_ns:
                unknown.append(session)
            if len(unknown) == limit:
                break
        await for_each(over(unknown), learn)

    def make_stub(self, session: Ino, name: bytes) -> None:
        """The session, whose tree was dropped, is one that only the remote has: it is loaded at its next look-up."""
        self._places.set_published(session, Published(name, 0, None, stub=True))
        self._places.set_startup(session, b"")
        self.stubs.add(session)

    def _add_stub(self, name: bytes) -> None:
        stub = make_session(self._inodes, name, self._clock_ns())
        self._places.set_published(stub.ino, Published(name, 0, None, stub=True))
        self.stubs.add(stub.ino)

    async def load(self, session: Ino) -> None:
        """Load the tree of a stub; fine when it is loaded already. One that the remote no longer has is gone on return.
        Raises RemoteError, the stub staying one.
        """
        lock = self._loading.setdefault(session, trio.Lock())
        async with lock:
            if session not in self.stubs:
                return
            published = self._places.published(session)
            name = published.name if published is not None else b""
            found, kept, manifest = await read_settled(
                self._places, lambda: _read_latest(self._catalogue, self._store, self._envelope, name)
            )
            if found is not None and found[0] is not None and manifest is not None:
                self._install(session, name, manifest, found[0])
                _take_snapshots(self._places, session, name, kept)
            elif found is not None:
                # Announced by a node that never published it: an empty session.
                self._places.set_published(session, Published(name, found[1], None))
            else:
                self._drop_stub(session, name)
            self.stubs.discard(session)
        self._loading.pop(session, None)

    def _drop_stub(self, session: Ino, name: bytes) -> None:
        """Another node has removed the session since its name was heard of."""
        self._drop_tree(session)
        self._places.set_published(session, None)
        self._places.snapshots.clear_published(session)
        self.forget_name(name)

    def _install(self, session: Ino, name: bytes, manifest: Manifest, ref: ManifestRef) -> None:
        Installer(self._inodes, self._references, session, manifest).run()
        if self._places.take(chunk_places(manifest)) and self._inodes.changes is not None:
            self._inodes.changes.note_whole(session)  # its manifest names what is damaged, and was uploaded again
        # Inode numbers here are other than in the manifest, so a delta can't build upon it: the next one is full.
        place = (ref.node, ref.segment, ref.offset, ref.length)
        published = Published(name, manifest.sequence, place, MAX_DEPTH, taken_ns=manifest.taken_ns)
        self._places.set_published(session, published)
        if session != ROOT_INO:
            self._places.snapshots.put(session, manifest.sequence, Snapshot(manifest.taken_ns, place, name=name))
        self._places.set_startup(session, manifest.startup)
        self.on_loaded(session)
