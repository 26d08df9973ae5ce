"""The kernel's side of the mount in bytes: layouts of <linux/fuse.h>, ABI 7.31 and later, on a little-endian machine.

Pure: packs answers, unpacks requests. Names of structs are those of the header file.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from sessfs.types import clamp_time_ns

if TYPE_CHECKING:
    from sessfs.local.inodes import Inode

IN_HEADER: Final = struct.Struct("<IIQQIIIHH")
"""len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
OUT_HEADER: Final = struct.Struct("<IiQ")
"""len, error, unique."""
_ENTRY: Final = struct.Struct("<QQQQII QQQqqqIIIIIIIIII")
_ATTR: Final = struct.Struct("<QII QQQqqqIIIIIIIIII")
_OPEN: Final = struct.Struct("<QII")
ENTRY_BYTES: Final = _ENTRY.size
DIRENTS: Final = [struct.Struct(f"<QQII{length}s{-length % 8}x") for length in range(256)]
"""fuse_dirent by the length of the name: inode, position where a reading that ends with it goes on, length of the name,
d_type, name.
"""
STATFS_OUT: Final = struct.Struct("<QQQQQIII28x")
"""blocks, bfree, bavail, files, ffree, bsize, namelen, frsize."""
SIZE_OUT: Final = struct.Struct("<II")
"""fuse_write_out and fuse_getxattr_out: size, padding."""

LINK_IN: Final = struct.Struct("<Q")
MKNOD_IN: Final = struct.Struct("<IIII")
MKDIR_IN: Final = struct.Struct("<II")
RENAME_IN: Final = struct.Struct("<Q")
RENAME2_IN: Final = struct.Struct("<QII")
SETATTR_IN: Final = struct.Struct("<IIQQQqqqIIIIIIII")
GETATTR_IN: Final = struct.Struct("<IIQ")
"""getattr_flags, dummy, fh."""
OPEN_IN: Final = struct.Struct("<II")
CREATE_IN: Final = struct.Struct("<IIII")
RW_IN: Final = struct.Struct("<QQIIQII")
"""fuse_read_in and fuse_write_in: fh, offset, size, flags of the request, lock_owner, flags of the file, padding."""
SETXATTR_IN: Final = struct.Struct("<II")
GETXATTR_IN: Final = struct.Struct("<II")
FSYNC_IN: Final = struct.Struct("<QII")
RELEASE_IN: Final = struct.Struct("<QIIQ")
FORGET_IN: Final = struct.Struct("<Q")
INTERRUPT_IN: Final = struct.Struct("<Q")
BATCH_FORGET_IN: Final = struct.Struct("<II")
FORGET_ONE: Final = struct.Struct("<QQ")

FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_ATIME, FATTR_MTIME = (1 << bit for bit in range(6))
FATTR_ATIME_NOW, FATTR_MTIME_NOW, FATTR_CTIME, FATTR_KILL_SUIDGID = 1 << 7, 1 << 8, 1 << 10, 1 << 11
GETATTR_FH: Final = 1 << 0
WRITE_CACHE: Final = 1 << 0
"""The bytes come out of the page cache: whoever wrote them was told that all is well. The kernel has the file's times,
and sends them by itself.
"""
WRITE_KILL_SUIDGID: Final = 1 << 2
FSYNC_FDATASYNC: Final = 1 << 0
OPEN_KILL_SUIDGID: Final = 1 << 0
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
S_NS: Final = 10**9
SECTOR_BYTES: Final = 512
BLOCK_BYTES: Final = 4096
U32: Final = 0xFFFFFFFF


class RequestContext(NamedTuple):
    """Who asks."""

    uid: int
    gid: int
    pid: int


class FileInfo(NamedTuple):
    """The answer to an open: `fh` comes back with each request on the file."""

    fh: int
    direct_io: bool = False
    keep_cache: bool = False

    def pack(self) -> bytes:
        """fuse_open_out."""
        flags = (FOPEN_DIRECT_IO if self.direct_io else 0) | (FOPEN_KEEP_CACHE if self.keep_cache else 0)
        return _OPEN.pack(self.fh, flags, 0)


class Wanted(NamedTuple):
    """What a SETATTR sets: a field that is None stays; times in ns since 1970."""

    size: int | None
    mode: int | None
    uid: int | None
    gid: int | None
    atime_ns: int | None
    mtime_ns: int | None
    ctime_ns: int | None
    kills_set_id: bool
    """The caller may not keep set-user-id and set-group-id bits over a truncate."""


def unpack_wanted(body: memoryview, now_ns: int) -> Wanted:
    """Of fuse_setattr_in; *now_ns* stands for "now" in it. The kernel sends any 64 bits of seconds."""
    valid, _, _, size, _, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, mode, _, uid, gid, _ = (
        SETATTR_IN.unpack_from(body)
    )
    atime_ns = now_ns if valid & FATTR_ATIME_NOW else clamp_time_ns(atime * S_NS + atime_ns)
    mtime_ns = now_ns if valid & FATTR_MTIME_NOW else clamp_time_ns(mtime * S_NS + mtime_ns)
    return Wanted(
        size if valid & FATTR_SIZE else None,
        mode if valid & FATTR_MODE else None,
        uid if valid & FATTR_UID else None,
        gid if valid & FATTR_GID else None,
        atime_ns if valid & FATTR_ATIME else None,
        mtime_ns if valid & FATTR_MTIME else None,
        clamp_time_ns(ctime * S_NS + ctime_ns) if valid & FATTR_CTIME else None,
        bool(valid & FATTR_KILL_SUIDGID),
    )


def pack_attributes(inode: Inode, allocated_bytes: int, attr_timeout_s: int) -> bytes:
    """fuse_attr_out."""
    atime, atime_ns = divmod(inode.atime_ns, S_NS)
    mtime, mtime_ns = divmod(inode.mtime_ns, S_NS)
    ctime, ctime_ns = divmod(inode.ctime_ns, S_NS)
    return _ATTR.pack(
        attr_timeout_s,
        0,
        0,
        inode.ino,
        inode.size,
        -(-allocated_bytes // SECTOR_BYTES),
        atime,
        mtime,
        ctime,
        atime_ns,
        mtime_ns,
        ctime_ns,
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.rdev & U32,
        BLOCK_BYTES,
        0,
    )


def pack_entry(inode: Inode, allocated_bytes: int, entry_timeout_s: int, attr_timeout_s: int) -> bytes:
    """fuse_entry_out."""
    atime, atime_ns = divmod(inode.atime_ns, S_NS)
    mtime, mtime_ns = divmod(inode.mtime_ns, S_NS)
    ctime, ctime_ns = divmod(inode.ctime_ns, S_NS)
    return _ENTRY.pack(
        inode.ino,
        0,
        entry_timeout_s,
        attr_timeout_s,
        0,
        0,
        inode.ino,
        inode.size,
        -(-allocated_bytes // SECTOR_BYTES),
        atime,
        mtime,
        ctime,
        atime_ns,
        mtime_ns,
        ctime_ns,
        inode.mode,
        inode.nlink,
        inode.uid,
        inode.gid,
        inode.rdev & U32,
        BLOCK_BYTES,
        0,
    )


def pack_no_entry(entry_timeout_s: int) -> bytes:
    """fuse_entry_out without an inode: the kernel remembers that there is no such name."""
    return _ENTRY.pack(0, 0, entry_timeout_s, *([0] * 19))


def pack_open_directory(fh: int, *, cached: bool, keep: bool) -> bytes:
    """fuse_open_out of a directory; if *cached*, the kernel keeps what is read by this handle, and lets it read what it
    has kept; unless *keep* it drops what it has kept so far.
    """
    return _OPEN.pack(fh, (FOPEN_CACHE_DIR if cached else 0) | (FOPEN_KEEP_CACHE if keep else 0), 0)
