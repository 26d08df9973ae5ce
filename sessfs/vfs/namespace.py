"""The POSIX rules of names: lookup, create, link, rename, unlink, and when an inode goes. Synchronous throughout.

Permissions are the kernel's business (`default_permissions`). A *session* is a top-level directory; an inode belongs to
the session it was made in for good, and whatever would carry it into another answers EXDEV.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, NamedTuple

from sessfs.chrome import PathClass, classify
from sessfs.errors import PosixError
from sessfs.local.inodes import Inode
from sessfs.types import ROOT_INO, Ino

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.local.inodes import Inodes
    from sessfs.vfs.quota import Quota

NAME_MAX_BYTES = 255
LINK_MAX = 65_000


class Owner(NamedTuple):
    """Who makes something new."""

    uid: int
    gid: int


def class_in(directory: Inode, name: bytes, mode: int) -> PathClass:
    """Whether an entry of that name and mode travels. A session does, whatever it is called."""
    if directory.ino == ROOT_INO and stat.S_ISDIR(mode):
        return PathClass.TRAVELS
    return classify(name, directory.path_class)


class Namespace:
    """Directory tree over `Inodes`. *clock_ns* gives the time of changes; *discard* frees a dead inode's content."""

    def __init__(self, inodes: Inodes, clock_ns: Callable[[], int], discard: Callable[[Inode], None]) -> None:
        self._inodes = inodes
        self._clock_ns = clock_ns
        self._discard = discard
        self.quota: Quota | None = None
        """Asked before something new is made; None while nothing is limited."""

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
        """Create a file of the type in *mode* (any but a symlink). EEXIST, ENAMETOOLONG, ENOENT in a removed directory,
        or EDQUOT.
        """
        directory = self._directory_for_new(parent, name)
        if self.quota is not None:
            if parent == ROOT_INO and stat.S_ISDIR(mode):
                self.quota.add_session()
            else:
                self.quota.add_name(directory.session)
        now = self._clock_ns()
        gid = owner.gid
        if directory.mode & stat.S_ISGID:
            # System V semantics, as every Linux filesystem has them: the group is the directory's.
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        inode = self._inodes.create(mode, owner.uid, gid, now)
        inode.rdev = rdev
        inode.path_class = class_in(directory, name, mode)
        inode.session = self.session_in(directory, inode)
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
        self.stamp(directory, now)
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
        if inode.session != self.session_in(directory, inode):
            raise PosixError(errno.EXDEV, "hard links between sessions are not possible")
        if inode.nlink >= LINK_MAX:
            raise PosixError(errno.EMLINK)
        if inode.nlink == 0:
            raise PosixError(errno.ENOENT)
        now = self._clock_ns()
        path_class = min(inode.path_class, classify(name, directory.path_class))
        if path_class != inode.path_class:
            # One of its names travels, so the inode does, under all that it has.
            inode.path_class = path_class
            if self._inodes.changes is not None:
                self._inodes.changes.note_whole(inode.session)
        inode.nlink += 1
        inode.ctime_ns = now
        self._inodes.touch(inode)
        self._inodes.set_dentry(parent, name, inode)
        self.stamp(directory, now)
        self._inodes.account(inode.session, 0, 0, now)
        return inode

    def session_in(self, directory: Inode, inode: Inode) -> Ino:
        """The session that *inode* belongs to if it has a name in *directory*."""
        if directory.ino != ROOT_INO:
            return directory.session
        return inode.ino if stat.S_ISDIR(inode.mode) else ROOT_INO

    def stamp(self, directory: Inode, now: int) -> None:
        """The directory's entries changed at *now* (ns)."""
        directory.mtime_ns = directory.ctime_ns = now
        self._inodes.touch(directory)

    # -- removing

    def unlink(self, parent: Ino, name: bytes) -> None:
        """Remove a name of anything but a directory (EISDIR); the inode stays while it has names or users."""
        inode = self.existing(parent, name)
        if stat.S_ISDIR(inode.mode):
            raise PosixError(errno.EISDIR)
        now = self._clock_ns()
        self._inodes.delete_dentry(parent, name, inode)
        self.stamp(self.get(parent), now)
        self.drop_link(inode, now)

    def rmdir(self, parent: Ino, name: bytes) -> None:
        """Remove an empty directory. ENOTDIR, ENOTEMPTY, EINVAL for '.', ENOTEMPTY for '..'."""
        if name in (b".", b".."):
            raise PosixError(errno.EINVAL if name == b"." else errno.ENOTEMPTY)
        inode = self.existing(parent, name)
        if not stat.S_ISDIR(inode.mode):
            raise PosixError(errno.ENOTDIR)
        if self._inodes.has_entries(inode.ino):
            raise PosixError(errno.ENOTEMPTY)
        now = self._clock_ns()
        directory = self.get(parent)
        self._inodes.delete_dentry(parent, name, inode)
        directory.nlink -= 1
        self.stamp(directory, now)
        self.drop_directory(inode, now)

    def existing(self, parent: Ino, name: bytes) -> Inode:
        """The inode that *name* stands for; ENOENT when there is none."""
        inode = self.lookup(parent, name)
        if inode is None:
            raise PosixError(errno.ENOENT)
        return inode

    def drop_link(self, inode: Inode, now: int) -> None:
        """A name of the inode, no directory, is gone: with the last, and without users, so is the inode."""
        inode.nlink -= 1
        inode.ctime_ns = now
        self._inodes.touch(inode)
        if inode.nlink == 0:
            self._inodes.account(inode.session, -1, -inode.size, now)
            self._retire(inode)
        else:
            self._inodes.account(inode.session, 0, 0, now)

    def drop_directory(self, inode: Inode, now: int) -> None:
        """The name of the empty directory is gone, and so is the directory once nobody uses it."""
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

    def remove_session(self, session: Ino) -> None:
        """Remove a session with all that is in it, as a change like any other."""
        self._empty(session)
        name = self._inodes.find_session_name(session)
        if name is not None:
            self.rmdir(ROOT_INO, name)

    def empty_session(self, session: Ino) -> None:
        """Take everything out of a session, which stays, without it being a change that is published. Nobody may be
        using it.
        """
        changes, self._inodes.changes = self._inodes.changes, None
        try:
            self._empty(session)
        finally:
            self._inodes.changes = changes

    def drop_session_tree(self, session: Ino) -> None:
        """Take a session out of the tree with all that is in it, without it being a change that is published. Nobody
        may be using it.
        """
        changes, self._inodes.changes = self._inodes.changes, None
        try:
            self._empty(session)
            name = self._inodes.find_session_name(session)
            if name is not None:
                self.rmdir(ROOT_INO, name)
        finally:
            self._inodes.changes = changes
        if changes is not None:
            changes.forget(session)

    def drop_root_file(self, name: bytes) -> None:
        """Take a file out of the root, without it being a change that is published."""
        changes, self._inodes.changes = self._inodes.changes, None
        try:
            self.unlink(ROOT_INO, name)
        finally:
            self._inodes.changes = changes

    def _empty(self, directory: Ino) -> None:
        for name, dentry in list(self._inodes.iter_dentries(directory)):
            if stat.S_ISDIR(dentry.kind):
                self._empty(dentry.ino)
                self.rmdir(directory, name)
            else:
                self.unlink(directory, name)

    def reclaim_orphans(self) -> int:
        """At start: free what was removed while open when the last daemon ended. Returns how many there were."""
        orphans = list(self._inodes.iter_orphans())
        for ino in orphans:
            inode = self._inodes.find(ino)
            if inode is not None:
                self.reclaim(inode)
            else:
                self._inodes.unmark_orphan(ino)
        return len(orphans)
