"""`sessfs snapshot`, `rollback` and `clone`: the past of a session, and copies of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from sessfs.cli import options, output
from sessfs.errors import UsageError
from sessfs.mount import control, mountinfo, preflight

ANSWER_TIMEOUT_S = 600.0
"""A snapshot of a large session, or an upload, may take that long."""

Json = options.Json
Session = Annotated[
    Path,
    typer.Argument(
        metavar="SESSION", help="The session's directory, as .whatsapp-sessions/user1.", parser=options.parse_place
    ),
]


def session_of(place: Path) -> tuple[Path, str]:
    """(mountpoint, session's name) of the directory *place*. Raises NotMounted, UsageError; touches no mount."""
    mountpoint = mountinfo.mount_of(place)
    inside = mountinfo.resolve(Path(os.path.abspath(place))).relative_to(mountpoint)
    if len(inside.parts) != 1:
        raise UsageError(f"{place} is not a session: sessions are the directories directly in {mountpoint}")
    return mountpoint, inside.parts[0]


def ask(place: Path, verb: str, **params: Any) -> dict[str, Any]:
    """What the daemon answers of the session whose directory *place* is. Raises NotMounted, UsageError, DaemonError."""
    mountpoint, session = session_of(place)
    state_dir = preflight.find_state(mountpoint)
    asked = {"session": session, **params}
    return control.call(state_dir, verb, asked, timeout_s=ANSWER_TIMEOUT_S, on_progress=None)


def snapshot(
    session: Session,
    number: Annotated[
        int | None, typer.Argument(metavar="SNAPSHOT", help="Only set the mark of this one, instead of taking one.")
    ] = None,
    mark: Annotated[
        str | None,
        typer.Option("--mark", metavar="WORD", help="Keep it for good, under that word; '' lets it go."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Take a snapshot of SESSION as it is now; with a remote, return when it is there."""
    if number is not None and mark is None:
        raise UsageError("which mark shall the snapshot have? Give --mark WORD, or --mark '' to unmark it")
    answer = ask(session, "snapshot", sequence=number, mark=mark or "")
    if as_json:
        output.print_json(answer)
    else:
        marked = f", marked {answer['mark']!r}" if answer["mark"] else ""
        output.print_line(f"snapshot {answer['sequence']} of {answer['taken']}{marked}")


def rollback(
    session: Session,
    number: Annotated[
        int | None,
        typer.Argument(metavar="SNAPSHOT", help="Which [default: the newest that `sessfs check` found good]."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put a snapshot in the place of SESSION, which nobody may be using. What it replaces is kept as a snapshot.

    Exit 17, naming the processes, while a file of the session is open.
    """
    answer = ask(session, "rollback", sequence=number)
    if as_json:
        output.print_json(answer)
    else:
        output.print_line(f"{session} is as in snapshot {answer['sequence']} of {answer['taken']}")


def clone(
    session: Session,
    new_name: Annotated[str, typer.Argument(metavar="NEWNAME", help="The new session's name.")],
    as_json: Json = False,
) -> None:
    """Make a new session with the content of SESSION as it is now. Both share every chunk."""
    ask(session, "clone", new_name=new_name)
    if as_json:
        output.print_json({"session": new_name})
    else:
        output.print_line(f"{new_name} is a copy of {session}")
