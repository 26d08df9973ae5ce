"""Made-up profiles of Chrome, as whatsapp-web.js leaves them: the same bytes for the same arguments.

Scripts are the same for every user, records are each user's own, and tables that a compaction left behind share records
with those that it made.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import stat
import struct
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

TIME_NS = 1_750_000_000_123_456_789
RECORDS_A_TABLE = 1200
DATABASE = "Default/IndexedDB/https_web.whatsapp.com_0.indexeddb.leveldb"


class Shape(NamedTuple):
    """How large: scripts that all users have, their KiB each, and records that each user has of its own."""

    scripts: int = 4
    script_kib: int = 96
    records: int = 400
    compacted: bool = True


@cache
def _words() -> list[str]:
    source = random.Random("words")
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    return ["".join(source.choices(letters, range(26, 0, -1), k=source.randint(2, 9))) for _ in range(3000)]


def _text(source: random.Random, length: int) -> bytes:
    words = _words()
    parts: list[str] = []
    size = 0
    while size < length:
        word = words[int(len(words) * source.random() ** 3)]
        parts.append(word)
        size += len(word) + 1
    return " ".join(parts).encode()[:length]


@cache
def script(number: int, kib: int) -> bytes:
    """A script, the same for everybody."""
    source = random.Random(f"script {number}")
    lines = [b"function f%d(a,b){return %s}" % (n, _text(source, 60)) for n in range(kib * 12)]
    return b"\n".join(lines)[: kib << 10]


def _record(source: random.Random, number: int) -> bytes:
    row = {"id": f"3EB0{source.getrandbits(72):018X}", "t": 1_750_000_000 + number, "body": _text(source, 40).decode()}
    return json.dumps(row).encode() + source.randbytes(200)


def _tables(source: random.Random, shape: Shape) -> list[bytes]:
    rows = [_record(source, number) for number in range(shape.records)]
    tables = [b"".join(rows[at : at + RECORDS_A_TABLE]) for at in range(0, len(rows), RECORDS_A_TABLE)]
    if shape.compacted:
        # The same records with some left out, so that everything lies elsewhere.
        kept = [row for row in rows if source.random() > 0.02]
        tables += [b"".join(kept[at : at + RECORDS_A_TABLE]) for at in range(0, len(kept), RECORDS_A_TABLE)]
    return tables


def _sqlite(path: Path, source: random.Random) -> None:
    with sqlite3.connect(path) as db:
        db.execute("create table urls (id integer primary key, url text, title text)")
        rows = [(n, f"https://web.whatsapp.com/{source.getrandbits(40)}", _text(source, 30)) for n in range(200)]
        db.executemany("insert into urls values (?, ?, ?)", rows)
    db.close()


def make_profile(directory: Path, user: str, shape: Shape = Shape()) -> None:  # noqa: B008 - immutable
    """A whole profile, as it is after Chrome has ended; parents are made."""
    source = random.Random(f"profile of {user}")
    for below in (
        "Default/Local Storage/leveldb",
        DATABASE,
        "Default/Service Worker/CacheStorage/1",
        "Default/Cache/Cache_Data",
    ):
        (directory / below).mkdir(parents=True)
    (directory / "Local State").write_text(json.dumps({"user": user, "os_crypt": source.getrandbits(128)}))
    (directory / "Default/Preferences").write_text(json.dumps({"profile": {"name": user}, "x": source.random()}))
    _sqlite(directory / "Default/History", source)
    for number in range(shape.scripts):
        head = b"HTTP/1.1 200\nDate: %d\n\n" % source.getrandbits(31)
        (directory / f"Default/Service Worker/CacheStorage/1/{number:016x}_0").write_bytes(
            script(number, shape.script_kib)
        )
        (directory / f"Default/Cache/Cache_Data/{number:016x}_0").write_bytes(
            head + script(number, shape.script_kib // 4)
        )
    for number, table in enumerate(_tables(source, shape), 5):
        (directory / DATABASE / f"{number:06d}.ldb").write_bytes(table)
    (directory / DATABASE / "CURRENT").write_text("MANIFEST-000001\n")
    (directory / DATABASE / "MANIFEST-000001").write_bytes(struct.pack("<Q", source.getrandbits(60)) * 20)
    (directory / DATABASE / "LOCK").touch()
    (directory / "Default/Local Storage/leveldb/000003.log").write_bytes(source.randbytes(5000))
    _oddities(directory, source)
    set_times(directory)


def _oddities(directory: Path, source: random.Random) -> None:
    """What a copy loses easily."""
    sparse = directory / "Default/sparse"
    with sparse.open("wb") as file:
        file.seek(1 << 20)
        file.write(source.randbytes(10_000))
        file.truncate(3 << 20)
    (directory / "Default/empty").touch()
    (directory / "Default/name with ü and \n").write_bytes(b"odd")
    (directory / "Default/link").symlink_to("Preferences")
    os.link(directory / "Default/Preferences", directory / "Default/Preferences.hard")
    os.setxattr(directory / "Default/Preferences", "user.note", b"\0\1binary")
    (directory / "Default/Preferences").chmod(0o640)
    (directory / "Default").chmod(0o700)
    # Left by a Chrome that was killed: its pid can't be alive.
    (directory / "SingletonLock").symlink_to(f"elsewhere-{2**22 + 1}")
    (directory / "SingletonCookie").symlink_to("12345")


def set_times(directory: Path) -> None:
    """Give everything times of its own, to the nanosecond; deepest first, as giving one changes its directory's."""
    paths = sorted(directory.rglob("*"), key=lambda path: len(path.parts), reverse=True)
    for number, path in enumerate([*paths, directory]):
        at = TIME_NS + number * 1_000_000_007
        os.utime(path, ns=(at + 5, at), follow_symlinks=False)


def make_tree(root: Path, users: int, shape: Shape = Shape()) -> list[Path]:  # noqa: B008 - immutable
    """A `.whatsapp-sessions`: `user1/session`, `user2/session` ...; returns the users' directories."""
    found = []
    for number in range(1, users + 1):
        user = root / f"user{number}"
        make_profile(user / "session", f"user{number}", shape)
        set_times(user)
        found.append(user)
    return found


def describe(directory: Path, *, left_out: bool = False) -> dict[str, tuple[object, ...]]:
    """Path → everything that an import has to keep, of all below *directory*, and of it; *left_out*: also of what means
    something on its own machine only.
    """
    first: dict[tuple[int, int], str] = {}
    found: dict[str, tuple[object, ...]] = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        if not left_out and path.name.startswith("Singleton"):
            continue
        name = str(path.relative_to(directory))
        at = path.lstat()
        kind = stat.S_IFMT(at.st_mode)
        content: bytes | str | None = None
        if kind == stat.S_IFREG:
            content = path.read_bytes()
        elif kind == stat.S_IFLNK:
            content = os.readlink(path)
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
        }
        twin = first.setdefault((at.st_dev, at.st_ino), name)
        links = at.st_nlink if kind != stat.S_IFDIR else 0
        found[name] = (at.st_mode, at.st_uid, at.st_gid, at.st_mtime_ns, links, twin, xattrs, content)
    return found
