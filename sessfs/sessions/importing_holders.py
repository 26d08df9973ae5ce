"""Who is using a profile that is to be imported: the Chrome that locked it, and whoever has files of it open to write.

Sees what this user may see of other users' processes: as root, all of them in this pid namespace.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from sessfs import chrome

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

ACCESS_MODE = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
LOCK_DEPTH = 2
"""A lock lies in the profile: the session's directory, or one in it."""


class Holder(NamedTuple):
    """A process that uses a directory, and by what it is known."""

    pid: int
    command: str
    path: bytes

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid}: {self.path.decode(errors='replace')})"


def find_holders(directories: Collection[bytes]) -> dict[bytes, Holder]:
    """Of each of *directories* (absolute, links resolved) that is in use: who uses it."""
    found = {directory: holder for directory in directories if (holder := _locker(directory)) is not None}
    own = os.getpid()
    for name in os.listdir(b"/proc"):
        if not name.isdigit() or int(name) == own:
            continue
        for path in _written(b"/proc/" + name):
            directory = _ancestor(path, directories)
            if directory is not None and directory not in found:
                found[directory] = Holder(int(name), _command(int(name)), path)
    return found


def _ancestor(path: bytes, directories: Collection[bytes]) -> bytes | None:
    while path not in (b"/", b""):
        if path in directories:
            return path
        path = os.path.dirname(path)
    return None


def _locker(directory: bytes, depth: int = LOCK_DEPTH) -> Holder | None:
    """The live process of this host that a lock in the directory names."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if depth > 1 and entry.is_dir(follow_symlinks=False):
                holder = _locker(entry.path, depth - 1)
                if holder is not None:
                    return holder
            elif entry.is_symlink():
                owner = chrome.lock_owner(entry.name, os.readlink(entry.path))
                if owner is not None and owner[0] == socket.gethostname() and _lives(owner[1]):
                    return Holder(owner[1], _command(owner[1]), entry.path)
    return None


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b") ")[2][:1] not in (b"Z", b"X")
    except OSError:
        return False


def _command(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
        return comm.read().strip()
    return "?"


def _written(proc: bytes) -> Iterator[bytes]:
    """Paths of the files that the process has open for writing."""
    try:
        fds = os.listdir(proc + b"/fd")
    except OSError:
        return
    for fd in fds:
        with contextlib.suppress(OSError, ValueError, StopIteration):
            path = os.readlink(proc + b"/fd/" + fd)
            if not path.startswith(b"/"):
                continue
            with open(proc + b"/fdinfo/" + fd, "rb") as info:
                flags = int(next(line for line in info if line.startswith(b"flags:")).split()[1], 8)
            if flags & ACCESS_MODE != os.O_RDONLY:
                yield path.removesuffix(b" (deleted)")
