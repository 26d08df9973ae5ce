"""`sessfs rm`: remove a session, or erase it for good."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sessfs.cli import options, output
from sessfs.cli.histories import session_of
from sessfs.errors import UsageError
from sessfs.mount import control, preflight

Json = options.Json
Session = Annotated[
    Path,
    typer.Argument(
        metavar="SESSION", help="The session's directory, as .whatsapp-sessions/user1.", parser=options.parse_place
    ),
]
Purge = Annotated[
    bool,
    typer.Option("--purge", help="Erase it: no byte that only it had stays in the state, its snapshots or the remote."),
]
Yes = Annotated[bool, typer.Option("--yes", help="With --purge: do not ask.")]


def rm(session: Session, purge: Purge = False, yes: Yes = False, as_json: Json = False) -> None:
    """Move SESSION, which nobody may be using, to the trash. With --purge nothing of it can be brought back.

    Exit 17, naming the processes, while a file of it is open. A purge that was cut short is finished by calling it
    again.
    """
    mountpoint, name = session_of(session)
    if purge and not yes:
        _ask(name)
    params = {"session": name, "purge": purge}
    state_dir = preflight.find_state(mountpoint)
    if as_json or not sys.stderr.isatty():
        answer = control.call(state_dir, "remove", params, timeout_s=None, on_progress=None)
    else:
        with Console(stderr=True).status("removing") as shown:
            answer = control.call(
                state_dir, "remove", params, timeout_s=None, on_progress=lambda step: shown.update(_step(step))
            )
    if as_json:
        output.print_json(answer)
    elif purge:
        _print_report(answer)
    else:
        output.print_line(f"{session} is in the trash: `sessfs trash list {mountpoint}` says for how long")


def _ask(name: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"--purge can't be undone: to erase {name} without being asked, give --yes")
    typed = input(f"Erase {name} for good, with all of its snapshots? Type its name: ")
    if typed != name:
        raise UsageError(f"{typed!r} is not {name!r}: nothing was erased")


def _step(step: dict[str, Any]) -> str:
    counted = f" {step['done']} of {step['total']}" if step["total"] else ""
    return f"erasing: {step['stage']}{counted}"


def _print_report(answer: dict[str, Any]) -> None:
    was = "" if answer["was_there"] else " was not there; what was left of it"
    output.print_line(
        f"{answer['session']}{was} is erased: {answer['erased_chunks']} chunks "
        f"({output.format_size(answer['erased_bytes'])}) that only it had"
    )
    shared = output.format_size(answer["shared_bytes"])
    output.print_line(f"{answer['shared_chunks']} chunks ({shared}) remain, since others have them")
    if answer["remote_segments"]:
        output.print_line(
            f"{answer['remote_segments']} objects of the remote ({output.format_size(answer['remote_bytes'])}) are "
            f"deleted; {output.format_size(answer['moved_bytes'])} of others were uploaded anew"
        )
    for note in answer["notes"]:
        output.print_line(f"note: {note}")
