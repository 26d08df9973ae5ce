"""Will a LevelDB open? What its CURRENT, MANIFEST, tables and logs say, as LevelDB itself would read them.

Followed is what LevelDB does at an open: db_impl.cc (Recover, RecoverLogFile), version_set.cc (Recover). Chrome opens
its databases with paranoid checks, where one damaged record of a log is an error and the database is dropped, and
with reuse_logs: the next start appends to the last log, and to the MANIFEST, wherever they end.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from sessfs.sessions.checking_files import FileCheck, join, judge, reason, shown
from sessfs.sessions.leveldb_format import (
    BadLevelDB,
    LogScan,
    VersionState,
    check_table,
    check_write_batch,
    read_versions,
    scan_log,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sessfs.sessions.checking_files import Files

KIND = "LevelDB"
CURRENT = b"CURRENT"
MAX_FAULTS = 5
REMEDY = "roll the session back to a good snapshot; Chrome itself would drop this database and start with an empty one"
_NUMBERED = re.compile(rb"([0-9]+)\.(log|ldb|sst)\Z")
_MANIFEST = re.compile(rb"MANIFEST-[0-9]+\Z")


class _Findings(msgspec.Struct):
    """What is found while one database is looked at."""

    wrong: list[str] = []
    notes: list[str] = []
    cuts: list[str] = []
    """Commands that mend a torn end without losing anything that LevelDB would have read."""


def is_leveldb(names: Mapping[bytes, object]) -> bool:
    """Whether a directory with these names of files is a LevelDB, be it one that lost its CURRENT.

    One that was never opened has only LOCK and LOG, and holds nothing.
    """
    if any(_MANIFEST.match(name) for name in names):
        return True
    numbered = any(_NUMBERED.match(name) for name in names)
    return sum((numbered, CURRENT in names, b"LOCK" in names)) >= 2


def check_leveldb(files: Files, directory: bytes, sizes: Mapping[bytes, int]) -> FileCheck:
    """Check the LevelDB in *directory*, whose files have these *sizes*."""
    found = _Findings()
    try:
        _check_all(files, directory, sizes, found)
    except BadLevelDB as exc:
        found.wrong.append(str(exc))
    remedy = REMEDY
    if found.cuts and len(found.cuts) == len(found.wrong):
        remedy = f"while Chrome does not run, cut what LevelDB ignores: {'; '.join(found.cuts)}"
    return judge(directory, KIND, found.wrong[:MAX_FAULTS], remedy, found.notes)


def _check_all(files: Files, directory: bytes, sizes: Mapping[bytes, int], found: _Findings) -> None:
    manifest = _current(files, directory, sizes)
    scan = _scan(files, directory, manifest)
    versions = read_versions(scan.records)
    name = manifest.decode()
    if scan.fault:
        raise BadLevelDB(f"{name}: {scan.fault}")
    if scan.torn:
        _say_torn(found, directory, manifest, scan, is_last=True)
    lacking = versions.lacking()
    if lacking:
        raise BadLevelDB(f"{name} is cut short: it has no {', '.join(lacking)}")
    _check_tables(files, directory, sizes, versions, found)
    _check_logs(files, directory, sizes, versions, found)


def _current(files: Files, directory: bytes, sizes: Mapping[bytes, int]) -> bytes:
    """Name of the MANIFEST in use."""
    if CURRENT not in sizes:
        raise BadLevelDB("CURRENT is missing: LevelDB takes the database for a new one, and deletes what is there")
    content = _read(files, directory, CURRENT)
    if not content:
        raise BadLevelDB("CURRENT is empty")
    name = content[:-1]
    if not content.endswith(b"\n") or not _MANIFEST.match(name):
        raise BadLevelDB(f"CURRENT does not name a MANIFEST, but has {content[:40]!r}")
    if name not in sizes:
        raise BadLevelDB(f"{name.decode()} is missing, which CURRENT names")
    return name


def _read(files: Files, directory: bytes, name: bytes) -> bytes:
    try:
        return files.read(join(directory, name))
    except OSError as exc:
        raise BadLevelDB(f"{shown(name)} can't be read: {reason(exc)}") from exc


def _scan(files: Files, directory: bytes, name: bytes) -> LogScan:
    return scan_log(_read(files, directory, name))


def _say_torn(found: _Findings, directory: bytes, name: bytes, scan: LogScan, *, is_last: bool) -> None:
    """A torn end: harmless where nobody appends, else a loss two starts later."""
    if not is_last:
        found.notes.append(f"{name.decode()}: {scan.torn}; LevelDB ignores that")
        return
    found.wrong.append(
        f"{name.decode()}: {scan.torn}; the next start of Chrome ignores that and appends behind it, the start "
        "after it fails and drops the database"
    )
    path = shown(join(directory, name)).replace("'", "'\\''")
    found.cuts.append(f"truncate -s {scan.end} '{path}'")


def _check_tables(
    files: Files, directory: bytes, sizes: Mapping[bytes, int], versions: VersionState, found: _Findings
) -> None:
    for number, size in sorted(versions.tables.items()):
        names = [b"%06d.%s" % (number, suffix) for suffix in (b"ldb", b"sst")]
        name = next((name for name in names if name in sizes), None)
        if name is None:
            found.wrong.append(f"table {names[0].decode()} is missing, which the MANIFEST names")
            continue
        if sizes[name] != size:
            found.wrong.append(f"table {name.decode()} has {sizes[name]} bytes, by the MANIFEST {size}")
            continue
        try:
            check_table(_read(files, directory, name))
        except BadLevelDB as exc:
            found.wrong.append(f"table {name.decode()}: {exc}")


def _check_logs(
    files: Files, directory: bytes, sizes: Mapping[bytes, int], versions: VersionState, found: _Findings
) -> None:
    logs = {int(match[1]): name for name in sizes if (match := _NUMBERED.match(name)) and match[2] == b"log"}
    log_number = versions.log_number or 0
    live = sorted(number for number in logs if number >= log_number or number == versions.previous_log)
    if log_number and log_number not in logs:
        found.wrong.append(f"log {log_number:06d}.log is missing, which the MANIFEST names")
    for number in live:
        scan = _scan(files, directory, logs[number])
        name = logs[number].decode()
        if scan.fault:
            found.wrong.append(f"{name}: {scan.fault}")
            continue
        for offset, record in zip(scan.offsets, scan.records, strict=True):
            try:
                check_write_batch(record)
            except BadLevelDB as exc:
                found.wrong.append(f"{name}: record at {offset}: {exc}")
                break
        if scan.torn:
            _say_torn(found, directory, logs[number], scan, is_last=number == live[-1])
