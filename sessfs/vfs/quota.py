"""What the tree asks before it grows: whether a limit says no. The limits themselves are decided in `sessions/`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sessfs.local.inodes import Inode
    from sessfs.types import Ino


class Quota(Protocol):
    """Synchronous; each method raises PosixError(EDQUOT) having changed nothing of the tree."""

    def add_session(self) -> None:
        """One more top-level directory is about to be made."""

    def add_name(self, session: Ino) -> None:
        """Something new (file, directory, symlink, device) is about to be made in the session."""

    def grow(self, inode: Inode, start: int, end: int) -> None:
        """The file is about to grow to *end*, by bytes from *start* on, which may lie behind its end."""

    def shrunk(self, inode: Inode) -> None:
        """The file was truncated, and is not longer than before."""

    def open(self, inode: Inode, *, writes: bool, reads: bool, pid: int) -> bool:
        """A file that was there is about to be opened by the process *pid*. True when its writes must not wait in the
        kernel's page cache, so that a refusal is seen by write(2) itself.
        """

    def closed(self, inode: Inode) -> None:
        """Nobody has the file open any more."""
