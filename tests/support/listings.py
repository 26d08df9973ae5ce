"""Streams of a directory's entries, read in parts while names come and go, and what each of them owes its reader."""

from __future__ import annotations

import ctypes
import os
import struct
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sessfs.local import listings
from sessfs.local.listings import POSITION_BITS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

_HEAD = struct.Struct("<QqHB")
_libc = ctypes.CDLL(None, use_errno=True)
MASK = (1 << POSITION_BITS) - 1
BUFFERS = (200, 200, 280, 512, 1000, 4096, 8192, 32_768, 65_536)
MAX_STREAMS = 8
LONG_LEFT_OUT = 170
"""With a buffer of 200 bytes longer names can't be listed."""


class Entry(NamedTuple):
    """One linux_dirent64."""

    name: bytes
    ino: int
    offset: int
    """Where a reading that ends with it goes on."""
    kind: int


def getdents(fd: int, size: int) -> list[Entry]:
    """getdents64(2) with a buffer of *size* bytes; raises OSError."""
    buffer = ctypes.create_string_buffer(size)
    got = _libc.syscall(217, fd, buffer, size)
    if got < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    found, at = [], 0
    while at < got:
        ino, offset, length, kind = _HEAD.unpack_from(buffer, at)
        name = buffer.raw[at + _HEAD.size : at + length].split(b"\0", 1)[0]
        found.append(Entry(name, ino, offset, kind))
        at += length
    return found


class Reader(Protocol):
    """One open directory."""

    def read(self, size: int) -> Sequence[Entry]:
        """The next part; empty at the end."""

    def seek(self, position: int) -> None:
        """lseek(2)."""

    def close(self) -> None:
        """close(2)."""


class Directory(Protocol):
    """The directory under test."""

    def make(self, name: bytes) -> None:
        """A new file."""

    def unlink(self, name: bytes) -> None:
        """Remove a file."""

    def rename(self, old: bytes, new: bytes) -> None:
        """Rename within the directory, maybe over another name."""

    def link(self, old: bytes, new: bytes) -> None:
        """One more name of a file."""

    def open(self) -> Reader:
        """opendir(3)."""

    def drop(self) -> None:
        """Have the kernel drop some or all of what it keeps of the directory."""

    def restart(self) -> None:
        """End the daemon and begin anew; every reader was closed."""


class Stream:
    """What one handle has read since it began, at the start or at a position."""

    def __init__(self, reader: Reader, began: int, position: int = 0) -> None:
        self.reader = reader
        self.began = began
        self.position = position
        """Where it began."""
        self.last_seen = began
        self.read: list[Entry] = []


class Machine:
    """A random walk; every step is drawn from *random*, so the same seed takes the same steps."""

    def __init__(self, directory: Directory, random: Random, n_names: int, *, has_twins: bool = False) -> None:
        """If names have twins, which share a position, one that went may come back at another one."""
        self._directory = directory
        self._random = random
        self._names = [self._name(number) for number in range(n_names)]
        self._since: dict[bytes, int] = {}
        """Names that are there → the step in which they came."""
        self._gone: dict[bytes, int] = {}
        """Names that are not there → the step in which they went."""
        self._streams: list[Stream] = []
        self._has_twins = has_twins
        self._step = 0
        self.counts: Counter[str] = Counter()
        for name in self._names[::2]:
            directory.make(name)
            self._since[name] = 0

    def _name(self, number: int) -> bytes:
        lengths = (4, 8, 12, 20, 37, 60, LONG_LEFT_OUT)
        return (b"%d-" % number).ljust(self._random.choice(lengths), b"abcdefgh"[number % 8 :][:1])

    def walk(self, steps: int) -> None:
        """Take *steps* steps."""
        acts: list[tuple[int, Callable[[], None]]] = [
            (30, self._read),
            (10, self._change),
            (6, self._begin),
            (3, self._rewind),
            (3, self._seek_back),
            (3, self._begin_elsewhere),
            (2, self._close),
            (2, self._burst),
            (2, self._read_all),
            (2, self._drop),
        ]
        weights = [weight for weight, _ in acts]
        for _ in range(steps):
            self._step += 1
            act = self._random.choices(acts, weights)[0][1]
            self.counts[act.__name__] += 1
            act()

    def end(self) -> None:
        """Read every stream to its end."""
        while self._streams:
            self._finish(self._streams[0])
        self.check_whole()

    def check_whole(self) -> None:
        """A fresh listing has what is there."""
        self._step += 1
        stream = Stream(self._directory.open(), self._step)
        self._streams.append(stream)
        self._finish(stream)

    def restart(self) -> None:
        """Restart the daemon; streams that were under way are continued at their positions by new handles."""
        left = [(self._place(stream), stream) for stream in self._streams]
        for stream in self._streams:
            stream.reader.close()
        self._directory.restart()
        for position, stream in left:
            stream.reader = self._directory.open()
            stream.reader.seek(position)

    def _place(self, stream: Stream) -> int:
        return stream.read[-1].offset if stream.read else stream.position

    # -- changes

    def _came(self, name: bytes) -> None:
        self._gone.pop(name, None)
        self._since.setdefault(name, self._step)

    def _went(self, name: bytes) -> None:
        del self._since[name]
        self._gone[name] = self._step

    def _change(self) -> None:
        name, other = self._random.sample(self._names, 2)
        if name not in self._since:
            if other in self._since and self._random.random() < 0.3:
                self._directory.link(other, name)
            else:
                self._directory.make(name)
            self._came(name)
        elif self._random.random() < 0.6:
            self._directory.unlink(name)
            self._went(name)
        else:
            self._directory.unlink(name)
            self._directory.make(name)
            # It may be listed or not by those who read meanwhile: for them it is neither there nor away all the time.
            self._since[name] = self._step
            if other in self._since:
                self._directory.rename(name, other)
                self._went(name)

    def _burst(self) -> None:
        for _ in range(self._random.randrange(1, 40)):
            self._step += 1
            self._change()

    # -- streams

    def _begin(self) -> None:
        if len(self._streams) < MAX_STREAMS:
            self._streams.append(Stream(self._directory.open(), self._step))

    def _begin_elsewhere(self) -> None:
        """A new handle at a position that another one was given."""
        if self._streams and len(self._streams) < MAX_STREAMS:
            donor = self._random.choice(self._streams)
            if donor.read:
                position = self._random.choice(donor.read).offset
                reader = self._directory.open()
                reader.seek(position)
                self._streams.append(Stream(reader, self._step, position))

    def _rewind(self) -> None:
        if self._streams:
            stream = self._random.choice(self._streams)
            stream.reader.seek(0)
            stream.began, stream.position, stream.last_seen, stream.read = self._step, 0, self._step, []

    def _seek_back(self) -> None:
        if self._streams:
            stream = self._random.choice(self._streams)
            if stream.read:
                kept = self._random.randrange(1, len(stream.read) + 1)
                del stream.read[kept:]
                stream.reader.seek(stream.read[-1].offset)

    def _close(self) -> None:
        if self._streams:
            self._streams.pop(self._random.randrange(len(self._streams))).reader.close()

    def _drop(self) -> None:
        self._directory.drop()

    def _read(self) -> None:
        if self._streams:
            self._read_part(self._random.choice(self._streams))

    def _read_all(self) -> None:
        if self._streams:
            self._finish(self._random.choice(self._streams))

    def _finish(self, stream: Stream) -> None:
        while not self._read_part(stream):
            pass

    def _read_part(self, stream: Stream) -> bool:
        """True at the end, where the stream is checked, and maybe closed."""
        if not stream.read and not stream.position:
            # What counts is when its first part is read.
            stream.began = self._step
        part = stream.reader.read(self._random.choice(BUFFERS))
        stream.read += part
        if part:
            return False
        self._check(stream)
        stream.reader.close()
        self._streams.remove(stream)
        return True

    def _check(self, stream: Stream) -> None:
        self.counts["checked"] += 1
        places = [entry.offset & MASK for entry in stream.read]
        assert places == sorted(set(places)), f"step {self._step}: positions go back or stand still"
        assert all(0 < entry.offset < 1 << 63 for entry in stream.read)
        at = stream.position & MASK
        names = Counter(entry.name for entry in stream.read)
        twice = [name for name, count in names.items() if count > 1 and not self._may_be_twice(name, stream)]
        assert not twice, f"step {self._step}: listed twice, having begun at {stream.began}: {twice}"
        dots = {name for name, place in ((b".", 1), (b"..", 2)) if place > at}
        assert dots == {b".", b".."} & set(names), f"step {self._step}: {dots}"
        staying = {n for n, since in self._since.items() if since < stream.began and listings.home_of(n) > at}
        missing = staying - set(names)
        assert not missing, f"step {self._step}: not listed, having begun at {stream.began}: {missing}"
        away = {n for n in self._names if n not in self._since and self._gone.get(n, -1) < stream.began}
        assert not away & set(names), (
            f"step {self._step}: listed, though gone before {stream.began}: {away & set(names)}"
        )

    def _may_be_twice(self, name: bytes, stream: Stream) -> bool:
        return self._has_twins and self._since.get(name, self._step) >= stream.began
