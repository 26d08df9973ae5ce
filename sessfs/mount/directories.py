"""The handlers of open directories: their names, as they were when each was opened or rewound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sessfs.local.reserved import is_reserved
from sessfs.mount.adapter import Adapter
from sessfs.mount.boundary import handler, in_task
from sessfs.mount.fusewire import pack_dirent, pack_open_directory
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from pyfuse3 import FileHandleT, InodeT

    from sessfs.sessions.lastuse import LastUse
    from sessfs.sync.restore import SessionDirectory
    from sessfs.vfs.volume import Volume


class _DirHandle:
    """One open directory: the names as they were when it was opened or rewound."""

    __slots__ = ("ino", "names", "pages")

    def __init__(self, ino: Ino) -> None:
        self.ino = ino
        self.names: list[bytes] = []
        self.pages: AsyncIterator[list[bytes]] | None = None


class DirectoryOperations(Adapter):
    """What `SessionOperations` has of it."""

    def __init__(
        self, volume: Volume, clock_ns: Callable[[], int], sessions: SessionDirectory | None, last_use: LastUse
    ) -> None:
        super().__init__(volume, clock_ns, sessions, last_use)
        self._dirs: dict[int, _DirHandle] = {}
        self._next_dir = 1

    @handler
    async def opendir(self, inode: InodeT) -> bytes:
        """Open a directory."""
        await self._reach(Ino(inode))
        number = self._next_dir
        self._next_dir += 1
        self._dirs[number] = _DirHandle(Ino(inode))
        # Sessions come and go without the kernel's doing, so what it knows of the root may be out of date.
        return pack_open_directory(number, cached=inode != ROOT_INO)

    @handler
    async def readdir(self, fh: FileHandleT, start_id: int, size: int, *, plus: bool) -> bytes:
        """Entries from *start_id*, up to *size* bytes, if *plus* each with its attributes and as one more reference to
        it. *start_id* is the position in the names as they were at the last rewind, `.` and `..` first.
        """
        directory = self._dirs[fh]
        if start_id == 0:
            if directory.ino == ROOT_INO and self._sessions is not None:
                await in_task()
                await self._sessions.load_root()
            directory.names = [b".", b"..", *self._names.list_names(directory.ino)]
            if directory.ino == ROOT_INO and self._sessions is not None:
                directory.pages = self._sessions.iter_pages()
        parts: list[bytes] = []
        position = start_id
        while position < len(directory.names) or await self._turn_page(directory):
            name = directory.names[position]
            inode = self._names.lookup(directory.ino, name)
            position += 1
            if inode is None or (directory.ino == ROOT_INO and is_reserved(name)):
                continue
            part = pack_dirent(name, inode.ino, inode.mode, position)
            if plus:
                part = self._found(inode) + part
            size -= len(part)
            if size < 0:
                break
            parts.append(part)
            if plus and position > 2:
                self._inodes.remember(inode.ino)
        return b"".join(parts)

    async def _turn_page(self, directory: _DirHandle) -> bool:
        """Take in the next names that only the remote has; False when there are no more."""
        while directory.pages is not None:
            await in_task()
            page = await anext(directory.pages, None)
            if page is None:
                directory.pages = None
            elif page:
                directory.names.extend(page)
                return True
        return False

    @handler
    async def releasedir(self, fh: FileHandleT) -> None:
        """Close a directory."""
        self._dirs.pop(fh, None)

    @handler
    async def fsyncdir(self, fh: FileHandleT) -> None:
        """Everything acknowledged before is durable on return."""
        if self._committer.is_dirty or self._committer.is_busy:
            await in_task()
            await self._committer.commit()
