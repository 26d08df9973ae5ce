"""The POSIX rules of names: lookup, create, link, rename, unlink, and when an inode goes. Synchronous throughout.

Permissions are the kernel's business (`default_permissions`). A *session* is a top-level directory; an inode belongs to
the session it was made in for good, and whatever would carry it into another answers EXDEV.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, NamedTuple

from sessfs.chrome import classify
from sessfs.errors import PosixError
from sessfs.local.inodes import Inode
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sessfs.local.inodes import Dentry, Inodes

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
NAME_MAX_BYTES = 255
LINK_MAX = 65_000
XATTR_VALUE_MAX_BYTES = 65_536
DOT_SESSION = b"."


class Owner(NamedTuple):
    """Who makes something new."""

    uid: int
    gid: int


class Namespace:
    """Directory tree over `Inodes`. *clock_ns* gives the time of changes; *discard* frees a dead inode's content."""

    def __init__(self, inodes: Inodes, clock_ns: Callable[[], int], discard: Callable[[Inode], None]) -> None:
        self._inodes = inodes
        self._clock_ns = clock_ns
        self._discard = discard

    def ensure_root(self, uid: int, gid: int) -> Inode:
        """The root directory, made on first use with mode 0755."""
        root = self._inodes.find(ROOT_INO)
        if root is None:
            root = Inode(ROOT_INO)
            root.mode, root.uid, root.gid, root.nlink = stat.S_IFDIR | 0o755, uid, gid, 2
            root.atime_ns = root.mtime_ns = root.ctime_ns = self._clock_ns()
            self._inodes.adopt(root)
        return root

    # -- reading

    def get(self, ino: Ino) -> Inode:
        """The inode of a number the kernel uses; ESTALE when it is gone."""
        inode = self._inodes.find(ino)
        if inode is None:
            raise PosixError(errno.ESTALE, f"inode {ino} is gone")
        return inode

    def lookup(self, parent: Ino, name: bytes) -> Inode | None:
        """The inode that *name* in *parent* stands for, or None when there is no such name."""
        if name == b".":
            return self.get(parent)
        if name == b"..":
            return self.get(self.get(parent).parent)
        dentry = self._inodes.find_dentry(parent, name)
        if dentry is None:
            if len(name) > NAME_MAX_BYTES:
                raise PosixError(errno.ENAMETOOLONG)
            return None
        return self._inodes.get(dentry.ino)

    def list_names(self, parent: Ino) -> list[bytes]:
        """All names in the directory at this instant, in order of their bytes."""
        return [name for name, _ in self._inodes.iter_dentries(parent)]

    def iter_entries(self, parent: Ino) -> Iterator[tuple[bytes, Dentry]]:
        """(name, dentry) of the directory; to be used up before the next change."""
        return self._inodes.iter_dentries(parent)

    def read_link(self, ino: Ino) -> bytes:
        """The symlink's target, exactly as it was given."""
        return self._inodes.get_target(ino)

    # -- creating

    def _directory_for_new(self, parent: Ino, name: bytes) -> Inode:
        directory = self.get(parent)
        if not stat.S_ISDIR(directory.mode):
            raise PosixError(errno.ENOTDIR)
        if directory.nlink == 0:
            raise PosixError(errno.ENOENT, "the directory has been removed")
        if len(name) > NAME_MAX_BYTES:
            raise PosixError(errno.ENAMETOOLONG)
        if self._inodes.find_dentry(parent, name) is not None:
            raise PosixError(errno.EEXIST)
        return directory

    def make(self, parent: Ino, name: bytes, mode: int, owner: Owner, rdev: int = 0) -> Inode:
        """Create a file of the type in *mode* (any but a symlink). EEXIST, ENAMETOOLONG, or ENOENT in a removed
        directory.
        """
        directory = self._directory_for_new(parent, name)
        now = self._clock_ns()
        gid = owner.gid
        if directory.mode & stat.S_ISGID:
            # System V semantics, as every Linux filesystem has them: the group is the directory's.
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        inode = self._inodes.create(mode, owner.uid, gid, now)
        inode.rdev = rdev
        inode.path_class = classify(name, directory.path_class)
        inode.session = self._session_in(directory, inode)
        inode.parent = parent
        inode.nlink = 1
        if stat.S_ISDIR(mode):
            inode.nlink = 2
            directory.nlink += 1
        else:
            self._inodes.account(inode.session, 1, 0, now)
        if parent == ROOT_INO and stat.S_ISDIR(mode):
            self._inodes.account(inode.session, 0, 0, now)
        self._inodes.set_dentry(parent, name, inode)
        self._stamp(directory, now)
        return inode

    def make_symlink(self, parent: Ino, name: bytes, target: bytes, owner: Owner) -> Inode:
        """Create a symlink; its size is the target's length."""
        inode = self.make(parent, name, stat.S_IFLNK | 0o777, owner)
        inode.size = len(target)
        self._inodes.set_target(inode.ino, target)
        self._inodes.account(inode.session, 0, len(target), inode.ctime_ns)
        return inode

    def link(self, ino: Ino, parent: Ino, name: bytes) -> Inode:
        """One more name for an inode. EPERM for directories, EXDEV from one session to another, EMLINK."""
        inode = self.get(ino)
        if stat.S_ISDIR(inode.mode):
            raise PosixError(errno.EPERM, "a directory can't have a second name")
        directory = self._directory_for_new(parent, name)
        if inode.session != self._session_in(directory, inode):
            raise PosixError(errno.EXDEV, "hard links between sessions are not possible")
        if inode.nlink >= LINK_MAX:
            raise PosixError(errno.EMLINK)
        if inode.nlink == 0:
            raise PosixError(errno.ENOENT)
        now = self._clock_ns()
        inode.nlink += 1
        inode.ctime_ns = now
        self._inodes.touch(inode)
        self._inodes.set_dentry(parent, name, inode)
        self._stamp(directory, now)
        self._inodes.account(inode.session, 0, 0, now)
        return inode

    def _session_in(self, directory: Inode, inode: Inode) -> Ino:
        """The session that *inode* belongs to if it has a name in *directory*."""
        if directory.ino != ROOT_INO:
            return directory.session
        return inode.ino if stat.S_ISDIR(inode.mode) else ROOT_INO

    def _stamp(self, directory: Inode, now: int) -> None:
        directory.mtime_ns = directory.ctime_ns = now
        self._inodes.touch(directory)

    # -- removing

    def unlink(self, parent: Ino, name: bytes) -> None:
        """Remove a name of anything but a directory (EISDIR); the inode stays while it has names or users."""
        inode = self._existing(parent, name)
        if stat.S_ISDIR(inode.mode):
            raise PosixError(errno.EISDIR)
        now = self._clock_ns()
        self._inodes.delete_dentry(parent, name, inode)
        self._stamp(self.get(parent), now)
        self._drop_link(inode, now)

    def rmdir(self, parent: Ino, name: bytes) -> None:
        """Remove an empty directory. ENOTDIR, ENOTEMPTY, EINVAL for '.', ENOTEMPTY for '..'."""
        if name in (b".", b".."):
            raise PosixError(errno.EINVAL if name == b"." else errno.ENOTEMPTY)
        inode = self._existing(parent, name)
        if not stat.S_ISDIR(inode.mode):
            raise PosixError(errno.ENOTDIR)
        if self._inodes.has_entries(inode.ino):
            raise PosixError(errno.ENOTEMPTY)
        now = self._clock_ns()
        directory = self.get(parent)
        self._inodes.delete_dentry(parent, name, inode)
        directory.nlink -= 1
        self._stamp(directory, now)
        self._drop_directory(inode, now)

    def _existing(self, parent: Ino, name: bytes) -> Inode:
        inode = self.lookup(parent, name)
        if inode is None:
            raise PosixError(errno.ENOENT)
        return inode

    def _drop_link(self, inode: Inode, now: int) -> None:
        inode.nlink -= 1
        inode.ctime_ns = now
        self._inodes.touch(inode)
        if inode.nlink == 0:
            self._inodes.account(inode.session, -1, -inode.size, now)
            self._retire(inode)
        else:
            self._inodes.account(inode.session, 0, 0, now)

    def _drop_directory(self, inode: Inode, now: int) -> None:
        inode.nlink = 0
        inode.ctime_ns = now
        self._inodes.touch(inode)
        if inode.session == inode.ino:
            self._inodes.drop_session(inode.ino)
        else:
            self._inodes.account(inode.session, 0, 0, now)
        self._retire(inode)

    def _retire(self, inode: Inode) -> None:
        if inode.opens or self._inodes.is_known(inode.ino):
            self._inodes.mark_orphan(inode)
        else:
            self.reclaim(inode)

    def reclaim(self, inode: Inode) -> None:
        """Free an inode without names and users: content, attributes, orphan mark."""
        self._discard(inode)
        self._inodes.remove(inode)

    def forget(self, ino: Ino, count: int) -> None:
        """The kernel drops *count* references; an inode without names goes with the last."""
        if self._inodes.forget(ino, count):
            inode = self._inodes.find(ino)
            if inode is not None and inode.nlink == 0 and inode.opens == 0:
                self.reclaim(inode)

    def reclaim_orphans(self) -> int:
        """At start: free what was removed while open when the last daemon ended. Returns how many there were."""
        orphans = list(self._inodes.iter_orphans())
        for ino in orphans:
            inode = self._inodes.find(ino)
            if inode is not None:
                self.reclaim(inode)
        return len(orphans)

    # -- renaming

    def rename(
        self, old_parent: Ino, old_name: bytes, new_parent: Ino, new_name: bytes, flags: int = 0
    ) -> Inode | None:
        """rename(2) with RENAME_NOREPLACE and RENAME_EXCHANGE (EINVAL for other flags, nothing changed).

        Returns the inode that took an existing file's name, whose data a commit must flush first, or None.
        """
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise PosixError(errno.EINVAL, f"rename flags {flags:#x} are not supported")
        if len(new_name) > NAME_MAX_BYTES:
            raise PosixError(errno.ENAMETOOLONG)
        inode = self._existing(old_parent, old_name)
        target = self.lookup(new_parent, new_name)
        source_dir, target_dir = self.get(old_parent), self.get(new_parent)
        self._check_move(inode, target_dir)
        if flags & RENAME_EXCHANGE:
            if target is None:
                raise PosixError(errno.ENOENT)
            self._check_move(target, source_dir)
            self._exchange(inode, source_dir, old_name, target, target_dir, new_name)
            return None
        if target is inode:
            return None
        if target is not None:
            if flags & RENAME_NOREPLACE:
                raise PosixError(errno.EEXIST)
            self._check_replace(inode, target)
        self._move(inode, source_dir, old_name, target, target_dir, new_name)
        return inode if target is not None and stat.S_ISREG(inode.mode) else None

    def _check_move(self, inode: Inode, target_dir: Inode) -> None:
        if inode.session != self._session_in(target_dir, inode):
            raise PosixError(errno.EXDEV, "a session's files can't be renamed into another")
        if target_dir.nlink == 0:
            raise PosixError(errno.ENOENT)
        if stat.S_ISDIR(inode.mode):
            above = target_dir
            while above.ino != ROOT_INO:
                if above.ino == inode.ino:
                    raise PosixError(errno.EINVAL, "a directory can't be moved into itself")
                above = self.get(above.parent)

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
            self._drop_directory(target, now)
        elif target is not None:
            self._drop_link(target, now)
        self._stamp(source_dir, now)
        self._stamp(target_dir, now)
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
        self._stamp(one_dir, now)
        self._stamp(two_dir, now)

    def _reclassify(self, inode: Inode, directory: Inode, name: bytes) -> None:
        """A rename may change whether the entry, and what is below it, travels."""
        path_class = classify(name, directory.path_class)
        if path_class == inode.path_class:
            return
        inode.path_class = path_class
        self._inodes.touch(inode)
        if stat.S_ISDIR(inode.mode):
            for child_name, dentry in list(self._inodes.iter_dentries(inode.ino)):
                self._reclassify(self._inodes.get(dentry.ino), inode, child_name)
                self._inodes.set_dentry(inode.ino, child_name, self._inodes.get(dentry.ino))

    # -- xattrs

    def get_xattr(self, ino: Ino, name: bytes) -> bytes:
        """The value; ENODATA when there is none."""
        value = self._inodes.find_xattr(ino, name)
        if value is None:
            raise PosixError(errno.ENODATA)
        return value

    def set_xattr(self, ino: Ino, name: bytes, value: bytes) -> None:
        """Set a `user.`, `trusted.` or `security.` xattr of up to 64 KiB; EOPNOTSUPP for other classes, E2BIG."""
        if not name.startswith((b"user.", b"trusted.", b"security.")):
            raise PosixError(errno.EOPNOTSUPP)
        if len(value) > XATTR_VALUE_MAX_BYTES:
            raise PosixError(errno.E2BIG)
        inode = self.get(ino)
        self._inodes.set_xattr(ino, name, value)
        self._touch_ctime(inode)

    def remove_xattr(self, ino: Ino, name: bytes) -> None:
        """Remove the xattr; ENODATA when there is none."""
        if self._inodes.find_xattr(ino, name) is None:
            raise PosixError(errno.ENODATA)
        self._inodes.delete_xattr(ino, name)
        self._touch_ctime(self.get(ino))

    def list_xattrs(self, ino: Ino) -> list[bytes]:
        """Names of all xattrs."""
        return [name for name, _ in self._inodes.iter_xattrs(ino)]

    def _touch_ctime(self, inode: Inode) -> None:
        now = self._clock_ns()
        inode.ctime_ns = now
        self._inodes.touch(inode)
        self._inodes.account(inode.session, 0, 0, now)
