"""`sessfs check`: would Chrome open this session?"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import msgspec
import typer
from rich.console import Console

from sessfs.api.remote import RemoteStore
from sessfs.cli import mounting, options, output, remote_commands
from sessfs.errors import MountBusy, NotMounted, StoreCorrupt, UsageError
from sessfs.mount import control, mountinfo, places, preflight
from sessfs.mount.mountinfo import mount_of
from sessfs.sessions import checking
from sessfs.sessions.checking_files import DirectoryFiles

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessfs.sessions.checking_files import CheckReport, FileCheck, Files

ANSWER_TIMEOUT_S = 600.0
"""A snapshot of a large session may take that long."""

Json = options.Json
Session = Annotated[
    Path,
    typer.Argument(
        metavar="SESSION",
        help="A session in a mount, or any directory with a profile in it; with --remote, its name.",
        parser=options.parse_place,
    ),
]
Remote = Annotated[
    str | None, typer.Option(metavar="URL", help="Check what this remote has; it may be mounted, and is only read.")
]
T = TypeVar("T")

At = Annotated[
    int | None, typer.Option("--at", metavar="SNAPSHOT", help="Check this snapshot (`sessfs history` lists them).")
]


class _Mounted(NamedTuple):
    """A directory that was given, in a mount: the session's name, and the path within it."""

    mountpoint: Path
    session: str
    inside: Path

    def ask(self, verb: str, **params: Any) -> dict[str, Any]:
        """The daemon's answer. Raises NotMounted, SessfsError."""
        asked = {"session": self.session, **params}
        state_dir = preflight.find_state(self.mountpoint)
        return control.call(state_dir, verb, asked, timeout_s=ANSWER_TIMEOUT_S, on_progress=None)


def check(
    session: Session,
    at: At = None,
    remote: Remote = None,
    endpoint_url: mounting.Endpoint = None,
    region: mounting.Region = None,
    path_style: mounting.PathStyle = False,
    key_file: mounting.KeyFile = None,
    as_json: Json = False,
) -> None:
    """Say whether Chrome will open a session: its SQLite files, LevelDB directories and settings. Changes nothing.

    Of a session in use a snapshot is taken, and checked. What is found of a snapshot is noted with it. Exit 0 only if
    all is good, 21 if not; then each file is named, with what is wrong and what to do.
    """
    if remote is not None:
        settings = remote_commands.settings_for(remote, endpoint_url, region, path_style, key_file)
        with RemoteStore(settings) as store:
            report = _shown(store.session(session).check, at, quiet=as_json)
        _say(report, str(session), at, as_json=as_json)
        return
    places.require_temporary_outside()
    place = _find_mounted(session)
    if place is None and at is not None:
        raise UsageError(f"{session} is in no mount, so it has no snapshot {at}: leave --at away")
    if place is None:
        files = DirectoryFiles(session)
        _refuse_running(files, session)
        report = _check(files, quiet=as_json)
    elif at is not None:
        report = _check_snapshot(place, at, quiet=as_json)
    else:
        report, at = _check_now(place, session, quiet=as_json)
    _say(report, str(session), at, as_json=as_json)


def _say(report: CheckReport, session: str, at: int | None, *, as_json: bool) -> None:
    if as_json:
        output.print_json({"session": session, "snapshot": at, **msgspec.to_builtins(report)})
    else:
        _print_report(report, at)
    if not report.good:
        raise typer.Exit(StoreCorrupt.exit_code)


def _find_mounted(place: Path) -> _Mounted | None:
    """Where in which mount the directory lies; None when it is in none. UsageError for a mountpoint itself."""
    try:
        mountpoint = mount_of(place)
    except NotMounted:
        return None
    parts = mountinfo.resolve(Path(os.path.abspath(place))).relative_to(mountpoint).parts
    if not parts:
        raise UsageError(f"{place} is a mountpoint: give a session, one of the directories in it")
    return _Mounted(mountpoint, parts[0], Path(*parts[1:]))


def _check_now(place: _Mounted, session: Path, *, quiet: bool) -> tuple[CheckReport, int | None]:
    """Check the session as it is, and tell the mount what was found; with the snapshot that was taken for it."""
    at: int | None = None
    if place.ask("in_use")["in_use"]:
        at = place.ask("snapshot")["sequence"]
        report = _check_snapshot(place, at, quiet=quiet)
    else:
        report = _check(DirectoryFiles(session), quiet=quiet)
    if not place.inside.parts:
        place.ask("checked", verdict=report.verdict)
    return report, at


def _check_snapshot(place: _Mounted, sequence: int, *, quiet: bool) -> CheckReport:
    """Check it where a view shows it, and note what was found."""
    view = place.ask("open_view", sequence=sequence)["view"]
    try:
        report = _check(DirectoryFiles(place.mountpoint / view / place.inside), quiet=quiet)
    finally:
        place.ask("close_view", view=view)
    if not place.inside.parts:
        place.ask("judge", sequence=sequence, verdict=report.verdict)
    return report


def _refuse_running(files: Files, session: Path) -> None:
    owner = checking.find_running(files)
    if owner is None or owner[0] != socket.gethostname():
        return
    with contextlib.suppress(ProcessLookupError):
        with contextlib.suppress(PermissionError):
            os.kill(owner[1], 0)
        raise MountBusy(f"{session} is in use by Chrome (pid {owner[1]}): what it is just writing can't be judged")


def _check(files: Files, *, quiet: bool) -> CheckReport:
    return _shown(checking.check_files, files, quiet=quiet)


def _shown(check: Callable[[T, Callable[[str], None]], CheckReport], what: T, *, quiet: bool) -> CheckReport:
    """The check, with the file it is at on a terminal's last line."""
    if quiet or not sys.stderr.isatty():
        return check(what, lambda path: None)
    with Console(stderr=True).status("checking") as shown:
        return check(what, lambda path: shown.update(f"checking {path}"))


def _print_report(report: CheckReport, at: int | None) -> None:
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
    output.print_line(f"{verdict}; checked {checked}" + (f" of snapshot {at}" if at is not None else ""))


def _print_file(file: FileCheck) -> None:
    for text in file.wrong:
        output.print_line(f"{file.kind} {file.path}: {text}")
    if file.remedy:
        output.print_line(f"    {file.remedy}")
    for text in file.notes:
        output.print_line(f"note: {file.kind} {file.path}: {text}")
