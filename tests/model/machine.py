"""The same random operations on a directory of ours and on a plain one; every answer must be the same.

The plain directory is the model: whatever its filesystem says, errno for errno, ours has to say. Between the
operations the things happen that only we have: sealing, remounting, kill -9 after a sync, caches dropped.
"""

from __future__ import annotations

import mmap
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sessfs.chrome import wants_direct_io
from tests.support.posix import kernel_maps_direct_io, name_of, node, noise, prose, renameat2, syncfs, walk, write_file

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = (b"a", b"b", b"c", b"0123456789abcdef_0" if kernel_maps_direct_io() else b"d")
TARGETS = (b"a", b"b", b"c", b"nowhere", b"a/b")
XATTRS = ("user.a", "user.b", "user.c")
MAX_HANDLES = 8
REMOUNT_EVERY = 50
"""The fewest operations between two remounts, which cost a thousand times as much as one."""
MAX_OFFSET = 6 << 20
LONG_AGO_NS = 1_500_000_000_000_000_000
"""mtimes below are set by utime on purpose, and compared; those above are the clock's."""

CONTENTS = (noise(0, 400_000), noise(1, 400_000), noise(2, 400_000), prose(7, 400_000), bytes(400_000))
OPENS = (
    os.O_RDONLY,
    os.O_RDWR,
    os.O_RDWR | os.O_CREAT,
    os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    os.O_RDWR | os.O_APPEND | os.O_CREAT,
    os.O_WRONLY | os.O_APPEND,
    os.O_WRONLY | os.O_TRUNC,
)
_EDGES = (0, 1, 4095, 4096, 4097, 16_384, 32_767, 65_536, 131_071, 131_072, 131_073, 262_144, 1 << 20)

sizes = st.one_of(st.integers(0, 200), st.integers(0, 300_000), st.sampled_from(_EDGES[:-1]))
offsets = st.one_of(st.integers(0, 200), st.integers(0, 400_000), st.sampled_from(_EDGES), st.integers(0, MAX_OFFSET))
numbers = st.integers(0, 63)
# Set-id bits only on directories: FUSE does not say who writes, so a daemon clears them where ext4 lets root keep them.
modes = st.sampled_from([0o644, 0o600, 0o000, 0o755, 0o777, 0o1777])
directory_modes = st.sampled_from([0o755, 0o700, 0o777, 0o2755, 0o2777, 0o1777, 0o6711])
owners = st.sampled_from([-1, 0, 1000, 65534])


@dataclass(frozen=True)
class Place:
    """A path, chosen when the rule runs: the *number*-th that exists, or *name* in the *number*-th directory."""

    number: int
    name: bytes | None


@dataclass(frozen=True)
class Content:
    """Bytes to write, out of few sources, so that files share chunks."""

    source: int
    start: int
    size: int

    def encode(self) -> bytes:
        """Return the bytes."""
        return CONTENTS[self.source][self.start : self.start + self.size]


@dataclass
class Handle:
    """One open, on both sides."""

    plain: int
    ours: int

    def both(self) -> tuple[int, int]:
        """Return the descriptors, the model's first."""
        return self.plain, self.ours


existing = st.builds(Place, numbers, st.none())
fresh = st.builds(Place, numbers, st.sampled_from(NAMES))
places = st.one_of(existing, fresh)
contents = st.builds(Content, st.integers(0, len(CONTENTS) - 1), st.integers(0, 100_000), sizes)


class Filesystem(Protocol):
    """What the machine needs of the side under test; a plain directory can play it, to prove the machine."""

    path: Path

    def ensure(self) -> None:
        """Be mounted."""

    def seal(self) -> None:
        """Turn hot files into chunks."""

    def remount(self) -> None:
        """Unmount and mount."""

    def kill(self) -> None:
        """End the daemon with SIGKILL."""

    def mount(self) -> None:
        """Mount again, after kill()."""


def _outcome(call: Callable[[Any], Any], side: Any) -> object:
    try:
        return call(side)
    except OSError as error:
        return name_of(error.errno or 0)


class FsMachine(RuleBasedStateMachine):
    """One example: a new session on *filesystem*, and a new directory below *plain_root*."""

    def __init__(self, filesystem: Filesystem, plain_root: Path, number: int) -> None:
        super().__init__()
        filesystem.ensure()
        self.filesystem = filesystem
        self.plain = os.fsencode(plain_root / f"m{number}")
        self.ours = os.fsencode(filesystem.path / f"m{number}")
        self.handles: list[Handle] = []
        self.past_cache: set[int] = set()
        """Inodes of the plain side whose file is written past the page cache on ours, so that its mtime may stay."""
        self.steps = 0
        for root in (self.plain, self.ours):
            os.mkdir(root, 0o755)

    def teardown(self) -> None:
        """Compare everything once more, and remove it."""
        try:
            self.check_tree()
        finally:
            self._close_all()
            for root in (self.plain, self.ours):
                shutil.rmtree(root)

    @initialize(first=contents, second=contents, sealed=st.booleans())
    def begin(self, first: Content, second: Content, sealed: bool) -> None:
        """Start with something in it, so that few steps are spent on names that are not there."""
        for root in (self.plain, self.ours):
            os.mkdir(os.path.join(root, b"a"))
            for name, content in ((b"a/b", first), (b"b", second), (b"c", first)):
                write_file(os.path.join(root, name), content.encode())
        if sealed:
            self.filesystem.seal()
        for name in (b"a/b", b"b"):
            plain, ours = (os.open(os.path.join(root, name), os.O_RDWR) for root in (self.plain, self.ours))
            self.handles.append(Handle(plain, ours))

    # -- choosing and comparing

    def _resolve(self, place: Place, kind: int | None = None) -> bytes:
        """Return the relative path that *place* means now; with *kind*, one of that type if there is any."""
        paths = [b"", *walk(Path(os.fsdecode(self.plain)))]
        if place.name is not None:
            folders = [path for path in paths if self._kind(path) == stat.S_IFDIR and path.count(b"/") < 3]
            return os.path.join(folders[place.number % len(folders)], place.name)
        wanted = [path for path in paths if path and (kind is None or self._kind(path) == kind)]
        wanted = wanted or [path for path in paths if path] or [NAMES[0]]
        return wanted[place.number % len(wanted)]

    def _kind(self, path: bytes) -> int:
        return stat.S_IFMT(os.lstat(os.path.join(self.plain, path)).st_mode)

    def _same(self, call: Callable[[bytes], Any], *paths: bytes) -> object:
        """Run *call* with each root; the outcomes must be equal, and the attributes of *paths* after it."""
        self.steps += 1
        wanted, got = _outcome(call, self.plain), _outcome(call, self.ours)
        _assert_same(got, wanted, b", ".join(paths))
        for path in paths:
            for each in {path, os.path.dirname(path)}:
                _assert_same(self._attributes(self.ours, each), self._attributes(self.plain, each), each)
        return wanted

    def _same_handle(self, number: int, call: Callable[[int], Any]) -> None:
        self.steps += 1
        handle = self.handles[number % len(self.handles)]
        wanted, got = (_outcome(call, fd) for fd in handle.both())
        _assert_same(got, wanted, b"by handle")
        self._assert_same_handle(handle)

    def _assert_same_handle(self, handle: Handle) -> None:
        plain, ours = (os.fstat(fd) for fd in handle.both())
        has_mtime = plain.st_ino not in self.past_cache
        _assert_same(_comparable(ours, has_mtime), _comparable(plain, has_mtime), b"fstat")

    def _has_mtime(self, path: bytes) -> bool:
        status = _outcome(os.lstat, os.path.join(self.plain, path))
        return not isinstance(status, os.stat_result) or status.st_ino not in self.past_cache

    def _attributes(self, root: bytes, path: bytes) -> object:
        has_mtime = self._has_mtime(path)
        return _outcome(lambda full: _comparable(os.lstat(full), has_mtime), os.path.join(root, path))

    def _close_all(self) -> None:
        for handle in self.handles:
            for fd in handle.both():
                os.close(fd)
        self.handles.clear()

    # -- names

    @rule(place=fresh, mode=directory_modes)
    def mkdir(self, place: Place, mode: int) -> None:
        path = self._resolve(place)
        self._same(lambda root: os.mkdir(os.path.join(root, path), mode), path)

    @rule(place=existing)
    def rmdir(self, place: Place) -> None:
        path = self._resolve(place, stat.S_IFDIR)
        self._same(lambda root: os.rmdir(os.path.join(root, path)), path)

    @rule(place=existing)
    def unlink(self, place: Place) -> None:
        path = self._resolve(place)
        self._same(lambda root: os.unlink(os.path.join(root, path)), path)

    @rule(old=existing, new=places, flags=st.sampled_from([0, 0, 0, 1, 2, 3]))
    def rename(self, old: Place, new: Place, flags: int) -> None:
        one, other = self._resolve(old), self._resolve(new)
        self._same(lambda root: renameat2(os.path.join(root, one), os.path.join(root, other), flags), one, other)

    @rule(old=existing, new=places)
    def link(self, old: Place, new: Place) -> None:
        one, other = self._resolve(old, stat.S_IFREG), self._resolve(new)
        self._same(
            lambda root: os.link(os.path.join(root, one), os.path.join(root, other), follow_symlinks=False), one, other
        )

    @rule(place=fresh, text=st.sampled_from(TARGETS))
    def symlink(self, place: Place, text: bytes) -> None:
        path = self._resolve(place)
        self._same(lambda root: os.symlink(text, os.path.join(root, path)), path)

    @rule(place=fresh, mode=modes, kind=st.sampled_from([stat.S_IFIFO, stat.S_IFREG, stat.S_IFCHR, stat.S_IFSOCK]))
    def mknod(self, place: Place, mode: int, kind: int) -> None:
        path = self._resolve(place)
        self._same(lambda root: os.mknod(os.path.join(root, path), kind | mode, os.makedev(1, 3)), path)

    # -- attributes

    @rule(place=existing, mode=modes)
    def chmod(self, place: Place, mode: int) -> None:
        path = self._resolve(place)
        self._same(lambda root: os.chmod(os.path.join(root, path), mode), path)

    @rule(place=existing, mode=directory_modes)
    def chmod_directory(self, place: Place, mode: int) -> None:
        path = self._resolve(place, stat.S_IFDIR)
        if os.path.isdir(os.path.join(self.plain, path)):
            self._same(lambda root: os.chmod(os.path.join(root, path), mode), path)

    @rule(place=existing, uid=owners, gid=owners)
    def lchown(self, place: Place, uid: int, gid: int) -> None:
        path = self._resolve(place)
        self._same(lambda root: os.lchown(os.path.join(root, path), uid, gid), path)

    @rule(place=existing, mtime_ns=st.integers(0, LONG_AGO_NS - 1), follow=st.booleans())
    def utime(self, place: Place, mtime_ns: int, follow: bool) -> None:
        path = self._resolve(place)
        self._same(lambda root: os.utime(os.path.join(root, path), ns=(1, mtime_ns), follow_symlinks=follow), path)

    @rule(place=existing, name=st.sampled_from(XATTRS), size=st.integers(0, 900), flags=st.sampled_from([0, 1, 2]))
    def setxattr(self, place: Place, name: str, size: int, flags: int) -> None:
        path = self._resolve(place)
        self._same(lambda root: os.setxattr(os.path.join(root, path), name, CONTENTS[0][:size], flags), path)

    @rule(place=existing, name=st.sampled_from(XATTRS))
    def removexattr(self, place: Place, name: str) -> None:
        path = self._resolve(place)
        self._same(lambda root: os.removexattr(os.path.join(root, path), name), path)

    # -- content, by path

    @rule(place=places, offset=offsets, content=contents, create=st.booleans())
    def write(self, place: Place, offset: int, content: Content, create: bool) -> None:
        path = self._resolve(place, stat.S_IFREG)
        flags = os.O_WRONLY | os.O_NONBLOCK | (os.O_CREAT if create else 0)

        def call(root: bytes) -> int:
            fd = os.open(os.path.join(root, path), flags, 0o644)
            try:
                return os.pwrite(fd, content.encode(), offset)
            finally:
                os.close(fd)

        if self._safe_to_open(path):
            self._same(call, path)

    @rule(place=fresh, content=contents)
    def write_whole(self, place: Place, content: Content) -> None:
        path = self._resolve(place)

        def call(root: bytes) -> int:
            fd = os.open(os.path.join(root, path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o644)
            try:
                return os.write(fd, content.encode())
            finally:
                os.close(fd)

        if self._safe_to_open(path):
            self._same(call, path)

    @rule(place=existing, offset=offsets, size=sizes)
    def read(self, place: Place, offset: int, size: int) -> None:
        path = self._resolve(place, stat.S_IFREG)

        def call(root: bytes) -> bytes:
            fd = os.open(os.path.join(root, path), os.O_RDONLY | os.O_NONBLOCK)
            try:
                return os.pread(fd, size, offset)
            finally:
                os.close(fd)

        if self._safe_to_open(path):
            self._same(call, path)

    @rule(place=existing, size=offsets)
    def truncate(self, place: Place, size: int) -> None:
        path = self._resolve(place, stat.S_IFREG)
        # Whether truncate(2) to the size that a file has moves its mtime differs between filesystems.
        if _outcome(lambda full: os.stat(full).st_size, os.path.join(self.plain, path)) != size:
            self._same(lambda root: os.truncate(os.path.join(root, path), size), path)

    @rule(old=existing, new=places)
    def copy(self, old: Place, new: Place) -> None:
        """Give two files the same content, hence the same chunks."""
        one, other = self._resolve(old, stat.S_IFREG), self._resolve(new)
        if self._safe_to_open(one) and self._safe_to_open(other):
            self._same(lambda root: _copy(os.path.join(root, one), os.path.join(root, other)), one, other)

    def _safe_to_open(self, path: bytes) -> bool:
        """What opens as a device or a fifo is no business of a filesystem, and the mount is nodev."""
        try:
            kind = stat.S_IFMT(os.stat(os.path.join(self.plain, path)).st_mode)
        except OSError:
            return True
        return kind in (stat.S_IFREG, stat.S_IFDIR)

    # -- content, by handle

    @precondition(lambda self: len(self.handles) < MAX_HANDLES)
    @rule(place=places, flags=st.sampled_from(OPENS), mode=modes)
    def open(self, place: Place, flags: int, mode: int) -> None:
        path = self._resolve(place, stat.S_IFREG)
        if not self._safe_to_open(path):
            return
        opened: list[int] = []
        is_new = not os.path.lexists(os.path.join(self.plain, path))

        def call(root: bytes) -> None:
            opened.append(os.open(os.path.join(root, path), flags | os.O_NONBLOCK, mode))

        self._same(call, path)
        if opened:
            self.handles.append(Handle(*opened))
            if is_new and wants_direct_io(os.path.basename(path)):
                self.past_cache.add(os.fstat(opened[0]).st_ino)

    @precondition(lambda self: self.handles)
    @rule(number=numbers)
    def close(self, number: int) -> None:
        handle = self.handles.pop(number % len(self.handles))
        for fd in handle.both():
            os.close(fd)

    @precondition(lambda self: self.handles)
    @rule(number=numbers, offset=offsets, content=contents)
    def pwrite(self, number: int, offset: int, content: Content) -> None:
        self._same_handle(number, lambda fd: os.pwrite(fd, content.encode(), offset))

    @precondition(lambda self: self.handles)
    @rule(number=numbers, offset=offsets, size=sizes)
    def pread(self, number: int, offset: int, size: int) -> None:
        self._same_handle(number, lambda fd: os.pread(fd, size, offset))

    @precondition(lambda self: self.handles)
    @rule(number=numbers, size=offsets)
    def ftruncate(self, number: int, size: int) -> None:
        self._same_handle(number, lambda fd: os.ftruncate(fd, size))

    @precondition(lambda self: self.handles)
    @rule(number=numbers, offset=offsets, content=contents)
    def store_through_map(self, number: int, offset: int, content: Content) -> None:
        self._same_handle(number, lambda fd: _store(fd, offset, content.encode()))

    @precondition(lambda self: self.handles)
    @rule(number=numbers, mode=modes, mtime_ns=st.integers(0, LONG_AGO_NS - 1))
    def change_by_handle(self, number: int, mode: int, mtime_ns: int) -> None:
        self._same_handle(number, lambda fd: os.fchmod(fd, mode))
        self._same_handle(number, lambda fd: os.utime(fd, ns=(mtime_ns, mtime_ns)))

    @precondition(lambda self: self.handles)
    @rule(number=numbers)
    def fsync(self, number: int) -> None:
        self._same_handle(number, os.fsync)

    # -- what only we have

    @rule()
    def seal(self) -> None:
        self.filesystem.seal()

    @rule()
    def sync(self) -> None:
        for root in (self.plain, self.ours):
            fd = os.open(root, os.O_RDONLY)
            syncfs(fd)
            os.close(fd)

    @precondition(lambda self: self.steps > 5)
    @rule(inodes_too=st.booleans())
    def drop_caches(self, inodes_too: bool) -> None:
        """Let the next reads and lookups come to the daemon."""
        self._each_file(lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED))
        if inodes_too:
            Path("/proc/sys/vm/drop_caches").write_text("2")

    @precondition(lambda self: self.steps > REMOUNT_EVERY)
    @rule()
    def remount(self) -> None:
        self._close_all()
        self.filesystem.remount()
        self.steps = 0
        self.check_tree()

    @precondition(lambda self: self.steps > REMOUNT_EVERY)
    @rule()
    def kill_after_sync(self) -> None:
        self._close_all()
        self._each_file(os.fsync)
        self.filesystem.kill()
        self.filesystem.mount()
        self.steps = 0
        self.check_tree()

    def _each_file(self, call: Callable[[int], None]) -> None:
        for path in [b"", *walk(Path(os.fsdecode(self.plain)))]:
            if self._kind(path) in (stat.S_IFREG, stat.S_IFDIR):
                fd = os.open(os.path.join(self.ours, path), os.O_RDONLY)
                os.fsync(fd)
                call(fd)
                os.close(fd)

    @rule()
    def check_tree(self) -> None:
        """Compare every name, attribute, xattr and byte."""
        wanted, got = (sorted(walk(Path(os.fsdecode(root)))) for root in (self.plain, self.ours))
        _assert_same(got, wanted, b"the names")
        for path in wanted:
            ours, plain = (node(os.path.join(root, path)) for root in (self.ours, self.plain))
            has_mtime = self._has_mtime(path)
            _assert_same(_without_clock(ours, has_mtime), _without_clock(plain, has_mtime), path)
        for handle in self.handles:
            self._assert_same_handle(handle)
            _assert_same(_all_of(handle.ours), _all_of(handle.plain), b"content by handle")


def _assert_same(ours: object, plain: object, what: bytes) -> None:
    if ours != plain:
        raise AssertionError(f"{what!r}: ours {_short(ours)}, plain {_short(plain)}")


def _comparable(status: os.stat_result, has_mtime: bool) -> str:
    size = status.st_size if not stat.S_ISDIR(status.st_mode) else 0
    mtime = min(status.st_mtime_ns, LONG_AGO_NS) if has_mtime else 0
    return (
        f"mode {status.st_mode:o} owner {status.st_uid}:{status.st_gid} nlink {status.st_nlink} size {size} "
        f"rdev {status.st_rdev} mtime_ns {mtime}"
    )


def _without_clock(found: Any, has_mtime: bool) -> Any:
    fields = vars(found) | {"mtime_ns": min(found.mtime_ns, LONG_AGO_NS) if has_mtime else 0}
    return {name: _short(value) for name, value in fields.items()}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 800 else f"{text[:160]}… ({len(text)}, hash {hash(text):x})"


def _all_of(fd: int) -> object:
    return _outcome(lambda each: os.pread(each, MAX_OFFSET * 2, 0), fd)


def _copy(source: bytes, target: bytes) -> int:
    with open(source, "rb") as file:
        content = file.read()
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        return os.write(fd, content)
    finally:
        os.close(fd)


def _store(fd: int, offset: int, content: bytes) -> int:
    """Store what of *content* fits into the file, through a shared map; return its length."""
    status = os.fstat(fd)
    # What size a directory has is the filesystem's own business.
    size = mmap.PAGESIZE if stat.S_ISDIR(status.st_mode) else status.st_size
    length = max(0, min(len(content), size - offset))
    if length == 0:
        return 0
    with mmap.mmap(fd, size) as mapped:
        mapped[offset : offset + length] = content[:length]
    return length
