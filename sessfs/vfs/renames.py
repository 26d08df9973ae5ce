"""rename(2): moving, replacing and exchanging names, over the rules of `Namespace`."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from sessfs.errors import PosixError
from sessfs.types import ROOT_INO, Ino
from sessfs.vfs.namespace import NAME_MAX_BYTES, class_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.local.inodes import Inode, Inodes
    from sessfs.vfs.namespace import Namespace

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


class Renames:
    """Renaming in a directory tree. Synchronous."""

    def __init__(self, names: Namespace, inodes: Inodes, clock_ns: Callable[[], int]) -> None:
        self._names = names
        self._inodes = inodes
        self._clock_ns = clock_ns

    def rename(self, old_parent: Ino, old_name: bytes, new_parent: Ino, new_name: bytes, flags: int = 0) -> list[Inode]:
        """rename(2) with RENAME_NOREPLACE and RENAME_EXCHANGE (EINVAL for other flags, nothing changed).

        Returns the inodes that took a name which was another's: their content stands in for that.
        """
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise PosixError(errno.EINVAL, f"rename flags {flags:#x} are not supported")
        if len(new_name) > NAME_MAX_BYTES:
            raise PosixError(errno.ENAMETOOLONG)
        inode = self._names.existing(old_parent, old_name)
        target = self._names.lookup(new_parent, new_name)
        source_dir, target_dir = self._names.get(old_parent), self._names.get(new_parent)
        self._check_move(inode, target_dir)
        if flags & RENAME_EXCHANGE:
            if target is None:
                raise PosixError(errno.ENOENT)
            self._check_move(target, source_dir)
            self._exchange(inode, source_dir, old_name, target, target_dir, new_name)
            return [inode, target]
        if target is inode:
            return []
        if target is not None:
            if flags & RENAME_NOREPLACE:
                raise PosixError(errno.EEXIST)
            self._check_replace(inode, target)
        self._move(inode, source_dir, old_name, target, target_dir, new_name)
        return [inode] if target is not None else []

    def _check_move(self, inode: Inode, target_dir: Inode) -> None:
        if inode.session != self._names.session_in(target_dir, inode):
            raise PosixError(errno.EXDEV, "a session's files can't be renamed into another")
        if target_dir.nlink == 0:
            raise PosixError(errno.ENOENT)
        if stat.S_ISDIR(inode.mode):
            above = target_dir
            while above.ino != ROOT_INO:
                if above.ino == inode.ino:
                    raise PosixError(errno.EINVAL, "a directory can't be moved into itself")
                above = self._names.get(above.parent)

    def _check_replace(self, inode: Inode, target: Inode) -> None:
        if stat.S_ISDIR(target.mode):
            if not stat.S_ISDIR(inode.mode):
                raise PosixError(errno.EISDIR)
            if self._inodes.has_entries(target.ino):
                raise PosixError(errno.ENOTEMPTY)
        elif stat.S_ISDIR(inode.mode):
            raise PosixError(errno.ENOTDIR)

    def _move(
        self,
        inode: Inode,
        source_dir: Inode,
        old_name: bytes,
        target: Inode | None,
        target_dir: Inode,
        new_name: bytes,
    ) -> None:
        now = self._clock_ns()
        is_dir = stat.S_ISDIR(inode.mode)
        self._inodes.delete_dentry(source_dir.ino, old_name, inode)
        self._reclassify(inode, target_dir, new_name)
        self._inodes.set_dentry(target_dir.ino, new_name, inode)
        if is_dir:
            source_dir.nlink -= 1
            target_dir.nlink += 1
            inode.parent = target_dir.ino
        inode.ctime_ns = now
        self._inodes.touch(inode)
        if target is not None and stat.S_ISDIR(target.mode):
            target_dir.nlink -= 1
            self._names.drop_directory(target, now)
        elif target is not None:
            self._names.drop_link(target, now)
        self._names.stamp(source_dir, now)
        self._names.stamp(target_dir, now)
        self._inodes.account(inode.session, 0, 0, now)

    def _exchange(
        self, one: Inode, one_dir: Inode, one_name: bytes, two: Inode, two_dir: Inode, two_name: bytes
    ) -> None:
        now = self._clock_ns()
        self._reclassify(one, two_dir, two_name)
        self._reclassify(two, one_dir, one_name)
        self._inodes.set_dentry(one_dir.ino, one_name, two)
        self._inodes.set_dentry(two_dir.ino, two_name, one)
        for inode, source, target in ((one, one_dir, two_dir), (two, two_dir, one_dir)):
            if stat.S_ISDIR(inode.mode):
                source.nlink -= 1
                target.nlink += 1
                inode.parent = target.ino
            inode.ctime_ns = now
            self._inodes.touch(inode)
            self._inodes.account(inode.session, 0, 0, now)
        self._names.stamp(one_dir, now)
        self._names.stamp(two_dir, now)

    def _reclassify(self, inode: Inode, directory: Inode, name: bytes) -> None:
        """A rename may change whether the entry, and what is below it, travels."""
        path_class = class_in(directory, name, inode.mode)
        if not stat.S_ISDIR(inode.mode) and inode.nlink > 1:
            # Its other names may be ones that travel.
            path_class = min(path_class, inode.path_class)
        if path_class == inode.path_class:
            return
        # Touched under both classes: what ceases to travel is a change as well.
        self._inodes.touch(inode)
        inode.path_class = path_class
        self._inodes.touch(inode)
        if stat.S_ISDIR(inode.mode):
            for child_name, dentry in list(self._inodes.iter_dentries(inode.ino)):
                child = self._inodes.get(dentry.ino)
                self._inodes.set_dentry(inode.ino, child_name, child)
                self._reclassify(child, inode, child_name)
                self._inodes.set_dentry(inode.ino, child_name, child)
