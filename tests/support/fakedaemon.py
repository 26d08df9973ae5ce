"""A daemon that keeps launch's protocol and serves an empty filesystem, or breaks the protocol in a chosen way.

Started as `python fakedaemon.py MODE [--ready-fd N]`, so that launch and unmount are tested without the real one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
import sys
import time
from pathlib import Path

import pyfuse3
import trio

from sessfs.config import Settings


# Its handlers have no types, and say so: they would be pyfuse3's own, which repeat in each signature.
class Empty(pyfuse3.Operations):
    """A root directory with one empty file, `file`."""

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o644
        entry.st_nlink = 1
        entry.attr_timeout = entry.entry_timeout = 60
        return entry

    async def lookup(self, parent_inode, name, ctx):  # type: ignore[no-untyped-def]
        """Find `file`, and nothing else."""
        if name == b"file":
            return self._attributes(2)
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def getattr(self, inode, ctx):  # type: ignore[no-untyped-def]
        """Attributes of the root or the file."""
        return self._attributes(inode)

    async def statfs(self, ctx):  # type: ignore[no-untyped-def]
        """Numbers that mean nothing."""
        return pyfuse3.StatvfsData()

    async def open(self, inode, flags, ctx):  # type: ignore[no-untyped-def]
        """Open the file."""
        return pyfuse3.FileInfo(fh=inode)

    async def opendir(self, inode, ctx):  # type: ignore[no-untyped-def]
        """Open the root."""
        return inode

    async def readdir(self, fh, start_id, token):  # type: ignore[no-untyped-def]
        """List nothing."""


def serve(settings: Settings, ready_fd: int) -> None:
    """Mount, say so, and serve until unmounted or told to end."""
    lock = os.open(settings.state_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    options = {"subtype=sessfs", f"fsname={settings.state_dir}", *settings.mount_options}
    pyfuse3.init(Empty(), str(settings.mountpoint), options)
    os.write(ready_fd, json.dumps({"ok": True, "pid": os.getpid()}).encode() + b"\n")
    os.close(ready_fd)
    trio.run(pyfuse3.main)
    pyfuse3.close()


def main(mode: str, ready_fd: int) -> None:
    """Do as *mode* says."""
    settings = Settings.from_json(sys.stdin.buffer.read())
    if mode == "serve":
        serve(settings, ready_fd)
    elif mode == "refuse":
        os.write(ready_fd, b'{"ok": false, "error": "the bucket is not ours", "exit_code": 32}\n')
    elif mode == "die":
        print("first line\nlast words", flush=True)
        sys.exit(3)
    elif mode == "lie":
        os.write(ready_fd, b'{"ok": true, "pid": 1}\n')
        time.sleep(60)
    elif mode == "babble":
        os.write(ready_fd, b"hello\n")
        time.sleep(60)
    elif mode == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(settings.state_dir / "hanging").write_text(str(os.getpid()))
        time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[3]))
