"""What the Python API gives back: immutable records."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from sessfs.sessions.trees import TreeNode


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One session. None is what this kind of store does not know without reading the session."""

    name: str
    """Bytes that are no UTF-8 are there as os.fsdecode gives them."""
    files: int | None = None
    """Everything but directories."""
    logical_bytes: int | None = None
    unique_bytes: int | None = None
    """Content, before compression, that only this session has."""
    last_change: str | None = None
    """RFC 3339, UTC."""
    at_risk_bytes: int | None = None
    """Content that the remote lacks; None without a remote."""
    at_risk_seconds: float | None = None
    """How long the oldest of it has been waiting."""
    last_use: str | None = None
    """The last change, or when Chrome last opened a file of it, to the hour; RFC 3339, UTC."""
    expires: str | None = None
    """When it is due to expire unless it is used; None for never."""


class SnapshotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One kept snapshot of a session."""

    sequence: int
    """What it is called where a snapshot is asked for; it grows with each."""
    taken_ns: int
    """Nanoseconds since 1970."""
    mark: str = ""
    """The operator's word for it; a marked one is kept until it is unmarked."""
    verdict: str = ""
    """"good" or "bad" once it was checked."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a session. Times are nanoseconds since 1970; entries of one *ino* are hard links of one another."""

    path: str
    """Relative to the session; the empty path is the session's own directory."""
    mode: int
    """Type and permissions, as st_mode."""
    size: int
    uid: int
    gid: int
    nlink: int
    ino: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    target: str | None
    """Where a symlink leads."""
    xattrs: dict[str, bytes]
    """Those of the class `user.`."""

    @property
    def is_file(self) -> bool:
        """True for a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_dir(self) -> bool:
        """True for a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_symlink(self) -> bool:
        """True for a symlink."""
        return stat.S_ISLNK(self.mode)


def entry_of(node: TreeNode) -> Entry:
    """The record of *node*."""
    return Entry(
        os.fsdecode(node.path),
        node.mode,
        node.size,
        node.uid,
        node.gid,
        node.nlink,
        node.ino,
        node.atime_ns,
        node.mtime_ns,
        node.ctime_ns,
        None if node.target is None else os.fsdecode(node.target),
        {os.fsdecode(name): value for name, value in node.xattrs.items()},
    )
