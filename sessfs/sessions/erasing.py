"""Erasing a session for good: on return no byte that only it had is in the state directory or in the remote.

The order: remove it, with its snapshots and what of it rests in the trash; take its chunks out of the frames that it
shared, so that they are not uploaded again; erase it from the remote; write both databases anew. What it shared with
others stays, since it is theirs. Running it again, also when no such session is there, finishes what was cut short.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

import trio

from sessfs.errors import MountBusy, PosixError, UsageError
from sessfs.format.recipe import Recipe
from sessfs.local.reserved import TRASH_PREFIX, is_reserved, is_view
from sessfs.sessions.erasing_report import ErasureReport
from sessfs.sessions.trash import NAME_XATTR
from sessfs.sync.restore import UNSENT_SUFFIX
from sessfs.types import ROOT_INO
from sessfs.vfs import scrubbing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from sessfs.sessions.lives import Lives
    from sessfs.sync.erasing import Erased
    from sessfs.sync.history import History
    from sessfs.types import ChunkId
    from sessfs.vfs.volume import Volume

    OnStep = Callable[[str, int, int], None]


class Remote(Protocol):
    """See sync.erasing.RemoteEraser."""

    async def erase(self, names: Collection[bytes], on_step: OnStep) -> Erased:
        """See there."""


async def _nobody(name: bytes) -> str:
    return ""


class Purger:
    """The request loop alone; one erasure at a time. *remote* is None where the volume has none; *list_all* has every
    name that the remote knows of here; *forget_limits* drops what was set for a session of that name; *who_uses* has
    the processes with files of it open, in words to put behind an error.
    """

    def __init__(
        self,
        volume: Volume,
        lives: Lives,
        history: History,
        remote: Remote | None,
        *,
        list_all: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
        forget_limits: Callable[[bytes], None] = lambda name: None,
        who_uses: Callable[[bytes], Awaitable[str]] = _nobody,
        crash_point: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._volume = volume
        self._lives = lives
        self._history = history
        self._remote = remote
        self._list_all = list_all
        self._forget_limits = forget_limits
        self._who_uses = who_uses
        self._crash_point = crash_point

    async def purge(self, name: bytes, on_step: OnStep = lambda stage, done, total: None) -> ErasureReport:
        """Erase the session of that *name*; on return it is in no file of the state directory and no object of the
        remote. Raises MountBusy while a file of it is open or a snapshot is being read, StoreFull without the room that
        it takes, SessfsError; then it may be half done, and is to be called again.
        """
        if is_reserved(name) or name in (b"", b".", b".."):
            raise UsageError(f"{_show(name)} is no session")
        scrubbing.check_room(self._volume)
        self._refuse_views()
        was_there = await self._is_there(name)
        trashed = await self._trash_copies(name)
        doomed = [*([name] if was_there else []), *trashed]
        for each in doomed:
            try:
                self._lives.check_unused(each, shown=name)
            except MountBusy as exc:
                raise MountBusy(f"{exc}{await self._who_uses(each)}") from exc
        on_step("removing", 0, len(doomed))
        owned: dict[ChunkId, int] = {}
        for each in doomed:
            owned |= await self._chunks(each)
        for each in doomed:
            await self._remove(each)
        # Not before, as it may still be refused; and before the databases are written anew: the name is in one.
        self._forget_limits(name)
        self._crash_point("removed")
        # Before anything is uploaded again: what is shared goes as whole frames.
        await self._volume.sealer.drop_dead()
        await self._volume.sealer.rewrite_mixed()
        erased = await self._erase_remote([name, *trashed], on_step)
        self._crash_point("remote")
        on_step("scrubbing", 0, 1)
        damaged = await scrubbing.scrub(self._volume, self._crash_point)
        unsent = [one for one, _ in self._volume.inodes.iter_dentries(ROOT_INO) if one.startswith(name + UNSENT_SUFFIX)]
        shared = {cid: length for cid, length in owned.items() if self._volume.references.is_held(cid)}
        notes = list(erased.notes) if erased is not None else []
        notes += [f"session {_show(other)} has changes of it that were never sent: erase it, too" for other in unsent]
        if damaged:
            notes.append(f"{damaged} damaged frames had to stay as they are: `sessfs fsck` names what is in them")
        return ErasureReport(
            session=name.decode(errors="surrogateescape"),
            was_there=was_there,
            trash_copies=len(trashed),
            erased_chunks=len(owned) - len(shared),
            erased_bytes=sum(owned.values()) - sum(shared.values()),
            shared_chunks=len(shared),
            shared_bytes=sum(shared.values()),
            remote_segments=erased.segments if erased is not None else 0,
            remote_bytes=erased.segment_bytes if erased is not None else 0,
            moved_bytes=erased.moved_bytes if erased is not None else 0,
            remote_versions=erased.versions if erased is not None else 0,
            notes=notes,
        )

    def _refuse_views(self) -> None:
        if any(is_view(name) for name, _ in self._volume.inodes.iter_dentries(ROOT_INO)):
            raise MountBusy(
                "a snapshot is being read (by `sessfs check` or `sessfs export`): try again when it is done; if it was "
                "killed, unmount and mount first, which closes what it had open"
            )

    async def _is_there(self, name: bytes) -> bool:
        try:
            await self._lives.locate(name)
        except PosixError as exc:
            if exc.errno != errno.ENOENT:
                raise
            return False
        return True

    async def _trash_copies(self, name: bytes) -> list[bytes]:
        """What of the session rests in the trash, by its names there."""
        await self._list_all()
        found = []
        inodes = self._volume.inodes
        for entry, _ in list(inodes.iter_dentries(ROOT_INO)):
            if entry.startswith(TRASH_PREFIX):
                session = await self._lives.locate(entry)
                if inodes.find_xattr(session, NAME_XATTR) == name:
                    found.append(entry)
        return found

    async def _chunks(self, name: bytes) -> dict[ChunkId, int]:
        """The chunks of the session and of its snapshots, with their lengths."""
        session = await self._lives.locate(name)
        manifest = await self._lives.capture(name)
        self._lives.release(manifest)
        manifests = [
            manifest,
            *[await self._history.load(session, info.sequence) for info in self._history.list(session)],
        ]
        return {
            extent.chunk: extent.end - extent.start
            for each in manifests
            for record in each.nodes
            if record.recipe
            for extent in Recipe(record.recipe)
            if not extent.is_hole
        }

    async def _remove(self, name: bytes) -> None:
        session = self._lives.find(name)
        await self._lives.remove(name)
        self._history.forget(session)
        await self._lives.settled()

    async def _erase_remote(self, names: Collection[bytes], on_step: OnStep) -> Erased | None:
        return None if self._remote is None else await self._remote.erase(names, on_step)


def _show(name: bytes) -> str:
    return name.decode(errors="replace")
