"""`sessfs status` and `sessfs sessions`: what a running mount says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sessfs.cli import output
from sessfs.errors import NotMounted
from sessfs.mount import control, mountinfo, preflight

ANSWER_TIMEOUT_S = 30.0

Json = Annotated[bool, typer.Option("--json", help="For scripts: JSON, sizes in bytes, times in seconds or RFC 3339.")]
OneMount = Annotated[Path, typer.Argument(metavar="MOUNTPOINT", help="Where it is mounted.")]
AnyMount = Annotated[
    Path | None, typer.Argument(metavar="MOUNTPOINT", help="Where it is mounted [default: every sessfs mount].")
]


def status(mountpoint: AnyMount = None, as_json: Json = False) -> None:
    """Say how a mount is doing: what it stores, how well it deduplicates, and what to worry about.

    With --json: an object for one MOUNTPOINT, a list of them without.
    """
    if mountpoint is not None:
        answer = _ask_status(mountinfo.resolve(mountpoint))
        if as_json:
            output.print_json(answer)
        else:
            _print_status(answer)
        return
    answers = [_ask_or_say(Path(mount.mountpoint)) for mount in mountinfo.sessfs_mounts()]
    if as_json:
        output.print_json(answers)
    elif not answers:
        output.print_line("no sessfs is mounted")
    else:
        for answer in answers:
            _print_status(answer)


def _ask_status(place: Path) -> dict[str, Any]:
    state_dir = preflight.find_state(place)
    try:
        if not preflight.answers(place):
            raise NotMounted(f"{place} is dead: its daemon has ended. `sessfs mount {place}` recovers it")
    except TimeoutError as exc:
        raise NotMounted(f"{place} hangs: its daemon (pid {preflight.daemon_pid(state_dir)}) does not answer") from exc
    answer = control.call(state_dir, "status", {}, timeout_s=ANSWER_TIMEOUT_S, on_progress=None)
    return {"mountpoint": str(place), "state_dir": str(state_dir), **answer}


def _ask_or_say(place: Path) -> dict[str, Any]:
    """The status, or in its place what is wrong with that mount, so that one dead mount does not hide the others."""
    try:
        return _ask_status(place)
    except NotMounted as exc:
        return {"mountpoint": str(place), "warnings": [str(exc)]}


def _print_status(answer: dict[str, Any]) -> None:
    for key, value in answer.items():
        if key == "warnings":
            continue
        output.print_line(f"{_label(key):20} {_for_people(key, value)}")
    for warning in answer.get("warnings", []):
        output.print_line(f"{'warning':20} {warning}")


def _label(key: str) -> str:
    return key.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")


def _for_people(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key.endswith("_bytes"):
        return output.format_size(value)
    if key.endswith("_seconds"):
        return output.format_duration(value)
    if key.endswith("_ratio"):
        return f"{value:.2f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return str(value)


def sessions(mountpoint: OneMount, as_json: Json = False) -> None:
    """List the sessions of a mount: files, logical bytes, bytes that only it has, last change."""
    state_dir = preflight.find_state(mountpoint)
    answer = control.call(state_dir, "sessions", {}, timeout_s=ANSWER_TIMEOUT_S, on_progress=None)
    if as_json:
        output.print_json(answer)
        return
    rows = [
        (
            str(session["name"]),
            str(session["files"]),
            output.format_size(session["logical_bytes"]),
            output.format_size(session["unique_bytes"]),
            str(session["last_change"] or "-"),
        )
        for session in answer["sessions"]
    ]
    output.print_table(("SESSION", "FILES", "LOGICAL", "UNIQUE", "LAST CHANGE"), rows, right=(1, 2, 3))
