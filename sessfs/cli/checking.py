"""`sessfs fsck`: is a state directory whole?"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from sessfs.cli import looking, output
from sessfs.errors import StoreCorrupt
from sessfs.mount import preflight
from sessfs.sync import fsck as checker

Json = looking.Json
State = Annotated[
    Path,
    typer.Option("--state", metavar="DIR", help="The state directory, which must not be mounted; it is only read."),
]


def fsck(state: State, as_json: Json = False) -> None:
    """Check a state directory, everything against everything. Exit 0 only if it is clean, 21 if not.

    Names each damaged file with its session. Changes nothing: what a crash left unfinished, the next mount mends.
    """
    state_dir = Path(os.path.abspath(state))
    preflight.check_state(state_dir)
    quiet = as_json or not sys.stderr.isatty()
    report = checker.check_state(state_dir) if quiet else _check_with_progress(state_dir)
    if as_json:
        output.print_json({"clean": report.clean, **msgspec.to_builtins(report)})
    else:
        _print_report(report)
    if not report.clean:
        raise typer.Exit(StoreCorrupt.exit_code)


def _check_with_progress(state_dir: Path) -> checker.Report:
    """The check, with the stage it is in on a terminal's last line."""
    with Console(stderr=True).status("checking") as shown:
        return checker.check_state(state_dir, lambda stage, done: shown.update(f"checking {stage}: {done}"))


def _print_report(report: checker.Report) -> None:
    for problem in report.problems:
        where = f"session {problem.session}, {problem.path}: " if problem.session or problem.path else ""
        output.print_line(f"{problem.kind}: {where}{problem.message}")
    for note in report.notes:
        output.print_line(f"note: {note}")
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in report.counts.items())
    verdict = "clean" if report.clean else f"{len(report.problems)} problems"
    output.print_line(f"{verdict}; checked {counts}")
