"""Everything on this machine that would stop a mount, or make it worse than it could be, with how to mend it."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from enum import StrEnum
from pathlib import Path

import msgspec

import sessfs
from sessfs.errors import SessfsError
from sessfs.mount import mountinfo, preflight

MIN_OPEN_FILES = 4096
MIN_FREE_BYTES = 1024**3
PROGRAM_TIMEOUT_S = 20.0
_REMOTE_FS = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "afs", "lustre")
_FLEETING_FS = ("tmpfs", "ramfs", "overlay")


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    """A mount works, but not as well or as safely as it could."""
    PROBLEM = "problem"
    """A mount would fail."""


class Finding(msgspec.Struct, frozen=True):
    """The outcome of one check."""

    check: str
    level: Level
    message: str
    remedy: str = ""
    """What to do; empty when all is well."""


def examine(state_dir: Path) -> list[Finding]:
    """Every check, in the order in which one would mend things. *state_dir* need not exist. Changes nothing."""
    return [
        _check_host(),
        _check_fusermount(),
        _check_libfuse(),
        _check_allow_other(),
        _check_state(state_dir),
        _check_state_filesystem(state_dir),
        _check_room(state_dir),
        _check_open_files(),
        _check_clock(time.time()),
        _check_dead_mounts(),
    ]


def _check_host() -> Finding:
    try:
        preflight.check_host()
    except SessfsError as exc:
        message, _, remedy = str(exc).partition(": ")
        return Finding("fuse", Level.PROBLEM, message, remedy)
    return Finding("fuse", Level.OK, f"{preflight.FUSE_DEVICE} is there, and uid {os.geteuid()} may mount")


def _check_fusermount() -> Finding:
    program = shutil.which("fusermount3")
    if program is not None:
        return Finding("fusermount3", Level.OK, program)
    if os.geteuid() == 0:
        return Finding("fusermount3", Level.WARNING, "missing; only root can mount", "install the package fuse3")
    return Finding("fusermount3", Level.PROBLEM, "missing", "install the package fuse3")


def _check_libfuse() -> Finding:
    """In a process of its own: a missing libfuse3.so makes the import fail, and the command must live on."""
    code = "import pyfuse3; print(pyfuse3.__version__)"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=PROGRAM_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )
    if ran.returncode == 0:
        return Finding("pyfuse3", Level.OK, f"version {ran.stdout.strip()}")
    last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
    return Finding(
        "pyfuse3", Level.PROBLEM, f"can't be imported: {last}", "install libfuse3-dev, then reinstall sessfs with pip"
    )


def _check_allow_other() -> Finding:
    if os.geteuid() == 0:
        return Finding("allow_other", Level.OK, "root's mounts have it")
    if preflight.user_allow_other():
        return Finding("allow_other", Level.OK, f"allowed by {preflight.FUSE_CONF}")
    return Finding(
        "allow_other",
        Level.WARNING,
        "only the user who mounts will see the files",
        f"add the line `user_allow_other` to {preflight.FUSE_CONF}, and mount with -o allow_other",
    )


def _check_state(state_dir: Path) -> Finding:
    try:
        preflight.check_state(state_dir)
    except SessfsError as exc:
        message, _, remedy = str(exc).rpartition(": ")
        return Finding("state", Level.PROBLEM, message or str(exc), remedy)
    existing = _existing(state_dir)
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            "state", Level.PROBLEM, f"uid {os.geteuid()} may not write to {existing}", "give --state another place"
        )
    made = "" if existing == state_dir else " (will be made)"
    return Finding("state", Level.OK, f"{state_dir}{made}")


def _check_state_filesystem(state_dir: Path) -> Finding:
    """LMDB maps its files and locks with fcntl: network filesystems do neither well enough."""
    existing = _existing(state_dir)
    around = [
        m for m in mountinfo.read_mounts() if existing == Path(m.mountpoint) or existing.is_relative_to(m.mountpoint)
    ]
    mount = max(enumerate(around), key=lambda pair: (len(pair[1].mountpoint), pair[0]))[1]
    where = f"{existing} is on {mount.fs_type}"
    if mount.fs_type in _REMOTE_FS or mount.fs_type.startswith("fuse"):
        return Finding("filesystem", Level.WARNING, f"{where}: LMDB may be damaged there", "give --state a local disk")
    if mount.fs_type in _FLEETING_FS:
        return Finding(
            "filesystem", Level.WARNING, f"{where}: lost with the machine or container", "use a volume or disk"
        )
    return Finding("filesystem", Level.OK, where)


def _check_room(state_dir: Path) -> Finding:
    existing = _existing(state_dir)
    found = os.statvfs(existing)
    free_bytes = found.f_bavail * found.f_frsize
    text = f"{free_bytes / 1024**3:.1f} GiB free at {existing}"
    if free_bytes < MIN_FREE_BYTES // 16:
        return Finding("room", Level.PROBLEM, text, "free disk space, or give --state another disk")
    if free_bytes < MIN_FREE_BYTES or (found.f_files and found.f_favail < 10_000):
        return Finding("room", Level.WARNING, f"{text}, {found.f_favail} inodes", "free space, or move the state")
    return Finding("room", Level.OK, text)


def _check_open_files() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= MIN_OPEN_FILES:
        return Finding("open files", Level.OK, f"up to {hard}")
    return Finding(
        "open files",
        Level.WARNING,
        f"RLIMIT_NOFILE is {hard}: many files being written at once will fail with EMFILE",
        f"raise it to {MIN_OPEN_FILES}: `ulimit -Hn`, LimitNOFILE= in systemd, or --ulimit nofile in Docker",
    )


def _check_clock(now_s: float) -> Finding:
    """A clock that stands before this installation was made is wrong; S3 refuses requests 15 minutes off."""
    installed_s = Path(sessfs.__file__).stat().st_mtime
    if now_s < installed_s - 86400:
        return Finding(
            "clock", Level.WARNING, "it is earlier than this installation", "set it: `timedatectl set-ntp true`"
        )
    program = shutil.which("timedatectl")
    if program is not None:
        ran = subprocess.run(
            [program, "show", "-p", "NTPSynchronized", "--value"],
            capture_output=True,
            text=True,
            check=False,
            timeout=PROGRAM_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
        if ran.returncode == 0 and ran.stdout.strip() == "no":
            return Finding("clock", Level.WARNING, "not synchronized by NTP", "`timedatectl set-ntp true`")
    return Finding("clock", Level.OK, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s)))


def _check_dead_mounts() -> Finding:
    dead = [mount.mountpoint for mount in mountinfo.sessfs_mounts() if preflight.is_dead(mount)]
    if not dead:
        return Finding("mounts", Level.OK, f"{len(mountinfo.sessfs_mounts())} up, none dead")
    return Finding(
        "mounts", Level.WARNING, f"dead: {', '.join(dead)}", "`sessfs mount` there again, or `sessfs umount`"
    )


def _existing(path: Path) -> Path:
    """*path*, or its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    return path
