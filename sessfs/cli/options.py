"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sessfs.errors import UsageError


def parse_place(text: str) -> Path:
    """The path that an argument names. Raises UsageError for an empty one, as of a variable that is not set: the
    directory that a script happens to be in is not what it meant.
    """
    if not text:
        raise UsageError("an argument is empty where a path is wanted: is a variable not set?")
    return Path(text)


Json = Annotated[bool, typer.Option("--json", help="For scripts: JSON, sizes in bytes, times in seconds or RFC 3339.")]
OneMount = Annotated[Path, typer.Argument(metavar="MOUNTPOINT", help="Where it is mounted.", parser=parse_place)]
AnyMount = Annotated[
    Path | None,
    typer.Argument(metavar="MOUNTPOINT", help="Where it is mounted [default: every sessfs mount].", parser=parse_place),
]
