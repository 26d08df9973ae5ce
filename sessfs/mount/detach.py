"""The daemon's helper at SIGTERM: flush the kernel's pages of a mount, then take it away, open files or not.

A process of its own: the daemon would wait for itself. It ends with the daemon: the mount that it would then find is
the next one's.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

from sessfs.local.parent import end_with_parent
from sessfs.mount import syscalls

SYNC_TIMEOUT_S = 20.0


def detach(mountpoint: str) -> None:
    """Unmount; if it is busy, lazily: open files go on until they are closed, names are gone at once."""
    with contextlib.suppress(OSError, TimeoutError):
        syscalls.within(SYNC_TIMEOUT_S, lambda: syscalls.syncfs(mountpoint), "flushing")
    if os.geteuid() != 0:
        if subprocess.run(["fusermount3", "-u", mountpoint], capture_output=True, check=False).returncode:
            subprocess.run(["fusermount3", "-u", "-z", mountpoint], capture_output=True, check=False)
        return
    try:
        syscalls.umount2(mountpoint, 0)
    except OSError:
        with contextlib.suppress(OSError):
            syscalls.umount2(mountpoint, syscalls.MNT_DETACH)


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    detach(sys.argv[2])
