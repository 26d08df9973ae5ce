"""Who uses inodes at this time: the kernel, by the references that it holds, and programs, by open files."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sessfs.local.inodes import Inode
    from sessfs.types import Ino


class Users:
    """In memory only. The request loop alone."""

    def __init__(self) -> None:
        self._lookups: dict[Ino, int] = {}
        self.open_files: dict[Ino, int] = {}
        """Session → how many of its files are open; sessions without any are not in it."""

    # -- kernel references

    def remember(self, ino: Ino) -> None:
        """The kernel was told of *ino* once more."""
        self._lookups[ino] = self._lookups.get(ino, 0) + 1

    def forget(self, ino: Ino, count: int) -> bool:
        """The kernel forgets *count* times; True when it then knows the inode no more."""
        left = self._lookups.get(ino, 0) - count
        if left > 0:
            self._lookups[ino] = left
            return False
        self._lookups.pop(ino, None)
        return True

    def is_known(self, ino: Ino) -> bool:
        """True while the kernel holds a reference."""
        return ino in self._lookups

    def note_open(self, inode: Inode) -> None:
        """The file is open once more."""
        inode.opens += 1
        if inode.opens == 1:
            self.open_files[inode.session] = self.open_files.get(inode.session, 0) + 1

    def note_closed(self, inode: Inode) -> None:
        """The file is open once less."""
        inode.opens -= 1
        if inode.opens == 0:
            left = self.open_files[inode.session] - 1
            if left:
                self.open_files[inode.session] = left
            else:
                del self.open_files[inode.session]

    def count_open(self) -> int:
        """Number of inodes with open files."""
        return sum(self.open_files.values())
