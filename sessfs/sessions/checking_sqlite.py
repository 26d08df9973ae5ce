"""Will a SQLite file open? Its header, and SQLite's own `PRAGMA quick_check`, on a copy.

A copy, because opening a database whose journal or write-ahead log was left behind writes to it; and so that this
works for files that are no files of this machine.
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sessfs.sessions.checking_files import FileCheck, judge, reason

if TYPE_CHECKING:
    from collections.abc import Collection

    from sessfs.sessions.checking_files import Files

KIND = "SQLite"
HEADER = b"SQLite format 3\0"
BESIDE = (b"-journal", b"-wal")
"""What SQLite applies to a database when it opens it."""
MAX_FAULTS = 5
REMEDY = (
    "roll the session back to a good snapshot, or put back an older copy of this file; Chrome itself would "
    "start with an empty one"
)
_LACKS = ("no such collation sequence", "no such module", "no such function", "unsupported file format")
"""What this SQLite says of a database that needs a newer one, or Chrome's own extensions."""


def check_sqlite(files: Files, path: bytes, beside: Collection[bytes]) -> FileCheck:
    """Check the file at *path*. *beside* has the names in its directory. An empty file is an empty database."""
    directory, _, name = path.rpartition(b"/")
    prefix = directory + b"/" if directory else b""
    try:
        parts = {suffix: files.read(prefix + name + suffix) for suffix in BESIDE if name + suffix in beside}
        content = files.read(path)
    except OSError as exc:
        return judge(path, KIND, [f"can't be read: {reason(exc)}"], REMEDY)
    if not content:
        return judge(path, KIND, [], REMEDY)
    if not content.startswith(HEADER):
        return judge(path, KIND, ["does not start as SQLite files do: the beginning is overwritten"], REMEDY)
    wrong, notes = _quick_check(content, parts)
    return judge(path, KIND, wrong, REMEDY, notes)


def _quick_check(content: bytes, parts: dict[bytes, bytes]) -> tuple[list[str], list[str]]:
    """(what is wrong, notes) of a database with these bytes and what lies beside it."""
    with tempfile.TemporaryDirectory(prefix="sessfs-check-") as place:
        copy = Path(place) / "copy"
        copy.write_bytes(content)
        for suffix, beside in parts.items():
            Path(place, "copy" + suffix.decode()).write_bytes(beside)
        try:
            with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as database:
                rows = database.execute(f"PRAGMA quick_check({MAX_FAULTS})").fetchall()
        except sqlite3.Error as exc:
            if any(text in str(exc) for text in _LACKS):
                return [], [f"only its header was checked: this machine's SQLite {sqlite3.sqlite_version}: {exc}"]
            return [f"quick_check: {exc}"], []
    wrong = [line for (text,) in rows if text != "ok" for line in str(text).splitlines()]
    return [f"quick_check: {line}" for line in wrong[:MAX_FAULTS]], []
