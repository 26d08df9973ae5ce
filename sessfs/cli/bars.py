"""The bar of an import, apart from the command: it takes long to import, and only a terminal shows it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sessfs.sessions.importing_report import ImportProgress


@contextmanager
def import_bar() -> Iterator[Callable[[ImportProgress], None]]:
    """A bar on the terminal's last line while the context is open; call what it gives with each step."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("looking", total=None)

        def show(step: ImportProgress) -> None:
            what = f"{step.stage} {step.session}".strip()
            shown.update(task, description=what, completed=step.done_bytes, total=step.total_bytes or None)

        yield show
