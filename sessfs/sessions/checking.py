"""`sessfs check`: will Chrome open what is in this directory?

Checked is what Chrome opens at a start and can't make anew: SQLite files, LevelDB directories, settings in JSON.
Caches, and what stays on its node, are left out. Nothing is changed, and nothing but the tree's own bytes is needed.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from sessfs import chrome
from sessfs.chrome import PathClass, classify
from sessfs.sessions.checking_files import CheckReport, Entry, FileCheck, join, judge, reason, shown
from sessfs.sessions.checking_leveldb import check_leveldb, is_leveldb
from sessfs.sessions.checking_sqlite import HEADER, check_sqlite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sessfs.sessions.checking_files import Files

JSON_REMEDY = (
    "roll the session back to a good snapshot, or put back an older copy of this file; Chrome itself would "
    "start with its defaults"
)
_NO_DATABASE = re.compile(rb"[0-9a-f]{16}_[0-9s]\Z|.*(-journal|-wal|-shm|\.pma)\Z", re.DOTALL)
"""Names whose first bytes need no look: Simple Cache files, and what belongs to a database beside it."""


def check_files(files: Files, on_step: Callable[[str], None] = lambda path: None) -> CheckReport:
    """Check the whole tree; *on_step* hears of each path before it is checked.

    The verdict is bad if anything is wrong, and if there is nothing that could be checked.
    """
    checked: list[FileCheck] = []
    stack = [(b"", PathClass.TRAVELS)]
    while stack:
        directory, path_class = stack.pop()
        try:
            entries = files.entries(directory)
        except OSError as exc:
            checked.append(judge(directory, "directory", [f"can't be listed: {reason(exc)}"], JSON_REMEDY))
            continue
        checked += _check_directory(files, directory, entries, path_class, on_step)
        for entry in reversed(entries):
            inner = classify(entry.name, path_class)
            if entry.is_directory and inner is PathClass.TRAVELS:
                stack.append((join(directory, entry.name), inner))
    wrong = () if checked else ("nothing of a Chrome profile is here",)
    good = bool(checked) and all(file.ok for file in checked)
    return CheckReport("good" if good else "bad", tuple(checked), wrong)


def find_running(files: Files, directory: bytes = b"", depth: int = 3) -> tuple[str, int] | None:
    """(host, pid) by the lock of a Chrome in the tree, which may have ended since; None if there is no lock.

    Looks *depth* directories deep: a user's data directory, its profile, and what RemoteAuth puts around them.
    """
    entries = files.entries(directory)
    for entry in entries:
        owner = chrome.lock_owner(entry.name, entry.target)
        if owner is not None:
            return owner
    for entry in entries:
        if entry.is_directory and depth > 1:
            owner = find_running(files, join(directory, entry.name), depth - 1)
            if owner is not None:
                return owner
    return None


def _check_directory(
    files: Files,
    directory: bytes,
    entries: list[Entry],
    path_class: PathClass,
    on_step: Callable[[str], None],
) -> Iterator[FileCheck]:
    """What lies directly in *directory*."""
    plain = {entry.name: entry for entry in entries if not entry.is_directory and not entry.target}
    if is_leveldb(plain):
        on_step(shown(directory))
        yield check_leveldb(files, directory, {name: entry.size for name, entry in plain.items()})
        return
    for name, entry in plain.items():
        if classify(name, path_class) is not PathClass.TRAVELS:
            continue
        path = join(directory, name)
        if chrome.is_json(name):
            on_step(shown(path))
            yield check_json(files, path)
        elif chrome.is_sqlite(name) or _has_header(files, path, entry):
            on_step(shown(path))
            yield check_sqlite(files, path, plain.keys())


def _has_header(files: Files, path: bytes, entry: Entry) -> bool:
    if entry.size < len(HEADER) or _NO_DATABASE.match(entry.name):
        return False
    try:
        return files.read(path, len(HEADER)) == HEADER
    except OSError:
        return False  # unreadable, but nothing says that it is a database


def check_json(files: Files, path: bytes) -> FileCheck:
    """Check that the file at *path* is one JSON object."""
    try:
        value = json.loads(files.read(path))
    except OSError as exc:
        return judge(path, "JSON", [f"can't be read: {reason(exc)}"], JSON_REMEDY)
    except (ValueError, RecursionError) as exc:
        return judge(path, "JSON", [f"is no JSON: {exc}"], JSON_REMEDY)
    wrong = [] if isinstance(value, dict) else [f"is no JSON object, but a {type(value).__name__}"]
    return judge(path, "JSON", wrong, JSON_REMEDY)
