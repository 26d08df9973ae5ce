"""What is mounted where: /proc/self/mountinfo, read and searched."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from sessfs.errors import NotMounted

FS_TYPE = "fuse.sessfs"
"""How a sessfs mount is called in mountinfo; its source is its state directory."""

MOUNTINFO = Path("/proc/self/mountinfo")


class Mount(msgspec.Struct, frozen=True):
    """One line of mountinfo, escapes undone."""

    mount_id: int
    device: str
    """`major:minor`."""
    mountpoint: str
    options: str
    fs_type: str
    source: str


def parse(text: bytes) -> list[Mount]:
    """The mounts of *text*, in its order: where several are stacked on one directory, the last is the visible one."""
    mounts = []
    # Not splitlines: a carriage return or a form feed in a path is not escaped.
    for line in filter(None, text.split(b"\n")):
        left, _, right = line.partition(b" - ")
        fields, tail = left.split(b" "), right.split(b" ")
        mounts.append(
            Mount(
                mount_id=int(fields[0]),
                device=fields[2].decode("ascii"),
                mountpoint=_unescape(fields[4]),
                options=_unescape(fields[5]),
                fs_type=_unescape(tail[0]),
                source=_unescape(tail[1]),
            )
        )
    return mounts


def _unescape(field: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field))


def read_mounts() -> list[Mount]:
    """All mounts that this process sees."""
    return parse(MOUNTINFO.read_bytes())


def find_mount(mountpoint: Path) -> Mount | None:
    """The topmost mount exactly at *mountpoint* (as resolve gives it); None if nothing is mounted there."""
    found = [mount for mount in read_mounts() if mount.mountpoint == str(mountpoint)]
    return found[-1] if found else None


def sessfs_mounts() -> list[Mount]:
    """The visible sessfs mounts, dead ones too, by mountpoint."""
    visible = {mount.mountpoint: mount for mount in read_mounts()}
    return sorted((m for m in visible.values() if m.fs_type == FS_TYPE), key=lambda m: m.mountpoint)


def resolve(path: Path) -> Path:
    """*path* absolute and without symlinks, as mountinfo writes it.

    The last component is not touched if something is mounted there: it may be dead, or hang.
    """
    absolute = Path(os.path.abspath(path))
    candidate = Path(os.path.realpath(absolute.parent)) / absolute.name
    if find_mount(candidate) is not None:
        return candidate
    return Path(os.path.realpath(candidate))


def mount_of(place: Path) -> Path:
    """The sessfs mountpoint that *place* is, or lies in. Raises NotMounted. A dead or hanging mount is not touched."""
    absolute = resolve(Path(os.path.abspath(place)))
    within = [Path(mount.mountpoint) for mount in sessfs_mounts()]
    found = [mountpoint for mountpoint in within if absolute.is_relative_to(mountpoint)]
    if not found:
        raise NotMounted(f"{place} is neither a sessfs mount nor in one: `sessfs status` lists the mounts")
    return max(found, key=lambda mountpoint: len(mountpoint.parts))
