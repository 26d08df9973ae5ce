"""`sessfs limit`: how many sessions, and how much each may hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sessfs import config
from sessfs.cli import options, output
from sessfs.cli.tables import print_table
from sessfs.errors import UsageError
from sessfs.mount import control, mountinfo, preflight
from sessfs.mount.mountinfo import mount_of

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER_TIMEOUT_S = 60.0
OFF = 0

Json = options.Json
Place = Annotated[
    Path,
    typer.Argument(
        metavar="MOUNTPOINT|SESSION",
        help="The whole mount, or the directory of one session.",
        parser=options.parse_place,
    ),
]
Count = "N|off|default"
Size = "SIZE|off|default"
MaxSessions = Annotated[str | None, typer.Option(metavar=Count, help="Most sessions (of a mount).")]
MaxActive = Annotated[str | None, typer.Option(metavar=Count, help="Most sessions with open files (of a mount).")]
MaxSessionBytes = Annotated[str | None, typer.Option(metavar=Size, help="Most bytes of a session's files.")]
MaxUniqueBytes = Annotated[str | None, typer.Option(metavar=Size, help="Most bytes that only one session has.")]


def limit(
    place: Place,
    max_sessions: MaxSessions = None,
    max_active: MaxActive = None,
    max_session_bytes: MaxSessionBytes = None,
    max_unique_bytes: MaxUniqueBytes = None,
    as_json: Json = False,
) -> None:
    """Show the limits of a mount or a session and what is used of them, and set those that are given.

    They are in force at once and outlive the mount. `default` gives a limit back to the settings of the mount.
    """
    mountpoint = mount_of(place)
    name = session_of(place, mountpoint)
    counts = {"max_sessions": max_sessions, "max_active": max_active}
    sizes = {"max_session_bytes": max_session_bytes, "max_unique_bytes": max_unique_bytes}
    if name is not None and (max_sessions or max_active):
        raise UsageError(f"--max-sessions and --max-active are limits of a mount: give {mountpoint}")
    changes = {key: _number(key, text, _count) for key, text in counts.items() if text is not None}
    changes |= {key: _number(key, text, config.parse_size) for key, text in sizes.items() if text is not None}
    answer = control.call(
        preflight.find_state(mountpoint),
        "limit",
        {"session": name, "set": changes},
        timeout_s=ANSWER_TIMEOUT_S,
        on_progress=None,
    )
    if as_json:
        output.print_json(answer)
    else:
        _print(answer)


def session_of(place: Path, mountpoint: Path) -> str | None:
    """The session that *place* is or lies in; None when it is the mountpoint itself. Asks nothing of the mount."""
    absolute = mountinfo.resolve(Path(os.path.abspath(place)))
    parts = absolute.relative_to(mountpoint).parts
    return parts[0] if parts else None


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError as exc:
        raise ValueError(f"{text!r} is not a number") from exc
    if value > config.MAX_NUMBER:
        raise ValueError(f"{text!r} is too large")
    return value


def _number(key: str, text: str, parse: Callable[[str], int]) -> int | None:
    if text == "default":
        return None
    if text == "off":
        return OFF
    flag = f"--{key.replace('_', '-')}"
    try:
        value = parse(text)
    except ValueError as exc:
        raise UsageError(f"{flag}: {exc}; off and default are the other values") from exc
    if value <= 0:
        raise UsageError(f"{flag}: {text!r} is not more than 0; say off for no limit")
    return value


def _print(answer: dict[str, Any]) -> None:
    rows = []
    for row in answer["limits"]:
        show = output.format_size if row["limit"].endswith("_bytes") else str
        rows.append(
            (
                row["limit"],
                show(row["value"]) if row["value"] is not None else "off",
                show(row["used"]) if row["used"] is not None else "-",
                "limit" if row["set"] else "settings",
            )
        )
    print_table(("LIMIT", "VALUE", "USED", "SET BY"), rows, right=(1, 2))
    if answer.get("full"):
        output.print_line(f"{answer['name']} is full: nothing new can be made in it")
    if answer.get("sessions_with_their_own"):
        output.print_line(f"with limits of their own: {', '.join(answer['sessions_with_their_own'])}")
