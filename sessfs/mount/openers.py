"""Who keeps a mount busy: the processes with open files, working directories or mappings on it.

Everything is read from /proc without one request to the mount, so that it works on a mount that hangs.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import msgspec

from sessfs.mount.mountinfo import find_mount

if TYPE_CHECKING:
    from pathlib import Path

    from sessfs.mount.mountinfo import Mount


class Opener(msgspec.Struct, frozen=True):
    """A process that keeps the mount busy."""

    pid: int
    command: str
    paths: tuple[str, ...]
    """What it has there, a path once, sorted."""

    def __str__(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{self.command} (pid {self.pid}: {self.paths[0]}{more})"


def find_openers(mount: Mount) -> list[Opener]:
    """The processes that have files, cwd, root, exe or mappings on *mount*, by pid.

    Sees what this user may see of other users' processes: as root, all of them in this pid namespace.
    """
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            paths = _paths_on(f"/proc/{name}", mount)
            if paths:
                found.append(Opener(pid=int(name), command=_command(name), paths=tuple(sorted(paths))))
    return sorted(found, key=lambda opener: opener.pid)


def name_users(mountpoint: Path, session: str) -> str:
    """The processes that keep the session busy, in words to put behind an error, each after a semicolon; empty where
    they can't be seen, as from within a container. Takes a while with many processes: for a thread.
    """
    mount = find_mount(mountpoint)
    if mount is None:
        return ""
    root = f"{mount.mountpoint.rstrip('/')}/{session}"
    inside = [o for o in find_openers(mount) if any(p == root or p.startswith(f"{root}/") for p in o.paths)]
    return "".join(f"; {opener}" for opener in inside)


def _command(pid: str) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
        return comm.read().strip()
    return "?"


def _paths_on(proc: str, mount: Mount) -> set[str]:
    paths = set()
    for link in ("cwd", "root", "exe"):
        with contextlib.suppress(OSError):
            path = os.readlink(f"{proc}/{link}").removesuffix(" (deleted)")
            if path == mount.mountpoint or path.startswith(mount.mountpoint.rstrip("/") + "/"):
                paths.add(path)
    return paths | _open_files(proc, mount) | _mappings(proc, mount)


def _open_files(proc: str, mount: Mount) -> set[str]:
    """By mount id, which also finds a file opened through another path."""
    wanted = f"mnt_id:\t{mount.mount_id}"
    paths = set()
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"{proc}/fdinfo"):
            with contextlib.suppress(OSError):
                with open(f"{proc}/fdinfo/{fd}", encoding="utf-8", errors="replace") as fdinfo:
                    here = any(line.rstrip() == wanted for line in fdinfo)
                if here:
                    paths.add(os.readlink(f"{proc}/fd/{fd}"))
    return paths


def _mappings(proc: str, mount: Mount) -> set[str]:
    """By device number, which mountinfo writes in decimal and maps in hexadecimal."""
    major, minor = (int(part) for part in mount.device.split(":"))
    device = f"{major:02x}:{minor:02x}"
    paths = set()
    with contextlib.suppress(OSError), open(f"{proc}/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[3] == device:
                paths.add(fields[5].rstrip("\n"))
    return paths
