"""`sessfs fsck`: is a state directory, or a remote, whole?"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from sessfs.cli import mounting, options, output, remote_commands
from sessfs.errors import RemoteCorrupt, StoreCorrupt, UsageError
from sessfs.mount import places, preflight
from sessfs.sync import fsck as checker

Json = options.Json
State = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="The state directory, which must not be mounted."),
]
Remote = Annotated[str | None, typer.Option(metavar="URL", help="Check this remote instead; it may be mounted.")]
ReadData = Annotated[
    float | None,
    typer.Option(
        "--read-data",
        metavar="PERCENT",
        min=0,
        max=100,
        help="Of a remote, also read this much of the data and verify every chunk in it [default: 0].",
    ),
]


Repair = Annotated[
    bool,
    typer.Option(
        "--repair", help="Of a remote: first make lost objects of sessions anew, of what the segments say of them."
    ),
]


def fsck(
    state: State = None,
    remote: Remote = None,
    read_data: ReadData = None,
    repair: Repair = False,
    endpoint_url: mounting.Endpoint = None,
    region: mounting.Region = None,
    path_style: mounting.PathStyle = False,
    key_file: mounting.KeyFile = None,
    as_json: Json = False,
) -> None:
    """Check a state directory or a remote, everything against everything. Exit 0 only if it is clean, 21 or 35 if not.

    Names each damaged file with its session. Changes nothing, unless --repair is given, but leaves a note of damaged
    data for mounts, which mend what they can. What a crash left unfinished, the next mount mends.
    """
    if (state is None) == (remote is None):
        raise UsageError("check what? Give either --state DIR or --remote URL")
    if state is not None and read_data is not None:
        raise UsageError("--read-data is for --remote: of a state directory everything is read")
    if state is not None and repair:
        raise UsageError("--repair is for --remote: what a state directory needs, the next mount does")
    quiet = as_json or not sys.stderr.isatty()
    if state is not None:
        state_dir = Path(os.path.abspath(state))
        places.require_outside("the state directory", state_dir)
        preflight.check_state(state_dir)
        report = checker.check_state(state_dir) if quiet else _check_with_progress(state_dir)
    else:
        settings = remote_commands.settings_for(remote, endpoint_url, region, path_style, key_file)
        report = remote_commands.check(settings, read_data or 0.0, repair=repair, quiet=as_json)
    if as_json:
        output.print_json({"clean": report.clean, **msgspec.to_builtins(report)})
    else:
        _print_report(report)
    if not report.clean:
        raise typer.Exit(StoreCorrupt.exit_code if state is not None else RemoteCorrupt.exit_code)


def _check_with_progress(state_dir: Path) -> checker.Report:
    """The check, with the stage it is in on a terminal's last line."""
    with Console(stderr=True).status("checking") as shown:
        return checker.check_state(state_dir, lambda stage, done: shown.update(f"checking {stage}: {done}"))


def _print_report(report: checker.Report) -> None:
    for problem in report.problems:
        named = (f"session {problem.session}" if problem.session else "", problem.path)
        where = ", ".join(filter(None, named)) + ": " if any(named) else ""
        output.print_line(f"{problem.kind}: {where}{problem.message}")
    for note in report.notes:
        output.print_line(f"note: {note}")
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in report.counts.items())
    verdict = "clean" if report.clean else f"{len(report.problems)} problems"
    output.print_line(f"{verdict}; checked {counts}")
