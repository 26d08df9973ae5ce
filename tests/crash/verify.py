"""Whether a directory is in a state that a crash at a given moment may leave, by the log of tests/crash/workload.py.

Every synced operation that had returned must have happened, and, if *lazy_s* is given, every other one that had
returned that long before. Whatever is later than these may have happened or not; but of two operations on one name
the later wins, and nothing is ever half of one version and half of another.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import plyvel

from tests.crash.workload import (
    LMDB_MAP_BYTES,
    N_SLOTS,
    SLOT_BYTES,
    SQLITE,
    appended_content,
    row_content,
    slot_content,
)
from tests.support.posix import read_file

if TYPE_CHECKING:
    from collections.abc import Callable

LAZY = ("put_lazy", "replace_lazy", "chain")
ABSENT = "absent"


class Log:
    """What the workload began and finished before *crash_s* (CLOCK_MONOTONIC)."""

    def __init__(self, path: Path, crash_s: float, lazy_s: float | None) -> None:
        self.begun: list[dict[str, Any]] = []
        self._done_s: dict[int, float] = {}
        self._crash_s = crash_s
        self._lazy_s = lazy_s
        for line in path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if record["k"] == "begin":
                self.begun.append(record)
            else:
                self._done_s[record["id"]] = record["t"]

    def is_promised(self, record: dict[str, Any]) -> bool:
        """Tell whether the crash must not undo *record*."""
        done_s = self._done_s.get(record["id"])
        if done_s is None or done_s >= self._crash_s:
            return False
        if record["kind"] in LAZY:
            return self._lazy_s is not None and done_s < self._crash_s - self._lazy_s
        return True

    def n_promised(self) -> int:
        """Return how many operations are promised."""
        return sum(map(self.is_promised, self.begun))

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """Return what was begun of these kinds, in order."""
        return [record for record in self.begun if record["kind"] in kinds]


def verify(directory: Path, log: Log) -> list[str]:
    """Return what is wrong, one sentence each; an empty list if nothing is."""
    if not directory.is_dir():
        return [f"{directory} is not there"]
    wrong: list[str] = []
    wrong += _files(directory, log)
    wrong += _appended(directory, log)
    wrong += _slots(directory, log)
    for database in DATABASES:
        wrong += _rows(directory, log, database)
    wrong += _chain(directory, log)
    return wrong


def _files(directory: Path, log: Log) -> list[str]:
    """Whole files: the state of each name must be that after its last promised operation, or after a later one."""
    states: dict[str, list[tuple[str, bool]]] = {}
    digest_of: dict[str, str] = {}
    is_torn: set[str] = set()
    for record in log.begun:
        kind = record["kind"]
        promised = log.is_promised(record)
        if kind in ("put_sync", "put_lazy", "replace_sync", "replace_lazy"):
            digest_of[record["path"]] = record["digest"]
            states.setdefault(record["path"], []).append((record["digest"], promised))
            if kind.startswith("put") and not promised:
                is_torn.add(record["path"])
        elif kind == "unlink":
            states[record["path"]].append((ABSENT, promised))
        elif kind == "move":
            states[record["path"]].append((ABSENT, promised))
            states.setdefault(record["to"], []).append((digest_of[record["path"]], promised))
            digest_of[record["to"]] = digest_of[record["path"]]
    wrong = []
    for name, history in states.items():
        last = max((index for index, (_, promised) in enumerate(history) if promised), default=-1)
        allowed = {state for state, _ in history[max(last, 0) :]} | ({ABSENT} if last < 0 else set())
        path = directory / name
        state = hashlib.sha256(read_file(path)).hexdigest() if path.exists() else ABSENT
        if state not in allowed and not (last < 0 and name in is_torn):
            size = path.stat().st_size if path.exists() else None
            wrong.append(f"{name} has a content (size {size}) that no operation from the last promised one on left")
    known = {*states, "temporary", "slots", "log", "chain", "lmdb", "leveldb"}
    known |= {f"{name}.db{end}" for name in SQLITE for end in ("", "-wal", "-shm", "-journal")}
    wrong.extend(f"{name} was never made" for name in os.listdir(directory) if name not in known)
    return wrong


def _appended(directory: Path, log: Log) -> list[str]:
    records = log.of("append")
    promised = max((record["length"] for record in records if log.is_promised(record)), default=0)
    begun = max((record["length"] for record in records), default=0)
    content = read_file(directory / "log") if (directory / "log").exists() else b""
    if not promised <= len(content) <= begun:
        return [f"log has {len(content)} bytes: {promised} are promised and {begun} were begun"]
    if content[:promised] != appended_content(begun)[:promised]:
        return ["log has other bytes than were appended"]
    return []


def _slots(directory: Path, log: Log) -> list[str]:
    promised, begun = [0] * N_SLOTS, [0] * N_SLOTS
    for record in log.of("slot"):
        begun[record["slot"]] = record["version"]
        if log.is_promised(record):
            promised[record["slot"]] = record["version"]
    content = read_file(directory / "slots") if (directory / "slots").exists() else b""
    if len(content) != N_SLOTS * SLOT_BYTES:
        return [f"slots has {len(content)} bytes"]
    wrong = []
    for slot in range(N_SLOTS):
        found = content[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]
        versions = range(promised[slot], begun[slot] + 1)
        contents = [slot_content(slot, version) for version in versions]
        if not any(is_mixed(found, old, new) for old in contents for new in contents):
            wrong.append(f"slot {slot} is {found[:32]!r}, none of the versions {list(versions)}, nor two in part")
    return wrong


def is_mixed(found: bytes, old: bytes, new: bytes) -> bool:
    """True when *found* is one of them, or one up to some point and the other from there on: what may be left of an
    overwrite that was not synced, where it reaches from a sealed extent into one that was hot before.
    """
    agreeing = next((at for at, (a, b) in enumerate(zip(found, old, strict=True)) if a != b), len(found))
    return found[agreeing:] == new[agreeing:]


def _rows(directory: Path, log: Log, database: str) -> list[str]:
    records = [record for record in log.of("row") if record["database"] == database]
    promised = {record["row"] for record in records if log.is_promised(record)}
    begun = {record["row"] for record in records}
    try:
        found, wrong = DATABASES[database](directory)
    except (sqlite3.Error, lmdb.Error, plyvel.Error, OSError) as error:
        return [f"{database} can't be read: {error}"]
    if promised - found.keys():
        lost = sorted(promised - found.keys())
        wrong.append(f"{database} lost rows: {lost[:5]} of {len(lost)}, {len(found)} are there")
    if found.keys() - begun:
        wrong.append(f"{database} has rows that nobody inserted")
    damaged = [row for row, content in found.items() if content != row_content(row)]
    if damaged:
        wrong.append(f"{database} has rows with other bytes than were put: {damaged[:5]}")
    return wrong


_Found = tuple[dict[int, bytes], list[str]]


def _read_sqlite(path: Path) -> _Found:
    with closing(sqlite3.connect(path)) as database:
        verdict = database.execute("pragma integrity_check").fetchone()[0]
        rows = dict(database.execute("select n, b from t"))
    return rows, [] if verdict == "ok" else [f"SQLite says of {path.name}: {verdict}"]


def _read_lmdb(directory: Path) -> _Found:
    """From a copy: opening one writes to it."""
    with tempfile.TemporaryDirectory() as place:
        copied = shutil.copytree(directory / "lmdb", Path(place, "lmdb"))
        with lmdb.open(str(copied), map_size=LMDB_MAP_BYTES) as env, env.begin() as txn:
            return {int(bytes(key)): bytes(value) for key, value in txn.cursor()}, []


def _read_leveldb(directory: Path) -> _Found:
    """From a copy: opening one replays its log."""
    with tempfile.TemporaryDirectory() as place:
        copied = shutil.copytree(directory / "leveldb", Path(place, "leveldb"))
        with closing(plyvel.DB(str(copied), paranoid_checks=False)) as database:
            return {int(key): value for key, value in database.iterator(verify_checksums=True)}, []


DATABASES: dict[str, Callable[[Path], _Found]] = {
    **{name: lambda directory, name=name: _read_sqlite(directory / f"{name}.db") for name in SQLITE},
    "lmdb": _read_lmdb,
    "leveldb": _read_leveldb,
}


def _chain(directory: Path, log: Log) -> list[str]:
    """Unsynced names must be a prefix of what was done: mkdir d1, token0 to token1, mkdir d2, token1 to token2, …"""
    names = os.listdir(directory / "chain")
    tokens = [int(match[1]) for name in names if (match := re.fullmatch(r"token(\d+)", name))]
    numbers = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"d(\d+)", name)))
    promised = max((record["number"] for record in log.of("chain") if log.is_promised(record)), default=0)
    # An operation that was promised holds all before it: one fsync of anything commits them.
    later = [record["id"] for record in log.begun if log.is_promised(record)]
    for record in log.of("chain"):
        if later and record["id"] < later[-1]:
            promised = max(promised, record["number"])
    if len(tokens) != 1:
        return [f"the chain has the tokens {tokens}"]
    if numbers != list(range(1, len(numbers) + 1)) or len(numbers) not in (tokens[0], tokens[0] + 1):
        return [f"the chain has token {tokens[0]} and the directories {numbers[:3]}…{numbers[-3:]}: no prefix"]
    if tokens[0] < promised:
        return [f"the chain is at {tokens[0]}, promised {promised}"]
    return []
