"""A process that has the kernel write back what it holds of single files of a mount. `pages` is the daemon's side.

A process of its own: the daemon would wait for itself, and could not even be killed while it does. It reads one line a
request, inode numbers in hexadecimal, and answers each with one line: nothing, or what went wrong. Between requests
it has nothing of the mount open.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys

from sessfs.mount import syscalls

HANDLE = struct.Struct("<IiIII")
"""struct file_handle: its length and type, and for FUSE the two halves of the inode's number and its generation."""
INO64_GEN = 0x81


def write_back(mountpoint: str, inodes: list[int], files: list[int]) -> None:
    """Return when the daemon has what the kernel held of the files at the call. *files* gets descriptors to be closed
    after that has been said: closing one can wait for who syncs the file. Raises OSError.
    """
    root = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    files.append(root)
    try:
        for ino in inodes:
            handle = HANDLE.pack(12, INO64_GEN, ino >> 32, ino & 0xFFFFFFFF, 0)
            with contextlib.suppress(FileNotFoundError):
                files.append(syscalls.open_by_handle(root, handle, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        for fd in files[1:]:
            syscalls.write_back(fd)
    except OSError:
        # Only root opens files by number. All of the mount takes longer, and has them in it.
        syscalls.syncfs(mountpoint)


def main() -> None:
    """Serve until standard input ends."""
    mountpoint = sys.argv[1]
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
