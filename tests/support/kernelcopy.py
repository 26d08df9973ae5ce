"""What Linux does with the parts of a directory's listing that FUSE gives it: fs/fuse/readdir.c in Python.

One copy of the listing for all handles, in pages of 4 KiB that may go at any time; filled by whoever reads on where it
ends; whole once somebody was told there that nothing follows.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from sessfs.mount.fusewire import ENTRY_BYTES, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE
from tests.support.listings import Entry

if TYPE_CHECKING:
    from random import Random

    from sessfs.mount.directories import Directories
    from sessfs.types import Ino

PAGE = 4096
_OPEN_OUT = struct.Struct("<QII")
_DIRENT = struct.Struct("<QQII")
_USER_HEAD = 19
"""Bytes of a linux_dirent64 before the name."""


class _Kept(NamedTuple):
    """An entry in a page of the copy."""

    page: int
    size: int
    entry: Entry


def _wire_bytes(name: bytes) -> int:
    return (_DIRENT.size + len(name) + 7) & ~7


def _user_bytes(name: bytes) -> int:
    return (_USER_HEAD + len(name) + 1 + 7) & ~7


class KernelCopy:
    """The kernel's side of one directory."""

    def __init__(self, directories: Directories, ino: Ino, random: Random) -> None:
        self.directories = directories
        self.ino = ino
        self.random = random
        self.changes = 0
        """The directory's i_version."""
        self.requests = 0
        self.pages: set[int] = set()
        self.kept: list[_Kept] = []
        self.is_whole = False
        self.version = 0
        self.position = 0
        self.size = 0
        self.made_at = 0

    def reset(self) -> None:
        self.is_whole = False
        self.version += 1
        self.kept, self.position, self.size = [], 0, 0

    def open(self) -> KernelHandle:
        fh, flags, _ = _OPEN_OUT.unpack(self.directories.open(self.ino))
        if not flags & FOPEN_KEEP_CACHE:
            self.pages.clear()
        return KernelHandle(self, fh, is_cached=bool(flags & FOPEN_CACHE_DIR))

    def drop(self) -> None:
        """Memory is short: all pages go, or one."""
        if self.random.random() < 0.7:
            self.pages.clear()
        elif self.pages:
            self.pages.discard(self.random.choice(sorted(self.pages)))

    def add(self, entry: Entry, before: int) -> None:
        """fuse_add_dirent_to_cache."""
        if self.is_whole or before != self.position:
            return
        length, index, offset = _wire_bytes(entry.name), self.size // PAGE, self.size % PAGE
        if offset + length > PAGE:
            index, offset = index + 1, 0
        if offset and index not in self.pages:
            return
        if not offset:
            # What was in a page that went is not in the new one.
            self.kept = [kept for kept in self.kept if kept.page != index]
            self.pages.add(index)
        self.kept.append(_Kept(index, length, entry))
        self.size, self.position = index * PAGE + offset + length, entry.offset

    def end(self, position: int) -> None:
        """fuse_readdir_cache_end."""
        if position == self.position:
            self.is_whole = True


class KernelHandle:
    """One struct file, read by getdents64."""

    def __init__(self, copy: KernelCopy, fh: int, *, is_cached: bool) -> None:
        self.copy = copy
        self.fh = fh
        self.is_cached = is_cached
        self.at = 0
        self.index = 0
        """Where in the copy it is, and which position that is."""
        self.index_at = 0
        self.version = 0

    def seek(self, position: int) -> None:
        self.at = position

    def close(self) -> None:
        self.copy.directories.close(self.fh)

    def read(self, size: int) -> list[Entry]:
        out: list[Entry] = []
        if not (self.is_cached and self._read_copy(out, size)):
            self._ask(out, size)
        return out

    def _read_copy(self, out: list[Entry], size: int) -> bool:
        """fuse_readdir_cached; False: ask."""
        copy = self.copy
        if self.index_at != self.at:
            self.index = self.index_at = 0
        if not copy.is_whole:
            if self.at == 0 and not copy.size:
                copy.made_at = copy.changes
            return False
        if self.at == 0 and copy.changes != copy.made_at:
            copy.reset()
            copy.made_at = copy.changes
            return False
        if self.version != copy.version:
            self.index = self.index_at = 0
        if self.index_at == 0:
            self.version = copy.version
        return self._walk(out, size)

    def _walk(self, out: list[Entry], size: int) -> bool:
        copy = self.copy
        found = self.index >= len(copy.kept)
        page = 0 if not self.index else copy.kept[self.index - 1].page
        while self.index < len(copy.kept):
            kept = copy.kept[self.index]
            # Every page up to the one of the entry is looked at.
            if any(number not in copy.pages for number in range(page, kept.page + 1)):
                copy.reset()
                return bool(out)
            page = kept.page
            if self.index_at == self.at:
                found = True
                size -= _user_bytes(kept.entry.name)
                if size < 0:
                    return True
                out.append(kept.entry)
                self.at = kept.entry.offset
            self.index_at = kept.entry.offset
            self.index += 1
        return found

    def _ask(self, out: list[Entry], size: int) -> None:
        """fuse_readdir_uncached, with READDIRPLUS or READDIR: the answers must agree."""
        copy = self.copy
        copy.requests += 1
        plus = copy.random.random() < 0.5
        answer = copy.directories.read(self.fh, self.at, max(size, PAGE), plus=plus)
        assert len(answer) <= max(size, PAGE)
        if not answer:
            copy.end(self.at)
            return
        at, over = 0, False
        while at < len(answer):
            if plus:
                at += ENTRY_BYTES
            ino, offset, length, kind = _DIRENT.unpack_from(answer, at)
            entry = Entry(answer[at + _DIRENT.size : at + _DIRENT.size + length], ino, offset, kind)
            at += _wire_bytes(entry.name)
            if over:
                continue
            if self.is_cached:
                copy.add(entry, self.at)
            size -= _user_bytes(entry.name)
            over = size < 0
            if not over:
                out.append(entry)
                self.at = entry.offset
