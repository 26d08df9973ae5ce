"""`sessfs export`: a session as files, out of a mount or straight from the bucket."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from sessfs.api import ExportFormat, ExportStep, Store
from sessfs.api.mounted import MountedStore, find_session
from sessfs.api.remote import RemoteStore
from sessfs.cli import mounting, options, output, remote_commands

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Json = options.Json
Session = Annotated[
    str, typer.Argument(metavar="SESSION", help="The session's directory in a mount; with --remote, its name.")
]
Dest = Annotated[Path, typer.Argument(metavar="DEST", help="What to make; an empty directory may be there.")]
Remote = Annotated[
    str | None, typer.Option(metavar="URL", help="Read straight from this remote; it may be mounted, and is only read.")
]
At = Annotated[
    int | None, typer.Option("--at", metavar="SNAPSHOT", help="As of this snapshot, which `sessfs history` lists.")
]
Format = Annotated[
    ExportFormat | None,
    typer.Option("--format", help="[default: by the suffix of DEST: .tar, .tar.zst, .zip; else a directory]."),
]


def export(
    session: Session,
    dest: Dest,
    at: At = None,
    form: Format = None,
    remote: Remote = None,
    endpoint_url: mounting.Endpoint = None,
    region: mounting.Region = None,
    path_style: mounting.PathStyle = False,
    key_file: mounting.KeyFile = None,
    as_json: Json = False,
) -> None:
    """Write a session to DEST: a directory, a tar, a zip, or a zip as whatsapp-web.js's RemoteAuth restores it.

    DEST is there, whole and durable, when this ends well, and else not at all.
    """
    store, name = _open(session, remote, endpoint_url, region, path_style, key_file)
    with store, _bar(quiet=as_json) as progress:
        report = store.session(name).export(dest, at=at, format=form, progress=progress)
    if as_json:
        output.print_json({"session": name, "snapshot": at, **dataclasses.asdict(report)})
        return
    for note in report.notes:
        output.print_note(f"note: {note}")
    size = output.format_size(report.content_bytes)
    output.print_line(f"{report.dest}: session {name}, {report.files} files, {size} ({report.format})")


def _open(
    session: str, remote: str | None, endpoint_url: str | None, region: str | None, path_style: bool, key: str | None
) -> tuple[Store, str]:
    if remote is not None:
        return RemoteStore(remote_commands.settings_for(remote, endpoint_url, region, path_style, key)), session
    mountpoint, name = find_session(options.parse_place(session))
    return MountedStore(mountpoint), name


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Callable[[ExportStep], None] | None]:
    """A bar on a terminal's last line; None where there is none."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("exporting", total=None)
        yield lambda step: shown.update(task, completed=step.done_bytes, total=step.total_bytes)
