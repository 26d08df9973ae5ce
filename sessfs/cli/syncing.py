"""`sessfs sync`: return when the remote has everything, or say what it lacks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from sessfs.api.mounted import MountedStore
from sessfs.cli import options, output
from sessfs.mount.mountinfo import mount_of

if TYPE_CHECKING:
    from collections.abc import Callable

    Show = Callable[[dict[str, Any]], None]

Json = options.Json
Places = Annotated[
    list[Path],
    typer.Argument(
        metavar="MOUNTPOINT|SESSION...",
        help="Mounts, or anything in one, as a session: its whole mount is synced.",
        parser=options.parse_place,
    ),
]
Timeout = Annotated[float, typer.Option(metavar="S", min=0.1, help="Seconds until it gives up; uploads go on.")]


def sync(places: Places, timeout: Timeout = 300.0, as_json: Json = False) -> None:
    """Hand over the kernel's dirty pages, and return when the remote has every change made before.

    Exit 40, naming the sessions that have changes on this machine only, if that can't be in time.
    """
    mounts = list(dict.fromkeys(mount_of(place) for place in places))
    done = []
    for mountpoint in mounts:
        if as_json or not sys.stderr.isatty():
            answer = _sync(mountpoint, timeout, lambda step: None)
        else:
            answer = _sync_with_bar(mountpoint, timeout)
        done.append({"mountpoint": str(mountpoint), **answer})
        if not as_json:
            sent = output.format_size(answer["uploaded_bytes"])
            output.print_line(f"{mountpoint}: everything is in the remote ({sent} sent)")
    if as_json:
        output.print_json(done)


def _sync(mountpoint: Path, timeout_s: float, show: Show) -> dict[str, Any]:
    with MountedStore(mountpoint) as store:
        return {"uploaded_bytes": store.sync(timeout_s, show)}


def _sync_with_bar(mountpoint: Path, timeout_s: float) -> dict[str, Any]:
    """`_sync`, with a bar on the terminal of what is sent and of about how much there is to send."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("uploading", total=None)

        def show(step: dict[str, Any]) -> None:
            done = step["uploaded_bytes"]
            shown.update(task, completed=done, total=done + step["pending_bytes"])

        return _sync(mountpoint, timeout_s, show)
