"""What was refused after the kernel had taken it: the rules, against a model of the kernel's page cache."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sessfs.errors import PosixError
from sessfs.local.inodes import Inode
from sessfs.types import Ino
from sessfs.vfs.refusals import Refusals, differing

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 8


class Disk:
    """The daemon's side of one file, as `FileIO` and `FileOperations` have it, with its bytes in memory."""

    def __init__(self) -> None:
        self.inode = Inode(Ino(7))
        self.content = bytearray()
        self.refusals = Refusals()
        self.is_full = False
        self.owed: set[int] = set()

    def write(self, start: int, content: bytes) -> None:
        try:
            if start + len(content) > self.inode.size:
                self.refusals.check_growth(self.inode, start)
            if self.is_full:
                raise PosixError(errno.ENOSPC)
        except PosixError as exc:
            self._give_up(start, content, exc.errno)
            raise
        self.refusals.written(self.inode, start, start + len(content))
        self.content.extend(bytes(max(start - len(self.content), 0)))
        self.content[start : start + len(content)] = content
        self.inode.size = len(self.content)

    def _give_up(self, start: int, content: bytes, number: int) -> None:
        size = self.inode.size
        self.inode.size = self.refusals.kept_end(self.inode, start, start + len(content))
        del self.content[self.inode.size :]
        self.refusals.add(self.inode, start, content, self.content[start : start + len(content)], size, number)

    def read(self, start: int, end: int) -> bytes:
        self.refusals.check_read(self.inode, start, end)
        return bytes(self.content[start:end])

    def fsync(self, fd: int) -> None:
        self.refusals.check_sync(self.inode)
        if fd in self.owed:
            self.owed.remove(fd)
            raise PosixError(errno.ENOSPC)
        self.refusals.synced(self.inode.ino)


class Kernel:
    """The page cache, as Linux has it with the write-back cache of FUSE, and programs that write through it."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.size = 0
        self.pages: dict[int, bytearray] = {}
        self.dirty: set[int] = set()
        self.n_errors = 0
        self.seen: dict[int, int] = {}
        self.positions: dict[int, int] = {}
        self.next_fd = 1
        self.next_byte = 0
        self.acked: dict[int, int] = {}
        """Position → byte, of which a program was told that it is durable, and that nobody wrote to since."""

    # -- system calls

    def open(self) -> None:
        self.seen[self.next_fd] = self.n_errors
        self.positions[self.next_fd] = self.size
        self.next_fd += 1
        self.disk.inode.opens += 1

    def close(self, fd: int) -> None:
        self._write_back_all()
        del self.seen[fd], self.positions[fd]
        self.disk.owed.discard(fd)
        self.disk.inode.opens -= 1
        if not self.disk.inode.opens:
            self.disk.refusals.closed(self.disk.inode)

    def write(self, start: int, length: int) -> None:
        """write(2), which succeeds."""
        for at in range(start, start + length):
            self.next_byte = self.next_byte % 255 + 1
            page = self._page(at // PAGE)
            if page is None:
                return
            page[at % PAGE] = self.next_byte
            self.dirty.add(at // PAGE)
            self.acked.pop(at, None)
            self.size = max(self.size, at + 1)

    def truncate(self, size: int) -> None:
        """A program's, which is allowed to make it shorter at any time."""
        size = min(size, self.disk.inode.size, self.size)
        self._cut(size)
        self.disk.inode.size = size
        del self.disk.content[size:]
        self.disk.refusals.cut(self.disk.inode, size)
        self.acked = {at: byte for at, byte in self.acked.items() if at < size}

    def fsync(self, fd: int) -> None:
        self._write_back_all()
        if self.seen[fd] != self.n_errors:
            self.seen[fd] = self.n_errors
            return
        try:
            self.disk.fsync(fd)
        except PosixError:
            return
        assert self.size == self.disk.inode.size
        for number, page in self.pages.items():
            there = self.disk.content[number * PAGE : (number + 1) * PAGE]
            assert page[: len(there)] == there, "acknowledged, and another one is there"
        self.acked = dict(enumerate(self.disk.content))

    # -- what the kernel does

    def _page(self, number: int) -> bytearray | None:
        """The page, read if need be; None where that fails."""
        if number not in self.pages:
            try:
                content = self.disk.read(number * PAGE, (number + 1) * PAGE)
            except PosixError:
                return None
            self.pages[number] = bytearray(content.ljust(PAGE, b"\0"))
        return self.pages[number]

    def write_back(self, number: int) -> None:
        if number not in self.dirty:
            return
        self.dirty.discard(number)
        start, end = number * PAGE, min((number + 1) * PAGE, self.size)
        try:
            self.disk.write(start, bytes(self.pages[number][: end - start]))
        except PosixError:
            self.n_errors += 1

    def _write_back_all(self) -> None:
        for number in sorted(self.dirty):
            self.write_back(number)

    def drop_clean(self) -> None:
        """Memory is short."""
        self.pages = {number: page for number, page in self.pages.items() if number in self.dirty}

    def _cut(self, size: int) -> None:
        last = -(-size // PAGE)
        self.pages = {number: page for number, page in self.pages.items() if number < last}
        self.dirty = {number for number in self.dirty if number < last}
        if size % PAGE and last - 1 in self.pages:
            self.pages[last - 1][size % PAGE :] = bytes(PAGE - size % PAGE)
        self.size = size

    def mend(self) -> None:
        """As `Mender` and its process do."""
        inode, refused = self.disk.inode, self.disk.refusals.find(self.disk.inode.ino)
        if refused is None or not refused.is_shown:
            return
        version, beyond = refused.version, refused.ranges[-1][1] > inode.size
        for low, high in [(low, min(high, inode.size)) for low, high in refused.ranges if low < inode.size]:
            for number in range(low // PAGE, (high - 1) // PAGE + 1):
                self.write_back(number)
                self.pages.pop(number, None)
        if beyond and self.disk.refusals.find(inode.ino) is not None:
            self.disk.owed.update(self.seen)
            self._cut(inode.size)
        self.disk.refusals.mended(inode, version)

    # -- what must hold

    def check(self) -> None:
        content = self.disk.content
        lost = {at: byte for at, byte in self.acked.items() if at >= len(content) or content[at] != byte}
        assert not {at for at in lost if at // PAGE not in self.dirty}, "acknowledged, and gone"
        if not self.dirty:
            assert 0 not in content, "zeros in the middle"


OPS: dict[str, Callable[[Kernel, int, int], None]] = {
    "append": lambda k, fd, n: k.write(k.size, n),
    "stream": lambda k, fd, n: _stream(k, fd, n),
    "overwrite": lambda k, fd, n: k.write(n * 5 % (k.size + 1), n),
    "fsync": lambda k, fd, n: k.fsync(fd),
    "close": lambda k, fd, n: k.close(fd) if len(k.seen) > 1 else None,
    "reopen": lambda k, fd, n: (k.close(fd), k.open())[0],
    "open": lambda k, fd, n: k.open() if len(k.seen) < 3 else None,
    "cut": lambda k, fd, n: k.truncate(n * 3),
    "write back": lambda k, fd, n: k.write_back(sorted(k.dirty)[n % len(k.dirty)] if k.dirty else 0),
    "full": lambda k, fd, n: setattr(k.disk, "is_full", True),
    "room": lambda k, fd, n: setattr(k.disk, "is_full", False),
    "mend": lambda k, fd, n: k.mend(),
    "drop": lambda k, fd, n: k.drop_clean(),
}


def _stream(kernel: Kernel, fd: int, length: int) -> None:
    """At the descriptor's own position, which goes on behind what was refused; so do programs that don't look."""
    start = min(kernel.positions[fd], kernel.size) if not kernel.disk.refusals else kernel.positions[fd]
    kernel.write(start, length)
    kernel.positions[fd] = start + length


@example([("append", 0, 9), ("write back", 0, 1), ("cut", 0, 1), ("full", 0, 1), ("fsync", 0, 1)])
@given(st.lists(st.tuples(st.sampled_from(sorted(OPS)), st.integers(0, 2), st.integers(1, 20)), max_size=40))
def test_nothing_acknowledged_is_lost_or_behind_zeros(steps: list[tuple[str, int, int]]) -> None:
    kernel = Kernel()
    kernel.open()
    for name, fd, n in steps:
        fds = sorted(kernel.seen)
        OPS[name](kernel, fds[fd % len(fds)], n)
        kernel.check()


def kernel_with(*steps: tuple[str, int]) -> Kernel:
    kernel = Kernel()
    kernel.open()
    for name, n in steps:
        OPS[name](kernel, min(kernel.seen), n)
    return kernel


def test_a_file_does_not_grow_behind_refused_bytes_until_they_are_written() -> None:
    kernel = kernel_with(("append", 8), ("fsync", 0), ("full", 0), ("append", 8), ("fsync", 0), ("room", 0))
    disk = kernel.disk
    with pytest.raises(PosixError) as caught:
        disk.refusals.check_growth(disk.inode, 16)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(PosixError):
        disk.read(8, 16)
    with pytest.raises(PosixError):
        disk.fsync(1)
    disk.write(8, b"y" * 8)
    disk.write(16, b"z")
    disk.fsync(1)
    assert disk.read(0, 17)[8:] == b"y" * 8 + b"z"


def test_who_wrote_behind_a_refused_write_before_it_was_mended_is_told() -> None:
    kernel = kernel_with(("append", 8), ("full", 0), ("append", 8), ("fsync", 0), ("room", 0))
    kernel.open()
    kernel.write(16, 8)
    kernel.mend()
    assert kernel.size == kernel.disk.inode.size == 0
    for fd in (1, 2):
        with pytest.raises(PosixError):
            kernel.disk.fsync(fd)
        kernel.disk.fsync(fd)


def test_bytes_that_came_before_those_in_front_of_them_are_cut_off_with_these() -> None:
    kernel = kernel_with(("append", 24))
    kernel.write_back(2)
    kernel.disk.is_full = True
    kernel.write_back(1)
    assert (kernel.disk.content, kernel.disk.inode.size) == (b"", 0)
    kernel.mend()
    assert kernel.size == 0


def test_bytes_behind_a_gap_that_are_durable_stay() -> None:
    kernel = kernel_with(("append", 8), ("fsync", 0))
    kernel.disk.write(16, b"durable!")
    kernel.disk.fsync(1)
    kernel.disk.is_full = True
    with pytest.raises(PosixError):
        kernel.disk.write(8, b"refused!")
    assert bytes(kernel.disk.content[16:]) == b"durable!"
    with pytest.raises(PosixError):
        kernel.disk.read(0, 24)
    with pytest.raises(PosixError):
        kernel.disk.fsync(1)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"", b"abc", (0, 3)),
        (b"abc", b"abc", None),
        (b"abcdef", b"abXdef", (2, 3)),
        (b"abc", b"abcdef", (3, 6)),
        (b"aXc", b"abcdef", (1, 6)),
        (b"abcdef", b"abc", None),
        (b"x" * 5000, b"x" * 4999 + b"y", (4999, 5000)),
    ],
)
def test_only_what_differs_counts(old: bytes, new: bytes, expected: tuple[int, int] | None) -> None:
    assert differing(old, new) == expected
