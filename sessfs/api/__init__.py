"""The Python API: `open_store`, and what it gives. `import sessfs` has the same names. docs/api.md describes it.

Each is imported at its first use: a command needs one kind of store, not all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sessfs.api.opening import open_store
    from sessfs.api.records import Entry, SessionRecord
    from sessfs.api.store import Session, Store
    from sessfs.sessions.exporting import ExportFormat, ExportReport, ExportStep

__all__ = (
    "Entry",
    "ExportFormat",
    "ExportReport",
    "ExportStep",
    "Session",
    "SessionRecord",
    "Store",
    "open_store",
)


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_home(name)), name)


def _home(name: str) -> str:
    """The module that has the public *name*."""
    if name.startswith("Export"):
        return "sessfs.sessions.exporting"
    if name in ("Session", "Store"):
        return "sessfs.api.store"
    return "sessfs.api.opening" if name == "open_store" else "sessfs.api.records"


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
