"""What an export is written as: a directory, a tar, a zip. Each writer takes nodes, parents first, and their content.

A directory keeps all there is, holes too; a tar (PAX) all but holes and sockets; a zip names, modes, symlinks and times
to the second. What could not be kept is in the writer's notes.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import stat
import struct
import tarfile
import time
import zipfile
from collections import Counter
from typing import TYPE_CHECKING, BinaryIO, Protocol
from urllib.parse import quote_from_bytes

from sessfs.errors import UsageError
from sessfs.format.zstdstream import zstd_writer
from sessfs.sessions.trees import TreeNode, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    Pieces = Iterator[tuple[int, bytes]]

HOLE_BYTES = 4096
"""A run of zeros of this size, aligned, is left out of a file that has holes."""
ZEROS_BYTES = 1 << 20
DOS_FIRST = (1980, 1, 1, 0, 0, 0)
DOS_LAST = (2107, 12, 31, 23, 59, 58)
ZIP_UNIX = 3
ZIP_DIRECTORY = 0x10
ZIP_TIMES = struct.Struct("<HHBi")
ZIP_TIMES_ID = 0x5455
TIME_MAX_S = (1 << 31) - 1
KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


class Writer(Protocol):
    """Writes one export. Any method raises OSError or SessfsError; then what was written is worth nothing."""

    notes: Counter[str]
    """What could not be kept, and how often."""

    def require(self, node: TreeNode) -> None:
        """Raise UsageError when this format can't hold the node at all; asked of all nodes before the first `add`."""

    def add(self, node: TreeNode, pieces: Pieces) -> None:
        """Write the node; *pieces* are (offset, bytes) of a regular file, in order, holes left out."""

    def link(self, node: TreeNode, first: TreeNode) -> bool:
        """Write *node*, another name of *first*, which was added. False where the format has no hard links: then it is
        to be added like any other.
        """

    def finish(self) -> None:
        """Nothing more comes: end the file, set what is set last."""

    def abandon(self) -> None:
        """Give up: close what is open. May follow `finish`."""


def kind_of(node: TreeNode) -> str:
    """What sort of special file it is."""
    return KINDS.get(stat.S_IFMT(node.mode), "file of unknown kind")


def dense(pieces: Pieces, size: int) -> Iterator[bytes]:
    """The *size* bytes of content, zeros where *pieces* have none."""
    at = 0
    for offset, piece in pieces:
        yield from _zeros(offset - at)
        yield piece
        at = offset + len(piece)
    yield from _zeros(size - at)


def _zeros(n_bytes: int) -> Iterator[bytes]:
    for start in range(0, n_bytes, ZEROS_BYTES):
        yield bytes(min(ZEROS_BYTES, n_bytes - start))


# -- a directory


class DirectoryWriter:
    """Writes into *directory*, which is there and empty. Implements Writer. Owners are kept by root alone."""

    def __init__(self, directory: bytes) -> None:
        self.notes: Counter[str] = Counter()
        self._directory = directory
        self._directories: list[TreeNode] = []
        self._is_root = os.geteuid() == 0

    def _at(self, node: TreeNode) -> bytes:
        return os.path.join(self._directory, node.path) if node.path else self._directory

    def require(self, node: TreeNode) -> None:
        """See Writer: it holds everything."""

    def add(self, node: TreeNode, pieces: Pieces) -> None:
        """See Writer."""
        path = self._at(node)
        if node.is_dir:
            if node.path:
                os.mkdir(path, 0o700)
            self._directories.append(node)
            return
        if node.is_symlink:
            os.symlink(node.target or b"", path)
        elif node.is_file:
            self._write(path, node, pieces)
        elif not self._make_special(path, node):
            return
        self._set_attributes(path, node)

    def _write(self, path: bytes, node: TreeNode, pieces: Pieces) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb", buffering=0) as file:
            sparse = node.allocated < node.size
            for offset, piece in pieces:
                for at, part in _data_in(piece, offset) if sparse else [(offset, memoryview(piece))]:
                    _pwrite_all(fd, part, at)
            file.truncate(node.size)

    def _make_special(self, path: bytes, node: TreeNode) -> bool:
        try:
            os.mknod(path, node.mode, node.rdev)
        except PermissionError:
            self.notes[f"a {kind_of(node)} was left out: only root can make one"] += 1
            return False
        return True

    def _set_attributes(self, path: bytes, node: TreeNode) -> None:
        if self._is_root:
            os.chown(path, node.uid, node.gid, follow_symlinks=False)
        if not node.is_symlink:
            for name, value in node.xattrs.items():
                try:
                    os.setxattr(path, name, value)
                except OSError as exc:
                    if exc.errno not in (errno.ENOTSUP, errno.ENOSPC, errno.E2BIG):
                        raise
                    self.notes["an xattr was lost: the filesystem there can't hold it"] += 1
            # Last: who is not root can set no xattr on what it may not write.
            os.chmod(path, stat.S_IMODE(node.mode))
        os.utime(path, ns=(node.atime_ns, node.mtime_ns), follow_symlinks=False)

    def link(self, node: TreeNode, first: TreeNode) -> bool:
        """See Writer."""
        os.link(self._at(first), self._at(node), follow_symlinks=False)
        return True

    def finish(self) -> None:
        """See Writer: modes and times of directories, from the leaves up."""
        for node in reversed(self._directories):
            self._set_attributes(self._at(node), node)

    def abandon(self) -> None:
        """See Writer."""


def _data_in(piece: bytes, offset: int) -> Iterator[tuple[int, memoryview]]:
    """(offset, bytes) of *piece*, which lies at *offset*, without aligned blocks of zeros."""
    view, begin, at = memoryview(piece), 0, 0
    while at < len(piece):
        end = min(at + HOLE_BYTES - (offset + at) % HOLE_BYTES, len(piece))
        if not any(view[at:end]):
            if begin < at:
                yield offset + begin, view[begin:at]
            begin = end
        at = end
    if begin < at:
        yield offset + begin, view[begin:at]


def _pwrite_all(fd: int, part: memoryview, offset: int) -> None:
    while part:
        n = os.pwrite(fd, part, offset)
        part, offset = part[n:], offset + n


# -- a tar


class TarWriter:
    """Writes a PAX tar, which is a stream, to *raw*; compressed when asked to. Implements Writer."""

    def __init__(self, raw: BinaryIO, *, compress: bool) -> None:
        self.notes: Counter[str] = Counter()
        self._stack = contextlib.ExitStack()
        file = self._stack.enter_context(zstd_writer(raw)) if compress else raw
        self._tar = tarfile.open(  # noqa: SIM115 - closed by finish
            fileobj=file,
            mode="w|",
            format=tarfile.PAX_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
        )

    def require(self, node: TreeNode) -> None:
        """See Writer: sockets are left out."""

    def _info(self, node: TreeNode) -> tarfile.TarInfo:
        info = tarfile.TarInfo(os.fsdecode(node.path or b"."))
        info.mode = stat.S_IMODE(node.mode)
        info.uid, info.gid = node.uid, node.gid
        info.mtime = node.mtime_ns // 10**9
        info.pax_headers = {"mtime": _decimal(node.mtime_ns), "atime": _decimal(node.atime_ns)}
        info.pax_headers |= dict(_pax_xattr(name, value) for name, value in node.xattrs.items())
        return info

    def add(self, node: TreeNode, pieces: Pieces) -> None:
        """See Writer."""
        info = self._info(node)
        kind = stat.S_IFMT(node.mode)
        if node.is_file:
            info.size = node.size
            self._tar.addfile(info, _Joined(dense(pieces, node.size)))
            return
        if node.is_dir:
            info.type = tarfile.DIRTYPE
        elif node.is_symlink:
            info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(node.target or b"")
        elif kind == stat.S_IFIFO:
            info.type = tarfile.FIFOTYPE
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            info.type = tarfile.CHRTYPE if kind == stat.S_IFCHR else tarfile.BLKTYPE
            info.devmajor, info.devminor = os.major(node.rdev), os.minor(node.rdev)
        else:
            self.notes[f"a {kind_of(node)} was left out: a tar holds none"] += 1
            return
        self._tar.addfile(info)

    def link(self, node: TreeNode, first: TreeNode) -> bool:
        """See Writer."""
        info = self._info(node)
        info.type, info.linkname = tarfile.LNKTYPE, os.fsdecode(first.path)
        self._tar.addfile(info)
        return True

    def finish(self) -> None:
        """See Writer."""
        self._tar.close()
        self._stack.close()

    def abandon(self) -> None:
        """See Writer."""
        with contextlib.suppress(Exception):
            self._stack.close()


def _decimal(time_ns: int) -> str:
    """Nanoseconds as seconds with nine decimals, exactly."""
    sign, rest = ("-", -time_ns) if time_ns < 0 else ("", time_ns)
    return f"{sign}{rest // 10**9}.{rest % 10**9:09d}"


def _pax_xattr(name: bytes, value: bytes) -> tuple[str, str]:
    """Key and value of an xattr as GNU tar and libarchive read them; as libarchive alone does where the name can't be
    part of a key, which is UTF-8 and ends at the first `=`.
    """
    plain = name.decode("utf-8", "replace")
    if plain.encode() == name and "=" not in plain:
        return f"SCHILY.xattr.{plain}", value.decode("utf-8", "surrogateescape")
    return f"LIBARCHIVE.xattr.{quote_from_bytes(name)}", base64.b64encode(value).decode("ascii")


class _Joined:
    """A file of the bytes that an iterator gives, to be read from its start to its end."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._left = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        """Exactly *size* bytes while there are so many: tarfile takes a short read for the end."""
        found = bytearray()
        while len(found) < size:
            if not self._left:
                part = next(self._parts, None)
                if part is None:
                    break
                self._left = memoryview(part)
            taken = self._left[: size - len(found)]
            found += taken
            self._left = self._left[len(taken) :]
        return bytes(found)


# -- a zip


class ZipWriter:
    """Writes a zip to *raw*, which must be seekable: then no entry needs a data descriptor, which readers of streams,
    such as unzipper's Extract, handle badly. Implements Writer.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self.notes: Counter[str] = Counter()
        self._zip = zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED)
        self._closed = False

    def require(self, node: TreeNode) -> None:
        """See Writer: names in a zip are UTF-8."""
        try:
            node.path.decode()
        except UnicodeDecodeError as exc:
            raise UsageError(
                f"a zip can't hold {show(node.path)}, whose name is not UTF-8: export to a tar or a directory"
            ) from exc

    def _info(self, node: TreeNode) -> zipfile.ZipInfo:
        seconds = node.mtime_ns // 10**9
        when = time.gmtime(max(min(seconds, 1 << 32), 0))[:6]
        info = zipfile.ZipInfo(node.path.decode() + ("/" if node.is_dir else ""), min(max(when, DOS_FIRST), DOS_LAST))
        info.create_system = ZIP_UNIX
        info.external_attr = (node.mode & 0xFFFF) << 16 | (ZIP_DIRECTORY if node.is_dir else 0)
        info.compress_type = zipfile.ZIP_DEFLATED if node.is_file else zipfile.ZIP_STORED
        if abs(seconds) <= TIME_MAX_S:
            # Seconds of UTC, which the DOS time (local, even seconds) is not.
            info.extra = ZIP_TIMES.pack(ZIP_TIMES_ID, 5, 1, seconds)
        return info

    def add(self, node: TreeNode, pieces: Pieces) -> None:
        """See Writer."""
        if not node.path:
            return
        info = self._info(node)
        if node.is_file:
            info.file_size = node.size
            if node.xattrs:
                self.notes["the xattrs of a file were lost: a zip holds none"] += 1
            with self._zip.open(info, "w") as entry:
                for part in dense(pieces, node.size):
                    entry.write(part)
        elif node.is_dir or node.is_symlink:
            content = node.target or b""
            info.file_size = len(content)
            with self._zip.open(info, "w") as entry:
                entry.write(content)
        else:
            self.notes[f"a {kind_of(node)} was left out: a zip holds none"] += 1

    def link(self, node: TreeNode, first: TreeNode) -> bool:
        """See Writer: a zip has no hard links."""
        return False

    def finish(self) -> None:
        """See Writer."""
        self._zip.close()
        self._closed = True

    def abandon(self) -> None:
        """See Writer."""
        if not self._closed:
            with contextlib.suppress(Exception):
                self._zip.close()
