"""The Python API: `open_store`, and what it gives. `import sessfs` has the same names. docs/api.md describes it.

Each is imported at its first use: a command needs one kind of store, not all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sessfs.api.opening import open_store
    from sessfs.api.records import Entry, SessionRecord, SnapshotRecord
    from sessfs.api.store import Session, Store
    from sessfs.sessions.checking_files import CheckReport
    from sessfs.sessions.erasing_report import ErasureReport
    from sessfs.sessions.exporting import ExportFormat, ExportReport, ExportStep
    from sessfs.sessions.importing_report import ImportProgress, ImportReport

__all__ = (
    "CheckReport",
    "Entry",
    "ErasureReport",
    "ExportFormat",
    "ExportReport",
    "ExportStep",
    "ImportProgress",
    "ImportReport",
    "Session",
    "SessionRecord",
    "SnapshotRecord",
    "Store",
    "open_store",
)


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_home(name)), name)


def _home(name: str) -> str:
    """The module that has the public *name*."""
    for start, home in (
        ("Erasure", "sessfs.sessions.erasing"),
        ("Export", "sessfs.sessions.exporting"),
        ("Import", "sessfs.sessions.importing_report"),
        ("Check", "sessfs.sessions.checking_files"),
        ("open_store", "sessfs.api.opening"),
    ):
        if name.startswith(start):
            return home
    return "sessfs.api.store" if name in ("Session", "Store") else "sessfs.api.records"


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
