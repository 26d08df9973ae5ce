"""System calls that Python does not wrap, and the few steps that nearly every test of a filesystem takes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import random
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
MNT_DETACH = 2

_AT_FDCWD = -100
_AT_SYMLINK_FOLLOW = 0x400
_libc = ctypes.CDLL(None, use_errno=True)


class Dirent(ctypes.Structure):
    """struct dirent of glibc on 64-bit Linux."""

    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    )


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(Dirent)
_libc.telldir.restype = ctypes.c_long
for _function in (_libc.readdir, _libc.rewinddir, _libc.closedir, _libc.telldir):
    _function.argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.pwrite.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_long]
_libc.pwrite.restype = ctypes.c_ssize_t
_libc.getxattr.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
_libc.getxattr.restype = ctypes.c_ssize_t
_libc.listxattr.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
_libc.listxattr.restype = ctypes.c_ssize_t
_libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(source: Path | bytes, target: Path | bytes, flags: int) -> None:
    """renameat2(2) with *flags*; raises OSError."""
    _checked(_libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags))


def link_descriptor(fd: int, target: Path) -> None:
    """linkat(2) of an open file, found through /proc, to a new name; raises OSError."""
    source = f"/proc/self/fd/{fd}".encode()
    _checked(_libc.linkat(_AT_FDCWD, source, _AT_FDCWD, os.fsencode(target), _AT_SYMLINK_FOLLOW))


def syncfs(fd: int) -> None:
    """syncfs(2): everything dirty on the filesystem of *fd* has been handed down on return; raises OSError."""
    _checked(_libc.syncfs(fd))


def umount2(path: Path, flags: int) -> None:
    """umount2(2); raises OSError."""
    _checked(_libc.umount2(os.fsencode(path), flags))


def raw_open(path: Path, flags: int, mode: int) -> int:
    """open(2) as C programs have it: EINTR is the caller's business. Returns the descriptor, or raises OSError."""
    return _checked(_libc.open(os.fsencode(path), flags, mode))


def raw_pwrite(fd: int, content: bytes, offset: int) -> int:
    """pwrite(2) without Python's own retry after a signal. Returns the bytes written, or raises OSError."""
    return _checked(_libc.pwrite(fd, content, len(content), offset))


def getxattr_into(path: Path, name: str, size_bytes: int) -> int:
    """getxattr(2) with a buffer of *size_bytes*: the length of the value, or OSError (ERANGE if it does not fit)."""
    buffer = ctypes.create_string_buffer(max(size_bytes, 1))
    return _checked(_libc.getxattr(os.fsencode(path), name.encode(), buffer, size_bytes))


def listxattr_into(path: Path, size_bytes: int) -> int:
    """listxattr(2) with a buffer of *size_bytes*: the length of the list, or OSError."""
    buffer = ctypes.create_string_buffer(max(size_bytes, 1))
    return _checked(_libc.listxattr(os.fsencode(path), buffer, size_bytes))


class DirStream:
    """opendir(3) and what belongs to it: telldir and seekdir cookies, d_ino and d_type are seen as C programs do."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        if not self._stream:
            _checked(-1)

    def read(self) -> tuple[bytes, int, int] | None:
        """Return the next entry as (name, d_ino, d_type), or None at the end."""
        entry = _libc.readdir(self._stream)
        if not entry:
            return None
        return entry.contents.d_name, entry.contents.d_ino, entry.contents.d_type

    def tell(self) -> int:
        """Return telldir(3)'s cookie for the entry that read() returns next."""
        return int(_libc.telldir(self._stream))

    def seek(self, cookie: int) -> None:
        """seekdir(3)."""
        _libc.seekdir(self._stream, cookie)

    def rewind(self) -> None:
        """rewinddir(3)."""
        _libc.rewinddir(self._stream)

    def names(self) -> list[bytes]:
        """Return the names from here to the end, without . and .."""
        found = []
        while (entry := self.read()) is not None:
            if entry[0] not in (b".", b".."):
                found.append(entry[0])
        return found

    def close(self) -> None:
        """closedir(3)."""
        _libc.closedir(self._stream)


def kernel_maps_direct_io() -> bool:
    """True where a file opened with direct I/O can be mapped shared: Linux 6.6 and later."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor)) >= (6, 6)


def errno_of(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> int:
    """Call and return 0, or the errno of the OSError it raised. A descriptor that it returned is closed."""
    try:
        result = function(*arguments, **keywords)
    except OSError as error:
        return error.errno or errno.EIO
    if function is os.open:
        os.close(result)
    return 0


def name_of(number: int) -> str:
    """Return ENOENT for 2, OK for 0."""
    return errno.errorcode.get(number, "OK" if number == 0 else str(number))


def write_file(path: Path | bytes, content: bytes, *, mode: int = 0o644, extra_flags: int = os.O_TRUNC) -> None:
    """Create or open *path* for writing and write all of *content* at once."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | extra_flags, mode)
    try:
        written = 0
        while written < len(content):
            written += os.write(fd, content[written:])
    finally:
        os.close(fd)


def read_file(path: Path | bytes) -> bytes:
    """Return all of it."""
    with open(path, "rb") as file:
        return file.read()


def noise(seed: int, size_bytes: int) -> bytes:
    """Return incompressible bytes, the same for the same seed."""
    return random.Random(seed).randbytes(size_bytes)


def prose(seed: int, size_bytes: int) -> bytes:
    """Return compressible bytes, the same for the same seed."""
    source = random.Random(seed)
    words = [source.randbytes(source.randint(2, 9)).hex().encode() for _ in range(200)]
    text = bytearray()
    while len(text) < size_bytes:
        text += source.choice(words) + b" "
    return bytes(text[:size_bytes])


@dataclass(frozen=True)
class Node:
    """What a copy of a tree must have in common with the original, for one name."""

    kind: int
    mode: int
    uid: int
    gid: int
    nlink: int
    size_bytes: int
    mtime_ns: int
    rdev: int
    target: bytes
    digest: str
    xattrs: tuple[tuple[str, bytes], ...]


def node(path: bytes) -> Node:
    """Return what is at *path*, without following a symlink. Size and rdev are 0 where they say nothing."""
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    return Node(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        nlink=status.st_nlink,
        size_bytes=status.st_size if kind in (stat.S_IFREG, stat.S_IFLNK) else 0,
        mtime_ns=status.st_mtime_ns,
        rdev=status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        target=os.readlink(path) if kind == stat.S_IFLNK else b"",
        digest=hashlib.sha256(read_file(path)).hexdigest() if kind == stat.S_IFREG else "",
        xattrs=tuple(
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(os.listxattr(path, follow_symlinks=False))
            if name.startswith("user.")
        ),
    )


def walk(root: Path) -> Iterator[bytes]:
    """Yield every name below *root*, relative to it, parents first, sorted."""
    pending = [b""]
    while pending:
        relative = pending.pop()
        here = os.path.join(os.fsencode(root), relative)
        for name in sorted(os.listdir(here), reverse=True):
            below = os.path.join(relative, name)
            if stat.S_ISDIR(os.lstat(os.path.join(here, name)).st_mode):
                pending.append(below)
            yield below


def tree(root: Path) -> dict[bytes, Node]:
    """Return all that is below *root*; two equal trees are the same but for inode numbers, ctime and atime."""
    return {relative: node(os.path.join(os.fsencode(root), relative)) for relative in walk(root)}


_PRELUDE = """
import ctypes, errno, fcntl, json, mmap, os, sqlite3, stat, struct, sys, time
def err(function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except OSError as error:
        return error.errno
    return 0
def become(uid, gid, groups=()):
    os.setgroups(list(groups)); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
def say(value):
    sys.stdout.write(json.dumps(value) + "\\n"); sys.stdout.flush()
def wait():
    return json.loads(sys.stdin.readline())
"""


class Child:
    """Another process, whose working directory is *directory*, running Python *body*.

    The body has err(), say(value), wait() and become(uid, gid, groups); hear() and tell() are their other ends.
    Its working directory is entered before become(), so the parents of *directory* need not be searchable for it.
    """

    def __init__(self, directory: Path, body: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PRELUDE + body, *arguments],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def hear(self) -> Any:
        """Return what the child says next; AssertionError if it ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the child ended with status {self._process.wait()}"
        return json.loads(line)

    def tell(self, value: str | int | None = None) -> None:
        """Let the child's wait() return *value*."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value) + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def finish(self, timeout_s: float = 60) -> None:
        """Wait for its end, which must be exit status 0."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(timeout_s) == 0


def run_child(directory: Path, body: str, *arguments: str, timeout_s: float = 60) -> Any:
    """Run *body* as in Child to its end; return what it said first, or None."""
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + body, *arguments],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f"the child ended with status {done.returncode}"
    return json.loads(done.stdout.splitlines()[0]) if done.stdout else None


def as_nobody(directory: Path, body: str, *, uid: int = 65534, gid: int = 65534, groups: tuple[int, ...] = ()) -> Any:
    """run_child() without privileges: as user *uid* with no capability. `umask` is 022."""
    return run_child(directory, f"become({uid}, {gid}, {groups!r})\nos.umask(0o22)\n" + body)


def eventually(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Poll *condition* each 10 ms until it is true (True) or *timeout_s* is over (False)."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def forget_failed_writes(path: Path) -> None:
    """Have the kernel report pages that it gave up here, to nobody, so that it does not report them to the unmount."""
    fd = os.open(path, os.O_RDONLY)
    try:
        ctypes.CDLL(None).syncfs(fd)
    finally:
        os.close(fd)
