"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="For scripts: JSON, sizes in bytes, times in seconds or RFC 3339.")]
OneMount = Annotated[Path, typer.Argument(metavar="MOUNTPOINT", help="Where it is mounted.")]
AnyMount = Annotated[
    Path | None, typer.Argument(metavar="MOUNTPOINT", help="Where it is mounted [default: every sessfs mount].")
]
