"""`sessfs import`: today's profiles, trees of them, and archives become sessions of a mount."""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from sessfs.api.mounted import MountedStore
from sessfs.cli import options, output
from sessfs.mount import mountinfo
from sessfs.sessions.importing_report import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sessfs.sessions.importing_report import ImportProgress, ImportReport, SessionReport

REFUSED_EXIT_CODE = 1
SHOWN = 3
Source = Annotated[
    Path,
    typer.Argument(
        metavar="SRC",
        help="A tree of sessions, one profile, a tar or a zip; see docs/operate.md.",
        parser=options.parse_place,
    ),
]
As = Annotated[str | None, typer.Option("--as", metavar="NAME", help="What the one session in SRC will be called.")]
Verify = Annotated[
    bool, typer.Option("--verify/--no-verify", help="Read every byte again, and back from the store, and compare.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would become what; change nothing.")]
SkipUnsafe = Annotated[
    bool,
    typer.Option("--skip-unsafe", help="Leave out links that lead out of their session, and devices."),
]


def import_(
    source: Source,
    mountpoint: options.OneMount,
    as_name: As = None,
    verify: Verify = True,
    dry_run: DryRun = False,
    skip_unsafe: SkipUnsafe = False,
    as_json: options.Json = False,
) -> None:
    """Import sessions: a .whatsapp-sessions or .wwebjs_auth tree, one profile, a tar or a zip of one.

    A session that is there already is skipped if it is the same, and refused if not: after an interruption, run it
    again. Exit 1 if any session was refused.
    """
    place = mountinfo.resolve(mountpoint)
    with MountedStore(place) as store, _bar(quiet=as_json) as progress:
        report = store.import_tree(
            source, name=as_name, verify=verify, dry_run=dry_run, skip_unsafe=skip_unsafe, progress=progress
        )
    if as_json:
        output.print_json({**msgspec.to_builtins(report), "refused": report.n_refused})
    else:
        _print(report)
    if report.n_refused:
        raise typer.Exit(REFUSED_EXIT_CODE)


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Callable[[ImportProgress], None] | None]:
    """A bar on a terminal's last line; None where there is none."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    # Not before: it takes as long to import as all the rest.
    bars = importlib.import_module("sessfs.cli.bars")
    with bars.import_bar() as show:
        yield show


def _print(report: ImportReport) -> None:
    for session in report.sessions:
        output.print_line(_line(session))
    by_reason: dict[str, list[str]] = {}
    for what in report.left_out:
        path, _, reason = what.rpartition(": ")
        by_reason.setdefault(reason, []).append(path)
    for reason, paths in by_reason.items():
        more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        output.print_line(f"left out, {reason}: {', '.join(paths[:SHOWN])}{more}")
    taken = [session for session in report.sessions if session.outcome is not Outcome.REFUSED]
    parts = [f"{len(taken)} of {len(report.sessions)} sessions", output.format_size(report.total_bytes)]
    if any(session.outcome is Outcome.IMPORTED for session in taken):
        parts.append(f"{output.format_size(report.stored_bytes)} stored")
        parts.append("every byte compared" if report.verified else "not compared")
    parts.append(output.format_duration(report.elapsed_seconds))
    output.print_line(", ".join(parts))
    if taken:
        output.print_line(f"whatsapp-web.js finds them with dataPath {report.data_path}")


def _line(session: SessionReport) -> str:
    size = f"{session.files} files, {output.format_size(session.total_bytes)}"
    if session.outcome is Outcome.REFUSED:
        return f"{session.name}: refused: {session.reason}"
    if session.outcome is Outcome.IMPORTED:
        return f"{session.name}: imported from {session.source} ({size}, {output.format_size(session.new_bytes)} new)"
    return f"{session.name}: {session.outcome.value}: {session.source} ({size})"
