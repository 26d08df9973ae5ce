"""Extended attributes: which classes there are, how long a value may be."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from sessfs.errors import PosixError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.local.inodes import Inode, Inodes
    from sessfs.types import Ino
    from sessfs.vfs.namespace import Namespace

XATTR_VALUE_MAX_BYTES = 65_536
OWN_PREFIX = b"trusted.sessfs."
"""What sessfs itself notes at an inode: no program sees or changes it, and it travels like the others."""


class Xattrs:
    """The xattrs of all inodes. Synchronous."""

    def __init__(self, names: Namespace, inodes: Inodes, clock_ns: Callable[[], int]) -> None:
        self._names = names
        self._inodes = inodes
        self._clock_ns = clock_ns

    def get(self, ino: Ino, name: bytes) -> bytes:
        """The value; ENODATA when there is none."""
        value = self._inodes.find_xattr(ino, name)
        if value is None or name.startswith(OWN_PREFIX):
            raise PosixError(errno.ENODATA)
        return value

    def require(self, ino: Ino, name: bytes, *, exists: bool) -> None:
        """ENODATA unless the xattr is there, or else EEXIST unless it is not."""
        if exists != (self._inodes.find_xattr(ino, name) is not None):
            raise PosixError(errno.ENODATA if exists else errno.EEXIST)

    def set(self, ino: Ino, name: bytes, value: bytes) -> None:
        """Set a `user.`, `trusted.` or `security.` xattr of up to 64 KiB; EOPNOTSUPP for other classes, E2BIG."""
        if not name.startswith((b"user.", b"trusted.", b"security.")):
            raise PosixError(errno.EOPNOTSUPP)
        if name.startswith(OWN_PREFIX):
            raise PosixError(errno.EPERM, "sessfs keeps these for itself")
        if len(value) > XATTR_VALUE_MAX_BYTES:
            raise PosixError(errno.E2BIG)
        inode = self._names.get(ino)
        self._inodes.set_xattr(ino, name, value)
        self._touch_ctime(inode)

    def remove(self, ino: Ino, name: bytes) -> None:
        """Remove the xattr; ENODATA when there is none."""
        if name.startswith(OWN_PREFIX) or self._inodes.find_xattr(ino, name) is None:
            raise PosixError(errno.ENODATA)
        self._inodes.delete_xattr(ino, name)
        self._touch_ctime(self._names.get(ino))

    def names(self, ino: Ino) -> list[bytes]:
        """Names of all xattrs."""
        return [name for name, _ in self._inodes.iter_xattrs(ino) if not name.startswith(OWN_PREFIX)]

    def _touch_ctime(self, inode: Inode) -> None:
        now = self._clock_ns()
        inode.ctime_ns = now
        self._inodes.touch(inode)
        self._inodes.account(inode.session, 0, 0, now)
