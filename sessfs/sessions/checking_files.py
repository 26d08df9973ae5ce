"""What the checks read from: a tree of files, wherever it lies, and what they say of it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Protocol

import msgspec

from sessfs.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


class Entry(msgspec.Struct, frozen=True):
    """A name in a directory. *target* is that of a symbolic link, else empty; other kinds are left out."""

    name: bytes
    is_directory: bool
    size: int
    target: bytes = b""


class Files(Protocol):
    """A tree that is only read. Paths are relative to its root, parts joined by `/`; the root is empty."""

    def entries(self, directory: bytes) -> list[Entry]:
        """Files, directories and links, sorted by name. Raises OSError."""

    def read(self, path: bytes, length: int | None = None) -> bytes:
        """The file's first *length* bytes, or all. Raises OSError, also when bytes are damaged."""


class DirectoryFiles:
    """A directory of this machine, a mounted session or a plain one. Nothing in it is changed, nor access times."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)
        if not os.path.isdir(self._root):
            raise UsageError(f"{root} is no directory: give the directory of a session, or a profile")

    def entries(self, directory: bytes) -> list[Entry]:
        """As in Files."""
        found = []
        with os.scandir(join(self._root, directory)) as listed:
            for each in listed:
                status = each.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
                    found.append(Entry(each.name, stat.S_ISDIR(status.st_mode), status.st_size))
                elif stat.S_ISLNK(status.st_mode):
                    found.append(Entry(each.name, False, status.st_size, os.readlink(each.path)))
        return sorted(found, key=lambda entry: entry.name)

    def read(self, path: bytes, length: int | None = None) -> bytes:
        """As in Files."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(join(self._root, path), flags | os.O_NOATIME)
        except PermissionError:
            fd = os.open(join(self._root, path), flags)  # O_NOATIME is for the owner
        with os.fdopen(fd, "rb") as file:
            return file.read() if length is None else file.read(length)


class FileCheck(msgspec.Struct, frozen=True):
    """One database or settings file. *ok* exactly if nothing is *wrong*; *notes* are worth knowing, no faults."""

    path: str
    """Relative to what was checked; of a LevelDB, its directory."""
    kind: str
    """`SQLite`, `LevelDB` or `JSON`."""
    ok: bool
    wrong: tuple[str, ...] = ()
    remedy: str = ""
    """What to do about what is wrong."""
    notes: tuple[str, ...] = ()


class CheckReport(msgspec.Struct, frozen=True):
    """Everything that Chrome opens, checked. *verdict* is `good` or `bad`."""

    verdict: str
    files: tuple[FileCheck, ...]
    wrong: tuple[str, ...] = ()
    """What is wrong with the whole."""

    @property
    def good(self) -> bool:
        """True if Chrome will open all of it."""
        return self.verdict == "good"


def join(directory: bytes, name: bytes) -> bytes:
    """The path of *name* in *directory*."""
    if not directory or not name:
        return directory + name
    return directory + b"/" + name


def shown(path: bytes) -> str:
    """*path* as text; bytes that are no UTF-8 become lone surrogates, as in all of Python."""
    return path.decode("utf-8", "surrogateescape")


def judge(path: bytes, kind: str, wrong: list[str], remedy: str, notes: list[str] | tuple[str, ...] = ()) -> FileCheck:
    """The outcome for one file: ok if nothing is *wrong*."""
    return FileCheck(shown(path), kind, not wrong, tuple(wrong), remedy if wrong else "", tuple(notes))


def reason(exc: OSError) -> str:
    """Why something could not be read, in a few words."""
    return exc.strerror or str(exc)
