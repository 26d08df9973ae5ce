"""Trees for tests of exports: made on a disk, described, compared."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

NOT_UTF8 = b"odd \xff\xfe"


class Seen(NamedTuple):
    """What of an entry an export is to keep; *first* is the first path, by bytes, with the same inode."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    first: bytes
    content: bytes | None
    xattrs: dict[str, bytes]


def make_profile(where: Path, *, odd: bool = True) -> None:
    """A session as a user leaves it: a profile, holes, links, odd names, attributes, many small files."""
    for directory in (
        "Default/IndexedDB/a.leveldb",
        "Default/Local Storage/leveldb",
        "Default/Cache/Cache_Data",
        "empty",
    ):
        (where / directory).mkdir(parents=True)
    (where / "Local State").write_bytes(b'{"browser": {}}')
    (where / "Default/Preferences").write_bytes(b"{}")
    (where / "Default/IndexedDB/a.leveldb/000003.log").write_bytes(bytes(range(256)) * 4000)
    (where / "Default/IndexedDB/a.leveldb/CURRENT").write_bytes(b"MANIFEST-000001\n")
    (where / "Default/Local Storage/leveldb/LOG").write_bytes(b"")
    (where / "Default/Cache/Cache_Data/index").write_bytes(b"cached" * 100)
    for number in range(40):
        (where / "Default" / f"small {number}").write_bytes(b"%d" % number * number)
    with (where / "holes").open("wb") as file:
        file.truncate(3 << 20)
        file.seek((1 << 20) + 17)
        file.write(b"data in the middle")
    os.link(where / "Default/Preferences", where / "another name")
    os.symlink("Default/Preferences", where / "link")
    os.symlink("nowhere/at all", where / "dangling")
    os.chmod(where / "Default/Preferences", 0o640)
    os.chmod(where / "empty", 0o2710)
    os.utime(where / "Local State", ns=(1_600_000_000_123_456_789, 1_500_000_000_987_654_321))
    if odd:
        (where / "Default" / "名前 ü\n\\ '\"").write_bytes(b"named oddly")
        (where / "long".ljust(250, "g")).write_bytes(b"long")
        with open(os.path.join(os.fsencode(where), NOT_UTF8), "wb") as file:
            file.write(b"not UTF-8")
        os.setxattr(where / "Local State", "user.text", b"text")
        os.setxattr(where / "Local State", "user.bytes", b"\0\xff\n=")
        os.setxattr(where / "empty", "user.dir", b"1")
    _stamp(where)


def _stamp(where: Path) -> None:
    """Give everything a time of its own. A mount that caches writes is not of one mind with its kernel otherwise: the
    kernel takes the time of the write, the daemon that of its arrival.
    """
    for number, path in enumerate(sorted(_paths(os.fsencode(where)), reverse=True)):
        if path != os.fsencode(where / "Local State"):
            now = 1_700_000_000_000_000_001 + number * 1_000_000_007
            os.utime(path, ns=(now, now + 1), follow_symlinks=False)


def _paths(root: bytes) -> list[bytes]:
    found = [root]
    for directory, names, files in os.walk(root):
        found += [os.path.join(directory, name) for name in (*names, *files)]
    return found


def look(where: Path | str) -> dict[bytes, Seen]:
    """Everything below *where*, and the directory itself as the empty path."""
    found: dict[bytes, Seen] = {}
    first: dict[int, bytes] = {}
    root = os.fsencode(where)
    for path in sorted(_paths(root)):
        relative = os.path.relpath(path, root) if path != root else b""
        at = os.lstat(path)
        content = None
        if stat.S_ISREG(at.st_mode):
            with open(path, "rb") as file:
                content = file.read()
        elif stat.S_ISLNK(at.st_mode):
            content = os.readlink(path)
        key = at.st_ino if not stat.S_ISDIR(at.st_mode) else -at.st_ino
        xattrs = {n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)}
        found[relative] = Seen(
            at.st_mode, at.st_uid, at.st_gid, at.st_mtime_ns, first.setdefault(key, relative), content, xattrs
        )
    return found


def contents(seen: dict[bytes, Seen]) -> dict[bytes, bytes | None]:
    """Only what is in the files, and where symlinks lead."""
    return {path: one.content for path, one in seen.items()}
