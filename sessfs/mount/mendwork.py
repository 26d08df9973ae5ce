"""The mending process: has the kernel let go of pages and lengths of files, as it is told on its standard input.

A process of its own, which must not have the device open: it makes system calls on the mount and waits for the daemon,
and could not be ended, nor the daemon, were one to wait for the other. It loads next to nothing, and ends with its
input.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any, TypedDict


class Job(TypedDict):
    """What to do with one file: *path* are the names that lead to it from *root*, the mountpoint, in hexadecimal. It
    must be inode *ino* of *device*. Of each of the ranges in *drop* the kernel lets go of its pages. Then the file's
    length becomes *size*, unless that is None.
    """

    root: str
    device: int
    path: list[str]
    ino: int
    drop: list[list[int]]
    size: int | None


def find_file(job: Job) -> int:
    """A descriptor that names the file without opening it. No symlink is followed. Raises OSError."""
    fd = os.open(job["root"], os.O_PATH | os.O_DIRECTORY)
    for name in job["path"]:
        try:
            below = os.open(bytes.fromhex(name), os.O_PATH | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    found = os.fstat(fd)
    if (found.st_dev, found.st_ino) != (job["device"], job["ino"]):
        os.close(fd)
        raise FileNotFoundError(f"inode {job['ino']} is not there")
    return fd


def mend(job: Job) -> None:
    """Do it. Raises OSError."""
    fd = find_file(job)
    try:
        place = f"/proc/self/fd/{fd}"
        if job["drop"]:
            drop(place, job["drop"])
        if job["size"] is not None:
            os.truncate(place, job["size"])
    finally:
        os.close(fd)


def drop(place: str, ranges: list[list[int]]) -> None:
    """The daemon has this process write without the page cache, for which the kernel first lets go of the pages of the
    range; then it refuses the write.
    """
    fd = os.open(place, os.O_WRONLY)
    try:
        for start, end in ranges:
            try:
                os.pwrite(fd, bytes(end - start), start)
            except BlockingIOError:
                continue
            raise RuntimeError("the daemon took what it should have refused")
    finally:
        os.close(fd)


def main() -> None:
    """One job a line, as JSON; one answer a line: empty, or what went wrong."""
    # A limit that the daemon has is about its own files.
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    for line in sys.stdin:
        answer: Any = ""
        try:
            mend(json.loads(line))
        except Exception as exc:
            answer = str(exc) or repr(exc)
        print(" ".join(answer.split()), flush=True)


if __name__ == "__main__":
    main()
