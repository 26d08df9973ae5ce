"""A process that has the kernel write back what it holds of single files of a mount. `pages` is the daemon's side.

A process of its own: the daemon would wait for itself, and could not even be killed while it does. It reads one line a
request, inode numbers in hexadecimal, and answers each with one line: nothing, or what went wrong. Between requests it
has nothing of the mount open.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys

from sessfs.local.parent import end_with_parent
from sessfs.mount import syscalls

HANDLE = struct.Struct("<IiIII")
"""struct file_handle: its length and type, and for FUSE the two halves of the inode's number and its generation."""
INO64_GEN = 0x81


def write_back(mountpoint: str, inodes: list[int], files: list[int]) -> None:
    """Return when the daemon has what the kernel held of the files at the call. *files* gets descriptors to be closed
    after that has been said: closing one can wait for who syncs the file. Raises OSError.
    """
    try:
        opened = _open(mountpoint, inodes, files)
    except OSError:
        # Only root opens files by number. All of the mount takes longer, and has them in it.
        syscalls.syncfs(mountpoint)
        return
    for fd in opened:
        # What the daemon refused it knows of, and whoever wrote it will.
        with contextlib.suppress(OSError):
            syscalls.write_back(fd)


def _open(mountpoint: str, inodes: list[int], files: list[int]) -> list[int]:
    """Descriptors of the inodes that are there. All that was opened is in *files*. Raises OSError."""
    root = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    files.append(root)
    for ino in inodes:
        handle = HANDLE.pack(12, INO64_GEN, ino >> 32, ino & 0xFFFFFFFF, 0)
        try:
            files.append(syscalls.open_by_handle(root, handle, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ESTALE):
                raise
    return files[1:]


def main() -> None:
    """`pageworker PID MOUNTPOINT`, PID being the daemon: serve until standard input ends."""
    end_with_parent(int(sys.argv[1]))
    mountpoint = sys.argv[2]
    for line in sys.stdin:
        files: list[int] = []
        problem = ""
        try:
            write_back(mountpoint, [int(word, 16) for word in line.split()], files)
        except OSError as exc:
            problem = str(exc)
        print(problem, flush=True)
        for fd in files:
            with contextlib.suppress(OSError):
                os.close(fd)


if __name__ == "__main__":
    main()
