"""One session to be, read from a directory: names, attributes and links, but not the bytes. Synchronous, for a thread.

Directories are walked by descriptors and links are never followed, so nothing outside of the source gets in, even
while somebody renames things in it.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from sessfs.chrome import PathClass, classify
from sessfs.format.manifest import MANIFEST_VERSION, Manifest, NameRecord, NodeRecord
from sessfs.sessions.importing_layout import LeftOut, SessionSource
from sessfs.types import clamp_time_ns
from sessfs.vfs.sealjobs import SourceStamp

if TYPE_CHECKING:
    from sessfs.sessions.importing_archives import CarriedXattrs

MAX_DEPTH = 200
MAX_LINKS = 40
ROOT = 1
NAME_MAX_BYTES = 255
TARGET_MAX_BYTES = 4095
KEPT_XATTRS = "user."
Path = tuple[bytes, ...]


class ScannedFile(NamedTuple):
    """A regular file with content: the number of its record, where it is, and what tells that it is the same."""

    number: int
    path: bytes
    stamp: SourceStamp


@dataclass
class Scan:
    """A session as it was when it was looked at. It can be imported when it has no *faults*."""

    source: SessionSource
    nodes: dict[int, NodeRecord] = field(default_factory=dict)
    names: list[NameRecord] = field(default_factory=list)
    files: list[ScannedFile] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    links: dict[Path, bytes] = field(default_factory=dict)
    """Symbolic links by their path in the session."""
    seen: list[tuple[Path, SourceStamp]] = field(default_factory=list)
    """Everything that was looked at."""

    @property
    def size_bytes(self) -> int:
        """Bytes of content."""
        return sum(file.stamp.size for file in self.files)

    @property
    def n_files(self) -> int:
        """Everything but directories."""
        return sum(not stat.S_ISDIR(record.mode) for record in self.nodes.values())

    def manifest(self, recipes: dict[int, bytes], now_ns: int) -> Manifest:
        """The full manifest of the session, with the packed recipe of each file by number."""
        nodes = [
            msgspec.structs.replace(record, recipe=recipes[number]) if number in recipes else record
            for number, record in self.nodes.items()
        ]
        return Manifest(
            version=MANIFEST_VERSION,
            session=self.source.name,
            sequence=0,
            base=None,
            depth=0,
            taken_ns=now_ns,
            root=ROOT,
            nodes=nodes,
            names=self.names,
            gone_nodes=[],
            gone_names=[],
            segments=[],
            frames=[],
            startup=b"",
        )


def scan(
    source: SessionSource,
    owner: tuple[int, int] | None,
    now_ns: int,
    *,
    skip_unsafe: bool,
    carried: CarriedXattrs | None = None,
) -> Scan:
    """Look at the session. Everything belongs to *owner* (uid, gid), or, without, to whom it belongs now. Links that
    lead out of the session, and devices and pipes, are faults, or left out with *skip_unsafe*. *carried* are
    xattrs that are not there, but count as if.
    """
    return _Scanner(source, owner, now_ns, skip_unsafe, carried or {}).run()


class _Scanner:
    def __init__(
        self,
        source: SessionSource,
        owner: tuple[int, int] | None,
        now_ns: int,
        skip_unsafe: bool,
        carried: CarriedXattrs,
    ) -> None:
        self._scan = Scan(source)
        self._owner = owner
        self._now_ns = now_ns
        self._skip_unsafe = skip_unsafe
        self._carried = carried
        self._numbers: dict[tuple[int, int], int] = {}
        self._next = ROOT + 1

    def run(self) -> Scan:
        source = self._scan.source
        try:
            fd = os.open(source.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as exc:
            self._scan.faults.append(f"{_show(source.directory)} can't be read: {exc.strerror}")
            return self._scan
        try:
            parent = ROOT
            found = os.fstat(fd)
            for name in source.prefix:
                self._add_node(parent, found, None, {})
                self._scan.names.append(NameRecord(parent, name, self._next))
                parent, self._next = self._next, self._next + 1
            self._add_node(parent, found, None, self._xattrs(fd, b".", found))
            self._scan.seen.append((source.prefix, SourceStamp.of(found)))
            self._walk(fd, source.directory, parent, source.prefix, PathClass.TRAVELS)
        finally:
            os.close(fd)
        self._check_links()
        self._count_links()
        return self._scan

    def _walk(self, fd: int, path: bytes, number: int, within: Path, path_class: PathClass) -> None:
        if len(within) > MAX_DEPTH:
            self._scan.faults.append(f"{_show(path)} lies more than {MAX_DEPTH} directories deep")
            return
        try:
            names = sorted(os.fsencode(name) for name in os.listdir(fd))
        except OSError as exc:
            self._scan.faults.append(f"{_show(path)} can't be read: {exc.strerror}")
            return
        for name in names:
            here = os.path.join(path, name)
            entry_class = classify(name, path_class)
            if entry_class is PathClass.NODE_ONLY:
                self._scan.left_out.append(LeftOut(here, "means something on its own machine only"))
                continue
            try:
                self._entry(fd, name, here, number, (*within, name), entry_class)
            except OSError as exc:
                gone = (
                    "changed while it was looked at" if exc.errno == errno.ENOENT else f"can't be read: {exc.strerror}"
                )
                self._scan.faults.append(f"{_show(here)} {gone}")

    def _entry(self, fd: int, name: bytes, here: bytes, parent: int, within: Path, path_class: PathClass) -> None:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFSOCK:
            self._scan.left_out.append(LeftOut(here, "a socket"))
            return
        if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            self._unsafe(here, "a device or a named pipe")
            return
        self._scan.seen.append((within, SourceStamp.of(found)))
        key = (found.st_dev, found.st_ino)
        known = self._numbers.get(key) if found.st_nlink > 1 and kind != stat.S_IFDIR else None
        number = known if known is not None else self._next
        if known is None:
            self._next += 1
            self._numbers[key] = number
            target = os.readlink(name, dir_fd=fd) if kind == stat.S_IFLNK else None
            self._add_node(number, found, target, self._xattrs(fd, name, found) if kind != stat.S_IFLNK else {})
            if kind == stat.S_IFREG and found.st_size:
                self._scan.files.append(ScannedFile(number, here, SourceStamp.of(found)))
        target = self._scan.nodes[number].target
        if target is not None:
            self._scan.links[within] = target
        self._scan.names.append(NameRecord(parent, name, number))
        if kind == stat.S_IFDIR:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                self._walk(below, here, number, within, path_class)
            finally:
                os.close(below)

    def _unsafe(self, here: bytes, what: str) -> None:
        if self._skip_unsafe:
            self._scan.left_out.append(LeftOut(here, what))
        else:
            self._scan.faults.append(f"{_show(here)} is {what} (--skip-unsafe leaves it out)")

    def _xattrs(self, fd: int, name: bytes, found: os.stat_result) -> dict[bytes, bytes]:
        carried = self._carried.get((found.st_dev, found.st_ino), {})
        path = b"/proc/self/fd/%d/%s" % (fd, name)
        try:
            return carried | {
                os.fsencode(key): os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                if key.startswith(KEPT_XATTRS)
            }
        except OSError as exc:
            if exc.errno in (errno.EOPNOTSUPP, errno.ENODATA):
                return carried
            raise

    def _add_node(self, number: int, found: os.stat_result, target: bytes | None, xattrs: dict[bytes, bytes]) -> None:
        uid, gid = self._owner or (found.st_uid, found.st_gid)
        content = found.st_size if stat.S_ISREG(found.st_mode) else len(target or b"")
        self._scan.nodes[number] = NodeRecord(
            ino=number,
            mode=found.st_mode,
            uid=uid,
            gid=gid,
            nlink=1,
            rdev=0,
            size=content,
            atime_ns=clamp_time_ns(found.st_atime_ns),
            mtime_ns=clamp_time_ns(found.st_mtime_ns),
            ctime_ns=self._now_ns,
            target=target,
            xattrs=xattrs,
            recipe=b"",
        )

    # -- once everything is known

    def _check_links(self) -> None:
        """A link that leads out of the session means something else, or nothing, after the move."""
        unsafe = [path for path in self._scan.links if leads_outside(self._scan.links, path)]
        for path in unsafe:
            here = os.path.join(self._scan.source.directory, *path[len(self._scan.source.prefix) :])
            self._unsafe(here, f"a link that leads out of its session, to {_show(self._scan.links[path])}")
        if unsafe and self._skip_unsafe:
            self._remove(set(unsafe))

    def _remove(self, paths: set[Path]) -> None:
        where = self._paths()
        gone = [record for record in self._scan.names if (*where[record.parent], record.name) in paths]
        left = [record for record in self._scan.names if (*where[record.parent], record.name) not in paths]
        self._scan.names = left
        for number in {record.ino for record in gone} - {record.ino for record in left}:
            del self._scan.nodes[number]

    def _paths(self) -> dict[int, Path]:
        """Path of each directory; names stand in the order of the walk, parents first."""
        where: dict[int, Path] = {ROOT: ()}
        for record in self._scan.names:
            if stat.S_ISDIR(self._scan.nodes[record.ino].mode):
                where[record.ino] = (*where[record.parent], record.name)
        return where

    def _count_links(self) -> None:
        counts = {number: 2 if stat.S_ISDIR(record.mode) else 0 for number, record in self._scan.nodes.items()}
        for record in self._scan.names:
            if stat.S_ISDIR(self._scan.nodes[record.ino].mode):
                counts[record.parent] += 1
            else:
                counts[record.ino] += 1
        for number, node in self._scan.nodes.items():
            if node.nlink != counts[number]:
                self._scan.nodes[number] = msgspec.structs.replace(node, nlink=counts[number])


def leads_outside(links: dict[Path, bytes], path: Path) -> bool:
    """True if the link at *path* leads out of the tree, by itself or by other *links* on its way."""
    at: list[bytes] = list(path[:-1])
    ahead = _steps(links[path])
    if ahead is None:
        return True
    followed = 0
    while ahead:
        step = ahead.pop()
        if step == b"..":
            if not at:
                return True
            at.pop()
            continue
        at.append(step)
        target = links.get(tuple(at))
        if target is None:
            continue
        followed += 1
        further = _steps(target)
        if further is None:
            return True
        if followed > MAX_LINKS:
            return False
        at.pop()
        ahead.extend(further)
    return False


def _steps(target: bytes) -> list[bytes] | None:
    """The names in a link's target, the last first; None when it is absolute."""
    if target.startswith(b"/"):
        return None
    return [step for step in reversed(target.split(b"/")) if step not in (b"", b".")]


def _show(path: bytes) -> str:
    return path.decode(errors="replace")
