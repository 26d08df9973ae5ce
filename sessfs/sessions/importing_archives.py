"""Archives are laid out in an empty directory, by rules of our own: nothing gets out of it, and nothing grows beyond
bounds. A member that breaks a rule refuses the whole archive, by name. Synchronous, for a process of its own.
"""

from __future__ import annotations

import base64
import bz2
import contextlib
import errno
import gzip
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from datetime import UTC, datetime
from decimal import Decimal, DecimalException
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast
from urllib.parse import unquote_to_bytes

from sessfs.errors import SessfsError
from sessfs.format.opening import ZstdError, open_zstd
from sessfs.sessions.importing_tars import COPY_BYTES, read_tar
from sessfs.types import TIME_MAX_NS, TIME_MIN_NS, clamp_time_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO

MAX_MEMBERS = 2_000_000
MAX_RATIO = 250
"""An archive may become so many times its size, which copies of one profile compressed together do not reach ..."""
FREE_BYTES = 256 << 20
"""... beyond this much."""
MAX_DEPTH = 200
NAME_MAX_BYTES = 255
TARGET_MAX_BYTES = 4095
UNIX_TIMES = struct.Struct("<HH")
UNIX_TIMES_ID = 0x5455
ENCRYPTED = 0x1
DIRECTORY_MODE = 0o700
FILE_MODE = 0o600
XATTR_PREFIX = "SCHILY.xattr."
LIBARCHIVE_XATTR_PREFIX = "LIBARCHIVE.xattr."
"""The name is quoted as in a URL then, and the value is in base64."""
KEPT_XATTRS = b"user."
XATTR_MAX_BYTES = 64 << 10
MAX_CARRIED_BYTES = 64 << 20
"""They lie in memory."""
ZIP_MAGIC = b"PK"
MAGIC_BYTES = 8
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    ZstdError,
    EOFError,
    # What the readers, and calls that set attributes, make of numbers, names and records that make no sense.
    ValueError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    struct.error,
)
_MAGIC = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"\x28\xb5\x2f\xfd", open_zstd),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
    (b"BZh", bz2.BZ2File),
)


CarriedXattrs = dict[tuple[int, int], dict[bytes, bytes]]
"""By device and inode of what has been laid out: xattrs that are not on it, but belong to it."""


class ArchiveRefused(SessfsError):
    """The archive is damaged, or holds something that is not laid out; the text names the member."""


class Limits(NamedTuple):
    """*room_bytes* is what the archive may take here; *members* and *bytes* are what it may have at all."""

    room_bytes: int
    n_members: int = MAX_MEMBERS
    ratio: int = MAX_RATIO
    free_bytes: int = FREE_BYTES


class Attributes(NamedTuple):
    """What is set once a member is written; no owner means that of this process."""

    mode: int
    mtime_ns: int
    atime_ns: int
    owner: tuple[int, int] | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


def unpack(archive: str, target: str, limits: Limits, progress: Callable[[int], None]) -> CarriedXattrs:
    """Lay *archive* out in the empty directory *target*; *progress* gets the bytes written so far. Returns the xattrs
    that the filesystem there can't hold. Raises ArchiveRefused, and OSError of the disk; the caller then removes the
    target.
    """
    with open(archive, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
        # Since it was looked at it may have become a pipe, which to open would wait for a writer.
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ArchiveRefused(f"{archive} is no regular file")
        staging = _Staging(target, os.fstat(file.fileno()).st_size, limits, progress)
        try:
            magic = file.read(MAGIC_BYTES)
            file.seek(0)
            if magic.startswith(ZIP_MAGIC):
                _unpack_zip(file, staging)
            else:
                _unpack_tar(file, magic, staging)
            staging.finish()
        except _BROKEN as exc:
            raise ArchiveRefused(
                f"{archive} is damaged, or no tar (plain, .gz, .zst, .xz, .bz2) or zip{staging.at}: {exc}"
            ) from exc
        except OSError as exc:
            # Of the disk it has a number; of bz2 it has none.
            if exc.errno is not None:
                raise
            raise ArchiveRefused(f"{archive} is damaged{staging.at}: {exc}") from exc
        return staging.carried


class _Staging:
    """The directory that is filled, and the rules."""

    def __init__(self, target: str, archive_bytes: int, limits: Limits, progress: Callable[[int], None]) -> None:
        self._target = os.fsencode(target)
        self._limits = limits
        self._bound = archive_bytes * limits.ratio + limits.free_bytes
        self._progress = progress
        self._written = 0
        self._members = 0
        self._directories: dict[tuple[bytes, ...], Attributes | None] = {(): None}
        self._files: set[tuple[bytes, ...]] = set()
        self._links: set[tuple[bytes, ...]] = set()
        self._newest_ns: dict[tuple[bytes, ...], int] = {}
        self._name = b""
        self._carried_bytes = 0
        self.carried: CarriedXattrs = {}
        """Xattrs that the filesystem of the directory can't hold, a few KiB a file on ext4; a mount can."""

    @property
    def at(self) -> str:
        """Where in the archive it is, for a message."""
        return f", near {_show(self._name)!r}" if self._name else ""

    def refuse(self, why: str) -> ArchiveRefused:
        """The error for the member that is at hand."""
        return ArchiveRefused(f"the archive is refused: member {_show(self._name)!r} {why}")

    def begin(self, name: bytes, declared: int) -> tuple[bytes, ...]:
        """The path of the next member, which says that it has so many bytes."""
        self._name = name
        self._members += 1
        if self._members > self._limits.n_members:
            raise self.refuse(f"is one more than {self._limits.n_members}")
        self._check_size(declared)
        if name.startswith(b"/"):
            raise self.refuse("has an absolute path")
        path = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
        if b".." in path or b"\0" in name:
            raise self.refuse("leads out of the archive's folder")
        if len(path) > MAX_DEPTH or any(len(part) > NAME_MAX_BYTES for part in path):
            raise self.refuse("has a path that is too long")
        return path

    def _check_size(self, more: int) -> None:
        size = self._written + more
        if size > self._bound:
            raise self.refuse(
                f"makes it {size} bytes, more than {self._limits.ratio} times the archive's size: it may be a bomb"
            )
        if size > self._limits.room_bytes:
            raise self.refuse(f"makes it {size} bytes, and there is room for {self._limits.room_bytes}")

    def count_read(self, n_bytes: int) -> None:
        """So much of a tar was read, headers included. Raises ArchiveRefused when it is too much."""
        if n_bytes > self._bound:
            raise ArchiveRefused(
                f"the archive is refused: it becomes more than {self._limits.ratio} times its size{self.at}: "
                "it may be a bomb"
            )

    def _make_parents(self, path: tuple[bytes, ...]) -> None:
        for depth in range(1, len(path)):
            parent = path[:depth]
            if parent in self._directories:
                continue
            if parent in self._files or parent in self._links:
                raise self.refuse(f"lies below {_show(b'/'.join(parent))!r}, which is no directory")
            os.mkdir(self._path(parent), DIRECTORY_MODE)
            self._directories[parent] = None

    def _path(self, path: tuple[bytes, ...]) -> bytes:
        return os.path.join(self._target, *path)

    def _check_new(self, path: tuple[bytes, ...]) -> None:
        if not path:
            raise self.refuse("has no name")
        if path in self._files or path in self._links or path in self._directories:
            raise self.refuse("is there twice")

    def add_directory(self, path: tuple[bytes, ...], attributes: Attributes) -> None:
        """A directory; one that was made for what lies in it gets its attributes. Of the archive's own folder, which
        some name more than once, the last count.
        """
        if path and (self._directories.get(path) is not None or path in self._files or path in self._links):
            raise self.refuse("is there twice")
        self._make_parents(path)
        if path not in self._directories:
            os.mkdir(self._path(path), DIRECTORY_MODE)
        self._directories[path] = attributes

    def add_file(self, path: tuple[bytes, ...], content: IO[bytes], attributes: Attributes) -> None:
        """A regular file."""
        self._check_new(path)
        self._make_parents(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._path(path), flags, FILE_MODE)
        try:
            while block := content.read(COPY_BYTES):
                self._check_size(len(block))
                _write(fd, block)
                self._written += len(block)
                self._progress(self._written)
            self._dress(fd, attributes)
        finally:
            os.close(fd)
        self._files.add(path)
        self._note_time(path, attributes.mtime_ns)

    def add_symlink(self, path: tuple[bytes, ...], target: bytes, attributes: Attributes) -> None:
        """A symbolic link; where it may lead is looked at with the session it lies in."""
        self._check_new(path)
        self._make_parents(path)
        if not target or len(target) > TARGET_MAX_BYTES or b"\0" in target:
            raise self.refuse("is a link to nowhere")
        where = self._path(path)
        os.symlink(target, where)
        self._own(where, attributes)
        os.utime(where, ns=(attributes.atime_ns, attributes.mtime_ns), follow_symlinks=False)
        self._links.add(path)
        self._note_time(path, attributes.mtime_ns)

    def add_hardlink(self, path: tuple[bytes, ...], target: tuple[bytes, ...]) -> None:
        """One more name for a file that came before."""
        self._check_new(path)
        if target not in self._files:
            raise self.refuse(f"is a hard link to {_show(b'/'.join(target))!r}, which is no file before it")
        self._make_parents(path)
        os.link(self._path(target), self._path(path), follow_symlinks=False)
        self._files.add(path)

    def _note_time(self, path: tuple[bytes, ...], mtime_ns: int) -> None:
        """*path* has that time: the directory that it lies in is as new, if the archive does not say how old it is."""
        self._newest_ns[path[:-1]] = max(mtime_ns, self._newest_ns.get(path[:-1], mtime_ns))

    def finish(self) -> None:
        """Attributes of directories, deepest first: what was made in them since would change their times. Those that
        the archive says nothing of get the same each time, so that what was imported is known again.
        """
        for path in sorted(self._directories, key=len, reverse=True):
            newest_ns = self._newest_ns.get(path, 0)
            attributes = self._directories[path] or Attributes(DIRECTORY_MODE, newest_ns, newest_ns)
            self._name = b"/".join(path) or b"."
            fd = os.open(self._path(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                self._dress(fd, attributes)
            finally:
                os.close(fd)
            if path:
                self._note_time(path, attributes.mtime_ns)

    def _dress(self, fd: int, attributes: Attributes) -> None:
        self._own(fd, attributes)
        for name, value in attributes.xattrs:
            self._set_xattr(fd, name, value)
        os.fchmod(fd, attributes.mode)
        os.utime(fd, ns=(attributes.atime_ns, attributes.mtime_ns))

    def _own(self, where: int | bytes, attributes: Attributes) -> None:
        if attributes.owner is None:
            return
        try:
            os.chown(where, *attributes.owner, follow_symlinks=isinstance(where, int))
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            uid, gid = attributes.owner
            raise self.refuse(
                f"belongs to {uid}:{gid}, which the container that the daemon runs in does not have: run it outside"
            ) from exc

    def _set_xattr(self, fd: int, name: bytes, value: bytes) -> None:
        is_name = len(KEPT_XATTRS) < len(name) <= NAME_MAX_BYTES and b"\0" not in name
        if not is_name or len(value) > XATTR_MAX_BYTES:
            raise self.refuse(f"has an xattr that no file can have, {_show(name[:NAME_MAX_BYTES])!r}")
        try:
            os.setxattr(fd, name, value)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.E2BIG, errno.ENOTSUP):
                raise
            self._carried_bytes += len(name) + len(value)
            if self._carried_bytes > MAX_CARRIED_BYTES:
                raise self.refuse(
                    f"has xattrs that the disk of the state directory can't hold ({exc.strerror}), with others before "
                    f"more than {MAX_CARRIED_BYTES} bytes: unpack it on a disk that can, and import that"
                ) from exc
            found = os.fstat(fd)
            self.carried.setdefault((found.st_dev, found.st_ino), {})[name] = value


def _write(fd: int, block: bytes) -> None:
    left = memoryview(block)
    while left:
        left = left[os.write(fd, left) :]


# -- tar


def _unpack_tar(file: BinaryIO, magic: bytes, staging: _Staging) -> None:
    stream = next((opener(file) for start, opener in _MAGIC if magic.startswith(start)), file)
    for member, opened in read_tar(cast("IO[bytes]", stream), staging.count_read):
        _add_member(member, opened, staging)


def _add_member(member: tarfile.TarInfo, opened: Callable[[], IO[bytes]], staging: _Staging) -> None:
    path = staging.begin(os.fsencode(member.name), member.size if member.isreg() else 0)
    attributes = _tar_attributes(member)
    if member.isdir():
        staging.add_directory(path, attributes)
    elif member.issym():
        staging.add_symlink(path, os.fsencode(member.linkname), attributes)
    elif member.islnk():
        linkname = os.fsencode(member.linkname)
        target = tuple(part for part in linkname.split(b"/") if part not in (b"", b"."))
        if linkname.startswith(b"/") or b".." in target:
            raise staging.refuse(f"is a hard link to {_show(linkname)!r}, outside of the archive")
        staging.add_hardlink(path, target)
    elif member.isreg():
        with opened() as content:
            staging.add_file(path, content, attributes)
    else:
        raise staging.refuse("is a device, a named pipe, or of an unknown kind")


def _tar_attributes(member: tarfile.TarInfo) -> Attributes:
    mtime_ns = _nanoseconds(member.pax_headers.get("mtime"), member.mtime)
    return Attributes(
        member.mode & 0o777,
        mtime_ns,
        _nanoseconds(member.pax_headers.get("atime"), mtime_ns / 1e9) if "atime" in member.pax_headers else mtime_ns,
        (member.uid, member.gid) if os.geteuid() == 0 else None,
        tuple(_tar_xattrs(member).items()),
    )


def _tar_xattrs(member: tarfile.TarInfo) -> dict[bytes, bytes]:
    """Those that are kept, by name. bsdtar writes each in both ways, sessfs what GNU tar can't read in libarchive's."""
    xattrs = {}
    for key, value in member.pax_headers.items():
        if key.startswith(XATTR_PREFIX):
            xattrs[_pax_bytes(key.removeprefix(XATTR_PREFIX))] = _pax_bytes(value)
        elif key.startswith(LIBARCHIVE_XATTR_PREFIX):
            # libarchive leaves out the padding of base64.
            packed = _pax_bytes(value).rstrip(b"=")
            name = unquote_to_bytes(_pax_bytes(key.removeprefix(LIBARCHIVE_XATTR_PREFIX)))
            xattrs[name] = base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    return {name: value for name, value in xattrs.items() if name.startswith(KEPT_XATTRS)}


def _pax_bytes(text: str) -> bytes:
    """As it stands in the archive."""
    return text.encode("utf-8", "surrogateescape")


def _nanoseconds(exact: str | None, seconds: float) -> int:
    """Of a time in seconds as pax writes it, which a float would cut short. An archive can say anything."""
    with contextlib.suppress(DecimalException, ValueError, OverflowError):
        if exact is not None:
            # Clamped before it is an integer: of 1e999999 that would have a million digits.
            return int(min(max(Decimal(exact) * 1_000_000_000, Decimal(TIME_MIN_NS)), Decimal(TIME_MAX_NS)))
    with contextlib.suppress(ValueError, OverflowError):
        return clamp_time_ns(int(seconds) * 1_000_000_000)
    return 0


# -- zip


def _unpack_zip(file: BinaryIO, staging: _Staging) -> None:
    try:
        opened = zipfile.ZipFile(file)
    except UnicodeDecodeError as exc:
        raise ArchiveRefused(
            f"the archive is refused: member {_show(bytes(exc.object))!r} says that its name is UTF-8, and it is not"
        ) from exc
    with opened as archive:
        for member in archive.infolist():
            _add_zip_member(archive, member, staging)


def _add_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, staging: _Staging) -> None:
    raw = member.orig_filename.encode("utf-8" if member.flag_bits & 0x800 else "cp437", "surrogateescape")
    path = staging.begin(raw, member.file_size)
    if member.flag_bits & ENCRYPTED:
        raise staging.refuse("is encrypted")
    mode = member.external_attr >> 16
    kind = stat.S_IFMT(mode)
    is_directory = raw.endswith(b"/")
    times = _zip_mtime_ns(member)
    permissions = mode & 0o777 or (DIRECTORY_MODE if is_directory else FILE_MODE)
    attributes = Attributes(permissions, times, times)
    if is_directory:
        staging.add_directory(path, attributes)
    elif kind == stat.S_IFLNK:
        with archive.open(member) as content:
            staging.add_symlink(path, content.read(TARGET_MAX_BYTES + 1), attributes)
    elif kind in (0, stat.S_IFREG):
        with archive.open(member) as content:
            staging.add_file(path, content, attributes)
    else:
        raise staging.refuse("is a device, a named pipe, or of an unknown kind")


def _zip_mtime_ns(member: zipfile.ZipInfo) -> int:
    """The time in the field for Unix times; else the one of DOS, taken for UTC, as archiver (RemoteAuth) writes it."""
    for header, value in _extra_fields(member.extra):
        if header == UNIX_TIMES_ID and len(value) >= 5 and value[0] & 1:
            return int.from_bytes(value[1:5], "little", signed=True) * 1_000_000_000
    with contextlib.suppress(ValueError, OverflowError):
        return int(datetime(*member.date_time, tzinfo=UTC).timestamp()) * 1_000_000_000
    return 0


def _extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + UNIX_TIMES.size <= len(extra):
        header, length = UNIX_TIMES.unpack_from(extra, at)
        at += UNIX_TIMES.size
        yield header, extra[at : at + length]
        at += length


def _show(name: bytes) -> str:
    return name.decode(errors="replace")
