"""`sessfs doctor`: what would stop a mount on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from sessfs import config
from sessfs.cli import options, output
from sessfs.mount import doctor as checks

Json = options.Json
State = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="The state directory to look at [default: where they are by default]."),
]


def doctor(state: State = None, as_json: Json = False) -> None:
    """Say what on this machine would stop a mount, and how to mend it. Exit 0 only if nothing would.

    Warnings (a mount works, but not as it should) do not change the exit code. Nothing is changed.
    """
    default = config.default_state_dir(Path("/example"), env=os.environ, uid=os.geteuid()).parent
    state_dir = Path(os.path.abspath(state)) if state is not None else default
    findings = checks.examine(state_dir)
    stops = any(finding.level is checks.Level.PROBLEM for finding in findings)
    if as_json:
        output.print_json({"would_mount": not stops, "findings": msgspec.to_builtins(findings)})
    else:
        for finding in findings:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            output.print_line(f"{finding.level:8} {finding.check:12} {finding.message}{remedy}")
    if stops:
        raise typer.Exit(1)
