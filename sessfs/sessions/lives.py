"""Sessions as wholes: capture, install, clone, roll back, look at a snapshot, rename, remove.

On an open volume, mounted or not. What changes here changes between two checkpoints of trio, so it is in one batch: a
crash leaves a session as it was, or as it was to become. The kernel caches names for a day, so it is told.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

import msgspec

from sessfs.chrome import PathClass
from sessfs.errors import LocalStoreError, MountBusy, PosixError, UsageError
from sessfs.format.manifest import MANIFEST_VERSION, Manifest, chunk_places
from sessfs.local.changes import SessionChanges
from sessfs.local.reserved import VIEW_PREFIX, is_reserved, is_view
from sessfs.sessions.names import check_name
from sessfs.sync.history import manifest_chunks
from sessfs.sync.installing import Installer, make_session, unnoted
from sessfs.sync.restore import read_settled
from sessfs.sync.snapshot import MAX_DEPTH, Draft, cut, release
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sessfs.sync.history import History, SnapshotInfo
    from sessfs.vfs.frozen import FrozenFile
    from sessfs.vfs.volume import Volume

BEFORE_ROLLBACK = "before rollback"
OWN_XATTRS = b"trusted.sessfs."
TRIES = 5


class Kernel(Protocol):
    """What the kernel remembers of a mount."""

    def forget_name(self, name: bytes) -> None:
        """A top-level name means something else from now on, or nothing. Returns at once."""

    async def settled(self) -> None:
        """Return once the kernel knows of every name that was given before."""


class Unmounted:
    """The Kernel of a volume without a mount."""

    def forget_name(self, name: bytes) -> None:
        """See Kernel."""

    async def settled(self) -> None:
        """See Kernel."""


async def _nothing(name: bytes) -> None:
    """There is no remote: what there is, is here."""


class Lives:
    """The request loop alone. *reach* has a session, and what the remote knows of its name, here before it is looked
    at; *flush_kernel* has the kernel hand over its dirty pages. Names that are not there raise PosixError(ENOENT).
    """

    def __init__(
        self,
        volume: Volume,
        history: History,
        *,
        clock_ns: Callable[[], int],
        flush_kernel: Callable[[], Awaitable[None]],
        reach: Callable[[bytes], Awaitable[None]] = _nothing,
        kernel: Kernel | None = None,
        crash_point: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._volume = volume
        self._inodes = volume.inodes
        self._history = history
        self._clock_ns = clock_ns
        self._flush_kernel = flush_kernel
        self._reach = reach
        self._kernel = kernel or Unmounted()
        self._crash_point = crash_point
        self._next_view = 1
        self.on_replaced: Callable[[Ino, Ino], None] = lambda old, new: None
        """Told of each session that goes on under another inode; set by whoever wants to know."""

    def drop_views(self) -> None:
        """At a start: what was open for reading when the last daemon ended goes."""
        names = [name for name, _ in self._inodes.iter_dentries(ROOT_INO) if is_view(name)]
        for name in names:
            self.close_view(name)

    # -- looking

    def find(self, name: bytes) -> Ino:
        """The session of that name, as far as it is here. Raises PosixError."""
        inode = self._volume.namespace.lookup(ROOT_INO, name)
        if inode is None or inode.session != inode.ino or inode.ino == ROOT_INO:
            raise PosixError(
                errno.ENOENT, f"there is no session {_show(name)}: `sessfs sessions MOUNTPOINT` lists them"
            )
        return inode.ino

    async def locate(self, name: bytes) -> Ino:
        """`find`, after everything of the session was brought here. Raises PosixError, RemoteError."""
        await self._reach(name)
        return self.find(name)

    def in_use(self, name: bytes) -> bool:
        """True while any file of the session is open."""
        return self.find(name) in self._inodes.open_files

    def check_unused(self, name: bytes, shown: bytes | None = None) -> None:
        """Raises MountBusy, which calls it *shown* if given, while any file of the session is open; PosixError."""
        if self.in_use(name):
            known = _show(name if shown is None else shown)
            raise MountBusy(f"session {known} is in use: files of it are open; end what uses it, then try again")

    async def _check_free(self, name: bytes) -> None:
        await self._reach(name)
        self._refuse_taken(name)

    def _refuse_taken(self, name: bytes) -> None:
        if self._inodes.find_dentry(ROOT_INO, name) is not None:
            raise PosixError(errno.EEXIST, f"{_show(name)} exists already: choose another name")

    # -- making

    async def capture(self, name: bytes, *, everything: bool = False) -> Manifest:
        """The session as it is now, as a full manifest without places; *everything*: with what does not travel. Its
        chunks are pinned until `release`. Raises PosixError, StoreCorrupt, RemoteError.
        """
        session = await self.locate(name)
        await self._flush_kernel()
        session = self.find(name)
        changes = SessionChanges(self._clock_ns(), whole=True)
        draft: Draft[FrozenFile] = Draft(session, name, changes, None, everything=everything)
        try:
            cut(self._inodes, self._volume.references, draft)
            draft.frozen = self._volume.sealer.freeze(draft.hot)
            draft.fill(await self._volume.sealer.seal_frozen(draft.frozen))
        except BaseException:
            self._volume.sealer.thaw(draft.frozen)
            release(self._volume.references, [draft])
            raise
        return Manifest(
            version=MANIFEST_VERSION,
            session=name,
            sequence=1,
            base=None,
            depth=0,
            taken_ns=draft.changes.since_ns,
            root=int(session),
            nodes=draft.nodes,
            names=draft.names,
            gone_nodes=[],
            gone_names=[],
            segments=[],
            frames=[],
            startup=self._volume.places.startup(session),
        )

    def release(self, manifest: Manifest) -> None:
        """Undo the pins of `capture`."""
        self._volume.references.unpin(manifest_chunks(manifest))

    def install(self, name: bytes, manifest: Manifest) -> Ino:
        """Make a new session of a full manifest whose chunks are here, pinned by the caller until this returns, or have
        places in the manifest or here. It is published as any other; a view is not. Synchronous. Raises PosixError when
        the name is taken or there may be no more sessions, RemoteCorrupt when the manifest does not hang together; then
        nothing has changed.
        """
        self._refuse_taken(name)
        if self._volume.namespace.quota is not None and not is_reserved(name):
            self._volume.namespace.quota.add_session()
        path_class = PathClass.NODE_ONLY if is_view(name) else PathClass.TRAVELS
        session = self._plant(name, manifest, path_class)
        if path_class is PathClass.TRAVELS:
            self._note_whole(session)
        self._kernel.forget_name(name)
        return session

    def _plant(self, name: bytes, manifest: Manifest, path_class: PathClass) -> Ino:
        now_ns = self._clock_ns()
        inode = make_session(self._inodes, name, now_ns, path_class)
        try:
            Installer(self._inodes, self._volume.references, inode.ino, manifest).run()
        except BaseException:
            self._volume.namespace.drop_session_tree(inode.ino)
            raise
        self._inodes.account(inode.ino, 0, 0, now_ns)
        self._volume.namespace.stamp(self._inodes.get(ROOT_INO), now_ns)
        self._volume.places.take(chunk_places(manifest))
        self._volume.places.set_startup(inode.ino, manifest.startup)
        return inode.ino

    def _note_whole(self, session: Ino) -> None:
        if self._inodes.changes is not None:
            self._inodes.changes.note_whole(session)

    async def clone(self, name: bytes, new_name: bytes) -> None:
        """A new session with the same content, all chunks shared; durable on return. Raises UsageError for what no
        session may be called, PosixError: ENOENT, EEXIST; StoreCorrupt, RemoteError.
        """
        check_name(new_name)
        await self._check_free(new_name)
        manifest = await self.capture(name)
        try:
            await self._check_free(new_name)
            self.install(new_name, manifest)
        finally:
            self.release(manifest)
        await self.settled()

    async def settled(self) -> None:
        """Return once what was done before is durable, and the kernel knows of it. Raises LocalStoreError."""
        await self._volume.committer.commit()
        await self._kernel.settled()

    # -- going back

    async def rollback(self, name: bytes, sequence: int) -> SnapshotInfo:
        """Put a snapshot in the session's place, durable on return; what it replaces is kept as a marked snapshot. The
        answer is the snapshot that is there now. Raises MountBusy while a file of the session is open, UsageError when
        there is no such snapshot, LocalStoreError, RemoteError; then the session is as it was.
        """
        session = await self.locate(name)
        self.check_unused(name)
        info = self._history.get(session, sequence)
        manifest = await self._load(session, sequence)
        relocations = self._volume.places.relocations
        # The policy may let go of it once what it replaces is a snapshot.
        self._volume.references.pin(manifest_chunks(manifest))
        try:
            await self._rollback(name, session, sequence, manifest, relocations)
        finally:
            self.release(manifest)
        return info

    async def _load(self, session: Ino, sequence: int) -> Manifest:
        """A snapshot's manifest, whose places are good until somebody else runs. Raises UsageError, LocalStoreError,
        RemoteError.
        """
        return await read_settled(self._volume.places, lambda: self._history.load(session, sequence))

    async def _rollback(self, name: bytes, session: Ino, sequence: int, manifest: Manifest, relocations: int) -> None:
        for _ in range(TRIES):
            await self._history.take(session, BEFORE_ROLLBACK)
            async with self._history.busy:
                if self._volume.places.relocations != relocations:
                    # An erasure moved it, and none does while that is held. The chunks, and so the pins, are the same.
                    manifest = await self._history.load(session, sequence)
                    relocations = self._volume.places.relocations
                if self._is_changed(session):
                    continue
                if self.find(name) != session:
                    raise UsageError(f"session {_show(name)} was replaced at this very moment: try again")
                self.check_unused(name)
                self._crash_point("replace")
                self._replace(name, session, manifest)
            self._crash_point("replaced")
            await self.settled()
            self._crash_point("settled")
            return
        raise LocalStoreError(f"session {_show(name)} changes all the time: end what writes there, then try again")

    def _keep_own_xattrs(self, old: Ino, new: Ino) -> None:
        """What sessfs itself notes at a session is not part of its content."""
        for ino in (new, old):
            for key, value in [x for x in self._inodes.iter_xattrs(ino) if x[0].startswith(OWN_XATTRS)]:
                if ino == new:
                    self._inodes.delete_xattr(new, key)
                else:
                    self._inodes.set_xattr(new, key, value)

    def _is_changed(self, session: Ino) -> bool:
        return self._inodes.changes is not None and session in self._inodes.changes.sessions

    def _replace(self, name: bytes, session: Ino, manifest: Manifest) -> None:
        """The tree of *manifest* takes the session's place and everything that is kept by its inode. Synchronous."""
        old = self._inodes.get(session)
        aside = VIEW_PREFIX + b"old-%d" % session
        with unnoted(self._inodes):
            # First the new tree, under a name of no meaning: should the manifest not hang together, nothing happened.
            new = self._plant(aside, manifest, PathClass.TRAVELS)
            planted = self._inodes.get(new)
            self._inodes.delete_dentry(ROOT_INO, aside, planted)
            self._inodes.delete_dentry(ROOT_INO, name, old)
            self._inodes.set_dentry(ROOT_INO, aside, old)
            self._inodes.set_dentry(ROOT_INO, name, planted)
        self._keep_own_xattrs(session, new)
        self._history.move(session, new)
        places = self._volume.places
        published = places.published(session)
        if published is not None:
            # No delta: inode numbers are new.
            places.set_published(new, msgspec.structs.replace(published, depth=MAX_DEPTH))
            places.set_published(session, None)
        self._volume.namespace.drop_session_tree(session)
        self._note_whole(new)
        self.on_replaced(session, new)
        self._kernel.forget_name(name)

    # -- views

    async def open_view(self, name: bytes, sequence: int | None) -> bytes:
        """Make a snapshot readable at the top-level name that is returned, until `close_view` or the next start; None:
        the session as it is now, with all that is in it. Raises PosixError, UsageError, LocalStoreError, RemoteError.
        """
        session = await self.locate(name)
        view = VIEW_PREFIX + b"%d" % self._next_view
        self._next_view += 1
        if sequence is not None:
            self.install(view, await self._load(session, sequence))
        else:
            manifest = await self.capture(name, everything=True)
            try:
                self.install(view, manifest)
            finally:
                self.release(manifest)
        await self._kernel.settled()
        return view

    def close_view(self, view: bytes) -> None:
        """Drop a view; files of it that are open stay readable until they are closed. Raises PosixError."""
        if not is_view(view):
            raise UsageError(f"{_show(view)} is not a view")
        self._volume.namespace.drop_session_tree(self.find(view))
        self._kernel.forget_name(view)

    # -- renaming, removing

    async def remove(self, name: bytes) -> None:
        """Remove the session with all that is in it, as `rm -r`, durable on return. Raises MountBusy while a file of it
        is open, PosixError, RemoteError.
        """
        await self.locate(name)
        await self._flush_kernel()
        session = self.find(name)
        self.check_unused(name)
        self._volume.namespace.remove_session(session)
        self._kernel.forget_name(name)
        await self.settled()

    def rename(self, old: bytes, new: bytes) -> None:
        """Give the session another name, a reserved one too; `settled` waits for it. Raises PosixError. The caller has
        made sure that neither the one nor the other is known in the remote only (`locate`).
        """
        self.find(old)
        self._volume.rename_session(old, new)
        self._kernel.forget_name(old)
        self._kernel.forget_name(new)


def _show(name: bytes) -> str:
    return name.decode(errors="replace")
