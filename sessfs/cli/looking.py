"""`sessfs status` and `sessfs sessions`: what a running mount says of itself."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sessfs.api.mounted import MountedStore
from sessfs.cli import options, output
from sessfs.cli.tables import print_table
from sessfs.errors import LocalStoreError, NotMounted
from sessfs.mount import mountinfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def status(mountpoint: options.AnyMount = None, as_json: options.Json = False) -> None:
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
    with MountedStore(place) as store:
        return store.status()


def _ask_or_say(place: Path) -> dict[str, Any]:
    """The status, or in its place what is wrong with that mount, so that one dead mount does not hide the others."""
    try:
        return _ask_status(place)
    except (NotMounted, LocalStoreError) as exc:
        return {"mountpoint": str(place), "warnings": [str(exc)]}


def _print_status(answer: dict[str, Any]) -> None:
    for label, text in status_rows(answer):
        output.print_line(f"{label:20} {text}")
    for warning in answer.get("warnings", []):
        output.print_line(f"{'warning':20} {warning}")


def status_rows(answer: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a person reads of a status: labels and texts, without the warnings."""
    for key, value in answer.items():
        if key == "remote":
            yield from _remote_rows(value)
        elif key == "at_risk_bytes":
            yield "at risk, bytes", _for_people(key, value)
        elif key == "at_risk_seconds":
            yield "at risk, for", _for_people(key, value)
        elif key != "warnings":
            yield _label(key), _for_people(key, value)


def _remote_rows(remote: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in remote.items():
        if key == "health":
            yield "remote state", _health(value)
            for note in value["notes"]:
                yield "remote note", note
        elif isinstance(value, dict) and key != "requests":
            for inner, one in value.items():
                yield f"remote {_label(inner if key == 'capabilities' else f'{key}_{inner}')}", _for_people(inner, one)
        else:
            yield f"remote {_label(key)}", _for_people(key, value)


def _health(health: dict[str, Any]) -> str:
    lasted = output.format_duration(health["for_seconds"])
    reason = f": {health['error']}" if health["error"] else ""
    mending = " (this does not mend itself)" if health["needs_person"] else ""
    return f"{health['state']} for {lasted}{reason}{mending}"


def _label(key: str) -> str:
    return key.removesuffix("_bytes").removesuffix("_seconds").replace("_", " ")


def _for_people(key: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("_bytes"):
        return output.format_size(value)
    if key.endswith("_seconds"):
        return output.format_duration(value)
    if key.endswith("_ratio"):
        return f"{value:.2f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items()) or "-"
    return str(value)


class Order(StrEnum):
    """What `sessions` can be sorted by."""

    SIZE = "size"
    UNIQUE = "unique"
    USED = "used"
    NAME = "name"


Sort = Annotated[
    Order,
    typer.Option("--sort", help="By name, by size or unique bytes (largest first), or by last use (latest first)."),
]
Reverse = Annotated[bool, typer.Option("--reverse", help="Turn the order around.")]


def sessions(
    mountpoint: options.OneMount, sort: Sort = Order.NAME, reverse: Reverse = False, as_json: options.Json = False
) -> None:
    """List the sessions of a mount: files, logical bytes, bytes that only it has, last change and use, expiry."""
    with MountedStore(mountinfo.resolve(mountpoint)) as store:
        answer = store.call("sessions")
    rows = sort_sessions(answer["sessions"], sort, reverse=reverse)
    if as_json:
        output.print_json({**answer, "sessions": rows})
        return
    columns = [column for column in COLUMNS if column.key in COLUMNS_OF_ALL or any(column.key in row for row in rows)]
    right = [number for number, column in enumerate(columns) if column.is_number]
    table = [[_session_cell(column, row) for column in columns] for row in rows]
    print_table([column.title for column in columns], table, right=right)


def sort_sessions(rows: list[dict[str, Any]], order: Order, *, reverse: bool) -> list[dict[str, Any]]:
    """*rows* in that order, equal ones by name. What was never used counts as used longest ago."""
    keys: dict[Order, Callable[[dict[str, Any]], Any]] = {
        Order.SIZE: lambda row: -row["logical_bytes"],
        Order.UNIQUE: lambda row: -row["unique_bytes"],
        Order.USED: _by_last_use,
        Order.NAME: lambda row: 0,
    }
    key = keys[order]
    return sorted(rows, key=lambda row: (key(row), row["name"]), reverse=reverse)


def _by_last_use(row: dict[str, Any]) -> float:
    used = row.get("last_use") or row["last_change"]
    return -datetime.fromisoformat(used).timestamp() if used else 0.0


class Column(NamedTuple):
    """A column of `sessions`: the key in JSON, and its title."""

    key: str
    title: str
    is_number: bool = False


COLUMNS = (
    Column("name", "SESSION"),
    Column("files", "FILES", True),
    Column("logical_bytes", "LOGICAL", True),
    Column("unique_bytes", "UNIQUE", True),
    Column("last_change", "LAST CHANGE"),
    Column("last_use", "LAST USE"),
    Column("expires", "EXPIRES"),
)
COLUMNS_OF_ALL = frozenset({"name", "files", "logical_bytes", "unique_bytes", "last_change"})
"""Columns that are there for every mount, also an empty one."""


def _session_cell(column: Column, row: dict[str, Any]) -> str:
    value = row.get(column.key)
    if value is None:
        return "-"
    return output.format_size(value) if column.key.endswith("_bytes") else str(value)
