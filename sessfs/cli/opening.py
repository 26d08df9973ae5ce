"""`sessfs check`: would Chrome open this session?"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console

from sessfs.cli import looking, output
from sessfs.errors import MountBusy, StoreCorrupt
from sessfs.sessions import checking
from sessfs.sessions.checking_files import DirectoryFiles

if TYPE_CHECKING:
    from sessfs.sessions.checking_files import CheckReport, FileCheck, Files

Json = looking.Json
Session = Annotated[
    Path, typer.Argument(metavar="SESSION", help="A session in a mount, or any directory with a profile in it.")
]


def check(session: Session, as_json: Json = False) -> None:
    """Say whether Chrome will open a session: its SQLite files, LevelDB directories and settings. Changes nothing.

    Exit 0 only if all is good, 21 if not; then each file is named, with what is wrong and what to do.
    """
    files = DirectoryFiles(session)
    _refuse_running(files, session)
    report = _check(files, quiet=as_json)
    if as_json:
        output.print_json({"session": str(session), **msgspec.to_builtins(report)})
    else:
        _print_report(report)
    if not report.good:
        raise typer.Exit(StoreCorrupt.exit_code)


def _refuse_running(files: Files, session: Path) -> None:
    owner = checking.find_running(files)
    if owner is None or owner[0] != socket.gethostname():
        return
    with contextlib.suppress(ProcessLookupError):
        with contextlib.suppress(PermissionError):
            os.kill(owner[1], 0)
        raise MountBusy(f"{session} is in use by Chrome (pid {owner[1]}): what it is just writing can't be judged")


def _check(files: Files, *, quiet: bool) -> CheckReport:
    """The check, with the file it is at on a terminal's last line."""
    if quiet or not sys.stderr.isatty():
        return checking.check_files(files)
    with Console(stderr=True).status("checking") as shown:
        return checking.check_files(files, lambda path: shown.update(f"checking {path}"))


def _print_report(report: CheckReport) -> None:
    for file in report.files:
        _print_file(file)
    for text in report.wrong:
        output.print_line(text)
    counts: dict[str, int] = {}
    for file in report.files:
        counts[file.kind] = counts.get(file.kind, 0) + 1
    bad = sum(not file.ok for file in report.files)
    verdict = "good" if report.good else f"bad: {bad} of {len(report.files)}" if report.files else "bad"
    checked: Any = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing"
    output.print_line(f"{verdict}; checked {checked}")


def _print_file(file: FileCheck) -> None:
    for text in file.wrong:
        output.print_line(f"{file.kind} {file.path}: {text}")
    if file.remedy:
        output.print_line(f"    {file.remedy}")
    for text in file.notes:
        output.print_line(f"note: {file.kind} {file.path}: {text}")
