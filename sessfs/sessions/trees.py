"""A session's tree for reading, wherever it lies: a directory, a volume, a manifest. What exports and readers work on.

Paths are bytes, relative to the session, with `/` between names; the session's own directory is the empty path.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sessfs.errors import PosixError, RemoteCorrupt, SessfsError
from sessfs.format.manifest import NodeRecord
from sessfs.format.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from sessfs.format.manifest import Manifest
    from sessfs.types import ChunkId

    Fetch = Callable[[Collection[ChunkId]], Mapping[ChunkId, bytes]]

XATTR_PREFIX = b"user."
BLOCK_BYTES = 512
WARM_BYTES = 16 << 20
"""`Tree.warm` brings about this many bytes of content near, whatever it is asked for."""


class TreeNode(NamedTuple):
    """One name of a session with the attributes of its inode; nodes of one *ino* are hard links of one another.
    *allocated*: bytes of content that are not holes.
    """

    path: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    allocated: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    target: bytes | None
    xattrs: Mapping[bytes, bytes]
    """Those of the class `user.`."""

    @property
    def is_dir(self) -> bool:
        """True for a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """True for a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """True for a symlink."""
        return stat.S_ISLNK(self.mode)


class Tree(Protocol):
    """A session as it is read. Blocks; one thread at a time."""

    def walk(self) -> Iterator[TreeNode]:
        """Every name, the session's directory first, a directory before what is in it, neighbours in order of their
        bytes. Raises SessfsError.
        """

    def find(self, path: bytes) -> TreeNode:
        """The node at *path*; symlinks are not followed. Raises PosixError: ENOENT, ENOTDIR."""

    def spans(self, node: TreeNode) -> Iterator[tuple[int, int]]:
        """The ranges [start, end) of a file's content that may be other than zeros, in order."""

    def read(self, node: TreeNode, offset: int, length: int) -> bytes:
        """The bytes of [offset, offset + length) below the file's size; all of them. Raises SessfsError when they
        can't be had, never returning others.
        """

    def warm(self, nodes: Sequence[TreeNode]) -> None:
        """The contents of these files will be read next: bring them near, as far as WARM_BYTES. Raises as `read`."""

    def close(self) -> None:
        """Give up what is held."""


def normalize(path: bytes) -> bytes:
    """*path* without needless slashes and dots. Raises PosixError (EINVAL) for one that is absolute or has `..`."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if path.startswith(b"/") or b".." in parts or b"\0" in path:
        raise PosixError(errno.EINVAL, f"{show(path)} is not a path within a session: leave away `/` in front and `..`")
    return b"/".join(parts)


def show(path: bytes) -> str:
    """*path* for an error message."""
    return path.decode(errors="replace") or "."


def missing(path: bytes) -> PosixError:
    """The error for a path that is not there."""
    return PosixError(errno.ENOENT, f"{show(path)} is not in the session")


class DirectoryTree:
    """A session that lies, readable, in a directory, as one of a mount does. Implements Tree.

    Whoever changes it meanwhile is noticed when a file gets shorter or goes, and not otherwise.
    """

    def __init__(self, directory: bytes) -> None:
        self._directory = directory
        self._fd = -1
        self._open_path: bytes | None = None

    def _absolute(self, path: bytes) -> bytes:
        return os.path.join(self._directory, path) if path else self._directory

    def walk(self) -> Iterator[TreeNode]:
        """See Tree. What goes away meanwhile is not in it."""
        stack = [b""]
        while stack:
            path = stack.pop()
            try:
                node = self.find(path)
                names = sorted(os.listdir(self._absolute(path)), reverse=True) if node.is_dir else []
            except PosixError:
                if not path:
                    raise
                continue
            except FileNotFoundError:
                continue
            yield node
            stack.extend(os.path.join(path, name) for name in names)

    def find(self, path: bytes) -> TreeNode:
        """See Tree."""
        absolute = self._absolute(path)
        try:
            self._require_real_parents(path)
            found = os.lstat(absolute)
            target = os.readlink(absolute) if stat.S_ISLNK(found.st_mode) else None
            xattrs = _user_xattrs(absolute)
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise missing(path) from exc
        return TreeNode(
            path,
            found.st_ino,
            found.st_mode,
            found.st_uid,
            found.st_gid,
            found.st_nlink,
            found.st_rdev,
            found.st_size,
            found.st_blocks * BLOCK_BYTES,
            found.st_atime_ns,
            found.st_mtime_ns,
            found.st_ctime_ns,
            target,
            xattrs,
        )

    def _require_real_parents(self, path: bytes) -> None:
        """A symlink on the way could lead out of the session, and is followed nowhere else either."""
        parent = os.path.dirname(path)
        while parent:
            if not stat.S_ISDIR(os.lstat(self._absolute(parent)).st_mode):
                raise missing(path)
            parent = os.path.dirname(parent)

    def spans(self, node: TreeNode) -> Iterator[tuple[int, int]]:
        """See Tree. A mount says of no hole, so there it is the whole file."""
        fd, at = self._opened(node.path), 0
        while at < node.size:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno == errno.ENXIO:
                    return
                raise
            at = min(os.lseek(fd, start, os.SEEK_HOLE), node.size)
            if start < at:
                yield start, at

    def read(self, node: TreeNode, offset: int, length: int) -> bytes:
        """See Tree."""
        wanted = max(min(length, node.size - offset), 0)
        parts: list[bytes] = []
        while wanted:
            part = os.pread(self._opened(node.path), wanted, offset)
            if not part:
                raise SessfsError(
                    f"{show(self._absolute(node.path))} got shorter while it was read: stop Chrome there, or read a "
                    "snapshot"
                )
            parts.append(part)
            offset += len(part)
            wanted -= len(part)
        return b"".join(parts)

    def _opened(self, path: bytes) -> int:
        if self._open_path != path:
            self._close_file()
            try:
                self._fd = os.open(self._absolute(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError as exc:
                raise missing(path) from exc
            self._open_path = path
        return self._fd

    def warm(self, nodes: Sequence[TreeNode]) -> None:
        """See Tree: nothing is to be done."""

    def close(self) -> None:
        """See Tree."""
        self._close_file()

    def _close_file(self) -> None:
        if self._open_path is not None:
            os.close(self._fd)
            self._open_path = None


def _user_xattrs(absolute: bytes) -> dict[bytes, bytes]:
    """Empty where there are none or the filesystem has none."""
    found = {}
    try:
        names = [os.fsencode(name) for name in os.listxattr(absolute, follow_symlinks=False)]
        for name in sorted(names):
            if name.startswith(XATTR_PREFIX):
                found[name] = os.getxattr(absolute, name, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in (errno.ENOTSUP, errno.ENODATA):
            raise
    return found


class ManifestTree:
    """The session of a full manifest. Implements Tree. *fetch* gives verified chunks, all that it is asked for, or
    raises SessfsError.
    """

    def __init__(self, manifest: Manifest, fetch: Fetch) -> None:
        """Raises RemoteCorrupt when the manifest does not hang together."""
        self._manifest = manifest
        self._fetch = fetch
        self._records = {record.ino: record for record in manifest.nodes}
        self._children: dict[int, list[tuple[bytes, int]]] = {}
        for entry in manifest.names:
            self._children.setdefault(entry.parent, []).append((entry.name, entry.ino))
        for entries in self._children.values():
            entries.sort()
        self._recipes: dict[int, Recipe] = {}
        self._warm: dict[ChunkId, bytes] = {}

    def _record(self, ino: int) -> NodeRecord:
        record = self._records.get(ino)
        if record is None and ino == self._manifest.root:
            # The root files' session has no directory of its own in its manifest.
            return NodeRecord(ino, stat.S_IFDIR | 0o755, 0, 0, 2, 0, 0, 0, 0, 0, None, {}, b"")
        if record is None:
            raise self._corrupt(f"a name stands for inode {ino}, which is not there")
        return record

    def _corrupt(self, what: str) -> RemoteCorrupt:
        return RemoteCorrupt(f"snapshot {self._manifest.sequence} of session {show(self._manifest.session)}: {what}")

    def walk(self) -> Iterator[TreeNode]:
        """See Tree."""
        stack = [(b"", self._manifest.root)]
        seen: set[int] = set()
        while stack:
            path, ino = stack.pop()
            record = self._record(ino)
            yield self._node(path, record)
            if not stat.S_ISDIR(record.mode):
                continue
            if ino in seen:
                raise self._corrupt(f"directory {show(path)} has two names")
            seen.add(ino)
            below = self._children.get(ino, ())
            stack.extend((os.path.join(path, name), child) for name, child in reversed(below))

    def find(self, path: bytes) -> TreeNode:
        """See Tree."""
        ino = self._manifest.root
        for name in path.split(b"/") if path else ():
            below = dict(self._children.get(ino, ()))
            if name not in below:
                raise missing(path)
            ino = below[name]
        return self._node(path, self._record(ino))

    def _node(self, path: bytes, record: NodeRecord) -> TreeNode:
        return TreeNode(
            path,
            record.ino,
            record.mode,
            record.uid,
            record.gid,
            record.nlink,
            record.rdev,
            record.size,
            sum(end - start for start, end in self._data(record.ino)) if stat.S_ISREG(record.mode) else 0,
            record.atime_ns,
            record.mtime_ns,
            record.ctime_ns,
            record.target,
            {name: value for name, value in record.xattrs.items() if name.startswith(XATTR_PREFIX)},
        )

    def _recipe(self, ino: int) -> Recipe:
        if ino not in self._recipes:
            self._recipes = {ino: Recipe(self._record(ino).recipe)}
        return self._recipes[ino]

    def _data(self, ino: int) -> Iterator[tuple[int, int]]:
        start = end = 0
        for extent in self._recipe(ino):
            if extent.is_hole or extent.start != end:
                if end > start:
                    yield start, end
                start = end = extent.end if extent.is_hole else extent.start
            if not extent.is_hole:
                end = extent.end
        if end > start:
            yield start, end

    def spans(self, node: TreeNode) -> Iterator[tuple[int, int]]:
        """See Tree."""
        return self._data(node.ino)

    def read(self, node: TreeNode, offset: int, length: int) -> bytes:
        """See Tree."""
        end = min(offset + length, node.size)
        if end <= offset:
            return b""
        extents = list(self._recipe(node.ino).overlapping(offset, end))
        missing_ids = {e.chunk for e in extents if not e.is_hole and e.chunk not in self._warm}
        fetched = self._fetch(missing_ids) if missing_ids else {}
        parts = []
        for extent in extents:
            low, high = max(extent.start, offset) - extent.start, min(extent.end, end) - extent.start
            if extent.is_hole:
                parts.append(bytes(high - low))
                continue
            chunk = self._warm.get(extent.chunk) or fetched[extent.chunk]
            if len(chunk) != extent.end - extent.start:
                raise self._corrupt(f"{show(node.path)}: chunk {extent.chunk.hex()} has {len(chunk)} bytes")
            parts.append(chunk[low:high])
        return b"".join(parts)

    def warm(self, nodes: Sequence[TreeNode]) -> None:
        """See Tree."""
        wanted: dict[ChunkId, None] = {}
        room = WARM_BYTES
        for node in nodes:
            room -= node.allocated
            if room < 0:
                break
            wanted |= dict.fromkeys(self._recipe(node.ino).iter_chunks())
        kept = {cid: chunk for cid, chunk in self._warm.items() if cid in wanted}
        asked = [cid for cid in wanted if cid not in kept]
        self._warm = {**kept, **(self._fetch(asked) if asked else {})}

    def close(self) -> None:
        """See Tree."""
        self._warm = {}
