"""The few system calls that Python lacks, and a bound on the time of any call that may block for ever."""

from __future__ import annotations

import ctypes
import os
import re
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MNT_DETACH = 2
SYNC_FILE_RANGE_ALL = 7
"""Wait for what is being written, write, and wait for that."""
UMOUNT_NOFOLLOW = 8
CAP_SYS_ADMIN = 21


def umount2(mountpoint: str, flags: int) -> None:
    """Unmount the topmost filesystem at *mountpoint*. Raises OSError as umount2(2); never follows a symlink."""
    _libc_call("umount2", mountpoint, os.fsencode(mountpoint), ctypes.c_int(flags | UMOUNT_NOFOLLOW))


def syncfs(path: str) -> None:
    """Write out what the kernel holds of the filesystem at *path*. May block as long as its daemon does."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _libc_call("syncfs", path, ctypes.c_int(fd))
    finally:
        os.close(fd)


def open_by_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """A descriptor of the file that *handle*, a struct file_handle, stands for. Only root may. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.open_by_handle_at(ctypes.c_int(mount_fd), ctypes.c_char_p(handle), ctypes.c_int(flags))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


def write_back(fd: int) -> None:
    """Write out what the kernel holds of the file, without the lock that a sync of it, or a write, has. OSError."""
    whole = (ctypes.c_int64(0), ctypes.c_int64(0))
    _libc_call("sync_file_range", f"descriptor {fd}", ctypes.c_int(fd), *whole, ctypes.c_uint(SYNC_FILE_RANGE_ALL))


def may_mount() -> bool:
    """Whether this process has CAP_SYS_ADMIN, which root in a container usually lacks."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> CAP_SYS_ADMIN & 1)
    return False


def kernel_version() -> tuple[int, int]:
    """Of Linux, as (6, 18); (0, 0) where it does not say."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def within(timeout_s: float, function: Callable[[], T], what: str) -> T:
    """Return what *function* returns, or raise what it raises; TimeoutError naming *what* after *timeout_s*.

    After a TimeoutError the call goes on in a daemon thread, which does not keep the process from exiting.
    """
    answer: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(function())
        except BaseException as exc:
            failure.append(exc)

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if failure:
        raise failure[0]
    if not answer:
        raise TimeoutError(f"{what} did not finish within {timeout_s:g} s")
    return answer[0]


def _libc_call(name: str, path: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
