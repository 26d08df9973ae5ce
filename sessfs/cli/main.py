"""The command `sessfs`: its verbs, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from sessfs.cli import output
from sessfs.errors import SessfsError, UsageError
from sessfs.version import VERSION

if TYPE_CHECKING:
    from sessfs.mount.spawn import Started

INTERRUPTED_EXIT_CODE = 130
VERBS = (
    ("mount", "mounting"),
    ("umount", "mounting"),
    ("status", "looking"),
    ("sessions", "looking"),
    ("sync", "syncing"),
    ("limit", "limiting"),
    ("expire", "expiring"),
    ("trash", "expiring"),
    ("check", "opening"),
    ("rm", "removing"),
    ("history", "recalling"),
    ("snapshot", "histories"),
    ("rollback", "histories"),
    ("clone", "histories"),
    ("import", "importing"),
    ("export", "exporting"),
    ("fsck", "checking"),
    ("gc", "remote_commands"),
    ("key", "remote_commands"),
    ("doctor", "doctor"),
)
"""Each verb and its module in `sessfs.cli`. Only the module of the verb asked for is imported: nobody likes to wait."""


def build_app(asked: str | None = None) -> typer.Typer:
    """The verb *asked* alone, if there is such a one; else all."""
    app = typer.Typer(
        name="sessfs",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    app.callback()(_version)
    wanted = [(verb, module) for verb, module in VERBS if verb == asked] or VERBS
    for verb, module in wanted:
        functions = vars(importlib.import_module(f"sessfs.cli.{module}"))
        # `import` can't be a function's name.
        app.command(verb)(functions.get(verb) or functions[f"{verb}_"])
    return app


def _say_version(wanted: bool) -> None:
    if wanted:
        output.print_line(f"sessfs {VERSION}")
        raise typer.Exit


def _version(
    _wanted: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A filesystem for fleets of Chrome profiles: deduplicated locally, lazily written back to S3."""


def run(arguments: list[str], early: Started | None = None) -> int:
    """Run one command and return its exit code; everything it has to say is said. *early* is a mount's."""
    as_json = "--json" in arguments
    try:
        app = build_app(arguments[0] if arguments else None)
        code = app(arguments or ["--help"], prog_name="sessfs", standalone_mode=False, obj=early)
        sys.stdout.flush()
    except SessfsError as exc:
        error = exc
    except typer.TyperException as exc:
        error = UsageError(f"{exc.format_message()} (`sessfs --help` says more)")
    except typer.Abort:
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError:
        # Whoever read our stdout has left, as `head` does; Python must not complain at its own exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, BaseExceptionGroup, OSError) as exc:
        if _came_of_interrupt(exc):
            output.print_note("interrupted")
            return INTERRUPTED_EXIT_CODE
        if not isinstance(exc, OSError):
            raise
        error = SessfsError(f"{exc.filename or 'this command'}: {exc.strerror or exc}")
    else:
        return code if isinstance(code, int) else 0
    output.print_error(error, as_json=as_json)
    return error.exit_code


def _came_of_interrupt(error: BaseException | None) -> bool:
    """True for Ctrl-C itself, for what trio makes of it where several things were going on, and for an error that was
    met while it was cleaned up after, as by closing what was closed just then.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        if isinstance(error, BaseExceptionGroup) and error.subgroup(KeyboardInterrupt) is not None:
            return True
        error = error.__context__
    return False


def main(early: Started | None = None) -> None:
    """The program's command line: never returns."""
    sys.exit(run(sys.argv[1:], early))


if __name__ == "__main__":
    main()
