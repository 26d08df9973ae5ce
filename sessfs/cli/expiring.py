"""`sessfs expire` and `sessfs trash`: sessions that nobody uses, and those that were removed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sessfs.cli import options, output
from sessfs.cli.tables import print_table
from sessfs.errors import UsageError
from sessfs.mount import control, preflight

ANSWER_TIMEOUT_S = 600.0

Json = options.Json
OneMount = options.OneMount
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
TrustClock = Annotated[
    bool, typer.Option("--trust-clock", help="The clock is right, though it jumped or the mount was away for long.")
]


def expire(
    mountpoint: OneMount, dry_run: DryRun = False, trust_clock: TrustClock = False, as_json: Json = False
) -> None:
    """Hibernate or remove the sessions that were not used for --expire-days, as the mount does once an hour.

    Says which, when they were used last, and why those that are due are left as they are.
    """
    params = {"dry_run": dry_run, "trust_clock": trust_clock}
    answer = _call(mountpoint, "expire", params)
    if as_json:
        output.print_json(answer)
        return
    if answer["held"]:
        output.print_line(f"nothing expires: {answer['held']}")
    done = "would be done" if dry_run else "done"
    rows = [
        (row["name"], row["last_use"] or "-", row["expired"] or "-", row["action"], row["kept"] or done)
        for row in answer["sessions"]
    ]
    if rows:
        print_table(("SESSION", "LAST USE", "EXPIRED", "ACTION", "STATE"), rows)
    else:
        output.print_line("no session is due")
    if answer["purged"]:
        output.print_line(f"gone from the trash for good: {', '.join(answer['purged'])}")


Action = Annotated[str, typer.Argument(metavar="list|restore|empty", help="What to do.")]
Name = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="The session's name before, or its entry in the trash [empty: everything]."),
]
As = Annotated[str | None, typer.Option("--as", metavar="NEW", help="restore: under this name.")]


def trash(action: Action, mountpoint: OneMount, name: Name = None, as_name: As = None, as_json: Json = False) -> None:
    """List the removed sessions of a mount, give one back, or remove them for good."""
    if name == "" or as_name == "":
        raise UsageError("a name is empty: is a variable not set? To empty the whole trash, give no name at all")
    if action == "list":
        _list(mountpoint, as_json=as_json)
    elif action == "restore":
        if name is None:
            raise UsageError("say which session to restore: sessfs trash restore MOUNTPOINT NAME")
        answer = _call(mountpoint, "trash_restore", {"name": name, "as_name": as_name})
        _say(answer, f"restored {answer['name']}", as_json=as_json)
    elif action == "empty":
        answer = _call(mountpoint, "trash_empty", {"name": name})
        _say(answer, f"removed for good: {', '.join(answer['gone']) or 'nothing'}", as_json=as_json)
    else:
        raise UsageError(f"{action!r} is not one of list, restore, empty")


def _list(mountpoint: OneMount, *, as_json: bool) -> None:
    answer = _call(mountpoint, "trash_list", {})
    if as_json:
        output.print_json(answer)
    elif not answer["trash"]:
        output.print_line("the trash is empty")
    else:
        rows = [
            (
                row["name"],
                row["removed"] or "-",
                row["gone_for_good"] or "-",
                output.format_size(row["logical_bytes"]),
                row["entry"],
            )
            for row in answer["trash"]
        ]
        print_table(("SESSION", "REMOVED", "GONE FOR GOOD", "LOGICAL", "ENTRY"), rows, right=(3,))


def _call(mountpoint: OneMount, verb: str, params: dict[str, Any]) -> dict[str, Any]:
    state_dir = preflight.find_state(mountpoint)
    return control.call(state_dir, verb, params, timeout_s=ANSWER_TIMEOUT_S, on_progress=None)


def _say(answer: dict[str, Any], line: str, *, as_json: bool) -> None:
    if as_json:
        output.print_json(answer)
    else:
        output.print_line(line)
